from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zipar import TokenGrid, ZipARError

ROW_END, FRAME_END = 91, (92, 93)


def written_out(grid):
    """The sequence, slot by slot: (frame, row, column) of a free one, the token of a given one."""
    sequence = []
    for frame in range(grid.frames):
        for row in range(grid.rows):
            sequence += [(frame, row, column) for column in range(grid.columns)]
            if grid.row_end is not None:
                sequence.append(grid.row_end)
        each = grid.frame_end and isinstance(grid.frame_end[0], tuple)
        sequence += grid.frame_end[frame] if each else grid.frame_end
    return sequence


@given(
    st.builds(
        TokenGrid,
        rows=st.integers(1, 6),
        columns=st.integers(1, 6),
        frames=st.integers(1, 3),
        row_end=st.sampled_from([None, 0, ROW_END]),
        frame_end=st.sampled_from([(), FRAME_END[:1], FRAME_END]),
    ),
    st.data(),
)
def test_slots_are_those_of_the_sequence_written_out(grid, data):
    if data.draw(st.booleans()):  # known tokens that differ from frame to frame
        ends = tuple(tuple(token + frame for token in grid.frame_end) for frame in range(grid.frames))
        grid = replace(grid, frame_end=ends)
    grid = replace(grid, given=data.draw(st.integers(0, grid.frames - 1)))
    sequence = written_out(grid)
    places, blank = grid.places(), grid.blank()
    assert grid.slots == len(sequence) == len(blank)
    assert places.shape == (grid.frames, grid.rows, grid.columns)
    assert grid.free().equal(places[grid.given :])
    free = [entry for entry in sequence if isinstance(entry, tuple) and entry[0] >= grid.given]
    assert (grid.tokens, grid.first) == (len(free), sequence.index(free[0]))
    for slot, entry in enumerate(sequence):
        if isinstance(entry, tuple):
            assert places[entry] == slot
            assert blank[slot] == 0
        else:
            assert blank[slot] == entry


def test_a_grid_with_known_tokens():
    grid = TokenGrid(2, 3, frames=2, row_end=7, frame_end=(8, 9))
    assert grid.blank().tolist() == [0, 0, 0, 7, 0, 0, 0, 7, 8, 9] * 2
    assert grid.free()[1].tolist() == [[10, 11, 12], [14, 15, 16]]
    assert (grid.row_stride, grid.frame_stride, grid.slots, grid.tokens) == (4, 10, 20, 12)


def test_a_row_end_token_may_be_token_0():
    assert TokenGrid(2, 2, row_end=0).slots == 6


@pytest.mark.parametrize("sides", [(0, 4), (4, 0), (-1, 4), (4, 4, 0)])
def test_empty_grids_are_refused(sides):
    with pytest.raises(ZipARError, match="is not possible: use a whole number, 1 or more"):
        TokenGrid(*sides)


@pytest.mark.parametrize("grid", [TokenGrid(2, 3, row_end=7), TokenGrid(2, 3, frames=2, row_end=7, frame_end=(8, 9))])
def test_picking_leaves_known_tokens_out(grid):
    sequences = torch.arange(2 * grid.slots).view(2, grid.slots)
    picked = grid.pick(sequences)
    assert picked.shape == (2, *grid.free().shape[grid.frames == 1 :])
    assert picked.flatten().tolist() == [*grid.free().flatten(), *(grid.free() + grid.slots).flatten()]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"given": 2}, "given 2 is not possible: use a whole number from 0 to 1"),
        ({"given": -1}, "given -1 is not possible"),
        ({"frame_end": ((8,),)}, "a tuple for each of 2 frames, all of one length"),
        ({"frame_end": ((8,), (8, 9))}, "a tuple for each of 2 frames, all of one length"),
        ({"frame_end": (8, (9,))}, "a tuple for each of 2 frames, all of one length"),
    ],
)
def test_frames_that_are_not_possible(settings, named):
    with pytest.raises(ZipARError, match=named):
        TokenGrid(2, 3, frames=2, **settings)


def test_given_frames_open_the_sequence():
    grid = TokenGrid(2, 2, frames=3, row_end=7, frame_end=((8,), (9,), (10,)), given=2)
    tokens = torch.arange(8).view(1, 2, 2, 2) + 20
    assert grid.opening(tokens).tolist() == [[20, 21, 7, 22, 23, 7, 8, 24, 25, 7, 26, 27, 7, 9]]
    with pytest.raises(ZipARError, match=r"given .* is not possible: use int64 tokens \(images, 2, 2, 2\)"):
        grid.opening(tokens[:, :1])
