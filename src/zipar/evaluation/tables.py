"""The rows of a report as tables."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zipar.evaluation.report import Estimate

_NONE = "–"


def _plain(form: str) -> Callable[[Any], str]:
    return form.format


def _estimate(form: str, scale: float = 1) -> Callable[[Estimate], str]:
    return lambda estimate: "{} [{}, {}]".format(*(form.format(scale * value) for value in estimate))


_FORMS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "strategy": ("strategy", _plain("{}")),
    "forward_passes": ("forward passes", _plain("{:.1f}")),
    "fewer": ("fewer", _plain("{:.1%}")),
    "slots_evaluated": ("slots evaluated", _plain("{:.0f}")),
    "rejections": ("rejections", _plain("{:.1f}")),
    "seconds": ("seconds an image", _plain("{:.3g}")),
    "images_per_second": ("images a second", _plain("{:.3g}")),
    "speedup": ("faster", _plain("{:.2f}x")),
    "nats": ("nats a token", _estimate("{:.3f}")),
    "gap": ("fidelity gap (nats)", _estimate("{:+.3f}")),
    "outside": ("outside the filters", _plain("{:.1%}")),
    "fid": ("FID", _estimate("{:.1f}")),
    "fid_ratio": ("FID / raster's", _estimate("{:.2f}")),
    "accuracy": ("% right", _estimate("{:.1f}", 100)),
    "accuracy_difference": ("against raster (points)", _estimate("{:+.1f}", 100)),
    "clip": ("CLIP score", _estimate("{:.2f}")),
    "clip_difference": ("CLIP score, against raster", _estimate("{:+.2f}")),
}
"""Title and form of each figure, in the order of columns."""


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures that ``rows`` have; accuracies as ``accuracy.object``."""
    last = rows[-1]
    return [
        column
        for name in _FORMS
        if name in last
        for column in ([f"{name}.{key}" for key in last[name]] if isinstance(last[name], dict) else [name])
    ]


def cells(rows: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Titles, and the cells of each row, of the ``chosen`` columns; 95 % intervals in brackets."""
    titles = []
    for column in chosen:
        name, _, key = column.partition(".")
        titles.append(f"{key}, {_FORMS[name][0]}" if key else _FORMS[name][0])
    return titles, [[_cell(row, column) for column in chosen] for row in rows]


def _cell(row: Mapping[str, Any], column: str) -> str:
    name, _, key = column.partition(".")
    value = row.get(name, {}).get(key) if key else row.get(name)
    return _NONE if value is None else _FORMS[name][1](value)


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
