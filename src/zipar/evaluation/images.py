"""Pictures as uint8 arrays: given, or from the files of a folder."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zipar.arguments import refusal
from zipar.checkpoints.files import check_readable, is_directory
from zipar.errors import ZipARError, reason

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def checked(images: np.ndarray | Tensor, side: int | None = None) -> Tensor:
    """``images`` as a tensor.

    Raises:
        ZipARError: they are not uint8 (n, height, width, 3), or height and width are not ``side``.
    """
    wanted = "(n, height, width, 3)" if side is None else f"(n, {side}, {side}, 3)"
    try:
        images = torch.as_tensor(images)
    except Exception as error:  # of numpy and torch, over whatever is no array
        raise refusal("images", images, f"an array, uint8 {wanted}") from error
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or (side and shape[1:3] != (side, side)):
        raise ZipARError(f"images should be uint8 {wanted}, not {images.dtype} {shape}")
    return images


def pictures(folder: Path) -> list[Path]:
    """The picture files in a folder and in those below it, sorted; told by their suffixes.

    Raises:
        ZipARError: there is no such folder, or one that may not be looked into.
    """
    if not is_directory(folder):
        raise ZipARError(f"{folder} is no folder: give one that holds pictures")
    paths = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=_refuse) for name in names)
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())


def _refuse(error: OSError) -> None:
    raise ZipARError(f"{error.filename} cannot be read: {reason(error)}") from error


def read(path: Path) -> np.ndarray:
    """A picture file, uint8 (height, width, 3).

    Raises:
        ZipARError: it cannot be read.
    """
    check_readable(path, f"{path} is no picture: it has vanished")
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # decoders raise all kinds over damaged bytes
        raise ZipARError(f"{path} is no picture that can be read ({error}): mend it, or take it away") from error
