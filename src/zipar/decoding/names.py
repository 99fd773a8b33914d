"""Strategies by name: ``raster``, ``zipar:WINDOW:LOOKAHEAD:NATS:FIRST_ROW@FRAME_DELAY``, ``jacobi:LOOKAHEAD``..."""

from dataclasses import fields
from typing import Any

from zipar.arguments import refusal, shown
from zipar.decoding.adaptive import AdaptiveZipAR
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.raster import Raster
from zipar.decoding.strategy import Strategy
from zipar.decoding.zipar import ZipAR
from zipar.errors import ZipARError

STRATEGIES: dict[str, type[Any]] = {
    "raster": Raster,
    "zipar": ZipAR,
    "adaptive": AdaptiveZipAR,
    "jacobi": CoupledJacobi,
}
DEFAULT = ZipAR(12, 16, "wave", 4.0)
"""Of pipelines and accelerated models; docs/quality.md has what it does to images of models sure and unsure."""
FORMS = (
    "raster",
    "zipar[:WINDOW[:LOOKAHEAD[:NATS]]][:FIRST_ROW][@FRAME_DELAY]",
    "adaptive[:WINDOW][:FIRST_ROW][@FRAME_DELAY]",
    "jacobi[:LOOKAHEAD[:WINDOW]]",
)
"""What ``parse`` takes; numbers are in the order of each strategy's fields."""


def parse(text: str) -> Strategy:
    """The strategy that ``text`` names.

    Raises:
        ZipARError: there is none of that name, or its window, lookahead or first row is not possible.
    """
    if not isinstance(text, str):
        raise refusal("strategy", text, f"a text: {', '.join(FORMS)}")
    words, at, delay = text.strip().lower().partition("@")
    kind, *arguments = words.split(":")
    names = _numbers(kind) if kind in STRATEGIES else []
    given: dict[str, str] = {"frame_delay": delay} if at else {}
    if arguments and not arguments[-1][:1].isdecimal() and "first_row" in _fields(kind):
        given["first_row"] = arguments.pop()
    if kind not in STRATEGIES or len(arguments) > len(names) or not given.keys() <= _fields(kind).keys():
        raise ZipARError(f"strategy {shown(text)} is unknown: use {', '.join(FORMS)}")
    return make(kind, **given, **dict(zip(names, arguments, strict=False)))


def strategy_of(given: Strategy | str | None) -> Strategy:
    """A strategy, or the one that a text names; ``DEFAULT`` where none is given.

    Raises:
        ZipARError: it is neither.
    """
    if isinstance(given, str):
        return parse(given)
    if given is not None and not isinstance(given, Strategy):
        raise refusal("strategy", given, "one such as zipar.ZipAR(8), or its name, such as 'zipar:8'")
    return given or DEFAULT


def make(
    kind: str,
    window: int | str | None = None,
    lookahead: int | str | None = None,
    first_row: str | None = None,
    nats: float | str | None = None,
    frame_delay: int | str | None = None,
) -> Strategy:
    """The strategy of that kind, with its own defaults for what is None.

    Raises:
        ZipARError: something is given that it does not have, or that is not possible.
    """
    given: dict[str, Any] = {}
    asked = {
        "window": window,
        "lookahead": lookahead,
        "first_row": first_row,
        "nats": nats,
        "frame_delay": frame_delay,
    }
    for name, value in asked.items():
        if value is None:
            continue
        if name not in _fields(kind):
            raise ZipARError(f"{name.replace('_', ' ')} {value} does not belong to strategy {kind}: leave it out")
        read: Any = {"first_row": str, "nats": float}.get(name, int)
        try:
            given[_fields(kind)[name]] = read(value) if isinstance(value, str) else value
        except ValueError:
            raise ZipARError(f"{name} {shown(value)} is no number: use 1 or more, as in zipar:8") from None
    strategy: Strategy = STRATEGIES[kind](**given)
    return strategy


def name(strategy: Strategy) -> str:
    """What ``parse`` takes for ``strategy``; what is as by default is left out where it can be."""
    kind = next(kind for kind, cls in STRATEGIES.items() if isinstance(strategy, cls))
    numbers = [getattr(strategy, _fields(kind)[each]) for each in _numbers(kind)]
    while len(numbers) > 1 and numbers[-1] == getattr(type(strategy), _fields(kind)[_numbers(kind)[len(numbers) - 1]]):
        numbers.pop()
    first_row = getattr(strategy, "first_row", None)
    tail = [first_row] if first_row is not None and first_row != type(strategy).first_row else []  # type: ignore[attr-defined]
    delay = getattr(strategy, "frame_delay", None)
    at = "" if delay is None else f"@{delay}"
    return ":".join([kind, *(str(number).removesuffix(".0") for number in numbers), *tail]) + at


def title(strategy: Strategy) -> str:
    """``strategy`` as pictures call it."""
    match strategy:
        case ZipAR():
            words = f"ZipAR, window {strategy.window}"
            if strategy.nats is not None:  # shorter, to leave room for the speedup
                words = f"ZipAR, {strategy.nats:g} nats"
            elif strategy.lookahead > 1:
                words = f"Window {strategy.window}, lookahead {strategy.lookahead}"
        case AdaptiveZipAR():
            words = f"Adaptive, window {strategy.min_window}"
        case CoupledJacobi():
            words = f"Jacobi, lookahead {strategy.lookahead}"
            words += f", window {strategy.window}" if strategy.window else ""
        case _:
            words = "Raster order"
    words += ", wave" if getattr(strategy, "first_row", None) == "wave" else ""
    delay = getattr(strategy, "frame_delay", None)
    return words if delay is None else f"{words.removeprefix('ZipAR, ').capitalize()}, delay {delay}"


def _fields(kind: str) -> dict[str, str]:
    """What a user calls a strategy's fields -> what they are called."""
    cls = STRATEGIES.get(kind)
    return {} if cls is None else {field.name.removeprefix("min_"): field.name for field in fields(cls)}


def _numbers(kind: str) -> list[str]:
    return [each for each in _fields(kind) if each not in ("first_row", "budget", "frame_delay")]
