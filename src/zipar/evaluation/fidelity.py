"""Fidelity: how likely finished images are under the model's own raster order.

Parallel decoding samples tokens with less context than raster decoding has. What that cost shows in one
teacher-forced pass over the finished image. No reference images and no classifier are needed.

- The *fidelity gap* is the mean negative log-likelihood of the tokens under their full raster context, less the same of
  raster's samples. It has one side: tokens that are likelier than samples are, such as those of too low a temperature,
  make it smaller.
- The *surprise excess* is the mean of (-log p(token) - H(p)), where p is what raster decoding draws the token from and
  H its entropy. Its expectation is 0 for raster's own samples, whatever the model, the prompt or the filters: positive,
  tokens are too unlikely; negative, too likely (mode seeking).
- The *divergence* is the mean of (log q(token) - log p(token)), where q is what the token was drawn from, with what was
  known then. If every token is drawn once, as by plain windows, q of all tokens together is the distribution of the
  images, and the expectation is a token's share of its Kullback-Leibler divergence from raster's: 0 only for equal
  ones. It is 0 for each image of raster order and of lossless decoding, so that few images tell a small loss. Where
  drafts were drawn and drawn again it is an estimate, for what others saw of them is not in q.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zipar.arguments import instance, refusal, whole
from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Decodable, Prefix
from zipar.decoding.engine import no_numbers
from zipar.decoding.sampling import Draw, Sampling, filter_logits, guide, probabilities
from zipar.errors import ZipARError
from zipar.grid import TokenGrid


class Likelihood(NamedTuple):
    """How the tokens of each image look to raster decoding; float64 (images,) each."""

    nats: Tensor
    """Mean negative log-likelihood of a token, before top-k, top-p and min-p."""
    outside: Tensor
    """Share of tokens that raster decoding could not have drawn there: a filter or greediness leaves them out."""
    excess: Tensor
    """Surprise excess of a token: how much less likely it is than raster's draws are, 0 in expectation for those."""
    entropy: Tensor
    """Mean entropy of what raster decoding draws a token from, in nats; 0 where greedy."""

    def divergence(self, drawn: Tensor, grid: TokenGrid) -> Tensor:
        """How much likelier a token was where it was drawn than raster order finds it, in nats; float64 (images,).

        Args:
            drawn: float (images, slots), ``Decoded.log_probabilities`` of the same tokens.
            grid: of the images.
        """
        return drawn.double().sum(1) / grid.tokens + self.excess + self.entropy


@torch.inference_mode()
def likelihood(
    model: Decodable, prefix: Prefix, grid: TokenGrid, tokens: Tensor, sampling: Sampling, chunk: int = 1024
) -> Likelihood:
    """How likely finished images are under full raster context.

    Guidance and temperature are those the tokens were drawn with (temperature 1 where they were greedy). ``nats`` are
    those before the filters, for a token that they leave out has no probability after them, and the share of such
    tokens is counted as ``outside``.

    ``entropy`` and ``excess`` are of the distribution after the filters. A token outside counts with its probability
    before them, so that the excess stays finite: -log p(token) before, less the entropy after. Where decoding is
    greedy the likeliest token has no excess, and any other its negative log-likelihood at temperature 1.

    Args:
        model, prefix, grid, sampling: as ``decode`` was given them.
        tokens: int64 (images, slots), as ``decode`` returned them.
        chunk: slots evaluated at a time.

    Raises:
        ZipARError: the tokens are not of such a shape, another argument is not possible, or the model's logits are no
            numbers.
    """
    instance("prefix", prefix, Prefix, "a Prefix")
    instance("grid", grid, TokenGrid, "a TokenGrid")
    instance("sampling", sampling, Sampling, "a Sampling")
    instance("model", model, Decodable, "a model of zipar")
    chunk = whole("chunk", chunk, 1)
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.shape[1:] != (grid.slots,):
        raise refusal("tokens", tokens, f"an int64 tensor (images, {grid.slots})")
    if len(prefix.valid) != len(tokens) * (2 if sampling.guided else 1):
        raise ZipARError(f"{len(prefix.valid)} prefix rows do not fit {len(tokens)} images with {sampling}")
    device, dtype = prefix.embeddings.device, prefix.embeddings.dtype
    rows, length = prefix.valid.shape
    if sampling.guided:
        prefix = prefix.paired()
    draw = Draw.of(sampling, [0] * len(tokens), device)
    cache = SlotCache(model.layers, rows, prefix.prompt, grid.slots)
    everything, prompt = slice(0, rows), torch.arange(length, device=device)
    slots = torch.arange(grid.slots, device=device)
    free = torch.zeros(grid.slots, dtype=torch.bool, device=device)
    free[grid.free().flatten().to(device)] = True
    fed = tokens.repeat_interleave(2 if sampling.guided else 1, 0)
    lengths = prefix.lengths

    filtered = sampling.greedy or sampling.filters != Sampling().filters

    own_precision = torch.autocast(device.type, enabled=False)

    def weigh(logits: Tensor, first: int) -> Tensor:
        """The sums over some slots of what ``Likelihood`` has the means of, (4, images)."""
        if sampling.guided:
            logits = guide(logits, sampling.guidance_scale)
        targets = slice(first, first + logits.shape[1])
        drawn, counted = tokens[:, targets, None], free[targets]
        scores = (logits / draw.temperature).log_softmax(-1)
        before = after = scores.gather(-1, drawn)[..., 0]
        likely = probabilities(filter_logits(logits, draw), draw) if filtered else scores.exp()
        if filtered:
            after = likely.gather(-1, drawn)[..., 0].log()
        outside, entropy = after.isinf(), torch.special.entr(likely).sum(-1).double()
        excess = -before.where(outside, after) - entropy
        return torch.stack([-before.double(), outside.double(), excess, entropy])[..., counted].sum(-1)

    cache.place(everything, prompt.expand(rows, -1), slice(length))
    with own_precision:
        logits = model.prefill(prefix, cache, prefix.mask())
    total = weigh(logits, grid.first)
    for queries in slots[grid.first : -1].split(chunk):
        extent = int(queries[-1]) + 1
        seen = (slots[:extent] <= queries[:, None]).expand(rows, -1, -1)
        prompted = prefix.valid[:, None, : prefix.prompt].expand(-1, len(queries), -1)
        seen = torch.cat([prompted, seen], dim=-1)
        slots_fed = queries.expand(rows, -1)
        cache.place(everything, prefix.prompt + slots_fed, slice(prefix.prompt + extent))
        with own_precision:
            logits = model.step(fed[:, queries], slots_fed, lengths, cache, additive(seen, dtype))
        total = total + weigh(logits, int(queries[0]) + 1)
    if total.isnan().any():
        raise no_numbers(dtype)
    return Likelihood(*total / grid.tokens)
