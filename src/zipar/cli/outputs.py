"""Output files: checked before the long work starts; and what writes them."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipar.errors import ZipARError
from zipar.writing import naming, target

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from zipar.videos import Video

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FILMS = (".mp4", ".gif")
"""What clips may be written to, besides."""


def check(path: Path | None, *suffixes: str) -> None:
    """Raise where ``path`` could not be written, or its name ends in none of ``suffixes``.

    Raises:
        ZipARError: says what is wrong with it.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ZipARError(f"{path} is of no known kind: use a file name that ends in {' or '.join(suffixes)}")
    with naming(path):
        folder = target(path).parent
        if not folder.is_dir():
            raise ZipARError(f"{path} cannot be written: there is no directory {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ZipARError(f"{path} cannot be written: no permission to write in {folder}")


def check_made(path: Path, clips: bool) -> None:
    """Raise where images, or ``clips``, could not be written to ``path``.

    Raises:
        ZipARError: says what is wrong with it.
    """
    if clips:
        from zipar import videos

        check(path, *videos.SUFFIXES)
        videos.check_writable(path.suffix)
    else:
        check(path, *PICTURES)


def check_directory(path: Path) -> None:
    """Raise where no files could be written into the directory ``path``, which need not be there yet.

    Raises:
        ZipARError: says what is wrong with it.
    """
    there = Path(os.path.realpath(path))
    with naming(path):
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


def picture(image: "Image") -> Callable[[Path], Any]:
    """Writes a picture file, of the kind that its suffix tells."""
    from PIL import Image

    def save(path: Path) -> None:
        # in memory first: Pillow takes no notice of a disk that is full while it writes a JPEG
        buffer = io.BytesIO()
        image.save(buffer, Image.registered_extensions()[path.suffix.lower()])
        path.write_bytes(buffer.getvalue())

    return save


def clip(video: "Video") -> Callable[[Path], Any]:
    """Writes a video file, of the kind that its suffix tells."""
    return lambda path: path.write_bytes(video.encoded(path.suffix))


def array(values: "np.ndarray") -> Callable[[Path], None]:
    """Writes a .npy file."""
    import numpy as np

    def save(path: Path) -> None:
        buffer = io.BytesIO()  # numpy says less of a full disk than the system does
        np.save(buffer, values)
        path.write_bytes(buffer.getvalue())

    return save


def record(values: dict[str, Any]) -> Callable[[Path], Any]:
    """Writes a .json file."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    # names of files may hold bytes that are no UTF-8: a backslash is how JSON has them too
    return lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace")
