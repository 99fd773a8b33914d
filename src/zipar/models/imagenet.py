"""The 1,000 ImageNet classes, by number and by name."""

import difflib
from functools import cache
from pathlib import Path

from zipar.arguments import shown
from zipar.errors import ZipARError


def imagenet_class(prompt: str, classes: int) -> int:
    """The class that ``prompt`` stands for: a number below ``classes`` or, of 1,000 classes, an ImageNet name.

    Raises:
        ZipARError: no such class, or a name that several classes share.
    """
    text = prompt.strip().lower()
    if text.isdecimal():
        if len(text) < 10 and int(text) < classes:  # Python reads no integers of thousands of digits
            return int(text)
        raise ZipARError(f"class {shown(text)} is not known: the model has classes 0 to {classes - 1}")
    if classes != len(_lines()):
        raise ZipARError(f"prompt {prompt!r}: this class-conditional model takes a class number, 0 to {classes - 1}")
    found = _names().get(text, [])
    if len(found) == 1:
        return found[0]
    if found:
        meanings = "; ".join(f"{number}: {_lines()[number]}" for number in found)
        raise ZipARError(f"prompt {prompt!r} names several classes, so give a number ({meanings})")
    close = difflib.get_close_matches(text, _names(), 5) or [name for name in _names() if text in name.split()][:5]
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise ZipARError(
        f"prompt {prompt!r} is no ImageNet class: {hint}Class-conditional models take an ImageNet name or a number, "
        "0 to 999; `zipar prompts` lists them"
    )


@cache
def _lines() -> list[str]:
    return (Path(__file__).parent / "imagenet.txt").read_text(encoding="utf-8").splitlines()


@cache
def _names() -> dict[str, list[int]]:
    names: dict[str, list[int]] = {}
    for number, line in enumerate(_lines()):
        for name in {line, *line.split(", ")}:
            names.setdefault(name.lower(), []).append(number)
    return names
