"""Finds the fastest setting whose images stay as likely as raster's."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from zipar.arguments import function, real, whole
from zipar.decoding.zipar import ZipAR

TOLERANCE = 0.02
"""Nats a token; docs/quality.md tells what such a gap does to images."""


class Figures(NamedTuple):
    """What a setting came to."""

    gap: float
    """Fidelity gap to raster, nats a token."""
    seconds: float
    """An image, at the batch that is tuned for."""


def search(measure: Callable[[ZipAR], Figures], columns: int, lookahead: int, tolerance: float) -> ZipAR | None:
    """The setting of the fewest seconds whose gap is within ``tolerance``; None if only raster order's is.

    Drafts let rows follow closer, and each costs time, the more the more images are decoded together. So the lookahead
    is halved from the most on, and for each the narrowest window that is good enough is found by bisection, and tried
    with row 1 in the wave too: wider windows are taken to lose no more than narrower ones, and more drafts no more than
    fewer.

    Args:
        measure: makes images with a setting.
        columns: of the grid: a window as wide gives raster's tokens.
        lookahead: the most drafts to try.

    Raises:
        ZipARError: a number that is not possible.
    """
    function("measure", measure)
    columns, lookahead = whole("columns", columns, 1), whole("lookahead", lookahead, 1)
    tolerance = real("tolerance", tolerance, lambda x: x >= 0, "a number of nats, 0 or more")
    good: list[tuple[float, ZipAR]] = []
    narrowest = 1
    while lookahead >= 1 and narrowest < columns:
        enough = columns
        while narrowest < enough:
            middle = (narrowest + enough) // 2
            if measure(ZipAR(middle, lookahead)).gap <= tolerance:
                enough = middle
            else:
                narrowest = middle + 1
        if narrowest < columns:
            candidate = ZipAR(narrowest, lookahead)
            for setting in candidate, replace(candidate, first_row="wave"):
                gap, seconds = measure(setting)
                if gap <= tolerance:
                    good.append((seconds, setting))
        lookahead //= 2
    return min(good, key=lambda found: found[0])[1] if good else None
