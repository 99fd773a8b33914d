"""How forward passes grow with the grid: schedules simulated on grids that the embedded model cannot paint.

    python benchmarks/projections.py --output benchmarks/results

Where passes depend on the image, the strategy itself runs, with a model made up in which each guess comes true with
a probability, independent of all else. That rate is fitted to the passes which the embedded model takes on 16 x 16
tokens; what is known then tests it: other settings of the strategy, and the upper half of the same images, whose
tokens do not depend on what lies below. Nothing here says what a larger model's rates are, nor what a pass costs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zipar
from decoding import machine
from studies import ALONE, batches, mean, parser, write
from zipar.decoding.engine import decode
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.raster import Raster
from zipar.decoding.sampling import Draw
from zipar.decoding.strategy import Evaluated, Strategy
from zipar.decoding.zipar import ZipAR
from zipar.grid import TokenGrid

STATIC: dict[str, Strategy] = {"raster": Raster(), "ZipAR 8": ZipAR(8), "ZipAR 4": ZipAR(4), "ZipAR 2": ZipAR(2)}
FAMILIES: dict[str, dict[str, Strategy]] = {
    "ZipAR 4": {f"ZipAR 4, {n} ahead": ZipAR(4, n) for n in (8, 4, 16)},
    "ZipAR 2": {f"ZipAR 2, {n} ahead": ZipAR(2, n) for n in (8, 4, 16)},
    "Jacobi": {f"Jacobi, {n} ahead": CoupledJacobi(n, budget=ALONE) for n in (16, 8)},
    "wave": {f"Jacobi, {n} ahead in the wave of window 2": CoupledJacobi(n, 2, ALONE) for n in (8, 4)},
}
"""In each family the rate of the first one has to predict the others."""
SIDES = (16, 24, 32, 48, 90)
ROW_ENDS = ("without row-end tokens", "with row-end tokens")
AREAS = ("half of 16 x 16", "16 x 16")


def simulate(strategy: Strategy, grid: TokenGrid, rate: float, images: int, seed: int = 0) -> Tensor:
    """Forward passes of each image, (images,), when a guess comes true with probability ``rate``."""
    random = torch.Generator().manual_seed(seed)
    tokens = F.pad(grid.blank(), (0, 1)).repeat(images, 1)
    born = torch.zeros_like(tokens)
    schedule, nothing = strategy.schedule(grid, images, tokens.device), torch.empty(0)
    number = 0
    while not schedule.done.all():
        step = schedule.plan(tokens)
        targets = step.targets[:, : (step.queries < grid.slots - 1).any(0).sum()]  # the others are idle in all images
        number += 1
        true = torch.rand(targets.shape, generator=random) < rate
        other = torch.randint(2**60, targets.shape, generator=random)
        tokens.scatter_(1, targets, tokens.gather(1, targets).where(true, other))
        born.scatter_(1, targets, number)
        schedule.settle(tokens, Evaluated(step, nothing, Draw(nothing, nothing, nothing), nothing))
    return born[:, :-1].max(1).values + 1


def fit(passes: Callable[[float], Tensor], measured: float) -> float:
    """The rate at which a simulation takes as many passes as were measured."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        fewer = passes(middle).double().mean().item() < measured
        low, high = (low, middle) if fewer else (middle, high)
    return (low + high) / 2


@torch.inference_mode()
def measured_passes(images: int) -> dict[str, dict[str, Tensor]]:
    """Passes (images,) that the embedded model takes for whole images and for their upper halves."""
    model = zipar.pipeline("emoji", device="cpu").model
    grid = model.grid(*model.image_size)
    (batch,) = batches(model, images, images)
    found: dict[str, dict[str, Tensor]] = {}
    for family in FAMILIES.values():
        for name, strategy in family.items():
            born = decode(model, batch.prefix, grid, strategy, model.defaults, batch.seeds).born
            half = grid.tokens // 2
            found[name] = {"whole": born.max(1).values + 1, "half": born[:, :half].max(1).values + 1}
    return found


