"""Finds the fastest setting whose tokens are drawn from nearly raster's distribution."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from zipar.arguments import function, real, whole
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.names import DEFAULT
from zipar.decoding.zipar import ZipAR
from zipar.errors import ZipARError
from zipar.grid import TokenGrid

TOLERANCE = 0.02
"""Nats a token; docs/quality.md tells what such a loss does to images."""

LOSSLESS = CoupledJacobi(32)
"""Within any tolerance, and the fastest where a model is sure of its tokens or has few."""

MOST_IMAGES = 1_000_000
"""What ``zipar tune`` takes of each setting."""


class Figures(NamedTuple):
    """What a setting came to.

    The excess is that less raster's own, of the same prompts and seeds. Raster's is 0 in expectation, so this has the
    expectation of the excess itself, and what noise both share drops out. With 64 images of the embedded model the
    interval of ``ZipAR(4, lookahead=8)`` reaches 0.009 nats either way instead of 0.010; the closer images are to
    raster's, the less. Of settings that lose far more, which are refused anyhow, both reach as far.
    """

    excess: float
    """Surprise excess, less raster's; nats a token."""
    reach: float
    """Half the width of its 95 % confidence interval."""
    divergence: float
    """From raster's distribution, where its 95 % confidence interval ends; nats a token."""
    seconds: float
    """An image, at the batch that is tuned for."""

    def within(self, tolerance: float) -> bool:
        """Whether all of the excess's interval is within ``tolerance`` of 0, on either side, and the divergence too."""
        return max(abs(self.excess) + self.reach, self.divergence) <= tolerance


def check_images(images: int, reach: float, tolerance: float) -> None:
    """Refuse a number of images that is too small for a tolerance.

    Args:
        images: of each setting.
        reach: half the width of the 95 % confidence interval of raster's own excess.
        tolerance: nats a token.

    Raises:
        ZipARError: the interval alone is wider than the tolerance, and the message says how many images would bring it
            down to half of that; or a number is not possible.
    """
    images = whole("images", images, 2)
    reach = real("reach", reach, lambda x: x >= 0, "a number of nats, 0 or more")
    tolerance = real("tolerance", tolerance, lambda x: x > 0, "a number of nats above 0")
    if reach > tolerance:
        ratio = 2 * reach / tolerance
        enough = images * ratio * ratio
        more = f"--images {math.ceil(enough)}, or " if enough <= MOST_IMAGES else ""
        raise ZipARError(
            f"{images} images tell even raster's surprise excess only to within {reach:.2g} nats, and the tolerance is "
            f"{tolerance:g}: give {more}a --tolerance of {2 * reach:.2g}"
        )


def search(measure: Callable[[ZipAR], Figures], columns: int, lookahead: int, tolerance: float) -> ZipAR | None:
    """The setting of the fewest seconds that is within ``tolerance``; None if only raster order is.

    Drafts let rows follow closer, and each costs time, the more the more images are decoded together. So the lookahead
    is halved from the most on, and for each the narrowest window that is good enough is found by bisection, and tried
    with row 1 in the wave too: wider windows are taken to lose no more than narrower ones, and more drafts no more than
    fewer. So is the window of the default, which is measured in nats. Whatever was measured on the way may be found.

    Args:
        measure: makes images with a setting.
        columns: of the grid: a window as wide gives raster's tokens.
        lookahead: the most drafts to try.

    Raises:
        ZipARError: a number that is not possible.
    """
    function("measure", measure)
    columns, lookahead = whole("columns", columns, 1), whole("lookahead", lookahead, 1)
    tolerance = real("tolerance", tolerance, lambda x: x > 0, "a number of nats above 0")
    good: dict[ZipAR, float] = {}

    def fits(setting: ZipAR) -> bool:
        figures = measure(setting)
        if figures.within(tolerance):
            good[setting] = figures.seconds
        return setting in good

    narrowest = 1
    while lookahead >= 1:
        enough = columns
        while narrowest < enough:
            middle = (narrowest + enough) // 2
            if fits(ZipAR(middle, lookahead)):
                enough = middle
            else:
                narrowest = middle + 1
        if columns > 1:
            fits(replace(DEFAULT, lookahead=lookahead))
        if narrowest < columns:
            fits(ZipAR(narrowest, lookahead))
            fits(ZipAR(narrowest, lookahead, "wave"))
        lookahead //= 2
    return min(good, key=lambda setting: good[setting]) if good else None


def overlap(measure: Callable[[ZipAR], Figures], setting: ZipAR, grid: TokenGrid, tolerance: float) -> ZipAR:
    """``setting``, or the fastest of those found with a frame delay that is within ``tolerance``.

    The smallest delay that is good enough is found by bisection: smaller ones are taken to lose no less.

    Args:
        measure: makes clips with a setting.
        setting: good enough; its frames come one after the other.
        grid: of a clip.

    Raises:
        ZipARError: a number that is not possible.
    """
    function("measure", measure)
    tolerance = real("tolerance", tolerance, lambda x: x > 0, "a number of nats above 0")
    good = {setting: measure(setting).seconds}
    smallest, enough = 1, setting.passes(TokenGrid(grid.rows, grid.columns, row_end=grid.row_end))
    while smallest < enough:
        middle = (smallest + enough) // 2
        closer = replace(setting, frame_delay=middle)
        figures = measure(closer)
        if figures.within(tolerance):
            good[closer] = figures.seconds
            enough = middle
        else:
            smallest = middle + 1
    return min(good, key=lambda each: good[each])
