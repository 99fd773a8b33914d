"""Weights in int8 against float32: seconds, and what becomes of images, in one run.

    python benchmarks/quantization.py --images 256 --output benchmarks/results

Seconds are those of a LlamaGen-B with random weights and of the embedded model, taking turns, one image at a time. What
becomes of images is told by the embedded model: both paint the same prompts and seeds; all are weighed by the float32
model, and judged by the classifier that ships with it.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import zipar
from decoding import llamagen_b, machine
from studies import SEED, mean, parser, prompts, write
from zipar.decoding.engine import decode
from zipar.decoding.strategy import Strategy
from zipar.evaluation.accuracy import paired_difference, verdicts
from zipar.evaluation.fid import Moments, frechet_distance
from zipar.evaluation.fidelity import likelihood
from zipar.evaluation.judge import Judge
from zipar.models import auto, quantization
from zipar.models.base import VisualModel

STRATEGIES: dict[str, Strategy] = {"raster": zipar.Raster(), "ZipAR 4": zipar.ZipAR(4)}


def pairs() -> Iterator[tuple[str, str, VisualModel, VisualModel]]:
    """Name, prompt, the model in float32 and the same in int8."""
    int8 = llamagen_b(packed=False).model
    quantization.quantize(int8.stepped(), "int8", torch.device("cpu"))
    yield "LlamaGen-B, 24 x 24", "207", llamagen_b().model, int8
    emoji = [zipar.pipeline("emoji", device="cpu", quantize=how).model for how in (None, "int8")]
    yield "emoji, 16 x 16", "a large red fox, 3d style", *emoji


def timings(repeats: int) -> list[dict[str, Any]]:
    """A row a model and strategy: median seconds of an image in either format."""
    rows = []
    for name, prompt, *models in pairs():
        for title, strategy in STRATEGIES.items():
            times: list[list[float]] = [[], []]
            for turn in range(repeats + 1):
                for model, found in zip(models, times, strict=True):
                    started = time.perf_counter()
                    zipar.Pipeline(model)(prompt, strategy=strategy, guidance_scale=2.0, seed=0)
                    if turn:  # the first round warms up
                        found.append(time.perf_counter() - started)
            plain, small = map(statistics.median, times)
            rows.append({"model": name, "strategy": title, "float32": plain, "int8": small, "ratio": small / plain})
    return rows


@torch.inference_mode()
def fidelity(images: int, batch: int) -> dict[str, Any]:
    """What ``ZipAR(4)`` paints in either format: nats a token by the float32 model, judged prompts, FID."""
    directory = auto.find("emoji")
    judge, reference = Judge.load(directory / "judge"), Moments.load(directory / "judge" / "reference.safetensors")
    models = {str(how): zipar.pipeline("emoji", device="cpu", quantize=how).model for how in (None, "int8")}
    plain, texts = models["None"], prompts(images, SEED)
    grid, sampling = plain.grid(*plain.image_size), plain.defaults
    assert plain.vocabulary is not None
    asked = [plain.vocabulary.parse(text) for text in texts]
    nats: dict[str, torch.Tensor] = {}
    right: dict[str, np.ndarray] = {}
    fid: dict[str, float] = {}
    for name, model in models.items():
        weighed, painted = [], []
        for first in range(0, images, batch):
            part = texts[first : first + batch]
            seeds = range(SEED + first, SEED + first + len(part))
            prefix = model.prefix(part, None, True, grid)
            tokens = decode(model, prefix, grid, zipar.ZipAR(4), sampling, seeds).tokens
            weighed.append(likelihood(plain, plain.prefix(part, None, True, grid), grid, tokens, sampling).nats)
            painted.append(model.pixels(model.codes(grid.pick(tokens))).numpy())
        pixels = np.concatenate(painted)
        nats[name] = torch.cat(weighed)
        right[name] = verdicts(asked, judge.classify(pixels))["all"]
        fid[name] = frechet_distance(Moments.of(judge.features(pixels)), reference)
    difference = paired_difference(right["int8"], right["None"])
    return {
        "images": images,
        "nats": {name: mean(values) for name, values in nats.items()},
        "gap": mean(nats["int8"] - nats["None"]),
        "accuracy": {name: float(values.mean()) for name, values in right.items()},
        "accuracy_difference": list(difference),
        "fid": fid,
    }


def text(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [
        f"Machine: {report['machine']}. Guidance (two rows), one image at a time, median of {report['repeats']}.",
        "",
        "| model | strategy | float32, s | int8, s | int8 / float32 |",
        "| --- | --- | ---: | ---: | ---: |",
        *(
            f"| {row['model']} | {row['strategy']} | {row['float32']:.2f} | {row['int8']:.2f} | {row['ratio']:.2f} |"
            for row in report["timings"]
        ),
        "",
    ]
    found = report["fidelity"]
    low, high = (f"{100 * value:+.1f}" for value in found["accuracy_difference"][1:])
    gap = found["gap"]
    lines += [
        f"| embedded model, `ZipAR(4)`, {found['images']} images | float32 | int8 |",
        "| --- | ---: | ---: |",
        "| nats a token, by the float32 model | {None[mean]:.4f} | {int8[mean]:.4f} |".format(**found["nats"]),
        "| prompts that the judge finds fulfilled | {None:.1%} | {int8:.1%} |".format(**found["accuracy"]),
        "| FID on the judge's features | {None:.2f} | {int8:.2f} |".format(**found["fid"]),
        "",
        f"int8 costs {gap['mean']:+.4f} nats a token (standard error {gap['standard_error']:.4f}), and {low} to {high} "
        "points of accuracy (95 %, paired).",
    ]
    return "\n".join(lines)


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    report = {
        "machine": machine(),
        "repeats": args.repeats,
        "timings": timings(args.repeats),
        "fidelity": fidelity(args.images, args.batch),
    }
    write(args.output, "quantization", report, text(report))


if __name__ == "__main__":
    main()
