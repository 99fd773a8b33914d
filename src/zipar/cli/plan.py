"""``zipar plan``: the schedule of a decoding, before it runs."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from zipar.cli import options

if TYPE_CHECKING:
    from torch import Tensor

WIDEST = 32
"""Tokens, rows or columns, of the largest grid that is drawn."""


def plan(
    model: options.Model = "emoji",
    window: options.Window = None,
    size: options.Size = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show how many forward passes an image will take, and how many tokens each brings.

    No weights are loaded. zipar:8 finishes row 0 before row 1 starts; zipar:8:wave does not.
    """
    wanted = options.parse_size(size)

    from zipar.cli import strategies
    from zipar.cli.outline import outline
    from zipar.cli.tables import show
    from zipar.decoding.raster import Raster

    zipar = strategies.zipar(window)
    outlined = outline(model)
    height, width = wanted or outlined.image_size
    grid = outlined.grid(height, width)
    rows = []
    for strategy in (Raster(), zipar, strategies.zipar(window, "wave")):
        born = strategy.timetable(grid).flatten()
        passes = strategy.passes(grid)
        rows.append(
            {
                "strategy": strategies.name(strategy),
                "forward_passes": passes,
                "reduction": 1 - passes / Raster().passes(grid),
                "tokens_per_pass": grid.tokens / passes,
                "most_tokens_per_pass": int(born.bincount().max()),
            }
        )
    if as_json:
        shape = {"frames": grid.frames, "rows": grid.rows, "columns": grid.columns, "tokens": grid.tokens}
        print(json.dumps({"model": model, "size": [height, width], "grid": shape, "strategies": rows}, indent=2))
        return
    print(f"{height}x{width} pixels (height x width), {grid.rows} x {grid.columns} tokens")
    show(
        ["strategy", "forward passes", "reduction", "tokens a pass", "at most"],
        [
            [
                str(row["strategy"]),
                str(row["forward_passes"]),
                f"{row['reduction']:.1%}",
                f"{row['tokens_per_pass']:.2f}",
                str(row["most_tokens_per_pass"]),
            ]
            for row in rows
        ],
    )
    if max(grid.rows, grid.columns) <= WIDEST:
        _draw(zipar.timetable(grid)[0], strategies.name(zipar))


def _draw(born: "Tensor", name: str) -> None:
    """The wave at the middle of the decoding."""
    from rich.console import Console
    from rich.text import Text

    now = int(born.max()) // 2
    done, fresh, waiting = ("▒▒", "dim"), ("██", "magenta"), ("· ", "dim")
    picture = Text(f"{name}, pass {now + 1}: ").append(*fresh).append(" this pass  ").append(*done).append(" decoded  ")
    picture.append(*waiting).append("to come\n")
    for row in born.tolist():
        picture.append("\n  ")
        for pass_ in row:
            picture.append(*(done if pass_ < now else fresh if pass_ == now else waiting))
    Console().print(picture)
