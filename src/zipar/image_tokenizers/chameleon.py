"""Chameleon's image decoder, and Emu3.5's: codebook indices -> pixels, 16 x 16 of them a token.

The decoding half of the VQGAN of Gafni et al. ("Make-A-Scene", ECCV 2022), which Chameleon (arXiv 2405.09818)
and its descendants share. Transformers has the encoding half only. Parameter names are those of Meta's
``vqgan.ckpt``, so its tensors load unchanged.
"""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipar.errors import ZipARError
from zipar.image_tokenizers.vq import AttnBlock, ResnetBlock, Upsample, VQConfig, middle

PUBLISHED = VQConfig(codebook_size=8192, codebook_dim=256)


class ChameleonImageDecoder(nn.Module):
    """Grids of codebook indices, int64 (batch, rows, columns), -> pixels (batch, 3, height, width) in [-1, 1]."""

    def __init__(self, config: VQConfig = PUBLISHED, *, attention: bool = False) -> None:
        """``attention``: at the lowest resolution too, as Emu3.5 has it."""
        super().__init__()
        self.config = config
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.codebook_size, config.codebook_dim)})
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)
        self.decoder = Decoder(config, attention=attention)

    def decode(self, indices: Tensor) -> Tensor:
        """Pixels, float (batch, 3, height, width) and roughly in [-1, 1], of codebook indices."""
        codes = self.quantize["embedding"](indices).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(codes))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig, *, attention: bool = False) -> None:
        """``attention``: after the residual blocks of the lowest resolution too."""
        super().__init__()
        groups = config.norm_groups
        width = config.channels * config.channel_multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = nn.ModuleDict(dict(zip(("block_1", "attn_1", "block_2"), middle(width, groups), strict=True)))
        levels: list[Level] = []
        last = len(config.channel_multipliers) - 1
        for level in range(last, -1, -1):
            out = config.channels * config.channel_multipliers[level]
            block = Level(width, out, config.residual_blocks + 1, groups, attention=attention and level == last)
            if level != 0:
                block.upsample = Upsample(out)
            levels.append(block)
            width = out
        self.up = nn.ModuleList(reversed(levels))  # the checkpoint counts levels from the image
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in self.mid.values():
            x = layer(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """The residual blocks of one resolution, with attention where asked, then the step to the next."""

    def __init__(self, width: int, out: int, blocks: int, groups: int, *, attention: bool = False) -> None:
        super().__init__()
        widths = [width] + [out] * (blocks - 1)
        self.block = nn.ModuleList(ResnetBlock(w, out, groups) for w in widths)
        self.attn = nn.ModuleList(AttnBlock(out, groups) for _ in widths if attention)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        resample = self.downsample or self.upsample
        return resample(x) if resample is not None else x


def code_name(code: int) -> str:
    """What a Chameleon vocabulary calls an index of the codebook: 170 is ``IMGIMGBHAZ``, its digits as letters."""
    return f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z"


def code_ids(vocabulary: Mapping[str, int]) -> Tensor:
    """Where a Chameleon vocabulary keeps the codebook: the token id of each ``code_name``, int64 (codebook_size,).

    Raises:
        ZipARError: the vocabulary names no indices, or not all up to the last.
    """
    ids = {}
    for name, token in vocabulary.items():
        if found := re.fullmatch("IMGIMG([A-J]+)Z", name):
            ids[int("".join(str(ord(letter) - ord("A")) for letter in found[1]))] = token
    if not ids:
        raise ZipARError("the vocabulary names no image tokens (IMGIMGAZ ...): it is not that of a Chameleon")
    if missing := set(range(max(ids) + 1)) - ids.keys():
        raise ZipARError(f"the vocabulary lacks {len(missing)} image tokens, such as that of code {min(missing)}")
    return torch.tensor([ids[code] for code in range(len(ids))])
