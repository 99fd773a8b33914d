"""What strategies do to the clips of the model that recipes/clips makes, and what they cost: writes docs/video.md.

    python benchmarks/video.py --clips 500

Scenes are drawn by the recipe of the model, so what is right is known: from two given frames exactly one continuation
is. It fetches the emoji pictures once (needs ``npm``). Finished batches and timings stay in ``--output``: a run that
was killed goes on where it was. Give the timings idle cores.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import zipar
from ablations import kept
from decoding import machine
from studies import alone
from zipar.decoding import names
from zipar.decoding.zipar import ZipAR
from zipar.evaluation.fidelity import likelihood
from zipar.evaluation.judge import Judge
from zipar.grid import TokenGrid
from zipar.models import auto
from zipar.models.clips import Clips
from zipar.pipeline import Pipeline, PipelineOutput

import training  # type: ignore[import-not-found]  # isort: skip  # recipes are on the path since ``studies``
from clips import scenes  # type: ignore[import-not-found]  # isort: skip
from emoji import artwork  # type: ignore[import-not-found]  # isort: skip

SEED = 11
GIVEN = 2
LONG, CARRIES = 24, (1, 2, 4, 6)
STRATEGIES = {
    "raster": "raster order",
    "zipar:4": "frame by frame",
    "zipar:2@16": "diagonal",
    "zipar:4@8": "a row's delay",
    "zipar:12:64:4:wave": "drafts, frame by frame",
    "jacobi:64": "lossless, a frame of drafts",
}


@dataclass(frozen=True)
class FrameEarlier(ZipAR):
    """The same token one frame earlier stands in for a missing last one."""

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        frame, row = divmod(frame * times.shape[1] + row - 1, times.shape[1])
        return max(frame - 1, 0), row, times.shape[2] - 1


@dataclass(frozen=True)
class Newest(ZipAR):
    """The newest token of the unfinished row does."""

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        now = times[frame, row, 0]
        frame, row = divmod(frame * times.shape[1] + row - 1, times.shape[1])
        return frame, row, int((times[frame, row] < now).sum()) - 1


STAND_INS = {
    "the last column, nearest above": ZipAR,
    "the same place, one frame earlier": FrameEarlier,
    "the newest token of its row": Newest,
}
COSMOS = TokenGrid(40, 64, 5, given=2)
"""Of Cosmos's 33 frames of 640 x 1024 pixels, nine of which are given."""
Clip = tuple[scenes.Scene, str, np.ndarray]


def asked(count: int, painter: scenes.Painter) -> Iterator[Clip]:
    """Scenes that the model was not trained on, a prompt that says all of each, and how it looks."""
    _, held_out = scenes.split()
    for number in range(count):
        rng = training.batch_rng(SEED, number)
        scene = scenes.sample(held_out, rng)
        yield scene, scenes.say(scene, rng, mention=1.0)[0], painter.render(scene)


def judged(pipe: Pipeline, made: PipelineOutput, clips: Sequence[Clip], given: int, painter: scenes.Painter,
           judge: Judge) -> dict[str, list[float]]:  # fmt: skip
    """Figures of each clip of a batch."""
    model = pipe.model
    prompts = [prompt for _, prompt, _ in clips]
    tokens = torch.from_numpy(made.tokens).long()
    grid = model.clip(*model.image_size, tokens.shape[1], given)
    prefix = model.prefix(prompts, None, model.defaults.guided, grid, tokens[:, :given] if given else None)
    excess = likelihood(model, prefix, grid, tokens.flatten(1), model.defaults).excess
    frames = np.stack([np.stack([np.asarray(frame) for frame in video.frames]) for video in made.videos])
    seen = judge.classify(torch.from_numpy(frames))
    figures: dict[str, list[float]] = {"excess": excess.tolist(), "passes": (made.born.max((1, 2, 3)) + 1).tolist()}
    for (scene, _, render), clip, i in zip(clips, frames, range(len(clips)), strict=True):
        places = painter.locate(scene, clip)
        right = scenes.continuation(places[0], places[1], scene.size)
        steps = [math.dist(a, b) for a, b in itertools.pairwise(places)]
        off = [math.dist(a, b) for a, b in zip(places, right, strict=True)][GIVEN:]
        error = np.square(clip[GIVEN:].astype(float) - render[GIVEN:]).mean()
        one = {
            "error": statistics.mean(off),
            "right": float(not any(off)),
            "psnr": 10 * math.log10(255**2 / max(error, 1.0)),
            "motion": statistics.mean(steps[GIVEN - 1 :]),
            "object": float(seen["object"][i] == scene.object),
            "direction": float(seen["direction"][i] == scene.direction),
            "speed": float(seen["speed"][i] == scene.speed),
        }
        for name, value in one.items():
            figures.setdefault(name, []).append(value)
    return figures


