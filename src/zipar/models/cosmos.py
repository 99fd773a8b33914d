"""NVIDIA Cosmos, autoregressive base models of 4B and 12B (arXiv 2501.03575, section 5.2).

A Llama over the tokens of video clips, in raster order, frame after frame, with nothing between them: it goes on with
the frames that it is given. Queries and keys are normalised head by head, and turned with the frame, the row and the
column (cosmos_predict1/autoregressive of nvidia-cosmos/cosmos-predict1). Parameter names are those of the published
checkpoints, so their tensors load unchanged.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zipar.arguments import shown
from zipar.checkpoints.files import build, load_shards, read_config, read_tensors
from zipar.decoding.attention import attend
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.cosmos import CosmosTokenizer, CosmosTokenizerConfig
from zipar.models.base import VideoModel, to_bytes
from zipar.models.llamagen import FeedForward, RMSNorm

CONTEXTS = (1, 2)
"""Token frames that may be given: 1 or 9 frames, as the authors give them."""
YARN_SCALE, YARN_FAST, YARN_SLOW = 2, 4, 1
"""How far YaRN stretches, and how many turns over the first training's length it leaves alone, or stretches fully."""


@dataclass(frozen=True)
class CosmosConfig:
    """Shape of the decoder, and the token grid (frames, rows, columns) of its clips."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int = 64000
    grid: Sequence[int] = (5, 40, 64)
    trained: Sequence[int] | None = None
    """Where YaRN stretches the positions: how many were first trained, of frames and of rows and columns."""
    rope_base: float = 500000.0
    norm_eps: float = 1e-5


class Cosmos(VideoModel):
    """A Cosmos base model: its prompts are frames, and no text."""

    family = "cosmos"
    wordless = True
    fps = 25.0
    lengths: dict[int, int]
    """Token frames by frames of pixels."""
    contexts: list[int]
    """How many frames may be given."""

    def __init__(
        self, decoder: "Transformer", image_tokenizer: CosmosTokenizer, defaults: Sampling | None = None
    ) -> None:
        super().__init__()
        self.decoder, self.image_tokenizer = decoder, image_tokenizer
        self.defaults = defaults or Sampling(top_p=0.8)
        self.layers = decoder.config.layers
        shape = image_tokenizer.config
        if shape.codebook_size != decoder.config.vocab_size:
            raise ZipARError(
                f"the decoder knows {decoder.config.vocab_size} tokens, the video tokenizer {shape.codebook_size}: "
                "they do not belong together"
            )
        frames, rows, columns = decoder.config.grid
        self.lengths = {1 + more * shape.time: 1 + more for more in range(frames)}
        self.contexts = [frames for frames, tokens in self.lengths.items() if tokens in CONTEXTS]
        self.frames = self.context = max(self.lengths)
        self.image_size = (rows * shape.space, columns * shape.space)
        self.rotary = rotary_3d(decoder.config).to(self.device)

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device) -> "Cosmos":
        decoder, tokenizer, defaults = cls._parts(directory)
        load_shards(directory / "decoder", decoder, dtype, device)
        tokenizer.load_state_dict(read_tensors(directory / "video_tokenizer.safetensors", tokenizer), assign=True)
        return cls(decoder, tokenizer.to(device, torch.float32), defaults).eval().requires_grad_(False)

    @classmethod
    def outline(cls, directory: Path) -> "Cosmos":
        return cls(*cls._parts(directory))

    @classmethod
    def _parts(cls, directory: Path) -> tuple["Transformer", CosmosTokenizer, Sampling]:
        """The networks without weights, on the meta device, and how to sample."""
        config = read_config(directory)
        with build(directory), torch.device("meta"):
            decoder = Transformer(CosmosConfig(**config["decoder"]))
            tokenizer = CosmosTokenizer(CosmosTokenizerConfig(**config["video_tokenizer"]))
            return decoder, tokenizer, Sampling(**config.get("sampling", {}))

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.tok_embeddings.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.tok_embeddings.weight.device

    def clip(self, height: int, width: int, frames: int, given: int = 0) -> TokenGrid:
        if (height, width) != self.image_size:
            raise ZipARError(
                f"this Cosmos makes no videos of {height}x{width} pixels (height x width): "
                f"it was trained on {self.image_size[0]}x{self.image_size[1]} alone"
            )
        if given not in self.contexts or self.lengths.get(frames, 0) <= self.lengths[given]:
            raise ZipARError(
                f"{frames} frames, {given} of them given, are not possible: a Cosmos makes "
                f"{_listed(list(self.lengths)[1:])} frames at a time, the first {_listed(self.contexts)} of which must "
                f"be given, and longer clips of {self.image_tokenizer.config.time} n + 1 frames"
            )
        _, rows, columns = self.decoder.config.grid
        return TokenGrid(rows, columns, self.lengths[frames], given=self.lengths[given])

    def prefix(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None,
        guided: bool,
        grid: TokenGrid,
        given: Tensor | None = None,
    ) -> Prefix:
        for prompt in (*prompts, *(negative_prompts or ())):
            if prompt:
                raise ZipARError(f"prompt {shown(prompt)}: a Cosmos base model reads no text, so leave prompts empty")
        if guided:
            raise ZipARError("a Cosmos base model has nothing to guide with: leave the guidance scale at 1")
        if given is None:
            raise ZipARError(f"a Cosmos goes on with what it is shown: give it {_listed(self.contexts)} frames")
        tokens = grid.opening(given.to(self.device))
        return Prefix(self.decoder.tok_embeddings(tokens), torch.ones_like(tokens, dtype=torch.bool), tokens)

    def prefill(self, prefix: Prefix, cache: SlotCache, mask: Tensor) -> Tensor:
        self._follow(self.decoder)
        self.rotary = self.rotary.to(self.device)
        decoder = self.running(self.decoder)
        hidden = decoder(prefix.embeddings, self.rotary[None, : prefix.opening], mask, cache)
        return decoder.output(hidden[:, -1:]).float()

    def step(self, tokens: Tensor, slots: Tensor, lengths: Tensor, cache: SlotCache, mask: Tensor) -> Tensor:
        decoder = self.running(self.decoder)
        hidden = decoder(decoder.tok_embeddings(tokens), self.rotary[slots], mask, cache)
        return decoder.output(hidden).float()

    def stepped(self) -> list[nn.Module]:
        return [self.decoder]

    def exact(self) -> list[nn.Module]:
        return [self.image_tokenizer]

    def read(self, pixels: Tensor) -> Tensor:
        time, frames = self.image_tokenizer.config.time, pixels.shape[1]
        if (frames - 1) % time:
            raise ZipARError(f"{frames} frames make no whole tokens: give 1, or {time} more once or several times")
        clips = pixels.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return torch.cat([self.image_tokenizer.encode(clip) for clip in clips.split(1)])

    def pixels(self, tokens: Tensor) -> Tensor:
        # one clip at a time, which takes gigabytes; rounded down, as the authors do it
        clips = [to_bytes((self.image_tokenizer.decode(clip) + 1) * 127.5) for clip in tokens.split(1)]
        return torch.cat(clips).permute(0, 2, 3, 4, 1)

    @property
    def carry(self) -> int:
        return self.contexts[-1]

    def carried(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        # read anew, for the first token of a place stands for one frame, and later ones for several
        return self.read(pixels[:, -self.carry :])


def _listed(numbers: Iterable[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}"


class Transformer(nn.Module):
    """The decoder: embeddings of tokens -> logits of the next token."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor, rotary: Tensor, mask: Tensor | None, cache: Any = None) -> Tensor:
        """Last hidden states (rows, queries, dim), to be turned into logits by ``output``.

        Args:
            hidden: embeddings (rows, queries, dim).
            rotary: complex rotations (rows or 1, queries, head_dim / 2).
            mask: additive attention mask.
            cache: what the keys and values of each layer pass through (``cache.layers[i].update``);
                None to attend to the given positions alone.
        """
        turn = torch.stack([rotary.real, rotary.imag]).to(hidden.dtype)[:, :, :, None]  # the same for all heads
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, turn, mask, None if cache is None else cache.layers[i])
        return self.norm(hidden)


