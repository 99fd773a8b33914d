"""Decoding a batch: a lane that is filled once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zipar.decoding.decodable import Decodable, Prefix
from zipar.decoding.lane import Finished, Lane
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.grid import TokenGrid


class Progress(NamedTuple):
    """Told to the callback after each pass."""

    done: int
    passes: int
    queries: int
    """Slots that the pass evaluated for each image."""


@dataclass
class Decoded:
    """A batch of finished sequences."""

    tokens: Tensor
    """int64 (images, slots), as the model writes them, given tokens in place."""
    born: Tensor
    """int64 (images, slots): the pass that decoded each slot; 0 for given ones."""
    forward_passes: int
    slots_evaluated: int
    """Queries an image over all passes after the prefill."""
    rejections: int
    """Tokens that adaptive strategies took back, in all images together."""
    prefill_seconds: float
    decode_seconds: float


def decode(
    model: Decodable,
    prefix: Prefix,
    grid: TokenGrid,
    strategy: Strategy,
    sampling: Sampling,
    seeds: Sequence[int],
    callback: Callable[[Progress], None] | None = None,
    cuda_graphs: bool = False,
) -> Decoded:
    """Decode one grid an image.

    Args:
        model: what turns tokens into logits.
        prefix: of ``len(seeds)`` images, or twice as many rows when ``sampling`` is guided.
        grid: the grid to decode.
        strategy: which slots each pass evaluates.
        sampling: how tokens are drawn.
        seeds: one an image; a seed, a slot and logits make a token.
        callback: called after each pass.
        cuda_graphs: replay passes as CUDA graphs, which only a model that is on one GPU alone bears.
    """
    device, dtype = prefix.embeddings.device, prefix.embeddings.dtype
    started = _clock(device)
    lane = Lane(
        *(model, grid, strategy, sampling, len(seeds), prefix.valid.shape[1]),
        device=device,
        dtype=dtype,
        cuda_graphs=cuda_graphs,
    )
    lane.admit(prefix, sampling, seeds)
    prefilled = _clock(device)
    finished: list[Finished] = lane.retire()
    passes, expected = 1, strategy.passes(grid)
    while lane.busy:
        width = lane.step()
        passes += 1
        if callback is not None:
            callback(Progress(passes, max(expected, passes), width))
        finished += lane.retire()
    finished.sort()  # by their tickets, in the order of the seeds
    done = _clock(device)
    return Decoded(
        torch.stack([image.tokens for image in finished]),
        torch.stack([image.born for image in finished]),
        max(image.forward_passes for image in finished),
        lane.evaluated,
        sum(image.rejections for image in finished),
        prefilled - started,
        done - prefilled,
    )


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
