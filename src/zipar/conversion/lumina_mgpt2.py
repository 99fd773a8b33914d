"""Conversion of the published files of Lumina-mGPT 2.0 and of MoVQGAN, its image tokenizer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import ChameleonForConditionalGeneration

from zipar.checkpoints.files import build, check_tensors, read_config, read_tokenizer
from zipar.conversion.lumina_mgpt import write_chameleon
from zipar.conversion.mixed_modal import language_model
from zipar.conversion.published import read_pickle
from zipar.conversion.vqgan import decoding, vqgan_config
from zipar.errors import ZipARError
from zipar.image_tokenizers.chameleon import code_name
from zipar.image_tokenizers.movqgan import renamed
from zipar.models.lumina_mgpt2 import LuminaMGPT2

FIRST_CODE = 155000
"""The id of the first image token. It is in the authors' code, and in no file."""
COUNTERS = ("num_updates", "num_batches_tracked")
"""How the integers end that training leaves beside weights."""


def convert(
    source: Path,
    movqgan: Path,
    out: Path,
    *,
    image_size: int = LuminaMGPT2.image_side,
    dtype: torch.dtype | None = None,
) -> set[torch.dtype]:
    """Turn a published Lumina-mGPT 2.0 into a directory that ``zipar.pipeline`` loads.

    ``out`` holds ``config.json``, ``tokenizer.json``, ``image_tokenizer.safetensors`` and ``decoder/``, a Chameleon of
    transformers without its image encoder, whose config names the image tokens as Chameleon's does. The decoder is
    converted file by file: no more than one is in memory.

    Args:
        source: directory of the published model, with ``config.json``, ``tokenizer.json``, ``tokenizer_config.json``
            and safetensors.
        movqgan: ``movqgan_270M.ckpt`` of ai-forever, of which what makes pixels is read.
        out: the directory to make.
        image_size: side in pixels of the square images that it was trained on.
        dtype: of the stored decoder, which the authors run in bfloat16; None for each tensor's own. The image
            tokenizer is small, and is stored in float32, as they run it.

    Returns:
        The number formats of the stored decoder.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    tokenizer = read_tokenizer(source / "tokenizer.json")
    weights, _ = read_pickle(movqgan, ["state_dict"], COUNTERS)
    weights = decoding(weights)
    shape = vqgan_config(weights, movqgan, "MoVQGAN")
    words = tokenizer.get_vocab()
    codes = {code_name(code): FIRST_CODE + code for code in range(shape.codebook_size)}
    change = {
        "architectures": [ChameleonForConditionalGeneration.__name__],
        "vocabulary_map": words | codes,
        "vq_config": None,
        "bos_token_id": _beginning(source, words),
    }
    model = language_model(source, LuminaMGPT2.network, "a Lumina-mGPT 2.0", change)
    with build(movqgan), torch.device("meta"):
        decoder = LuminaMGPT2.image_decoder(dataclasses.asdict(shape))
    image_decoder = renamed(weights, shape)
    check_tensors(image_decoder, decoder, movqgan)
    converted = LuminaMGPT2(model, tokenizer, decoder, image_size)  # raises where the parts do not fit
    return write_chameleon(converted, source, image_decoder, out, dtype)


def _beginning(source: Path, words: Mapping[str, int]) -> int:
    """The token id that prompts begin with: where the tokenizer has none for it, the one that ends sequences.

    Raises:
        ZipARError: the tokenizer's config names neither, or one that the tokenizer does not know.
    """
    settings = read_config(source, "tokenizer_config.json")
    token = settings.get("bos_token") or settings.get("eos_token")
    name = str(token.get("content") if isinstance(token, dict) else token)
    if name not in words:
        raise ZipARError(
            f"{source / 'tokenizer_config.json'} says that prompts begin with {name!r}, which tokenizer.json does not "
            "know: fetch both again"
        )
    return words[name]
