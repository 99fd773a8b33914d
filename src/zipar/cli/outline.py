"""Models without their weights, for commands that only ask what a model looks like."""

import torch

from zipar.checkpoints.files import build, read_config
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models import auto
from zipar.models.base import VisualModel
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer
from zipar.prompts import PromptVocabulary


def outline(name: str) -> VisualModel:
    """The model of a checkpoint, on the meta device where its family can be made so, else with its weights.

    Raises:
        ZipARError: there is no such checkpoint, it is damaged, or its family is not supported.
    """
    directory = auto.find(name)
    config = read_config(directory)
    if config.get("model_type") != LlamaGen.family:
        return auto.family(directory).outline(directory)
    prompts = directory / "prompts.json"
    with build(directory), torch.device("meta"):
        decoder = LlamaGenConfig(**config["decoder"])
        return LlamaGen(
            Transformer(decoder),
            VQModel(VQConfig(**config["image_tokenizer"])),
            text_encoder=None if decoder.caption_dim is None else object(),
            vocabulary=PromptVocabulary.load(prompts) if prompts.exists() else None,
        )
