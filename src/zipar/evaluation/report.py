"""What strategies cost and what came of them, measured over the same prompts and seeds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipar.arguments import instance, refusal, whole
from zipar.decoding import names
from zipar.decoding.raster import Raster
from zipar.decoding.strategy import Strategy
from zipar.evaluation.accuracy import paired_difference, verdicts, wilson
from zipar.evaluation.fid import Moments, frechet_distance, interval, ratio, resample
from zipar.evaluation.judge import Judge
from zipar.evaluation.manifold import NEIGHBOURS, precision_recall
from zipar.evaluation.samples import Study

_FIGURES = (
    *("nats", "outside", "excess", "entropy", "divergence"),
    *("forward_passes", "slots_evaluated", "rejections", "seconds"),
)
"""What is taken of a batch: a number an image."""
FLOOR = "raster, other seeds"


class Estimate(NamedTuple):
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


class Reference(NamedTuple):
    """What FID, precision and recall are measured against."""

    features: Callable[[np.ndarray], Tensor]
    """uint8 images (n, height, width, 3), or clips (n, frames, height, width, 3) -> float32 (n, d)."""
    moments: Moments
    replicates: int
    """Bootstrap resamples that its interval is made of."""
    real: Tensor | None = None
    """Features (n, d) of real pictures, where precision and recall are wanted too."""


@dataclass(frozen=True)
class Graders:
    """What tells how good images are, as far as it is at hand."""

    judge: Judge | None = None
    """Says whether images show what their prompts ask for; the model then has a vocabulary."""
    reference: Reference | None = None
    clip: Callable[[np.ndarray, Sequence[str]], Tensor] | None = None
    """uint8 images (n, height, width, 3), or clips (n, frames, height, width, 3), and their prompts -> scores (n,)."""


class Report(NamedTuple):
    """One row and some pictures for each strategy; raster decoding, which the others are compared with, comes first.

    A row has ``strategy``, ``images``, ``forward_passes`` (the mean over images of what each took), ``fewer``,
    ``slots_evaluated``, ``rejections``, ``seconds`` and ``images_per_second``, ``speedup``, ``nats`` (negative
    log-likelihood of a token under full raster context), ``gap`` (that less raster's, paired by prompt), ``excess``
    (surprise excess: 0 in expectation for raster and all that is lossless), ``excess_difference`` (that less
    raster's, paired by prompt), ``divergence`` (of the images' distribution from raster's, each token's share),
    ``entropy`` (of what raster decoding draws a token from), ``outside`` (share of tokens that raster decoding could
    not have drawn) and, as far as there are graders, ``fid``, ``fid_ratio``, ``precision``
    and ``recall`` (of more than 3 images), ``accuracy`` and ``accuracy_difference`` by attribute, ``clip`` and
    ``clip_difference``.
    Differences and ratios, which raster lacks, are to raster; figures with an interval are an ``Estimate``.
    """

    rows: list[dict[str, Any]]
    pictures: list[np.ndarray]
    """uint8 (n, height, width, 3), or clips (n, frames, height, width, 3), of the first prompts."""


def evaluate(
    study: Study,
    strategies: Iterable[Strategy | str],
    graders: Graders,
    pictures: int = 12,
    callback: Callable[[Strategy, int], None] = lambda strategy, images: None,
    floor: bool = False,
) -> Report:
    """Make the images of all strategies, or take them from where an earlier run left them, and measure them.

    Args: those of ``Comparison``, strategies in any order, and
        floor: measure raster decoding from other seeds too (``Comparison.measure_floor``).
    """
    comparison = Comparison(study, graders, pictures, callback)
    if floor:
        comparison.measure_floor()
    for strategy in strategies:
        comparison.measure(strategy)
    return comparison.report


class Comparison:
    """Measures strategies as they come, each once; raster decoding has been measured before all others."""

    def __init__(
        self, study: Study, graders: Graders, pictures: int, callback: Callable[[Strategy, int], None]
    ) -> None:
        """
        Args:
            study: of two prompts or more.
            pictures: how many of each strategy's to keep.
            callback: told how many images a batch has brought.

        Raises:
            ZipARError: an argument is of a wrong type.
        """
        instance("study", study, Study, "a Study")
        instance("graders", graders, Graders, "Graders")
        self.study, self.graders, self.callback = study, graders, callback
        self.pictures = whole("pictures", pictures)
        vocabulary = study.model.vocabulary
        self.asked = [vocabulary.parse(prompt) for prompt in study.prompts] if vocabulary and graders.judge else []
        self.report = Report([], [])
        self._rows: dict[Strategy, dict[str, Any]] = {}
        self._base: dict[str, Any] = {}
        self.measure(Raster())

    def measure(self, strategy: Strategy | str) -> dict[str, Any]:
        """The row of a strategy, or of the one of that name.

        Raises:
            ZipARError: it is none.
        """
        strategy = names.strategy_of(strategy)
        if strategy not in self._rows:
            found = self._collect(strategy, self.study)
            self._base = self._base or found
            self._rows[strategy] = self._add(names.name(strategy), found)
        return self._rows[strategy]

    def measure_floor(self) -> dict[str, Any]:
        """The row of raster decoding from other seeds, ``FLOOR``: how far from raster's chance alone leads."""
        study = replace(self.study, seed=self.study.seed + len(self.study.prompts))
        return self._add(FLOOR, self._collect(Raster(), study))

    def _add(self, title: str, found: dict[str, Any]) -> dict[str, Any]:
        row = {"strategy": title, **_row(found, self._base)}
        self.report.rows.append(row)
        self.report.pictures.append(found["images"])
        return row

    def _collect(self, strategy: Strategy, study: Study) -> dict[str, Any]:
        """Figures (images,) of every image, the first images, and what the graders say of all."""
        graders = self.graders
        arrays: dict[str, list[np.ndarray]] = {}
        seen: dict[str, list[str]] = {}
        features: list[Tensor] = []
        done = 0
        for batch in study.batches(strategy):
            for name in _FIGURES:
                arrays.setdefault(name, []).append(getattr(batch, name))
            arrays.setdefault("images", []).append(batch.images[: max(self.pictures - done, 0)])
            if graders.judge:
                for name, values in graders.judge.classify(batch.images).items():
                    seen.setdefault(name, []).extend(values)
            if graders.reference:
                features.append(graders.reference.features(batch.images).cpu())
            if graders.clip:
                scores = graders.clip(batch.images, study.prompts[done : done + len(batch)])
                arrays.setdefault("clip", []).append(scores.double().cpu().numpy())
            done += len(batch)
            self.callback(strategy, len(batch))
        found: dict[str, Any] = {name: np.concatenate(parts) for name, parts in arrays.items()}
        if self.asked:
            found["verdicts"] = verdicts(self.asked, seen)
        if graders.reference:
            _, moments, replicates, real = graders.reference
            made = torch.cat(features)
            found["fid"] = frechet_distance(moments, Moments.of(made))
            found["resampled"] = resample(made, moments, replicates)
            if real is not None and min(len(real), len(made)) > NEIGHBOURS:
                found["precision"], found["recall"] = precision_recall(real, made)
        return found


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
        "divergence": mean(found["divergence"]),
        "excess": mean(found["excess"]),
        "entropy": mean(found["entropy"]),
        "outside": float(found["outside"].mean()),
    }
    if not alone:
        row["gap"] = mean(found["nats"] - base["nats"])
        row["excess_difference"] = mean(found["excess"] - base["excess"])
    if "fid" in found:
        row["fid"] = Estimate(found["fid"], *interval(found["fid"], found["resampled"]))
        if not alone:
            apart = ratio(found["fid"], base["fid"], found["resampled"], base["resampled"])
            row |= {} if apart is None else {"fid_ratio": Estimate(*apart)}
    row.update({name: found[name] for name in ("precision", "recall") if name in found})
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
    """The mean of independent values (n,), n > 1, with its normal interval.

    Raises:
        ZipARError: there are fewer.
    """
    if not isinstance(values, np.ndarray) or values.ndim != 1 or len(values) < 2:
        raise refusal("values", values, "an array of 2 numbers or more")
    center = float(values.mean())
    reach = NormalDist().inv_cdf(0.975) * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(center, center - reach, center + reach)


def share(verdict: np.ndarray) -> Estimate:
    """The share of true in bool (n,), n > 0, with its Wilson interval."""
    return Estimate(float(verdict.mean()), *wilson(int(verdict.sum()), len(verdict)))
