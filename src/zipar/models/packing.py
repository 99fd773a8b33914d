"""Weights as the CPU's matrix kernels want them, laid out once instead of in every call.

A forward pass multiplies all weights with a few rows, and PyTorch's ``linear`` spends most of that on rearranging the
weights. These are the operators of oneDNN that ``torch.compile`` uses on weights that it knows to stay.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_OWNERS = ("torch.nn.", "transformers.", "zipar.")
"""Whose modules are known to call their linear layers; a wrapper of others may read their weights instead."""
_SAMPLES = 97
BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether the processor has what oneDNN needs for bfloat16."""


class PackedLinear(nn.Module):
    """A linear layer that is ready to multiply, and for nothing else."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.eval()
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


def pack(modules: Sequence[nn.Module]) -> None:
    """Pack the linear layers in ``modules`` for good: weights are held once, but not to train, save or move."""
    for parent, name, linear in packable(modules):
        parent._modules[name] = PackedLinear(linear.weight, linear.bias)


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
        bias = None if layer.bias is None else layer.bias[rows]
        held = _copies[layer] = stamp, PackedLinear(layer.weight[rows], bias)
    return held[1]


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