def measured(pipe: Pipeline, clips: Sequence[Clip], strategy: str, given: int, args: argparse.Namespace,
             painter: scenes.Painter, judge: Judge) -> dict[str, list[float]]:  # fmt: skip
    """Figures of all clips, a batch after the other."""
    total: dict[str, list[float]] = {}
    for first in range(0, len(clips), args.batch):
        part = clips[first : first + args.batch]

        def make(part: Sequence[Clip] = part, first: int = first) -> dict[str, Any]:
            made = pipe(
                [prompt for _, prompt, _ in part],
                strategy=alone(names.parse(strategy)),
                seed=SEED + first,
                given=[render[:given] for _, _, render in part] if given else None,
            )
            print(f"{strategy}, {given} given, {first + len(part)} clips", flush=True)
            return judged(pipe, made, part, given, painter, judge)

        place = args.output / f"{strategy.replace(':', '-').replace('@', '+')} {given}" / f"{first}-{len(part)}.json"
        for name, values in kept(place, make).items():
            total.setdefault(name, []).extend(values)
    return total


def went_on(pipe: Pipeline, clips: Sequence[Clip], carry: int, painter: scenes.Painter) -> dict[str, Any]:
    """Places and passes of clips that go on past the model's context from their last ``carry`` frames."""
    with patch.object(Clips, "carry", carry):
        made = pipe(
            [prompt for _, prompt, _ in clips],
            strategy="raster",
            seed=SEED,
            frames=LONG,
            given=[render[:GIVEN] for *_, render in clips],
        )
    off = []
    for (scene, _, render), video in zip(clips, made.videos, strict=True):
        places = painter.locate(scene, np.stack([np.asarray(frame) for frame in video.frames]))
        first, second = painter.locate(scene, render[:GIVEN])
        right = scenes.continuation(first, second, scene.size, LONG)
        off.append(statistics.mean(math.dist(a, b) for a, b in zip(places[GIVEN:], right[GIVEN:], strict=True)))
    return {"error": off, "passes": made.stats.forward_passes}


def stood_in(pipe: Pipeline, clips: Sequence[Clip], kind: type[ZipAR], painter: scenes.Painter,
             judge: Judge) -> dict[str, list[float]]:  # fmt: skip
    """Figures of diagonal decoding, where every row but the first of a clip starts before the one above it ends."""
    made = pipe(
        [prompt for _, prompt, _ in clips],
        strategy=kind(2, first_row="wave", frame_delay=16),
        seed=SEED,
        given=[render[:GIVEN] for *_, render in clips],
    )
    return judged(pipe, made, clips, GIVEN, painter, judge)


def timed(pipe: Pipeline, clips: Sequence[Clip], strategies: Sequence[str]) -> dict[str, Any]:
    """Seconds of single clips: the median over clips, all strategies interleaved."""
    taken: dict[str, list[float]] = {name: [] for name in strategies}
    for turn, (_, prompt, render) in enumerate([clips[0], *clips]):  # the first round warms up
        for name in strategies:
            started = time.perf_counter()
            pipe(prompt, strategy=names.parse(name), seed=SEED + turn, given=render[:GIVEN])
            if turn:
                taken[name].append(time.perf_counter() - started)
    return {"machine": machine(), "seconds": {name: statistics.median(values) for name, values in taken.items()}}


def interval(values: Sequence[float], form: str) -> str:
    """Mean and its 95 % confidence interval."""
    mean = statistics.mean(values)
    reach = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return f"{form} ± {form.replace('+', '')}".format(mean, reach)


def differences(values: Sequence[float], base: Sequence[float]) -> list[float]:
    return [value - of for value, of in zip(values, base, strict=True)]


