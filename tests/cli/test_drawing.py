import numpy as np
import pytest
from PIL import Image, ImageColor

from zipar import Raster, TokenGrid, ZipAR
from zipar.cli.drawing import ACCENT, BOARD, Panel, animation, save_animation, side_by_side

SIDE = 32
"""Of a token of a 16 pixels wide image in the animation: pictures are drawn 256 pixels wide."""


def panel(strategy):
    """A picture of 8 x 4 tokens, 2 x 2 pixels each, in which each token is of another colour."""
    born = strategy.timetable(TokenGrid(4, 8))[0].numpy()
    numbers = np.arange(32).reshape(4, 8)
    colours = np.stack([8 * numbers, 255 - 8 * numbers, 0 * numbers], axis=-1).astype(np.uint8)
    return Panel("A title", Image.fromarray(colours.repeat(2, 0).repeat(2, 1)), born)


@pytest.fixture(scope="module")
def panels():
    return [panel(Raster()), panel(ZipAR(2))]


@pytest.fixture(scope="module")
def frames(panels):
    return [np.asarray(frame.convert("RGB")).astype(int) for frame in animation(panels)]


def test_headings_of_several_lines(panels):
    one, several = (np.asarray(side_by_side(panels, [1.0, 1.0], text)) for text in ("a fox", "a\n\tfox\n"))
    assert (one == several).all()


def test_each_frame_shows_what_is_decoded_so_far(panels, frames):
    accent = np.array(ImageColor.getrgb(ACCENT))
    fresh = (frames[0] == accent).all(-1)
    top = np.flatnonzero(fresh.any(1))[0]
    lefts = np.flatnonzero(fresh[top])[::SIDE]
    assert len(frames) == 32
    assert len(lefts) == len(panels)
    for now, frame in enumerate(frames):
        for left, shown in zip(lefts, panels, strict=True):
            centres = frame[top + SIDE // 2 :: SIDE, left + SIDE // 2 :: SIDE]
            colours = np.asarray(shown.image).astype(int)[::2, ::2]
            for (row, column), born in np.ndenumerate(shown.born):
                if born > now:
                    expected = ImageColor.getrgb(BOARD[(row + column) % 2])
                elif born == now < shown.passes - 1:
                    expected = accent
                else:
                    expected = colours[row, column]
                assert np.abs(centres[row, column] - expected).max() <= 4


def test_what_is_finished_no_longer_changes(panels, frames):
    half = frames[0].shape[1] // 2
    for frame in frames[panels[1].passes :]:
        assert (frame[:, half + 20 :] == frames[-1][:, half + 20 :]).all()


def test_the_gif_has_a_frame_for_each_pass_and_rests_on_the_last(panels, frames, tmp_path):
    save_animation(tmp_path / "fox.gif", panels)
    gif = Image.open(tmp_path / "fox.gif")
    assert gif.n_frames == 32
    durations = []
    for i, frame in enumerate(frames):
        gif.seek(i)
        durations.append(gif.info["duration"])
        assert (np.asarray(gif.convert("RGB")) == frame).all()
    assert set(durations[:-1]) == {100}
    assert durations[-1] == 3000


def test_pictures_of_any_size_and_number_fit_the_page():
    born = np.arange(24 * 24).reshape(24, 24)
    large = Panel("A title", Image.new("RGB", (384, 384)), born)
    one, six = (side_by_side([large] * count, [2.0] * count, "a fox") for count in (1, 6))
    assert six.width < 5 * one.width
    assert six.height > 1.5 * one.height
    long = side_by_side([large], [2.0], "a fox " * 100)
    assert long.size == one.size
