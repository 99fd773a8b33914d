"""Clips as users have them: frames and their rate."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zipar.arguments import listed, refusal
from zipar.errors import ZipARError


@dataclass(frozen=True)
class Video:
    """A clip."""

    frames: list[Image.Image]
    fps: float
    """Frames a second."""


def frames_of(given: Any, height: int, width: int) -> Tensor:
    """Given frames, images or numbers, as uint8 (frames, height, width, 3).

    Raises:
        ZipARError: they are neither, or of another size.
    """
    allowed = "images of PIL in a list, or a uint8 array (frames, height, width, 3)"
    frames = listed(given.frames if isinstance(given, Video) else given)
    if isinstance(given, Image.Image):
        frames = [given]
    if not frames:
        raise refusal("given", given, allowed)
    pixels = []
    for frame in frames:
        try:
            values = np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame)
        except Exception as error:  # of arrays elsewhere, images that are damaged
            raise refusal("given", frame, allowed) from error
        if values.dtype != np.uint8 or values.ndim != 3 or values.shape[-1] != 3:
            raise refusal("given", frame, allowed)
        if values.shape[:2] != (height, width):
            raise ZipARError(
                f"a given frame of {values.shape[0]}x{values.shape[1]} pixels (height x width) does not fit clips of "
                f"{height}x{width}: scale it to that size"
            )
        pixels.append(values)
    return torch.from_numpy(np.stack(pixels))
