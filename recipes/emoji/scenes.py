"""Scenes: one emoji on a coloured background; how to draw one, and how to say it.

Everything random comes from the generator handed in, so a seed gives the same scenes everywhere.
"""

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

import training
from emoji.artwork import OBJECTS, PACKAGES, Artwork

BUILD = Path(__file__).parent / "build"
SIDE = 64
SIZES = {"small": 32, "large": 48}
COLOURS = {
    "red": (165, 38, 42),
    "yellow": (246, 214, 92),
    "green": (104, 178, 104),
    "blue": (92, 146, 226),
    "purple": (140, 98, 196),
    "pink": (244, 166, 200),
    "white": (244, 244, 244),
    "black": (36, 36, 40),
}
POSITIONS = {
    "top left": (0, 0), "top": (1, 0), "top right": (2, 0),
    "left": (0, 1), "center": (1, 1), "right": (2, 1),
    "bottom left": (0, 2), "bottom": (1, 2), "bottom right": (2, 2),
}  # fmt: skip
ATTRIBUTES = {
    "object": [names[0] for names in OBJECTS.values()],
    "style": list(PACKAGES),
    "background": list(COLOURS),
    "size": list(SIZES),
    "position": list(POSITIONS),
}
OPTIONAL = [name for name in ATTRIBUTES if name != "object"]


@dataclass(frozen=True)
class Scene:
    """What is to be seen in one picture; every field is a value that ``ATTRIBUTES`` lists for it."""

    object: str
    style: str
    background: str
    size: str
    position: str

    def labels(self) -> list[int]:
        """Index of each attribute's value, in the order of ``ATTRIBUTES``."""
        return [ATTRIBUTES[name].index(value) for name, value in asdict(self).items()]


def sample(rng: np.random.Generator) -> Scene:
    """A scene, each attribute uniform and independent."""
    return Scene(**{name: values[rng.integers(len(values))] for name, values in ATTRIBUTES.items()})


def split(held_out: float = 0.1, seed: int = 0) -> tuple[list[Scene], list[Scene]]:
    """All scenes there are, in random order: those to train on, and those that no training sees."""
    every = [Scene(*values) for values in itertools.product(*ATTRIBUTES.values())]
    order = np.random.default_rng(seed).permutation(len(every))
    first = round(held_out * len(every))
    return [every[i] for i in order[first:]], [every[i] for i in order[:first]]


def draw(scene: Scene, artwork: Artwork) -> np.ndarray:
    """The scene as uint8 pixels (64, 64, 3)."""
    canvas = Image.new("RGB", (SIDE, SIDE), COLOURS[scene.background])
    side = SIZES[scene.size]
    picture = artwork[scene.object, scene.style].resize((side, side), Image.Resampling.LANCZOS)
    column, row = ((SIDE - side) * third // 2 for third in POSITIONS[scene.position])
    canvas.paste(picture, (column, row), picture)
    return np.asarray(canvas)


def say(scene: Scene, rng: np.random.Generator, mention: float = 0.75) -> tuple[str, list[str]]:
    """A prompt for the scene, and the names of the attributes it mentions.

    The object is always named; each other attribute with probability ``mention``. Half of the prompts
    are sentences, a quarter lists in any order, a quarter mention all.
    """
    form = rng.integers(4)
    mentioned = [name for name in OPTIONAL if form == 3 or rng.random() < mention]
    names = next(names for names in OBJECTS.values() if names[0] == scene.object)
    noun = names[0] if rng.random() < 0.6 else names[rng.integers(len(names))]
    words = {
        "style": f"{scene.style} style",
        "background": f"{scene.background} background",
        "size": scene.size,
        "position": scene.position,
    }
    if form == 0:
        parts = [noun, *(words[name] for name in mentioned)]
        return ", ".join(rng.permutation(parts)), mentioned
    sized = f"{scene.size} {noun}" if "size" in mentioned else noun
    text = f"{'an' if sized[0] in 'aeiou' else 'a'} {sized}"
    if "position" in mentioned:
        text += f" {'in' if scene.position == 'center' else 'at'} the {scene.position}"
    if "background" in mentioned:
        text += f" on a {scene.background} background"
    if "style" in mentioned:
        text += f", {scene.style} style"
    return text, mentioned


def draw_batch(
    drawn_from: list[Scene], artwork: Artwork, rng: np.random.Generator, size: int
) -> tuple[list[Scene], Tensor]:
    """``size`` scenes of a list and their pixels, float32 (size, 3, 64, 64) in [-1, 1]."""
    batch = [drawn_from[i] for i in rng.integers(len(drawn_from), size=size)]
    return batch, training.to_pixels([draw(scene, artwork) for scene in batch])
