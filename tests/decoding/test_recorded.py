"""Tokens, passes and slots evaluated as they were recorded before the decoding core could admit and retire images.

``tests/data/decoding.json`` was written by the core that decoded closed batches, in float32 on a CPU; what drafted rows
give, anew since other rows see drafts only once they are trusted:

    ZIPAR_RECORD=1 python -m pytest tests/decoding/test_recorded.py

writes it anew, which is only right where a change means to give other images.
"""

import copy
import json
import os
from pathlib import Path
from zlib import crc32

import pytest
import torch

from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, TokenGrid, ZipAR
from zipar.decoding.engine import decode
from zipar.models import auto

FILE = Path(__file__).parents[1] / "data" / "decoding.json"
STRATEGIES = [
    *(Raster(), ZipAR(1), ZipAR(2), ZipAR(3, first_row="wave"), ZipAR(1, 2), ZipAR(2, 3), ZipAR(2, 9, "wave")),
    *(AdaptiveZipAR(1), AdaptiveZipAR(2, "wave"), AdaptiveZipAR(3)),
    *(CoupledJacobi(1, None, 999), CoupledJacobi(5, None, 999), CoupledJacobi(40, None, 999)),
    *(CoupledJacobi(4, 2, 999), CoupledJacobi(9, 1, 999)),
]
GRIDS = [
    *(TokenGrid(4, 4), TokenGrid(3, 7), TokenGrid(6, 3), TokenGrid(1, 9), TokenGrid(7, 1), TokenGrid(1, 1)),
    *(TokenGrid(4, 5, row_end=7), TokenGrid(5, 1, row_end=7), TokenGrid(3, 3, frames=3)),
    *(TokenGrid(3, 4, frames=2, frame_end=(8,)), TokenGrid(3, 3, frames=2, row_end=7, frame_end=(8, 9))),
]
SAMPLING = [Sampling(), Sampling(2.5, 0.7), Sampling(2.5, 0.8, 20, 0.9), Sampling(3.0, 0.0), Sampling(1.0, 1.2, 10)]
PROMPTS = {
    "by_class": ["4", "0", "9"],
    "by_text": ["a red fox in the snow", "fox", "two small birds"],
    "family": ["a red fox in the snow", "fox", "a bird"],
}
SEEDS = [3, -1, 2**70 + 8]
SIZES = {"janus": (12, 12), "emu3": (8, 12), "lumina_mgpt": (64, 96), "anole": (96, 96)}


def cases():
    """Every strategy on every grid and family; guidance, filters and batches take turns."""
    for i, strategy in enumerate(STRATEGIES):
        for j, grid in enumerate(GRIDS):
            kind = ("by_text", "by_class")[(i + j) % 2]
            yield kind, strategy, grid, SAMPLING[(i + 2 * j) % len(SAMPLING)], (3, 1, 2)[(i + j) % 3]
        for j, family in enumerate(SIZES):
            yield family, strategy, None, SAMPLING[(i + j) % len(SAMPLING)], (2, 3, 1)[(i + j) % 3]


def filled(module):
    """Weights that depend on their names and shapes alone, so that no library's way to initialise matters."""
    for name, weight in module.named_parameters():
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        norm = "norm" in name
        weight.data = torch.randn(weight.shape, generator=generator) * (0.1 if norm else 0.3) + norm
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(tiny_models, checkpoints):
    held = {}

    def get(kind):
        if kind in SIZES:
            directory = checkpoints(kind)
            held[kind] = auto.family(directory).load(directory, torch.float32, torch.device("cpu"))
        else:
            held[kind] = copy.deepcopy(getattr(tiny_models, kind))
        return filled(held[kind])

    return lambda kind: held[kind] if kind in held else get(kind)


@pytest.fixture(scope="module")
def recorded():
    if not os.environ.get("ZIPAR_RECORD"):
        yield json.loads(FILE.read_text())
        return
    new = {}
    yield new
    lines = (f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in new.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def label(case):
    kind, strategy, grid, sampling, images = case
    place = "" if grid is None else f" {grid.frames}x{grid.rows}x{grid.columns} {grid.row_end} {len(grid.frame_end)}"
    text = f"{strategy} on {kind}{place}, {sampling}, {images} images"
    return text.replace(", frame_delay=None", "").replace(", min_p=0.0", "")


@pytest.mark.parametrize("case", [*cases()], ids=label)
def test_gives_what_was_recorded(models, recorded, case):
    kind, strategy, grid, sampling, images = case
    model = models(kind)
    if grid is None:
        grid = model.grid(*SIZES[kind])
    with torch.inference_mode():
        prompts = PROMPTS.get(kind, PROMPTS["family"])[:images]
        prefix = model.prefix(prompts, None, sampling.guided, grid)
    decoded = decode(model, prefix, grid, strategy, sampling, SEEDS[:images])
    found = {
        "tokens": decoded.tokens.tolist(),
        "passes": decoded.forward_passes,
        "slots": decoded.slots_evaluated,
        "rejections": decoded.rejections,
    }
    if os.environ.get("ZIPAR_RECORD"):
        recorded[label(case)] = found
    assert found == recorded[label(case)]
