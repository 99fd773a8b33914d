"""Strategies at every level of uncertainty: passes and divergence over nats a token; writes docs/uncertainty.md.

    python benchmarks/uncertainty.py emoji=64 fashion=64 DIRECTORY=64...

Each model is asked at its own defaults and, if it has no more than 256 tokens, made surer and less sure of them by
temperature, by guidance and by top-k, one at a time. Finished batches stay in ``--output``, so that a
run that was killed goes on where it was. Nothing is timed.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from decoding import machine
from quality import pair
from studies import SEED, alone, prompts
from zipar.decoding import names
from zipar.decoding.sampling import Sampling
from zipar.evaluation import tables
from zipar.evaluation.report import Graders, evaluate
from zipar.evaluation.samples import Study, stamp
from zipar.models import auto
from zipar.models.base import VisualModel

STRATEGIES = ["zipar:4", "zipar:2", "zipar:4:8", "zipar:2:8:wave", names.name(names.DEFAULT), "jacobi:32"]
ASKED = [Sampling(), Sampling(temperature=1.5), Sampling(guidance_scale=3.0), Sampling(top_k=100)]
COLUMNS = ["strategy", "forward_passes", "fewer", "divergence", "excess", "entropy", "gap"]
Rows = Sequence[Mapping[str, Any]]


def measured(place: str, images: int, args: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """What a model was asked for, and a row for each strategy: first at its own defaults."""
    directory = auto.find(place)
    model = auto.load(directory, device="cpu")
    large = model.grid(*model.image_size).tokens > 256
    for asked in dict.fromkeys([model.defaults, *([] if large else ASKED)]):
        yield under(asked, model, directory, images, args)


def under(
    asked: Sampling, model: VisualModel, directory: Path, images: int, args: argparse.Namespace
) -> tuple[str, Rows]:
    """The same for one way of sampling."""
    emoji = directory.name == "emoji"
    study = Study(
        model=model,
        stamp=stamp(directory),
        prompts=prompts(images) if emoji else model.examples(images),
        sampling=asked,
        grid=model.grid(*model.image_size),
        seed=SEED,
        batch_size=args.batch_size,
        folder=args.output / directory.name,
    )
    title = f"{directory.name}, {study.grid.rows} x {study.grid.columns} tokens, temperature {asked.temperature:g}"
    title += f", guidance {asked.guidance_scale:g}" if asked.guided else ""
    title += f", top-k {asked.top_k}" if asked.top_k else ""
    strategies = [alone(names.parse(name)) for name in args.strategies]
    report = evaluate(study, strategies, Graders(), 0, lambda each, made: print(title, names.name(each), made))
    return title, report.rows


def plot(found: Mapping[str, Rows], path: Path) -> None:
    """Over the entropy of raster's images: passes, and divergence with its interval.

    A colour a strategy, a marker a model, one for each way in which it was asked.
    """
    figure = Figure((11, 4.8), layout="constrained")
    passes, divergence = figure.subplots(1, 2)
    divergence.axhspan(0, 0.02, color="#6a737d", alpha=0.12)
    models = list(dict.fromkeys(title.split(",")[0] for title in found))
    strategies = [row["strategy"] for row in next(iter(found.values()))]
    for model, marker in zip(models, "os^Dv", strict=False):
        runs = [rows for title, rows in found.items() if title.split(",")[0] == model]
        runs.sort(key=lambda rows: rows[0]["entropy"].value)
        nats = [rows[0]["entropy"].value for rows in runs]
        for index, name in enumerate(strategies[1:], 1):
            rows = [run[index] for run in runs]
            bold = name == names.name(names.DEFAULT)
            style: dict[str, Any] = {
                "marker": marker,
                "markersize": 8 if bold else 5,
                "linestyle": "none",
                "color": f"C{index - 1}",
            }
            label = name if model == models[0] else None
            passes.plot(nats, [100 * (1 - row["fewer"]) for row in rows], label=label, **style)
            reaches = [row["divergence"].reach for row in rows]
            divergence.errorbar(nats, [row["divergence"].value for row in rows], reaches, capsize=2, **style)
        passes.plot([], [], marker, color="#6a737d", label=model)
    passes.set(xlabel="nats a token, raster order", ylabel="forward passes, % of raster's", ylim=(0, None))
    ticks = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
    divergence.set_yscale("symlog", linthresh=0.02)
    divergence.set(xlabel="nats a token, raster order", ylabel="divergence, nats a token", ylim=(0, 0.5))
    divergence.set_yticks(ticks, map(str, ticks))
    for axis in (passes, divergence):
        axis.grid(alpha=0.3)
    handles, labels = passes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda each: labels[each] in models)  # models last
    figure.legend(
        *([part[each] for each in order] for part in (handles, labels)),
        loc="outside lower center",
        ncols=9,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pair, metavar="MODEL=IMAGES", help="embedded names or directories")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/uncertainty"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    found = dict(each for place, images in args.models for each in measured(place, int(images), args))
    args.docs.mkdir(exist_ok=True)
    plot(found, args.docs / "uncertainty.png")
    sections = [f"### {title}\n\n{tables.markdown(rows, COLUMNS)}\n" for title, rows in found.items()]
    text = (Path(__file__).parent / "uncertainty.md").read_text(encoding="utf-8")
    filled = text.format(machine=machine(), sections="\n".join(sections))
    (args.docs / "uncertainty.md").write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
