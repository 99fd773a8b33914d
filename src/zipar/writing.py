"""Files and directories that are written whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zipar.errors import ZipARError


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A scratch directory that becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        ZipARError: ``path`` exists and is not an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ZipARError(f"{path} exists already: give a new directory, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        scratch.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
