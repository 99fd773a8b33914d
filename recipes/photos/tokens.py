"""Finds the vocabulary: k-means of patches of 2 x 2 pixels; then the tokens of all pictures."""

import numpy as np
import torch
from torch import Tensor

from photos import recipe
from photos.pictures import Pictures
from photos.recipe import GRID, PATCH

ROUNDS = 12
SAMPLE = 400_000  # patches that the centres are found on


def patches(images: np.ndarray) -> Tensor:
    """uint8 images (n, 32, 32, 3) -> patches in raster order, float32 (n, 256, 12) in [-1, 1]."""
    cut = torch.from_numpy(images.copy()).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    return cut.reshape(len(images), GRID * GRID, -1).float() / 127.5 - 1


def nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """Index of the centre nearest to each row: (..., 12) -> int64 (...)."""
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


@torch.inference_mode()
def main() -> None:
    args, made, build = recipe.parsed(recipe.parser(__doc__))
    generator = torch.Generator().manual_seed(args.seed)
    train, test = Pictures.load(build, "train"), Pictures.load(build, "test")
    rows = patches(train.images[: SAMPLE // 40]).flatten(0, 1)
    rows = rows[torch.randperm(len(rows), generator=generator)[:SAMPLE]]
    centres = find_centres(rows, made.vocabulary, generator)
    views = {"train": train.images, "test": test.images}
    if made.flips:
        views["flipped"] = train.images[:, :, ::-1]
    tokens = {}
    for name, images in views.items():
        tokens[name] = torch.cat(
            [nearest(patches(images[i : i + 1000]), centres).short() for i in range(0, len(images), 1000)]
        )
        print(f"tokens of {len(images)} pictures, {name}", flush=True)
    torch.save({"centres": centres, **tokens}, build / "tokens.pt")


if __name__ == "__main__":
    main()
