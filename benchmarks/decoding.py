"""Raster decoding against ZipAR: forward passes and seconds, measured in one run.

    python benchmarks/decoding.py --output benchmarks/results

runs LlamaGen-B with random weights (24 x 24 tokens, guidance, float32) and the embedded model, and writes
``decoding.json``, ``decoding.md`` (the README's table) and ``decoding.png``. With ``--reference DIR``, a clone of
FoundationVision/LlamaGen, its authors' own raster decoding of the same LlamaGen-B is timed beside ours, and with
``--zipar-reference DIR``, a clone of ThisisBillhe/ZipAR, that of ZipAR's authors at the same windows.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import zipar
from worker import worker
from zipar import CoupledJacobi, Raster, Strategy, ZipAR
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer
from zipar.models.packing import pack

LLAMAGEN_B = LlamaGenConfig(layers=12, heads=12, dim=768, classes=1000, grid_side=24)
WINDOWS = [16, 8, 4, 2]
GUIDANCE = 4.0

Row = dict[str, Any]
Contender = Callable[[], Row]
"""Decodes one image; gives its seconds, its forward passes and what else it knows."""


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


def ours(pipe: zipar.Pipeline, prompt: str, guidance: float, named: dict[str, Strategy]) -> dict[str, Contender]:
    """A contender a strategy; prefill and decoding are timed, not the image tokenizer."""

    def paint(strategy: Strategy) -> Row:
        stats = pipe(prompt, strategy=strategy, guidance_scale=guidance, seed=0).stats
        return {
            "forward_passes": stats.forward_passes,
            "slots_evaluated": stats.slots_evaluated,
            "seconds": stats.prefill_seconds + stats.decode_seconds,
            "peak_memory_bytes": stats.peak_memory_bytes,
        }

    return {name: partial(paint, strategy) for name, strategy in named.items()}


@contextmanager
def authors(clones: dict[Path, dict[str, int]]) -> Iterator[dict[str, Contender]]:
    """The authors' own decoding of LlamaGen-B, by our name of its strategy.

    ``clones`` has the window of each, 0 for raster, that is to run from a folder. Each folder's code runs in a process
    that lives as long as the block, with the weights of ``llamagen_b``.
    """
    script, contenders = Path(__file__).with_name("llamagen_peers.py"), dict[str, Contender]()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as processes:
        weights = Path(directory) / "decoder.pt"
        if clones:
            torch.save(llamagen_b(packed=False).model.decoder.state_dict(), weights)
        for folder, windows in clones.items():
            command = [sys.executable, script, folder, weights, str(LLAMAGEN_B.grid_side), str(GUIDANCE)]
            about, ask = processes.enter_context(worker(command))
            if about["threads"] != torch.get_num_threads():
                raise SystemExit(f"{folder} runs {about['threads']} threads, ours {torch.get_num_threads()}")
            contenders |= {name: partial(ask, window) for name, window in windows.items()}
        yield contenders


def measure(contenders: dict[str, Contender], repeats: int) -> dict[str, Row]:
    """A row a contender; rounds are interleaved, so that a slow moment of the machine meets all alike."""
    runs: dict[str, list[Row]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, contender in contenders.items():
            runs[name].append(contender())
    return {  # the first round warms up
        name: {**rows[-1], "seconds": statistics.median(row["seconds"] for row in rows[1:])}
        for name, rows in runs.items()
    }


def over_raster(rows: dict[str, Row]) -> list[Row]:
    """Rows of our strategies, with what each gains over our raster decoding."""
    base, found = rows["raster"], []
    for name, row in rows.items():
        speedup = base["seconds"] / row["seconds"]
        pass_ratio = base["forward_passes"] / row["forward_passes"]
        gains = {
            "tokens_a_pass": pass_ratio,
            "milliseconds_a_pass": 1000 * row["seconds"] / row["forward_passes"],
            "speedup": speedup,
            "pass_ratio": pass_ratio,
            "speedup_over_pass_ratio": speedup / pass_ratio,
        }
        found.append({"strategy": name, **row, **gains})
    return found


def over_authors(theirs: dict[str, Row], ours: dict[str, Row]) -> list[Row]:
    """The authors' rows, each with ours of the same strategy."""
    return [
        {
            "strategy": name,
            **row,
            "our_forward_passes": ours[name]["forward_passes"],
            "our_seconds": ours[name]["seconds"],
            "times_as_fast": row["seconds"] / ours[name]["seconds"],
        }
        for name, row in theirs.items()
    ]


