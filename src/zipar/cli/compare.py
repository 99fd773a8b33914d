"""``zipar compare``: one prompt, one seed, several strategies side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from zipar.cli import options, outputs

STRATEGIES = ("zipar:4", options.DEFAULT_STRATEGY, "jacobi:32")
"""ZipAR as published, the default, and what gives raster's very image."""


def compare(
    prompt: options.Prompt = "",
    strategy: options.Strategies = None,
    model: options.Model = "emoji",
    size: options.Size = None,
    frames: options.Frames = None,
    given: options.Given = None,
    given_frames: options.GivenFrames = None,
    dtype: options.WeightType = None,
    quantize: options.Quantize = None,
    device: options.Device = None,
    cuda_graphs: options.CudaGraphs = True,
    seed: options.Seed = 0,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: options.NegativePrompt = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    deterministic: options.Deterministic = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.png",
            help="The images side by side (.png, .jpg, .webp), or the clips, in one that plays (.gif, .webp, .mp4).",
            show_default="compare.png; compare.gif of clips",
            rich_help_panel="Output",
        ),
    ] = None,
    stats: options.Stats = None,
    animate: options.Animate = None,
    quiet: options.Quiet = False,
) -> None:
    """Paint one prompt with several strategies, and show them side by side.

    All start from the same seed; unless told otherwise they are raster order, zipar:4, which is ZipAR as published,
    the default, and jacobi:32, which gives raster's very image; of clips also zipar:4:wave with a frame delay of as
    many passes as a row has tokens. Seconds are from the prompt to the picture, after a run
    that is not counted; "as raster" is the share of tokens that are the same as in raster order.
    """
    for path, suffix in ((stats, ".json"), (animate, ".gif")):
        outputs.check(path, suffix)

    from zipar.cli import drawing, session
    from zipar.cli.progress import bars, spinner
    from zipar.decoding import names
    from zipar.decoding.raster import Raster
    from zipar.videos import Video
    from zipar.writing import write

    chosen = [names.parse(name) for name in strategy or STRATEGIES]
    clips = session.makes_clips(model)
    output = output or Path("compare.gif" if clips else "compare.png")
    outputs.check_made(output, clips)
    started = session.start(
        [prompt],
        model=model,
        dtype=dtype,
        quantize=quantize,
        device=device,
        cuda_graphs=cuda_graphs,
        size=size,
        seed=seed,
        negative_prompt=negative_prompt,
        frames=frames,
        given=session.given_of(given, given_frames),
        quiet=quiet,
        deterministic=deterministic,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    chosen = list(dict.fromkeys([Raster(), *chosen, *([] if strategy else session.overlapping(started))]))
    fastest = min(chosen, key=started.passes)
    with bars(started.grids, quiet) as add:
        _, *made = [
            started.run(each, add(title, each))
            for each, title in [(fastest, "warming up"), *((each, names.name(each)) for each in chosen)]
        ]

    panels = [
        drawing.Panel(names.title(each), *session.first(started, out)) for each, out in zip(chosen, made, strict=True)
    ]
    fresh = started.grids[0].given if clips else 0
    seconds = [session.seconds(out.stats) for out in made]
    rows = [
        {
            "strategy": names.name(each),
            **out.stats.to_dict(),
            "seconds": took,
            "reduction": 1 - out.stats.forward_passes / made[0].stats.forward_passes,
            "speedup": seconds[0] / took,
            "tokens_per_pass": started.tokens / out.stats.forward_passes,
            "as_raster": float((out.tokens == made[0].tokens)[:, fresh:].mean()),
        }
        for each, out, took in zip(chosen, made, seconds, strict=True)
    ]
    pages = drawing.side_by_side(panels, seconds, prompt)
    shown = outputs.clip(Video(pages, made[0].videos[0].fps)) if clips else outputs.picture(pages[0])
    files: dict[Path, Callable[[Path], Any]] = {output: shown}
    if stats:
        files[stats] = outputs.record({**started.record(), "strategies": rows})
    if animate:
        files[animate] = lambda path: drawing.save_animation(path, panels, prompt)
    with spinner("drawing", quiet):
        write(files)
    if not quiet:
        _show(rows)
        print(", ".join(map(str, files)))


def _show(rows: list[dict[str, Any]]) -> None:
    from zipar.cli.tables import show

    show(
        ["strategy", "forward passes", "reduction", "seconds", "speedup", "as raster"],
        [
            [
                row["strategy"],
                str(row["forward_passes"]),
                f"{row['reduction']:.1%}",
                f"{row['seconds']:.2f}",
                f"{row['speedup']:.2f}x",
                f"{row['as_raster']:.0%}",
            ]
            for row in rows
        ],
    )
