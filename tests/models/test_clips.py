"""Clips: places of tokens by loops of their own, sizes, and clips longer than the context."""

import cmath

import numpy as np
import pytest
import torch

from zipar import TokenGrid, ZipARError
from zipar.models.auto import load, outline
from zipar.models.clips import rotary_3d
from zipar.pipeline import Pipeline

PROMPT = "a red fox in the snow"


def test_rotations_turn_with_frame_row_and_column():
    found = rotary_3d(2, 3, 32, 100.0)
    assert found.shape == (2 * 3 * 3, 16)
    for slot in range(len(found)):
        frame, row, column = slot // 9, slot // 3 % 3, slot % 3
        angles = [
            place * 100.0 ** (-i / part) for place, part in ((frame, 4), (row, 6), (column, 6)) for i in range(part)
        ]
        expected = torch.tensor([cmath.rect(1, angle) for angle in angles], dtype=torch.complex64)
        assert torch.allclose(found[slot], expected, atol=1e-5)


def test_a_token_is_embedded_with_its_place(tiny_clips):
    decoder = tiny_clips.decoder
    for slot, (frame, row, column) in ((0, (0, 0, 0)), (7, (0, 1, 3)), (45, (2, 3, 1))):
        expected = decoder.tok_embeddings.weight[9] + decoder.places.frame.weight[frame]
        expected = expected + decoder.places.row.weight[row] + decoder.places.column.weight[column]
        assert torch.allclose(decoder.embed(torch.tensor([9]), torch.tensor([slot]))[0], expected)


def test_grids(tiny_clips):
    assert tiny_clips.grid(8, 8) == TokenGrid(4, 4, 3)
    assert tiny_clips.clip(8, 8, 2, 1) == TokenGrid(4, 4, 2, given=1)
    for frames, given in ((4, 0), (0, 0), (2, 2), (3, -1)):
        with pytest.raises(ZipARError, match=f"no clips of {frames} frames of which {given} are given"):
            tiny_clips.clip(8, 8, frames, given)
    with pytest.raises(ZipARError, match="no images of 16x8 pixels"):
        tiny_clips.clip(16, 8, 3)


def test_frames_are_read_and_drawn_one_by_one(tiny_clips):
    pixels = torch.randint(256, (2, 3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codes = tiny_clips.read(pixels)
    assert codes.shape == (2, 3, 4, 4)
    assert codes[1, 2].equal(tiny_clips.read(pixels[1:, 2:])[0, 0])
    drawn = tiny_clips.pixels(codes)
    assert (drawn.shape, drawn.dtype) == (pixels.shape, torch.uint8)
    assert drawn[1, 2].equal(tiny_clips.pixels(codes[1:, 2:])[0, 0])


def test_a_checkpoint_holds_all_of_it(tiny_clips, clips_directory):
    loaded = load(clips_directory, torch.float32, "cpu")
    assert (loaded.frames, loaded.context, loaded.fps) == (3, 3, 8)
    assert outline(clips_directory).grid(8, 8) == loaded.grid(8, 8)
    ours, theirs = (Pipeline(model)(PROMPT, strategy="raster").tokens for model in (tiny_clips, loaded))
    assert (ours == theirs).all()


def test_a_clip_goes_on_past_the_context(tiny_clips):
    pipe = Pipeline(tiny_clips)
    short, long = (pipe([PROMPT, "fox"], strategy="zipar:2@3", seed=4, frames=frames) for frames in (3, 7))
    assert long.tokens.shape == long.born.shape == (2, 7, 4, 4)
    assert [len(video.frames) for video in long.videos] == [7, 7]
    assert (long.tokens[:, :3] == short.tokens).all()
    assert (np.diff(long.born.max((2, 3))) > 0).all()  # passes are counted through all decodings
    assert long.stats.forward_passes == long.born.max() + 1
    first = long.videos[0].frames[:1]
    given = pipe([PROMPT, "fox"], strategy="raster", given=first, frames=1 + tiny_clips.context)
    assert np.array_equal(np.asarray(given.videos[1].frames[0]), np.asarray(given.videos[0].frames[0]))
    assert not given.born[:, 0].any()


def test_one_frame_is_a_clip_too(tiny_clips):
    made = Pipeline(tiny_clips)(PROMPT, frames=1)
    assert made.tokens.shape == (1, 1, 4, 4)
    assert len(made.videos[0].frames) == 1
    assert made.images == []
