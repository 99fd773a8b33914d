"""Every kind of strategy on every family that transformers implements: guided batches of different lengths."""

import pytest
import torch

import zipar
from zipar import AdaptiveZipAR, CoupledJacobi, Raster, ZipAR
from zipar.models import auto

PROMPTS = ["a red fox in the snow", "fox"]
SEEDS = [3, 2**70 + 8]
SIZES = {
    "janus": (12, 12),
    "emu3": (8, 12),
    "emu3_5": (64, 96),
    "lumina_mgpt": (64, 96),
    "lumina_mgpt2": (64, 32),
    "anole": (96, 96),
    "liquid": (96, 96),
    "simplear": (96, 96),
}
GREEDY, FILTERED = {"temperature": 0.0}, {"temperature": 1.3, "top_k": 20, "top_p": 0.9}


@pytest.fixture(scope="module", params=SIZES)
def paint(request, checkpoints):
    """paint(strategy) -> tokens and statistics; no grid has more than six columns."""
    family = request.param
    pipe = zipar.Pipeline(auto.load(checkpoints(family), device="cpu"))
    assert pipe.model.family == family
    height, width = SIZES[family]

    def paint(strategy, prompts=PROMPTS, seed=SEEDS, settings=FILTERED):
        settings = {"guidance_scale": 3.0, "seed": seed, "height": height, "width": width, **settings}
        output = pipe(prompts, strategy=strategy, **settings)
        return output.tokens, output.stats

    return paint


@pytest.fixture(scope="module")
def raster(paint):
    return {str(settings): paint(Raster(), settings=settings) for settings in (GREEDY, FILTERED)}


@pytest.mark.parametrize("family", ["emu3", "emu3_5", "lumina_mgpt"])
def test_a_hook_on_the_head_counts_from_the_next_image_on(checkpoints, family):
    pipe = zipar.Pipeline(
        auto.family(checkpoints(family)).load(checkpoints(family), torch.float32, torch.device("cpu"))
    )
    height, width = SIZES[family]

    def painted():
        return pipe("fox", strategy=ZipAR(2), height=height, width=width, **GREEDY).tokens.tolist()

    before = painted()
    hook = pipe.model.model.lm_head.register_forward_hook(lambda module, inputs, logits: -logits)
    assert painted() != before
    hook.remove()
    assert painted() == before


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [(CoupledJacobi(7), FILTERED), (CoupledJacobi(4, window=2), GREEDY)],
    ids=["filtered", "in windows, greedy"],
)
def test_jacobi_gives_the_tokens_of_raster_in_no_more_passes(paint, raster, strategy, settings):
    expected, usual = raster[str(settings)]
    tokens, stats = paint(strategy, settings=settings)
    assert tokens.tolist() == expected.tolist()
    assert stats.forward_passes <= usual.forward_passes


@pytest.mark.parametrize("make", [lambda window: ZipAR(window, lookahead=4), AdaptiveZipAR])
def test_windows_as_wide_as_the_grid_give_the_tokens_of_raster(paint, raster, make):
    expected, usual = raster[str(FILTERED)]
    (wide, _), (narrow, stats) = paint(make(6)), paint(make(1))
    assert wide.tolist() == expected.tolist()
    assert narrow.tolist() != expected.tolist()
    assert narrow.shape == expected.shape
    assert stats.forward_passes < usual.forward_passes


@pytest.mark.parametrize("strategy", [ZipAR(2, lookahead=4), AdaptiveZipAR(2)], ids=str)
def test_an_image_is_that_of_its_seed_in_any_batch(paint, strategy):
    together, _ = paint(strategy)
    for image, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        assert paint(strategy, [prompt], seed)[0][0].tolist() == together[image].tolist()
    assert paint(strategy, [PROMPTS[0]], SEEDS[1])[0][0].tolist() != together[0].tolist()
