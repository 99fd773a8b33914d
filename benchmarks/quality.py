"""What strategies do to the images of models, and what they cost: writes docs/quality.md.

    python benchmarks/quality.py emoji=600 fashion=600 CIFAR10_DIRECTORY=5000 --real CIFAR10_DIRECTORY=PICTURES

Finished batches, features and timings stay in ``--output``: a run that was killed goes on where it was, and the
document is written anew from them in a minute. Give the timings idle cores.
"""

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ablations import kept
from decoding import machine
from studies import SEED, alone, prompts
from zipar.decoding import names
from zipar.decoding.strategy import Strategy
from zipar.evaluation import plots, tables
from zipar.evaluation.efficientnet import EfficientNet
from zipar.evaluation.fid import Moments, kept_features
from zipar.evaluation.images import folder_features
from zipar.evaluation.judge import Judge
from zipar.evaluation.report import FLOOR, Estimate, Graders, Reference, Report, evaluate
from zipar.evaluation.samples import Study, stamp
from zipar.models import auto
from zipar.pipeline import Pipeline
from zipar.writing import write

DEFAULT = names.name(names.DEFAULT)
EXACT = "jacobi:32"
STRATEGIES = ["zipar:4", "zipar:2", DEFAULT]
COST = ["strategy", "forward_passes", "fewer", "seconds", "speedup", "divergence", "excess", "entropy", "gap"]
QUALITY = ["fid_ratio", "precision", "recall"]
Row = Mapping[str, Any]


class Studied(NamedTuple):
    """What was found about a model."""

    study: Study
    report: Report
    exact: Row
    """Of lossless decoding: its images are raster's, so fewer are enough to tell its passes."""
    seconds: dict[str, Any]
    """Of images made one at a time."""
    independent: Report | None
    """By a network that has nothing to do with the model, where real pictures are at hand."""


def studied(place: str, images: int, args: argparse.Namespace) -> Studied:
    """All about one model."""
    directory = auto.find(place)
    name = directory.name
    model = auto.load(directory, device="cpu")
    study = Study(
        model=model,
        stamp=stamp(directory),
        prompts=prompts(images) if name == "emoji" else model.examples(images),
        sampling=model.defaults,
        grid=model.grid(*model.image_size),
        seed=SEED,
        batch_size=args.batch_size,
        folder=args.output / name,
    )
    strategies = [alone(names.parse(each)) for each in dict.fromkeys(["raster", *args.strategies])]
    shipped = directory / "judge"
    judge, path = Judge.load(shipped), shipped / "reference.safetensors"
    reference = Reference(judge.features, Moments.load(path), 1000, real=kept_features(path))
    exact = alone(names.parse(EXACT))
    times = kept(args.output / f"{name}.json", lambda: timed(study, [*strategies, exact], args.timed))

    def told(each: Strategy, made: int) -> None:
        print(name, names.name(each), made, flush=True)

    report = evaluate(study, strategies, Graders(judge, reference), 12, told, floor=True)
    few = replace(study, prompts=study.prompts[: args.exact_images])
    row = evaluate(few, [exact], Graders(), 0, told).rows[-1]
    return Studied(study, report, row, times, independent(study, strategies, args.real.get(place)))


def independent(study: Study, strategies: Sequence[Strategy], pictures: str | None) -> Report | None:
    """The report on the features of EfficientNet-Lite0."""
    if pictures is None:
        return None
    network = remembered(EfficientNet().features, study.folder / "efficientnet")
    real = folder_features(Path(pictures), network)
    return evaluate(study, strategies, Graders(reference=Reference(network, Moments.of(real), 50, real)), floor=True)


def remembered(features: Callable[[np.ndarray], Tensor], folder: Path) -> Callable[[np.ndarray], Tensor]:
    """``features``, computed once for all runs: a batch of pictures has a file."""

    def of(images: np.ndarray) -> Tensor:
        path = folder / f"{hashlib.sha256(images.tobytes()).hexdigest()[:20]}.pt"
        if not path.exists():
            write({path: partial(torch.save, features(images))})
        found: Tensor = torch.load(path, weights_only=True)
        return found

    return of


def timed(study: Study, strategies: Sequence[Strategy], images: int) -> dict[str, Any]:
    """Seconds of the first images, one at a time: the median over images, all strategies interleaved."""
    pipe = Pipeline(study.model)
    taken: dict[str, list[float]] = {names.name(strategy): [] for strategy in strategies}
    for turn in range(-1, images):  # the first round warms up
        for strategy in strategies:
            started = time.perf_counter()
            pipe(study.prompts[max(turn, 0)], strategy=strategy, seed=study.seed + turn + 1)
            if turn >= 0:
                taken[names.name(strategy)].append(time.perf_counter() - started)
    return {"machine": machine(), "seconds": {name: statistics.median(values) for name, values in taken.items()}}


