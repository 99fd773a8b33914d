"""Networks that look at images, on clips: frame by frame, then the mean."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor


def framewise(features: Callable[[np.ndarray], Tensor]) -> Callable[[np.ndarray], Tensor]:
    """Features (n, d) of images -> those of clips, uint8 (n, frames, height, width, 3)."""

    def of_clips(clips: np.ndarray) -> Tensor:
        return features(clips.reshape(-1, *clips.shape[2:])).unflatten(0, clips.shape[:2]).mean(1)

    return of_clips


def framewise_score(
    score: Callable[[np.ndarray, Sequence[str]], Tensor],
) -> Callable[[np.ndarray, Sequence[str]], Tensor]:
    """Scores (n,) of images and their prompts -> those of clips, uint8 (n, frames, height, width, 3)."""

    def of_clips(clips: np.ndarray, prompts: Sequence[str]) -> Tensor:
        each = [prompt for prompt in prompts for _ in range(clips.shape[1])]
        return score(clips.reshape(-1, *clips.shape[2:]), each).unflatten(0, clips.shape[:2]).mean(1)

    return of_clips
