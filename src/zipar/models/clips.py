"""Clips: LlamaGen over the tokens of short videos, frame after frame, each in raster order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zipar.checkpoints.files import build, read_config
from zipar.decoding.decodable import Prefix
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.base import VideoModel
from zipar.models.llamagen import LlamaGen


class Clips(LlamaGen, VideoModel):
    """LlamaGen with a 3-D rotary embedding over frames, grid rows and columns; its image tokenizer is for each frame.

    Rotary embeddings tell how far tokens are apart, but not where they are, and where something moves is found from
    where it was: so places are embedded too. Clips go on past the frames that it was trained on: the last ones are
    given anew.
    """

    family = "clips"

    def __init__(self, *parts: Any, fps: float, **settings: Any) -> None:
        """
        Args:
            parts, settings: see ``LlamaGen``; the decoder's config says of how many frames.
            fps: frames a second.
        """
        super().__init__(*parts, **settings)
        config = self.decoder.config
        self.frames = self.context = config.frames
        self.fps = fps
        self.rotary = rotary_3d(config.frames, config.grid_side, config.head_dim, config.rope_base).to(self.device)

    @classmethod
    def _parts(cls, directory: Path) -> tuple[Any, Any, dict[str, Any]]:
        decoder, image_tokenizer, settings = super()._parts(directory)
        with build(directory):
            return decoder, image_tokenizer, {**settings, "fps": read_config(directory)["clip"]["fps"]}

    def clip(self, height: int, width: int, frames: int, given: int = 0) -> TokenGrid:
        one = LlamaGen.grid(self, height, width)
        if not 0 <= given < frames <= self.context:
            raise ZipARError(
                f"this model makes no clips of {frames} frames of which {given} are given: it sees 1 to {self.context} "
                "at a time, and gives at least one of them itself"
            )
        return TokenGrid(one.rows, one.columns, frames, given=given)

    def grid(self, height: int, width: int) -> TokenGrid:
        return self.clip(height, width, self.frames)

    def prefix(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None,
        guided: bool,
        grid: TokenGrid | None = None,
        given: Tensor | None = None,
    ) -> Prefix:
        prefix = super().prefix(prompts, negative_prompts, guided)
        if grid is None or given is None:
            return prefix
        opening = grid.opening(given.to(self.device))
        opening = opening.repeat(len(prefix.valid) // len(opening), 1)
        slots = torch.arange(opening.shape[1], device=self.device)
        embeddings = torch.cat([prefix.embeddings, self.decoder.embed(opening, slots)], 1)
        return Prefix(embeddings, torch.cat([prefix.valid, torch.ones_like(opening, dtype=torch.bool)], 1), opening)

    def read(self, pixels: Tensor) -> Tensor:
        frames = pixels.to(self.device).flatten(0, 1).permute(0, 3, 1, 2)
        return self.image_tokenizer.encode(frames.float() / 127.5 - 1).unflatten(0, pixels.shape[:2])

    def pixels(self, tokens: Tensor) -> Tensor:
        return LlamaGen.pixels(self, tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])


def rotary_3d(frames: int, grid_side: int, head_dim: int, base: float) -> Tensor:
    """Complex rotations, complex64 (frames * grid_side * grid_side, head_dim / 2), of the slots of a clip.

    Of each row, the first quarter turns with the frame, the next three eighths with the grid row, the last with the
    column; in each of these parts speeds fall from 1 radian a step to almost 1 / ``base``. ``head_dim`` is a
    multiple of 16.
    """
    pairs = head_dim // 2
    shares = (pairs // 4, pairs * 3 // 8, pairs * 3 // 8)
    places = torch.cartesian_prod(torch.arange(frames), torch.arange(grid_side), torch.arange(grid_side))
    angles = torch.cat(
        [
            torch.outer(along.float(), base ** -(torch.arange(share) / share))
            for along, share in zip(places.unbind(1), shares, strict=True)
        ],
        dim=1,
    )
    return torch.polar(torch.ones_like(angles), angles)
