"""commaVQ's world model, which imagines how a drive goes on (github.com/commaai/commavq, utils/gpt.py; MIT).

A GPT-2 over frames of 8 x 16 tokens at 20 frames a second. Each frame has a token in front that begins it (BOS); 20
frames fit in its learned positions. Parameter names are the published ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipar.arguments import refusal, whole
from zipar.checkpoints.files import build, read_config, read_tensors
from zipar.decoding.attention import attend
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.commavq import CommaVQTokenizer
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.base import VideoModel, to_bytes


@dataclass(frozen=True)
class CommaVQConfig:
    """Shape of the decoder; the defaults are the published gpt2m."""

    layers: int = 24
    heads: int = 16
    dim: int = 1024
    codes: int = 1024
    """Tokens of the image tokenizer; the one after them begins a frame."""
    rows: int = 8
    columns: int = 16
    frames: int = 20
    """That it has positions for."""

    @property
    def bos(self) -> int:
        return self.codes

    @property
    def frame(self) -> int:
        """Tokens of a frame, the one that begins it counted."""
        return 1 + self.rows * self.columns

    @property
    def positions(self) -> int:
        return self.frames * self.frame


class CommaVQ(VideoModel):
    """Goes on from the frames that it is given, or drives off with none. There is nothing to say: prompts are empty."""

    family = "commavq"
    wordless = True
    fps = 20.0

    def __init__(self, decoder: "GPT", image_tokenizer: CommaVQTokenizer, defaults: Sampling | None = None) -> None:
        super().__init__()
        config, side = decoder.config, image_tokenizer.config.downsampling
        if config.codes != image_tokenizer.config.codebook_size:
            raise ZipARError(
                f"the decoder knows {config.codes} tokens and the image tokenizer "
                f"{image_tokenizer.config.codebook_size}: they do not belong together"
            )
        self.decoder, self.image_tokenizer = decoder, image_tokenizer
        self.defaults = defaults or Sampling()
        self.layers, self.frames, self.context = config.layers, config.frames, config.frames
        self.image_size = (config.rows * side, config.columns * side)

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device) -> "CommaVQ":
        model = cls.outline(directory)
        for name, module in (("decoder", model.decoder), ("image_tokenizer", model.image_tokenizer)):
            module.load_state_dict(read_tensors(directory / f"{name}.safetensors", module), assign=True)
        model.decoder.to(device, dtype)
        model.image_tokenizer.to(device, torch.float32)  # as the authors run it, whatever the decoder's
        return model.eval().requires_grad_(False)

    @classmethod
    def outline(cls, directory: Path) -> "CommaVQ":
        config = read_config(directory)
        with build(directory), torch.device("meta"):
            decoder = GPT(CommaVQConfig(**config["decoder"]))
            image_tokenizer = CommaVQTokenizer(VQConfig(**config["image_tokenizer"]))
            return cls(decoder, image_tokenizer, Sampling(**config.get("sampling", {})))

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.transformer.wte.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.transformer.wte.weight.device

    def clip(self, height: int, width: int, frames: int, given: int = 0) -> TokenGrid:
        if (height, width) != self.image_size:
            raise ZipARError(
                f"this CommaVQ makes no frames of {height}x{width} pixels (height x width): "
                f"it was trained on {self.image_size[0]}x{self.image_size[1]} alone"
            )
        config = self.decoder.config
        frames = whole("frames", frames, 1, config.frames)
        given = whole("given", given, 0, frames - 1)
        return TokenGrid(config.rows, config.columns, frames, frame_end=(config.bos,), given=given)

    def prefix(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None,
        guided: bool,
        grid: TokenGrid,
        given: Tensor | None = None,
    ) -> Prefix:
        if guided or negative_prompts is not None:
            raise ZipARError("a CommaVQ knows no guidance: leave the scale at 1, and negative prompts out")
        for prompt in prompts:
            if prompt.strip():
                raise refusal("prompt", prompt, "an empty one, for a CommaVQ reads no words: it goes on from frames")
        tokens = torch.full((len(prompts), 1), self.decoder.config.bos, device=self.device)
        opening = None if given is None else grid.opening(given.to(self.device))
        if opening is not None:
            tokens = torch.cat([tokens, opening], dim=1)
        embeddings = self.decoder.transformer.wte(tokens)
        return Prefix(embeddings, torch.ones_like(tokens, dtype=torch.bool), opening)

    def prefill(self, prefix: Prefix, cache: SlotCache, mask: Tensor) -> Tensor:
        self._follow(self.decoder)
        positions = (prefix.valid.long().cumsum(1) - 1).clamp(min=0)
        return self._logits(prefix.embeddings, positions, cache, mask)[:, -1:]

    def step(self, tokens: Tensor, slots: Tensor, lengths: Tensor, cache: SlotCache, mask: Tensor) -> Tensor:
        embeddings = self.running(self.decoder).transformer.wte(tokens)
        # what begins a frame after the last has no position, and idle queries feed it
        positions = (lengths[:, None] + slots).clamp(max=self.decoder.config.positions - 1)
        return self._logits(embeddings, positions, cache, mask)

    def _logits(self, embeddings: Tensor, positions: Tensor, cache: SlotCache, mask: Tensor) -> Tensor:
        """Float32 logits (rows, queries, codes); what begins a frame is known and never drawn."""
        logits: Tensor = self.running(self.decoder)(embeddings, positions, mask, cache)
        return logits[..., : self.decoder.config.codes].float()

    def stepped(self) -> list[nn.Module]:
        return [self.decoder]

    def exact(self) -> list[nn.Module]:
        return [self.image_tokenizer]

    def read(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8 or pixels.ndim != 5 or tuple(pixels.shape[2:]) != (*self.image_size, 3):
            raise ZipARError(
                f"frames of {tuple(pixels.shape)} in {pixels.dtype} are not possible: use uint8 "
                f"(clips, frames, {self.image_size[0]}, {self.image_size[1]}, 3)"
            )
        # one by one, as the authors do: codes depend on no other frame, nor do they by rounding
        frames = pixels.to(self.device).flatten(0, 1).permute(0, 3, 1, 2).split(1)
        codes = torch.cat([self.image_tokenizer.encode(frame.float()) for frame in frames])
        return codes.unflatten(0, pixels.shape[:2])

    def pixels(self, tokens: Tensor) -> Tensor:
        frames = [to_bytes(self.image_tokenizer.decode(codes)) for codes in tokens.flatten(0, 1).split(1)]
        return torch.cat(frames).permute(0, 2, 3, 1).unflatten(0, tokens.shape[:2])


class GPT(nn.Module):
    """The decoder."""

    def __init__(self, config: CommaVQConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.dim, config.codes + 1, bias=False)

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None) -> Tensor:
        """Logits (rows, queries, codes + 1) of the next tokens.

        Args:
            embeddings: of tokens, (rows, queries, dim).
            positions: int64 (rows, queries), below ``config.positions``.
            mask: additive attention mask.
            cache: what the keys and values of each layer pass through (``cache.layers[i].update``);
                None to attend to the given positions alone.
        """
        hidden = embeddings + self.transformer.wpe(positions)
        for i, block in enumerate(self.transformer.h):
            hidden = block(hidden, mask, None if cache is None else cache.layers[i])
        return self.lm_head(self.transformer.ln_f(hidden))


class Transformer(nn.Module):
    """What the published names have between the decoder and its parts."""

    def __init__(self, config: CommaVQConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.codes + 1, config.dim)
        self.wpe = nn.Embedding(config.positions, config.dim)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.dim)


class Block(nn.Module):
    def __init__(self, config: CommaVQConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.dim)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class Attention(nn.Module):
    def __init__(self, config: CommaVQConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = nn.Linear(config.dim, 3 * config.dim)
        self.c_proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        query, key, value = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        if cache is not None:
            key, value = cache.update(key, value)
        return self.c_proj(attend(query, key, value, mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: CommaVQConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.dim, 4 * config.dim)
        self.c_proj = nn.Linear(4 * config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
