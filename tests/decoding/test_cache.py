import pytest
import torch

from zipar.decoding.cache import SlotCache

ROWS, PREFIX, SLOTS = 3, 2, 6


@pytest.fixture
def cache():
    return SlotCache(2, PREFIX, SLOTS, torch.device("cpu"))


def entries(queries, value=None):
    """Keys or values of a pass: random, or all of one value."""
    shape = (ROWS, 4, queries, 8)
    return torch.randn(shape) if value is None else torch.full(shape, float(value))


def test_a_new_cache_takes_the_prefix(cache):
    key, value = entries(PREFIX), entries(PREFIX)
    keys, values = cache.layers[0].update(key, value)
    assert keys.equal(key)
    assert values.equal(value)


def test_slots_lie_after_the_prefix_whatever_the_order(cache):
    prefix = entries(PREFIX)
    cache.layers[0].update(prefix, prefix)
    key, value = entries(2), entries(2)
    cache.place(torch.tensor([[3, 0]]), 4)
    keys, values = cache.layers[0].update(key, value)
    assert keys.shape == values.shape == (ROWS, 4, PREFIX + 4, 8)
    assert keys[:, :, [PREFIX + 3, PREFIX]].equal(key)
    assert values[:, :, [PREFIX + 3, PREFIX]].equal(value)
    assert keys[:, :, :PREFIX].equal(prefix)


def test_each_row_may_write_to_slots_of_its_own(cache):
    slots = torch.tensor([[0, 5], [2, 1], [4, 3]])
    key, value = entries(2), entries(2)
    cache.place(slots, SLOTS)
    keys, values = cache.layers[1].update(key, value)
    for row in range(ROWS):
        for query in range(2):
            entry = PREFIX + slots[row, query]
            assert keys[row, :, entry].equal(key[row, :, query])
            assert values[row, :, entry].equal(value[row, :, query])
    assert (keys != 0).any(-1).any(1).sum() == 2 * ROWS  # and nothing else is written


@pytest.mark.parametrize("slots", [[[4]], [[4]] * ROWS])
def test_a_slot_written_again_is_overwritten(cache, slots):
    for value in 1, 2:
        cache.place(torch.tensor(slots), 5)
        keys, values = cache.layers[0].update(entries(1, value), entries(1, -value))
    assert (keys[:, :, PREFIX + 4] == 2).all()
    assert (values[:, :, PREFIX + 4] == -2).all()


def test_layers_are_apart(cache):
    cache.place(torch.tensor([[0]]), 1)
    cache.layers[0].update(entries(1, 1), entries(1, 1))
    keys, values = cache.layers[1].update(entries(1, 2), entries(1, 3))
    assert (keys[:, :, PREFIX] == 2).all()
    assert (values[:, :, PREFIX] == 3).all()


def test_a_layer_allocates_once_and_what_its_keys_are_like(cache):
    key, value = torch.randn(5, 1, PREFIX, 4, dtype=torch.bfloat16), torch.randn(5, 1, PREFIX, 6, dtype=torch.bfloat16)
    layer = cache.layers[0]
    layer.update(key, value)
    held = layer.keys, layer.values
    assert layer.keys.shape == (5, 1, PREFIX + SLOTS, 4)
    assert layer.values.shape == (5, 1, PREFIX + SLOTS, 6)
    assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
    cache.place(torch.tensor([[3, 0]]), 4)
    layer.update(key[:, :, :2], value[:, :, :2])
    assert layer.keys is held[0]
    assert layer.values is held[1]
    assert cache.layers[1].keys is None
