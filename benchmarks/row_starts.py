"""How to start a row early without row-end tokens: what each choice costs in passes and in fidelity.

    python benchmarks/row_starts.py --images 256 --output benchmarks/results

Fidelity gap: the mean negative log-likelihood of the tokens under their full raster context (one teacher-forced
pass over the finished image, same guidance), minus that of raster samples of the same prompts and seeds, in nats
a token, with the standard error of the paired difference.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import zipar
from decoding import machine
from zipar.decoding.engine import decode
from zipar.decoding.raster import Raster
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.decoding.zipar import ZipAR
from zipar.evaluation.fidelity import likelihood
from zipar.models.base import VisualModel


@dataclass(frozen=True)
class NewestAbove(ZipAR):
    """The authors' stand-in for a missing last token: the newest token of the row above it."""

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        above = max(row - 2, 0)  # row 1 has no row above its predecessor: row 0 itself
        return frame, above, int((times[frame, above] < times[frame, row, 0]).sum()) - 1


@dataclass(frozen=True)
class NewestBeside(ZipAR):
    """The newest token of the unfinished row itself."""

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        return frame, row - 1, int((times[frame, row - 1] < times[frame, row, 0]).sum()) - 1


@dataclass(frozen=True)
class FirstBeside(ZipAR):
    """The first token of the unfinished row: directly above the token that is to be sampled."""

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        return frame, row - 1, 0


CHOICES: dict[str, tuple[type[ZipAR], str]] = {
    "row 0 alone; last column": (ZipAR, "alone"),
    "row 0 alone; newest above (the authors')": (NewestAbove, "alone"),
    "row 0 alone; newest of the row": (NewestBeside, "alone"),
    "row 0 alone; first of the row": (FirstBeside, "alone"),
    "wave; last column, else newest of the row": (ZipAR, "wave"),
    "wave; newest above": (NewestAbove, "wave"),
    "wave; newest of the row": (NewestBeside, "wave"),
    "wave; first of the row": (FirstBeside, "wave"),
}


@torch.inference_mode()
def nll(model: VisualModel, prompts: list[str], strategy: Strategy, seeds: list[int], sampling: Sampling) -> np.ndarray:
    """Mean negative log-likelihood of each image's tokens under full raster context, (images,), in nats a token."""
    grid = model.grid(*model.image_size)
    prefix = model.prefix(prompts, None, sampling.guided, grid)
    tokens = decode(model, prefix, grid, strategy, sampling, seeds).tokens
    return likelihood(model, prefix, grid, tokens, sampling).nats.cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()

    model = zipar.pipeline(args.model, device="cpu").model
    vocabulary = model.vocabulary
    assert vocabulary is not None
    rng = np.random.default_rng(11)
    values = {name: list(options) for name, options in vocabulary.attributes.items()}
    drawn = [{name: rng.choice(options) for name, options in values.items()} for _ in range(args.images)]
    prompts = [
        f"a {d['size']} {d['object']} at the {d['position']} on a {d['background']} background, {d['style']} style"
        for d in drawn
    ]

    def measured(strategy: Strategy) -> np.ndarray:
        parts = range(0, args.images, args.batch)
        return np.concatenate(
            [
                nll(
                    model,
                    prompts[i : i + args.batch],
                    strategy,
                    list(range(i, min(i + args.batch, args.images))),
                    model.defaults,
                )
                for i in parts
            ]
        )

    grid = model.grid(*model.image_size)
    base = measured(Raster())
    rows: list[dict[str, Any]] = []
    for window in args.windows:
        for name, (kind, first_row) in CHOICES.items():
            strategy = kind(window, first_row=first_row)  # type: ignore[arg-type]
            gap = measured(strategy) - base
            rows.append(
                {
                    "window": window,
                    "choice": name,
                    "forward_passes": strategy.passes(grid),
                    "gap": gap.mean(),
                    "standard_error": gap.std(ddof=1) / math.sqrt(len(gap)),
                }
            )
            print(rows[-1], flush=True)
    lines = [
        f"{args.images} images of {args.model}, raster: {base.mean():.3f} nats a token. Machine: {machine()}.",
        "",
        "| window | row 1; stand-in for a missing last token | forward passes | fidelity gap |",
        "| ---: | --- | ---: | ---: |",
    ]
    lines += [
        f"| {r['window']} | {r['choice']} | {r['forward_passes']} | {r['gap']:+.4f} ± {r['standard_error']:.4f} |"
        for r in rows
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "row_starts.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (args.output / "row_starts.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
