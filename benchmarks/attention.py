"""Where the time of a pass goes on a CPU: attention over what its keys and values take to arrive, and the operators.

    python benchmarks/attention.py

Keys and values of a LlamaGen-B (12 layers, 12 heads of 64, 577 entries) are read in turn: no cache holds all;
"arrive" is the time to sum them up. Minima of many rounds.
"""

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

import zipar
from decoding import machine
from zipar.decoding.attention import additive, attend

LAYERS, HEADS, DIM, KEYS = 12, 12, 64, 577


def fastest(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest round."""
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def ratio(rows: int, queries: int, rounds: int = 20) -> float:
    """Attention of a pass over the arrival of its keys and values."""
    layers = [torch.randn(2, rows, HEADS, KEYS, DIM) for _ in range(LAYERS)]
    query = torch.randn(rows, queries, HEADS, DIM).transpose(1, 2)
    mask = additive(torch.ones(rows, queries, KEYS, dtype=torch.bool), query.dtype)
    arrive = fastest(lambda: [layer.sum() for layer in layers], rounds)
    return fastest(lambda: [attend(query, *layer, mask) for layer in layers], rounds) / arrive


def operators() -> list[tuple[str, float, float]]:
    """Name, calls and microseconds a pass of the operators of the embedded model's raster decoding, costliest first."""
    pipe = zipar.pipeline("emoji", device="cpu")
    pipe("a fox", strategy=zipar.Raster())
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        passes = pipe("a fox", strategy=zipar.Raster()).stats.forward_passes
    found = [(e.key, e.count / passes, e.self_cpu_time_total / passes) for e in profiled.key_averages()]
    return sorted(found, key=lambda each: -each[2])


def main() -> None:
    print(f"{machine()}\n\n| rows | queries | attention / arrival |\n| ---: | ---: | ---: |")
    with torch.inference_mode():
        for rows, queries in ((2, 1), (2, 3), (2, 6), (2, 24), (16, 1), (16, 6)):
            print(f"| {rows} | {queries} | {ratio(rows, queries):.1f}x |", flush=True)
    found = operators()
    print(f"\n{sum(calls for _, calls, _ in found):.0f} operators a raster pass of the embedded model\n")
    print("| operator | calls | microseconds |\n| --- | ---: | ---: |")
    print("\n".join(f"| {name} | {calls:.0f} | {micros:.0f} |" for name, calls, micros in found[:8]))


if __name__ == "__main__":
    main()
