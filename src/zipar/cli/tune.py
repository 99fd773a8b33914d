"""``zipar tune``: the fastest setting that a model's images bear."""

from pathlib import Path
from typing import Annotated

import typer

from zipar.cli import options, outputs


def tune(
    prompts: options.PromptFile = None,
    model: options.Model = "emoji",
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="NATS",
            help="How far from raster's draws the tokens may be, in nats a token: their surprise excess, up or down, "
            "and their divergence, each with half the width of its 95 % interval.",
            show_default="0.02",
        ),
    ] = None,
    lookahead: Annotated[
        int, typer.Option("--lookahead", "-l", min=1, metavar="TOKENS", help="The most drafts to try; 1 for none.")
    ] = 16,
    images: Annotated[
        int,
        typer.Option(
            min=2,
            max=1_000_000,
            metavar="NUMBER",
            help="Images of each setting; prompts are gone through again, with other seeds, if there are fewer.",
        ),
    ] = 64,
    batch_size: options.BatchSize = 16,
    size: options.Size = None,
    frames: options.Frames = None,
    given: options.Starts = None,
    given_frames: options.GivenFrames = None,
    dtype: options.WeightType = None,
    quantize: options.Quantize = None,
    device: options.Device = None,
    cuda_graphs: options.CudaGraphs = True,
    seed: options.Seed = 0,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where finished batches are kept: the same command goes on where it was stopped.",
            rich_help_panel="Output",
        ),
    ] = Path("tuning"),
    quiet: options.Quiet = False,
) -> None:
    """Choose the window and lookahead that are fastest among those whose tokens are as good as raster's draws.

    Neither less likely, as at seams, nor more, as where images become alike, and drawn from nearly the same
    distribution; `zipar eval --help` tells of surprise excess and divergence. More --images make their intervals
    narrower: where there are too few for the tolerance, a message says so.

    Of a model of clips then the frame delay that is fastest with these. Lossless decoding (jacobi:32) is chosen where
    it is faster than all of them.

    Fastest where --batch-size images are decoded together: drafts pay for a few images, and cost time for many.

    The choice is saved beside the checkpoint, as zipar.json: pipelines and `zipar generate` then use it by default.
    """
    outputs.check_directory(output)

    from zipar.arguments import real
    from zipar.checkpoints.tuned import FILE
    from zipar.cli import session
    from zipar.cli.progress import counter
    from zipar.cli.tables import show
    from zipar.decoding import names
    from zipar.decoding.raster import Raster
    from zipar.decoding.strategy import Strategy
    from zipar.decoding.zipar import ZipAR
    from zipar.evaluation import report, tables, tuning
    from zipar.writing import write

    limit = tuning.TOLERANCE if tolerance is None else real("tolerance", tolerance, lambda x: x > 0, "a number above 0")
    started = session.start(
        options.read_prompts(prompts),
        model=model,
        dtype=dtype,
        quantize=quantize,
        device=device,
        cuda_graphs=cuda_graphs,
        size=size,
        seed=seed,
        negative_prompt=None,
        frames=frames,
        given=session.starts_of(given, given_frames),
        quiet=quiet,
    )
    outputs.check_directory(started.directory)
    study = session.study(started, images, batch_size, output / "batches")
    with counter(None, quiet) as advance, session.enough_memory():
        study.warm_up(ZipAR(1))
        comparison = report.Comparison(study, report.Graders(), 0, lambda each, made: advance(names.name(each), made))
        tuning.check_images(len(study.prompts), comparison.measure(Raster())["excess"].reach, limit)

        def measure(strategy: ZipAR) -> tuning.Figures:
            row = comparison.measure(strategy)
            excess = row["excess_difference"]
            return tuning.Figures(excess.value, excess.reach, row["divergence"].high, row["seconds"])

        grid = study.grid
        best = tuning.search(measure, grid.columns, lookahead, limit)
        if grid.frames - grid.given > 1:
            in_raster_order = ZipAR(grid.columns)
            found = tuning.overlap(measure, best or in_raster_order, grid, limit)
            best = best if found == in_raster_order else found
        chosen: Strategy = best or Raster()
        seconds = {row["strategy"]: row["seconds"] for row in comparison.report.rows}
        if comparison.measure(tuning.LOSSLESS)["seconds"] < seconds[names.name(chosen)]:
            chosen = tuning.LOSSLESS
    rows = sorted(comparison.report.rows, key=lambda row: -row["forward_passes"])
    choice = names.name(chosen)
    record = {"strategy": choice, "tolerance": limit, **started.record(), "prompts": study.prompts}
    write({started.directory / FILE: outputs.record({**record, "tried": tables.jsonable(rows)})})
    if not quiet:
        costs = ("strategy", "forward_passes", "slots_evaluated", "seconds", "speedup")
        shown = (*costs, "divergence", "excess_difference")
        show(*tables.cells(rows, shown, brief=True))
        print(f"{choice} is the default of {model} from now on ({started.directory / FILE})")