def measure(images: int = 32) -> dict[str, Any]:
    """``{"images", "machine", "rates": {...}, "validation": [...], "projections": {row ends: {strategy: {...}}}}``."""
    measured = measured_passes(images)
    small = TokenGrid(16, 16)
    rates: dict[str, dict[str, float]] = {}
    validation = []
    for family in FAMILIES.values():
        found = {
            name: fit(partial(simulate, strategy, small, images=images), measured[name]["whole"].double().mean().item())
            for name, strategy in family.items()
        }
        first = next(iter(found))
        for name, strategy in family.items():
            rates[name] = {"own": found[name], "least": min(found.values()), "most": max(found.values())}
            cases = [(AREAS[0], TokenGrid(8, 16), "half", name)]
            if name != first:
                cases.append((AREAS[1], small, "whole", first))
            for area, grid, part, fitted_to in cases:
                truth = mean(measured[name][part])
                guess = simulate(strategy, grid, found[fitted_to], images).double().mean().item()
                validation.append(
                    {
                        "strategy": name,
                        "area": area,
                        "fitted_to": fitted_to,
                        "measured": truth,
                        "predicted": guess,
                        "off": guess / truth["mean"] - 1,
                    }
                )
    projections: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, row_end in zip(ROW_ENDS, (None, 0), strict=True):
        rows = projections[kind] = {}
        for side in SIDES:
            grid = TokenGrid(side, side, row_end=row_end)
            for name, strategy in STATIC.items():
                passes = strategy.passes(grid)
                rows.setdefault(name, {})[str(side)] = {"passes": passes, "least": passes, "most": passes}
            several = 8 if side < 90 else 2
            for family in FAMILIES.values():
                for name, strategy in family.items():
                    guess = {
                        which: simulate(strategy, grid, rate, several).double().mean().item()
                        for which, rate in rates[name].items()
                    }
                    rows.setdefault(name, {})[str(side)] = {
                        "passes": guess["own"],
                        "least": guess["most"],
                        "most": guess["least"],
                    }
            for row in rows.values():
                row[str(side)]["share"] = row[str(side)]["passes"] / grid.tokens
    return {
        "images": images,
        "machine": machine(),
        "measured": {name: mean(parts["whole"]) for name, parts in measured.items()},
        "rates": rates,
        "validation": validation,
        "projections": projections,
    }


def table(report: dict[str, Any]) -> str:
    """The report in markdown."""
    largest = str(SIDES[-1])
    emu3 = {name: row[largest]["passes"] for name, row in report["projections"][ROW_ENDS[1]].items()}
    off = {which: [abs(case["off"]) for case in report["validation"] if case["area"] == which] for which in AREAS}
    lines = [
        "**Projections, not measurements**: the passes that the schedules would take if guesses came true as often as "
        f"they do on the embedded model's 16 x 16 tokens ({report['images']} images); in brackets the share of "
        f"raster's. An image of {largest} x {largest} with row-end tokens, as Emu3 paints it, has "
        f"{emu3['raster']:,.0f} tokens and would take {emu3['ZipAR 2']:,.0f} passes by ZipAR 2, "
        f"{emu3['ZipAR 2, 8 ahead']:,.0f} by ZipAR 2, 8 ahead, and {emu3['Jacobi, 16 ahead']:,.0f} with raster's own "
        "tokens by Jacobi, 16 ahead.",
    ]
    for kind, rows in report["projections"].items():
        lines += [
            "",
            f"| {kind} | {' | '.join(f'{side} x {side}' for side in SIDES)} | with the rates of its family |",
            f"| --- |{' ---: |' * (len(SIDES) + 1)}",
        ]
        for name, row in rows.items():
            cells = [f"{entry['passes']:,.0f} ({entry['share']:.1%})" for entry in row.values()]
            least, most = row[largest]["least"], row[largest]["most"]
            cells.append("exact" if least == most else f"{least:,.0f} to {most:,.0f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "How far to trust them: the rate fitted to whole images predicts the passes of their upper halves, and that of "
        "the first in each family those of the others; the largest error is "
        f"{max(off[AREAS[0]]):.0%} and {max(off[AREAS[1]]):.0%}.",
        "",
        "| strategy | passes measured | rate | upper half: predicted, measured | by the family's first rate |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, rate in report["rates"].items():
        truth = report["measured"][name]
        found = {case["area"]: case for case in report["validation"] if case["strategy"] == name}
        half, other = (found.get(area) for area in AREAS)
        assert half is not None
        lines.append(
            f"| {name} | {truth['mean']:.1f} ± {truth['standard_error']:.1f} | {rate['own']:.2f} | "
            f"{half['predicted']:.1f}, {half['measured']['mean']:.1f} ({half['off']:+.0%}) | "
            + ("– |" if other is None else f"{other['predicted']:.1f} ({other['off']:+.0%}) |")
        )
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(images=32)
    args = options.parse_args()
    report = measure(args.images)
    write(args.output, "projections", report, table(report))


if __name__ == "__main__":
    main()
