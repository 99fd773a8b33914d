"""What strategies cost and what came of them, measured over the same prompts and seeds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipar.decoding import names
from zipar.decoding.raster import Raster
from zipar.decoding.strategy import Strategy
from zipar.evaluation.accuracy import paired_difference, verdicts, wilson
from zipar.evaluation.fid import Moments, frechet_distance, interval, resample
from zipar.evaluation.judge import Judge
from zipar.evaluation.samples import Study


class Estimate(NamedTuple):
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Reference(NamedTuple):
    """What FID is measured against."""

    features: Callable[[np.ndarray], Tensor]
    """uint8 images (n, height, width, 3) -> float32 (n, d)."""
    moments: Moments
    replicates: int
    """Bootstrap resamples that its interval is made of."""


@dataclass(frozen=True)
class Graders:
    """What tells how good images are, as far as it is at hand."""

    judge: Judge | None = None
    """Says whether images show what their prompts ask for; the model then has a vocabulary."""
    reference: Reference | None = None
    clip: Callable[[np.ndarray, Sequence[str]], Tensor] | None = None
    """uint8 images (n, height, width, 3) and their prompts -> scores (n,)."""


class Report(NamedTuple):
    """One row and some pictures for each strategy; raster decoding, which the others are compared with, comes first.

    A row has ``strategy``, ``images``, ``forward_passes`` (the mean over images of what each took), ``fewer``,
    ``slots_evaluated``, ``rejections``, ``seconds`` and ``images_per_second``, ``speedup``, ``nats`` (negative
    log-likelihood of a token under full raster context), ``gap`` (that less raster's, paired by prompt), ``outside``
    (share of tokens that raster decoding could not have drawn) and, as far as there are graders, ``fid``,
    ``fid_ratio``, ``accuracy`` and ``accuracy_difference`` by attribute, ``clip`` and ``clip_difference``.
    Differences and ratios, which raster lacks, are to raster; figures with an interval are an ``Estimate``.
    """

    rows: list[dict[str, Any]]
    pictures: list[np.ndarray]
    """uint8 (n, height, width, 3), of the first prompts."""


def evaluate(
    study: Study,
    strategies: Iterable[Strategy],
    graders: Graders,
    pictures: int = 12,
    callback: Callable[[Strategy, int], None] = lambda strategy, images: None,
) -> Report:
    """Make the images of all strategies, or take them from where an earlier run left them, and measure them.

    Args:
        study: of two prompts or more.
        pictures: how many of each strategy's to keep.
        callback: told how many images a batch has brought.
    """
    vocabulary = study.model.vocabulary
    asked = [vocabulary.parse(prompt) for prompt in study.prompts] if vocabulary and graders.judge else []
    report = Report([], [])
    base: dict[str, Any] = {}
    for strategy in dict.fromkeys([Raster(), *strategies]):
        found = _collect(study, strategy, graders, pictures, lambda images, s=strategy: callback(s, images))  # type: ignore[misc]
        if asked:
            found["verdicts"] = verdicts(asked, found.pop("seen"))
        if graders.reference:
            features, (_, moments, replicates) = found.pop("features"), graders.reference
            found["fid"] = frechet_distance(moments, Moments.of(features))
            found["resampled"] = resample(features, moments, replicates)
        base = base or found
        report.pictures.append(found["images"])
        report.rows.append({"strategy": names.name(strategy), **_row(found, base)})
    return report


def _collect(
    study: Study, strategy: Strategy, graders: Graders, pictures: int, callback: Callable[[int], None]
) -> dict[str, Any]:
    """Figures (images,) of every image, the first images, and what the graders see in all."""
    arrays: dict[str, list[np.ndarray]] = {}
    seen: dict[str, list[str]] = {}
    features: list[Tensor] = []
    done = 0
    for batch in study.batches(strategy):
        for name in ("nats", "outside", "forward_passes", "slots_evaluated", "rejections", "seconds"):
            arrays.setdefault(name, []).append(getattr(batch, name))
        arrays.setdefault("images", []).append(batch.images[: max(pictures - done, 0)])
        if graders.judge:
            for name, values in graders.judge.classify(batch.images).items():
                seen.setdefault(name, []).extend(values)
        if graders.reference:
            features.append(graders.reference.features(batch.images).cpu())
        if graders.clip:
            scores = graders.clip(batch.images, study.prompts[done : done + len(batch)])
            arrays.setdefault("clip", []).append(scores.double().cpu().numpy())
        done += len(batch)
        callback(len(batch))
    found: dict[str, Any] = {name: np.concatenate(parts) for name, parts in arrays.items()}
    return found | {"seen": seen} | ({"features": torch.cat(features)} if features else {})


def _row(found: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The figures of one strategy; ``base`` is raster's."""
    alone = found is base
    passes, seconds = found["forward_passes"].mean(), found["seconds"].mean()
    row: dict[str, Any] = {
        "images": len(found["nats"]),
        "forward_passes": float(passes),
        "fewer": float(1 - passes / base["forward_passes"].mean()),
        "slots_evaluated": float(found["slots_evaluated"].mean()),
        "rejections": float(found["rejections"].mean()),
        "seconds": float(seconds),
        "images_per_second": float(1 / seconds),
        "speedup": float(base["seconds"].mean() / seconds),
        "nats": mean(found["nats"]),
        "outside": float(found["outside"].mean()),
    }
    if not alone:
        row["gap"] = mean(found["nats"] - base["nats"])
    if "fid" in found:
        row["fid"] = Estimate(found["fid"], *interval(found["fid"], found["resampled"]))
        if not alone:
            ratio = found["fid"] / base["fid"]
            row["fid_ratio"] = Estimate(ratio, *interval(ratio, found["resampled"] / base["resampled"]))
    if "verdicts" in found:
        named = {name: verdict for name, verdict in found["verdicts"].items() if len(verdict)}
        row["accuracy"] = {name: share(verdict) for name, verdict in named.items()}
        if not alone:
            row["accuracy_difference"] = {
                name: Estimate(*paired_difference(verdict, base["verdicts"][name])) for name, verdict in named.items()
            }
    if "clip" in found:
        row["clip"] = mean(found["clip"])
        if not alone:
            row["clip_difference"] = mean(found["clip"] - base["clip"])
    return row


def mean(values: np.ndarray) -> Estimate:
    """The mean of independent values (n,), n > 1, with its normal interval."""
    center = float(values.mean())
    reach = NormalDist().inv_cdf(0.975) * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(center, center - reach, center + reach)


def share(verdict: np.ndarray) -> Estimate:
    """The share of true in bool (n,), n > 0, with its Wilson interval."""
    return Estimate(float(verdict.mean()), *wilson(int(verdict.sum()), len(verdict)))
