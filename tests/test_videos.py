"""Files of videos, read by Pillow's and PyAV's own functions."""

import sys

import numpy as np
import pytest
from PIL import Image

import zipar
from zipar import Video, ZipARError
from zipar.videos import FILMS, MOST_FRAMES, SUFFIXES


def frames(count, height=32, width=48):
    """Blocks of few colours, which move."""
    blocks = np.random.default_rng(0).integers(0, 256, (count, height // 8, width // 8, 3), np.uint8)
    return [Image.fromarray(np.kron(block, np.ones((8, 8, 1), np.uint8))) for block in blocks]


def difference(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return max(np.abs(np.asarray(a.convert("RGB"), int) - np.asarray(b.convert("RGB"), int)).mean() for a, b in pairs)


def test_it_is_a_name_of_the_package():
    assert zipar.Video is Video
    video = Video((frame.convert("L") for frame in frames(2)), np.float32(8))
    assert ([frame.mode for frame in video.frames], video.fps) == (["RGB", "RGB"], 8.0)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_run_at_their_pace_and_come_back(tmp_path, suffix):
    made = Video(frames(8), 8)
    made.save(tmp_path / f"clip{suffix}")
    with Image.open(tmp_path / f"clip{suffix}") as file:
        shown = []
        for number in range(file.n_frames):
            file.seek(number)
            shown.append((file.convert("RGB"), file.info["duration"]))
    assert difference([frame for frame, _ in shown], made.frames) == 0
    assert sum(duration for _, duration in shown) == 1000
    read = Video.load(tmp_path / f"clip{suffix}")
    assert difference(read.frames, made.frames) == 0
    assert read.fps == 8


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_frames_that_are_as_the_one_before_come_back_too(tmp_path, suffix):
    first, second, third = frames(3)
    held = [first, first, first, second, third, third]
    Video(held, 10).save(tmp_path / f"clip{suffix}")
    read = Video.load(tmp_path / f"clip{suffix}")
    assert difference(read.frames, held) == 0
    assert read.fps == 10


@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 47)])
def test_films_are_h264_that_players_show(tmp_path, height, width):
    av = pytest.importorskip("av")
    made = Video([frame.crop((0, 0, width, height)) for frame in frames(5)], 12.5)
    made.save(tmp_path / "clip.MP4")
    with av.open(str(tmp_path / "clip.MP4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 12.5)
        shown = [frame.to_image() for frame in container.decode(stream)]
    assert {frame.size for frame in shown} == {(48, 32)}  # even
    assert difference([frame.crop((0, 0, width, height)) for frame in shown], made.frames) < 6
    read = Video.load(tmp_path / "clip.MP4")
    assert difference(read.frames, shown) == 0
    assert read.fps == 12.5


@pytest.mark.parametrize("suffix", FILMS)
def test_films_of_other_kinds_are_read(tmp_path, suffix):
    av = pytest.importorskip("av")
    path, made = tmp_path / f"clip{suffix}", frames(3)
    codec = "libvpx" if suffix == ".webm" else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 5, {"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 32, "yuv420p", 4_000_000
        for frame in made:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    read = Video.load(path)
    assert difference(read.frames, made) < 10
    assert read.fps == pytest.approx(5)


def test_a_contact_sheet_has_all_frames_in_rows_of_eight(tmp_path):
    made = frames(10)
    Video(made, 8).save(tmp_path / "clip.png")
    sheet = np.asarray(Image.open(tmp_path / "clip.png"))
    assert sheet.shape == (64, 8 * 48, 3)
    for number, frame in enumerate(made):
        row, column = divmod(number, 8)
        assert (sheet[32 * row : 32 * row + 32, 48 * column : 48 * column + 48] == np.asarray(frame)).all()
    assert (sheet[32:, 2 * 48 :] == 255).all()
    assert Video(made[:3], 8).sheet().size == (3 * 48, 32)


@pytest.mark.parametrize("name", ["fox.png", "fox.jpg", "fox.webp", "fox.gif"])
def test_a_picture_is_one_frame(tmp_path, name):
    [frame] = frames(1)
    frame.save(tmp_path / name, quality=100)
    read = Video.load(tmp_path / name)
    assert difference(read.frames, [frame]) < 8


def test_a_file_is_written_whole_or_not_at_all(tmp_path, small_files):
    noise = [Image.effect_noise((64, 64), 90) for _ in range(3)]
    path = tmp_path / "clip.gif"
    path.write_text("an older one")
    with small_files(600), pytest.raises(ZipARError, match=r"clip.gif cannot be written: File too large"):
        Video(noise, 8).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["clip.gif"]
    assert path.read_text() == "an older one"


@pytest.mark.parametrize("name", ["clip.jpg", "clip", "clip.avi"])
def test_other_files_are_refused_and_all_kinds_named(tmp_path, name):
    with pytest.raises(ZipARError) as error:
        Video(frames(2), 8).save(tmp_path / name)
    assert all(suffix in str(error.value) for suffix in SUFFIXES)
    assert not list(tmp_path.iterdir())


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ZipARError, match=r"zipar-torch\[video\]"):
        Video(frames(2), 8).save(tmp_path / "clip.mp4")
    (tmp_path / "clip.mov").touch()
    with pytest.raises(ZipARError, match=r"zipar-torch\[video\]"):
        Video.load(tmp_path / "clip.mov")
    Video(frames(2), 8).save(tmp_path / "clip.gif")


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.png", "clip.mp4", "clip.txt"])
@pytest.mark.parametrize("damage", ["half", "empty", "missing", "directory"])
def test_what_cannot_be_read_is_named(tmp_path, name, damage):
    if name == "clip.mp4":
        pytest.importorskip("av")
    path = tmp_path / name
    if damage == "directory":
        path.mkdir()
    elif damage != "missing":
        whole = Video(frames(8), 8).encoded(".gif" if name == "clip.txt" else path.suffix)
        path.write_bytes(whole[: 40 if damage == "half" else 0])
    with pytest.raises(ZipARError, match=name):
        Video.load(path)


def test_films_without_pictures_and_with_too_many_are_refused(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ZipARError, match="no pictures"):
        Video.load(tmp_path / "sound.mp4")
    for name in ("long.mp4", "long.gif"):
        Video(frames(2, 8, 8) * (MOST_FRAMES // 2 + 1), 50).save(tmp_path / name)
        with pytest.raises(ZipARError, match=f"too many frames: cut it to {MOST_FRAMES}"):
            Video.load(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 8), "frames"),
        ((3, 8), "frames"),
        (([np.zeros((8, 8, 3), np.uint8)], 8), "picture of Pillow"),
        (([Image.new("RGB", (8, 16)), Image.new("RGB", (8, 8))], 8), "8x8 and 16x8"),
        ((frames(1), 0), "fps 0"),
        ((frames(1), "8"), "fps '8'"),
        ((frames(1), float("nan")), "fps nan"),
        ((frames(1), 1000), "fps 1000"),
    ],
    ids=["none", "a number", "arrays", "two sizes", "0", "text", "nan", "1000"],
)
def test_what_makes_no_video_is_named(arguments, message):
    with pytest.raises(ZipARError, match=message):
        Video(*arguments)
