"""``zipar generate``: prompts to images or clips."""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from zipar.cli import options, outputs
from zipar.errors import ZipARError
from zipar.pretrained import directory as embedded


class StrategyName(str, Enum):
    """The strategies, by name."""

    zipar = "zipar"
    raster = "raster"
    adaptive = "adaptive"
    jacobi = "jacobi"


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to paint, in quotes; several prompts make several images. Models that only go on from frames "
            "take none.",
            show_default=False,
        ),
    ] = None,
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
    frame_delay: options.FrameDelay = None,
    first_row: Annotated[
        options.FirstRow | None,
        typer.Option(
            help="alone: row 0 is finished before row 1 starts. wave: it is not, which is faster.", show_default="alone"
        ),
    ] = None,
    size: options.Size = None,
    frames: options.Frames = None,
    given: options.Given = None,
    given_frames: options.GivenFrames = None,
    fps: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Frames that the file shows a second.",
            show_default="the model's own",
            rich_help_panel="Clips",
        ),
    ] = None,
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
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.png",
            help="Where the image goes (.png, .jpg, .webp), or the clip (.mp4, of the extra zipar-torch\\[video], "
            ".gif, .webp; .png for all its frames in one picture); several are numbered fox-0.png, fox-1.png ...",
            show_default="zipar.png; zipar.gif of a clip",
            rich_help_panel="Output",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy",
            help="Codebook indices, int32 (images, rows, columns) or (clips, frames, rows, columns).",
            rich_help_panel="Output",
        ),
    ] = None,
    stats: options.Stats = None,
    animate: options.Animate = None,
    quiet: options.Quiet = False,
) -> None:
    """Paint images of prompts, or clips, where the model makes them.

    Several images are decoded in one batch. --animate shows the first of them.
    """
    for path, suffix in ((tokens, ".npy"), (stats, ".json"), (animate, ".gif")):
        outputs.check(path, suffix)

    if output is not None and embedded(model) and output.suffix.lower() not in outputs.FILMS:
        outputs.check(output, *outputs.PICTURES)
    if not prompts and embedded(model):
        raise ZipARError("the prompt is empty: say what to paint")

    from zipar.cli import drawing, session
    from zipar.cli.progress import bars, spinner
    from zipar.decoding import names
    from zipar.decoding.raster import Raster
    from zipar.videos import frame_rate
    from zipar.writing import write

    prompts = prompts or [""]
    clips = session.makes_clips(model)
    output = output or Path("zipar.gif" if clips else "zipar.png")
    *_, last = outputs.numbered(output, len(prompts) * num_images)
    outputs.check_made(last, clips)
    if fps is not None:
        if not clips:
            raise ZipARError(f"--fps {fps:g} is for clips, and this model makes images: leave it out")
        frame_rate(fps)
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
    chosen = started.pipe.strategy
    if any(given is not None for given in (strategy, window, lookahead, nats, first_row, frame_delay)):
        start = first_row and first_row.value
        chosen = names.make(strategy.value if strategy else "zipar", window, lookahead, start, nats, frame_delay)
    with bars(started.grids, quiet) as add:
        made = started.run(chosen, add("decoding", chosen))

    writers = [outputs.picture(image) for image in made.images]
    writers += [outputs.clip(replace(video, fps=fps or video.fps)) for video in made.videos]
    paths = outputs.numbered(output, len(writers))
    files: dict[Path, Callable[[Path], Any]] = dict(zip(paths, writers, strict=True))
    if tokens:
        files[tokens] = outputs.array(made.tokens)
    if stats:
        record = {**made.stats.to_dict(), "strategy": names.name(chosen), **started.record()}
        files[stats] = outputs.record(record)
    if animate:
        panel = drawing.Panel(names.title(chosen), *session.first(started, made))
        files[animate] = lambda path: drawing.save_animation(path, [panel], prompts[0])
    with spinner("writing", quiet):
        write(files)
    if not quiet:
        where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1].name}"
        raster = started.passes(Raster())
        fewer = f" instead of {raster}" if made.stats.forward_passes < raster else ""
        print(f"{where}: {made.stats.forward_passes} forward passes{fewer}, {session.seconds(made.stats):.2f} s")
