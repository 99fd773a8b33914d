"""Reads labelled photographs from where the user has them, and keeps them as square arrays in the build folder.

Of CIFAR-10 it takes the official archive of the binary version (``cifar-10-binary.tar.gz``), or folders of images,
``SOURCE/train/airplane/...`` and ``SOURCE/test/airplane/...``; of Fashion-MNIST the folder of its four ``.gz`` files;
of the textures of UFO: Alien Invasion its ``0textures.pk3``.
"""

import gzip
import re
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image

from photos import recipe
from zipar.writing import write

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION_CLASSES = [
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
]  # fmt: skip
TEXTURE = re.compile(r"(?<!_nm)(?<!_sm)(?<!_gm)\.(png|jpg)$")
"""The others are maps of normals, of gloss and of glow."""
PARTS = 16  # pictures of a texture


@dataclass(frozen=True)
class Pictures:
    """uint8 images (n, side, side, 3), the class of each (n,), and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    classes: list[str]

    @classmethod
    def load(cls, build: Path, split: str) -> "Pictures":
        """What this script kept of the ``split`` "train" or "test"."""
        path = build / f"{split}.npz"
        if not path.exists():
            raise SystemExit(f"{path} is missing: run `python -m photos.pictures {build.name} SOURCE` first")
        with np.load(path) as held:
            return cls(held["images"], held["labels"], held["classes"].tolist())


def read(source: Path, split: str, side: int) -> Pictures:
    """The pictures of a data set that lies in ``source``."""
    if source.suffix == ".pk3":
        return read_textures(source, split, side)
    if source.is_file():
        return read_archive(source, split)
    if (source / "train-images-idx3-ubyte.gz").exists():
        return read_fashion(source, split)
    return read_folders(source, split, side)


def read_archive(source: Path, split: str) -> Pictures:
    """CIFAR-10, binary version: records of a label and 3 x 32 x 32 bytes."""
    wanted = "data_batch" if split == "train" else "test_batch"
    with tarfile.open(source) as archive:
        names = sorted(name for name in archive.getnames() if wanted in name)
        raw = b"".join(archive.extractfile(name).read() for name in names)  # type: ignore[union-attr]
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * 32**2)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Pictures(images, records[:, 0].astype(np.int64), CIFAR_CLASSES)


def read_fashion(source: Path, split: str) -> Pictures:
    """Fashion-MNIST, 28 x 28 grey, with a black border of 2 pixels."""
    name = "train" if split == "train" else "t10k"
    images = np.frombuffer(gzip.decompress((source / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((source / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    padded = np.pad(images.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    return Pictures(padded[..., None].repeat(3, -1), labels.astype(np.int64), FASHION_CLASSES)


def read_textures(source: Path, split: str, side: int) -> Pictures:
    """Random parts of the photographs and drawings in the folders of 50 or more; every tenth file is held out."""
    with ZipFile(source) as archive:
        names = [name for name in sorted(archive.namelist()) if TEXTURE.search(name)]
        folders: dict[str, list[Image.Image]] = {}
        for name in names:
            image = Image.open(BytesIO(archive.read(name))).convert("RGBA").convert("RGB")
            if min(image.size) >= 2 * side:
                folders.setdefault(name.split("/")[-2].removeprefix("tex_"), []).append(image)
    classes = sorted(folder for folder, held in folders.items() if len(held) >= 50)
    rng = np.random.default_rng(recipe.SEED)
    images, labels = [], []
    for label, folder in enumerate(classes):
        for number, texture in enumerate(folders[folder]):
            if (number % 10 == 9) == (split == "test"):
                images += [part(texture, side, rng) for _ in range(PARTS)]
                labels += [label] * PARTS
    return Pictures(np.stack(images), np.array(labels), classes)


def part(image: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """A square of an image that is between half and all of its shorter side wide, uint8 (side, side, 3)."""
    width = rng.uniform(0.5, 1) * min(image.size)
    left, top = (rng.uniform(0, length - width) for length in image.size)
    box = (left, top, left + width, top + width)
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS, box))


def read_folders(source: Path, split: str, side: int) -> Pictures:
    """One folder of images a class."""
    classes = sorted(folder.name for folder in (source / split).iterdir() if folder.is_dir())
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((source / split / name).iterdir()):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB").resize((side, side))))
            labels.append(label)
    return Pictures(np.stack(images), np.array(labels), classes)


def main() -> None:
    parser = recipe.parser(__doc__)
    parser.add_argument("source", type=Path)
    args, made, build = recipe.parsed(parser)
    for split in ("train", "test"):
        held = read(args.source, split, made.side)
        # shuffled once, so that any part of it is a fair sample
        order = np.random.default_rng(args.seed).permutation(len(held.labels))
        build.mkdir(parents=True, exist_ok=True)

        def save(path: Path, held: Pictures = held, order: np.ndarray = order) -> None:
            with path.open("wb") as file:
                np.savez(file, images=held.images[order], labels=held.labels[order], classes=np.array(held.classes))

        write({build / f"{split}.npz": save})
        print(f"{len(order)} pictures for {split}, of {', '.join(held.classes)}", flush=True)


if __name__ == "__main__":
    main()
