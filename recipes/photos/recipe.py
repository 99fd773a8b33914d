"""What differs between the data sets, and where each build lies."""

import argparse
from dataclasses import dataclass
from pathlib import Path

PATCH = 2  # pixels a token is wide


@dataclass(frozen=True)
class Recipe:
    """How large the parts are, and how long they learn."""

    vocabulary: int
    layers: int
    dim: int
    channels: int
    """Of the image tokenizer's networks."""
    judge: tuple[int, ...]
    flips: bool
    """Whether a picture and its mirror image are alike."""
    steps: int
    judge_steps: int
    side: int = 32
    """Pixels of a picture."""

    @property
    def grid(self) -> int:
        """Tokens of a side."""
        return self.side // PATCH


CIFAR = Recipe(1024, 6, 192, 32, (32, 64, 128), True, 1500, 4000)
RECIPES = {
    "cifar10": CIFAR,
    "cifar10-512": Recipe(512, 6, 192, 32, (32, 64, 128), True, 1500, 4000),
    "cifar10-4096": Recipe(4096, 6, 192, 32, (32, 64, 128), True, 1500, 4000),
    "fashion": Recipe(512, 5, 192, 16, (24, 48, 64), False, 1500, 2500),
    "textures": Recipe(1024, 6, 192, 32, (32, 64, 128), True, 450, 2000, side=64),
}
SEED = 5


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of the arguments that all scripts take; ``parsed`` reads them."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("recipe", choices=RECIPES)
    made.add_argument(
        "--build", type=Path, help="where all goes that is made; build/RECIPE beside the scripts if left out"
    )
    made.add_argument("--seed", type=int, default=SEED)
    return made


def parsed(arguments: argparse.ArgumentParser) -> tuple[argparse.Namespace, Recipe, Path]:
    """What was asked for, its recipe, its build folder."""
    args = arguments.parse_args()
    return args, RECIPES[args.recipe], args.build or Path(__file__).parent / "build" / args.recipe
