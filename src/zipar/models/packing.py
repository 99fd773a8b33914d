"""Weights as the CPU's matrix kernels want them, laid out once instead of in every call.

A forward pass multiplies all weights with a few rows, and PyTorch's ``linear`` spends most of that on rearranging the
weights. These are the operators of oneDNN that ``torch.compile`` uses on weights that it knows to stay.
"""

from collections.abc import Iterator, Sequence
from threading import RLock
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OWNERS = ("torch.nn.", "transformers.", "zipar.")
"""Whose modules are known to call their linear layers; a wrapper of others may read their weights instead."""
_SAMPLES = 97
_EXACT, _ROWS = 64, 16
"""Products of more than so many rows have a multiple of so many: oneDNN keeps what it compiles for each number."""
BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether the processor has what oneDNN needs for bfloat16."""


class PackedLinear(nn.Module):
    """A linear layer that is ready to multiply, and for nothing else."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.eval()
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        rows = x.shape[:-1].numel()
        if rows <= _EXACT or rows % _ROWS == 0:
            return self._product(x)
        padded = F.pad(x.reshape(rows, -1), (0, 0, 0, -rows % _ROWS))
        return self._product(padded)[:rows].view(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


class PackedInPlace(nn.Linear):
    """An ``nn.Linear`` whose weights lie packed until someone asks for them, and are parameters as ever from then on.

    So what holds its weights but once can still be copied, pickled, moved, saved, trained and wrapped.
    """

    def forward(self, x: Tensor) -> Tensor:
        held = vars(self).get("_packed")
        trained = torch.is_grad_enabled() and x.requires_grad
        if held is None or trained or x.dtype != held.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return nn.Linear.forward(self, x)  # which asks for the weights
        return held(x)

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]  # of what is a plain attribute there
        return unpack(self)

    @property
    def _parameters(self) -> dict[str, nn.Parameter | None]:  # type: ignore[override]
        unpack(self)
        return vars(self)["_parameters"]  # not by name: another thread may just be packing it

    def __reduce_ex__(self, protocol: Any) -> Any:
        unpack(self)
        return self.__reduce_ex__(protocol)


_changing = RLock()


def pack(modules: Sequence[nn.Module]) -> None:
    """Pack the linear layers in ``modules`` in place, so that their weights are held once, but for any in training."""
    for _, _, layer in packable(modules):
        if layer.weight.requires_grad:
            continue
        held = PackedLinear(layer.weight, layer.bias)
        with _changing:
            vars(layer)["_packed"] = held
            layer.__class__ = PackedInPlace
            vars(layer)["_parameters"]["weight"] = None


def unpack(layer: nn.Linear) -> nn.Parameter:
    """Make a layer that was packed in place an ``nn.Linear`` again; returns its weight."""
    with _changing:
        parameters = vars(layer)["_parameters"]
        if (held := vars(layer).pop("_packed", None)) is not None:
            with torch.inference_mode(False):
                parameters["weight"] = nn.Parameter(held.weight.to_dense(), requires_grad=False)
            layer.__class__ = nn.Linear
        return parameters["weight"]


def packable(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of each linear layer in ``modules`` that may be packed."""
    yield from ((parent, name, layer) for parent, name, layer in linear_layers(modules) if is_plain(layer))


def linear_layers(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of each ``nn.Linear`` in ``modules`` that nothing but a call is known to reach."""
    for module in modules:
        if any(map(is_compiled, module.modules())):
            continue
        for parent in module.modules():
            if type(parent).__module__.startswith(_OWNERS):
                for name, layer in parent.named_children():
                    if type(layer) is nn.Linear and is_bare(layer):
                        yield parent, name, layer


def is_compiled(module: nn.Module) -> bool:
    """Whether calling it runs code that ``torch.compile`` made of it, which would not see a change of its parts."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def is_bare(layer: nn.Module) -> bool:
    """Whether calling it runs its class's code and nothing else: no hooks, nothing compiled or wrapped around it."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or is_compiled(layer) or "forward" in vars(layer))


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is an ``nn.Linear`` on an x86 CPU, as PyTorch made it."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if type(layer) is not nn.Linear or not is_bare(layer):
        return False
    weight = layer.weight.data
    known = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and BFLOAT16)
    return type(weight) is Tensor and weight.device.type == "cpu" and known


def packed(layer: nn.Linear, rows: slice | Tensor = slice(None)) -> PackedLinear:
    """A packed copy of some ``rows`` of a plain layer, the same one until its weights change or ``forget`` is told."""
    stamp = _stamp(layer, rows)
    held = _copies.get(layer)
    if held is None or stamp is None or held[0] != stamp:
        bias = None if layer.bias is None else layer.bias[rows].detach()
        held = _copies[layer] = stamp, PackedLinear(layer.weight[rows], bias)
    return held[1]


def leaves(modules: Sequence[nn.Module]) -> dict[nn.Module, PackedLinear]:
    """What computes what the linear layers in ``modules`` do, packed, where that may stand in for them."""
    found: dict[nn.Module, PackedLinear] = {layer: packed(layer) for _, _, layer in packable(modules)}
    for module in modules:
        for layer in module.modules():
            held = vars(layer).get("_packed") if type(layer) is PackedInPlace and is_bare(layer) else None
            if held is not None:
                found[layer] = held
    return found


def forget(module: nn.Module) -> None:
    """Drop the packed copies of the layers in ``module``."""
    for layer in module.modules():
        _copies.pop(layer, None)


_copies: "WeakKeyDictionary[nn.Module, tuple[Any, PackedLinear]]" = WeakKeyDictionary()


def _stamp(layer: nn.Linear, rows: slice | Tensor) -> Any:
    """Tells the weights of a layer from others: by where they are, by how often they were written, and by some of them.

    Writing through ``weight.data`` counts as none. None where nothing counts, which is in inference mode.
    """
    if layer.weight.is_inference():
        return None
    weight, bias = layer.weight, layer.bias
    flat = weight.detach().flatten()
    some = flat[:: max(1, len(flat) // _SAMPLES)].tolist()
    chosen = (rows.start, rows.stop) if isinstance(rows, slice) else tuple(rows.tolist())
    return weight.data_ptr(), weight._version, weight.dtype, None if bias is None else bias._version, chosen, some
