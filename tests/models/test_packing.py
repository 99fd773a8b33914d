"""Packed linear layers against PyTorch's own."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zipar.models.packing import BFLOAT16, PackedInPlace, forget, pack, packed

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="packs for x86 CPUs alone",
)


def packed_layers(network):
    return [name for name, module in network.named_modules() if isinstance(module, PackedInPlace)]


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
@pytest.mark.parametrize("shape", [(1, 24), (2, 3, 24), (3, 50, 24), (300, 24), (0, 24)])
def test_same_results(network, dtype, shape):
    network.to(dtype)
    x = torch.randn(shape, dtype=dtype)
    expected = network.double()(x.double())
    pack([network.to(dtype)])
    assert packed_layers(network) == ["0", "2.0"]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(network(x).double(), expected, atol=tolerance, rtol=tolerance)


def test_few_numbers_of_rows_reach_the_kernels(network):
    """Each of them is compiled, and kept: else the memory of a server grows with every new shape of a pass."""
    met = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "linear_pointwise" in str(func):
                met.add(args[0].shape[:-1].numel())
            return func(*args, **(kwargs or {}))

    pack([network])
    with Watch():
        for rows in range(1, 513):
            assert network(torch.zeros(rows, 24)).shape == (rows, 8)
    assert len(met) == 64 + (512 - 64) // 16


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


LOOKS = {
    "parameters": lambda network: list(network.parameters()),
    "state": lambda network: network.state_dict(),
    "weight": lambda network: (network[0].weight, network[2][0].weight),
    "copy": copy.deepcopy,
    "pickle": pickle.dumps,
    "move": lambda network: network.to("cpu"),
    "load": lambda network: network.load_state_dict(network.state_dict()),
    "compile": lambda network: torch.compile(network, backend="eager", fullgraph=True)(torch.randn(2, 24)),
    "gradient": lambda network: network(torch.randn(2, 24, requires_grad=True)).sum().backward(),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_who_looks_at_packed_weights_finds_an_ordinary_layer(network, look):
    x, state = torch.randn(3, 24), {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(x)
    with torch.inference_mode():
        pack([network])
        assert packed_layers(network) == ["0", "2.0"]
        repr(network), network.eval(), list(network.modules())
        assert packed_layers(network) == ["0", "2.0"]  # that was none of its weights
    look(network)
    assert "0" not in packed_layers(network)
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(found[name].equal(value) for name, value in state.items())
    assert not any(value.is_inference() for value in found.values())
    torch.testing.assert_close(network(x), expected)


def test_copies_of_packed_layers_have_weights_of_their_own(network):
    x = torch.randn(3, 24)
    pack([network])
    expected = network(x)
    for other in copy.deepcopy(network), pickle.loads(pickle.dumps(network)):
        torch.testing.assert_close(other(x), expected)
        with torch.no_grad():
            other[0].weight.zero_()
        torch.testing.assert_close(network(x), expected)
        assert not torch.allclose(other(x), expected)


def test_weights_under_training_are_not_packed_in_place(network):
    network[0].requires_grad_()
    pack([network])
    assert packed_layers(network) == ["2.0"]


def test_a_new_bias_counts(network):
    x = torch.randn(3, 24)
    pack([network])
    before = network(x)
    network[0].bias.data = network[0].bias.data + 1
    assert packed_layers(network) == ["0", "2.0"]
    assert not torch.allclose(network(x), before)


def test_layers_may_be_looked_at_while_other_threads_use_them(network):
    x, failed = torch.randn(3, 24), []
    expected = network(x)

    def use():
        try:
            for _ in range(20):
                if not torch.allclose(network(x), expected, atol=1e-5):
                    failed.append("result")
        except Exception as error:
            failed.append(error)
            raise

    for _ in range(30):
        pack([network])
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        list(network.parameters())
        for thread in threads:
            thread.join()
    assert not failed


def test_what_a_wrapper_may_read_is_left_alone():
    """Adapters compute with the weights of the layer that they wrap."""

    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(8, 4)

    network = nn.Sequential(nn.Linear(4, 8), Adapter()).requires_grad_(False)
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
