"""LlamaGen checkpoint directories: writing one, and conversion of the published .pt files."""

import dataclasses
import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from zipar.checkpoints.files import build, check_tensors, read_config
from zipar.conversion.published import Weights, count, in_format, read_pickle, shape_of
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.clips import Clips
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer, load_text_encoder
from zipar.writing import new_directory

PUBLISHED_HEADS = {
    (12, 768): 12,
    (24, 1024): 16,
    (36, 1280): 20,
    (48, 1536): 24,
    (48, 2560): 40,
    (22, 2048): 32,
    (24, 3200): 32,
    (32, 4096): 32,
}
"""Attention heads by (layers, dim): B, L, XL, XXL, XXXL, 1B, 3B, 7B. No tensor's shape tells them."""

CLASS_SAMPLING = Sampling(guidance_scale=4.0, top_k=2000)
"""As in the authors' sample script for class-conditional models."""
TEXT_SAMPLING = Sampling(guidance_scale=7.5, top_k=1000)
"""As in the authors' sample script for text-conditional models."""

KEYS = ("model", "module", "state_dict")
"""Where the authors' files hold their weights."""
NOT_WEIGHTS = {"freqs_cis", "quantize.codebook_used"}
"""Buffers of the authors' code on which no image depends: computed ones, and those of training."""

Module = TypeVar("Module", bound=nn.Module)


