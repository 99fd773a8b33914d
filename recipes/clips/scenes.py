"""Scenes: one emoji that moves over a coloured background and bounces off the edges, maybe behind a bar.

How to draw one, how to say it, and what two frames of it tell about the others. Everything random comes from the
generator handed in, so a seed gives the same scenes everywhere.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from emoji.artwork import OBJECTS, Artwork
from emoji.scenes import COLOURS, SIDE

BUILD = Path(__file__).parent / "build"
FRAMES = 8
FPS = 8
PATCH = 8  # pixels a token is wide
GRID = SIDE // PATCH
STEP = PATCH  # pixels between the places where the emoji may be
STYLE = "flat"
SIZES = {"small": 24, "large": 32}
BACKGROUNDS = ["yellow", "green", "blue", "pink", "white", "black"]
DIRECTIONS = {
    "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1),
    "up left": (-1, -1), "up right": (1, -1), "down left": (-1, 1), "down right": (1, 1),
}  # fmt: skip
SPEEDS = {"slow": 8, "medium": 16, "fast": 24}  # pixels a frame, along each axis that the emoji moves along
ADVERBS = {"slow": "slowly", "medium": "steadily", "fast": "fast"}
BAR = (112, 112, 116)
BAR_COLUMNS = range(1, GRID - 1)  # of tokens
NO_BAR = -1
ATTRIBUTES = {
    "object": [
        "fox", "panda", "penguin", "whale", "octopus", "rocket", "car", "pizza", "watermelon", "donut", "sunflower",
        "heart",
    ],
    "size": list(SIZES),
    "background": BACKGROUNDS,
    "direction": list(DIRECTIONS),
    "speed": list(SPEEDS),
    "bar": ["bar", "no bar"],
}  # fmt: skip
OPTIONAL = [name for name in ATTRIBUTES if name != "object"]

Place = tuple[int, int]
"""Pixels from the left and from the top to the corner of the emoji."""


@dataclass(frozen=True)
class Scene:
    """What is to be seen in one clip; the first fields are values that ``ATTRIBUTES`` lists for them."""

    object: str
    size: str
    background: str
    direction: str
    speed: str
    bar: str
    start: Place
    bar_column: int
    """Of tokens; ``NO_BAR`` where there is none."""

    def labels(self) -> list[int]:
        """Index of each attribute's value, in the order of ``ATTRIBUTES``."""
        return [values.index(getattr(self, name)) for name, values in ATTRIBUTES.items()]

    @property
    def velocity(self) -> tuple[int, int]:
        """Pixels a frame, to the right and down, before the first bounce."""
        across, down = DIRECTIONS[self.direction]
        return across * SPEEDS[self.speed], down * SPEEDS[self.speed]


def split(held_out: float = 0.1, seed: int = 0) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """All combinations of attributes, in random order: those to train on, and those that no training sees."""
    every = list(itertools.product(*ATTRIBUTES.values()))
    order = np.random.default_rng(seed).permutation(len(every))
    first = round(held_out * len(every))
    return [every[i] for i in order[first:]], [every[i] for i in order[:first]]


