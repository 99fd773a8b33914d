"""Pictures of a report: quality over passes, and the images side by side."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from zipar.decoding import names
from zipar.decoding.adaptive import AdaptiveZipAR
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.strategy import Strategy
from zipar.decoding.zipar import ZipAR
from zipar.evaluation.report import Estimate

_PANELS = {
    "divergence": ("divergence (nats a token)", 1),
    "excess": ("surprise excess (nats a token)", 1),
    "gap": ("fidelity gap (nats a token)", 1),
    "fid_ratio": ("FID / raster's", 1),
    "accuracy_difference.all": ("prompt accuracy against raster (points)", 100),
    "clip_difference": ("CLIP score against raster", 1),
}
"""What is drawn over forward passes, where rows have it: its label and scale."""


def save_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Quality over forward passes: a panel a measure, a line for strategies that differ in one number only.

    ``rows`` are raster's and at least one more.
    """
    drawn = {name: panel for name, panel in _PANELS.items() if _look_up(rows[-1], name) is not None}
    figure = Figure((5 * len(drawn), 4.5), layout="constrained")
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    lines: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for row in rows[1:]:
        line, number = _line(names.parse(row["strategy"]))
        lines.setdefault(line, []).append((number, row))
    for axis, (name, (label, scale)) in zip(panels, drawn.items(), strict=True):
        axis.axhline(1 if name.endswith("ratio") else 0, color="#6a737d", linewidth=1, linestyle=":")
        for line, members in lines.items():
            members.sort(key=lambda member: member[0])
            passes = [row["forward_passes"] for _, row in members]
            found = scale * np.array([_look_up(row, name) for _, row in members])
            errors = np.abs(found[:, 1:] - found[:, :1]).T
            drawing = axis.errorbar(passes, found[:, 0], errors, marker="o", markersize=4, capsize=2, label=line)
            for (number, _), x, y in zip(members, passes, found[:, 0], strict=True):
                axis.annotate(
                    str(number), (x, y), (4, 4), textcoords="offset points", fontsize=8, color=drawing[0].get_color()
                )
        axis.set(xlabel="forward passes", ylabel=label, xlim=(0, 1.08 * max(row["forward_passes"] for row in rows[1:])))
        axis.grid(alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=150)


def _look_up(row: Mapping[str, Any], name: str) -> Estimate | None:
    name, _, key = name.partition(".")
    value: Any = row.get(name)
    return value.get(key) if key and value is not None else value


def _line(strategy: Strategy) -> tuple[str, int]:
    """The line that a strategy is a point of, and the number at the point."""
    line, number = _line_within_frames(strategy)
    delay = getattr(strategy, "frame_delay", None)
    return line if delay is None else f"{line}, frame delay {delay}", number


def _line_within_frames(strategy: Strategy) -> tuple[str, int]:
    match strategy:
        case ZipAR():
            lookahead = f", lookahead {strategy.lookahead}" if strategy.lookahead > 1 else ""
            wave = ", row 1 in the wave" if strategy.first_row == "wave" else ""
            nats = f", {strategy.nats:g} nats" if strategy.nats is not None else ""
            return f"ZipAR by window{lookahead}{nats}{wave}", strategy.window
        case AdaptiveZipAR():
            wave = ", row 1 in the wave" if strategy.first_row == "wave" else ""
            return f"adaptive by window{wave}", strategy.min_window
        case CoupledJacobi():
            return f"Jacobi by lookahead{f', window {strategy.window}' if strategy.window else ''}", strategy.lookahead
        case _:
            return names.name(strategy), 1


def _contact_sheet(clip: np.ndarray) -> np.ndarray:
    """Frames, uint8 (frames, height, width, 3), row by row in about a square."""
    gap = -(-clip.shape[2] // 32)
    clip = np.pad(clip, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    frames, height, width, _ = clip.shape
    across = math.ceil(math.sqrt(frames))
    down = -(-frames // across)
    blank = np.full((across * down - frames, height, width, 3), 255, np.uint8)
    sheet = np.concatenate([clip, blank]).reshape(down, across, height, width, 3)
    return sheet.transpose(0, 2, 1, 3, 4).reshape(down * height, across * width, 3)[:-gap, :-gap]


def save_sheet(titles: Sequence[str], pictures: Sequence[np.ndarray], prompts: Sequence[str], path: Path) -> None:
    """Images, or contact sheets of clips, side by side: a row a strategy, a column a prompt.

    Args:
        titles: one a row.
        pictures: uint8 (n, height, width, 3) or (n, frames, height, width, 3) each.
        prompts: those of the columns, at least n.
    """
    columns = len(pictures[0])
    figure = Figure((1.3 * columns + 1, 1.3 * len(pictures) + 1), layout="constrained")
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for title, images, row in zip(titles, pictures, grid, strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image if image.ndim == 3 else _contact_sheet(image))
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(title, fontsize=8)
    for axes, text in zip(grid[0], prompts, strict=False):
        axes.set_title("\n".join(textwrap.wrap(text, 20)), fontsize=6, parse_math=False)
    figure.savefig(path, dpi=150)
