"""``zipar plan``: the schedule of a decoding, before it runs."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipar.cli import options

if TYPE_CHECKING:
    from torch import Tensor

WIDEST = 32
"""Tokens, rows or columns, of the largest grid that is drawn."""


def plan(
    model: options.Model = "emoji",
    window: options.Window = None,
    lookahead: options.Lookahead = None,
    nats: options.Nats = None,
    size: options.Size = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show how many forward passes an image will take, and how many tokens each brings.

    No weights are loaded. zipar:8 finishes row 0 before row 1 starts; zipar:8:wave does not.
    """
    wanted = options.parse_size(size)

    from zipar.cli.tables import show
    from zipar.decoding import names
    from zipar.decoding.raster import Raster
    from zipar.decoding.zipar import ZipAR
    from zipar.models.auto import outline

    drafted = names.make("zipar", window, lookahead, nats=nats)
    assert isinstance(drafted, ZipAR)
    zipar = replace(drafted, lookahead=1, nats=None)
    shown = [Raster(), zipar, replace(zipar, first_row="wave")]
    if drafted != zipar:
        shown += [drafted, replace(drafted, first_row="wave")]
    outlined = outline(model)
    height, width = wanted or outlined.image_size
    grid = outlined.grid(height, width)
    rows: list[dict[str, Any]] = []
    for strategy in shown:
        passes, fewest = strategy.passes(grid), strategy.fewest_passes(grid)
        rows.append(
            {
                "strategy": names.name(strategy),
                "forward_passes": passes,
                "fewest_passes": fewest,
                "reduction": 1 - passes / grid.tokens,
                "tokens_per_pass": grid.tokens / passes,
            }
        )
    if as_json:
        shape = {"frames": grid.frames, "rows": grid.rows, "columns": grid.columns, "tokens": grid.tokens}
        print(json.dumps({"model": model, "size": [height, width], "grid": shape, "strategies": rows}, indent=2))
        return
    print(f"{height}x{width} pixels (height x width), {grid.rows} x {grid.columns} tokens")
    show(
        ["strategy", "forward passes", "reduction", "tokens a pass"],
        [
            [
                str(row["strategy"]),
                _range("{}", row["fewest_passes"], row["forward_passes"]),
                _range(
                    "{:.1%}", *(1 - passes / grid.tokens for passes in (row["forward_passes"], row["fewest_passes"]))
                ),
                _range("{:.2f}", *(grid.tokens / passes for passes in (row["forward_passes"], row["fewest_passes"]))),
            ]
            for row in rows
        ],
    )
    if drafted != zipar:
        print("Ranges: the passes depend on the image, on how many drafts come true and how likely its tokens are.")
    if max(grid.rows, grid.columns) <= WIDEST:
        _draw(zipar.timetable(grid)[0], names.name(zipar))


def _range(form: str, low: float, high: float) -> str:
    return form.format(low) if low == high else f"{form.format(low)} to {form.format(high)}"


def _draw(born: "Tensor", name: str) -> None:
    """The wave at the middle of the decoding."""
    from rich.text import Text

    from zipar.cli.terminal import console

    screen = console()
    marks = ("::", "##", ". ") if screen.options.ascii_only else ("▒▒", "██", "· ")
    now = int(born.max()) // 2
    done, fresh, waiting = zip(marks, ("dim", "magenta", "dim"), strict=True)
    picture = Text(f"{name}, pass {now + 1}: ").append(*fresh).append(" this pass  ").append(*done).append(" decoded  ")
    picture.append(*waiting).append("to come\n")
    for row in born.tolist():
        picture.append("\n  ")
        for pass_ in row:
            picture.append(*(done if pass_ < now else fresh if pass_ == now else waiting))
    screen.print(picture)
