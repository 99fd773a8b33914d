"""The rows of a report as tables."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zipar.evaluation.report import Estimate


class _Figure(NamedTuple):
    title: str
    form: str
    scale: float = 1

    def cell(self, value: Any, brief: bool) -> str:
        if not isinstance(value, Estimate):
            return self.form.format(value)
        # rounded lest noise of floats show as a negative zero
        center, low, high = (self.form.format(round(self.scale * bound, 6) + 0.0) for bound in value)
        reach = self.form.replace("+", "").format(self.scale * value.reach)
        return f"{center} ±{reach}" if brief else f"{center} [{low}, {high}]"


_FIGURES = {
    "strategy": _Figure("strategy", "{}"),
    "forward_passes": _Figure("forward passes", "{:.1f}"),
    "fewer": _Figure("fewer", "{:.1%}"),
    "slots_evaluated": _Figure("slots evaluated", "{:.0f}"),
    "rejections": _Figure("rejections", "{:.1f}"),
    "seconds": _Figure("seconds an image", "{:.3g}"),
    "images_per_second": _Figure("images a second", "{:.3g}"),
    "speedup": _Figure("faster", "{:.2f}x"),
    "nats": _Figure("nats a token", "{:.3f}"),
    "gap": _Figure("fidelity gap (nats)", "{:+.3f}"),
    "divergence": _Figure("divergence (nats)", "{:.4f}"),
    "excess": _Figure("surprise excess (nats)", "{:+.3f}"),
    "excess_difference": _Figure("excess, against raster (nats)", "{:+.3f}"),
    "entropy": _Figure("entropy (nats)", "{:.3f}"),
    "outside": _Figure("outside the filters", "{:.1%}"),
    "fid": _Figure("FID", "{:.1f}"),
    "fid_ratio": _Figure("FID / raster's", "{:.2f}"),
    "precision": _Figure("precision", "{:.1%}"),
    "recall": _Figure("recall", "{:.1%}"),
    "accuracy": _Figure("% right", "{:.1f}", 100),
    "accuracy_difference": _Figure("against raster (points)", "{:+.1f}", 100),
    "clip": _Figure("CLIP score", "{:.2f}"),
    "clip_difference": _Figure("CLIP score, against raster", "{:+.2f}"),
}
"""Of each figure, in the order of columns."""


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures that ``rows`` have; accuracies as ``accuracy.object``."""
    last = rows[-1]
    return [
        column
        for name in _FIGURES
        if name in last
        for column in ([f"{name}.{key}" for key in last[name]] if isinstance(last[name], dict) else [name])
    ]


def cells(
    rows: Sequence[Mapping[str, Any]], chosen: Sequence[str], brief: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Titles, and the cells of each row, of the ``chosen`` columns.

    95 % intervals are in brackets or, if ``brief``, half of their width is behind ±.
    """
    figures = [(_FIGURES[name], name, key) for name, _, key in (column.partition(".") for column in chosen)]
    titles = [f"{key}, {figure.title}" if key else figure.title for figure, _, key in figures]

    def cell(row: Mapping[str, Any], figure: _Figure, name: str, key: str) -> str:
        value = row.get(name, {}).get(key) if key else row.get(name)
        return "–" if value is None else figure.cell(value, brief)

    return titles, [[cell(row, *figure) for figure in figures] for row in rows]


def markdown(rows: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> str:
    """A table in markdown."""
    titles, body = cells(rows, chosen)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def jsonable(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` with each ``Estimate`` as an object."""

    def plain(value: Any) -> Any:
        if isinstance(value, Estimate):
            return value._asdict()
        return {name: plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value

    return [plain(row) for row in rows]


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """All figures of ``rows``; the bounds of an ``Estimate`` become columns of their own."""
    flat = [dict(_flatten(row)) for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(flat[-1]))
        writer.writeheader()
        writer.writerows(flat)


def _flatten(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Estimate):
            yield name, value.value
            yield f"{name}_low", value.low
            yield f"{name}_high", value.high
        elif isinstance(value, Mapping):
            yield from _flatten({f"{name}_{key}": each for key, each in value.items()})
        else:
            yield name, value
