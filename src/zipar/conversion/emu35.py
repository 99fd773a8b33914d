"""Conversion of the published Emu3.5 and Emu3.5-Image, running none of the code published with them."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from zipar.checkpoints.files import build, check_tensors, outline
from zipar.conversion.emu_words import NAMED_IDS, check_vocabulary, read_settings, read_vocabulary, tokenizer
from zipar.conversion.published import (
    Weights,
    find_shards,
    in_format,
    read_pickle,
    vqgan_config,
    widest,
    write_shards,
)
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.models.emu35 import DIGITS, IMAGE, SIZES, Emu35
from zipar.writing import new_directory

SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    *NAMED_IDS,
)
"""What of the published config Qwen3 calls by the same name, and the ids of what is around an image."""
DEFAULTS = {
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_dropout": 0.1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "pad_token_id": 151643,
    "eol_token_id": 151846,
    "eof_token_id": 151847,
    "bos_token_id": 151849,
    "eos_token_id": 151850,
    "img_token_id": 151851,
    "boi_token_id": 151852,
    "eoi_token_id": 151853,
}
"""What the authors' ``src/emu3p5/configuration_emu3.py`` takes where a config says nothing."""
DECODING = ("decoder.", "quantize.", "post_quant_conv.")
"""What of model.ckpt makes pixels."""


def convert(
    model: Path,
    image_tokenizer: Path,
    out: Path,
    *,
    words: Path | None = None,
    sampling: Sampling = IMAGE,
    dtype: torch.dtype | None = None,
) -> set[torch.dtype]:
    """Turn the published files of an Emu3.5 into a directory that ``zipar.pipeline`` loads.

    ``out`` holds ``config.json``, ``tokenizer.json``, ``image_tokenizer.safetensors``, and ``decoder/``, which is a
    whole Qwen3 for transformers. The decoder is converted file by file: no more than one is in memory.

    Args:
        model: directory of the decoder, BAAI/Emu3.5-Image or BAAI/Emu3.5: ``config.json`` and weights in safetensors.
        image_tokenizer: directory of BAAI/Emu3.5-VisionTokenizer, with ``model.ckpt``.
        out: the directory to make.
        words: directory with ``emu3.tiktoken`` and ``emu3_vision_tokens.txt``, such as ``src/tokenizer_emu3_ibq`` of
            the authors' repository; None where ``model`` has them.
        sampling: how to sample unless told otherwise; no file says which of the two the model is.
        dtype: of the stored decoder; None for each tensor's own. The image tokenizer is stored in float32, as the
            authors run it.

    Returns:
        The number formats of the stored decoder.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong together, or
            ``out`` exists. Nothing is written then.
    """
    settings = DEFAULTS | read_settings(model, "Emu3", "an Emu3.5, such as BAAI/Emu3.5-Image")
    vocabulary, merges = read_vocabulary(words or model)
    check_vocabulary(vocabulary, settings, model)
    if misplaced := [word for token, word in DIGITS.items() if vocabulary.get(word) != token]:
        raise ZipARError(f"{words or model} is no vocabulary of Emu3.5: {misplaced[0]!r} is not where it should be")
    with build(model), torch.device("meta"):
        config = _config(settings)
        network = Qwen3ForCausalLM(config)
    shards = find_shards(model)
    check_tensors({name: tensor for shard in shards for name, tensor in outline(shard).items()}, network, model)

    checkpoint = image_tokenizer / "model.ckpt"
    weights, _ = read_pickle(checkpoint, ["state_dict"])
    image_decoder = {name: value.float() for name, value in weights.items() if name.startswith(DECODING)}
    shape = vqgan_config(image_decoder, checkpoint, "image tokenizer of Emu3.5")
    with build(checkpoint), torch.device("meta"):
        pixels = Emu35.image_decoder(shape)
    check_tensors(image_decoder, pixels, checkpoint)
    Emu35(network, None, pixels)  # raises where the parts do not fit

    described = {
        "model_type": Emu35.family,
        "sizes": SIZES,
        "image_tokenizer": dataclasses.asdict(shape),
        "sampling": dataclasses.asdict(sampling),
    }
    formats: set[torch.dtype] = set()

    def files() -> Iterator[Weights]:
        for shard in shards:
            tensors = {name: in_format(tensor, dtype) for name, tensor in load_file(shard).items()}
            formats.update(tensor.dtype for tensor in tensors.values())
            yield tensors

    with new_directory(out) as scratch:
        (scratch / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        tokenizer(vocabulary, merges).backend_tokenizer.save(str(scratch / "tokenizer.json"))
        save_file(image_decoder, scratch / "image_tokenizer.safetensors")
        (scratch / "decoder").mkdir()
        write_shards(scratch / "decoder", files(), len(shards))
        config.dtype = widest(formats)
        config.architectures = [Qwen3ForCausalLM.__name__]
        config.save_pretrained(scratch / "decoder")
        ids = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        GenerationConfig(do_sample=True, **ids).save_pretrained(scratch / "decoder")
    return formats


def _config(settings: dict[str, Any]) -> Qwen3Config:
    kept = {name: settings[name] for name in SETTINGS}
    rope = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    return Qwen3Config(**kept, rope_parameters=rope, tie_word_embeddings=False)
