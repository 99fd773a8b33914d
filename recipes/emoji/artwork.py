"""The emoji artwork: fetched from the npm registry, one RGBA picture per object and style."""

import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

# style -> (npm package with its version, path inside it of the picture of one code point)
PACKAGES = {
    "flat": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/{}.png"),  # Twemoji, CC-BY 4.0
    "3d": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/{}.webp"),  # Fluent Emoji, MIT
}

# code point -> names; the first is the name, the others are understood too
OBJECTS = {
    "1f34e": ("apple", "red apple"),
    "1f34c": ("banana",),
    "1f353": ("strawberry",),
    "1f347": ("grapes",),
    "1f349": ("watermelon",),
    "1f34b": ("lemon",),
    "1f34d": ("pineapple",),
    "1f352": ("cherries",),
    "1f350": ("pear",),
    "1f955": ("carrot",),
    "1f33d": ("corn",),
    "1f346": ("eggplant", "aubergine"),
    "1f344": ("mushroom",),
    "1f951": ("avocado",),
    "1f354": ("burger", "hamburger"),
    "1f355": ("pizza",),
    "1f32d": ("hot dog",),
    "1f369": ("donut",),
    "1f36a": ("cookie",),
    "1f382": ("cake", "birthday cake"),
    "1f366": ("ice cream",),
    "1f35f": ("fries", "french fries"),
    "1f37f": ("popcorn",),
    "1f9c0": ("cheese",),
    "1f436": ("dog",),
    "1f431": ("cat",),
    "1f430": ("rabbit",),
    "1f98a": ("fox", "red fox"),
    "1f43b": ("bear", "brown bear"),
    "1f43c": ("panda",),
    "1f42f": ("tiger",),
    "1f981": ("lion",),
    "1f437": ("pig",),
    "1f438": ("frog",),
    "1f435": ("monkey",),
    "1f427": ("penguin",),
    "1f989": ("owl",),
    "1f41d": ("bee",),
    "1f98b": ("butterfly",),
    "1f41e": ("ladybug",),
    "1f422": ("turtle",),
    "1f419": ("octopus",),
    "1f433": ("whale",),
    "1f40c": ("snail",),
    "1f984": ("unicorn",),
    "1f339": ("rose", "red rose"),
    "1f33b": ("sunflower",),
    "1f335": ("cactus",),
    "1f334": ("palm tree",),
    "1f332": ("pine tree",),
    "1f341": ("maple leaf",),
    "2b50": ("star",),
    "1f31e": ("sun",),
    "26c4": ("snowman",),
    "1f308": ("rainbow",),
    "1f525": ("fire",),
    "1f697": ("car", "red car"),
    "1f68c": ("bus",),
    "1f682": ("train", "locomotive"),
    "1f680": ("rocket",),
    "26f5": ("sailboat",),
    "1f381": ("gift", "present"),
    "1f388": ("balloon", "red balloon"),
    "1f511": ("key",),
    "1f514": ("bell",),
    "1f4a1": ("light bulb",),
    "270f-fe0f": ("pencil",),
    "1f4f7": ("camera",),
    "1f3b8": ("guitar",),
    "1f941": ("drum",),
    "1f3c0": ("basketball",),
    "1f3c6": ("trophy",),
    "1f451": ("crown",),
    "1f48e": ("diamond",),
    "2764-fe0f": ("heart", "red heart"),
    "1f47b": ("ghost",),
    "1f383": ("pumpkin",),
    "1f916": ("robot",),
    "1f47d": ("alien",),
    "2602-fe0f": ("umbrella",),
}

Artwork = dict[tuple[str, str], Image.Image]


def load(folder: Path) -> Artwork:
    """(object name, style) -> RGBA picture; what ``folder`` lacks is fetched into it first."""
    pictures: Artwork = {}
    for style, (package, member) in PACKAGES.items():
        missing = [code for code in OBJECTS if not (folder / style / f"{code}.png").exists()]
        if missing:
            _fetch(package, member, missing, folder / style)
        for code, names in OBJECTS.items():
            pictures[names[0], style] = Image.open(folder / style / f"{code}.png").convert("RGBA")
    return pictures


def _fetch(package: str, member: str, codes: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=scratch, check=True, capture_output=True, text=True
        )
        with tarfile.open(Path(scratch) / packed.stdout.strip().splitlines()[-1]) as archive:
            for code in codes:
                file = archive.extractfile(member.format(code))
                if file is None:
                    raise FileNotFoundError(f"{package} has no {member.format(code)}")
                Image.open(io.BytesIO(file.read())).convert("RGBA").save(folder / f"{code}.png")
