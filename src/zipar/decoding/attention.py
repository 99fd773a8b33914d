"""Masked grouped-query attention."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Softmax attention, without repeating keys and values for the query heads that share them.

    Query heads of one group are folded into the query axis, so every key and value is read once
    (PyTorch's own grouped path repeats them where a mask is given).

    Args:
        query: (batch, heads, queries, head_dim).
        key, value: (batch, kv_heads, keys, head_dim); ``kv_heads`` divides ``heads``.
        mask: additive float mask, broadcastable to (batch, 1, queries, keys), 0 or -inf; None for none.
        scale: factor of the scores; None for 1 / sqrt(head_dim).

    Returns:
        (batch, heads, queries, head_dim).
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads == kv_heads:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    group = heads // kv_heads
    folded = query.unflatten(1, (kv_heads, group)).flatten(2, 3)
    if mask is not None:
        mask = mask.expand(-1, -1, query.shape[2], -1).repeat(1, 1, group, 1)
    output = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return output.unflatten(2, (group, -1)).flatten(1, 2)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (rows, queries, keys), True where visible, as 0 and -inf (rows, 1, queries, keys)."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, float("-inf"))[:, None]