def cost_table(found: dict[str, dict[str, list[float]]], times: dict[str, Any]) -> str:
    lines = [
        "| strategy | | passes | fewer | seconds | speedup | surprise excess, less raster's |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    raster = found["raster"]
    for name, figures in found.items():
        passes, seconds = statistics.mean(figures["passes"]), times["seconds"][name]
        fewer = 1 - passes / statistics.mean(raster["passes"])
        lines.append(
            f"| `{name}` | {STRATEGIES.get(name, '')} | {passes:.1f} | {fewer:.1%} "
            f"| {seconds:.2f} | {times['seconds']['raster'] / seconds:.1f}x "
            f"| {interval(differences(figures['excess'], raster['excess']), '{:+.4f}')} |"
        )
    return "\n".join(lines)


def quality_table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        "| strategy | all places right | error, px | motion, px a frame | PSNR, dB | object | direction | speed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, figures in found.items():
        read = [f"{statistics.mean(figures[each]):.1%}" for each in ("object", "direction", "speed")]
        shown = [("error", "{:.3f}"), ("motion", "{:.2f}"), ("psnr", "{:.2f}")]
        cells = [f"{statistics.mean(figures['right']):.1%}", *(interval(figures[each], form) for each, form in shown)]
        lines.append(" | ".join([f"| `{name}`", *cells, *read]) + " |")
    return "\n".join(lines)


def verdicts(found: dict[str, dict[str, list[float]]]) -> str:
    """Of each strategy: what its intervals say of losses against raster's clips of the same seeds."""
    raster, lines = found["raster"], []
    for name, figures in found.items():
        fewer = 1 - statistics.mean(figures["passes"]) / statistics.mean(raster["passes"])
        lost = []
        for each, word in (("error", "position"), ("motion", "motion"), ("excess", "likelihood")):
            gaps = differences(figures[each], raster[each])
            mean, reach = statistics.mean(gaps), 1.96 * statistics.stdev(gaps) / math.sqrt(len(gaps))
            if abs(mean) > reach:
                lost.append(f"{word} {mean:+.3f} ± {reach:.3f}")
        if name != "raster":
            lines.append(
                f"- `{name}`: {fewer:.1%} fewer passes; " + ("; ".join(lost) or "no measurable difference") + "."
            )
    return "\n".join(lines)


def stand_ins(found: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| stand-in | all places right | error, px | surprise excess |", "| --- | ---: | ---: | ---: |"]
    for title, figures in found.items():
        lines.append(
            f"| {title} | {statistics.mean(figures['right']):.1%} | {interval(figures['error'], '{:.3f}')} "
            f"| {interval(figures['excess'], '{:+.4f}')} |"
        )
    return "\n".join(lines)


def carries(found: dict[int, dict[str, Any]]) -> str:
    lines = ["| frames given anew | all places right | error, px | raster's passes |", "| ---: | ---: | ---: | ---: |"]
    for carry, figures in found.items():
        right = statistics.mean(float(not off) for off in figures["error"])
        lines.append(f"| {carry} | {right:.1%} | {interval(figures['error'], '{:.3f}')} | {figures['passes']:,} |")
    return "\n".join(lines)


def projections() -> str:
    lines = ["| strategy | passes of 3 new token frames | fewer |", "| --- | ---: | ---: |"]
    for name in ("raster", "zipar:8:wave", "zipar:8:wave@320", "zipar:8:wave@64", "zipar:2:wave", "zipar:2:wave@80",
                 "zipar:2:wave@64"):  # fmt: skip
        passes = names.parse(name).passes(COSMOS)
        lines.append(f"| `{name}` | {passes:,} | {1 - passes / COSMOS.tokens:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="clips", help="or what clips.export wrote: ./OUT")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--free", type=int, default=200, help="clips that are made from their prompts alone")
    parser.add_argument("--long", type=int, default=25, help="clips that go on past the context")
    parser.add_argument("--stood", type=int, default=100, help="clips of each stand-in")
    parser.add_argument("--timed", type=int, default=6, help="clips that are timed, one at a time")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--artwork", type=Path, default=scenes.BUILD / "artwork")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/video"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    pipe, painter = zipar.pipeline(args.model), scenes.Painter(artwork.load(args.artwork))
    judge = Judge.load(auto.find(args.model) / "judge")
    clips = list(asked(args.clips, painter))
    strategies = list(dict.fromkeys(["raster", *args.strategies]))
    found = {
        given: {name: measured(pipe, clips[:count], name, given, args, painter, judge) for name in strategies}
        for given, count in ((GIVEN, args.clips), (0, args.free))
    }
    long = {
        carry: kept(args.output / f"carry {carry}.json", partial(went_on, pipe, clips[: args.long], carry, painter))
        for carry in CARRIES
    }
    standing = {
        title: kept(
            args.output / f"{kind.__name__}.json", partial(stood_in, pipe, clips[: args.stood], kind, painter, judge)
        )
        for title, kind in STAND_INS.items()
    }
    times = kept(args.output / "times.json", lambda: timed(pipe, clips[: args.timed], strategies))
    text = (Path(__file__).parent / "video.md").read_text(encoding="utf-8")
    filled = text.format(
        clips=args.clips,
        free_clips=args.free,
        machine=times["machine"],
        default=names.name(pipe.strategy),
        costs=cost_table(found[GIVEN], times),
        quality=quality_table(found[GIVEN]),
        free=quality_table(found[0]),
        verdicts=verdicts(found[GIVEN]),
        free_verdicts=verdicts(found[0]),
        stood=min(args.stood, args.clips),
        stand_ins=stand_ins(standing),
        long=LONG,
        long_clips=args.long,
        carry=pipe.model.carry,
        carries=carries(long),
        projections=projections(),
    )
    args.docs.mkdir(exist_ok=True)
    (args.docs / "video.md").write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
