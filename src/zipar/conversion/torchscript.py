"""Reading the tensors of TorchScript archives, running none of the code in them."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zipar.checkpoints.files import check_readable
from zipar.errors import ZipARError

STORAGES = {
    "FloatStorage": torch.float32,
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers, by name, of what ``torch.jit.save`` wrote, on the CPU.

    ``torch.jit.load`` would compile the archive's code, and ``torch.load(weights_only=True)`` knows none of its
    classes. So its pickle is read with stand-ins for them, which do nothing; a pickle that names anything else is
    refused.

    Raises:
        ZipARError: the file is missing or damaged, or wants to run code.
    """
    check_readable(path, f"{path} is missing: give the published one")
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            module = _Reader(archive, pickled).load()
            if not isinstance(module, _StandIn):
                raise TypeError(f"a {type(module).__name__} instead of a module")
            return dict(_tensors(module))
    except ZipARError:
        raise
    except _Refused as error:
        raise ZipARError(f"{path} was not opened, for it wants to run {error}: get the published file") from error
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise ZipARError(f"{path} is damaged, or is no TorchScript: fetch it again") from error


class _Refused(Exception):
    """Names what a pickle wants to run."""


class _StandIn:
    """For an object of a class of the archive: holds what it held."""

    def __new__(cls, *_: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    """All that a pickle can name here is inert: stand-ins, dictionaries, and tensors made of the archive's bytes.

    What it names may also be given attributes: so none of it is anyone else's, but for what takes none.
    """

    def __init__(self, archive: zipfile.ZipFile, pickled: str) -> None:
        super().__init__(io.BytesIO(archive.read(pickled)))
        self.archive, self.root = archive, pickled.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__" or module == "torch.jit._pickle":  # the latter tags lists with types
            return type(name, (_StandIn,), {})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda flat, offset, size, stride, *_: flat.as_strided(size, stride, offset)
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}data/{key}")), dtype=dtype)


def _tensors(module: _StandIn, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _StandIn):
            yield from _tensors(value, f"{prefix}{name}.")
