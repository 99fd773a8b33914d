"""Reading the files of checkpoint directories, with errors that say what is wrong."""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import Tensor, nn

from zipar.errors import ZipARError, reason


def check_readable(path: Path, missing: str) -> None:
    """Raise where ``path`` is no file that can be read; libraries take one that is forbidden for one that is damaged.

    Raises:
        ZipARError: says ``missing`` where nothing is there, else what stands in the way.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ZipARError(f"{path} is no file: give one")
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise ZipARError(missing) from None
    except OSError as error:
        raise ZipARError(f"{path} cannot be read: {reason(error)}") from error


def is_directory(path: Path) -> bool:
    """Whether ``path`` is a directory.

    Raises:
        ZipARError: the system does not let one look.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError of characters that no file's name has
        raise ZipARError(f"{str(path)!r} cannot be looked for: {reason(error)}") from error


def read_config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    """``config.json`` of a checkpoint directory, or another such file.

    Raises:
        ZipARError: there is none, or it is not a JSON object.
    """
    path = directory / name
    check_readable(path, f"{directory} is no checkpoint directory: it has no {name}")
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
    check_readable(path, f"{path} is missing: the checkpoint is incomplete")
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ZipARError(f"{path} is damaged ({error}): fetch or convert it again") from error
    check_tensors(tensors, module, path)
    return tensors


def load_shards(directory: Path, module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Fill ``module`` with the tensors of all safetensors files of a directory, one file after the other.

    Raises:
        ZipARError: a file is damaged, or the tensors are not those of ``module``.
    """
    shards = sorted(directory.glob("*.safetensors"))
    check_tensors({name: tensor for shard in shards for name, tensor in outline(shard).items()}, module, directory)
    for shard in shards:
        tensors = safetensors.torch.load_file(shard)
        module.load_state_dict({name: tensor.to(device, dtype) for name, tensor in tensors.items()}, False, assign=True)


def outline(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their values, on the meta device.

    Raises:
        ZipARError: the file is missing or damaged.
    """
    check_readable(path, f"{path} is missing")
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ZipARError(f"{path} is damaged ({error}): fetch or convert it again") from error
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


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


def read_tokenizer(path: Path) -> Tokenizer:
    """The text tokenizer of a ``tokenizer.json``.

    Raises:
        ZipARError: it is missing or damaged.
    """
    check_readable(path, f"{path} is missing: the checkpoint is incomplete")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ZipARError(f"{path} is no tokenizer that can be read: {reason(error)}") from error
    tokenizer.no_truncation()  # either may be stored, as the last call before it was saved wanted it
    tokenizer.no_padding()
    return tokenizer


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
        if isinstance(error, OSError) and error.filename:
            raise ZipARError(f"{error.filename} cannot be read: {reason(error)}") from error
        raise ZipARError(f"{source} is no checkpoint that can be read: {reason(error)}") from error
