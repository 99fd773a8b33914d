"""``zipar eval``: what strategies cost and what they do to the images, over many prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipar.cli import options, outputs
from zipar.errors import ZipARError

if TYPE_CHECKING:
    from zipar.cli.session import Session
    from zipar.evaluation.report import Graders

STRATEGIES = ("zipar:8", "zipar:4", "zipar:2", "zipar:4:8")
PICTURES = 12
"""Columns of the sheet of images."""
BRIEF = (
    *("strategy", "forward_passes", "seconds", "speedup", "excess", "entropy", "fid_ratio"),
    *("accuracy_difference.all", "clip_difference"),
)
"""What the terminal shows; the files hold all."""


def evaluate(
    prompts: options.PromptFile = None,
    strategy: options.Strategies = None,
    model: options.Model = "emoji",
    images: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1_000_000,
            metavar="NUMBER",
            help="Images of each strategy; prompts are gone through again, with other seeds, if there are fewer.",
            show_default="one a prompt",
        ),
    ] = None,
    batch_size: options.BatchSize = 16,
    size: options.Size = None,
    dtype: options.WeightType = None,
    quantize: options.Quantize = None,
    device: options.Device = None,
    cuda_graphs: options.CudaGraphs = True,
    seed: options.Seed = 0,
    guidance_scale: options.GuidanceScale = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help='Real pictures for FID on Inception features: needs `pip install "zipar-torch\\[fid]"`.',
            show_default="what the model ships with",
            rich_help_panel="Quality",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A CLIP, directory or hub id, to score images against prompts, such as openai/clip-vit-large-patch14.",
            rich_help_panel="Quality",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where report.json, .csv and .md, curves.png and images.png go. Finished batches are kept there too: "
            "the same command goes on where it was stopped.",
            rich_help_panel="Output",
        ),
    ] = Path("evaluation"),
    quiet: options.Quiet = False,
) -> None:
    """Measure strategies against raster decoding: passes, seconds, fidelity, FID and prompt accuracy.

    Strategies are zipar:8, zipar:4, zipar:2 and zipar:4:8 unless told otherwise.

    Fidelity needs no reference, and has two figures, in nats a token. Surprise excess is how much less likely the
    tokens are, under full raster context, than raster's draws are on average: 0, within its interval, for raster and
    all that is lossless; below 0 tokens are too likely, as where images become alike. The fidelity gap is the negative
    log-likelihood of the tokens less that of raster's own images of the same prompts and seeds.
    """
    outputs.check_directory(output)

    from zipar.cli import session
    from zipar.cli.progress import counter
    from zipar.decoding import names
    from zipar.decoding.raster import Raster
    from zipar.decoding.zipar import ZipAR
    from zipar.evaluation import plots, report, tables
    from zipar.writing import write

    chosen = list(dict.fromkeys([Raster(), *map(names.parse, strategy or STRATEGIES)]))
    if len(chosen) == 1:
        raise ZipARError("raster order alone leaves nothing to compare: name another --strategy")
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
        quiet=quiet,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    study = session.study(started, images, batch_size, output / "batches")
    graders = _graders(started, reference, clip)
    with counter(len(chosen) * len(study.prompts), quiet) as advance, session.enough_memory():
        study.warm_up(ZipAR(1))
        found = report.evaluate(study, chosen, graders, PICTURES, lambda each, made: advance(names.name(each), made))
    columns = tables.columns(found.rows)
    record = {**started.record(), "prompts": study.prompts, "batch_size": batch_size}
    record["strategies"] = tables.jsonable(found.rows)
    text = tables.markdown(found.rows, columns) + "\n"
    write(
        {
            output / "report.json": outputs.record(record),
            output / "report.csv": lambda path: tables.write_csv(found.rows, path),
            output / "report.md": lambda path: path.write_text(text, encoding="utf-8"),
            output / "curves.png": lambda path: plots.save_curves(found.rows, path),
            output / "images.png": lambda path: plots.save_sheet(
                [row["strategy"] for row in found.rows], found.pictures, study.prompts, path
            ),
        }
    )
    if not quiet:
        from zipar.cli.tables import show

        show(*tables.cells(found.rows, [column for column in columns if column in BRIEF], brief=True))
        print(f"{output}: report.json, report.csv, report.md, curves.png, images.png")


def _graders(started: "Session", reference: Path | None, clip: str | None) -> "Graders":
    """The judge and statistics that a model ships with, and what the user asks for."""
    from zipar.evaluation.fid import Moments
    from zipar.evaluation.judge import Judge
    from zipar.evaluation.report import Graders, Reference

    device, shipped = started.pipe.model.device, started.directory / "judge"
    judge = Judge.load(shipped).to(device) if shipped.is_dir() else None
    against, score = None, None
    if reference is not None:
        from zipar.evaluation.inception import Inception, folder_moments

        features = Inception(device).features
        against = Reference(features, folder_moments(reference, features), replicates=100)
    elif judge is not None:
        against = Reference(judge.features, Moments.load(shipped / "reference.safetensors"), replicates=1000)
    if clip:
        from zipar.evaluation.clip import ClipScorer

        score = ClipScorer(clip, device).score
    return Graders(judge, against, score)
