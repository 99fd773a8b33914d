import numpy as np
import pytest
from PIL import Image, ImageColor

from zipar import Raster, TokenGrid, ZipAR
from zipar.cli.drawing import ACCENT, BOARD, MOST_SHOWN, Panel, animation, save_animation, side_by_side

SIDE = 32
"""Of a token of a 16 pixels wide image in the animation: pictures are drawn 256 pixels wide."""


def panel(strategy):
    """A picture of 8 x 4 tokens, 2 x 2 pixels each, in which each token is of another colour."""
    born = strategy.timetable(TokenGrid(4, 8))[0].numpy()
    numbers = np.arange(32).reshape(4, 8)
    colours = np.stack([8 * numbers, 255 - 8 * numbers, 0 * numbers], axis=-1).astype(np.uint8)
    return Panel("A title", [Image.fromarray(colours.repeat(2, 0).repeat(2, 1))], born)


@pytest.fixture(scope="module")
def panels():
    return [panel(Raster()), panel(ZipAR(2))]


@pytest.fixture(scope="module")
def frames(panels):
    return [np.asarray(frame.convert("RGB")).astype(int) for frame in animation(panels)]


def test_headings_of_several_lines(panels):
    one, several = (np.asarray(side_by_side(panels, [1.0, 1.0], text)[0]) for text in ("a fox", "a\n\tfox\n"))
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
            colours = np.asarray(shown.images[0]).astype(int)[::2, ::2]
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
    large = Panel("A title", [Image.new("RGB", (384, 384))], born)
    [one], [six] = (side_by_side([large] * count, [2.0] * count, "a fox") for count in (1, 6))
    assert six.width < 5 * one.width
    assert six.height > 1.5 * one.height
    [long] = side_by_side([large], [2.0], "a fox " * 100)
    assert long.size == one.size


def clip(images, given=0, frames=5):
    """Grey pictures of 4 x 4 pixels, whose 2 x 2 tokens come frame after frame, two passes apart."""
    born = ZipAR(1, first_row="wave", frame_delay=2).timetable(TokenGrid(2, 2, frames, given=given)).numpy()
    born = np.concatenate([np.full((given, 2, 2), -1), born])
    return Panel("A clip", [Image.new("RGB", (4, 4), (20 + 8 * i,) * 3) for i in range(images)], born)


def squares(frame, across, down):
    """Colours at the centres of the tokens of all frames, (frames, 2, 2, 3)."""
    pixels = np.asarray(frame.convert("RGB")).astype(int)
    side, gap = 96, 4
    left = (frame.width - across * (side + gap) + gap) // 2
    top = np.flatnonzero((pixels[:, left + (across - 1) * (side + gap) + 10] != 255).any(-1))[0]
    found = []
    for row in range(down):
        for place in range(across):
            y, x = top + row * (side + gap), left + place * (side + gap)
            found.append(pixels[y + 24 : y + side : 48, x + 24 : x + side : 48])
    return np.stack(found)


@pytest.mark.parametrize(("images", "given"), [(5, 0), (5, 2), (9, 0)])
def test_clips_are_drawn_frame_by_frame(images, given):
    panel = clip(images, given)
    accent = np.array(ImageColor.getrgb(ACCENT))
    shown = animation([panel])
    assert len(shown) == panel.passes == 3 + 2 * (4 - given)
    for now, frame in enumerate(shown):
        colours = squares(frame, 4, 2)
        for (number, row, column), born in np.ndenumerate(panel.born):
            expected = np.array(panel.images[number * images // 5].getpixel((0, 0)))
            if born > now:
                expected = np.array(ImageColor.getrgb(BOARD[(row + column) % 2]))
            elif born == now < panel.passes - 1:
                expected = accent
            assert np.abs(colours[number, row, column] - expected).max() <= 4, (now, number, row, column)


def test_clips_side_by_side_play():
    pages = side_by_side([clip(9), clip(9)], [2.0, 1.0], "a fox")
    assert len(pages) == 9
    assert len({page.size for page in pages}) == 1
    for number, page in enumerate(pages):
        middle = np.asarray(page)[page.height // 2]
        assert (middle[page.width // 4] == middle[page.width * 3 // 4]).all()
        assert (middle[page.width // 4] == 20 + 8 * number).all()


def test_of_very_many_passes_a_frame_shows_several():
    born = np.arange(4 * 1000).reshape(50, 80)
    long = Panel("A title", [Image.new("RGB", (80, 50))], born)
    frames = animation([long, panel(Raster())])
    assert MOST_SHOWN / 2 < len(frames) <= MOST_SHOWN
    ink = np.array(ImageColor.getrgb(ACCENT))
    fresh = [(np.asarray(frame.convert("RGB")).astype(int) == ink).all(-1).sum() for frame in frames[200:210]]
    assert min(fresh) > 0


@pytest.mark.parametrize("columns", [150, 400])
def test_frames_of_many_tokens_keep_a_pixel_for_each(columns):
    born = np.arange(5 * 2)[:, None].repeat(columns, 1).reshape(5, 2, columns)  # a row a pass
    wide = Panel("A title", [Image.new("RGB", (16 * columns, 32))] * 5, born)
    assert animation([wide])[-1].width > 4 * columns
