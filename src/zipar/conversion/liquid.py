"""Conversion of the published files of Liquid."""

from pathlib import Path

import torch

from zipar.checkpoints.files import read_tokenizer
from zipar.conversion import extended
from zipar.conversion.vqgan import decoding, read_vqgan
from zipar.models.liquid import Liquid


def convert(
    source: Path, vqgan: Path, out: Path, *, image_size: int = 512, dtype: torch.dtype | None = None
) -> set[torch.dtype]:
    """Turn a published Liquid into a directory that ``zipar.pipeline`` loads.

    ``out`` holds ``config.json``, ``tokenizer.json``, ``image_tokenizer.safetensors`` and ``decoder/``, which is the
    Gemma for transformers, converted file by file: no more than one is in memory.

    Args:
        source: directory of Junfeng5/Liquid_V1_7B, with ``config.json``, ``tokenizer.json`` and safetensors.
        vqgan: ``vqgan.ckpt``, Meta's image tokenizer.
        out: the directory to make.
        image_size: side in pixels of the square images that it was trained on.
        dtype: of the stored Gemma, which the authors run in bfloat16; None for each tensor's own. The image tokenizer
            is small, and is stored in float32, as they run it.

    Returns:
        The number formats of the stored Gemma.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    tokenizer = read_tokenizer(source / "tokenizer.json")
    weights, image_decoder = read_vqgan(vqgan, "image tokenizer of Chameleon")
    return extended.convert(Liquid, source, tokenizer, (decoding(weights), image_decoder), out, image_size, dtype)
