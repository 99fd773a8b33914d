"""Raster decoding against ZipAR: forward passes and seconds, measured in one run.

    python benchmarks/decoding.py --output benchmarks/results

runs LlamaGen-B with random weights (24 x 24 tokens, guidance, float32) and the embedded model, and writes
``decoding.json``, ``decoding.md`` (the README's table) and ``decoding.png``. With ``--reference DIR``, a clone of
FoundationVision/LlamaGen, the authors' own raster decoding of the same LlamaGen-B is timed beside ours.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import zipar
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.raster import Raster
from zipar.decoding.strategy import Strategy
from zipar.decoding.zipar import ZipAR
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer
from zipar.models.packing import pack

LLAMAGEN_B = LlamaGenConfig(layers=12, heads=12, dim=768, classes=1000, grid_side=24)


def llamagen_b(packed: bool = True) -> zipar.Pipeline:
    """A pipeline of LlamaGen-B with random weights; its image tokenizer is small, for it is not what is timed.

    ``packed`` is what loading a checkpoint does to weights on CPUs.
    """
    torch.manual_seed(0)
    decoder = Transformer(LLAMAGEN_B)
    for weight in decoder.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.02)
    image_tokenizer = VQModel(VQConfig(16384, 8, 32, (1, 1, 1, 1, 1), 1, 32))
    model = LlamaGen(decoder, image_tokenizer).eval().requires_grad_(False)
    if packed:
        pack(model.stepped())
    return zipar.Pipeline(model)


def static(windows: list[int]) -> dict[str, Strategy]:
    """Strategies whose passes do not depend on the image, by the name that tables give them."""
    named: dict[str, Strategy] = {"raster": Raster()}
    for window in windows:
        named[f"ZipAR {window}"] = ZipAR(window)
        named[f"ZipAR {window}, row 1 in the wave"] = ZipAR(window, first_row="wave")
    return named


DRAFTED: dict[str, Strategy] = {
    "ZipAR 4, 4 ahead": ZipAR(4, 4),
    "ZipAR 4, 8 ahead": ZipAR(4, 8),
    "Jacobi, 8 ahead": CoupledJacobi(8),
    "Jacobi, 16 ahead": CoupledJacobi(16),
}
"""Strategies whose passes depend on the image: random weights would tell nothing."""


def measure(
    pipe: zipar.Pipeline, prompt: str, guidance: float, named: dict[str, Strategy], repeats: int
) -> list[dict[str, Any]]:
    """A row a strategy; rounds are interleaved, so that a slow moment of the machine meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in named}
    stats = {}
    for turn in range(repeats + 1):
        for name, strategy in named.items():
            output = pipe(prompt, strategy=strategy, guidance_scale=guidance, seed=0)
            stats[name] = output.stats
            if turn > 0:  # the first round warms up
                times[name].append(output.stats.prefill_seconds + output.stats.decode_seconds)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    base = stats["raster"].forward_passes
    return [
        {
            "strategy": name,
            "forward_passes": stats[name].forward_passes,
            "tokens_a_pass": base / stats[name].forward_passes,
            "slots_evaluated": stats[name].slots_evaluated,
            "seconds": seconds[name],
            "milliseconds_a_pass": 1000 * seconds[name] / stats[name].forward_passes,
            "speedup": seconds["raster"] / seconds[name],
            "pass_ratio": base / stats[name].forward_passes,
            "speedup_over_pass_ratio": seconds["raster"] / seconds[name] / (base / stats[name].forward_passes),
            "peak_memory_bytes": stats[name].peak_memory_bytes,
        }
        for name in named
    ]