def sample(combinations: Sequence[tuple[str, ...]], rng: np.random.Generator) -> Scene:
    """A scene with one of the ``combinations`` of attributes, and any start from which its first step meets no edge.

    The first two frames then show the velocity.
    """
    values = dict(zip(ATTRIBUTES, combinations[rng.integers(len(combinations))], strict=True))
    column = int(rng.choice(BAR_COLUMNS)) if values["bar"] == "bar" else NO_BAR
    room = SIDE - SIZES[values["size"]]
    start = []
    for sign in DIRECTIONS[values["direction"]]:
        step = sign * SPEEDS[values["speed"]]
        start.append(int(rng.integers(max(0, -step) // STEP, (room - max(0, step)) // STEP + 1)) * STEP)
    return Scene(**values, start=(start[0], start[1]), bar_column=column)


def reflect(way: int, room: int) -> int:
    """Where on [0, ``room``] something is that went ``way`` from 0 and was thrown back at both ends."""
    way %= 2 * room
    return min(way, 2 * room - way)


def continuation(first: Place, second: Place, size: str, frames: int = FRAMES) -> list[Place]:
    """The places in all frames of a clip, of which two frames leave no choice: ``sample`` lets none bounce between."""
    room = SIDE - SIZES[size]
    return [
        (
            reflect(first[0] + time * (second[0] - first[0]), room),
            reflect(first[1] + time * (second[1] - first[1]), room),
        )
        for time in range(frames)
    ]


def positions(scene: Scene) -> list[Place]:
    """Where the emoji is in each frame."""
    second = (scene.start[0] + scene.velocity[0], scene.start[1] + scene.velocity[1])
    return continuation(scene.start, second, scene.size)


class Painter:
    """Draws; it keeps the emoji of each size on each background."""

    def __init__(self, artwork: Artwork) -> None:
        self.blocks = {}
        for name, size, background in itertools.product(ATTRIBUTES["object"], SIZES, BACKGROUNDS):
            side = SIZES[size]
            picture = artwork[name, STYLE].resize((side, side), Image.Resampling.LANCZOS)
            block = Image.new("RGB", (side, side), COLOURS[background])
            block.paste(picture, (0, 0), picture)
            self.blocks[name, size, background] = np.asarray(block)

    def frame(self, scene: Scene, place: Place) -> np.ndarray:
        """The scene with its emoji at ``place``, as uint8 pixels (64, 64, 3)."""
        pixels = np.empty((SIDE, SIDE, 3), np.uint8)
        pixels[:] = COLOURS[scene.background]
        block = self.blocks[scene.object, scene.size, scene.background]
        left, top = place
        pixels[top : top + len(block), left : left + len(block)] = block
        if scene.bar_column != NO_BAR:
            pixels[:, scene.bar_column * PATCH : (scene.bar_column + 1) * PATCH] = BAR
        return pixels

    def render(self, scene: Scene) -> np.ndarray:
        """The clip as uint8 pixels (frames, 64, 64, 3)."""
        return np.stack([self.frame(scene, place) for place in positions(scene)])

    def locate(self, scene: Scene, frames: np.ndarray) -> list[Place]:
        """Where the scene's emoji is in each of uint8 ``frames`` (n, 64, 64, 3): where drawing it differs least."""
        places = places_of(scene.size)
        drawn = np.stack([self.frame(scene, place) for place in places]).astype(np.float32)
        return [places[int(np.square(drawn - frame).mean((1, 2, 3)).argmin())] for frame in frames]


def places_of(size: str) -> list[Place]:
    """All places on the grid for an emoji of ``size``, row after row."""
    steps = range(0, SIDE - SIZES[size] + 1, STEP)
    return [(left, top) for top in steps for left in steps]


def say(scene: Scene, rng: np.random.Generator, mention: float = 0.75) -> tuple[str, list[str]]:
    """A prompt for the scene, and the names of the attributes it mentions.

    The object is always named; each other attribute with probability ``mention``. Half of the prompts
    are sentences, a quarter lists in any order, a quarter mention all.
    """
    form = rng.integers(4)
    mentioned = [name for name in OPTIONAL if form == 3 or rng.random() < mention]
    names = next(names for names in OBJECTS.values() if names[0] == scene.object)
    noun = names[0] if rng.random() < 0.6 else names[rng.integers(len(names))]
    if form == 0:
        words = {
            "size": scene.size,
            "background": f"{scene.background} background",
            "direction": scene.direction,
            "speed": scene.speed,
            "bar": scene.bar,
        }
        return ", ".join(rng.permutation([noun, *(words[name] for name in mentioned)])), mentioned
    sized = f"{scene.size} {noun}" if "size" in mentioned else noun
    text = f"{'an' if sized[0] in 'aeiou' else 'a'} {sized}"
    if "direction" in mentioned or "speed" in mentioned:
        text += " moves"
    if "direction" in mentioned:
        text += f" {scene.direction}"
    if "speed" in mentioned:
        text += f" {ADVERBS[scene.speed]}"
    if "background" in mentioned:
        text += f" on a {scene.background} background"
    if "bar" in mentioned:
        text += " behind a bar" if scene.bar == "bar" else " without a bar"
    return text, mentioned


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of the argument that all scripts take."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--build", type=Path, default=BUILD, help="where all goes that is made")
    return made
