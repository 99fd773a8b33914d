"""Reads labelled photographs from where the user has them, and keeps them as 32 x 32 arrays in the build folder.

Of CIFAR-10 it takes the official archive of the binary version (``cifar-10-binary.tar.gz``), or folders of images,
``SOURCE/train/airplane/...`` and ``SOURCE/test/airplane/...``; of Fashion-MNIST the folder of its four ``.gz`` files.
"""

import gzip
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from photos import recipe
from zipar.writing import write

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION_CLASSES = [
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
]  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """uint8 images (n, 32, 32, 3), the class of each (n,), and the names of the classes."""

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


def read(source: Path, split: str) -> Pictures:
    """The pictures of a data set that lies in ``source``."""
    if source.is_file():
        return read_archive(source, split)
    if (source / "train-images-idx3-ubyte.gz").exists():
        return read_fashion(source, split)
    return read_folders(source, split)


def read_archive(source: Path, split: str) -> Pictures:
    """CIFAR-10, binary version: records of a label and 3 x 32 x 32 bytes."""
    wanted = "data_batch" if split == "train" else "test_batch"
    with tarfile.open(source) as archive:
        names = sorted(name for name in archive.getnames() if wanted in name)
        raw = b"".join(archive.extractfile(name).read() for name in names)  # type: ignore[union-attr]
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * recipe.SIDE**2)
    images = records[:, 1:].reshape(-1, 3, recipe.SIDE, recipe.SIDE).transpose(0, 2, 3, 1)
    return Pictures(images, records[:, 0].astype(np.int64), CIFAR_CLASSES)


def read_fashion(source: Path, split: str) -> Pictures:
    """Fashion-MNIST, 28 x 28 grey, with a black border of 2 pixels."""
    name = "train" if split == "train" else "t10k"
    images = np.frombuffer(gzip.decompress((source / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((source / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    padded = np.pad(images.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    return Pictures(padded[..., None].repeat(3, -1), labels.astype(np.int64), FASHION_CLASSES)


def read_folders(source: Path, split: str) -> Pictures:
    """One folder of images a class."""
    classes = sorted(folder.name for folder in (source / split).iterdir() if folder.is_dir())
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((source / split / name).iterdir()):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB").resize((recipe.SIDE, recipe.SIDE))))
            labels.append(label)
    return Pictures(np.stack(images), np.array(labels), classes)


def main() -> None:
    parser = recipe.parser(__doc__)
    parser.add_argument("source", type=Path)
    args, _, build = recipe.parsed(parser)
    for split in ("train", "test"):
        held = read(args.source, split)
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
