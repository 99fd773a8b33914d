"""Measures what each decoding strategy costs the emoji model: passes, prompt accuracy, FID.

    python evaluate.py --images 1000 --strategies raster zipar:4 zipar:3 zipar:4:wave --output results.json

Every strategy gets the same prompts and seeds. Finished chunks stay in ``build/evaluation``: a killed run
continues where it was. Beside ``results.json`` it writes ``results.md`` and ``results.png``, a contact sheet.
"""

import argparse
import hashlib
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

import scenes
import training
import zipar
from zipar.decoding import names
from zipar.evaluation.accuracy import paired_difference, verdicts, wilson
from zipar.evaluation.fid import Moments, frechet_distance, interval, resample
from zipar.evaluation.judge import Judge
from zipar.models import auto


@dataclass(frozen=True)
class Generated:
    """What one strategy made of all prompts."""

    images: np.ndarray
    """uint8 (n, height, width, 3)."""
    tokens: np.ndarray
    """int32 (n, rows, columns)."""
    forward_passes: np.ndarray
    """int64 (n,): of the batch that each image was in."""


def prompt(seed: int, index: int) -> str:
    """Prompt ``index`` of a seed; it does not depend on how many there are."""
    rng = training.batch_rng(seed, index)
    return scenes.say(scenes.sample(rng), rng)[0]


def fingerprint(directory: Path, settings: dict[str, Any]) -> str:
    """Names a model's weights and the settings that its pictures depend on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(directory.rglob("*")):
        if path.is_file() and "judge" not in path.relative_to(directory).parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def generate(
    pipe: zipar.Pipeline,
    spec: str,
    prompts: list[str],
    seed: int,
    batch: int,
    sampling: dict[str, float | None],
    folder: Path,
) -> Generated:
    """Pictures of ``prompts``, seeds counting up from ``seed``; chunks in ``folder`` are taken from there."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        path = folder / f"{first}-{first + len(part)}.npz"
        if not path.exists():
            out = pipe(part, strategy=names.parse(spec), seed=seed + first, **sampling)  # type: ignore[arg-type]
            images = np.stack([np.asarray(image) for image in out.images])
            passes = np.full(len(part), out.stats.forward_passes)
            scratch = path.with_suffix(".tmp")
            with scratch.open("wb") as file:
                np.savez_compressed(file, images=images, tokens=out.tokens, forward_passes=passes)
            scratch.replace(path)
            print(f"{spec}: {first + len(part)}/{len(prompts)}", flush=True)
        with np.load(path) as chunk:
            chunks.append(dict(chunk))
    return Generated(**{name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})


def measure(
    generated: dict[str, Generated], asked: list[dict[str, str]], judge: Judge, reference: Moments, replicates: int
) -> list[dict[str, Any]]:
    """A row a strategy; the first one is the base that the others are compared with."""
    rows: list[dict[str, Any]] = []
    base_verdicts: dict[str, np.ndarray] = {}
    base_resampled = torch.empty(0)
    for name, made in generated.items():
        found = verdicts(asked, judge.classify(made.images))
        features = judge.features(made.images)
        distance = frechet_distance(reference, Moments.of(features))
        resampled = resample(features, reference, replicates)
        row: dict[str, Any] = {
            "strategy": name,
            "images": len(made.images),
            "forward_passes": float(made.forward_passes.mean()),
            "accuracy": {attribute: share(verdict) for attribute, verdict in found.items()},
            "fid": {"value": distance, "interval": interval(distance, resampled)},
        }
        if not rows:
            base_verdicts, base_resampled = found, resampled
        else:
            row["reduction"] = 1 - row["forward_passes"] / rows[0]["forward_passes"]
            row["accuracy_difference"] = {
                attribute: difference(verdict, base_verdicts[attribute]) for attribute, verdict in found.items()
            }
            ratio = distance / rows[0]["fid"]["value"]
            row["fid_ratio"] = {"value": ratio, "interval": interval(ratio, resampled / base_resampled)}
        rows.append(row)
    return rows


def share(verdict: np.ndarray) -> dict[str, Any]:
    hits, total = int(verdict.sum()), len(verdict)
    return {"value": hits / max(total, 1), "images": total, "interval": wilson(hits, total)}


