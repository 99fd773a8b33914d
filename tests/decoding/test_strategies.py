from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from zipar import Raster, TokenGrid, ZipAR, ZipARError
from zipar.decoding.strategy import StaticStrategy

GRIDS = st.builds(
    TokenGrid,
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    frames=st.integers(1, 3),
    row_end=st.sampled_from([None, 7]),
    frame_end=st.sampled_from([(), (8,), (8, 9)]),
)
ZIPARS = st.builds(ZipAR, window=st.integers(1, 8), first_row=st.sampled_from(["alone", "wave"]))


def any_grid_and(strategies):
    """Properties of schedules hold for random grids and windows, and in particular for these."""

    def decorate(test):
        for strategy in ZipAR(2), ZipAR(2, first_row="wave"), ZipAR(1, first_row="wave"):
            for grid in TokenGrid(5, 6), TokenGrid(4, 5, 2, row_end=7, frame_end=(8, 9)), TokenGrid(4, 5, 2):
                test = example(grid, strategy)(test)
        return given(GRIDS, strategies)(test)

    return decorate


def schedule(strategy, grid):
    """The (query, source, target) slots of each pass; the prefill is pass 0."""
    passes = [[(-1, -1, 0)]]
    made, tokens = strategy.schedule(grid, 1, torch.device("cpu")), torch.zeros(1, grid.slots + 1, dtype=torch.int64)
    while not made.done:
        step = made.plan(tokens)
        assert step.queries.shape == step.sources.shape == step.targets.shape == (1, made.width)
        entries = torch.cat(step).T.tolist()
        width, extent = made.bounds(len(passes))
        assert entries[width:] == [[grid.slots - 1, grid.slots - 1, grid.slots]] * (made.width - width)
        assert extent == max(query for query, *_ in entries[:width]) + 1
        passes.append(entries[:width])
        made.settle(tokens, None)
    return passes


def births(strategy, grid):
    """Slot -> the pass that decodes it."""
    passes = enumerate(schedule(strategy, grid))
    return {target: number for number, entries in passes for _, _, target in entries if target != grid.slots}


@pytest.mark.parametrize(
    ("side", "window", "passes"),
    [
        (16, 2, 60),
        (16, 4, 88),
        (16, 8, 144),
        (24, 2, 92),
        (24, 4, 136),
        (24, 8, 224),
        (24, 16, 400),
        (32, 3, 154),
        (32, 7, 274),
        (32, 11, 394),
        (32, 15, 514),
    ],
)
def test_passes_are_those_of_the_authors(side, window, passes):
    grid = TokenGrid(side, side)
    assert ZipAR(window).passes(grid) == passes
    assert len(schedule(ZipAR(window), grid)) == passes
    in_wave = side + (side - 1) * window
    assert ZipAR(window, first_row="wave").passes(grid) == in_wave
    for first_row in "alone", "wave":
        assert ZipAR(window, first_row=first_row).passes(TokenGrid(side, side, row_end=7)) == in_wave


def test_passes_of_grids_that_are_not_square():
    assert ZipAR(3).passes(TokenGrid(5, 8)) == 2 * 8 + 3 * 3
    assert ZipAR(3, first_row="wave").passes(TokenGrid(5, 8)) == 8 + 4 * 3
    assert ZipAR(3).passes(TokenGrid(8, 5)) == 2 * 5 + 6 * 3
    assert ZipAR(3).passes(TokenGrid(1, 9)) == 9
    assert ZipAR(3).passes(TokenGrid(9, 1)) == 9
    assert ZipAR(3).passes(TokenGrid(1, 1)) == 1


@any_grid_and(ZIPARS)
def test_frames_follow_each_other(grid, strategy):
    one = TokenGrid(grid.rows, grid.columns, 1, grid.row_end, grid.frame_end)
    assert strategy.passes(grid) == grid.frames * strategy.passes(one)


@given(GRIDS)
def test_raster_takes_one_pass_a_token(grid):
    """Known tokens cost no pass of their own."""
    passes = schedule(Raster(), grid)
    assert len(passes) == Raster().passes(grid) == grid.tokens
    for number, slot in enumerate(grid.free().flatten().tolist()):
        assert [target for _, _, target in passes[number] if target != grid.slots] == [slot]


