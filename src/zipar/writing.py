"""Files and directories that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from zipar.errors import ZipARError, reason


def write(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Write files, all or none: each is written under another name beside its place, then they are moved there.

    Missing directories are made. A link stays one: what it points to is written.

    Args:
        files: what writes each file, given the path to write to, whose suffix is that of the file.

    Raises:
        ZipARError: a file cannot be written.
    """
    written = {}
    with ExitStack() as stack:
        for path, save in files.items():
            with naming(path):
                scratch = stack.enter_context(_beside(target(path))) / f"file{path.suffix}"
                save(scratch)
                _as_new(scratch)
                written[path] = scratch
        for path, scratch in written.items():
            with naming(path):
                scratch.replace(target(path))


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A scratch directory that becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        ZipARError: ``path`` exists and is not an empty directory, or it cannot be written.
    """
    with naming(path):
        place = Path(os.path.realpath(path))
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ZipARError(f"{path} exists already: give a new directory, or remove it first")
        with _beside(place) as beside:
            scratch = beside / "new"
            scratch.mkdir()
            yield scratch
            for file in scratch.rglob("*"):
                if file.is_file():
                    _as_new(file)
            if place.exists():
                place.rmdir()  # empty, but not every system puts another in its place
            scratch.rename(place)


def target(path: Path) -> Path:
    """Where what is written to ``path`` belongs: links are followed.

    Raises:
        ZipARError: something is there that is no file, and must not be replaced by one.
        OSError: the system does not let one look.
    """
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise ZipARError(f"{path} is a link that leads nowhere: give the name of a file")
    if place.is_dir():
        raise ZipARError(f"{path} is a directory: give the name of a file")
    if place.exists() and not place.is_file():
        raise ZipARError(f"{path} is a device or the like: give the name of a file")
    return place


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A directory beside ``path`` that nobody else uses, on its file system; all that was made vanishes on errors."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".zipar-", dir=path.parent))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # by now somebody else's too
                parent.rmdir()
        raise


def _as_new(file: Path) -> None:
    """Give ``file`` the mode of a new one here: safetensors lets nobody but the owner read what it writes."""
    probe = file.with_name(".mode")
    probe.touch()
    file.chmod(probe.stat().st_mode)
    probe.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what stands in the way of writing ``path`` into an error that names it.

    Raises:
        ZipARError: something did.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ZipARError(f"{path} cannot be written: {reason(error)}") from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises nothing more specific
            raise
        raise ZipARError(f"{path} cannot be written: {reason(error)}") from error
