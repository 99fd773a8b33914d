"""Reading a VQGAN that taming-transformers trained: Meta's ``vqgan.ckpt`` of Chameleon, and those like it."""

from functools import partial
from pathlib import Path

import torch

from zipar.checkpoints.files import build, check_tensors
from zipar.conversion.published import Weights, count, read_pickle, shape_of
from zipar.image_tokenizers.chameleon import ChameleonImageDecoder
from zipar.image_tokenizers.vq import VQConfig

DECODING = ("decoder.", "quantize.", "post_quant_conv.")
"""What of it makes pixels."""


def vqgan_config(weights: Weights, source: Path, what: str) -> VQConfig:
    """The shape of the image decoder that is ``what``, by the names that taming-transformers gives to its parts.

    Raises:
        ZipARError: these are not the weights of one.
    """
    shape = partial(shape_of, weights, source, what)
    codebook_size, codebook_dim = shape("quantize.embedding.weight", 2)
    channels = shape("decoder.conv_out.weight", 4)[1]
    levels = count(weights, "decoder.up.")
    widths = [shape(f"decoder.up.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    return VQConfig(
        codebook_size,
        codebook_dim,
        channels,
        tuple(width // channels for width in widths),
        count(weights, "decoder.up.0.block.") - 1,
        shape("decoder.conv_in.weight", 4)[1],
    )


def read_vqgan(path: Path, what: str, *, attention: bool = False) -> tuple[Weights, ChameleonImageDecoder]:
    """All its tensors, and its image decoder, on the meta device.

    Args:
        path: the file, which should hold ``what``.
        attention: whether the image decoder has attention at its lowest resolution.

    Raises:
        ZipARError: the file is missing, damaged or not ``what``, or wants to run code.
    """
    weights, _ = read_pickle(path, ["state_dict"])
    weights = {name: value for name, value in weights.items() if not name.startswith("loss.")}
    with build(path), torch.device("meta"):
        decoder = ChameleonImageDecoder(vqgan_config(weights, path, what), attention=attention)
    check_tensors(decoding(weights), decoder, path)
    return weights, decoder


def decoding(weights: Weights) -> Weights:
    """Of all its tensors, those of the image decoder."""
    return {name: value for name, value in weights.items() if name.startswith(DECODING)}
