"""The discrete video tokenizer of NVIDIA Cosmos (Cosmos-Tokenize1-DV8x16x16-720p).

A causal 3-D convolutional autoencoder over Haar wavelets (cosmos_predict1/autoregressive/tokenizer of
nvidia-cosmos/cosmos-predict1), whose latents are rounded to a grid: finite scalar quantisation (Mentzer et al.,
arXiv 2309.15505). Convolutions and attention are factorised into space and time. Parameter names are those of the
published TorchScript, so its tensors load unchanged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CosmosTokenizerConfig:
    """Shape of a :class:`CosmosTokenizer`; the defaults are DV8x16x16, as published.

    ``patch`` pixels a side, and frames, become one place by wavelets; convolutions shrink them by ``space`` and
    ``time`` in all.
    """

    channels: int = 128
    channel_multipliers: Sequence[int] = (2, 4, 4)
    residual_blocks: int = 2
    latent_channels: int = 16
    levels: Sequence[int] = (8, 8, 8, 5, 5, 5)
    patch: int = 4
    space: int = 16
    time: int = 8

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def downsampling(self) -> int:
        """Side, in pixels, of the square that one token stands for."""
        return self.space

    @property
    def halvings(self) -> tuple[int, int]:
        """How often convolutions halve the sides and the frames of what wavelets leave."""
        return int(math.log2(self.space // self.patch)), int(math.log2(self.time // self.patch))


class CosmosDecoder(nn.Module):
    """Grids of codebook indices, int64 (batch, 1 + n, rows, columns) in [0, codebook_size), -> videos.

    Pixels are float tensors (batch, 3, frames, height, width) in [-1, 1], of 1 + n * ``time`` frames. No frame depends
    on later tokens: the first stand for the first frame, each later ones for ``time`` frames.
    """

    def __init__(self, config: CosmosTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.post_quant_conv = CausalConv3d(len(config.levels), config.latent_channels, 1)

    def decode(self, indices: Tensor) -> Tensor:
        """Pixels of codebook indices (batch, 1 + n, rows, columns)."""
        latents = lookup(indices, self.config.levels).to(self.post_quant_conv.conv3d.weight.dtype)
        return self.decoder(self.post_quant_conv(latents))


class CosmosTokenizer(CosmosDecoder):
    """Videos <-> grids of codebook indices. No token depends on frames after its own."""

    def __init__(self, config: CosmosTokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(config.latent_channels, len(config.levels), 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Codebook indices (batch, 1 + n, rows, columns) of ``pixels``."""
        return nearest(self.quant_conv(self.encoder(pixels)), self.config.levels)


def nearest(latents: Tensor, levels: Sequence[int]) -> Tensor:
    """Indices, int64 (batch, ...), of the codes nearest to bounded ``latents`` (batch, len(levels), ...).

    Of each dimension ``levels`` digits are possible; the first is the lowest of the index.
    """
    count = torch.tensor(levels, device=latents.device)
    half = (count - 1) * (1 + 1e-3) / 2
    offset = torch.where(count % 2 == 0, 0.5, 0.0)
    bounded = (latents.movedim(1, -1) + (offset / half).atanh()).tanh() * half - offset
    digits = bounded.round().long() + count // 2
    return (digits * _basis(count)).sum(-1)


def lookup(indices: Tensor, levels: Sequence[int]) -> Tensor:
    """The codes, float32 (batch, len(levels), ...) in [-1, 1], of ``indices`` (batch, ...)."""
    count = torch.tensor(levels, device=indices.device)
    half = count // 2
    digits = indices[..., None] // _basis(count) % count
    return ((digits - half) / half).movedim(-1, 1)


def _basis(count: Tensor) -> Tensor:
    return count.cumprod(0) // count


def haar(pixels: Tensor, patch: int) -> Tensor:
    """Wavelet coefficients (batch, 3 * patch^3, frames, rows, columns) of (batch, 3, 1 + n * patch, height, width).

    The first frame counts ``patch`` times. Each halving turns neighbours a, b along time, height and width into
    (a + b) / 2 and (a - b) / 2.
    """
    x = torch.cat([pixels[:, :, :1].expand(-1, -1, patch - 1, -1, -1), pixels], dim=2)
    pair = _pair(x, 0.5)
    for _ in range(int(math.log2(patch))):
        x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        x = torch.einsum("bctihjwk,xi,yj,zk->bxyzcthw", x, pair, pair, pair).flatten(1, 4)
    return x


def unhaar(x: Tensor, patch: int) -> Tensor:
    """The inverse of ``haar``."""
    pair = _pair(x, 1.0)
    for _ in range(int(math.log2(patch))):
        x = x.unflatten(1, (2, 2, 2, -1))
        x = torch.einsum("bxyzcthw,xi,yj,zk->bctihjwk", x, pair, pair, pair)
        x = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, patch - 1 :]


def _pair(x: Tensor, scale: float) -> Tensor:
    return torch.tensor([[scale, scale], [scale, -scale]], dtype=x.dtype, device=x.device)