class Block(nn.Module):
    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class Attention(nn.Module):
    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.wq = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (-1, self.head_dim)) for layer in (self.wq, self.wk, self.wv))
        query, key = rotated(self.q_norm(query), turn), rotated(self.k_norm(key), turn)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if cache is not None:
            key, value = cache.update(key, value)
        return self.wo(attend(query, key, value, mask).transpose(1, 2).flatten(2))


def rotary_3d(config: CosmosConfig) -> Tensor:
    """Complex rotations (slots, head_dim / 2) of the slots of a clip.

    The first pairs of each turn with the frame, the next with the row, as many with the column.
    """
    of_side = config.head_dim // 6 * 2
    widths = (config.head_dim - 2 * of_side, of_side, of_side)
    frames, side = config.trained or (None, None)
    angles = [
        torch.outer(torch.arange(places).float(), frequencies(width, config.rope_base, length))
        for places, width, length in zip(config.grid, widths, (frames, side, side), strict=True)
    ]
    place = torch.cartesian_prod(*map(torch.arange, config.grid)).unbind(1)
    turned = torch.cat([angle[where] for angle, where in zip(angles, place, strict=True)], dim=1)
    return torch.polar(torch.ones_like(turned), turned)


def frequencies(width: int, base: float, length: int | None) -> Tensor:
    """Radians a place, (width / 2,); with a ``length`` of positions that were first trained, as YaRN stretches them.

    What turns ``YARN_SLOW`` times over that length or less is slowed down to 1 / ``YARN_SCALE``, what turns
    ``YARN_FAST`` times or more is left as it is (Peng et al., arXiv 2309.00071).
    """
    plain = 1.0 / base ** (torch.arange(0, width, 2).float() / width)
    if length is None:
        return plain
    turns = plain * length / (2 * math.pi)
    kept = ((turns - YARN_SLOW) / (YARN_FAST - YARN_SLOW)).clamp(0, 1)
    return plain * (kept + (1 - kept) / YARN_SCALE)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """``x`` (rows, queries, heads, head_dim), whose halves are the parts of the pairs, turned.

    ``turn`` is (2, rows or 1, queries, 1, head_dim / 2): cosines and sines.
    """
    (a, b), (cos, sin) = x.chunk(2, dim=-1), turn
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
