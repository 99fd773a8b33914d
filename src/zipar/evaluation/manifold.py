"""Precision and recall of features: how many made images are realistic, and how much of what is real gets made.

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019. A set's
manifold is the union of balls about its points, each as wide as the way to the point's k-th nearest neighbour.
Both figures depend on the numbers of images: the paper takes equally many real and made ones.
"""

from typing import Any

import torch
from torch import Tensor

from zipar.arguments import refusal, whole
from zipar.errors import ZipARError

NEIGHBOURS = 3
"""The paper's k."""
CHUNK = 1000
"""Rows of a matrix of distances that are held at a time."""


def precision_recall(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of ``made`` within the manifold of ``real``, and that of ``real`` within the manifold of ``made``.

    Args:
        real, made: features (n, d) of one network, n > ``k``; they may differ in n.
        k: the neighbour, the point itself not counted, up to which a ball reaches.

    Raises:
        ZipARError: features of another shape or of different widths, or that hold numbers that are none.
    """
    k = whole("k", k, 1)
    real, made = _features("real", real, k), _features("made", made, k)
    if real.shape[1] != made.shape[1]:
        raise ZipARError(f"{real.shape[1]} and {made.shape[1]} features cannot be compared: take one network")
    return _covered(made, real, k), _covered(real, made, k)


def _covered(points: Tensor, by: Tensor, k: int) -> float:
    radii = torch.cat([_squared_distances(part, by).kthvalue(k + 1).values for part in by.split(CHUNK)])
    within = [(_squared_distances(part, by) <= radii).any(1) for part in points.split(CHUNK)]
    return float(torch.cat(within).double().mean())


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) of float64 (n, d) and (m, d)."""
    lengths = a.square().sum(1, keepdim=True) + b.square().sum(1)
    distances = torch.addmm(lengths, a, b.T, alpha=-2)
    # products round, yet what is equal is at no distance: balls of images that came several times have no width
    return distances.where(distances > 1e-12 * lengths, 0)


def _features(name: str, given: Any, k: int) -> Tensor:
    if not isinstance(given, Tensor) or given.ndim != 2 or len(given) <= k or not given.shape[1]:
        raise refusal(name, given, f"features, a tensor (n, d) of more than {k} images")
    if not bool(given.isfinite().all()):
        raise ZipARError(f"the features {name} hold numbers that are none: look at the images they are of")
    return given.double()