class Encoder(nn.Module):
    def __init__(self, config: CosmosTokenizerConfig) -> None:
        super().__init__()
        self.patch = config.patch
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        halved, shortened = config.halvings
        self.conv_in = factorised(3 * config.patch**3, config.channels)
        self.down = nn.ModuleList()
        width = config.channels
        for level, out in enumerate(widths):
            block = Level(width, out, config.residual_blocks)
            if level < len(widths) - 1:
                block.downsample = Downsample(out, space=level < halved, time=level < shortened)
            self.down.append(block)
            width = out
        self.mid = Middle(width)
        self.norm_out = FrameNorm(width)
        self.conv_out = factorised(width, config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(haar(x, self.patch))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: CosmosTokenizerConfig) -> None:
        super().__init__()
        self.patch = config.patch
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        halved, shortened = config.halvings
        width = widths[-1]
        self.conv_in = factorised(config.latent_channels, width)
        self.mid = Middle(width)
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            block = Level(width, widths[level], config.residual_blocks + 1)
            width = widths[level]
            if level > 0:
                step = len(widths) - 1 - level
                # frames are doubled from the second step on: the encoder is done with halving them before the last
                block.upsample = Upsample(width, space=step < halved, time=0 < step <= shortened)
            self.up.insert(0, block)
        self.norm_out = FrameNorm(width)
        self.conv_out = factorised(width, 3 * config.patch**3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return unhaar(self.conv_out(F.silu(self.norm_out(x))), self.patch)


class Level(nn.Module):
    """The residual blocks of one resolution, then the change of resolution."""

    def __init__(self, width: int, out: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(w, out) for w in [width] + [out] * (blocks - 1))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        resample = self.downsample or self.upsample
        return resample(x) if resample is not None else x


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = nn.Sequential(Attention(width, over_time=False), Attention(width, over_time=True))
        self.block_2 = ResnetBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class CausalConv3d(nn.Module):
    """A convolution whose results depend on no later frame: the first is repeated before it, and zeros are around."""

    def __init__(
        self,
        width: int,
        out: int,
        kernel: int | tuple[int, int, int],
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(width, out, kernel, stride, (0, padding, padding))
        self.before = self.conv3d.kernel_size[0] - stride[0]

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :, :1].expand(-1, -1, self.before, -1, -1)
        return self.conv3d(torch.cat([first, x], dim=2) if self.before else x)


def factorised(width: int, out: int) -> nn.Sequential:
    """A convolution in space, then one in time."""
    return nn.Sequential(CausalConv3d(width, out, (1, 3, 3), padding=1), CausalConv3d(out, out, (3, 1, 1)))


class FrameNorm(nn.Module):
    """Normalises each frame by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


class ResnetBlock(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(width)
        self.conv1 = factorised(width, out)
        self.norm2 = FrameNorm(out)
        self.conv2 = factorised(out, out)
        self.nin_shortcut = CausalConv3d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Single-head self-attention: of each place over its frames up to now, or of each frame over its places."""

    def __init__(self, width: int, *, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.norm = FrameNorm(width)
        self.q = CausalConv3d(width, width, 1)
        self.k = CausalConv3d(width, width, 1)
        self.v = CausalConv3d(width, width, 1)
        self.proj_out = CausalConv3d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (layer(h).flatten(3).permute(0, 2, 3, 1) for layer in (self.q, self.k, self.v))
        if self.over_time:  # (batch, frames, places, width), or places first
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        h = F.scaled_dot_product_attention(query, key, value, is_causal=self.over_time)
        h = h.transpose(1, 2) if self.over_time else h
        return x + self.proj_out(h.permute(0, 3, 1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halves the sides, the frames, or both: a strided convolution beside a mean."""

    def __init__(self, width: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(width, width, (1, 3, 3), stride=(1, 2, 2)) if space else None
        self.conv2 = CausalConv3d(width, width, (3, 1, 1), stride=(2, 1, 1)) if time else None
        self.conv3 = CausalConv3d(width, width, 1) if space or time else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv1 is not None:
            x = self.conv1(F.pad(x, (0, 1, 0, 1))) + F.avg_pool3d(x, (1, 2, 2))
        if self.conv2 is not None:
            x = torch.cat([x[:, :, :1], x], dim=2)
            x = self.conv2(x) + F.avg_pool3d(x, (2, 1, 1))
        return x if self.conv3 is None else self.conv3(x)


class Upsample(nn.Module):
    """Doubles the sides, the frames (but for the first), or both."""

    def __init__(self, width: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(width, width, (3, 1, 1)) if time else None
        self.conv2 = CausalConv3d(width, width, (1, 3, 3), padding=1) if space else None
        self.conv3 = CausalConv3d(width, width, 1) if space or time else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv1 is not None:
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = self.conv1(x) + x
        if self.conv2 is not None:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv2(x) + x
        return x if self.conv3 is None else self.conv3(x)