@given(GRIDS, st.integers(0, 3), st.sampled_from(["alone", "wave"]))
def test_a_window_as_wide_as_the_grid_is_raster(grid, more, first_row):
    assert schedule(ZipAR(grid.columns + more, first_row=first_row), grid) == schedule(Raster(), grid)


@any_grid_and(ZIPARS | st.just(Raster()))
def test_each_free_slot_is_a_target_once(grid, strategy):
    passes = schedule(strategy, grid)
    targets = [target for entries in passes for _, _, target in entries if target != grid.slots]
    assert sorted(targets) == grid.free().flatten().tolist()
    assert len(passes) == strategy.passes(grid)
    for entries in passes:
        queries = [query for query, _, _ in entries]
        assert len(set(queries)) == len(queries)
        assert all(target in (query + 1, grid.slots) for query, _, target in entries)


@any_grid_and(ZIPARS | st.just(Raster()))
def test_a_source_is_given_or_decoded_before(grid, strategy):
    born = births(strategy, grid)
    for number, entries in enumerate(schedule(strategy, grid)[1:], 1):
        for query, source, _ in entries:
            assert born.get(source, 0) < number
            if query not in born or born[query] < number:
                assert source == query  # nothing stands in for a token that exists


@any_grid_and(ZIPARS)
def test_the_window_rule_holds_and_no_token_waits_longer(grid, strategy):
    born, free = births(strategy, grid), grid.free().tolist()
    window = min(strategy.window, grid.columns)
    row_0_first = strategy.first_row == "alone" and grid.row_end is None
    for frame in range(grid.frames):
        before = [born[free[frame - 1][-1][-1]]] if frame else []
        for i in range(grid.rows):
            for j in range(grid.columns):
                needed = list(before)
                if j:
                    needed.append(born[free[frame][i][j - 1]])
                if i:
                    needed += [born[free[frame][i - 1][k]] for k in range(min(j + window, grid.columns))]
                if i and row_0_first:
                    needed += [born[free[frame][0][-1]]]
                assert born[free[frame][i][j]] == max(needed, default=-1) + 1


@any_grid_and(ZIPARS | st.just(Raster()))
def test_each_token_is_fed_as_soon_as_it_and_its_row_are_there(grid, strategy):
    """So that keys and values of a stand-in, or of a row end that came early, do not outlive their need."""
    born, passes = births(strategy, grid), schedule(strategy, grid)
    final = 0
    for slot in range(grid.slots - 1):
        final = born[slot] + 1 if slot in born else final
        fed = [number for number, entries in enumerate(passes) if [slot, slot] in [entry[:2] for entry in entries]]
        if final < len(passes):
            assert final == max(fed)
        else:
            assert not fed


@any_grid_and(ZIPARS)
def test_the_stand_in_is_the_token_above_the_missing_one(grid, strategy):
    born, free = births(strategy, grid), grid.free().tolist()
    for number, entries in enumerate(schedule(strategy, grid)[1:], 1):
        for query, source, target in entries:
            if source == query:
                continue
            assert grid.row_end is None
            frame, row, column = ((grid.free() == target).nonzero()[0]).tolist()
            assert column == 0
            above = [free[frame][i][-1] for i in range(row - 1) if born[free[frame][i][-1]] < number]
            newest = [slot for slot in free[frame][row - 1] if born[slot] < number]
            assert source == (above or newest)[-1]


@dataclass(frozen=True)
class Columns(StaticStrategy):
    """Somebody else's strategy: all rows at once, from left to right."""

    def timetable(self, grid):
        return torch.arange(grid.columns).expand(grid.frames, grid.rows, grid.columns)


def test_a_strategy_without_stand_ins_needs_row_ends():
    passes = schedule(Columns(), TokenGrid(3, 4, row_end=7))
    assert [target for _, _, target in passes[2] if target != 15] == [2, 7, 12]
    with pytest.raises(ValueError, match="Columns starts no row"):
        schedule(Columns(), TokenGrid(3, 4))


@pytest.mark.parametrize("window", [0, -3])
def test_windows_that_are_not_possible(window):
    with pytest.raises(ZipARError, match=f"window {window} is not possible"):
        ZipAR(window)


def test_a_first_row_that_is_unknown():
    with pytest.raises(ZipARError, match="first_row 'together' is not possible: use 'alone' or 'wave'"):
        ZipAR(4, first_row="together")
