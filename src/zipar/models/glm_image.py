"""GLM-Image (Z.ai, github.com/zai-org/GLM-Image): transformers has its autoregressive stage, diffusers the rest.

A GLM-4 that reads text and writes codebook indices in raster order, without row ends: first a small grid of about 256
tokens, which drafts the image, then the large one, 32 pixels a token. A diffusion transformer makes pixels of the
large grid. The modules are those of transformers' ``GlmImageForConditionalGeneration``, the rest those of diffusers'
``GlmImagePipeline``.

Positions have three axes: words count on all of them; a token of a grid is where the grid starts, and its row and
column further on the second and third; what follows a grid goes on from its longer side.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ByT5Tokenizer, GlmImageForConditionalGeneration, GlmImageProcessor, T5EncoderModel

from zipar.checkpoints.files import build
from zipar.checkpoints.pretrained import PIPELINE, load_diffusers, load_model, load_processor
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.backbone import TransformersModel
from zipar.models.base import configured, to_bytes, tokenized

TOKEN_SIDE = 32
"""Pixels along a side of the square that a token of the large grid stands for."""
SMALL_SIDE = 16
"""Tokens along a side of a square small grid."""


class GlmImage(TransformersModel):
    """GLM-Image, for passes over grids of a number of columns. Tokens are codebook indices.

    Guidance is the diffusion transformer's, for there is no unconditional branch of tokens. Of a prompt it reads what
    stands in quotes, which is what it writes into the picture.
    """

    family = "glm_image"
    network = GlmImageForConditionalGeneration
    model: Any
    image_size = (1152, 768)
    steps = 50
    """Of the diffusion transformer, as its authors run it."""

    def __init__(self, model: Any, pipe: Any = None, columns: int = SMALL_SIDE) -> None:
        """``model`` is a ``GlmImageForConditionalGeneration``; only prompts and pixels need its ``GlmImagePipeline``.

        Args:
            columns: of the grid that passes are over, which positions need.
        """
        super().__init__(model, model.model.language_model)
        self.pipe, self.columns = pipe, columns
        parts = () if pipe is None else pipe.components.values()
        self.painters = nn.ModuleList(part for part in parts if isinstance(part, nn.Module) and part is not model)
        self.positions = self.decoder.config.max_position_embeddings
        self.defaults = configured(Sampling(guidance_scale=1.5, temperature=0.9, top_p=0.75), model.generation_config)
        names = ("temperature", "top_k", "top_p", "min_p")
        own = {name: getattr(model.generation_config, name, None) for name in names}
        self.defaults = replace(self.defaults, **{name: value for name, value in own.items() if value is not None})
        self.head_rows = slice(0, model.config.vq_config.num_embeddings)
        self.start: int = model.config.image_start_token_id
        self.end: int = model.config.image_end_token_id

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device, sharded: bool = False) -> "GlmImage":
        library = load_diffusers("GLM-Image")
        if not (directory / PIPELINE).exists():
            raise ZipARError(
                f"{directory} holds the autoregressive stage of GLM-Image alone: give the directory around it, which "
                f"has a {PIPELINE} and the diffusion transformer"
            )
        kinds = {
            "vision_language_encoder": cls.network,
            "text_encoder": T5EncoderModel,
            "transformer": library.GlmImageTransformer2DModel,
            "vae": library.AutoencoderKL,
        }
        parts = {
            name: load_model(kind, directory / name, dtype, sharded=sharded and kind is cls.network)
            for name, kind in kinds.items()
        }
        processor = load_processor(GlmImageProcessor, directory / "processor")
        with build(directory):
            tokenizer = ByT5Tokenizer.from_pretrained(directory / "tokenizer", local_files_only=True)
            scheduler = library.FlowMatchEulerDiscreteScheduler.from_pretrained(
                directory / "scheduler", local_files_only=True
            )
        pipe = library.GlmImagePipeline(tokenizer=tokenizer, processor=processor, scheduler=scheduler, **parts)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe.vision_language_encoder, pipe).to(device).eval().requires_grad_(False)

    def of(self, grid: TokenGrid) -> "GlmImage":
        return GlmImage(self.model, columns=grid.columns)

    def grid(self, height: int, width: int) -> TokenGrid:
        if min(height, width) < TOKEN_SIDE or height % TOKEN_SIDE or width % TOKEN_SIDE:
            raise ZipARError(
                f"GLM-Image makes no images of {height}x{width} pixels (height x width): both must be multiples of "
                f"{TOKEN_SIDE}, such as 512x512, 1024x1024, 1152x768 or 2048x2048"
            )
        if max(height, width) > SMALL_SIDE**2 * min(height, width):
            raise ZipARError(
                f"GLM-Image makes no images of {height}x{width} pixels (height x width): no side may be more than "
                f"{SMALL_SIDE**2} times the other"
            )
        return TokenGrid(height // TOKEN_SIDE, width // TOKEN_SIDE)

    def grids(self, grid: TokenGrid) -> list[TokenGrid]:
        ratio = grid.rows / grid.columns
        rows, columns = (int(math.sqrt(part) * SMALL_SIDE) for part in (ratio, 1 / ratio))
        return [TokenGrid(rows, columns), grid]

    def prefix(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, guided: bool, grid: TokenGrid
    ) -> Prefix:
        if negative_prompts is not None:
            raise ZipARError("GLM-Image has nowhere to put a negative prompt: leave it out")
        if guided:
            raise ZipARError("GLM-Image has no unconditional branch of tokens: leave the guidance scale at 1")
        processor = self._whole().processor
        asked = {"target_h": grid.rows * TOKEN_SIDE, "target_w": grid.columns * TOKEN_SIDE}

        def read(texts: list[str]) -> Any:
            messages = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
            written = processor.apply_chat_template(messages)
            return processor(text=written, padding=True, padding_side="left", return_tensors="pt", **asked)

        inputs = tokenized(read, prompts)
        prefix = self.prompt(inputs["input_ids"], inputs["attention_mask"].bool(), [[]] * len(prompts))
        return self.fitting(prefix, *self.grids(grid))

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

    def drawn(self, sampling: Sampling) -> Sampling:
        return replace(sampling, guidance_scale=1.0)

    def pixels(self, tokens: Tensor) -> Tensor:
        return self.painted(tokens, [""] * len(tokens), [0] * len(tokens), self.defaults.guidance_scale)

    def painted(self, tokens: Tensor, prompts: Sequence[str], seeds: Sequence[int], guidance_scale: float) -> Tensor:
        pipe, (height, width) = self._whole(), (side * TOKEN_SIDE for side in tokens.shape[1:])
        fine = tokens.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)  # the transformer has 4 for each
        images = [
            # one at a time, for diffusers pads what it reads of several prompts, and attends to the padding
            pipe(
                prompt,
                height=height,
                width=width,
                num_inference_steps=self.steps,
                guidance_scale=guidance_scale,
                generator=torch.Generator().manual_seed(seed % 2**64),
                prior_token_ids=codes[None],
                output_type="pt",
            ).images
            for codes, prompt, seed in zip(fine, prompts, seeds, strict=True)
        ]
        return to_bytes((torch.cat(images).float() * 255).round()).permute(0, 2, 3, 1)

    def _whole(self) -> Any:
        """The pipeline of diffusers.

        Raises:
            ZipARError: there is the autoregressive stage alone.
        """
        if self.pipe is None:
            raise ZipARError(
                "this GlmImage can neither read prompts nor paint: make it of a pipeline of diffusers, as "
                "GlmImage(pipe.vision_language_encoder, pipe)"
            )
        return self.pipe

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
