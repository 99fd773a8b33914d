"""Conversion of the published files of SimpleAR."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen2Tokenizer

from zipar.checkpoints import files
from zipar.checkpoints.pretrained import load_processor
from zipar.conversion import extended
from zipar.conversion.cosmos import read_tokenizer
from zipar.image_tokenizers.cosmos import CosmosDecoder
from zipar.models.simplear import SimpleAR

DECODING = ("decoder.", "post_quant_conv.")
"""What of the video tokenizer makes pixels."""


def convert(
    source: Path, tokenizer: Path, out: Path, *, image_size: int = 1024, dtype: torch.dtype | None = None
) -> set[torch.dtype]:
    """Turn a published SimpleAR into a directory that ``zipar.pipeline`` loads.

    ``out`` holds ``config.json``, ``tokenizer.json``, ``image_tokenizer.safetensors`` and ``decoder/``, which is the
    Qwen2 for transformers, converted file by file: no more than one is in memory.

    Args:
        source: directory of a model, such as Daniel0724/SimpleAR-1.5B-RL, with ``config.json``, safetensors, and
            ``tokenizer.json`` or ``vocab.json`` and what belongs to that.
        tokenizer: directory of nvidia/Cosmos-1.0-Tokenizer-DV8x16x16, with ``encoder.jit`` and ``decoder.jit``, or with
            ``autoencoder.jit``. No code in them is run.
        out: the directory to make.
        image_size: side in pixels of the square images that it was trained on last.
        dtype: of the stored Qwen2, which the authors run in bfloat16; None for each tensor's own. The image decoder is
            small, and is stored in float32.

    Returns:
        The number formats of the stored Qwen2.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    words = _words(source)
    weights, shape = read_tokenizer(tokenizer)
    with torch.device("meta"):
        image_decoder = CosmosDecoder(shape)
    weights = {name: value for name, value in weights.items() if name.startswith(DECODING)}
    return extended.convert(SimpleAR, source, words, (weights, image_decoder), out, image_size, dtype)


def _words(source: Path) -> Tokenizer:
    """The text tokenizer, which may be published in the several files of older versions of transformers.

    Raises:
        ZipARError: it is missing or damaged.
    """
    if not (source / "vocab.json").exists() or (source / "tokenizer.json").exists():
        return files.read_tokenizer(source / "tokenizer.json")
    made: Tokenizer = load_processor(Qwen2Tokenizer, source).backend_tokenizer
    return made
