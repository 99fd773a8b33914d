"""Janus by transformers itself, by PrunaAI's ZipAR and by ours: seconds and forward passes, measured in one run.

    python benchmarks/peers.py --pruna PYTHON --pruna-clone DIR --output benchmarks/results

runs a Janus of 12 layers x 768 with random weights (24 x 24 tokens, guidance, float32, one image) and writes
``peers.json`` and ``peers.md``. PYTHON is the interpreter of an environment with what PrunaAI's ZipAR needs,
transformers 4.54.0 (and its own tokenizers and huggingface-hub), colorama and the torch of this environment;
DIR is a clone of PrunaAI/pruna. Without them that peer is left out.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import transformers

import zipar
from decoding import machine
from random_janus import Painted, paint, random_janus
from worker import worker

Contender = Callable[[], tuple[float, int]]
"""Paints one image; gives its seconds and forward passes."""


def ours(model: Any, strategy: zipar.Strategy) -> Painted:
    with zipar.accelerate(model, strategy):
        return paint(model)


@contextmanager
def pruna(python: Path, clone: Path, shape: list[int], windows: list[int]) -> Iterator[dict[str, Contender]]:
    """PrunaAI's contenders, in a process that lives as long as the block."""
    script = Path(__file__).with_name("pruna_worker.py")
    with worker([python, script, clone, *map(str, shape)]) as (about, ask):

        def contender(window: int) -> tuple[float, int]:
            found = ask(window)
            return found["seconds"], found["forward_passes"]

        contenders = {f"transformers {about['transformers']}": partial(contender, 0)}
        yield contenders | {f"PrunaAI, window {window}": partial(contender, window) for window in windows}


def measure(contenders: dict[str, Contender], repeats: int) -> list[dict[str, Any]]:
    """A row a contender; rounds are interleaved, so that a slow moment of the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    passes = {}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            took, passes[name] = contender()
            if turn > 0:  # the first round warms up
                seconds[name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians[next(iter(contenders))]
    return [
        {
            "contender": name,
            "forward_passes": passes[name],
            "seconds": medians[name],
            "milliseconds_a_pass": 1000 * medians[name] / passes[name],
            "speedup": base / medians[name],
        }
        for name in contenders
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | forward passes | seconds | ms a pass | faster |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        lines.append(
            f"| {row['contender']} | {row['forward_passes']} | {row['seconds']:.2f} | "
            f"{row['milliseconds_a_pass']:.1f} | {row['speedup']:.2f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--pruna", type=Path, help="the interpreter of an environment for PrunaAI's ZipAR")
    parser.add_argument("--pruna-clone", type=Path, help="a clone of PrunaAI/pruna")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--side", type=int, default=24)
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 8, 4])
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    shape = [args.layers, args.dim, args.side]
    model = random_janus(*shape)
    contenders: dict[str, Contender] = {
        f"transformers {transformers.__version__}": lambda: paint(model)[1:],
        "zipar, raster": lambda: ours(model, zipar.Raster())[1:],
    }
    for window in args.windows:
        contenders[f"zipar, window {window}"] = lambda w=window: ours(model, zipar.ZipAR(w))[1:]  # type: ignore[misc]
    same = paint(model).tokens.equal(ours(model, zipar.Raster()).tokens)
    if args.pruna and args.pruna_clone:
        with pruna(args.pruna, args.pruna_clone, shape, args.windows) as theirs:
            rows = measure(contenders | theirs, args.repeats)
    else:
        print("PrunaAI's ZipAR is left out: give --pruna and --pruna-clone", file=sys.stderr)
        rows = measure(contenders, args.repeats)
    report = {
        "machine": machine(),
        "shape": {"layers": args.layers, "dim": args.dim, "rows": args.side, "columns": args.side},
        "raster_tokens_are_those_of_transformers": same,
        "results": rows,
    }
    text = (
        f"Machine: {report['machine']}. Janus of {args.layers} layers x {args.dim} with random weights, {args.side} x "
        f"{args.side} tokens, float32, guidance (two rows), batch 1, greedy, median of {args.repeats}.\n\n{table(rows)}"
        f"\n\nOur raster decoding gave {'the very tokens' if same else 'other tokens than those'} of transformers."
    )
    (args.output / "peers.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.output / "peers.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
