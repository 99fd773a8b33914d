"""The decodings of an image, one grid after the other: each has the grids before it in its prefix."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from zipar.decoding.decodable import Prefix
from zipar.decoding.engine import Decoded, Progress, decode
from zipar.decoding.sampling import NEXT, Sampling
from zipar.decoding.strategy import Strategy
from zipar.grid import TokenGrid
from zipar.models.base import VisualModel


class Decoding(NamedTuple):
    """What one grid was decoded with, and what came of it."""

    model: VisualModel
    prefix: Prefix
    grid: TokenGrid
    decoded: Decoded


def decodings(
    model: VisualModel,
    prefix: Prefix,
    grids: Sequence[TokenGrid],
    strategy: Strategy,
    sampling: Sampling,
    seeds: Sequence[int],
    callback: Callable[[Progress], None] | None = None,
    *,
    first: int = 0,
    deterministic: bool = False,
    cuda_graphs: bool = False,
) -> list[Decoding]:
    """Decode ``grids`` for each image.

    Args: those of ``decode``, and

        grids: as ``model.grids`` tells them; ``prefix`` is that of the first.
        callback: called after each pass, those of earlier grids counted.
        first: number of the first grid, among all that are decoded with these seeds: each has noise of its own.

    Raises:
        ZipARError: see ``decode``.
    """
    done: list[Decoding] = []

    def told(progress: Progress) -> None:
        assert callback is not None
        passes = sum(each.decoded.forward_passes for each in done)
        callback(Progress(progress.done + passes, progress.passes + passes, progress.queries))

    for number, grid in enumerate(grids, first):
        if done:
            prefix = model.followed(prefix, done[-1].decoded.tokens)
        model = model.of(grid)
        decoded = decode(
            *(model, prefix, grid, strategy, sampling, [seed + number * NEXT for seed in seeds]),
            callback=None if callback is None else told,
            deterministic=deterministic,
            cuda_graphs=cuda_graphs,
        )
        done.append(Decoding(model, prefix, grid, decoded))
    return done
