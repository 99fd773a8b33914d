"""Coupled Jacobi decoding: the raster image of every seed, token by token, in no more passes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar import CoupledJacobi, Raster, Sampling, TokenGrid, ZipARError
from zipar.decoding.engine import decode

SEEDS = [3, -1, 2**80 + 5]
PROMPTS = {"by_class": ["4", "0", "9"], "by_text": ["a red fox in the snow", "fox", "two small birds"]}


def decoded(tiny_models, kind, grid, strategy, sampling, seeds=SEEDS):
    model = getattr(tiny_models, kind)
    with torch.inference_mode():
        prefix = model.prefix(PROMPTS[kind][: len(seeds)], None, sampling.guided)
    return decode(model, prefix, grid, strategy, sampling, seeds)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 5),
    frames=st.integers(1, 2),
    row_end=st.sampled_from([None, 7]),
    frame_end=st.sampled_from([(), (8, 9)]),
    strategy=st.builds(CoupledJacobi, st.integers(1, 40), st.none() | st.integers(1, 6)),
    kind=st.sampled_from(["by_class", "by_text"]),
    sampling=st.sampled_from(
        [Sampling(), Sampling(2.5, temperature=0.4), Sampling(2.5, 0.8, 20, 0.9), Sampling(3.0, temperature=0)]
    ),
)
def test_gives_the_tokens_of_raster_in_no_more_passes(
    tiny_models, rows, columns, frames, row_end, frame_end, strategy, kind, sampling
):
    grid = TokenGrid(rows, columns, frames, row_end, frame_end)
    if grid.slots > 36:
        grid = TokenGrid(rows, columns, 1, row_end, frame_end)
    raster = decoded(tiny_models, kind, grid, Raster(), sampling)
    found = decoded(tiny_models, kind, grid, strategy, sampling)
    assert found.tokens.equal(raster.tokens)
    assert found.forward_passes <= raster.forward_passes


@pytest.mark.parametrize("window", [None, 1, 2])
def test_guesses_that_come_true_save_passes(tiny_models, window):
    """Of a sequence that repeats one token, all but the first drafts are right."""
    model = tiny_models.by_class

    class Constant:
        layers = model.layers

        def prefill(self, *arguments):
            return self.flat(model.prefill(*arguments))

        def step(self, *arguments):
            return self.flat(model.step(*arguments))

        def flat(self, logits):
            return torch.zeros_like(logits).index_fill(-1, torch.tensor([5]), 100.0)

    grid = TokenGrid(6, 6)
    with torch.inference_mode():
        prefix = model.prefix(["3"], None, False)
    passes = {
        lookahead: decode(Constant(), prefix, grid, CoupledJacobi(lookahead, window), Sampling(), [0]).forward_passes
        for lookahead in (1, 4, 36)
    }
    assert passes[4] <= 1 + 35 / 4 + 6
    assert passes[36] <= 3
    assert passes[36] < passes[4] < passes[1] <= 36


@pytest.mark.parametrize("strategy", [CoupledJacobi(5), CoupledJacobi(4, 2)], ids=["raster", "wave"])
def test_an_image_is_the_same_alone_and_in_a_batch(tiny_models, strategy):
    sampling = Sampling(2.5, temperature=0.5)
    together = decoded(tiny_models, "by_text", TokenGrid(4, 5), strategy, sampling)
    alone = decoded(tiny_models, "by_text", TokenGrid(4, 5), strategy, sampling, SEEDS[:1])
    assert alone.tokens[0].equal(together.tokens[0])
    assert alone.born[0].equal(together.born[0])


@pytest.mark.parametrize(
    ("settings", "named"), [({"lookahead": 0}, "lookahead 0"), ({"window": 0}, "window 0"), ({"budget": 0}, "budget 0")]
)
def test_what_is_not_possible_is_refused(settings, named):
    with pytest.raises(ZipARError, match=named):
        CoupledJacobi(**settings)


@pytest.fixture(scope="module")
def raster(tiny_models):
    return decoded(tiny_models, "by_text", TokenGrid(4, 5), Raster(), Sampling(2.5, temperature=0.5))


@settings(max_examples=30)
@given(budget=st.integers(1, 60), lookahead=st.integers(1, 20), window=st.none() | st.integers(1, 3))
def test_a_budget_changes_no_image(tiny_models, raster, budget, lookahead, window):
    grid, sampling = TokenGrid(4, 5), Sampling(2.5, temperature=0.5)
    found = decoded(tiny_models, "by_text", grid, CoupledJacobi(lookahead, window, budget), sampling)
    assert found.tokens.equal(raster.tokens)
    assert found.forward_passes <= raster.forward_passes


def test_many_images_draft_less_far():
    grid, device = TokenGrid(6, 6), torch.device("cpu")
    made = CoupledJacobi(16, budget=24).schedule(grid, 12, device)
    assert [made.first(rows).width for rows in (1, 2, 3, 4, 8, 12)] == [16, 12, 8, 6, 3, 2]
    assert CoupledJacobi(1, budget=24).schedule(grid, 12, device).first(3).width == 1
