"""Conversion of the published files of Lumina-mGPT, Anole and Chameleon's image tokenizer."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from zipar.checkpoints.files import build, check_tensors, outline, read_config, read_tokenizer
from zipar.conversion.published import (
    Weights,
    find_shards,
    in_format,
    read_pickle,
    vqgan_config,
    widest,
    write_shards,
)
from zipar.errors import ZipARError
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.lumina_mgpt import PATCH, Chameleon, LuminaMGPT
from zipar.writing import new_directory

ENCODER = "model.vqmodel."
"""Where transformers keeps the image encoder. What published files hold there is left out: vqgan.ckpt has it."""
DECODING = ("decoder.", "quantize.", "post_quant_conv.")
"""What of vqgan.ckpt makes pixels; the encoder is all but the first, for so transformers has it."""
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
    weights, _ = read_pickle(vqgan, ["state_dict"])
    weights = {name: value for name, value in weights.items() if not name.startswith("loss.")}
    shape = vqgan_config(weights, vqgan, "image tokenizer of Chameleon")
    config = _decoder_config(source, tokenizer, shape)
    with build(source), torch.device("meta"):
        model = ChameleonForConditionalGeneration(config)
    with build(vqgan), torch.device("meta"):
        decoder = family.image_decoder(shape)
    image_decoder = {name: value for name, value in weights.items() if name.startswith(DECODING)}
    encoder = {name: value for name, value in weights.items() if not name.startswith("decoder.")}
    check_tensors(image_decoder, decoder, vqgan)
    check_tensors(encoder, model.model.vqmodel, vqgan)
    del model.model.vqmodel
    converted = family(model, tokenizer, decoder, image_size)  # raises where the parts do not fit
    image_encoder = {ENCODER + name: value for name, value in encoder.items()}
    return write(source, out, converted, image_decoder, image_encoder, dtype)


def write(
    source: Path,
    out: Path,
    converted: Chameleon,
    image_decoder: Weights,
    image_encoder: Weights,
    dtype: torch.dtype | None,
) -> set[torch.dtype]:
    """Write the checkpoint directory of a Chameleon, file by file: no more than one is in memory.

    Args:
        source: directory of the published model.
        out: the directory to make.
        converted: the model without weights, and without an image encoder.
        image_decoder: tensors of its image decoder; these and the next are stored in float32.
        image_encoder: tensors to store with the decoder, by the names that they have there.
        dtype: of the stored decoder; None for each tensor's own.

    Returns:
        The number formats of the stored decoder.

    Raises:
        ZipARError: the published files are not those of the model, or ``out`` exists. Nothing is written then.
    """
    side, config = converted.image_size[0], converted.model.config
    if side < PATCH or side % PATCH:
        raise ZipARError(f"image size {side} is not possible: a Chameleon needs a multiple of {PATCH}")
    shards, wanted = find_shards(source), converted.model.state_dict()
    outlines = {name: tensor for shard in shards for name, tensor in _outline(shard).items()}
    check_tensors({name: _fitted(name, tensor, wanted) for name, tensor in outlines.items()}, converted.model, source)
    converted.header(converted.grid(*converted.image_size))
    settings = {
        "model_type": converted.family,
        "image_size": side,
        "image_tokenizer": dataclasses.asdict(converted.image_tokenizer.config),
        "sampling": dataclasses.asdict(converted.defaults),
    }
    formats: set[torch.dtype] = set()

    def decoder_files() -> Iterator[Weights]:
        for shard in shards:
            tensors = _converted(shard, wanted, dtype)
            formats.update(tensor.dtype for tensor in tensors.values())
            yield tensors
        if image_encoder:
            yield {name: value.float() for name, value in image_encoder.items()}

    with new_directory(out) as scratch:
        (scratch / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(source / "tokenizer.json", scratch / "tokenizer.json")
        stored = {name: value.float().contiguous() for name, value in image_decoder.items()}
        save_file(stored, scratch / "image_tokenizer.safetensors")
        (scratch / "decoder").mkdir()
        write_shards(scratch / "decoder", decoder_files(), len(shards) + bool(image_encoder))
        config.dtype = widest(formats)
        config.save_pretrained(scratch / "decoder")
    return formats


def _outline(shard: Path) -> Weights:
    """The tensors of a safetensors file, without their values; those of an image encoder are left out."""
    return {name: tensor for name, tensor in outline(shard).items() if not name.startswith(ENCODER)}


def _converted(shard: Path, wanted: Weights, dtype: torch.dtype | None) -> Weights:
    """The tensors that ``_outline`` lists, as they are to be stored."""
    with safetensors.safe_open(shard, "pt") as file:
        names = [name for name in file.keys() if not name.startswith(ENCODER)]  # noqa: SIM118
        return {name: in_format(_fitted(name, file.get_tensor(name), wanted), dtype).contiguous() for name in names}


def _fitted(name: str, tensor: Tensor, wanted: Weights) -> Tensor:
    """The tensor as transformers has it: the norm of a shard's heads once for each of them."""
    if name.endswith(NORMS) and name in wanted and tensor.ndim == 2 and len(tensor):
        return tensor.repeat_interleave(max(len(wanted[name]) // len(tensor), 1), dim=0)
    return tensor


def _decoder_config(source: Path, tokenizer: Tokenizer, image_tokenizer: VQConfig) -> ChameleonConfig:
    """The config of the decoder, with the vocabulary and the image tokenizer that it is used with.

    Raises:
        ZipARError: it is not that of a Chameleon, or its vocabulary is not the tokenizer's.
    """
    published = published_config(source)
    words = tokenizer.get_vocab()
    vocabulary = published.get("vocabulary_map") or words
    if not isinstance(vocabulary, dict) or any(vocabulary.get(name, token) != token for name, token in words.items()):
        raise ZipARError(f"{source}: the vocabulary of config.json is not that of tokenizer.json")
    vq_config = {
        "embed_dim": image_tokenizer.codebook_dim,
        "num_embeddings": image_tokenizer.codebook_size,
        "latent_channels": image_tokenizer.latent_channels,
        "base_channels": image_tokenizer.channels,
        "channel_multiplier": list(image_tokenizer.channel_multipliers),
        "num_res_blocks": image_tokenizer.residual_blocks,
    }
    with build(source):
        return ChameleonConfig.from_dict({**published, "vocabulary_map": vocabulary, "vq_config": vq_config})


def published_config(source: Path) -> dict[str, Any]:
    """What of a published ``config.json`` transformers' Chameleon knows.

    Raises:
        ZipARError: it is not that of a Chameleon.
    """
    config = read_config(source)
    if (kind := config.get("model_type")) != "chameleon":
        raise ZipARError(f"{source} holds a model of type {kind!r}: give the directory of a Lumina-mGPT or Anole")
    known = {field.name for field in dataclasses.fields(ChameleonConfig)} | {"rope_theta", "rope_scaling"}
    kept = {name: value for name, value in config.items() if name in known}
    return {**kept, "architectures": ["ChameleonForConditionalGeneration"]}