def cost_of_a_pass(pipe: zipar.Pipeline, widths: list[int], repeats: int = 12) -> list[dict[str, float]]:
    """Milliseconds of one decoder pass (two rows, for guidance) by the number of queries, half of the cache in use."""
    from zipar.decoding.cache import SlotCache

    model = pipe.model
    slots, prefix = LLAMAGEN_B.grid_side**2, 1
    cache = SlotCache(model.layers, 2, prefix, slots)
    rows = []
    with torch.inference_mode():
        for width in widths:
            queries = torch.arange(slots // 2, slots // 2 + width).expand(2, -1)
            extent = prefix + slots // 2 + width
            cache.place(slice(2), prefix + queries, slice(extent))
            mask = torch.zeros(2, 1, width, extent)
            tokens, lengths = torch.zeros(2, width, dtype=torch.int64), torch.ones(2, dtype=torch.int64)

            def one_pass() -> None:
                model.step(tokens, queries, lengths, cache, mask)  # noqa: B023

            rows.append({"queries": width, "milliseconds": 1000 * _median_seconds(one_pass, repeats)})
    return rows


def _median_seconds(work: Callable[[], None], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def table(rows: list[Row]) -> str:
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


def authors_table(rows: list[Row]) -> str:
    """A markdown table of the authors' decoding beside ours."""
    lines = [
        "| window | forward passes | authors' ZipAR, s | ours, s | times as fast |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        name = "raster, by LlamaGen's authors" if row["strategy"] == "raster" else row["strategy"].split()[1]
        passes = " / ".join(dict.fromkeys([str(row["forward_passes"]), str(row["our_forward_passes"])]))
        lines.append(
            f"| {name} | {passes} | {row['seconds']:.2f} | {row['our_seconds']:.2f} | {row['times_as_fast']:.2f}x |"
        )
    return "\n".join(lines)


def plot(results: dict[str, list[Row]], path: Path) -> None:
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


def measure_llamagen(clones: dict[Path, dict[str, int]], repeats: int) -> tuple[list[Row], list[Row]]:
    """Rows of ours, and of the authors whose code is in ``clones``, measured in the same rounds."""
    with authors(clones) as theirs:
        contenders = ours(llamagen_b(), "207", GUIDANCE, static(WINDOWS))
        rows = measure(contenders | {f"authors' {name}": contender for name, contender in theirs.items()}, repeats)
    our_rows = {name: rows[name] for name in contenders}
    return over_raster(our_rows), over_authors({name: rows[f"authors' {name}"] for name in theirs}, our_rows)


def measure_emoji(repeats: int) -> list[Row]:
    """Rows of the embedded model."""
    pipe, prompt = zipar.pipeline("emoji"), "a large red fox on a blue background, 3d style"
    contenders = ours(pipe, prompt, pipe.model.defaults.guidance_scale, static([8, 4, 3, 2]) | DRAFTED)
    return over_raster(measure(contenders, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--reference", type=Path, help="a clone of FoundationVision/LlamaGen")
    parser.add_argument("--zipar-reference", type=Path, help="a clone of ThisisBillhe/ZipAR")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    clones: dict[Path, dict[str, int]] = {}
    if args.reference is not None:
        clones[args.reference] = {"raster": 0}
    if args.zipar_reference is not None:
        clones[args.zipar_reference / "LlamaGen-ZipAR"] = {f"ZipAR {window}": window for window in WINDOWS}
    for folder in clones:
        if not (folder / "autoregressive").is_dir():
            parser.error(f"{folder / 'autoregressive'} is missing: give clones of the repositories that --help names")
    args.output.mkdir(parents=True, exist_ok=True)

    llamagen, theirs = measure_llamagen(clones, args.repeats)
    results = {"LlamaGen-B, 24 x 24, random weights": llamagen, "emoji, 16 x 16": measure_emoji(args.repeats)}
    report: dict[str, Any] = {"machine": machine(), "results": results, "authors": theirs}
    widths = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16]
    costs = zip(cost_of_a_pass(llamagen_b(), widths), cost_of_a_pass(llamagen_b(packed=False), widths), strict=True)
    report["cost_of_a_pass"] = [
        {**packed, "milliseconds_unpacked": unpacked["milliseconds"]} for packed, unpacked in costs
    ]
    text = [f"Machine: {report['machine']}. Float32, guidance (two rows), batch 1, median of {args.repeats}."]
    if theirs:
        text.append(f"\nLlamaGen-B, 24 x 24, random weights: the authors' code and ours\n\n{authors_table(theirs)}")
    text += [f"\n{name}\n\n{table(rows)}" for name, rows in results.items()]
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
