import pytest
import torch

from zipar.decoding.attention import attend


def plain(query, key, value, mask, scale):
    """Softmax attention written out, with keys and values repeated for the heads that share them."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scores + mask).softmax(-1) @ value


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("mask_rows", [None, 1, 2])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_attention_written_out(kv_heads, queries, mask_rows, scale):
    random = torch.Generator().manual_seed(1)
    query = torch.randn(2, 6, queries, 8, generator=random)
    key, value = torch.randn(2, 2, kv_heads, 7, 8, generator=random)
    mask = None
    if mask_rows is not None:
        hidden = torch.rand(mask_rows, 1, queries, 7, generator=random) < 0.5
        hidden[..., 0] = False
        mask = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
    expected = plain(query, key, value, 0 if mask is None else mask, scale)
    torch.testing.assert_close(attend(query, key, value, mask, scale), expected)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_masked_keys_and_values_do_not_matter(kv_heads):
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, kv_heads, 6, 8), torch.randn(1, kv_heads, 6, 8)
    mask = torch.zeros(1, 1, 3, 6)
    mask[..., 4:] = float("-inf")
    expected = attend(query, key[:, :, :4], value[:, :, :4])
    key[:, :, 4:], value[:, :, 4:] = 1e4, -1e4
    torch.testing.assert_close(attend(query, key, value, mask), expected)
