"""The words of the emoji model: a word-level tokenizer, and the vocabulary that goes with the checkpoint."""

import re
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from emoji import scenes
from emoji.artwork import OBJECTS

FILLERS = ["a", "an", "the", "at", "in", "on", "background", "style"]


def vocabulary() -> dict[str, Any]:
    """What prompts may say: attribute -> value -> the phrases that mean it (see ``zipar.prompts``)."""
    return {
        "example": "a small red apple at the top left on a blue background, flat style",
        "required": ["object"],
        "attributes": {
            "object": {names[0]: list(names) for names in OBJECTS.values()},
            "style": {style: [f"{style} style"] for style in scenes.ATTRIBUTES["style"]},
            "background": {colour: [f"{colour} background"] for colour in scenes.COLOURS},
            "size": {size: [size] for size in scenes.SIZES},
            "position": {position: [position] for position in scenes.POSITIONS},
        },
        "fillers": FILLERS,
    }


def tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Known words become tokens, whatever else a prompt says is passed over; ``length`` tokens at most."""
    phrases = [p for values in vocabulary()["attributes"].values() for ps in values.values() for p in ps]
    words = sorted({word for phrase in [*phrases, *FILLERS] for word in re.findall(r"\w+", phrase)})
    ids = {word: i for i, word in enumerate(["<pad>", "</s>", *words])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    backend.normalizer = normalizers.Lowercase()
    known = Regex(rf"\b({'|'.join(words)})\b")
    backend.pre_tokenizer = pre_tokenizers.Split(known, behavior="removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", model_max_length=length, padding_side="left"
    )
