"""GLM-Image (Z.ai, github.com/zai-org/GLM-Image): the autoregressive stage, of transformers.

A GLM-4 that reads text and writes codebook indices in raster order, without row ends: first a small grid of about 256
tokens, which drafts the image, then the large one, 32 pixels a token. A diffusion transformer, which diffusers
has, makes pixels of the large grid. The modules are those of transformers' ``GlmImageForConditionalGeneration``.

Positions have three axes: words count on all of them; a token of a grid is where the grid starts, and its row and
column further on the second and third; what follows a grid goes on from its longer side.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GlmImageForConditionalGeneration

from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.backbone import TransformersModel
from zipar.models.base import configured

TOKEN_SIDE = 32
"""Pixels along a side of the square that a token of the large grid stands for."""
SMALL_SIDE = 16
"""Tokens along a side of a square small grid."""
UNSUPPORTED = (
    "GLM-Image makes pixels with a diffusion transformer: load all of it with diffusers, "
    "pipe = GlmImagePipeline.from_pretrained(...), and call zipar.accelerate(pipe)"
)


class GlmImage(TransformersModel):
    """The autoregressive stage of GLM-Image, for grids of a number of columns. Tokens are codebook indices."""

    family = "glm_image"
    network = GlmImageForConditionalGeneration
    model: Any
    image_size = (1152, 768)

    def __init__(self, model: Any, columns: int = SMALL_SIDE) -> None:
        """``model`` is a ``GlmImageForConditionalGeneration``; positions need the ``columns`` of the grid."""
        super().__init__(model, model.model.language_model)
        self.columns = columns
        self.positions = self.decoder.config.max_position_embeddings
        self.defaults = configured(Sampling(temperature=0.9, top_p=0.75), model.generation_config)
        own = {name: getattr(model.generation_config, name, None) for name in ("temperature", "top_k", "top_p")}
        self.defaults = replace(self.defaults, **{name: value for name, value in own.items() if value is not None})
        self.head_rows = slice(0, model.config.vq_config.num_embeddings)
        self.start: int = model.config.image_start_token_id
        self.end: int = model.config.image_end_token_id

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device) -> "GlmImage":
        raise ZipARError(UNSUPPORTED)

    def of(self, grid: TokenGrid) -> "GlmImage":
        """The same model for images of ``grid``."""
        return GlmImage(self.model, grid.columns)

    def grid(self, height: int, width: int) -> TokenGrid:
        return self.grids(height, width)[-1]

    def grids(self, height: int, width: int) -> list[TokenGrid]:
        if min(height, width) < TOKEN_SIDE or height % TOKEN_SIDE or width % TOKEN_SIDE:
            raise ZipARError(
                f"GLM-Image makes no images of {height}x{width} pixels (height x width): both must be multiples of "
                f"{TOKEN_SIDE}, such as 512x512, 1024x1024, 1152x768 or 2048x2048"
            )
        ratio = height / width
        rows, columns = (int(math.sqrt(part) * SMALL_SIDE) for part in (ratio, 1 / ratio))
        if min(rows, columns) < 1:
            raise ZipARError(
                f"GLM-Image makes no images of {height}x{width} pixels (height x width): no side may be more than "
                f"{SMALL_SIDE**2} times the other"
            )
        return [TokenGrid(rows, columns), TokenGrid(height // TOKEN_SIDE, width // TOKEN_SIDE)]

    def prefix(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, guided: bool, grid: TokenGrid
    ) -> Prefix:
        raise ZipARError(UNSUPPORTED)

    def prompt(self, ids: Tensor, valid: Tensor, sources: Sequence[Sequence[tuple[int, int]]]) -> Prefix:
        """The prefix of prompts that are token ids, int64 and bool (rows, length), padded on the left.

        Args:
            sources: of each row, the rows and columns of the images in it, as codebook indices between begin and end.

        Raises:
            ZipARError: they are not those that it holds.
        """
        ids, valid = ids.to(self.device), valid.to(self.device)
        positions = torch.zeros(*ids.shape, 3, dtype=torch.int64)
        for row, (tokens, seen, grids) in enumerate(zip(ids.cpu(), valid.cpu(), sources, strict=True)):
            positions[row, seen] = self._placed(tokens[seen], grids)
        return Prefix(self.embed(ids), valid, positions=positions.to(self.device))

    def followed(self, prefix: Prefix, tokens: Tensor) -> Prefix:
        """``prefix`` with decoded grids behind it, int64 (rows, slots)."""
        cells = _cells(tokens.shape[1] // self.columns, self.columns).to(self.device)
        positions = prefix.lengths[:, None, None] + cells
        embeddings, valid = self.embed(tokens), torch.ones_like(tokens, dtype=torch.bool)
        assert prefix.positions is not None
        return Prefix(
            torch.cat([prefix.embeddings, embeddings], 1),
            torch.cat([prefix.valid, valid], 1),
            positions=torch.cat([prefix.positions, positions], 1),
        )

    def positions_of(self, slots: Tensor, lengths: Tensor) -> Tensor:
        start = lengths[:, None].expand_as(slots)
        return torch.stack([start, start + slots // self.columns, start + slots % self.columns])

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.decoder.get_input_embeddings()(tokens)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def pixels(self, tokens: Tensor) -> Tensor:
        raise ZipARError(UNSUPPORTED)

    def _placed(self, ids: Tensor, sources: Sequence[tuple[int, int]]) -> Tensor:
        """Positions of a prompt without padding, int64 (length,) -> (length, 3)."""
        begins, ends = ((ids == marker).nonzero().flatten().tolist() for marker in (self.start, self.end))
        parts, position, behind = [], 0, 0
        for (rows, columns), begin, end in zip(sources, begins, ends, strict=False):
            if end - begin - 1 != rows * columns:
                raise ZipARError(
                    f"image_grid_thw tells of an image of {rows} x {columns} tokens (rows x columns), but the prompt "
                    f"holds {end - begin - 1} between begin and end of image: give both as the processor made them"
                )
            words = begin + 1 - behind
            parts += [_words(position, words), position + words + _cells(rows, columns)]
            position, behind = position + words + max(rows, columns), end
        return torch.cat([*parts, _words(position, len(ids) - behind)])


def _words(start: int, count: int) -> Tensor:
    """Positions of words, int64 (count, 3)."""
    return torch.arange(start, start + count)[:, None].expand(-1, 3)


def _cells(rows: int, columns: int) -> Tensor:
    """Positions in a grid from its start on, int64 (rows * columns, 3)."""
    cell = torch.arange(rows * columns)
    return torch.stack([torch.zeros_like(cell), cell // columns, cell % columns], -1)
