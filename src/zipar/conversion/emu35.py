"""Conversion of the published Emu3.5 and Emu3.5-Image, running none of the code published with them."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from zipar.checkpoints.files import build
from zipar.conversion.emu_words import NAMED_IDS, check_vocabulary, read_settings, read_vocabulary, tokenizer
from zipar.conversion.mixed_modal import Shards, write
from zipar.conversion.published import find_shards
from zipar.conversion.vqgan import decoding, read_vqgan
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.models.emu35 import DIGITS, IMAGE, SIZES, Emu35

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
        network = Qwen3ForCausalLM(_config(settings))
    shards = Shards(find_shards(model))
    shards.check(network, model)
    kind = "image tokenizer of Emu3.5"
    weights, image_decoder = read_vqgan(image_tokenizer / "model.ckpt", kind, attention=Emu35.attention)
    reader = tokenizer(vocabulary, merges).backend_tokenizer
    converted = Emu35(network, reader, image_decoder, defaults=sampling)  # raises where the parts do not fit
    ids = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = GenerationConfig(do_sample=True, **ids)
    return write(converted, {"sizes": SIZES}, shards, decoding(weights), out, dtype, generation=generation)


def _config(settings: dict[str, Any]) -> Qwen3Config:
    kept = {name: settings[name] for name in SETTINGS}
    rope = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    name = Qwen3ForCausalLM.__name__
    return Qwen3Config(**kept, rope_parameters=rope, tie_word_embeddings=False, architectures=[name])
