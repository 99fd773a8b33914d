"""Conversion of the published files of Lumina-mGPT and Anole."""

from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import ChameleonForConditionalGeneration

from zipar.checkpoints.files import check_tensors, read_config, read_tokenizer
from zipar.conversion.mixed_modal import Shards, language_model, write
from zipar.conversion.published import Weights, find_shards
from zipar.conversion.vqgan import decoding, read_vqgan
from zipar.errors import ZipARError
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.lumina_mgpt import PATCH, Chameleon, LuminaMGPT

ENCODER = "model.vqmodel."
"""Where transformers keeps the image encoder. What published files hold there is left out: vqgan.ckpt has it."""
NORMS = ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias")
"""Published with a row for each shard that the model was trained in; transformers wants one for each head."""


def convert(
    source: Path,
    vqgan: Path,
    out: Path,
    *,
    family: type[Chameleon] = LuminaMGPT,
    image_size: int = 512,
    dtype: torch.dtype | None = None,
) -> set[torch.dtype]:
    """Turn a published Lumina-mGPT or Anole into a directory that ``zipar.pipeline`` loads.

    ``out`` holds ``config.json``, ``tokenizer.json``, ``image_tokenizer.safetensors`` and ``decoder/``, which
    is a whole Chameleon for transformers. The decoder is converted file by file: no more than one is in memory.

    Args:
        source: directory of the published model, with ``config.json``, ``tokenizer.json`` and safetensors.
        vqgan: ``vqgan.ckpt``, Meta's image tokenizer.
        out: the directory to make.
        family: what the published model is.
        image_size: side in pixels of the square images that it was trained on. No file says it.
        dtype: of the stored decoder, which the authors run in bfloat16; None for each tensor's own. The image
            tokenizer is small, and is stored in float32, as they run it.

    Returns:
        The number formats of the stored decoder.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    tokenizer = read_tokenizer(source / "tokenizer.json")
    weights, image_decoder = read_vqgan(vqgan, "image tokenizer of Chameleon")
    # but for the first part, the image decoder's tensors are the encoder's too: so transformers has it
    encoder = {name: value for name, value in weights.items() if not name.startswith("decoder.")}
    change = {"vocabulary_map": _vocabulary(source, tokenizer), "vq_config": _settings(image_decoder.config)}
    model = language_model(source, ChameleonForConditionalGeneration, "a Lumina-mGPT or Anole", change)
    check_tensors(encoder, model.model.vqmodel, vqgan)
    del model.model.vqmodel
    converted = family(model, tokenizer, image_decoder, image_size)  # raises where the parts do not fit
    more = {ENCODER + name: value for name, value in encoder.items()}
    return write_chameleon(converted, source, decoding(weights), out, dtype, more)


def write_chameleon(
    model: Chameleon,
    source: Path,
    image_decoder: Weights,
    out: Path,
    dtype: torch.dtype | None,
    more: Weights | None = None,
) -> set[torch.dtype]:
    """Write a checkpoint of ``model``, on the meta device and without an image encoder, as ``mixed_modal.write`` does.

    Args:
        source: directory of the published model, whose weights are those of the decoder.

    Raises:
        ZipARError: the published files are not those of the model, it makes no images of its size, or ``out``
            exists. Nothing is written then.
    """
    side = model.image_size[0]
    if side < PATCH or side % PATCH:
        raise ZipARError(f"image size {side} is not possible: a Chameleon needs a multiple of {PATCH}")
    shards = Shards(find_shards(source), (ENCODER,), partial(_fitted, model.model.state_dict()))
    shards.check(model.model, source)
    model.header(model.grid(*model.image_size))
    return write(model, {"image_size": side}, shards, image_decoder, out, dtype, more)


def _fitted(wanted: Weights, name: str, tensor: Tensor) -> Tensor:
    """The tensor as transformers has it: the norm of a shard's heads once for each of them."""
    if name.endswith(NORMS) and name in wanted and tensor.ndim == 2 and len(tensor):
        return tensor.repeat_interleave(max(len(wanted[name]) // len(tensor), 1), dim=0)
    return tensor


def _vocabulary(source: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """The vocabulary that the decoder is used with.

    Raises:
        ZipARError: that of its config is not the tokenizer's.
    """
    words = tokenizer.get_vocab()
    vocabulary = read_config(source).get("vocabulary_map") or words
    if not isinstance(vocabulary, dict) or any(vocabulary.get(name, token) != token for name, token in words.items()):
        raise ZipARError(f"{source}: the vocabulary of config.json is not that of tokenizer.json")
    return vocabulary


def _settings(image_tokenizer: VQConfig) -> dict[str, object]:
    """The image tokenizer as transformers describes it."""
    return {
        "embed_dim": image_tokenizer.codebook_dim,
        "num_embeddings": image_tokenizer.codebook_size,
        "latent_channels": image_tokenizer.latent_channels,
        "base_channels": image_tokenizer.channels,
        "channel_multiplier": list(image_tokenizer.channel_multipliers),
        "num_res_blocks": image_tokenizer.residual_blocks,
    }
