"""Strategies by name: ``raster``, ``zipar``, ``zipar:WINDOW``, ``zipar:WINDOW:FIRST_ROW``."""

from zipar.decoding.raster import Raster
from zipar.decoding.strategy import StaticStrategy
from zipar.decoding.zipar import ZipAR
from zipar.errors import ZipARError


def parse(text: str) -> StaticStrategy:
    """The strategy that ``text`` names.

    Raises:
        ZipARError: there is none of that name, or its window or first row is not possible.
    """
    kind, *arguments = text.strip().lower().split(":")
    if kind == "raster" and not arguments:
        return Raster()
    if kind == "zipar" and len(arguments) <= 2:
        return zipar(*arguments)
    raise ZipARError(f"strategy {text!r} is unknown: use raster, zipar, zipar:WINDOW or zipar:WINDOW:FIRST_ROW")


def zipar(window: int | str | None = None, first_row: str | None = None) -> ZipAR:
    """ZipAR, with its own defaults for what is None."""
    given: dict[str, int | str] = {}
    if window is not None:
        try:
            given["window"] = int(window)
        except ValueError:
            raise ZipARError(f"window {window!r} is no number: use 1 or more, as in zipar:8") from None
    if first_row is not None:
        given["first_row"] = first_row
    return ZipAR(**given)  # type: ignore[arg-type]  # checked there


def name(strategy: StaticStrategy) -> str:
    """What ``parse`` takes for ``strategy``."""
    if not isinstance(strategy, ZipAR):
        return "raster"
    return f"zipar:{strategy.window}" + (f":{strategy.first_row}" if strategy.first_row != ZipAR.first_row else "")


def title(strategy: StaticStrategy) -> str:
    """``strategy`` as pictures call it."""
    if not isinstance(strategy, ZipAR):
        return "Raster order"
    return f"ZipAR, window {strategy.window}" + (", wave" if strategy.first_row == "wave" else "")
