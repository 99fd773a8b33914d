"""Packed linear layers against PyTorch's own."""

import copy

import pytest
import torch
from torch import nn

from zipar.models.packing import BFLOAT16, PackedLinear, forget, pack, packed

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


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not BFLOAT16, reason="no bfloat16 here"))],
)
@pytest.mark.parametrize("shape", [(1, 24), (2, 3, 24), (300, 24)])
def test_same_results(network, dtype, shape):
    network.to(dtype)
    x = torch.randn(shape, dtype=dtype)
    expected = network.double()(x.double())
    pack([network.to(dtype)])
    assert packed_layers(network) == ["0", "2.0"]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(network(x).double(), expected, atol=tolerance, rtol=tolerance)


def test_a_copy_is_made_once_until_the_weights_change(network):
    layer, x = network[0], torch.randn(3, 24)
    first = packed(layer)
    assert packed(layer) is first
    with torch.no_grad():
        layer.weight.mul_(2)
    second = packed(layer)
    assert second is not first
    torch.testing.assert_close(second(x), layer(x))
    layer.weight.data += 1.0  # which no version counter counts
    torch.testing.assert_close(packed(layer)(x), layer(x))
    layer.weight = nn.Parameter(torch.randn(40, 24))
    torch.testing.assert_close(packed(layer)(x), layer(x))
    with torch.no_grad():
        layer.bias.add_(1)
    third = packed(layer)
    torch.testing.assert_close(third(x), layer(x))
    assert packed(layer) is third
    forget(network)
    assert packed(layer) is not third


@pytest.mark.parametrize("rows", [slice(3, 9), torch.tensor([5, 1, 30])], ids=["slice", "scattered"])
def test_some_rows(network, rows):
    x = torch.randn(3, 24)
    torch.testing.assert_close(packed(network[0], rows)(x), network[0](x)[:, rows])
    assert packed(network[0], rows) is packed(network[0], rows)
    torch.testing.assert_close(packed(network[0], slice(0, 2))(x), network[0](x)[:, :2])


def test_weights_that_count_no_writes_are_packed_anew():
    with torch.inference_mode():
        layer = nn.Linear(8, 4)
        assert packed(layer) is not packed(layer)


def test_what_a_wrapper_may_read_is_left_alone():
    """Adapters compute with the weights of the layer that they wrap."""

    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(8, 4)

    network = nn.Sequential(nn.Linear(4, 8), Adapter())
    pack([network])
    assert packed_layers(network) == ["0"]


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
