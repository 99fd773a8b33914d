"""Two versions of this library against each other: seconds of every strategy, by batch, in one interleaved run.

    git worktree add ../before COMMIT
    python benchmarks/versions.py --before ../before --output benchmarks/results

Each version runs in a process of its own, on the weights of the embedded model and on a LlamaGen-B with random weights,
whose images are cut to few rows. Both take turns; of each pass the fastest of all turns counts, for a neighbour on the
same machine slows some passes of every turn.
"""

import argparse
import itertools
import json
import os
import sys
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

from worker import worker

STRATEGIES = ("raster", "zipar:4", "zipar:2", "zipar:4:8", "adaptive:2", "jacobi:16")
CASES = [
    *(("emoji", batch, 16, strategy) for batch in (1, 8, 32) for strategy in STRATEGIES),
    *(("LlamaGen-B", batch, rows, strategy) for batch, rows in ((1, 4), (8, 2), (32, 2)) for strategy in STRATEGIES),
]
"""Model, images decoded together, rows of the grid, strategy."""


def serve() -> None:
    """Answers requests, a line of JSON each, with the seconds of each pass."""
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        import torch

        import zipar
        from decoding import LLAMAGEN_B, llamagen_b
        from zipar.decoding.engine import decode
        from zipar.decoding.names import parse

        models = {"emoji": zipar.pipeline("emoji", device="cpu").model, "LlamaGen-B": llamagen_b().model}
        about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps(about), file=answers, flush=True)
        for line in sys.stdin:
            name, batch, rows, strategy = json.loads(line)
            model = models[name]
            columns = LLAMAGEN_B.grid_side if name == "LlamaGen-B" else rows
            sampling = zipar.Sampling(2.0, model.defaults.temperature)
            prompts = model.examples(batch)
            with torch.inference_mode():
                prefix = model.prefix(prompts, None, True, None)
            clock = [time.perf_counter()]
            decode(
                *(model, prefix, zipar.TokenGrid(rows, columns), parse(strategy), sampling, range(batch)),
                lambda _: clock.append(time.perf_counter()),  # noqa: B023
            )
            passes = [later - sooner for sooner, later in itertools.pairwise(clock)]
            print(json.dumps({"passes": passes[1:]}), file=answers, flush=True)  # without the prefill


def table(rows: list[dict[str, Any]]) -> str:
    """A line a case."""
    lines = [
        "| model | images | strategy | before: passes | ms each | after: passes | ms each | seconds, after / before |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        sides = (
            f"{row[f'{name}_passes']} | {1000 * row[name] / row[f'{name}_passes']:.1f}" for name in ("before", "after")
        )
        ratio = row["after"] / row["before"]
        lines.append(f"| {row['model']} | {row['images']} | {row['strategy']} | {' | '.join(sides)} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a worktree of the version to compare with")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose model, images and strategy contain this")
    args = parser.parse_args()
    trees = {"before": args.before, "after": Path(__file__).parents[1]}
    cases = [case for case in CASES if args.only in f"{case[0]} {case[1]} {case[3]}"]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        asks = {}
        for name, tree in trees.items():
            command = [sys.executable, __file__, "--serve"]
            paths = os.pathsep.join(map(str, (tree / "src", Path(__file__).parent)))
            command = ["env", f"PYTHONPATH={paths}", *command]
            about, asks[name] = stack.enter_context(worker(command))
        for case in cases:
            turns: dict[str, list[list[float]]] = {name: [] for name in trees}
            for _ in range(args.turns):
                for name, ask in asks.items():
                    turns[name].append(ask(case)["passes"])
            best = {name: [min(same) for same in zip(*found, strict=True)] for name, found in turns.items()}
            model, images, _, strategy = case
            row = {"model": model, "images": images, "strategy": strategy}
            row |= {f"{name}_passes": len(found) for name, found in best.items()}
            rows.append(row | {name: sum(found) for name, found in best.items()})
            print(table(rows).splitlines()[-1], flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    report = {"about": about, "turns": args.turns, "results": rows}
    (args.output / "versions.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = (
        f"torch {about['torch']}, {about['threads']} threads, float32, guidance, the fastest of {args.turns} turns\n\n"
    )
    (args.output / "versions.md").write_text(text + table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main()
