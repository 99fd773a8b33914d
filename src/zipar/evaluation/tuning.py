"""Finds the setting of the fewest passes whose images stay as likely as raster's."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from zipar.decoding.zipar import ZipAR

TOLERANCE = 0.02
"""Nats a token; docs/quality.md tells what such a gap does to images."""
AS_FEW = 1.02
"""How many times the passes count as no more: fewer drafts, which cost too, are then better."""


class Figures(NamedTuple):
    """What a setting came to."""

    gap: float
    """Fidelity gap to raster, nats a token."""
    passes: float


def search(measure: Callable[[ZipAR], Figures], columns: int, lookahead: int, tolerance: float) -> ZipAR | None:
    """The setting of the fewest passes whose gap is within ``tolerance``; None if only raster order's is.

    Few of all pairs are measured: wider windows are taken to lose no more than narrower ones, and more drafts no more
    than fewer. So the narrowest window is found by bisection, with the most drafts; then row 1 is tried in the wave,
    and drafts are halved as long as that takes no more passes.

    Args:
        measure: makes images with a setting.
        columns: of the grid: a window as wide gives raster's tokens.
        lookahead: the most drafts to try.
    """
    narrowest, best = 1, ZipAR(columns, lookahead)
    while narrowest < best.window:
        candidate = replace(best, window=(narrowest + best.window) // 2)
        if measure(candidate).gap <= tolerance:
            best = candidate
        else:
            narrowest = candidate.window + 1
    if best.window == columns:
        return None
    wave = replace(best, first_row="wave")
    if measure(wave).gap <= tolerance:
        best = wave
    fewest = measure(best).passes
    while best.lookahead > 1:
        candidate = replace(best, lookahead=best.lookahead // 2)
        gap, passes = measure(candidate)
        if gap > tolerance or passes > AS_FEW * fewest:
            break
        best = candidate
    return best
