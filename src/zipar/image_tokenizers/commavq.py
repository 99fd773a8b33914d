"""commaVQ's image tokenizer: frames of a driving video <-> codebook indices, 16 x 16 pixels a token.

A VQGAN (Esser et al., "Taming Transformers", CVPR 2021), published as two files, an encoder and a decoder, each with
the codebook (github.com/commaai/commavq, utils/vqvae.py). Parameter names are theirs, so their tensors load unchanged.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from zipar.image_tokenizers import chameleon
from zipar.image_tokenizers.chameleon import Level
from zipar.image_tokenizers.vq import Downsample, VQConfig, middle

PUBLISHED = VQConfig(codebook_size=1024, codebook_dim=256)


class CommaVQTokenizer(nn.Module):
    """Frames <-> grids of codebook indices.

    Pixels are float tensors (batch, 3, height, width) from 0 to 255; indices are int64 tensors (batch, rows, columns)
    in [0, codebook_size).
    """

    def __init__(self, config: VQConfig = PUBLISHED) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Tensor:
        """Codebook indices (batch, rows, columns) of ``pixels``."""
        return self.encoder.encode(pixels)

    def decode(self, indices: Tensor) -> Tensor:
        """Pixels (batch, 3, height, width), roughly from 0 to 255, of codebook indices."""
        return self.decoder.decode(indices)


class Encoder(nn.Module):
    """The published ``encoder_pytorch_model.bin``."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups, width = config.norm_groups, config.channels
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        last = len(config.channel_multipliers) - 1
        for level, multiplier in enumerate(config.channel_multipliers):
            out = config.channels * multiplier
            block = Level(width, out, config.residual_blocks, groups, attention=level == last)
            if level != last:
                block.downsample = Downsample(out)
            self.down.append(block)
            width = out
        self.mid = nn.ModuleDict(dict(zip(("block_1", "attn_1", "block_2"), middle(width, groups), strict=True)))
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)
        self.quantize = Codebook(config.codebook_size, config.codebook_dim)

    def latents(self, pixels: Tensor) -> Tensor:
        """Unquantised latents (batch, rows, columns, codebook_dim) of ``pixels``."""
        x = self.conv_in(pixels)
        for layer in (*self.down, *self.mid.values()):
            x = layer(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(x)))).permute(0, 2, 3, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """The nearest codes of ``pixels``, (batch, rows, columns)."""
        return self.quantize.nearest(self.latents(pixels))


class Decoder(chameleon.Decoder):
    """The published ``decoder_pytorch_model.bin``."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config, attention=True)
        self.quantize = Codebook(config.codebook_size, config.codebook_dim)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)

    def decode(self, indices: Tensor) -> Tensor:
        """Pixels (batch, 3, height, width) of codebook indices (batch, rows, columns)."""
        codes = self.quantize.codes[indices].permute(0, 3, 1, 2)
        return (self(self.post_quant_conv(codes)) + 1) * 127.5


class Codebook(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self._embedding = nn.Embedding(size, dim)

    @property
    def codes(self) -> Tensor:
        """(size, dim)."""
        return self._embedding.weight

    def nearest(self, latents: Tensor) -> Tensor:
        """Latents (..., dim) -> indices (...)."""
        # in the order of the authors' sum, which decides between codes that are nearly as near
        distances = latents.square().sum(-1, keepdim=True) + self.codes.square().sum(1) - 2 * (latents @ self.codes.T)
        return distances.argmin(-1)
