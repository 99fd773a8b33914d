"""Output files: checked before the long work starts, and written whole or not at all."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipar.errors import ZipARError

if TYPE_CHECKING:
    import numpy as np

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check(path: Path | None, *suffixes: str) -> None:
    """Raise where ``path`` could not be written, or its name ends in none of ``suffixes``.

    Raises:
        ZipARError: says what is wrong with it.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ZipARError(f"{path} is of no known kind: use a file name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ZipARError(f"{path} is a directory: give the name of a file")
    if not path.parent.is_dir():
        raise ZipARError(f"{path} cannot be written: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ZipARError(f"{path} cannot be written: no permission to write in {path.parent}")


def check_directory(path: Path) -> None:
    """Raise where no files could be written into the directory ``path``, which need not be there yet.

    Raises:
        ZipARError: says what is wrong with it.
    """
    there = path
    while not there.exists() and there.parent != there:
        there = there.parent
    if not there.is_dir():
        raise ZipARError(f"{path} cannot be made: {there} is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ZipARError(f"{path} cannot be written: no permission to write in {there}")


def numbered(path: Path, count: int) -> list[Path]:
    """``fox.png`` for one file; ``fox-0.png``, ``fox-1.png`` ... for several, padded so that they sort."""
    if count == 1:
        return [path]
    digits = len(str(count - 1))
    return [path.with_name(f"{path.stem}-{i:0{digits}}{path.suffix}") for i in range(count)]


def write(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Write files, all or none: each is written under another name beside its place, then they are moved there.

    Args:
        files: what writes each file, given the path to write to.

    Raises:
        ZipARError: a file cannot be written.
    """
    scratch = {path: path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}") for path in files}
    try:
        for path, save in files.items():
            save(scratch[path])
        for path, written in scratch.items():
            written.replace(path)
    except OSError as error:
        raise ZipARError(f"the results cannot be written: {error}") from error
    finally:
        for written in scratch.values():
            written.unlink(missing_ok=True)


def array(values: "np.ndarray") -> Callable[[Path], None]:
    """Writes a .npy file."""
    import numpy as np

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, values)

    return save


def record(values: dict[str, Any]) -> Callable[[Path], Any]:
    """Writes a .json file."""
    return lambda path: path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
