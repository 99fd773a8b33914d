"""Published files: pickles that run no code, weights in several files, and what the shapes of tensors tell."""

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zipar.checkpoints.files import build, check_readable
from zipar.errors import ZipARError

Weights = dict[str, Tensor]


def read_pickle(path: Path, keys: Sequence[str], unused: Collection[str] = ()) -> tuple[Weights, dict[str, Any]]:
    """The weights of a file that ``torch.save`` wrote, and all that it holds. No code of the file is run.

    Args:
        path: the file.
        keys: where its weights may be; if nowhere there, the file holds weights alone.
        unused: how the names of tensors end that are left out.

    Raises:
        ZipARError: the file is missing or damaged, wants to run code, or holds no weights.
    """
    check_readable(path, f"{path} is no file: give the published one")
    try:
        # checkpoints written while training hold their arguments, a class that holds attributes and does nothing
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write: they end as an error
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling damaged bytes can raise anything
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ZipARError(
                f"{path} was not opened, for it wants to run {found[1]}: get the published file"
            ) from error
        raise ZipARError(f"{path} is damaged, or is no PyTorch checkpoint: fetch it again") from error
    if not isinstance(checkpoint, dict):
        raise ZipARError(
            f"{path} holds a {type(checkpoint).__name__} instead of weights by name: give a published file"
        )
    key = next((key for key in keys if key in checkpoint), None)
    held = checkpoint if key is None else checkpoint[key]  # weights alone: as sharded training leaves them
    weights = held if isinstance(held, dict) and all(isinstance(name, str) for name in held) else {}
    weights = {name: value for name, value in weights.items() if not name.endswith(tuple(unused))}
    if not weights or not all(map(_is_weight, weights.values())):
        under = f" under {' or '.join(keys)}" if keys else ""
        raise ZipARError(f"{path} holds no weights{under}: give a published file")
    return weights, checkpoint


def _is_weight(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def shape_of(weights: Weights, source: Path, what: str, name: str, dimensions: int) -> torch.Size:
    """The shape of a tensor that a ``what`` must have.

    Raises:
        ZipARError: ``weights`` lack it, or it has not that many dimensions.
    """
    if name not in weights:
        raise ZipARError(f"{source} is no {what}: it has no {name}")
    shape = weights[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise ZipARError(f"{source} is no {what}: its {name} is of shape {tuple(shape)}")
    return shape


def in_format(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``tensor`` as it is to be stored: None for its own number format, which integers keep."""
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def widest(formats: Collection[torch.dtype]) -> torch.dtype:
    """The number format that holds all numbers of the floating-point ``formats``, for configs, which name one."""
    return reduce(torch.promote_types, [each for each in formats if each.is_floating_point])


def count(weights: Weights, parent: str) -> int:
    """How many numbered children the module ``parent`` (which ends with a dot) has."""
    return len({name[len(parent) :].split(".")[0] for name in weights if name.startswith(parent)})


def find_shards(source: Path, names: Sequence[str] = ("model.safetensors",)) -> list[Path]:
    """The files that hold the weights of a directory: those of the first index, or the first file, that is there.

    Args:
        names: what the weights are called where they are one file.

    Raises:
        ZipARError: there are none, or not all.
    """
    index = next((path for path in (source / f"{name}.index.json" for name in names) if path.is_file()), None)
    if index is None:
        alone = next((path for path in (source / name for name in names) if path.is_file()), source / names[0])
        check_readable(alone, f"{source} holds no weights: {' or '.join(names)} or its index is missing")
        return [alone]
    check_readable(index, f"{index} is missing")
    with build(index):
        held = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not held or any(Path(name).name != name for name in held):
            raise ZipARError(f"{index} names no files beside it: fetch it again")
    if missing := [name for name in held if not (source / name).is_file()]:
        raise ZipARError(f"{source} lacks {len(missing)} of the {len(held)} files of its weights, such as {missing[0]}")
    return [source / name for name in held]


def write_shards(directory: Path, files: Iterable[Weights], number: int) -> None:
    """Write each of the ``number`` parts of a model's tensors to a file, and the index that transformers wants."""
    index: dict[str, str] = {}
    for i, tensors in enumerate(files, 1):
        name = f"model-{i:05}-of-{number:05}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
    text = json.dumps({"metadata": {}, "weight_map": index}, indent=2) + "\n"
    (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
