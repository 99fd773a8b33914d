"""``zipar eval``: what strategies cost and what they do to the images, over many prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipar.cli import options, outputs
from zipar.errors import ZipARError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zipar.cli.session import Session
    from zipar.evaluation.judge import Judge
    from zipar.evaluation.report import Graders

STRATEGIES = ("zipar:4", "zipar:2", options.DEFAULT_STRATEGY, "jacobi:32")
PICTURES = 12
"""Columns of the sheet of images."""
BRIEF = (
    *("strategy", "forward_passes", "seconds", "speedup", "divergence", "excess", "fid_ratio"),
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
    frames: options.Frames = None,
    given: options.Starts = None,
    given_frames: options.GivenFrames = None,
    dtype: options.WeightType = None,
    quantize: options.Quantize = None,
    device: options.Device = None,
    cuda_graphs: options.CudaGraphs = True,
    seed: options.Seed = 0,
    guidance_scale: options.GuidanceScale = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Real pictures, or clips for a model of clips, for FID, precision and recall.",
            show_default="what the model ships with",
            rich_help_panel="Quality",
        ),
    ] = None,
    features: Annotated[
        options.Features | None,
        typer.Option(
            help="The network whose features of --reference and of images are compared. inception is that of papers, "
            "of the extra zipar-torch\\[fid]; efficientnet is Lite0, whose weights come with the extra "
            "zipar-torch\\[efficientnet], and has 1,280 features, which take 2,000 images or more; judge is the "
            "model's own.",
            show_default="inception",
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

    Strategies are zipar:4, zipar:2, the default and jacobi:32 unless told otherwise; of clips also zipar:4:wave with a
    frame delay of as many passes as a row has tokens. Networks look at clips frame by frame, and the mean counts, but
    for the judge that a model of clips ships with, which sees them whole. Passes and seconds are those of --batch-size
    images together: there jacobi drafts less far than for one, and takes more passes.

    Fidelity needs no reference, and has three figures, in nats a token. Divergence is how far the distribution that the
    tokens were drawn from is from raster's: exactly 0 for all that is lossless, and an estimate where drafts were drawn
    again. Surprise excess is how much less likely the tokens are, under full raster context, than raster's draws are on
    average: 0, within its interval, for raster and all that is lossless; below 0 tokens are too likely, as where images
    become alike. The fidelity gap is the negative log-likelihood of the tokens less that of raster's own images of the
    same prompts and seeds.
    """
    outputs.check_directory(output)
    if features is not None and reference is None:
        raise ZipARError(f"--features {features.value} is for the pictures of --reference DIR: name their folder too")

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
        frames=frames,
        given=session.starts_of(given, given_frames),
        quiet=quiet,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    if not strategy:
        chosen += session.overlapping(started)
    study = session.study(started, images, batch_size, output / "batches")
    graders = _graders(started, reference, features or options.Features.inception, clip)
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


def _graders(started: "Session", folder: Path | None, features: options.Features, clip: str | None) -> "Graders":
    """The judge and statistics that a model ships with, and what the user asks for."""
    from zipar.evaluation.clips import framewise, framewise_score
    from zipar.evaluation.fid import Moments, kept_features
    from zipar.evaluation.images import folder_features
    from zipar.evaluation.judge import Judge
    from zipar.evaluation.report import Graders, Reference

    device, shipped = started.pipe.model.device, started.directory / "judge"
    judge = Judge.load(shipped).to(device) if shipped.is_dir() else None
    against, score = None, None
    if folder is not None:
        network = _network(features, judge, device)
        if started.clips and features is not options.Features.judge:
            network = framewise(network)
        real = folder_features(folder, network, started.clips)
        against = Reference(network, Moments.of(real), replicates=100, real=real)
    elif judge is not None:
        path = shipped / "reference.safetensors"
        against = Reference(judge.features, Moments.load(path), replicates=1000, real=kept_features(path))
    if clip:
        from zipar.evaluation.clip import ClipScorer

        scorer = ClipScorer(clip, device).score
        score = framewise_score(scorer) if started.clips else scorer
    return Graders(judge, against, score)


def _network(features: options.Features, judge: "Judge | None", device: "torch.device") -> "Callable[..., Tensor]":
    """uint8 images (n, height, width, 3), or clips for the judge of their model -> features (n, d)."""
    if features is options.Features.judge:
        if judge is None:
            raise ZipARError("--features judge: the model ships with none, so use inception or efficientnet")
        return judge.features
    if features is options.Features.efficientnet:
        from zipar.evaluation.efficientnet import EfficientNet

        return EfficientNet(device).features
    from zipar.evaluation.inception import Inception

    return Inception(device).features
