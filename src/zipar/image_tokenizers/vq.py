"""LlamaGen's VQ image tokenizer (VQ-8 and VQ-16; Janus uses the same layout).

A VQGAN (Esser et al., "Taming Transformers", CVPR 2021) with an l2-normalised low-dimensional
codebook (Yu et al., "Vector-quantized Image Modeling with Improved VQGAN", 2021). Parameter names
are those of the published checkpoints, so their tensors load unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VQConfig:
    """Shape of a :class:`VQModel`; the defaults are VQ-16, as published."""

    codebook_size: int = 16384
    codebook_dim: int = 8
    channels: int = 128
    channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    residual_blocks: int = 2
    latent_channels: int = 256
    norm_groups: int = 32

    @property
    def downsampling(self) -> int:
        """Side, in pixels, of the square that one token stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)


class VQModel(nn.Module):
    """Images <-> grids of codebook indices.

    Pixels are float tensors (batch, 3, height, width) in [-1, 1]; indices are int64 tensors
    (batch, rows, columns) in [0, codebook_size).
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.codebook_dim)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """Unquantised unit-length latents (batch, codebook_dim, rows, columns) of ``pixels``."""
        return F.normalize(self.quant_conv(self.encoder(pixels)), dim=1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Codebook indices (batch, rows, columns) of ``pixels``."""
        return self.quantize.nearest(self.latents(pixels))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels of (quantised) latents (batch, codebook_dim, rows, columns)."""
        return self.decoder(self.post_quant_conv(latents))

    def decode(self, indices: Tensor) -> Tensor:
        """Pixels of codebook indices (batch, rows, columns)."""
        return self.decode_latents(self.quantize.lookup(indices))


class Codebook(nn.Module):
    """Codes on the unit sphere; distances are cosine distances."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    @property
    def codes(self) -> Tensor:
        """Unit-length codes (size, dim)."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, latents: Tensor) -> Tensor:
        """(batch, dim, rows, columns) unit-length latents -> (batch, rows, columns) indices."""
        return torch.einsum("bdhw,nd->bhwn", latents, self.codes).argmax(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        """(batch, rows, columns) indices -> (batch, dim, rows, columns) codes."""
        return F.embedding(indices, self.codes).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width = config.channels
        last = len(config.channel_multipliers) - 1
        for level, multiplier in enumerate(config.channel_multipliers):
            out = config.channels * multiplier
            block = Level(width, out, config.residual_blocks, attention=level == last, groups=groups)
            if level != last:
                block.downsample = Downsample(out)
            self.conv_blocks.append(block)
            width = out
        self.mid = middle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.conv_blocks:
            x = block(x)
        for layer in self.mid:
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        width = config.channels * config.channel_multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = middle(width, groups)
        self.conv_blocks = nn.ModuleList()
        last = len(config.channel_multipliers) - 1
        for level in range(last, -1, -1):
            out = config.channels * config.channel_multipliers[level]
            block = Level(width, out, config.residual_blocks + 1, attention=level == last, groups=groups)
            if level != 0:
                block.upsample = Upsample(out)
            self.conv_blocks.append(block)
            width = out
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in self.mid:
            x = layer(x)
        for block in self.conv_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """The residual blocks of one resolution, with attention where asked, then the change of resolution."""

    def __init__(self, width: int, out: int, blocks: int, *, attention: bool, groups: int) -> None:
        super().__init__()
        widths = [width] + [out] * (blocks - 1)
        self.res = nn.ModuleList(ResnetBlock(w, out, groups) for w in widths)
        self.attn = nn.ModuleList(AttnBlock(out, groups) for _ in widths if attention)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        resample = self.downsample or self.upsample
        return resample(x) if resample is not None else x


def middle(width: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [ResnetBlock(width, width, groups), AttnBlock(width, groups), ResnetBlock(width, width, groups)]
    )


class ResnetBlock(nn.Module):
    def __init__(self, width: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, eps=1e-6)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if width != out:
            self.nin_shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the feature map."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
