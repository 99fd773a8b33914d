"""Vocabularies of patches: k-means."""

import numpy as np
import torch
from torch import Tensor

ROUNDS = 12


def patches(images: np.ndarray, side: int) -> Tensor:
    """uint8 images (n, height, width, 3) -> patches in raster order, float32 (n, patches, 3 * side * side) in [-1, 1].

    Colours come first, then rows, then columns.
    """
    cut = torch.from_numpy(images.copy()).unfold(1, side, side).unfold(2, side, side)
    return cut.flatten(1, 2).flatten(2).float() / 127.5 - 1


def nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """Index of the centre nearest to each row: (..., dim) -> int64 (...)."""
    half = centres.square().sum(-1) / 2
    return torch.cat([(part @ centres.T - half).argmax(-1) for part in rows.split(256)])


def find_centres(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means; a centre that no row is nearest to moves to a row."""
    centres = rows[torch.randperm(len(rows), generator=generator)[:count]]
    for i in range(ROUNDS):
        chosen = nearest(rows, centres)
        sums = torch.zeros_like(centres).index_add_(0, chosen, rows)
        members = torch.bincount(chosen, minlength=count)
        spare = rows[torch.randint(len(rows), (count,), generator=generator)]
        centres = torch.where(members[:, None] > 0, sums / members[:, None].clamp(min=1), spare)
        error = (rows - centres[nearest(rows, centres)]).square().mean()
        print(f"k-means: round {i + 1}/{ROUNDS}, {10 * torch.log10(4 / error):.2f} dB", flush=True)
    return centres
