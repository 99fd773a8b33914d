"""Decoding a batch: a lane that is filled once or, where shapes must not depend on the batch, as its rows get free."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zipar.arguments import flag, function, instance, listed, refusal, whole
from zipar.decoding.decodable import Decodable, Prefix
from zipar.decoding.lane import Finished, Lane
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.errors import ZipARError
from zipar.grid import TokenGrid

ROWS, PREFIX = 8, 64
"""Of a deterministic lane: its rows, and what its prefixes' lengths are rounded up to a multiple of."""


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
    log_probabilities: Tensor
    """Float32 (images, slots): of each token in what it was drawn from, filters applied, given what was known then; 0
    of given tokens and where greedy."""
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
    *,
    deterministic: bool = False,
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
        deterministic: tensors have one shape, whatever the batch, so that no image depends on it through rounding:
            images are prefilled one by one, and decoded in ``ROWS`` rows, busy or not.
        cuda_graphs: replay passes as CUDA graphs, which only a model that is on one GPU alone bears.

    Raises:
        ZipARError: the prefix does not fit the seeds, an argument is of a wrong type, or the model's logits are no
            numbers.
    """
    instance("model", model, Decodable, "a model of zipar")
    instance("prefix", prefix, Prefix, "a Prefix")
    instance("grid", grid, TokenGrid, "a TokenGrid")
    instance("strategy", strategy, Strategy, "one such as zipar.ZipAR(8)")
    instance("sampling", sampling, Sampling, "a Sampling")
    if callback is not None:
        function("callback", callback)
    deterministic, cuda_graphs = flag("deterministic", deterministic), flag("cuda_graphs", cuda_graphs)
    if not (given := listed(seeds)):
        raise refusal("seeds", seeds, "a list of whole numbers, one an image")
    seeds = [whole("seeds", seed, None) for seed in given]
    if cuda_graphs and prefix.embeddings.device.type != "cuda":
        raise refusal("cuda_graphs", cuda_graphs, f"False on device {str(prefix.embeddings.device)!r}")
    device, dtype, count = prefix.embeddings.device, prefix.embeddings.dtype, len(seeds)
    started, prefilling = _clock(device), 0.0
    arrivals = {prefix.prompt: [(range(count), prefix)]}
    if deterministic:
        arrivals = {}
        for image in range(count):
            alone = prefix.of(image, count)
            length = -(-alone.prompt // PREFIX) * PREFIX
            arrivals.setdefault(length, []).append((range(image, image + 1), alone))
    passes, expected, evaluated = 1, strategy.passes(grid), 0
    finished: dict[int, Finished] = {}
    for length, waiting in arrivals.items():
        lane = Lane(
            *(model, grid, strategy, sampling, ROWS if deterministic else count, length),
            device=device,
            dtype=dtype,
            deterministic=deterministic,
            cuda_graphs=cuda_graphs,
        )
        images = [image for part, _ in waiting for image in part]  # by ticket
        while waiting or lane.busy:
            while waiting and lane.busy + len(waiting[0][0]) <= lane.rows:
                part, theirs = waiting.pop(0)
                arriving = _clock(device)
                lane.admit(theirs, sampling, [seeds[image] for image in part])
                prefilling += _clock(device) - arriving
            finished |= {images[image.ticket]: image for image in lane.retire()}
            if lane.busy:
                width = lane.step()
                passes += 1
                if callback is not None:
                    callback(Progress(passes, max(expected, passes), width))
        evaluated += lane.evaluated
    done = [finished[image] for image in range(count)]
    if not all(image.finite for image in done):
        raise no_numbers(dtype)
    return Decoded(
        torch.stack([image.tokens for image in done]),
        torch.stack([image.born for image in done]),
        torch.stack([image.log_probabilities for image in done]),
        max(image.forward_passes for image in done),
        evaluated,
        sum(image.rejections for image in done),
        prefilling,
        _clock(device) - started - prefilling,
    )


def no_numbers(dtype: torch.dtype) -> ZipARError:
    """The error over logits that are NaN or infinite, of a model that computes in ``dtype``."""
    if dtype == torch.float16:
        likely = "float16 holds nothing above 65504, so load the model in bfloat16 or float32"
    else:
        likely = "its weights may be damaged, or the guidance scale too large"
    return ZipARError(f"the model's logits are no finite numbers (NaN or infinity): {likely}")


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
