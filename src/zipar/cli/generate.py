"""``zipar generate``: prompts to images."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from zipar.cli import options, outputs


class StrategyName(str, Enum):
    """The strategies, by name."""

    zipar = "zipar"
    raster = "raster"
    adaptive = "adaptive"
    jacobi = "jacobi"


def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT", help="What to paint, in quotes; several prompts make several images."),
    ],
    model: options.Model = "emoji",
    strategy: Annotated[
        StrategyName | None,
        typer.Option(
            help="zipar: rows grow together. adaptive: a row waits where more context changes its start. jacobi: the "
            "very image of raster order, in fewer passes. raster: one token after the other, the baseline.",
            show_default=f"what `zipar tune` chose, else {options.DEFAULT_STRATEGY}",
        ),
    ] = None,
    window: options.Window = None,
    lookahead: options.Lookahead = None,
    nats: options.Nats = None,
    first_row: Annotated[
        options.FirstRow | None,
        typer.Option(
            help="alone: row 0 is finished before row 1 starts. wave: it is not, which is faster.", show_default="alone"
        ),
    ] = None,
    size: options.Size = None,
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
    deterministic: options.Deterministic = False,
    num_images: Annotated[
        int,
        typer.Option(
            "--num-images",
            "-n",
            min=1,
            max=options.MOST_IMAGES,
            metavar="NUMBER",
            help="Images of each prompt; their seeds count up from --seed.",
        ),
    ] = 1,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.png",
            help="Where the image goes (.png, .jpg, .webp); several images are numbered fox-0.png, fox-1.png ...",
            rich_help_panel="Output",
        ),
    ] = Path("zipar.png"),
    tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy", help="Codebook indices, int32 (images, rows, columns).", rich_help_panel="Output"
        ),
    ] = None,
    stats: options.Stats = None,
    animate: options.Animate = None,
    quiet: options.Quiet = False,
) -> None:
    """Paint images of prompts.

    Several images are decoded in one batch. --animate shows the first of them.
    """
    *_, last = outputs.numbered(output, len(prompts) * num_images)
    for path, suffixes in ((last, outputs.PICTURES), (tokens, (".npy",)), (stats, (".json",)), (animate, (".gif",))):
        outputs.check(path, *suffixes)

    from zipar.cli import drawing, session
    from zipar.cli.progress import bars, spinner
    from zipar.decoding import names
    from zipar.decoding.raster import Raster
    from zipar.writing import write

    started = session.start(
        prompts,
        model=model,
        dtype=dtype,
        quantize=quantize,
        device=device,
        cuda_graphs=cuda_graphs,
        size=size,
        seed=seed,
        negative_prompt=negative_prompt,
        num_images=num_images,
        quiet=quiet,
        deterministic=deterministic,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    chosen = started.pipe.strategy
    if any(given is not None for given in (strategy, window, lookahead, nats, first_row)):
        start = first_row and first_row.value
        chosen = names.make(strategy.value if strategy else "zipar", window, lookahead, start, nats)
    with bars(started.grid, quiet) as add:
        made = started.run(chosen, add("decoding", chosen))

    paths = outputs.numbered(output, len(made.images))
    files: dict[Path, Callable[[Path], Any]] = {
        path: outputs.picture(image) for path, image in zip(paths, made.images, strict=True)
    }
    if tokens:
        files[tokens] = outputs.array(made.tokens)
    if stats:
        record = {**made.stats.to_dict(), "strategy": names.name(chosen), **started.record()}
        files[stats] = outputs.record(record)
    if animate:
        panel = drawing.Panel(names.title(chosen), made.images[0], made.born[0])
        files[animate] = lambda path: drawing.save_animation(path, [panel], prompts[0])
    with spinner("writing", quiet):
        write(files)
    if not quiet:
        where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1].name}"
        raster = Raster().passes(started.grid)
        fewer = f" instead of {raster}" if made.stats.forward_passes < raster else ""
        print(f"{where}: {made.stats.forward_passes} forward passes{fewer}, {session.seconds(made.stats):.2f} s")
