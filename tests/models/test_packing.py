"""Packed linear layers against PyTorch's own."""

import copy

import pytest
import torch
from torch import nn

from zipar.models.packing import Packed, PackedLinear, pack

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="packs for x86 CPUs alone",
)


def packed_layers(network):
    return [name for name, module in network.named_modules() if isinstance(module, PackedLinear)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.SiLU(), nn.Sequential(nn.Linear(40, 8, bias=False))).requires_grad_(
        False
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 24), (2, 3, 24), (300, 24)])
def test_same_results(network, dtype, shape):
    network.to(dtype)
    x = torch.randn(shape, dtype=dtype)
    expected = network.double()(x.double())
    pack([network.to(dtype)])
    assert packed_layers(network) == ["0", "2.0"]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(network(x).double(), expected, atol=tolerance, rtol=tolerance)


def test_in_place_is_undone_even_after_a_failure(network):
    layers = [network[0], network[2][0]]
    packed = Packed([network])
    assert packed_layers(network) == []
    with packed.in_place():
        assert packed_layers(network) == ["0", "2.0"]
    assert [network[0], network[2][0]] == layers

    def broken():
        with packed.in_place():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert [network[0], network[2][0]] == layers


def test_what_is_not_plainly_linear_is_left_alone(network):
    class Quantised(nn.Linear):
        pass

    hooked, compiled = copy.deepcopy(network), copy.deepcopy(network)
    hooked[0].register_forward_hook(lambda *_: None)
    hooked[2][0] = Quantised(40, 8)
    compiled[2].compile(backend="eager")
    for left in hooked, compiled, torch.compile(copy.deepcopy(network), backend="eager"), network.half():
        assert packed_layers(left) == []
        pack([left])
        assert packed_layers(left) == []
