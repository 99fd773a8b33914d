"""The one decoding loop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.decoding.cache import SlotCache
from zipar.decoding.sampling import Sampling, guide, sample
from zipar.decoding.strategy import Evaluated, Strategy
from zipar.errors import ZipARError
from zipar.grid import TokenGrid


class Prefix(NamedTuple):
    """What comes before the image: a row for each image or, with guidance, conditional rows, then the others."""

    embeddings: Tensor
    """(rows, length, dim), padded on the left."""
    valid: Tensor
    """bool (rows, length), False where padded."""


class Decodable(Protocol):
    """What the engine asks of a model (see ``zipar.models.base.VisualModel``)."""

    layers: int

    def prefill(self, prefix: Prefix, cache: SlotCache, mask: Tensor) -> Tensor: ...
    def step(self, tokens: Tensor, slots: Tensor, lengths: Tensor, cache: SlotCache, mask: Tensor) -> Tensor: ...


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


@torch.inference_mode()
def decode(
    model: Decodable,
    prefix: Prefix,
    grid: TokenGrid,
    strategy: Strategy,
    sampling: Sampling,
    seeds: Sequence[int],
    callback: Callable[[Progress], None] | None = None,
) -> Decoded:
    """Decode one grid an image.

    In every pass the strategy's queries are fed, their keys and values written by slot, and each query
    sees its prefix and the slots at or before its own that have been written: never one that holds nothing.

    Args:
        model: what turns tokens into logits.
        prefix: of ``len(seeds)`` images, or twice as many rows when ``sampling`` is guided.
        grid: the grid to decode.
        strategy: which slots each pass evaluates.
        sampling: how tokens are drawn.
        seeds: one an image; a seed, a slot and logits make a token.
        callback: called after each pass.
    """
    device, dtype = prefix.embeddings.device, prefix.embeddings.dtype
    images, (rows, length) = len(seeds), prefix.valid.shape
    if rows != images * (2 if sampling.guided else 1):
        raise ZipARError(f"{rows} prefix rows do not fit {images} seeds with guidance {sampling.guidance_scale}")
    started = _clock(device)
    cache = SlotCache(model.layers, length, grid.slots, device)
    slots = torch.arange(grid.slots, device=device)
    noise = torch.tensor([(int(seed) + 2**63) % 2**64 - 2**63 for seed in seeds], device=device)
    tokens = F.pad(grid.blank(), (0, 1)).to(device).repeat(images, 1)  # the last entry takes what has no target
    born = torch.zeros_like(tokens)

    def settle(logits: Tensor, targets: Tensor, done: int) -> Tensor:
        if sampling.guided:
            logits = guide(logits, sampling.guidance_scale)
        targets = targets.expand(images, -1)
        tokens.scatter_(1, targets, sample(logits, sampling, noise, targets))
        born.scatter_(1, targets, done)
        return logits

    settle(model.prefill(prefix, cache, prefill_mask(prefix)), slots[None, :1], 0)
    prefilled = _clock(device)

    lengths = prefix.valid.sum(1)
    written = torch.zeros(1, grid.slots, dtype=torch.bool, device=device)
    passes, evaluated, expected = 1, 0, strategy.passes(grid)
    steps, rejections = strategy.steps(grid, tokens), None
    step = next(steps, None)
    while step is not None:
        queries, width = step.queries, step.queries.shape[1]
        fed = tokens.gather(1, step.sources.expand(images, -1))
        if sampling.guided:
            fed = fed.repeat(2, 1)
            queries = queries if len(queries) == 1 else queries.repeat(2, 1)
        if len(written) < len(queries):
            written = written.repeat(rows, 1)
        written.scatter_(1, queries.expand(len(written), -1), True)
        visible = written[:, None, : step.extent] & (slots[: step.extent] <= queries[..., None])
        visible = torch.cat(
            [prefix.valid[:, None].expand(-1, width, -1), visible.expand(rows, -1, -1)],
            dim=-1,
        )
        cache.place(queries, step.extent)
        logits = model.step(fed, queries, lengths, cache, additive(visible, dtype))
        logits = settle(logits, step.targets, passes)
        passes += 1
        evaluated += width
        if callback is not None:
            callback(Progress(passes, max(expected, passes), width))
        try:
            step = steps.send(Evaluated(logits, sampling, noise))
        except StopIteration as end:
            step, rejections = None, end.value
    finished = _clock(device)
    return Decoded(
        tokens[:, :-1],
        born[:, :-1],
        passes,
        evaluated,
        0 if rejections is None else int(rejections.sum()),
        prefilled - started,
        finished - prefilled,
    )


def prefill_mask(prefix: Prefix) -> Tensor:
    """The additive mask (rows, 1, length, length) of a prefix: causal, without its padding."""
    length, device = prefix.valid.shape[1], prefix.valid.device
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=device)  # padding sees itself, for it must see something
    return additive(causal & prefix.valid[:, None] | itself, prefix.embeddings.dtype)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (rows, queries, keys), True where visible, as 0 and -inf (rows, 1, queries, keys)."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, float("-inf"))[:, None]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