def cost_of_a_pass(pipe: zipar.Pipeline, widths: list[int], repeats: int = 12) -> list[dict[str, float]]:
    """Milliseconds of one decoder pass (two rows, for guidance) by the number of queries, half of the cache in use."""
    from zipar.decoding.cache import SlotCache

    model = pipe.model
    slots, prefix = LLAMAGEN_B.grid_side**2, 1
    cache = SlotCache(model.layers, prefix, slots, model.device)
    rows = []
    with torch.inference_mode():
        for width in widths:
            queries = torch.arange(slots // 2, slots // 2 + width)[None]
            cache.place(queries, slots // 2 + width)
            mask = torch.zeros(2, 1, width, prefix + slots // 2 + width)
            tokens, lengths = torch.zeros(2, width, dtype=torch.int64), torch.ones(2, dtype=torch.int64)

            def one_pass() -> None:
                model.step(tokens, queries, lengths, cache, mask)  # noqa: B023

            rows.append({"queries": width, "milliseconds": 1000 * _median_seconds(one_pass, repeats)})
    return rows


def reference_seconds(clone: Path, guidance: float, repeats: int) -> float:
    """Median seconds of the authors' raster decoding of LlamaGen-B, run from a clone of their repository."""
    sys.path.insert(0, str(clone))
    from autoregressive.models.generate import generate  # type: ignore[import-not-found]
    from autoregressive.models.gpt import GPT_models  # type: ignore[import-not-found]

    torch.manual_seed(0)
    model = GPT_models["GPT-B"](block_size=LLAMAGEN_B.grid_side**2, model_type="c2i").eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)
    label = torch.tensor([207])

    def one_image() -> None:
        generate(model, label, LLAMAGEN_B.grid_side**2, cfg_scale=guidance, temperature=1.0, top_k=0, top_p=1.0)

    return _median_seconds(one_image, repeats)


def _median_seconds(work: Callable[[], None], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def table(rows: list[dict[str, Any]]) -> str:
    """A markdown table of one model's rows."""
    lines = [
        "| strategy | forward passes | fewer | seconds | faster | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        fewer = 1 - 1 / row["pass_ratio"]
        lines.append(
            f"| {row['strategy']} | {row['forward_passes']} | {fewer:.0%} | {row['seconds']:.2f} | "
            f"{row['speedup']:.2f}x | {row['peak_memory_bytes'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Speedup over the ratio of passes, with the line where every pass costs the same."""
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    most = max(row["pass_ratio"] for rows in results.values() for row in rows)
    axes.plot([1, most], [1, most], color="0.7", linestyle="--", label="every pass costs the same")
    for name, rows in results.items():
        points = sorted((row["pass_ratio"], row["speedup"]) for row in rows if row["strategy"] not in DRAFTED)
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
        if drafted := [(row["pass_ratio"], row["speedup"]) for row in rows if row["strategy"] in DRAFTED]:
            axes.plot(*zip(*drafted, strict=True), marker="s", linestyle="", label=f"{name}, with drafts")
    axes.set(xlabel="times fewer forward passes", ylabel="times faster")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def machine() -> str:
    """The machine, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--reference", type=Path, help="a clone of FoundationVision/LlamaGen")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    big, small = llamagen_b(), zipar.pipeline("emoji")
    results = {
        "LlamaGen-B, 24 x 24, random weights": measure(big, "207", 4.0, static([16, 8, 4, 2]), args.repeats),
        "emoji, 16 x 16": measure(
            small,
            "a large red fox on a blue background, 3d style",
            small.model.defaults.guidance_scale,
            static([8, 4, 3, 2]) | DRAFTED,
            args.repeats,
        ),
    }
    report: dict[str, Any] = {"machine": machine(), "results": results}
    widths = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16]
    costs = zip(cost_of_a_pass(big, widths), cost_of_a_pass(llamagen_b(packed=False), widths), strict=True)
    report["cost_of_a_pass"] = [
        {**packed, "milliseconds_unpacked": unpacked["milliseconds"]} for packed, unpacked in costs
    ]
    text = [f"Machine: {report['machine']}. Float32, guidance (two rows), batch 1, median of {args.repeats}."]
    text += [f"\n{name}\n\n{table(rows)}" for name, rows in results.items()]
    if args.reference is not None:
        report["reference_raster_seconds"] = reference_seconds(args.reference, 4.0, args.repeats)
        ours = next(iter(results.values()))[0]["seconds"]
        text.append(
            f"\nThe authors' raster decoding of LlamaGen-B: {report['reference_raster_seconds']:.2f} s, "
            f"ours: {ours:.2f} s ({report['reference_raster_seconds'] / ours:.2f}x faster)."
        )
    text.append(
        "\nCost of one LlamaGen-B pass by its queries (each for two rows):\n\n"
        "| queries | ms | ms with PyTorch's own linear layers |\n| ---: | ---: | ---: |"
    )
    text += [
        f"| {row['queries']} | {row['milliseconds']:.1f} | {row['milliseconds_unpacked']:.1f} |"
        for row in report["cost_of_a_pass"]
    ]
    (args.output / "decoding.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.output / "decoding.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    plot(results, args.output / "decoding.png")
    print("\n".join(text))


if __name__ == "__main__":
    main()
