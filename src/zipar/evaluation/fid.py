"""Fréchet distance between two sets of features.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017.
Its value depends on the number of images: compare distances of equally many images only.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zipar.arguments import instance, level, real, refusal, whole
from zipar.checkpoints.files import build, check_readable
from zipar.errors import ZipARError
from zipar.writing import write

KEPT = 2000
"""Features that a file of moments holds at most: they show how pictures spread, and make it no larger than need be."""


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of a set of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of features (n, d), n >= 2.

        Raises:
            ZipARError: features of another shape.
        """
        features = _features(features)
        return cls(features.mean(0), features.T.cov())

    @classmethod
    def load(cls, path: Path) -> "Moments":
        """What ``save`` wrote.

        Raises:
            ZipARError: the file is missing or damaged.
        """
        check_readable(path, f"{path} is missing: the checkpoint is incomplete")
        with build(path):
            tensors = load_file(path)
            return cls(tensors["mean"].double(), tensors["covariance"].double())

    def save(self, path: Path, features: Tensor | None = None) -> None:
        """Write a safetensors file (float32).

        Args:
            path: of the file.
            features: (n, d) to keep beside the moments, where precision and recall are wanted too: the first 2,000,
                in float16.
        """
        tensors = {"mean": self.mean.float(), "covariance": self.covariance.float().contiguous()}
        if features is not None:
            tensors["features"] = features[:KEPT].half().contiguous()
        write({path: lambda scratch: save_file(tensors, scratch)})

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kept_features(path: Path) -> Tensor | None:
    """What ``Moments.save`` kept beside the moments, float32 (n, d); None where it kept nothing.

    Raises:
        ZipARError: the file is missing or damaged.
    """
    check_readable(path, f"{path} is missing: the checkpoint is incomplete")
    with build(path):
        tensors = load_file(path)
        features, width = tensors.get("features"), len(tensors["mean"])
    if features is None:
        return None
    if features.ndim != 2 or features.shape[1] != width:
        raise ZipARError(f"{path}: features is of shape {tuple(features.shape)}, but should be (n, {width})")
    return features.float()


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is taken from the eigenvalues of C_a^(1/2) C_b C_a^(1/2): similar to C_a C_b, but symmetric.

    Raises:
        ZipARError: the moments are of features of different widths, or hold numbers that are none.
    """
    for name, moments in (("a", a), ("b", b)):
        instance(name, moments, Moments, "Moments")
        if not bool(moments.mean.isfinite().all() and moments.covariance.isfinite().all()):
            raise ZipARError(f"the moments {name} hold numbers that are none: look at the features they are of")
    if a.mean.shape != b.mean.shape:
        raise ZipARError(f"moments of {len(a.mean)} and of {len(b.mean)} features have no distance: take one network")
    roots = torch.linalg.eigvalsh(a.root @ b.covariance @ a.root).clamp(min=0).sqrt()
    trace = a.covariance.trace() + b.covariance.trace() - 2 * roots.sum()
    return float((a.mean - b.mean).square().sum() + trace)


def resample(features: Tensor, reference: Moments, replicates: int = 1000, seed: int = 0) -> Tensor:
    """Distances (replicates,) to ``reference`` of bootstrap resamples of ``features`` (n, d).

    The same seed draws the same images, so the resamples of two equally large sets are paired.

    Raises:
        ZipARError: features of another shape, or a number that is not possible.
    """
    features, replicates = _features(features), whole("replicates", replicates, 1)
    generator = torch.Generator().manual_seed(whole("seed", seed))
    n = len(features)
    draws = (torch.randint(n, (n,), generator=generator) for _ in range(replicates))
    return torch.tensor([frechet_distance(reference, Moments.of(features[i])) for i in draws], dtype=torch.float64)


def interval(estimate: float, resampled: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval about ``estimate``.

    The distance of a resample lies above that of its sample, as that lies above the population's, so
    percentiles are moved by the mean excess: the interval is that of the distance at this number of images.

    Raises:
        ZipARError: an argument is of a wrong type, or the confidence is none.
    """
    confidence = level(confidence)
    estimate = real("estimate", estimate, lambda x: True, "a number")
    low, high = (_quantiles(resampled, confidence) - resampled.mean() + estimate).tolist()
    return low, high


def ratio(
    a: float, b: float, resampled_a: Tensor, resampled_b: Tensor, confidence: float = 0.95
) -> tuple[float, float, float] | None:
    """How many times as far ``a``'s population is as ``b``'s, with the interval; None if ``b``'s may be at no distance.

    A sample's distance lies above its population's, by about what resamples' lie above the sample's: without that
    correction, which both need, the ratio of two samples is nearer to 1 than that of their populations. The interval is
    Fieller's: the ratios that the paired ``resampled_a``, ``resampled_b`` (n,) do not refute.

    Raises:
        ZipARError: an argument is of a wrong type, or the confidence is none.
    """
    confidence = level(confidence)
    far, near = (2 * sample - resampled.mean() for sample, resampled in ((a, resampled_a), (b, resampled_b)))
    off_far, off_near = (resampled - resampled.mean() for resampled in (resampled_a, resampled_b))
    if near <= off_near.abs().quantile(confidence):
        return None
    value = low = high = far / near
    for _ in range(50):  # each step is shorter than the last, for ``off_near`` is less than ``near``
        low = (far - _quantiles(off_far - low * off_near, confidence)[1]) / near
        high = (far - _quantiles(off_far - high * off_near, confidence)[0]) / near
    return float(value), float(low), float(high)


def _quantiles(values: Tensor, confidence: float) -> Tensor:
    """The lower and the upper one, (2,)."""
    if not isinstance(values, Tensor) or values.ndim != 1 or not values.is_floating_point() or not len(values):
        raise refusal("resampled", values, "a tensor (n,) of numbers")
    return values.quantile(torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=values.dtype))


def _features(given: Any) -> Tensor:
    if not isinstance(given, Tensor) or given.ndim != 2 or len(given) < 2 or not given.shape[1]:
        raise refusal("features", given, "a tensor (n, d) of 2 images or more")
    return given.double()
