import pytest
import torch

from zipar.decoding.cache import SlotCache

ROWS, PREFIX, SLOTS = 3, 2, 6
ALL = slice(0, ROWS)


@pytest.fixture
def cache():
    return SlotCache(2, ROWS, PREFIX, SLOTS)


def entries(queries, value=None, rows=ROWS):
    """Keys or values of a pass: random, or all of one value."""
    shape = (rows, 4, queries, 8)
    return torch.randn(shape) if value is None else torch.full(shape, float(value))


def place(cache, slots, extent=SLOTS, rows=ALL):
    """Slots of each row; negative ones lie in the prefix."""
    cache.place(rows, PREFIX + torch.tensor(slots), slice(PREFIX + extent))


def test_a_new_cache_takes_the_prefix(cache):
    key, value = entries(PREFIX), entries(PREFIX)
    place(cache, [[-2, -1]] * ROWS, 0)
    keys, values = cache.layers[0].update(key, value)
    assert keys.equal(key)
    assert values.equal(value)


def test_its_memory_is_that_of_all_entries(cache):
    assert cache.memory == 0
    place(cache, [[-2, -1]] * ROWS, 0)
    for layer in cache.layers:
        layer.update(entries(PREFIX), entries(PREFIX))
    assert cache.memory == 2 * 2 * ROWS * 4 * (PREFIX + SLOTS) * 8 * 4  # two layers, keys and values, float32


def test_each_row_writes_to_slots_of_its_own(cache):
    slots = torch.tensor([[0, 5], [2, 1], [4, 3]])
    key, value = entries(2), entries(2)
    place(cache, slots.tolist())
    keys, values = cache.layers[1].update(key, value)
    for row in range(ROWS):
        for query in range(2):
            entry = PREFIX + slots[row, query]
            assert keys[row, :, entry].equal(key[row, :, query])
            assert values[row, :, entry].equal(value[row, :, query])
    assert (keys != 0).any(-1).any(1).sum() == 2 * ROWS  # and nothing else is written


def test_a_slot_written_again_is_overwritten(cache):
    for value in 1, 2:
        place(cache, [[4]] * ROWS, 5)
        keys, values = cache.layers[0].update(entries(1, value), entries(1, -value))
        assert keys.shape == values.shape == (ROWS, 4, PREFIX + 5, 8)
    assert (keys[:, :, PREFIX + 4] == 2).all()
    assert (values[:, :, PREFIX + 4] == -2).all()


def test_layers_are_apart(cache):
    place(cache, [[0]] * ROWS, 1)
    cache.layers[0].update(entries(1, 1), entries(1, 1))
    keys, values = cache.layers[1].update(entries(1, 2), entries(1, 3))
    assert (keys[:, :, PREFIX] == 2).all()
    assert (values[:, :, PREFIX] == 3).all()


def test_some_rows_may_take_part_and_the_others_stay(cache):
    place(cache, [[1]] * ROWS)
    cache.layers[0].update(entries(1, 1), entries(1, 1))
    place(cache, [[1]], rows=slice(1, 2))
    keys, _ = cache.layers[0].update(entries(1, 2, rows=1), entries(1, 3, rows=1))
    assert keys.shape == (1, 4, PREFIX + SLOTS, 8)
    assert cache.layers[0].keys[:, 0, PREFIX + 1, 0].tolist() == [1, 2, 1]
    assert cache.layers[0].values[:, 0, PREFIX + 1, 0].tolist() == [1, 3, 1]


def test_rows_move(cache):
    for layer in cache.layers:
        place(cache, [[0, 3]] * ROWS)
        layer.update(entries(2), entries(2))
    moved = [(layer.keys[2].clone(), layer.values[2].clone()) for layer in cache.layers]
    cache.move(slice(2, 3), slice(0, 1))
    for layer, (keys, values) in zip(cache.layers, moved, strict=True):
        assert layer.keys[0].equal(keys)
        assert layer.values[0].equal(values)


def test_a_layer_allocates_once_and_what_its_keys_are_like(cache):
    key, value = torch.randn(1, 1, PREFIX, 4, dtype=torch.bfloat16), torch.randn(1, 1, PREFIX, 6, dtype=torch.bfloat16)
    layer = cache.layers[0]
    place(cache, [[-2, -1]], rows=slice(0, 1))
    layer.update(key, value)
    held = layer.keys, layer.values
    assert layer.keys.shape == (ROWS, 1, PREFIX + SLOTS, 4)
    assert layer.values.shape == (ROWS, 1, PREFIX + SLOTS, 6)
    assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
    place(cache, [[3, 0]], 4, slice(0, 1))
    layer.update(key[:, :, :2], value[:, :, :2])
    assert layer.keys is held[0]
    assert layer.values is held[1]
    assert cache.layers[1].keys is None
