"""Pictures of decoding: strategies side by side, and what each forward pass added."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

PAPER, INK, GREY, ACCENT = "#ffffff", "#1b1f24", "#6a737d", "#7c3aed"
BOARD = ("#e6e8eb", "#eff1f3")
"""The checkerboard of tokens that are still to come; the first colour is also that of an empty bar."""
PANELS_A_ROW = 4
STILL, MOVING, MOVING_ALONE = 320, 256, 384
"""About how wide a picture is drawn: in a still, in an animation, and in one that it has to itself."""
FRAMES_A_ROW, FRAME, GAP = 4, 96, 4
"""Of the frames of a clip in an animation: how many are side by side, the least width, and what is between them."""
MOST_SHOWN = 500
"""Frames of an animation; where there are more passes, each shows what several brought."""


@dataclass(frozen=True)
class Panel:
    """An image or a clip, and when each of its tokens came."""

    title: str
    images: Sequence[Image.Image]
    """One, or the frames of a clip."""
    born: np.ndarray
    """int (rows, columns) or (frames, rows, columns): the forward pass that decoded each token, -1 for given ones.

    A frame of tokens may stand for several images."""

    @property
    def passes(self) -> int:
        return int(self.born.max()) + 1

    @property
    def parts(self) -> list[tuple[Image.Image, np.ndarray]]:
        """An image of each frame of tokens, and when these came, (rows, columns)."""
        frames = self.born.reshape(-1, *self.born.shape[-2:])
        return [(self.images[i * len(self.images) // len(frames)], born) for i, born in enumerate(frames)]


@dataclass(frozen=True)
class Caption:
    """The words around a picture, and how far the bar under it is filled."""

    title: str
    mark: str
    left: str
    right: str
    share: float


def side_by_side(panels: Sequence[Panel], seconds: Sequence[float], heading: str) -> list[Image.Image]:
    """Each image under its title, with its passes and seconds; the first one is what the others are measured by.

    Clips give a picture for each of their frames.
    """
    captions = [
        Caption(
            panel.title,
            f"{seconds[0] / took:.1f}x faster" if panel is not panels[0] and seconds[0] > took else "",
            f"{panel.passes} passes",
            f"{took:.2f} s",
            panel.passes / max(other.passes for other in panels),
        )
        for panel, took in zip(panels, seconds, strict=True)
    ]
    moments = zip(*(panel.images for panel in panels), strict=True)
    tokens = panels[0].born.shape[-2:]
    return [_page([_fit(image, tokens, STILL) for image in images], captions, heading) for images in moments]


def animation(panels: Sequence[Panel], heading: str = "") -> list[Image.Image]:
    """A frame for each forward pass, all panels on one clock: a token shows its part of the image once decoded.

    The frames of clips are side by side. Of very many passes, each frame shows several.
    """
    scenes = [_Scene(panel, MOVING if len(panels) > 1 else MOVING_ALONE) for panel in panels]
    passes = max(panel.passes for panel in panels)
    stride = -(-passes // MOST_SHOWN)

    def frame(now: int) -> Image.Image:
        captions = [_clock(panel, min(now + 1, panel.passes)) for panel in panels]
        return _page([scene.at(now, stride) for scene in scenes], captions, heading)

    # one palette for all frames: colours do not flicker, and what does not change is not stored again
    palette = _palette([image for panel in panels for image, _ in panel.parts])
    moments = reversed(range(passes - 1, -1, -stride))
    return [frame(now).quantize(palette=palette, dither=Image.Dither.NONE) for now in moments]


def save_animation(path: Path, panels: Sequence[Panel], heading: str = "") -> None:
    """Write ``animation`` as a GIF that runs for some eight seconds and rests on its last frame."""
    first, *others = animation(panels, heading)
    pace = min(max(8000 // (len(others) + 1) // 10 * 10, 20), 100)
    durations = [pace] * len(others) + [3000]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True, disposal=1)


class _Scene:
    """The images of a panel while they are decoded."""

    def __init__(self, panel: Panel, width: int) -> None:
        parts = panel.parts
        self.across = min(len(parts), FRAMES_A_ROW)
        if self.across > 1:
            width = max(width // self.across, FRAME)
        rows, columns = panel.born.shape[-2:]
        images = [_fit(image, (rows, columns), width) for image, _ in parts]
        tile = np.ones((images[0].height // rows, images[0].width // columns), int)
        self.born = [np.kron(born, tile)[..., None] for _, born in parts]
        self.images, self.passes = [np.asarray(image.convert("RGB")) for image in images], panel.passes
        board = np.kron(np.indices((rows, columns)).sum(0) % 2, tile)
        self.blank = np.array([ImageColor.getrgb(colour) for colour in BOARD], np.uint8)[board]

    def at(self, now: int, stride: int) -> Image.Image:
        """After pass ``now``; the tokens that the last ``stride`` passes brought stand out, but for the very last."""
        height, width = self.blank.shape[:2]
        down = -(-len(self.born) // self.across)
        sheet = Image.new("RGB", (self.across * (width + GAP) - GAP, down * (height + GAP) - GAP), PAPER)
        fresh = np.array(ImageColor.getrgb(ACCENT), np.uint8)
        for number, (image, born) in enumerate(zip(self.images, self.born, strict=True)):
            shown = np.where(born <= now, image, self.blank)
            if now < self.passes - 1:
                shown = np.where((born > max(now - stride, -1)) & (born <= now), fresh, shown)
            row, column = divmod(number, self.across)
            sheet.paste(Image.fromarray(shown), (column * (width + GAP), row * (height + GAP)))
        return sheet


def _clock(panel: Panel, done: int) -> Caption:
    finished = done == panel.passes
    return Caption(panel.title, "done" if finished else "", f"{done} of {panel.passes} passes", "", done / panel.passes)


def _palette(images: Sequence[Image.Image]) -> Image.Image:
    """The colours of ``images`` and of what is drawn around them; fewer than 256, for GIF needs a transparent one."""
    rows = [np.asarray(image.convert("RGB")).reshape(1, -1, 3) for image in images]
    colours = (Image.fromarray(np.concatenate(rows, axis=1)).quantize(224).getpalette() or [])[: 224 * 3]
    paper = np.array(ImageColor.getrgb(PAPER))
    for ink in map(ImageColor.getrgb, (INK, GREY, ACCENT)):
        for share in np.linspace(0.2, 1, 5):
            colours += (share * np.array(ink) + (1 - share) * paper).astype(int).tolist()
    for colour in (PAPER, *BOARD):
        colours += ImageColor.getrgb(colour)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return palette


def _fit(image: Image.Image, tokens: tuple[int, ...], width: int) -> Image.Image:
    """The image about ``width`` pixels wide: small ones enlarged crisply, its tokens whole numbers of pixels.

    ``tokens`` are its (rows, columns).
    """
    rows, columns = tokens
    if image.width <= width:
        scale = round(width / image.width)
        return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    side = max(round(width / columns), 1)
    return image.resize((columns * side, rows * side), Image.Resampling.LANCZOS)


def _page(pictures: Sequence[Image.Image], captions: Sequence[Caption], heading: str) -> Image.Image:
    """Pictures of one size in rows, each under its title and above its bar and its numbers."""
    width, height = pictures[0].size
    text = max(width // 16, 13)
    font, small = ImageFont.load_default(text), ImageFont.load_default(text * 0.9)
    gap, line, bar = int(1.4 * text), int(1.7 * text), max(text // 4, 3)
    heading = " ".join(heading.split()) if heading.isascii() else ""  # Pillow's own font has no other letters
    across = min(len(pictures), PANELS_A_ROW)
    down = -(-len(pictures) // across)
    top = gap + (line + gap // 2 if heading else 0)
    block = line + height + text // 2 + bar + line + gap // 2
    page = Image.new("RGB", (gap + across * (width + gap), top + down * block + gap // 2), PAPER)
    draw = ImageDraw.Draw(page)
    if heading:
        draw.text((gap, gap), _cut(heading, font, page.width - 2 * gap), font=font, fill=GREY)
    for (row, column), picture, caption in zip(product(range(down), range(across)), pictures, captions, strict=False):
        x, y = gap + column * (width + gap), top + row * block
        draw.text((x, y), caption.title, font=font, fill=INK)
        draw.text((x + width, y), caption.mark, font=font, fill=ACCENT, anchor="ra")
        y += line
        page.paste(picture, (x, y))
        y += height + text // 2
        draw.rectangle((x, y, x + width - 1, y + bar - 1), fill=BOARD[0])
        draw.rectangle((x, y, x + max(round(width * caption.share), 1) - 1, y + bar - 1), fill=ACCENT)
        y += bar + text // 2
        draw.text((x, y), caption.left, font=small, fill=GREY)
        draw.text((x + width, y), caption.right, font=small, fill=GREY, anchor="ra")
    return page


def _cut(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """``words``, or as many of their letters as are ``width`` pixels wide."""
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(f"{words}...") > width:
        words = words[:-1]
    return f"{words.rstrip()}..."
