"""Linear layers in int8: weights by output channel, once; activations by row, as they come.

A row is quantised by its own largest value, so that a product does not depend on what else is multiplied. What stays
in floating point (attention, norms) rounds differently in passes of other widths, though, and int8 makes steps of such
differences: images of one seed are less often the same in other batches or by Jacobi than they are in float32.
On x86 CPUs these are FBGEMM's operators, which PyTorch brings along; on GPUs it is torchao.
"""

import warnings
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipar.arguments import choice
from zipar.errors import ZipARError
from zipar.models.packing import linear_layers

WAYS = ("int8",)
"""How weights can be quantised."""
_ENGINES = ("x86", "fbgemm")
_one_at_a_time = Lock()  # for filters of warnings are the process's
_TINY = 1e-12
"""Stands for the largest value of a row that is all zeros."""


def check(how: str, device: torch.device) -> None:
    """Whether layers can be quantised on ``device``, before their weights are read.

    Raises:
        ZipARError: there is no such way, or nothing here that computes in it.
    """
    choice("quantize", how, WAYS)
    if device.type == "cuda":
        _torchao()
    elif device.type != "cpu":
        raise ZipARError(f"nothing computes in {how} on device {str(device)!r}: use a CPU or CUDA, or do not quantise")
    elif (engine := torch.backends.quantized.engine) not in _ENGINES:
        raise ZipARError(
            f"{how} on CPUs needs an x86 processor and PyTorch's quantized engine {' or '.join(_ENGINES)}, but here it "
            f"is {engine!r}: use a GPU, or do not quantise"
        )


def quantize(modules: Sequence[nn.Module], how: str, device: torch.device) -> None:
    """Quantise the linear layers in ``modules`` for good: not to train, save or move.

    Raises:
        ZipARError: see ``check``.
    """
    check(how, device)
    found = list(linear_layers(modules))
    if device.type == "cuda":
        quantize_by_torchao(modules, [layer for _, _, layer in found])
        return
    while found:  # one at a time, so that float weights are freed as they go
        parent, name, layer = found.pop()
        parent._modules[name] = QuantizedLinear(layer)


class QuantizedLinear(nn.Module):
    """A linear layer in int8 on an x86 CPU; what goes in and comes out is floating point."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.eval()
        weight = linear.weight.detach().float()
        scale = pair_safe_scale(weight)
        rounded = (weight / scale[:, None]).round_().to(torch.int8)
        self.packed: Any = _prepacked(rounded, scale.double())
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.weight = torch.empty(0, dtype=linear.weight.dtype)  # models ask it for their dtype and device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Integers stay as they are, and where they are."""
        self.weight = fn(self.weight)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what is packed has neither."""
        whole, _ = torch.ops.quantized.linear_unpack(self.packed)
        return vars(self) | {"packed": (whole.int_repr(), whole.q_per_channel_scales())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.packed = _prepacked(*self.packed)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        row = x.float()
        peak = row.abs().amax(-1, keepdim=True).clamp_min_(_TINY)
        # divided by its peak, every row has the scale that the operator wants to be told of all
        product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            row / peak, 1 / 127, 128, self.packed
        )
        product.mul_(peak)
        return (product if self.bias is None else product.add_(self.bias)).to(x.dtype)


def _prepacked(weight: Tensor, scale: Tensor) -> Any:
    """What FBGEMM multiplies by: of int8 ``weight`` (out, in), and the float64 step (out,) of each channel."""
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pytorch#184982: tensors of qint8 are deprecated
        whole = torch._make_per_channel_quantized_tensor(weight, scale, zeros, 0)
    return torch.ops.quantized.linear_prepack(whole, None)


def pair_safe_scale(weight: Tensor) -> Tensor:
    """The step (out,) of each channel of a float32 ``weight`` (out, in) in int8.

    A processor without VNNI adds the products of two neighbours in 16 bits, and saturates. Activations are at most 255
    there, so steps are such that two neighbours of one sign add up to 128 at most, rounding counted: 255 * 128 < 2**15.
    Processors with VNNI would not mind larger ones, but then images would depend on the processor.
    """
    pairs = F.pad(weight, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2))
    up, down = pairs.clamp_min(0).sum(2).amax(1), (-pairs).clamp_min(0).sum(2).amax(1)
    return torch.maximum(weight.abs().amax(1), torch.maximum(up, down)).div(127).clamp_min(_TINY)


def quantize_by_torchao(modules: Sequence[nn.Module], layers: Sequence[nn.Linear]) -> None:
    """Quantise ``layers``, which are in ``modules``, in place.

    Raises:
        ZipARError: torchao is missing.
    """
    quantization, chosen = _torchao(), set(layers)
    config = quantization.Int8DynamicActivationInt8WeightConfig(
        granularity=quantization.PerRow(), set_inductor_config=False
    )
    for module in modules:
        quantization.quantize_(module, config, filter_fn=lambda layer, name: layer in chosen)


def _torchao() -> Any:
    try:
        from torchao import quantization
    except ImportError as error:
        raise ZipARError('int8 on a GPU needs torchao 0.18 or newer: pip install "zipar-torch[int8]"') from error
    if not hasattr(quantization, "Int8DynamicActivationInt8WeightConfig"):
        raise ZipARError('this torchao is too old for int8: pip install --upgrade "zipar-torch[int8]"')
    return quantization
