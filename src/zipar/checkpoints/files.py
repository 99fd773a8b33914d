"""Reading and writing checkpoint directories: errors that say what is wrong, writes that leave no half."""

import argparse
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import Tensor, nn

from zipar.errors import ZipARError

Weights = dict[str, Tensor]


def read_config(directory: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint directory.

    Raises:
        ZipARError: there is none, or it is not a JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ZipARError(f"{directory} is no checkpoint directory: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ZipARError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ZipARError(f"{path} should hold a JSON object, not a {type(config).__name__}")
    return config


def read_tensors(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked against the parameters of ``module``.

    Raises:
        ZipARError: the file is missing or damaged, or its tensors are not those of ``module``.
    """
    if not path.is_file():
        raise ZipARError(f"{path} is missing: the checkpoint is incomplete")
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ZipARError(f"{path} is damaged ({error}): fetch or convert it again") from error
    check_tensors(tensors, module, path)
    return tensors


def check_tensors(tensors: dict[str, Tensor], module: nn.Module, source: Path) -> None:
    """Raise where ``tensors`` are not exactly the parameters of ``module``, by name and shape.

    Raises:
        ZipARError: names the first difference.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    held = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if missing := sorted(wanted.keys() - held.keys()):
        raise ZipARError(f"{source} lacks {len(missing)} of the {len(wanted)} tensors expected, such as {missing[0]}")
    if extra := sorted(held.keys() - wanted.keys()):
        raise ZipARError(f"{source} holds {len(extra)} tensors that do not belong, such as {extra[0]}")
    for name, shape in wanted.items():
        if held[name] != shape:
            raise ZipARError(f"{source}: {name} is of shape {held[name]}, but should be {shape}")


def read_pickle(path: Path, keys: Sequence[str], unused: Collection[str] = ()) -> tuple[Weights, dict[str, Any]]:
    """The weights of a file that ``torch.save`` wrote, and all that it holds. No code of the file is run.

    Args:
        path: the file.
        keys: where its weights may be; if nowhere there, the file holds weights alone.
        unused: names of tensors to leave out.

    Raises:
        ZipARError: the file is missing or damaged, wants to run code, or holds no weights.
    """
    if not path.is_file():
        raise ZipARError(f"{path} is no file: give the published one")
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
    weights = {name: value for name, value in held.items() if name not in unused} if isinstance(held, dict) else {}
    if not weights or not all(isinstance(name, str) and _is_weight(value) for name, value in weights.items()):
        raise ZipARError(f"{path} holds no weights under {' or '.join(keys)}: give a published file")
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


def count(weights: Weights, parent: str) -> int:
    """How many numbered children the module ``parent`` (which ends with a dot) has."""
    return len({name[len(parent) :].split(".")[0] for name in weights if name.startswith(parent)})


def read_tokenizer(path: Path) -> Tokenizer:
    """The text tokenizer of a ``tokenizer.json``.

    Raises:
        ZipARError: it is missing or damaged.
    """
    if not path.is_file():
        raise ZipARError(f"{path} is missing: the checkpoint is incomplete")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ZipARError(f"{path} is no tokenizer that can be read: {str(error).splitlines()[0]}") from error


_COMPLAINTS = (
    TypeError,
    KeyError,
    ValueError,
    AttributeError,
    OSError,
    RuntimeError,
    safetensors.SafetensorError,
    StrictDataclassError,  # of transformers' configs
)


@contextmanager
def build(source: Path) -> Iterator[None]:
    """Turn what libraries raise over a bad checkpoint into one clear error.

    Raises:
        ZipARError: names ``source`` and the cause.
    """
    try:
        yield
    except ZipARError:
        raise
    except _COMPLAINTS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ZipARError(f"{source} is no checkpoint that can be read: {reason[0]}") from error


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A scratch directory that becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        ZipARError: ``path`` exists and is not an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ZipARError(f"{path} exists already: give a new directory, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        scratch.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