def difference(verdict: np.ndarray, base: np.ndarray) -> dict[str, Any] | None:
    """None where no prompt names the attribute."""
    if len(verdict) == 0:
        return None
    value, low, high = paired_difference(verdict, base)
    return {"value": value, "interval": (low, high)}


def table(rows: list[dict[str, Any]]) -> str:
    """A markdown table; 95 % intervals in brackets."""

    def percent(entry: dict[str, Any]) -> str:
        low, high = entry["interval"]
        return f"{entry['value']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"

    def points(entry: dict[str, Any] | None) -> str:
        if entry is None:
            return "–"
        low, high = entry["interval"]
        return f"{100 * entry['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"

    def plain(entry: dict[str, Any] | None, digits: int) -> str:
        if entry is None:
            return "–"
        low, high = entry["interval"]
        return f"{entry['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    attributes = list(rows[0]["accuracy"])
    titles = ["strategy", "forward passes", "fewer", *attributes, "all, vs raster (points)", "FID", "FID / raster's"]
    lines = [f"| {' | '.join(titles)} |", f"| --- |{' ---: |' * (len(titles) - 1)}"]
    for row in rows:
        cells = [
            row["strategy"],
            f"{row['forward_passes']:.0f}",
            f"{row['reduction']:.1%}" if "reduction" in row else "–",
            *(percent(row["accuracy"][attribute]) for attribute in attributes),
            points(row.get("accuracy_difference", {}).get("all")),
            plain(row["fid"], 3),
            plain(row.get("fid_ratio"), 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def contact_sheet(generated: dict[str, Generated], prompts: list[str], path: Path, columns: int = 12) -> None:
    """The first pictures: a column a prompt, a row a strategy."""
    columns = min(columns, len(prompts))
    figure, grid = plt.subplots(
        len(generated), columns, squeeze=False, layout="constrained", figsize=(1.3 * columns, 1.3 * len(generated) + 1)
    )
    for (name, made), row in zip(generated.items(), grid, strict=True):
        for axes, image in zip(row, made.images, strict=False):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=8)
    for axes, text in zip(grid[0], prompts, strict=False):
        axes.set_title("\n".join(textwrap.wrap(text, 20)), fontsize=6)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a checkpoint directory or the name of an embedded model")
    parser.add_argument("--judge", type=Path, help="its directory; the model's own by default")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--strategies", nargs="+", default=["raster", "zipar:4", "zipar:3", "zipar:2"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--guidance-scale", type=float, help="the model's own by default")
    parser.add_argument("--temperature", type=float, help="the model's own by default")
    parser.add_argument("--replicates", type=int, default=1000, help="bootstrap resamples for the intervals of FID")
    parser.add_argument("--output", type=Path, default=training.BUILD / "evaluation" / "results.json")
    args = parser.parse_args()
    specs = list(dict.fromkeys(["raster", *args.strategies]))
    try:
        for spec in specs:
            names.parse(spec)
    except zipar.ZipARError as error:
        parser.error(str(error))

    directory = auto.find(args.model)
    folder = args.judge or directory / "judge"
    judge, reference = Judge.load(folder), Moments.load(folder / "reference.safetensors")
    pipe = zipar.pipeline(directory)
    vocabulary = pipe.model.vocabulary
    if vocabulary is None:
        parser.error(f"{directory} has no prompts.json: nobody can say what its pictures should show")
    prompts = [prompt(args.seed, i) for i in range(args.images)]
    sampling = {"guidance_scale": args.guidance_scale, "temperature": args.temperature}
    settings = {**sampling, "seed": args.seed, "dtype": str(pipe.model.dtype), "device": pipe.model.device.type}
    chunks = training.BUILD / "evaluation" / fingerprint(directory, settings)
    generated = {
        spec: generate(pipe, spec, prompts, args.seed, args.batch, sampling, chunks / spec.replace(":", "-"))
        for spec in specs
    }
    rows = measure(generated, [vocabulary.parse(text) for text in prompts], judge, reference, args.replicates)
    lines = table(rows)
    used = {name: getattr(pipe.model.defaults, name) if value is None else value for name, value in sampling.items()}
    report = {"model": str(args.model), "seed": args.seed, **used, "results": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    args.output.with_suffix(".md").write_text(lines + "\n", encoding="utf-8")
    contact_sheet(generated, prompts, args.output.with_suffix(".png"))
    print(lines)


if __name__ == "__main__":
    main()
