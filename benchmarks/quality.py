"""What every strategy does to the images of the embedded model, and what it costs: writes docs/quality.md.

    python benchmarks/quality.py --images 1000

Finished batches, timings and studies stay in ``--output``: a run that was killed goes on where it was, and the
document is written anew from them in seconds. Give the timings idle cores.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import near_ties
import projections
import unwritten_zeros
from decoding import machine
from studies import ALONE, SEED, prompts
from zipar.decoding import names
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.strategy import Strategy
from zipar.evaluation import plots, tables
from zipar.evaluation.fid import Moments
from zipar.evaluation.judge import Judge
from zipar.evaluation.report import Graders, Reference, evaluate
from zipar.evaluation.samples import Study, stamp
from zipar.models import auto
from zipar.pipeline import Pipeline

STRATEGIES = [
    *(f"zipar:{window}" for window in (1, 2, 3, 4)),
    *(f"zipar:{window}:{lookahead}" for lookahead in (4, 8, 16) for window in (1, 2, 3, 4)),
    *("zipar:4:wave", "zipar:2:wave", "zipar:4:8:wave"),
    *("adaptive:1", "adaptive:2"),
    *("jacobi:16", "jacobi:32", "jacobi:8:4"),
]
SHOWN = ["raster", "zipar:1", "zipar:2", "zipar:4", "zipar:2:8", "zipar:4:8", "adaptive:2", "jacobi:16"]
"""Rows of the sheet of images."""
COST = ["strategy", "forward_passes", "fewer", "slots_evaluated", "seconds", "speedup", "gap", "excess", "fid_ratio"]
ATTRIBUTES = ("object", "style", "background", "size", "position", "all")
ACCURACY = ["strategy", *(f"accuracy.{name}" for name in ATTRIBUTES), "accuracy_difference.all"]
Row = Mapping[str, Any]


def alone(strategy: Strategy) -> Strategy:
    """``strategy`` with passes that do not depend on the batch."""
    return replace(strategy, budget=ALONE) if isinstance(strategy, CoupledJacobi) else strategy


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` gives, or gave in an earlier run."""
    if not path.exists():
        found = json.dumps(make(), indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(found + "\n", encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def timed(study: Study, strategies: Sequence[Strategy], images: int) -> dict[str, Any]:
    """Seconds and slots evaluated of the first images, one at a time: median and mean over images, all interleaved."""
    pipe = Pipeline(study.model)
    taken: dict[str, list[float]] = {names.name(strategy): [] for strategy in strategies}
    slots: dict[str, list[int]] = {name: [] for name in taken}
    for turn in range(-1, images):  # the first round warms up
        for strategy in strategies:
            index = max(turn, 0)
            started = time.perf_counter()
            made = pipe(study.prompts[index], strategy=strategy, seed=study.seed + index)
            seconds = time.perf_counter() - started
            if turn >= 0:
                taken[names.name(strategy)].append(seconds)
                slots[names.name(strategy)].append(made.stats.slots_evaluated)
    return {
        "machine": machine(),
        "images": images,
        "seconds": {name: statistics.median(values) for name, values in taken.items()},
        "slots_evaluated": {name: statistics.fmean(values) for name, values in slots.items()},
    }


def with_times(rows: Sequence[Row], times: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``rows`` with seconds and slots of images made one at a time, in place of those of batches."""
    base = times["seconds"]["raster"]
    return [
        {
            **row,
            "seconds": times["seconds"][row["strategy"]],
            "speedup": base / times["seconds"][row["strategy"]],
            "slots_evaluated": times["slots_evaluated"][row["strategy"]],
        }
        for row in rows
    ]


def verdict(rows: Sequence[Row]) -> str:
    """What there is to say on the two claims."""

    def holds(row: Row) -> bool:
        fell = min(difference.value for difference in row["accuracy_difference"].values())
        return fell >= -0.01 and row["fid_ratio"].value < 1.03 and row["gap"].value < 0.02

    def listed(found: Sequence[Row]) -> str:
        ordered = sorted(found, key=lambda row: row["forward_passes"])
        return ", ".join(f"`{row['strategy']}` ({row['forward_passes']:.1f} passes)" for row in ordered) or "none"

    others = rows[1:]
    lossy = [row for row in others if not row["strategy"].startswith("jacobi") and row["fewer"] >= 0.8]
    lossless = [row for row in others if row["strategy"].startswith("jacobi")]
    reached, near = [row for row in lossy if holds(row)], min(lossy, key=lambda row: row["gap"].value)
    quarter = [row for row in lossless if row["fewer"] >= 0.75]
    return "\n".join(
        [
            "- **At 80 % fewer passes or more, no accuracy falls by more than 1 point, FID rises by less than 3 %, and "
            f"the fidelity gap is below 0.02 nats a token: {'reached' if reached else 'refuted'} by approximate "
            f"decoding.** Settings that do all of it: {listed(reached)}. The smallest gap at so few passes is that of "
            f"`{near['strategy']}`: {near['gap'].value:+.3f} [{near['gap'].low:+.3f}, {near['gap'].high:+.3f}] nats, "
            f"worst accuracy {100 * min(d.value for d in near['accuracy_difference'].values()):+.1f} points, FID "
            f"{near['fid_ratio'].value:.2f} of raster's.",
            f"- **Lossless in a quarter of raster's passes: {'reached' if quarter else 'refuted'}.** {listed(quarter)}"
            f" of {rows[0]['forward_passes']:.0f}, with raster's images.",
        ]
    )


def adaptive_against_fixed(rows: Sequence[Row]) -> str:
    """The gap of each adaptive window, and that of fixed windows at as many passes, by linear interpolation."""
    fixed = [row for row in rows if row["strategy"] in {f"zipar:{window}" for window in (1, 2, 3, 4)}]
    grid = [row["forward_passes"] for row in fixed]
    lines = []
    for row in rows:
        if not row["strategy"].startswith("adaptive"):
            continue
        passes = row["forward_passes"]
        gap, fid = (np.interp(passes, grid, [each[name].value for each in fixed]) for name in ("gap", "fid_ratio"))
        lines.append(
            f"- `{row['strategy']}`: {passes:.1f} passes, gap {row['gap'].value:+.3f} "
            f"[{row['gap'].low:+.3f}, {row['gap'].high:+.3f}], FID {row['fid_ratio'].value:.2f} of raster's; fixed "
            f"windows at as many passes: gap {gap:+.3f}, FID {fid:.2f}."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--timed", type=int, default=8, help="images that are timed, one at a time")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quality"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()

    directory = auto.find("emoji")
    model = auto.load(directory, device="cpu")
    study = Study(
        model=model,
        stamp=stamp(directory),
        prompts=prompts(args.images),
        sampling=model.defaults,
        grid=model.grid(*model.image_size),
        seed=SEED,
        batch_size=args.batch_size,
        folder=args.output / "batches",
    )
    strategies = [alone(names.parse(name)) for name in dict.fromkeys(["raster", *args.strategies])]
    judge = Judge.load(directory / "judge")
    reference = Reference(judge.features, Moments.load(directory / "judge" / "reference.safetensors"), 1000)
    report = evaluate(
        study, strategies, Graders(judge, reference), 12, lambda each, made: print(names.name(each), made, flush=True)
    )
    times = kept(args.output / "times.json", lambda: timed(study, strategies, args.timed))
    rows = with_times(report.rows, times)
    ties = kept(args.output / "near_ties.json", near_ties.measure)
    zeros = kept(args.output / "unwritten_zeros.json", unwritten_zeros.measure)
    grown = kept(args.output / "projections.json", projections.measure)

    args.docs.mkdir(exist_ok=True)
    plots.save_curves(rows, args.docs / "quality.png")
    shown = [
        (row["strategy"], found) for row, found in zip(rows, report.pictures, strict=True) if row["strategy"] in SHOWN
    ]
    plots.save_sheet(*zip(*shown, strict=True), study.prompts, args.docs / "quality-images.png")  # type: ignore[call-arg]
    text = (Path(__file__).parent / "quality.md").read_text(encoding="utf-8")
    filled = text.format(
        images=args.images,
        machine=times["machine"],
        timed=times["images"],
        guidance=f"{model.defaults.guidance_scale:g}",
        temperature=f"{model.defaults.temperature:g}",
        nats=rows[0]["nats"],
        verdict=verdict(rows),
        cost=tables.markdown(rows, COST),
        accuracy=tables.markdown(rows, ACCURACY),
        adaptive=adaptive_against_fixed(rows),
        near_ties=near_ties.table(ties),
        unwritten_zeros=unwritten_zeros.table(zeros),
        projections=projections.table(grown),
    )
    (args.docs / "quality.md").write_text(filled, encoding="utf-8")
    print(verdict(rows))


if __name__ == "__main__":
    main()
