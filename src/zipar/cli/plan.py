"""``zipar plan``: the schedule of a decoding, before it runs."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipar.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from zipar.decoding.strategy import Strategy
    from zipar.grid import TokenGrid

WIDEST = 32
"""Tokens, rows or columns, of the largest grid that is drawn."""


def plan(
    model: options.Model = "emoji",
    window: options.Window = None,
    lookahead: options.Lookahead = None,
    nats: options.Nats = None,
    frame_delay: options.FrameDelay = None,
    size: options.Size = None,
    frames: options.Frames = None,
    given_frames: Annotated[
        int,
        typer.Option(
            min=0,
            max=options.MOST_FRAMES,
            metavar="NUMBER",
            help="How many of them are given.",
            rich_help_panel="Clips",
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show how many forward passes an image or a clip will take, and how many tokens each brings.

    No weights are loaded. zipar:8 finishes row 0 before row 1 starts; zipar:8:wave does not. The frames of a clip come
    one after the other, or with zipar:8@16 each 16 passes after the one before; unless told otherwise a frame delay of
    as many passes as a row has tokens is shown.
    """
    wanted = options.parse_size(size)

    from zipar.cli.session import grids_of
    from zipar.cli.tables import show
    from zipar.decoding import names
    from zipar.decoding.raster import Raster
    from zipar.decoding.zipar import ZipAR
    from zipar.models.auto import outline
    from zipar.models.base import VideoModel

    drafted = names.make("zipar", window, lookahead, nats=nats)
    assert isinstance(drafted, ZipAR)
    zipar = replace(drafted, lookahead=1, nats=None)
    outlined = outline(model)
    height, width = wanted or outlined.image_size
    grids = grids_of(outlined, (height, width), frames, given_frames)
    clip, tokens = isinstance(outlined, VideoModel), sum(grid.tokens for grid in grids)
    grid = grids[0] if clip else grids[-1]
    shown: list[Strategy] = [Raster()]
    for each in dict.fromkeys([zipar, drafted]):
        wave = replace(each, first_row="wave")
        shown += [each, wave]
        if clip or frame_delay:
            shown.append(replace(wave, frame_delay=frame_delay or grid.columns))
    rows: list[dict[str, Any]] = []
    for strategy in shown:
        passes = sum(strategy.passes(each) for each in grids)
        fewest = sum(strategy.fewest_passes(each) for each in grids)
        rows.append(
            {
                "strategy": names.name(strategy),
                "forward_passes": passes,
                "fewest_passes": fewest,
                "reduction": 1 - passes / tokens,
                "tokens_per_pass": tokens / passes,
            }
        )
    if as_json:
        shape = {"frames": grid.frames, "rows": grid.rows, "columns": grid.columns, "tokens": grid.tokens}
        record = {"model": model, "size": [height, width], "grid": shape, "strategies": rows}
        if clip or len(grids) > 1:
            fields = ("frames", "given", "tokens") if clip else ("rows", "columns", "tokens")
            record["decodings"] = [{field: getattr(each, field) for field in fields} for each in grids]
        print(json.dumps(record, indent=2))
        return
    print(f"{height}x{width} pixels (height x width), {_tokens(grids, clip)}")
    show(
        ["strategy", "forward passes", "reduction", "tokens a pass"],
        [
            [
                str(row["strategy"]),
                _range("{}", row["fewest_passes"], row["forward_passes"]),
                _range("{:.1%}", *(1 - passes / tokens for passes in (row["forward_passes"], row["fewest_passes"]))),
                _range("{:.2f}", *(tokens / passes for passes in (row["forward_passes"], row["fewest_passes"]))),
            ]
            for row in rows
        ],
    )
    if drafted != zipar:
        print("Ranges: the passes depend on the image, on how many drafts come true and how likely its tokens are.")
    if max(grid.rows, grid.columns) <= WIDEST:
        drawn = replace(zipar, first_row="wave", frame_delay=frame_delay or grid.columns) if clip else zipar
        _draw(drawn.timetable(grid), names.name(drawn))


def _tokens(grids: "Sequence[TokenGrid]", clip: bool) -> str:
    """How many there are, in words."""
    if not clip:
        return " and ".join(f"{grid.rows} x {grid.columns}" for grid in grids) + " tokens"
    first, *others = grids
    words = f"{first.rows} x {first.columns} tokens"
    if first.frames == 1 and not others:
        return words
    words = f"{first.frames} frames of {words}"
    if first.given:
        words += f", {first.given} of them given"
    if others:
        words += f"; then {len(others)} decoding{'s that go' if len(others) > 1 else ' that goes'} on from there"
    return words


def _range(form: str, low: float, high: float) -> str:
    return form.format(low) if low == high else f"{form.format(low)} to {form.format(high)}"


def _draw(born: "Tensor", name: str) -> None:
    """The wave at the middle of the decoding; ``born`` is (frames, rows, columns)."""
    from rich.text import Text

    from zipar.cli.terminal import console

    screen = console()
    marks = ("::", "##", ". ") if screen.options.ascii_only else ("▒▒", "██", "· ")
    now = int(born.max()) // 2
    done, fresh, waiting = zip(marks, ("dim", "magenta", "dim"), strict=True)
    picture = Text(f"{name}, pass {now + 1}: ").append(*fresh).append(" this pass  ").append(*done).append(" decoded  ")
    picture.append(*waiting).append("to come\n")
    across = max(screen.width // (2 * born.shape[2] + 2), 1)
    for frames in born.split(across):
        for row in frames.transpose(0, 1).tolist():
            picture.append("\n")
            for part in row:
                picture.append("  ")
                for pass_ in part:
                    picture.append(*(done if pass_ < now else fresh if pass_ == now else waiting))
        if len(born) > across:
            picture.append("\n")
    screen.print(picture)
