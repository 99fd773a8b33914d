"""LlamaGen checkpoint directories: writing one, and conversion of the published .pt files."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from zipar.checkpoints.files import new_directory
from zipar.models.llamagen import LlamaGen


def write(model: LlamaGen, directory: Path, dtype: torch.dtype) -> None:
    """Save ``model`` as a self-contained directory that ``zipar.pipeline`` loads.

    It holds ``config.json``, ``decoder.safetensors``, ``image_tokenizer.safetensors`` and, for
    text-conditional models, ``text_encoder/``; weights are stored as ``dtype``.

    Raises:
        ZipARError: ``directory`` exists and is not empty.
    """
    config = {
        "model_type": model.family,
        "decoder": dataclasses.asdict(model.decoder.config),
        "image_tokenizer": dataclasses.asdict(model.image_tokenizer.config),
        "sampling": dataclasses.asdict(model.defaults),
    }
    with new_directory(directory) as scratch:
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, module in (("decoder", model.decoder), ("image_tokenizer", model.image_tokenizer)):
            tensors = {key: value.to(dtype).contiguous() for key, value in module.state_dict().items()}
            save_file(tensors, scratch / f"{name}.safetensors")
        if model.text_encoder is not None:
            model.text_encoder.to(dtype).save_pretrained(scratch / "text_encoder")
            model.text_tokenizer.save_pretrained(scratch / "text_encoder")
        if model.vocabulary is not None:
            prompts = json.dumps(dataclasses.asdict(model.vocabulary), indent=1) + "\n"
            (scratch / "prompts.json").write_text(prompts, encoding="utf-8")
