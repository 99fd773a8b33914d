"""How often rounding makes coupled Jacobi decoding leave the raster image.

    python benchmarks/near_ties.py --images 256 --output benchmarks/results

In exact arithmetic ``CoupledJacobi`` gives raster's tokens. In floating point a matmul of another shape rounds
differently, and where two tokens are nearly tied (their logits plus noise) the other one may win. What follows a
flip has another context, so only the first difference of an image counts: the rate is first differences for each
token decided after raster's own context. Raster decoding at batch 1 shows the same without Jacobi.
"""

from typing import Any

import torch
from torch import Tensor

import zipar
from decoding import machine
from studies import ALONE, Batch, Watched, batches, parser, write
from zipar.decoding.decodable import Prefix
from zipar.decoding.engine import decode
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.raster import Raster
from zipar.decoding.sampling import gumbel
from zipar.decoding.strategy import Evaluated, Step, Strategy
from zipar.evaluation.accuracy import wilson
from zipar.models.base import VisualModel

STRATEGIES: dict[str, Strategy] = {
    "raster, once more": Raster(),
    "Jacobi, 16 ahead": CoupledJacobi(16, budget=ALONE),
    "Jacobi, 64 ahead": CoupledJacobi(64, budget=ALONE),
    "Jacobi, 8 ahead in the wave of window 2": CoupledJacobi(8, 2, ALONE),
}
ALONE = "raster, images one by one"


def raster(model: VisualModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Raster's tokens and by how much each won, both (images, slots); no strategy sees the logits of slot 0."""
    grid = model.grid(*model.image_size)
    margins = torch.full((len(batch.seeds), grid.slots + 1), float("nan"))

    def see(step: Step, evaluated: Evaluated) -> None:
        noise = gumbel(evaluated.draw.seeds, step.targets, evaluated.logits.shape[-1])
        best = (evaluated.logits + noise).topk(2).values
        margins[:, step.targets[0]] = best[..., 0] - best[..., 1]

    decoded = decode(model, batch.prefix, grid, Watched(Raster(), see), model.defaults, batch.seeds)
    return decoded.tokens, margins[:, :-1]


def one_by_one(model: VisualModel, batch: Batch) -> Tensor:
    """Raster's tokens, each image in a batch of its own."""
    grid, images = model.grid(*model.image_size), len(batch.seeds)
    parts = [
        decode(model, Prefix(*(part[i::images] for part in batch.prefix)), grid, Raster(), model.defaults, [seed])
        for i, seed in enumerate(batch.seeds)
    ]
    return torch.cat([part.tokens for part in parts])


def compare(tokens: Tensor, base: Tensor, margins: Tensor) -> dict[str, Any]:
    """What differs from raster's tokens, all (images, slots)."""
    differs = tokens != base
    other = differs.any(1)
    first = differs.long().argmax(1)
    decided = torch.where(other, first, base.shape[1] - 1)  # of slots 1, 2, ...: all up to the first difference
    flips = other & (first > 0)
    count, total = int(flips.sum()), int(decided.sum())
    return {
        "images": len(tokens),
        "other_images": int(other.sum()),
        "other_images_interval": wilson(int(other.sum()), len(tokens)),
        "first_differences": count,
        "decisions": total,
        "rate": count / total,
        "rate_interval": wilson(count, total),
        "flipped_margins": sorted(margins[flips, first[flips]].tolist()),
    }


@torch.inference_mode()
def measure(images: int = 256, batch: int = 64) -> dict[str, Any]:
    """``{"images", "batch", "machine", "dtypes": {name: {"median_margin", "smallest_margins", "rows": {...}}}}``."""
    dtypes: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = zipar.pipeline("emoji", dtype=dtype, device="cpu").model
        grid = model.grid(*model.image_size)
        base, margins = [], []
        found: dict[str, list[Tensor]] = {name: [] for name in [*STRATEGIES, ALONE]}
        for part in batches(model, images, batch):
            tokens, margin = raster(model, part)
            base.append(tokens)
            margins.append(margin)
            for name, strategy in STRATEGIES.items():
                decoded = decode(model, part.prefix, grid, strategy, model.defaults, part.seeds)
                found[name].append(decoded.tokens)
            found[ALONE].append(one_by_one(model, part))
        typical = torch.cat(margins)[:, 1:]
        dtypes[str(dtype).removeprefix("torch.")] = {
            "median_margin": typical.median().item(),
            "smallest_margins": {str(q): typical.quantile(q).item() for q in (0.0001, 0.001, 0.01)},
            "rows": {
                name: compare(torch.cat(parts), torch.cat(base), torch.cat(margins)) for name, parts in found.items()
            },
        }
    return {"images": images, "batch": batch, "machine": machine(), "dtypes": dtypes}


def table(report: dict[str, Any]) -> str:
    """The report in markdown."""
    lines = [
        f"{report['images']} images of emoji, raster decoding in batches of {report['batch']} as the base; 95 % "
        f"intervals in brackets. Machine: {report['machine']}.",
        "",
        "| weights | decoding | images not raster's | flips / decisions | flips in 100,000 | largest flipped margin |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for dtype, found in report["dtypes"].items():
        for name, row in found["rows"].items():
            low, high = (100_000 * end for end in row["rate_interval"])
            margins = row["flipped_margins"]
            lines.append(
                f"| {dtype} | {name} | {row['other_images'] / row['images']:.1%} | "
                f"{row['first_differences']} / {row['decisions']:,} | "
                f"{100_000 * row['rate']:.1f} [{low:.1f}, {high:.1f}] | {f'{margins[-1]:.2g}' if margins else '–'} |"
            )
    lines.append("")
    for dtype, found in report["dtypes"].items():
        flipped = torch.tensor([m for row in found["rows"].values() for m in row["flipped_margins"]])
        those = f"{flipped.median().item():.2g} at that of the tokens that flipped" if len(flipped) else "none flipped"
        lines.append(f"A token wins by {found['median_margin']:.2g} at the median ({dtype}); {those}.")
    return "\n".join(lines)


def main() -> None:
    args = parser(__doc__).parse_args()
    report = measure(args.images, args.batch)
    write(args.output, "near_ties", report, table(report))


if __name__ == "__main__":
    main()
