"""Pictures as uint8 arrays: given, or from the files of a folder; and the features of a folder's."""

import os
from collections.abc import Callable, Collection
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zipar.arguments import refusal
from zipar.checkpoints.files import check_readable, is_directory
from zipar.errors import ZipARError, reason
from zipar.videos import FILMS, Video

BATCH = 32
"""Images that go through a network of features at a time."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CLIP_SUFFIXES = (".gif", ".webp", *FILMS)


def checked(images: np.ndarray | Tensor, side: int | None = None, frames: int = 1) -> Tensor:
    """``images``, or clips where there is more than one frame, as a tensor.

    Raises:
        ZipARError: they are not uint8 (n, height, width, 3), or (n, frames, height, width, 3) if ``frames`` is above 1;
            or height and width are not ``side``.
    """
    kind, before = ("clips", [frames]) if frames > 1 else ("images", [])
    sides = ["height", "width"] if side is None else [side, side]
    wanted = f"(n, {', '.join(map(str, [*before, *sides]))}, 3)"
    try:
        images = torch.as_tensor(images)
    except Exception as error:  # of numpy and torch, over whatever is no array
        raise refusal(kind, images, f"an array, uint8 {wanted}") from error
    shape = tuple(images.shape)
    fits = len(shape) == 4 + len(before) and shape[-1] == 3 and list(shape[1:-3]) == before
    if images.dtype != torch.uint8 or not fits or (side and shape[-3:-1] != (side, side)):
        raise ZipARError(f"{kind} should be uint8 {wanted}, not {images.dtype} {shape}")
    return images


def pictures(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """The picture files in a folder and in those below it, sorted; told by their suffixes.

    Raises:
        ZipARError: there is no such folder, or one that may not be looked into.
    """
    if not is_directory(folder):
        raise ZipARError(f"{folder} is no folder: give one that holds pictures")
    paths = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=_refuse) for name in names)
    return sorted(path for path in paths if path.suffix.lower() in suffixes and path.is_file())


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


def read_clip(path: Path) -> np.ndarray:
    """A clip, uint8 (frames, height, width, 3).

    Raises:
        ZipARError: it cannot be read.
    """
    return np.stack([np.asarray(frame) for frame in Video.load(path).frames])


def folder_features(folder: Path, features: Callable[[np.ndarray], Tensor], clips: bool = False) -> Tensor:
    """Features (n, d), on the CPU, of all pictures (png, jpg, webp) in a folder and in those below it, in any order.

    Args:
        folder: holds at least 2 pictures; they may differ in size.
        features: uint8 (n, height, width, 3) -> (n, d), such as ``Inception().features``.
        clips: the folder holds clips (mp4, gif, webp ...), and ``features`` takes uint8 (n, frames, height, width, 3).

    Raises:
        ZipARError: there is no such folder, it holds less than 2 pictures, or one of them cannot be read.
    """
    suffixes = CLIP_SUFFIXES if clips else SUFFIXES
    paths = pictures(folder, suffixes)
    if len(paths) < 2:
        held = f"only {paths[0].name}" if paths else "none"
        wanted = "clips (mp4, gif, webp or another film)" if clips else "pictures (png, jpg or webp)"
        raise ZipARError(f"{folder} should hold at least 2 {wanted}, but holds {held}")
    found = []
    for first in range(0, len(paths), BATCH):
        # a set has no order: pictures of one size can go together
        images = sorted(map(read_clip if clips else read, paths[first : first + BATCH]), key=np.shape)
        found += [features(np.stack(list(alike))).cpu() for _, alike in groupby(images, key=np.shape)]
    return torch.cat(found)
