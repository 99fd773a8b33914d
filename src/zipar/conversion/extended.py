"""Conversion of language models whose vocabulary goes on with a codebook."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from zipar.conversion.mixed_modal import Shards, language_model, write
from zipar.conversion.published import Weights, find_shards
from zipar.models.extended import Extended

TIED = "lm_head."
"""The head of a model whose head is its embeddings: some files hold it, and transformers does not."""


def convert(
    family: type[Extended],
    source: Path,
    tokenizer: Tokenizer,
    image_decoder: tuple[Weights, nn.Module],
    out: Path,
    image_size: int,
    dtype: torch.dtype | None,
) -> set[torch.dtype]:
    """Make a checkpoint of the directory of a language model, file by file: no more than one is in memory.

    Args:
        tokenizer: the codes come behind all its words.
        image_decoder: its weights, and what they are of, on the meta device.
        out: the directory to make.
        image_size: side in pixels of the square images that it makes unless told otherwise.
        dtype: of the stored language model; None for each tensor's own.

    Returns:
        The number formats of the stored language model.

    Raises:
        ZipARError: files are missing or damaged, or do not belong together, or ``out`` exists.
    """
    weights, pixels = image_decoder
    network = language_model(source, family.network, f"a {family.__name__}")
    shards = Shards(find_shards(source), (TIED,) if network.config.tie_word_embeddings else ())
    shards.check(network, source)
    model = family(network, tokenizer, pixels, image_size, tokenizer.get_vocab_size())
    return write(model, {"image_size": image_size, "first": model.first}, shards, weights, out, dtype)
