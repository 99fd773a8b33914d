"""What users give, checked: each function returns the value in the one form that the library uses, or names it."""

import math
import numbers
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from itertools import islice
from pathlib import Path
from typing import Any

from zipar.errors import ZipARError

LARGEST = 2**31 - 1
"""No count here is larger: sums of two of them are far from where 64 bits end."""
_LARGEST_FLOAT = 3.4e38
"""Numbers end as float32."""
_SHOWN = 60
_LISTED = 100_000
"""More than anything takes: some iterators never end."""


def refusal(name: str, value: Any, allowed: str) -> ZipARError:
    """The error over an argument, which says what is allowed."""
    return ZipARError(f"{name} {shown(value)} is not possible: use {allowed}")


def shown(value: Any) -> str:
    """``value`` in few characters, all of which can be printed."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of the value's own class; and Python writes no integers of thousands of digits
        text = f"of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def whole(name: str, value: Any, least: int | None = 0, most: int = LARGEST) -> int:
    """A whole number from ``least`` to ``most``, also numpy's; with None for ``least`` of any size.

    Raises:
        ZipARError: it is none, such as 2.0, "2" or True.
    """
    allowed = "a whole number" if least is None else f"a whole number, {least} or more"
    if most < LARGEST:
        allowed = f"a whole number from {least} to {most}"
    try:
        number = operator.index(value)
    except Exception as error:  # TypeError, but arrays and tensors have others too
        raise refusal(name, value, allowed) from error
    if isinstance(value, bool) or (least is not None and number < least):
        raise refusal(name, value, allowed)
    if least is not None and number > most:
        raise refusal(name, value, allowed if most < LARGEST else f"{most} at most")
    return number


def real(name: str, value: Any, fits: Callable[[float], bool], allowed: str) -> float:
    """A finite number, also numpy's, that ``fits``.

    Raises:
        ZipARError: it is none, such as "1" or True, or it is not what is ``allowed``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise refusal(name, value, allowed)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= _LARGEST_FLOAT or not fits(number):
        raise refusal(name, value, allowed)
    return number


def level(confidence: Any) -> float:
    """The confidence of an interval.

    Raises:
        ZipARError: it is none.
    """
    return real("confidence", confidence, lambda x: 0 < x < 1, "a number above 0 and below 1, such as 0.95")


def flag(name: str, value: Any) -> bool:
    """True or False, also numpy's.

    Raises:
        ZipARError: it is neither.
    """
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # numpy's, of version 2 and 1
        raise refusal(name, value, "True or False")
    return bool(value)


def choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of several names.

    Raises:
        ZipARError: it is none of them.
    """
    if not isinstance(value, str) or value not in allowed:
        raise refusal(name, value, " or ".join(map(repr, allowed)))
    return value


def text(name: str, value: Any) -> str:
    """A text, as UTF-8 can hold it.

    Raises:
        ZipARError: it is none, or holds bytes that could not be decoded.
    """
    if not isinstance(value, str):
        raise refusal(name, value, "a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise refusal(name, value, "text in UTF-8, for it holds bytes or halves of characters that are none")
    return value


def path(name: str, value: Any) -> Path:
    """A path.

    Raises:
        ZipARError: it is none.
    """
    try:
        held = os.fspath(value)
    except Exception as error:  # TypeError, or one of the value's own
        raise refusal(name, value, "a path") from error
    if not isinstance(held, str) or "\0" in held:
        raise refusal(name, value, "a path")
    return Path(held)


def instance(name: str, value: Any, kind: type[Any], allowed: str) -> Any:
    """An object of a class.

    Raises:
        ZipARError: it is of another.
    """
    if not isinstance(value, kind):
        raise refusal(name, value, allowed)
    return value


def function(name: str, value: Any) -> Any:
    """What can be called.

    Raises:
        ZipARError: it cannot.
    """
    if not callable(value):
        raise refusal(name, value, "a function")
    return value


def listed(value: Any) -> list[Any] | None:
    """What is in a list, a tuple, an array or what else yields one after the other; None of a single value."""
    single = str | bytes | bytearray | Mapping | Set | type
    if isinstance(value, single) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return None
    return list(islice(value, _LISTED))


def keep(held: Any, **fields: Any) -> None:
    """Set fields of a frozen dataclass to what they were checked to be."""
    for name, value in fields.items():
        object.__setattr__(held, name, value)
