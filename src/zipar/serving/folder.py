"""Where the results of a batch job are: images, what was tried, and the manifest.

A process may end at any moment, kill -9 or not, and another take up the job. So an image appears whole or not at all,
under the name of its id; a try is counted before it is made; and a record comes into the manifest after the image.
"""

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from uuid import uuid4

from PIL import Image

from zipar.errors import ZipARError

Record: TypeAlias = dict[str, Any]
"""What became of an id: "file" and how it was made, or "error"."""
PART = ".part"
"""Ends the names of files that are being written."""
KEYWORD = "zipar"
"""Of the text in a PNG that tells how it was made."""


class Folder:
    """The images, and the tries of those that are not there yet; many processes may use it, on many machines."""

    def __init__(self, place: Path) -> None:
        self.place, self.hidden = place, place / ".zipar"

    def make(self) -> None:
        """Make the directory."""
        self.hidden.mkdir(parents=True, exist_ok=True)

    def name(self, id: str) -> str:
        """Of the file of an id."""
        return f"{id}.png"

    def names(self) -> set[str]:
        """Of the files that are there."""
        return {entry.name for entry in os.scandir(self.place)}

    def save(self, record: Record, png: bytes) -> None:
        """Write an image; the record is in its text."""
        self.make()
        part = self.hidden / f"{record['id']}.{uuid4().hex}{PART}"
        try:
            with open(part, "wb") as file:
                file.write(with_text(png, json.dumps(record)))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.place / self.name(record["id"]))
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def record(self, id: str) -> Record | None:
        """What the text of an image tells; None where there is no image of ours."""
        try:
            with Image.open(self.place / self.name(id)) as image:
                record = json.loads(image.info[KEYWORD])
        except (OSError, SyntaxError, KeyError, TypeError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("id") == id else None

    def tries(self, id: str) -> int:
        """How often it was begun: the bytes of a file."""
        try:
            return self._tries(id).stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self, id: str) -> None:
        """Count a try."""
        self.make()
        with open(self._tries(id), "ab") as file:
            file.write(b".")

    def withdraw(self, id: str) -> None:
        """Count it no more: nothing was wrong with it."""
        if (tries := self.tries(id)) > 1:
            os.truncate(self._tries(id), tries - 1)
        else:
            self.forget(id)

    def forget(self, id: str) -> None:
        """Forget the tries: it has a record, or is to be tried anew."""
        self._tries(id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what processes left that ended while they wrote; none may be at it."""
        for part in self.hidden.glob(f"*{PART}"):
            part.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Leave nothing but the results, once there is nothing else."""
        with suppress(OSError):
            self.hidden.rmdir()

    def _tries(self, id: str) -> Path:
        return self.hidden / f"{id}.tries"


class Manifest:
    """A JSON record a line, one an id; of each shard a file of its own, for files are not shared well."""

    def __init__(self, folder: Folder, shard: tuple[int, int] = (1, 1), retry_failed: bool = False) -> None:
        """Take it up where another process left it.

        Args:
            retry_failed: forget what failed.

        Raises:
            ZipARError: another process is at it.
        """
        self.path = folder.place / ("manifest.jsonl" if shard[1] == 1 else "manifest-{}-of-{}.jsonl".format(*shard))
        self.done: set[str] = set()
        """Ids with a record, in the manifest of whatever shard."""
        self.elsewhere: set[str] = set()
        """Those of them that failed in other shards."""
        self.made = self.failed = 0
        """Records of images, and of errors, in this manifest."""
        folder.make()
        self._files = [_locked(self.path)]
        others: dict[str, Record] = {}
        for other in folder.place.glob("manifest*.jsonl"):
            if other != self.path:
                with open(other, "rb") as file:
                    others.update((record["id"], record) for record in _records(file))
        if not others:
            folder.sweep()
        there = folder.names()  # an image comes before its record

        def stands(record: Record) -> bool:
            return record.get("file") in there or ("error" in record and not retry_failed)

        kept = folder.hidden / self.path.name
        with open(self.path, "rb") as file, open(kept, "w+b") as new:
            for record in _records(file):
                if not stands(record):
                    folder.forget(record["id"])
                elif record["id"] not in self.done:
                    self.done.add(record["id"])
                    self._count(record)
                    new.write(_written(record))
        # torn lines are gone, and what has to be made again; the lock goes with the name
        self._files.append(_locked(kept))
        kept.replace(self.path)
        for record in others.values():
            if record["id"] not in self.done and stands(record):
                self.done.add(record["id"])
                if "error" in record:
                    self.elsewhere.add(record["id"])

    def add(self, record: Record) -> None:
        """Write what became of an id."""
        line = _written(record)
        if self._files[-1].write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._count(record)

    def _count(self, record: Record) -> None:
        self.failed += "error" in record
        self.made += "error" not in record

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()


def with_text(png: bytes, text: str) -> bytes:
    """A PNG with ``text``, which is ASCII, under ``KEYWORD`` in place of what was; pixels are as they were."""
    own = b"tEXt" + KEYWORD.encode() + b"\0"
    chunk, place = own + text.encode("ascii"), 8 + 25
    parts = [png[:place], struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))]
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if not png.startswith(own, place + 4):
            parts.append(png[place:end])
        place = end
    return b"".join(parts)


def _written(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _records(file: BinaryIO) -> Iterator[Record]:
    for line in file:
        with suppress(ValueError):  # torn, when a process or a disk came to its end
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("id"), str):
                yield record


def _locked(path: Path) -> BinaryIO:
    """A file that is ours until the process ends, however it does; where the system has no locks, so be it."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ZipARError(f"{path} is being written by another process: wait for it, or end it") from error
    except (ImportError, OSError):
        pass
    return file
