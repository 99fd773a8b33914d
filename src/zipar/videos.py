"""Short videos: their frames and pace, and the files that hold them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from zipar.arguments import keep, listed, path, real, refusal
from zipar.checkpoints.files import check_readable
from zipar.errors import ZipARError, reason
from zipar.writing import write

SUFFIXES = (".mp4", ".gif", ".webp", ".png")
"""Of the files that clips are written to."""
FILMS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Of the files that PyAV reads; Pillow reads all others."""
MOST_FRAMES = 1024
"""That a file may hold."""
SHEET = 8
"""Frames in a row of a contact sheet, where there are so many."""


@dataclass(frozen=True)
class Video:
    """Frames of one size, and how many of them are shown a second."""

    frames: list[Image.Image]
    fps: float

    def __post_init__(self) -> None:
        frames = listed(self.frames)
        if not frames or not all(isinstance(frame, Image.Image) for frame in frames):
            raise refusal("frames", self.frames, "one picture of Pillow or more, in a list")
        if len(sizes := {frame.size for frame in frames}) > 1:
            named = " and ".join(f"{height}x{width}" for width, height in sorted(sizes)[:2])
            raise ZipARError(f"frames of {named} pixels (height x width) make no video: give frames of one size")
        keep(self, frames=[frame.convert("RGB") for frame in frames], fps=frame_rate(self.fps))

    def save(self, file: str | Path) -> None:
        """Write a file of the kind that its suffix tells: whole, or not at all.

        ``.mp4`` is H.264, and needs the extra ``zipar-torch[video]``; ``.gif`` has 256 colours; ``.webp`` keeps every
        pixel. ``.png`` is a contact sheet: a picture of all frames, in rows of 8.

        Raises:
            ZipARError: the suffix is another, PyAV is not there, or the file cannot be written.
        """
        place = path("file", file)
        data = self.encoded(place.suffix)
        write({place: lambda scratch: scratch.write_bytes(data)})

    def encoded(self, suffix: str) -> bytes:
        """The file that ``save`` writes.

        Raises:
            ZipARError: the suffix is none of ``SUFFIXES``, or PyAV is not there.
        """
        check_writable(suffix)
        match suffix.lower():
            case ".mp4":
                return self._film()
            case ".gif":
                # hundredths of a second; those of several frames add up to the pace
                return self.animation("GIF", 10, disposal=1)
            case ".webp":
                return self.animation("WEBP", lossless=True)
        buffer = io.BytesIO()
        self.sheet().save(buffer, "PNG")
        return buffer.getvalue()

    def sheet(self) -> Image.Image:
        """All frames in one picture, row by row."""
        width, height = self.frames[0].size
        across = min(len(self.frames), SHEET)
        page = Image.new("RGB", (across * width, -(-len(self.frames) // across) * height), "white")
        for number, frame in enumerate(self.frames):
            row, column = divmod(number, across)
            page.paste(frame, (column * width, row * height))
        return page

    @classmethod
    def load(cls, file: str | Path) -> "Video":
        """The frames of a video or picture; a still picture is one frame, at 1 a second.

        Where frames of an animation last longer than others they come several times.

        Raises:
            ZipARError: the file is missing or damaged, holds more than ``MOST_FRAMES`` frames, or needs PyAV, which is
                not there.
        """
        place = path("file", file)
        check_readable(place, f"{place} is no video: there is no such file")
        frames, fps = _film_frames(place) if place.suffix.lower() in FILMS else _picture_frames(place)
        return cls(frames, fps)

    def animation(self, kind: str, unit: int = 1, **settings: Any) -> bytes:
        """The file that Pillow writes, "GIF", "WEBP" or "PNG"; frames last whole numbers of ``unit`` milliseconds.

        Args:
            settings: Pillow's own of that kind.
        """
        ends = [unit * round(1000 * i / self.fps / unit) for i in range(len(self.frames) + 1)]
        durations = [max(end - start, unit) for start, end in pairwise(ends)]
        first, *others = self.frames
        buffer = io.BytesIO()
        first.save(buffer, kind, save_all=True, append_images=others, duration=durations, loop=0, **settings)
        return buffer.getvalue()

    def _film(self) -> bytes:
        """An MP4 that browsers and players show."""
        av = _library()
        buffer = io.BytesIO()
        width, height = self.frames[0].size
        odd = ((0, height % 2), (0, width % 2), (0, 0))  # colours are stored for squares of 2 x 2 pixels
        with av.open(buffer, "w", "mp4") as container:
            stream = container.add_stream("libx264", Fraction(self.fps).limit_denominator(1001), {"crf": "16"})
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            for frame in self.frames:
                picture = av.VideoFrame.from_ndarray(np.pad(np.asarray(frame), odd, "edge"), "rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return buffer.getvalue()


def check_writable(suffix: str) -> None:
    """Raise where no file that ends in ``suffix`` could be written.

    Raises:
        ZipARError: the suffix is none of ``SUFFIXES``, or PyAV is not there.
    """
    if suffix.lower() not in SUFFIXES:
        raise ZipARError(f"a video has no file of kind {suffix!r}: use a name that ends in {' or '.join(SUFFIXES)}")
    if suffix.lower() == ".mp4":
        _library()


def frame_rate(fps: Any) -> float:
    """Frames a second.

    Raises:
        ZipARError: they are not possible.
    """
    return real("fps", fps, lambda x: 0.1 <= x <= 100, "a number of frames a second from 0.1 to 100")


def given_frames(given: Any, prompts: int, height: int, width: int) -> Tensor:
    """The frames that clips go on from, as uint8 (1 or ``prompts``, frames, height, width, 3).

    Args:
        given: images or numbers: of one clip, or of one a prompt.

    Raises:
        ZipARError: they are neither, of another size, or of other numbers.
    """
    allowed = "images of PIL in a list, or a uint8 array (frames, height, width, 3), or one such a prompt"
    clips = _frames(given)
    if not clips:
        raise refusal("given", given, allowed)
    if not isinstance(clips[0], Video) and (isinstance(clips[0], Image.Image) or np.ndim(clips[0]) == 3):
        clips = [given]
    elif len(clips) != prompts:
        raise ZipARError(f"given frames of {len(clips)} clips do not fit {prompts} prompts: give one clip, or one each")
    starts = [[_pixels(frame, height, width, allowed) for frame in _frames(clip) or []] for clip in clips]
    if len({len(start) for start in starts}) > 1 or not starts[0]:
        raise ZipARError(
            f"given frames of {' and '.join(str(len(start)) for start in starts[:2])} do not make one batch: give as "
            "many, one or more, for each prompt"
        )
    return torch.from_numpy(np.stack([np.stack(start) for start in starts]))


def _frames(given: Any) -> list[Any] | None:
    """One image after the other, of a clip or of what else holds some."""
    if isinstance(given, Video):
        return given.frames
    return [given] if isinstance(given, Image.Image) else listed(given)


def _pixels(frame: Any, height: int, width: int, allowed: str) -> np.ndarray:
    """uint8 (height, width, 3) of an image."""
    try:
        values = np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame)
    except Exception as error:  # of arrays elsewhere, images that are damaged
        raise refusal("given", frame, allowed) from error
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[-1] != 3:
        raise refusal("given", frame, allowed)
    if values.shape[:2] != (height, width):
        raise ZipARError(
            f"a given frame of {values.shape[0]}x{values.shape[1]} pixels (height x width) does not fit clips of "
            f"{height}x{width}: scale it to that size"
        )
    return values


def _picture_frames(place: Path) -> tuple[list[Image.Image], float]:
    with _reading(place), Image.open(place) as image:
        frames, durations = [], []
        for frame in islice(ImageSequence.Iterator(image), MOST_FRAMES + 1):
            frames.append(frame.convert("RGB"))
            durations.append(float(image.info.get("duration", 0)) or 100.0)  # what browsers make of none
        if len(frames) == 1:
            return frames, 1.0
    shortest = min(durations)
    # writers leave out frames that are as the one before, and let that one last longer
    counts = [round(duration / shortest) for duration in durations]
    _check_count(place, sum(counts))
    held = [each for frame, count in zip(frames, counts, strict=True) for each in repeat(frame, count)]
    return held, len(held) / sum(durations) * 1000


def _film_frames(place: Path) -> tuple[list[Image.Image], float]:
    av = _library()
    with _reading(place), av.open(str(place)) as container:
        if not container.streams.video:
            raise ZipARError(f"{place} holds no pictures: give a video")
        stream = container.streams.video[0]
        frames = [frame.to_image() for frame in islice(container.decode(stream), MOST_FRAMES + 1)]
        fps = float(stream.average_rate or stream.guessed_rate or 0)
    if not frames:
        raise ZipARError(f"{place} holds no frames: give another video")
    _check_count(place, len(frames))
    return frames, fps


def _check_count(place: Path, frames: int) -> None:
    if frames > MOST_FRAMES:
        raise ZipARError(f"{place} holds too many frames: cut it to {MOST_FRAMES} at most")


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    """Turn what decoders raise over damaged bytes into an error that names the file.

    Raises:
        ZipARError: they did.
    """
    try:
        yield
    except ZipARError:
        raise
    except Exception as error:
        raise ZipARError(f"{place} is no video or picture that can be read ({reason(error)}): give another") from error


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise ZipARError(
            f"MP4 and other films need PyAV ({reason(error)}): pip install 'zipar-torch[video]', or use .gif or .webp"
        ) from error
    return av
