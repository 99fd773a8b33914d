"""Precision and recall against loops over all pairs, and where they are known."""

import numpy as np
import pytest
import torch

from zipar import ZipARError
from zipar.evaluation import manifold
from zipar.evaluation.manifold import precision_recall


def by_loops(real: np.ndarray, made: np.ndarray, k: int) -> tuple[float, float]:
    def covered(points: np.ndarray, by: np.ndarray) -> float:
        radii = []
        for i, center in enumerate(by):
            others = sorted(np.linalg.norm(center - other) for j, other in enumerate(by) if j != i)
            radii.append(others[k - 1])
        inside = [
            any(np.linalg.norm(point - center) <= radius for center, radius in zip(by, radii, strict=True))
            for point in points
        ]
        return float(np.mean(inside))

    return covered(made, real), covered(real, made)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_agrees_with_loops(k, monkeypatch):
    monkeypatch.setattr(manifold, "CHUNK", 7)  # does not divide what there is
    rng = np.random.default_rng(k)
    real, made = 5 + rng.standard_normal((40, 4)), 5.7 + 0.8 * rng.standard_normal((30, 4))
    found = precision_recall(torch.from_numpy(real), torch.from_numpy(made), k)
    assert found == by_loops(real, made, k)
    assert 0 < min(found) <= max(found) < 1


def test_points_on_a_line():
    """With k = 1 balls reach from 0, 1, 5 to 1, 0, 1: to -1 ... 9. Those of 9, 9.5 and 20 reach to 8.5 ... 30.5."""
    real, made = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[9.0], [9.5], [20.0]])
    assert precision_recall(real, made, 1) == (pytest.approx(1 / 3), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_set_covers_itself(dtype):
    features = (1000 + torch.randn(1500, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert precision_recall(features, features) == (1, 1)


def test_one_image_over_and_over_covers_no_more_than_itself():
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    collapsed = features[:1].repeat(50, 1)
    assert precision_recall(features, collapsed) == (1, 1 / 50)
    assert precision_recall(collapsed, collapsed.clone()) == (1, 1)
    assert precision_recall(collapsed, features) == (1 / 50, 1)


def test_sets_apart_do_not_cover_each_other():
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert precision_recall(features, features + 1000) == (0, 0)


@pytest.mark.parametrize(
    ("real", "made", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), "real .* of more than 3 images"),
        (torch.zeros(9, 2), torch.zeros(9), "made .* of more than 3 images"),
        (torch.zeros(9, 2), torch.zeros(9, 3), "2 and 3 features .* one network"),
        (torch.zeros(9, 2), torch.full((9, 2), torch.nan), "made hold numbers that are none"),
    ],
)
def test_what_cannot_be_compared(real, made, message):
    with pytest.raises(ZipARError, match=message):
        precision_recall(real, made)
