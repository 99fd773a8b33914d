"""The words of the emoji model: the vocabulary that goes with the checkpoint."""

from typing import Any

from emoji import scenes
from emoji.artwork import OBJECTS


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
        "fillers": ["a", "an", "the", "at", "in", "on", "background", "style"],
    }
