"""Fidelity: how likely finished images are under the model's own raster order.

Parallel decoding samples tokens with less context than raster decoding has. What that cost shows in one
teacher-forced pass over the finished image: the mean negative log-likelihood of its tokens under their full raster
context, less the same of raster samples. No reference images and no classifier are needed.
"""

import torch
from torch import Tensor

from zipar.decoding.cache import SlotCache
from zipar.decoding.engine import Decodable, Prefix, additive, prefill_mask
from zipar.decoding.sampling import Sampling, guide
from zipar.grid import TokenGrid


@torch.inference_mode()
def negative_log_likelihood(
    model: Decodable, prefix: Prefix, grid: TokenGrid, tokens: Tensor, sampling: Sampling, chunk: int = 1024
) -> Tensor:
    """Mean negative log-likelihood of each image's tokens under full raster context, in nats a token.

    Guidance and temperature are those the tokens were drawn with. Top-k and top-p are left out: under them a token
    that raster order would filter out has no finite likelihood.

    Args:
        model, prefix, grid, sampling: as ``decode`` was given them.
        tokens: int64 (images, slots), as ``decode`` returned them.
        chunk: slots evaluated at a time.

    Returns:
        float64 (images,).
    """
    device, dtype = prefix.embeddings.device, prefix.embeddings.dtype
    rows, length = prefix.valid.shape
    cache = SlotCache(model.layers, length, grid.slots, device)
    slots = torch.arange(grid.slots, device=device)
    free = torch.zeros(grid.slots, dtype=torch.bool, device=device)
    free[grid.free().flatten().to(device)] = True
    fed = tokens.repeat(2 if sampling.guided else 1, 1)
    lengths = prefix.valid.sum(1)

    def likelihood(logits: Tensor, first: int) -> Tensor:
        if sampling.guided:
            logits = guide(logits, sampling.guidance_scale)
        targets = slice(first, first + logits.shape[1])
        scores = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
        chosen = scores.gather(-1, tokens[:, targets, None])[..., 0]
        return chosen[:, free[targets]].double().sum(1)

    logits = model.prefill(prefix, cache, prefill_mask(prefix))
    total = likelihood(logits, 0)
    for queries in slots[:-1].split(chunk):
        extent = int(queries[-1]) + 1
        seen = (slots[:extent] <= queries[:, None]).expand(rows, -1, -1)
        seen = torch.cat([prefix.valid[:, None].expand(-1, len(queries), -1), seen], dim=-1)
        cache.place(queries[None], extent)
        logits = model.step(fed[:, queries], queries[None], lengths, cache, additive(seen, dtype))
        total += likelihood(logits, int(queries[0]) + 1)
    return -total / grid.tokens
