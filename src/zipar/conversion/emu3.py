"""Conversion of the published Emu3 to the layout of transformers, running none of the code published with it."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    GenerationConfig,
)

from zipar.checkpoints.files import build, check_readable, check_tensors, read_config
from zipar.conversion.emu_words import SPARE, check_vocabulary, read_settings, read_vocabulary, tokenizer
from zipar.conversion.published import in_format, widest
from zipar.errors import ZipARError
from zipar.models.emu3 import AFTER_IMAGE, BEFORE_IMAGE, Emu3
from zipar.writing import new_directory

IMAGE = "<image>"
"""Stands for an image in transformers' prompts: the first spare word of the published vocabulary, which has none."""

TEXT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
VISION_SETTINGS = {
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
"""Published name -> transformers'."""

TEXT_NAMES = ((r"^model\.", "model.text_model."),)
VISION_NAMES = (
    (r"coder\.(down|up)\.", r"coder.\1_block.\1."),
    (r"\.mid\.attn_1\.norm\.", ".mid.attn_norm."),
    (r"\.mid\.", ".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.attn(_1|\.\d+)\.(q|k|v)\.", r".attn\1.\2_proj."),
    (r"\.attn(_1|\.\d+)\.proj_out\.", r".attn\1.out_proj."),
)
"""Published names of tensors -> transformers', by substitution, one after the other."""


class Source(NamedTuple):
    """A tensor on disk."""

    path: Path
    name: str
    shape: tuple[int, ...]


def convert(model: Path, image_tokenizer: Path, out: Path, *, dtype: torch.dtype | None = None) -> set[torch.dtype]:
    """Turn the published files of an Emu3 into a directory that ``zipar.pipeline`` and transformers load.

    Args:
        model: directory of the language model, such as BAAI/Emu3-Gen: ``config.json``, weights in safetensors,
            ``emu3.tiktoken`` and ``emu3_vision_tokens.txt``.
        image_tokenizer: directory of BAAI/Emu3-VisionTokenizer: ``config.json``, ``preprocessor_config.json``
            and weights in safetensors.
        out: the directory to make.
        dtype: of the stored language model; None for each tensor's own. The image tokenizer is stored in float32, as
            the authors run it.

    Returns:
        The number formats of the stored language model.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, directories that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    settings = read_settings(model, "Emu3", "a language model of Emu3, such as BAAI/Emu3-Gen")
    vision = read_settings(image_tokenizer, "Emu3VisionVQ", "an image tokenizer of Emu3: BAAI/Emu3-VisionTokenizer")
    vocabulary, merges = read_vocabulary(model)
    check_vocabulary(vocabulary, settings, model)
    vocabulary = {IMAGE if word == SPARE else word: token for word, token in vocabulary.items()}
    with build(model), torch.device("meta"):
        config = _config(settings, vision, vocabulary)
        network = Emu3ForConditionalGeneration(config)
        Emu3(network)  # checks the vocabulary
    vision_tensors = _sources(image_tokenizer, VISION_NAMES, network.model.vqmodel)
    network.model.vqmodel = None
    text_tensors = _sources(model, TEXT_NAMES, network)
    with new_directory(out) as scratch:
        formats = _save_weights(text_tensors, vision_tensors, scratch, dtype)
        config.dtype = widest(formats)
        config.architectures = [Emu3ForConditionalGeneration.__name__]
        config.save_pretrained(scratch)
        ids = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        GenerationConfig(do_sample=True, top_k=2048, **ids).save_pretrained(scratch)
        _processor(image_tokenizer, vocabulary, merges).save_pretrained(scratch)
    return formats


def _config(settings: dict[str, Any], vision: dict[str, Any], vocabulary: dict[str, int]) -> Emu3Config:
    text_config = {name: settings[name] for name in TEXT_SETTINGS}
    text_config["rope_parameters"] = {"rope_type": "default", "rope_theta": settings["rope_theta"]}
    vq_config = {name: vision[published] for published, name in VISION_SETTINGS.items()}
    vq_config["hidden_size"] = vision["ch"] * vision["ch_mult"][-1]
    return Emu3Config(text_config=text_config, vq_config=vq_config, vocabulary_map=vocabulary)


def _processor(image_tokenizer: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Emu3Processor:
    words = tokenizer(
        vocabulary,
        merges,
        image_token=IMAGE,
        boi_token=BEFORE_IMAGE[1],
        image_wrapper_token=BEFORE_IMAGE[2],
        eof_token=AFTER_IMAGE[0],
        eoi_token=AFTER_IMAGE[1],
    )
    settings = read_config(image_tokenizer, "preprocessor_config.json")
    kept = ("image_mean", "image_std", "min_pixels", "max_pixels", "spatial_factor")
    return Emu3Processor(Emu3ImageProcessor(**{key: settings[key] for key in kept if key in settings}), words)


def _sources(directory: Path, names: tuple[tuple[str, str], ...], module: nn.Module) -> dict[str, Source]:
    """The tensors of a directory, by transformers' names.

    Raises:
        ZipARError: a file is missing or damaged, or the tensors are not those of ``module``.
    """
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        weight_map = read_config(directory, index.name).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ZipARError(f"{index} names no files: fetch it again")
        files = sorted(set(weight_map.values()))
    sources = {}
    for path in (directory / file for file in files):
        with _open(path) as tensors:
            for published in tensors.keys():  # noqa: SIM118  # no dict
                name = published
                for pattern, replacement in names:
                    name = re.sub(pattern, replacement, name)
                shape = tuple(tensors.get_slice(published).get_shape())
                if re.search(r"attn.*_proj\.weight$", name) and shape[2:] == (1, 1):
                    shape = shape[:2]  # convolutions of one pixel, linear layers in transformers
                sources[name] = Source(path, published, shape)
    check_tensors(
        {name: torch.empty(source.shape, device="meta") for name, source in sources.items()}, module, directory
    )
    return sources


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    check_readable(path, f"{path} is missing: fetch it from where the model is published")
    try:
        with safe_open(path, "pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ZipARError(f"{path} is damaged ({error}): fetch it again") from error


def _save_weights(
    text: dict[str, Source], vision: dict[str, Source], directory: Path, dtype: torch.dtype | None
) -> set[torch.dtype]:
    """Write the tensors file by file, so that no more than one file is held in memory; returns the formats of text."""
    kept = {f"model.vqmodel.{name}": source for name, source in vision.items()}
    paths = sorted({source.path for source in (*text.values(), *kept.values())})
    places: dict[str, str] = {}
    formats: set[torch.dtype] = set()
    total = 0
    for number, path in enumerate(paths, 1):
        file = f"model-{number:05}-of-{len(paths):05}.safetensors"
        tensors: dict[str, Tensor] = {}
        with _open(path) as stored:
            for name, source in (text | kept).items():
                if source.path == path:
                    tensor = stored.get_tensor(source.name).reshape(source.shape)
                    tensors[name] = in_format(tensor, torch.float32 if name in kept else dtype)
        save_file(tensors, directory / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        formats |= {tensor.dtype for name, tensor in tensors.items() if name in text}
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return formats
