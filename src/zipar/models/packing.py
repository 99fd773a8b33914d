"""Weights as the CPU's matrix kernels want them, laid out once instead of in every call.

A forward pass multiplies all weights with a few rows, and PyTorch's ``linear`` spends most of that on rearranging the
weights. These are the operators of oneDNN that ``torch.compile`` uses on weights that it knows to stay.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer that is ready to multiply, and for nothing else."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.eval()
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


def pack(modules: Sequence[nn.Module]) -> None:
    """Pack the linear layers in ``modules`` for good: weights are held once, but not to train, save or move."""
    for parent, name, linear in _packable(modules):
        parent._modules[name] = PackedLinear(linear)


class Packed:
    """Packed copies of the linear layers in ``modules``, which stand in for them where that is wanted."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.swaps = [(parent, name, linear, PackedLinear(linear)) for parent, name, linear in _packable(modules)]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the copies inside the block."""
        for parent, name, _, packed in self.swaps:
            parent._modules[name] = packed
        try:
            yield
        finally:
            for parent, name, linear, _ in self.swaps:
                parent._modules[name] = linear


def _packable(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of each plain ``nn.Linear`` on an x86 CPU, without hooks or compiled code around it."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return []
    parents = [parent for module in modules for parent in module.modules()]
    if any(hasattr(parent, "_orig_mod") or parent._compiled_call_impl is not None for parent in parents):
        return []
    return [(parent, name, layer) for parent in parents for name, layer in parent.named_children() if _is_plain(layer)]


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return False
    weight = layer.weight.data
    return type(weight) is Tensor and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
