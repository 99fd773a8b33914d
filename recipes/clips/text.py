"""The words of the model of clips: the vocabulary that goes with the checkpoint."""

from typing import Any

from clips import scenes
from emoji.artwork import OBJECTS


def vocabulary() -> dict[str, Any]:
    """What prompts may say: attribute -> value -> the phrases that mean it (see ``zipar.prompts``)."""
    return {
        "example": "a small red fox moves left fast on a blue background",
        "required": ["object"],
        "attributes": {
            "object": {names[0]: list(names) for names in OBJECTS.values() if names[0] in scenes.ATTRIBUTES["object"]},
            "size": {size: [size] for size in scenes.SIZES},
            "background": {colour: [f"{colour} background"] for colour in scenes.BACKGROUNDS},
            "direction": {direction: [direction] for direction in scenes.DIRECTIONS},
            "speed": {speed: list(dict.fromkeys([scenes.ADVERBS[speed], speed])) for speed in scenes.SPEEDS},
            "bar": {"bar": ["behind a bar", "bar"], "no bar": ["without a bar", "no bar"]},
        },
        "fillers": ["a", "an", "the", "and", "moves", "on", "background"],
    }
