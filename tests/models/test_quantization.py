"""int8 linear layers against float64 products, and models that are made of them."""

import gc
import weakref

import pytest
import torch
from torch import nn

import zipar
from zipar import CoupledJacobi, Raster, ZipAR
from zipar.conversion.llamagen import write
from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache
from zipar.models import auto, quantization
from zipar.models.packing import PackedLinear, packable
from zipar.models.quantization import QuantizedLinear

CPU = torch.device("cpu")
SIZES = {
    "janus": (12, 12),
    "emu3": (8, 12),
    "emu3_5": (64, 96),
    "lumina_mgpt": (64, 96),
    "anole": (96, 96),
    "liquid": (96, 96),
    "simplear": (96, 96),
}
on_x86 = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="FBGEMM computes on x86 CPUs alone"
)


def layer(weight, bias=None):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).requires_grad_(False)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    return linear


def error(found, exact):
    """The largest error of a row, relative to the row."""
    return ((found.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max().item()


def with_outlier(weight):
    weight = weight.clone()
    weight[3] *= 100
    return weight


@on_x86
@pytest.mark.parametrize(
    ("weight", "bound"),
    [
        (lambda: torch.randn(48, 96), 0.02),
        (lambda: with_outlier(torch.randn(48, 96)), 0.02),
        (lambda: torch.rand(48, 96) + 0.5, 0.02),
        (lambda: torch.ones(48, 96), 0.01),  # two products of 255 * 127 overflow 16 bits: -32768 is all one gets
        (lambda: -torch.ones(48, 96), 0.01),
    ],
    ids=["gaussian", "an outlier channel", "of one sign", "the largest of all", "the smallest of all"],
)
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_results_are_those_of_float64(weight, bound, rows):
    torch.manual_seed(0)
    weight = weight()
    for x in torch.randn(rows, 96), torch.rand(rows, 96) + 0.5, torch.ones(rows, 96), -torch.ones(rows, 96):
        off = (QuantizedLinear(layer(weight))(x).double() - x.double() @ weight.double().T).abs()
        # of what the product could be, for it may cancel
        assert (off / (x.norm(dim=1)[:, None] * weight.norm(dim=1))).max() < bound


@on_x86
def test_an_outlier_channel_costs_the_others_nothing():
    torch.manual_seed(0)
    weight, x = torch.randn(48, 96), torch.randn(7, 96)
    others = torch.arange(48) != 3
    plain, outlier = (QuantizedLinear(layer(each))(x)[:, others] for each in (weight, with_outlier(weight)))
    assert plain.tolist() == outlier.tolist()


@on_x86
@pytest.mark.parametrize(("wide", "narrow"), [(33, 7), (1, 3), (96, 48)])
def test_bias_odd_shapes_and_dimensions_in_front(wide, narrow):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(narrow, wide), torch.randn(narrow), torch.randn(2, 5, wide)
    found = QuantizedLinear(layer(weight, bias))(x)
    assert found.shape == (2, 5, narrow)
    exact = x.double() @ weight.double().T
    assert (found.double() - bias - exact).abs().max() < 0.03 * exact.norm(dim=-1).max()


@on_x86
def test_a_row_is_the_same_alone_and_among_others():
    torch.manual_seed(0)
    quantized, x = QuantizedLinear(layer(torch.randn(48, 96))), torch.randn(50, 96)
    x[7] *= 1000
    together = quantized(x)
    for i in range(50):
        assert torch.equal(quantized(x[i : i + 1])[0], together[i])


@on_x86
def test_no_rows_and_zeros():
    bias = torch.randn(8)
    quantized = QuantizedLinear(layer(torch.randn(8, 6), bias))
    assert quantized(torch.empty(0, 6)).shape == (0, 8)
    assert torch.equal(quantized(torch.zeros(3, 6)), bias.expand(3, 8))
    silent = torch.randn(8, 6)
    silent[2] = 0
    assert QuantizedLinear(layer(silent))(torch.randn(3, 6))[:, 2].tolist() == [0.0] * 3


@on_x86
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(dtype):
    torch.manual_seed(0)
    linear, x = layer(torch.randn(48, 96)).to(dtype), torch.randn(5, 96, dtype=dtype)
    quantized = QuantizedLinear(linear)
    assert quantized(x).dtype == quantized.weight.dtype == dtype
    assert error(quantized(x), x.double() @ linear.weight.double().T) < 0.02


@pytest.mark.parametrize("rows", [torch.randn(40, 33), torch.ones(3, 4), torch.zeros(2, 5), -torch.rand(9, 6)])
def test_no_two_neighbours_can_overflow_16_bits(rows):
    scale = quantization.pair_safe_scale(rows)
    whole = (rows / scale[:, None]).round()
    assert whole.abs().max() <= 127
    pairs = nn.functional.pad(whole, (0, rows.shape[1] % 2)).unflatten(1, (-1, 2))
    for activations in torch.cartesian_prod(*[torch.tensor([0.0, 255.0])] * 2):
        sums = (pairs * activations).sum(2)
        assert sums.max() < 2**15
        assert sums.min() >= -(2**15)


@pytest.fixture
def emoji():
    return lambda **options: auto.load("emoji", device="cpu", **options)


@on_x86
def test_the_weights_of_a_decoder_are_held_once(tiny_models, tmp_path):
    write(tiny_models.by_class, tmp_path / "tiny", torch.float32)
    model = auto.load(tmp_path / "tiny", torch.bfloat16, "cpu", "int8")
    assert (model.quantized, model.dtype, model.device) == ("int8", torch.bfloat16, CPU)
    kinds = [type(module) for module in model.decoder.modules()]
    assert kinds.count(QuantizedLinear) == 2 * 5 + 1
    assert not {nn.Linear, PackedLinear} & set(kinds)
    assert not list(packable([model.decoder]))
    held = {name for name, _ in model.decoder.named_parameters()}
    assert all("embedding" in name or "norm" in name for name in held)


@on_x86
def test_float_weights_are_freed():
    linear = nn.Linear(8, 8).requires_grad_(False)
    weight = weakref.ref(linear.weight)
    network = nn.Sequential(linear)
    del linear
    quantization.quantize([network], "int8", CPU)
    gc.collect()
    assert type(network[0]) is QuantizedLinear
    assert weight() is None


@on_x86
@torch.inference_mode()
def test_what_the_embedded_model_expects_hardly_changes(emoji):
    """Its logits, on tokens that the float model painted: the mean divergence of what is drawn from them, in nats."""
    floats, quantized = emoji(), emoji(quantize="int8")
    prompt = ["a large red fox on a blue background, 3d style"]
    grid = floats.grid(*floats.image_size)
    tokens = torch.from_numpy(zipar.Pipeline(floats)(prompt).tokens).flatten(1).long()

    def forced(model):
        prefix = model.prefix(prompt, None, False, grid)
        length, slots = prefix.valid.shape[1], grid.slots - 1
        cache = SlotCache(model.layers, 1, length, grid.slots)
        cache.place(slice(1), torch.arange(length)[None], slice(length))
        model.prefill(prefix, cache, prefix.mask())
        queries = torch.arange(slots)
        seen = torch.cat([prefix.valid[:, None].expand(-1, slots, -1), (queries <= queries[:, None])[None]], -1)
        cache.place(slice(1), length + queries[None], slice(length + slots))
        lengths = prefix.valid.sum(1)
        mask = additive(seen, torch.float32)
        return model.step(tokens[:, :-1], queries[None], lengths, cache, mask).log_softmax(-1)

    expected, found = forced(floats), forced(quantized)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    agreement = (expected.argmax(-1) == found.argmax(-1)).float().mean()
    print(f"divergence {divergence:.5f}, agreement {agreement:.3f}")
    assert 0 < divergence < 0.02
    assert agreement > 0.9


@on_x86
def test_the_embedded_model_paints():
    pipe = zipar.pipeline("emoji", device="cpu", quantize="int8")
    prompt = "a large red fox on a blue background, 3d style"
    assert pipe(prompt, strategy=ZipAR(4)).stats.forward_passes < 128


SIZES = {
    "janus": (12, 12),
    "emu3": (8, 12),
    "emu3_5": (64, 96),
    "lumina_mgpt": (64, 96),
    "lumina_mgpt2": (64, 32),
    "anole": (96, 96),
}


@on_x86
@pytest.mark.parametrize("family", SIZES)
def test_every_family_paints(checkpoints, family):
    size = SIZES[family]
    pipe = zipar.pipeline(checkpoints(family), device="cpu", quantize="int8")
    assert any(type(module) is QuantizedLinear for module in pipe.model.decoder.modules())
    asked = {"height": size[0], "width": size[1], "guidance_scale": 3.0}

    def paint(strategy):
        return pipe(["a red fox in the snow", "fox"], strategy=strategy, **asked)

    assert paint(ZipAR(2)).stats.forward_passes == ZipAR(2).passes(pipe.model.grid(*size))
    if family in ("janus", "emu3"):  # a row is the same among any others, in whatever model
        assert paint(CoupledJacobi(7)).tokens.tolist() == paint(Raster()).tokens.tolist()


def test_what_cannot_be_done_is_said(tiny_models, monkeypatch):
    with pytest.raises(zipar.ZipARError, match="quantize 'int4' is not possible: use 'int8'"):
        auto.load("emoji", device="cpu", quantize="int4")
    with pytest.raises(zipar.ZipARError, match="loaded model cannot be quantised"):
        zipar.pipeline(tiny_models.by_class, quantize="int8")
    with pytest.raises(zipar.ZipARError, match="on device 'mps'"):
        quantization.check("int8", torch.device("mps"))
    monkeypatch.setattr("zipar.models.quantization._ENGINES", ())
    with pytest.raises(zipar.ZipARError, match="needs an x86 processor"):
        auto.load("emoji", device="cpu", quantize="int8")
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(zipar.ZipARError, match=r'pip install "zipar-torch\[int8\]"'):
        quantization.check("int8", torch.device("cuda"))


def test_torchao_on_a_small_model(tiny_models, tmp_path):
    pytest.importorskip("torchao")
    write(tiny_models.by_class, tmp_path / "tiny", torch.float32)
    model = type(tiny_models.by_class).load(tmp_path / "tiny", torch.float32, CPU)
    layers = [layer for _, _, layer in quantization.linear_layers(model.stepped())]
    quantization.quantize_by_torchao(model.stepped(), layers)
    assert all(layer.weight.qdata.dtype == torch.int8 for layer in layers)
    assert (model.dtype, model.device) == (torch.float32, CPU)
    pipe = zipar.Pipeline(model)
    assert pipe("3", strategy=ZipAR(2), guidance_scale=2.0).tokens.shape == (1, 6, 6)
