"""Conversion of the published files of commaVQ's world model, gpt2m."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from zipar.arguments import shown
from zipar.checkpoints.files import build, check_tensors, read_config
from zipar.conversion.published import Weights, count, in_format, read_pickle, shape_of
from zipar.errors import ZipARError
from zipar.image_tokenizers.commavq import CommaVQTokenizer
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.commavq import GPT, CommaVQ, CommaVQConfig
from zipar.writing import new_directory

DECODER = "pytorch_model.bin"
ENCODER, IMAGE_DECODER = "encoder_pytorch_model.bin", "decoder_pytorch_model.bin"
"""The two halves of the image tokenizer."""

NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")
"""Masks of transformers' GPT-2, which has them computed."""
TRANSPOSED = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
"""Published as (in, out): transformers' GPT-2 has convolutions there."""


def convert(source: Path, out: Path, *, dtype: torch.dtype | None = None) -> set[torch.dtype]:
    """Turn the published files of commaVQ into a directory that ``zipar.pipeline`` loads.

    Args:
        source: directory of commaai/commavq-gpt2m: ``config.json``, ``pytorch_model.bin``,
            ``encoder_pytorch_model.bin`` and ``decoder_pytorch_model.bin``.
        out: the directory to make.
        dtype: of the stored decoder, which the authors run in bfloat16; None for each tensor's own. The image
            tokenizer is small, and is stored in float32, as they run it.

    Returns:
        The number formats of the stored decoder.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    settings = read_config(source)
    if settings.get("model_type") != "gpt2":
        raise ZipARError(
            f"{source} holds a model of type {settings.get('model_type')!r}, not commaVQ's GPT-2: give the "
            "directory of commaai/commavq-gpt2m"
        )
    weights, _ = read_pickle(source / DECODER, (), NOT_WEIGHTS)
    encoder, _ = read_pickle(source / ENCODER, ())
    image_decoder, _ = read_pickle(source / IMAGE_DECODER, ())
    config = _decoder_config(weights, source / DECODER, settings.get("n_head"))
    tokenizer_config = _tokenizer_config(encoder, source / ENCODER)
    with build(source / ENCODER), torch.device("meta"):
        decoder, image_tokenizer = GPT(config), CommaVQTokenizer(tokenizer_config)
    defaults = CommaVQ(decoder, image_tokenizer).defaults  # raises where they do not belong together
    weights = {
        name: value.T if name.endswith(TRANSPOSED) and value.ndim == 2 else value for name, value in weights.items()
    }
    check_tensors(weights, decoder, source / DECODER)
    check_tensors(encoder, image_tokenizer.encoder, source / ENCODER)
    check_tensors(image_decoder, image_tokenizer.decoder, source / IMAGE_DECODER)

    weights["lm_head.weight"] = weights["lm_head.weight"].clone()  # may be the embeddings, which safetensors refuses
    halves = {f"encoder.{name}": value for name, value in encoder.items()}
    halves |= {f"decoder.{name}": value for name, value in image_decoder.items()}
    described = {
        "model_type": CommaVQ.family,
        "decoder": dataclasses.asdict(config),
        "image_tokenizer": dataclasses.asdict(tokenizer_config),
        "sampling": dataclasses.asdict(defaults),
    }
    with new_directory(out) as scratch:
        (scratch / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        _save(halves, scratch / "image_tokenizer.safetensors", torch.float32)
        return _save(weights, scratch / "decoder.safetensors", dtype)


def _save(weights: Weights, path: Path, dtype: torch.dtype | None) -> set[torch.dtype]:
    """Write a file of tensors; returns their number formats."""
    tensors = {name: in_format(value, dtype).contiguous() for name, value in weights.items()}
    save_file(tensors, path)
    return {tensor.dtype for tensor in tensors.values()}


def _decoder_config(weights: Weights, source: Path, heads: object) -> CommaVQConfig:
    """The shape of the decoder.

    Raises:
        ZipARError: these are not the weights of commaVQ's decoder, or not of so many heads.
    """
    shape = partial(shape_of, weights, source, "decoder of commaVQ")
    vocabulary, dim = shape("transformer.wte.weight", 2)
    positions, _ = shape("transformer.wpe.weight", 2)
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise ZipARError(
            f"{source.parent / 'config.json'}: n_head {shown(heads)} does not fit a decoder {dim} wide: fetch it again"
        )
    layers, published = count(weights, "transformer.h."), CommaVQConfig()
    frames, rest = divmod(positions, published.frame)
    if rest or frames == 0:
        raise ZipARError(
            f"{source} is no decoder of commaVQ: its {positions} positions are no whole frames of {published.frame}"
        )
    return CommaVQConfig(layers, heads, dim, vocabulary - 1, frames=frames)


def _tokenizer_config(weights: Weights, source: Path) -> VQConfig:
    """The shape of the image tokenizer, by its encoder.

    Raises:
        ZipARError: these are not the weights of commaVQ's encoder.
    """
    shape = partial(shape_of, weights, source, "encoder of commaVQ")
    codebook_size, codebook_dim = shape("quantize._embedding.weight", 2)
    channels = shape("conv_in.weight", 4)[0]
    levels = max(count(weights, "down."), 1)
    widths = [shape(f"down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    return VQConfig(
        codebook_size,
        codebook_dim,
        channels,
        tuple(width // channels for width in widths),
        count(weights, "down.0.block."),
        shape("conv_out.weight", 4)[0],
    )