def write(model: LlamaGen, directory: Path, dtype: torch.dtype | None = None) -> None:
    """Save ``model`` as a self-contained directory that ``zipar.pipeline`` loads.

    It holds ``config.json``, ``decoder.safetensors``, ``image_tokenizer.safetensors`` and, for
    text-conditional models, ``text_encoder/``; weights are stored as ``dtype``, None for what each has.

    Raises:
        ZipARError: ``directory`` exists and is not empty, or cannot be written.
    """
    config = {
        "model_type": model.family,
        "decoder": dataclasses.asdict(model.decoder.config),
        "image_tokenizer": dataclasses.asdict(model.image_tokenizer.config),
        "sampling": dataclasses.asdict(model.defaults),
    }
    if isinstance(model, Clips):
        config["clip"] = {"fps": model.fps}
    with new_directory(directory) as scratch:
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, module in (("decoder", model.decoder), ("image_tokenizer", model.image_tokenizer)):
            tensors = {key: in_format(value, dtype).contiguous() for key, value in module.state_dict().items()}
            save_file(tensors, scratch / f"{name}.safetensors")
        if model.text_encoder is not None:
            encoder = model.text_encoder if dtype is None else deepcopy(model.text_encoder).to(dtype)
            encoder.save_pretrained(scratch / "text_encoder")
            model.text_tokenizer.save_pretrained(scratch / "text_encoder")
        if model.vocabulary is not None:
            prompts = dataclasses.asdict(model.vocabulary)
            del prompts["numbered"]  # the decoder tells
            (scratch / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n", encoding="utf-8")


def convert(
    gpt: Path,
    vq: Path,
    text_encoder: Path | None,
    out: Path,
    *,
    image_size: int | None = None,
    heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> set[torch.dtype]:
    """Turn the published files of a LlamaGen into a directory that ``zipar.pipeline`` loads.

    Args:
        gpt: the decoder, such as ``c2i_B_384.pt``; the shapes of its tensors say all but what follows.
        vq: the image tokenizer, such as ``vq_ds16_c2i.pt``.
        text_encoder: directory of the T5 encoder of a text-conditional model, as transformers saves it
            (published: FLAN-T5-XL; a whole T5 will do); None for class-conditional models.
        out: the directory to make.
        image_size: side in pixels of the images that the decoder was trained on; None where the
            checkpoint says, as those written while training do.
        heads: attention heads; None for those of the published size of that many layers and that width.
        dtype: of the stored decoder and text encoder, which the authors run in bfloat16; None for each tensor's
            own. The image tokenizer is small, and is stored in float32, as they run it.

    Returns:
        The number formats of the stored decoder and text encoder.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    weights, checkpoint = read_pickle(gpt, KEYS, NOT_WEIGHTS)
    tokenizer_weights, _ = read_pickle(vq, KEYS, NOT_WEIGHTS)
    tokenizer_config = _tokenizer_config(tokenizer_weights, vq)
    config = _decoder_config(weights, gpt, heads)
    if config.vocab_size != tokenizer_config.codebook_size:
        raise ZipARError(
            f"{gpt} and {vq} do not belong together: the decoder knows {config.vocab_size} tokens, "
            f"the image tokenizer {tokenizer_config.codebook_size}"
        )
    side = _grid_side(
        image_size or getattr(checkpoint.get("args"), "image_size", None), config, tokenizer_config.downsampling, gpt
    )
    config = dataclasses.replace(config, grid_side=side)
    _check_text_encoder(text_encoder, config.caption_dim, gpt)
    decoder = _module(partial(Transformer, config), weights, gpt, dtype)
    image_tokenizer = _module(partial(VQModel, tokenizer_config), tokenizer_weights, vq, torch.float32)
    encoder, words = None, None
    if text_encoder is not None:
        encoder, words = load_text_encoder(text_encoder, dtype or torch.float32)
        encoder = encoder.to(dtype or _text_format(text_encoder))
    sampling = CLASS_SAMPLING if config.caption_dim is None else TEXT_SAMPLING
    write(LlamaGen(decoder, image_tokenizer, encoder, words, sampling), out)
    return {weight.dtype for module in (decoder, encoder) if module is not None for weight in module.parameters()}


def _decoder_config(weights: Weights, source: Path, heads: int | None) -> LlamaGenConfig:
    """The shape of the decoder, except for its grid.

    Raises:
        ZipARError: these are not the weights of a LlamaGen decoder, or its heads are not known.
    """
    if "quantize.embedding.weight" in weights:
        raise ZipARError(f"{source} is an image tokenizer and not a decoder: give GPT.pt first, then VQ.pt")
    shape = partial(shape_of, weights, source, "LlamaGen decoder")
    vocab_size, dim = shape("tok_embeddings.weight", 2)
    width, _ = shape("layers.0.attention.wqkv.weight", 2)
    hidden, _ = shape("layers.0.feed_forward.w1.weight", 2)
    layers = count(weights, "layers.")
    if heads is None:
        heads = PUBLISHED_HEADS.get((layers, dim))
    if heads is None:
        raise ZipARError(
            f"{source} is of no published size ({layers} layers, {dim} wide): say how many attention heads it has"
        )
    if heads < 1 or dim % (4 * heads):
        raise ZipARError(f"{heads} attention heads do not fit {source}: 4 times their number must divide {dim}")
    kv_heads, rest = divmod(width - dim, 2 * (dim // heads))
    if rest or kv_heads < 1 or heads % kv_heads:
        raise ZipARError(f"{heads} attention heads do not fit {source}: its layers are {width} wide before attention")
    config = LlamaGenConfig(layers, heads, dim, kv_heads, vocab_size)
    if config.hidden_dim != hidden:
        multiplier = (hidden + 0.5) / int(8 * dim / 3)  # the half keeps rounding down from ending one below
        config = dataclasses.replace(config, multiple_of=1, ffn_dim_multiplier=multiplier)
    if "cls_embedding.uncond_embedding" in weights:
        length, caption_dim = shape("cls_embedding.uncond_embedding", 2)
        return dataclasses.replace(config, prefix_length=length, caption_dim=caption_dim)
    classes, _ = shape("cls_embedding.embedding_table.weight", 2)
    return dataclasses.replace(config, classes=classes - 1)  # the last row stands for no class


def _tokenizer_config(weights: Weights, source: Path) -> VQConfig:
    """The shape of the image tokenizer.

    Raises:
        ZipARError: these are not the weights of a LlamaGen image tokenizer.
    """
    if "tok_embeddings.weight" in weights:
        raise ZipARError(f"{source} is a decoder and not an image tokenizer: give GPT.pt first, then VQ.pt")
    shape = partial(shape_of, weights, source, "LlamaGen image tokenizer")
    codebook_size, codebook_dim = shape("quantize.embedding.weight", 2)
    channels = shape("encoder.conv_in.weight", 4)[0]
    levels = count(weights, "encoder.conv_blocks.")
    widths = [shape(f"encoder.conv_blocks.{level}.res.0.conv1.weight", 4)[0] for level in range(levels)]
    return VQConfig(
        codebook_size,
        codebook_dim,
        channels,
        tuple(width // channels for width in widths),
        count(weights, "encoder.conv_blocks.0.res."),
        shape("encoder.conv_out.weight", 4)[0],
    )


def _grid_side(image_size: Any, config: LlamaGenConfig, downsampling: int, source: Path) -> int:
    published = "256 or 384" if config.caption_dim is None else "256 or 512"
    if image_size is None:
        raise ZipARError(
            f"{source} does not say which image size it was trained on: give it ({published} as published)"
        )
    if not isinstance(image_size, int) or image_size < downsampling or image_size % downsampling:
        raise ZipARError(
            f"image size {image_size} is not possible: the image tokenizer needs a multiple of {downsampling} "
            f"({published} as published)"
        )
    return image_size // downsampling


def _check_text_encoder(directory: Path | None, caption_dim: int | None, source: Path) -> None:
    """Raise where the text encoder is not the one that the decoder wants, before gigabytes are read."""
    if directory is None:
        if caption_dim is not None:
            raise ZipARError(f"{source} is text-conditional: give the directory of its T5 encoder too (FLAN-T5-XL)")
        return
    if caption_dim is None:
        raise ZipARError(f"{source} is class-conditional and takes no text encoder: leave {directory} out")
    width = read_config(directory).get("d_model")
    if width != caption_dim:
        raise ZipARError(
            f"{directory} does not fit {source}: it gives features {width} wide, the decoder takes {caption_dim} "
            "(published: FLAN-T5-XL, 2048)"
        )


def _text_format(directory: Path) -> torch.dtype:
    """The one number format of all tensors of a text encoder, else float32, which loses nothing of theirs."""
    found = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(found.pop() if len(found) == 1 else "", torch.float32)


def _module(make: Callable[[], Module], weights: Weights, source: Path, dtype: torch.dtype | None) -> Module:
    """A module that takes over ``weights``; each is converted, and released, in turn."""
    with build(source), torch.device("meta"):
        module = make()
    check_tensors(weights, module, source)
    module.load_state_dict(weights, assign=True)
    return module if dtype is None else module.to(dtype)
