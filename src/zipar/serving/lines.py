"""The file of a batch job: a prompt a line, as JSON."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zipar.arguments import shown
from zipar.errors import ZipARError, reason

FIELDS = (
    *("prompt", "negative_prompt", "seed", "size", "strategy"),
    *("guidance_scale", "temperature", "top_k", "top_p", "min_p"),
)
"""Of a line, besides its id: the images API's own."""
OF_THE_JOB = ("n", "model", "output_format", "output_compression")
"""Of the images API, but the same for all lines here."""
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
"""Ids name files."""


class Line(NamedTuple):
    """What one image is to be."""

    number: int
    """Of the line, from 1 on."""
    id: str
    fields: dict[str, Any]
    error: str | None = None
    """What is wrong with the line."""


@dataclass(frozen=True)
class PromptFile:
    """A file of lines; it is read anew each time, and never held."""

    path: Path
    shard: tuple[int, int] = (1, 1)
    """(i, n): of each n lines the i-th is ours."""

    def __iter__(self) -> Iterator[Line]:
        """The lines of the shard.

        Raises:
            ZipARError: the file cannot be read, or an id names no file.
        """
        mine, shards = self.shard
        return (line for line in self._all() if (line.number - mine) % shards == 0)

    def check(self) -> set[str]:
        """Read all ids, those of other shards too; returns the shard's.

        Raises:
            ZipARError: the file is none of prompts, two lines have one id, or an id names no file.
        """
        numbers: dict[str, int] = {}
        good, wrong = 0, None
        mine, shards = self.shard
        for line in self._all():
            if (first := numbers.setdefault(line.id, line.number)) != line.number:
                raise ZipARError(
                    f"{self.path}: lines {first} and {line.number} have the id {shown(line.id)}: give each its own "
                    "(a line without one has its number)"
                )
            good += line.error is None
            wrong = wrong or line.error
        if not good:
            raise ZipARError(f"{self.path} holds no prompt: {wrong or _WANTED}")
        return {id for id, number in numbers.items() if (number - mine) % shards == 0}

    def _all(self) -> Iterator[Line]:
        try:
            with open(self.path, "rb") as file:
                yield from (_line(number, raw) for number, raw in enumerate(file, 1) if raw.strip())
        except OSError as error:
            raise ZipARError(f"{self.path} cannot be read: {reason(error)}") from error
        except ZipARError as error:
            raise ZipARError(f"{self.path}: {error}") from error


_WANTED = 'write lines such as {"id": "fox-1", "prompt": "a fox", "seed": 7}'


def _line(number: int, raw: bytes) -> Line:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Line(number, str(number), {}, f"line {number} is no JSON ({reason(error)}): {_WANTED}")
    if not isinstance(fields, dict):
        return Line(number, str(number), {}, f"line {number} is no JSON object: {_WANTED}")
    name = fields.get("id")
    name = number if name is None else name
    if isinstance(name, bool) or not isinstance(name, int | str) or not SAFE.fullmatch(str(name)):
        raise ZipARError(
            f"line {number} has the id {shown(name)}, which names no file: use up to 200 of A-Z a-z 0-9 _ . - that "
            "begin with a letter, a digit or _"
        )
    for theirs in OF_THE_JOB:
        if fields.get(theirs) is not None:
            wrong = f"{theirs} {shown(fields[theirs])} is not possible: a line makes one image, as the job says"
            return Line(number, str(name), {}, wrong)
    return Line(number, str(name), {field: fields[field] for field in FIELDS if fields.get(field) is not None})
