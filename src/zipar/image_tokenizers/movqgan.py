"""MoVQGAN's image decoder: codebook indices -> pixels, 8 x 8 of them a token.

The decoding half of the VQGAN of Zheng et al. ("MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation",
NeurIPS 2022), whose norms are scaled and shifted by the codes themselves. Its network is that of diffusers'
``VQModel``; ``renamed`` gives the tensors of https://github.com/ai-forever/MoVQGAN the names that they have there.
"""

import re

from torch import Tensor, nn

from zipar.image_tokenizers.vq import VQConfig

PUBLISHED = VQConfig(16384, 4, 256, (1, 2, 2, 4), 2, 4)
"""MoVQGAN-270M."""


class MoVQGANDecoder(nn.Module):
    """Grids of codebook indices, int64 (batch, rows, columns), -> pixels (batch, 3, height, width) in [-1, 1]."""

    def __init__(self, config: VQConfig = PUBLISHED) -> None:
        from diffusers.models.autoencoders.vae import Decoder  # which all else does without

        super().__init__()
        self.config = config
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.codebook_size, config.codebook_dim)})
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)
        levels = len(config.channel_multipliers)
        self.decoder = Decoder(
            in_channels=config.latent_channels,
            up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * (levels - 1)),
            block_out_channels=tuple(config.channels * multiplier for multiplier in config.channel_multipliers),
            layers_per_block=config.residual_blocks,
            norm_num_groups=config.norm_groups,
            norm_type="spatial",
        )

    def decode(self, indices: Tensor) -> Tensor:
        """Pixels, float (batch, 3, height, width) and roughly in [-1, 1], of codebook indices."""
        codes = self.quantize["embedding"](indices).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(codes), codes)


_NAMES = {
    r"\.mid\.block_1\.": ".mid_block.resnets.0.",
    r"\.mid\.block_2\.": ".mid_block.resnets.1.",
    r"\.mid\.attn_1\.": ".mid_block.attentions.0.",
    r"\.block\.": ".resnets.",
    r"\.attn\.": ".attentions.",
    r"\.upsample\.": ".upsamplers.0.",
    r"\.nin_shortcut\.": ".conv_shortcut.",
    r"\.norm_out\.": ".conv_norm_out.",
    r"\.norm\.": ".spatial_norm.",
    r"\.([qkv])\.": r".to_\1.",
    r"\.proj_out\.": ".to_out.0.",
}
"""How diffusers calls parts of the decoder."""


def renamed(weights: dict[str, Tensor], config: VQConfig) -> dict[str, Tensor]:
    """Tensors of a MoVQGAN, under its authors' names, -> as a :class:`MoVQGANDecoder` has them.

    Levels are counted from the smallest on, and attention's 1 x 1 convolutions are linear layers.
    """
    found: dict[str, Tensor] = {}
    last = len(config.channel_multipliers) - 1
    for name, tensor in weights.items():
        name = re.sub(r"\.up\.(\d+)\.", lambda level: f".up_blocks.{last - int(level[1])}.", name)
        for theirs, ours in _NAMES.items():
            name = re.sub(theirs, ours, name)
        linear = ".to_" in name and tensor.ndim == 4
        found[name] = tensor.flatten(1) if linear else tensor
    return found