def verdict(name: str, found: Studied) -> str:
    """Whether the default keeps its promise: a fifth of the passes, and images as good as raster's."""
    rows, exact = found.report.rows, found.exact
    row = next(row for row in rows if row["strategy"] == DEFAULT)
    accuracies = row["accuracy_difference"]

    def fid(row: Row) -> str:
        apart = row.get("fid_ratio")
        return _held(apart, 1, 0.03, "{:.2f}") if apart else "open, raster's own may be no distance at all"

    parts = [
        f"80 % fewer passes than raster order: {'yes' if row['fewer'] >= 0.8 else 'no'}, {row['fewer']:.1%}",
        "surprise excess, against raster's, within 0.02 nats: " + _held(row["excess_difference"], 0, 0.02, "{:+.3f}"),
        "divergence within 0.02 nats: " + _held(row["divergence"], 0, 0.02, "{:.4f}"),
        f"FID within 3 % of raster's: {fid(row)}",
        "accuracy within 1 point: " + _held(accuracies[list(accuracies)[-1]], 0, 0.01, "{:+.1%}"),
        "raster's very image in 25 % of its passes: "
        f"{'yes' if exact['fewer'] >= 0.75 else 'no'}, in {1 - exact['fewer']:.0%}",
    ]
    if found.independent:
        other = next(row for row in found.independent.rows if row["strategy"] == DEFAULT)
        parts.insert(4, f"by EfficientNet's features: {fid(other)}")
    return f"- `{name}` ({rows[0]['entropy'].value:.2f} nats a token): {'; '.join(parts)}."


def _held(found: Estimate, aim: float, tolerance: float, form: str) -> str:
    """Whether a figure is within ``tolerance`` of ``aim``, as far as its interval tells."""
    off = [abs(bound - aim) for bound in found[1:]]
    outside = min(off) > tolerance and (found.low - aim) * (found.high - aim) > 0
    word = "yes" if max(off) <= tolerance else "no" if outside else "open"
    return f"{word}, {_shown(found, form)}"


def _shown(found: Estimate, form: str) -> str:
    return f"{form.format(found.value)} [{form.format(found.low)}, {form.format(found.high)}]"


def section(name: str, found: Studied) -> str:
    """The tables of one model."""
    study, report, exact, times, independent = found
    taken = {**times["seconds"], FLOOR: times["seconds"]["raster"]}
    rows = [
        {**row, "seconds": (seconds := taken[row["strategy"]]), "speedup": taken["raster"] / seconds}
        for row in [*report.rows, exact]
    ]
    asked, accuracies = study.sampling, list(rows[0]["accuracy"])
    accuracies = accuracies[:-1] if len(accuracies) == 2 else accuracies  # of one attribute, all is the same
    held = [column for column in QUALITY if column in report.rows[-1]]
    right = [*(f"accuracy.{each}" for each in accuracies), f"accuracy_difference.{accuracies[-1]}"]
    parts = [
        f"## {name}",
        f"{len(study.prompts):,} images a strategy, {exact['images']} of `{EXACT}`; guidance "
        f"{asked.guidance_scale:g}, temperature {asked.temperature:g}; seconds of single images on {times['machine']}.",
        tables.markdown(rows, COST),
        tables.markdown(rows[:-1], ["strategy", *held, *right]),
    ]
    if independent:
        parts += [
            "By the features of EfficientNet-Lite0, a network that nothing here was trained with:",
            tables.markdown(independent.rows, ["strategy", "fid", *QUALITY]),
        ]
    return "\n\n".join([*parts, f"![The first twelve prompts, a row a strategy](quality-{name}.png)\n"])


def pair(text: str) -> tuple[str, str]:
    """The two sides of ``MODEL=IMAGES``."""
    place, _, value = text.rpartition("=")
    return place, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=pair, default=[("emoji", "600"), ("fashion", "600")])
    parser.add_argument("--real", metavar="MODEL=FOLDER", nargs="+", type=pair, default=[], help="held-out pictures")
    parser.add_argument("--exact-images", type=int, default=200, help="of lossless decoding")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--timed", type=int, default=8, help="images that are timed, one at a time")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quality"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    args.real = dict(args.real)
    found = {auto.find(place).name: studied(place, int(images), args) for place, images in args.models}
    args.docs.mkdir(exist_ok=True)
    for name, each in found.items():
        titles = [row["strategy"] for row in each.report.rows]
        plots.save_sheet(titles, each.report.pictures, each.study.prompts, args.docs / f"quality-{name}.png")
    text = (Path(__file__).parent / "quality.md").read_text(encoding="utf-8")
    filled = text.format(
        default=DEFAULT,
        nats=names.DEFAULT.nats,
        floor=FLOOR,
        verdict="\n".join(verdict(name, each) for name, each in found.items()),
        sections="\n".join(section(name, each) for name, each in found.items()),
    )
    (args.docs / "quality.md").write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
