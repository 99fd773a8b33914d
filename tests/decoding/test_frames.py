"""Clips: frames that overlap, and frames that are given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, TokenGrid, ZipAR, ZipARError
from zipar.decoding.engine import decode
from zipar.decoding.lane import Lane
from zipar.evaluation.fidelity import likelihood

SEEDS = [3, -1, 2**80 + 5]
TEXTS = ["a red fox in the snow", "fox", "two small birds"]
GRIDS = st.builds(
    TokenGrid,
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),  # the model has places for no more
    frames=st.just(3),
    row_end=st.sampled_from([None, 7]),
    frame_end=st.sampled_from([(), (8, 9), ((1,), (2,), (3,))]),
    given=st.integers(0, 2),
)
SAMPLING = Sampling(2.5, temperature=0.5)


def prefix_of(model, grid, codes=None, texts=TEXTS):
    with torch.inference_mode():
        return model.prefix(texts, None, True, grid, codes if grid.given else None)


def codes_of(grid, clips=3):
    shape = (clips, grid.given, grid.rows, grid.columns)
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


class Unconditional:
    """A model whose distribution is the same everywhere."""

    def __init__(self, model):
        self.model, self.layers = model, model.layers

    def prefill(self, *arguments):
        return self.model.prefill(*arguments) * 0 + torch.arange(50) * 0.1

    def step(self, *arguments):
        return self.model.step(*arguments) * 0 + torch.arange(50) * 0.1


@pytest.mark.parametrize(
    ("grid", "window", "raster", "by_frame", "diagonal", "by_row"),
    [
        (TokenGrid(40, 64, 5, given=2), 2, 7680, 426, 302, 270),
        (TokenGrid(40, 64, 5, given=2), 8, 7680, 1128, 1016, 504),
        (TokenGrid(8, 16, 20, frame_end=(0,), given=15), 4, 640, 220, 172, 108),
    ],
)
def test_passes_are_those_of_the_formula(grid, window, raster, by_frame, diagonal, by_row):
    """columns + (rows - 1) * window + (frames - 1) * delay."""
    assert Raster().passes(grid) == raster
    for delay, passes in ((None, by_frame), (grid.rows * window, diagonal), (grid.columns, by_row)):
        assert ZipAR(window, first_row="wave", frame_delay=delay).passes(grid) == passes


@settings(max_examples=50)
@given(GRIDS, st.integers(0, 3))
def test_a_delay_of_a_whole_frame_and_full_windows_are_raster(grid, more):
    assert ZipAR(grid.columns, frame_delay=grid.rows * grid.columns + more).plan(grid) == Raster().plan(grid)


@settings(max_examples=40)
@given(GRIDS, st.integers(1, 4), st.integers(1, 9), st.sampled_from(["alone", "wave"]))
def test_known_tokens_cost_no_pass(grid, window, delay, first_row):
    strategy = ZipAR(window, 1, first_row, None, delay)
    bare = TokenGrid(grid.rows, grid.columns, grid.frames, grid.row_end, given=grid.given)
    assert strategy.passes(grid) == strategy.passes(bare)
    for entries in strategy.plan(grid)[1:]:
        assert any(target < grid.slots for _, _, target in entries)


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, lookahead=st.integers(1, 30), window=st.none() | st.integers(1, 4))
def test_lossless_decoding_is_raster(tiny_clips, grid, lookahead, window):
    codes = codes_of(grid)
    raster, found = (
        decode(tiny_clips, prefix_of(tiny_clips, grid, codes), grid, strategy, SAMPLING, SEEDS)
        for strategy in (Raster(), CoupledJacobi(lookahead, window))
    )
    assert found.tokens.equal(raster.tokens)
    assert found.forward_passes <= raster.forward_passes == grid.tokens


@settings(max_examples=30, deadline=None)
@given(GRIDS, st.integers(1, 3), st.sampled_from(["alone", "wave"]), st.none() | st.integers(1, 9))
def test_adaptive_windows_that_nothing_changes_are_plain_ones(tiny_clips, grid, window, first_row, delay):
    model, codes = Unconditional(tiny_clips), codes_of(grid)
    plain, found = (
        decode(model, prefix_of(tiny_clips, grid, codes), grid, strategy, SAMPLING, SEEDS)
        for strategy in (ZipAR(window, 1, first_row, None, delay), AdaptiveZipAR(window, first_row, delay))
    )
    assert found.tokens.equal(plain.tokens)
    assert (found.forward_passes, found.rejections) == (plain.forward_passes, 0)


@settings(max_examples=30, deadline=None)
@given(GRIDS, st.integers(1, 3), st.sampled_from(["alone", "wave"]), st.integers(1, 9))
def test_adaptive_windows_take_no_more_passes_than_raster(tiny_clips, grid, window, first_row, delay):
    strategy = AdaptiveZipAR(window, first_row, delay)
    prefix = prefix_of(tiny_clips, grid, codes_of(grid))
    found = decode(tiny_clips, prefix, grid, strategy, Sampling(2.5, temperature=2.0), SEEDS)
    assert strategy.fewest_passes(grid) <= found.forward_passes <= strategy.passes(grid) == grid.tokens


@pytest.mark.parametrize("given_frames", [1, 2])
@pytest.mark.parametrize(
    "strategy", [Raster(), CoupledJacobi(8), ZipAR(4, 4)], ids=["raster", "jacobi", "full windows"]
)
@pytest.mark.parametrize("frame_end", [(), (8, 9)])
def test_given_what_it_would_write_it_goes_on_as_it_would(tiny_clips, frame_end, strategy, given_frames):
    """Noise belongs to seeds and slots, so frames that are given may as well have been decoded."""
    grid = TokenGrid(3, 4, 3, frame_end=frame_end)
    whole = decode(tiny_clips, prefix_of(tiny_clips, grid), grid, Raster(), SAMPLING, SEEDS)
    rest = TokenGrid(3, 4, 3, frame_end=frame_end, given=given_frames)
    prefix = prefix_of(tiny_clips, rest, grid.pick(whole.tokens)[:, :given_frames])
    for deterministic in False, True:
        found = decode(tiny_clips, prefix, rest, strategy, SAMPLING, SEEDS, deterministic=deterministic)
        assert found.tokens.equal(whole.tokens)
        assert not found.born[:, : rest.first].any()


@pytest.mark.parametrize("strategy", [ZipAR(2, frame_delay=3), ZipAR(3, 4, nats=2.0, frame_delay=4), CoupledJacobi(6)])
def test_a_clip_is_the_same_alone_and_in_a_lane_that_others_leave(tiny_clips, strategy):
    grid, sampling = TokenGrid(3, 4, 3, given=1), Sampling(2.5, temperature=0.4)
    codes = codes_of(grid)
    alone = [
        decode(
            tiny_clips,
            prefix_of(tiny_clips, grid, codes[i : i + 1], TEXTS[i : i + 1]),
            *(grid, strategy, sampling, SEEDS[i : i + 1]),
        ).tokens[0]
        for i in range(3)
    ]
    prefix = prefix_of(tiny_clips, grid, codes)
    lane = Lane(
        *(tiny_clips, grid, strategy, sampling, 2, prefix.prompt),
        device=tiny_clips.device,
        dtype=prefix.embeddings.dtype,
    )
    waiting, finished = list(range(3)), {}
    while waiting or lane.busy:
        while waiting and lane.busy < lane.rows:
            image = waiting.pop(0)
            [ticket] = lane.admit(prefix.of(image, 3), sampling, [SEEDS[image]])
            assert ticket == image
        finished |= {done.ticket: done.tokens for done in lane.retire()}
        lane.step()
    assert all(finished[image].equal(alone[image]) for image in range(3))


def test_given_frames_must_fit_the_grid(tiny_clips):
    grid = TokenGrid(3, 4, 3, given=1)
    with pytest.raises(ZipARError, match="a prefix of 0 given tokens does not fit a grid of which 12 are given"):
        decode(tiny_clips, prefix_of(tiny_clips, TokenGrid(3, 4, 3)), grid, Raster(), SAMPLING, SEEDS)


@pytest.mark.parametrize("frame_end", [(), (8, 9)])
def test_likelihood_counts_the_frames_that_are_decoded(tiny_clips, frame_end):
    """The chain rule: of a whole clip, less that of its first frame alone."""
    grid = TokenGrid(3, 4, 3, frame_end=frame_end)
    first, rest = TokenGrid(3, 4, 1, frame_end=frame_end), TokenGrid(3, 4, 3, frame_end=frame_end, given=1)
    tokens = decode(tiny_clips, prefix_of(tiny_clips, grid), grid, Raster(), SAMPLING, SEEDS).tokens
    total, start = (
        likelihood(tiny_clips, prefix_of(tiny_clips, part), part, tokens[:, : part.slots], SAMPLING)
        for part in (grid, first)
    )
    codes = grid.pick(tokens)[:, :1]
    found = likelihood(tiny_clips, prefix_of(tiny_clips, rest, codes), rest, tokens, SAMPLING)
    for name in "nats", "entropy", "excess":
        expected = getattr(total, name) * grid.tokens - getattr(start, name) * first.tokens
        assert (getattr(found, name) * rest.tokens).allclose(expected, atol=1e-4)
