"""The plug points of transformers: our attention against its own, the cache, and what is left as it was."""

import copy

import pytest
import torch

import zipar
from zipar import Raster, Sampling, TokenGrid, ZipAR
from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache, SlotCacheLayer
from zipar.decoding.engine import decode
from zipar.models.janus import Janus

PROMPTS = ["a red fox in the snow", "birds"]
GRID = TokenGrid(6, 6)


@pytest.fixture(scope="module")
def model(janus_directory):
    return Janus.load(janus_directory, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def prefix(model):
    return model.prefix(PROMPTS, None, True, GRID)


@pytest.fixture(scope="module")
def greedy(model, prefix):
    return tokens_of(model, prefix)


def tokens_of(model, prefix, strategy=ZipAR(2)):  # noqa: B008
    return decode(model, prefix, GRID, strategy, Sampling(5.0, temperature=0), [0, 0]).tokens


@torch.inference_mode()
def test_grouped_attention_over_slots_equals_eager_attention_over_the_sequence(model, prefix):
    """The padded prefix, then all slots in one pass and in disorder; against eager attention, unpadded, uncached."""
    network = copy.deepcopy(model.decoder)
    network.set_attn_implementation("eager")
    assert network.config.num_attention_heads > network.config.num_key_value_heads
    rows, length = prefix.valid.shape
    tokens, order = torch.randint(50, (rows, 36)), torch.randperm(36)
    cache = SlotCache(model.layers, rows, length, 36)
    cache.place(slice(0, rows), torch.arange(length).expand(rows, -1), slice(length))
    causal = torch.ones(length, length, dtype=torch.bool).tril() & prefix.valid[:, None]
    first = model.prefill(prefix, cache, additive(causal | torch.eye(length, dtype=torch.bool), torch.float32))
    order_of_rows = order.expand(rows, -1)
    cache.place(slice(0, rows), length + order_of_rows, slice(length + 36))
    visible = torch.cat(
        [prefix.valid[:, None].expand(-1, 36, -1), (torch.arange(36) <= order[:, None]).expand(rows, -1, -1)], dim=-1
    )
    found = model.step(tokens[:, order], order_of_rows, prefix.valid.sum(1), cache, additive(visible, torch.float32))
    for row in range(rows):
        prompt = prefix.embeddings[row][prefix.valid[row]]
        sequence = torch.cat([prompt, model.embed(tokens[row])])[None]
        hidden = network(inputs_embeds=sequence, use_cache=False).last_hidden_state
        expected = model.logits(hidden[:, len(prompt) - 1 :])[0]
        torch.testing.assert_close(first[row, 0], expected[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[row], expected[1:][order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strategy", [Raster(), ZipAR(2)], ids=["raster", "window 2"])
def test_the_cache_holds_a_row_of_prefix_and_slots_from_start_to_end(model, prefix, monkeypatch, strategy):
    held, update = {}, SlotCacheLayer.update

    def recorded(layer, key, value):
        found = update(layer, key, value)
        assert layer.keys.shape == layer.values.shape == (4, 2, prefix.valid.shape[1] + 36, 8)
        held.setdefault(id(layer), set()).add((layer.keys.data_ptr(), layer.values.data_ptr()))
        assert found[0].data_ptr() == layer.keys.data_ptr()  # what attention reads is the cache itself
        return found

    monkeypatch.setattr(SlotCacheLayer, "update", recorded)
    tokens_of(model, prefix, strategy)
    assert [len(places) for places in held.values()] == [1, 1]  # two layers, neither of which ever moved


def test_the_users_attention_is_never_switched(model, prefix, monkeypatch):
    """Neither in passes, nor where what runs is the user's own code, nor after a failure of it."""
    implementations, own = [], model.decoder.config._attn_implementation
    whole = model.decoder.layers[1].forward

    def seen(*args, **kwargs):
        implementations.append(model.decoder.config._attn_implementation)
        if len(implementations) == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(model.decoder.layers[1], "forward", seen)
    before = [dict(vars(part)) for part in model.model.modules()]
    with pytest.raises(KeyboardInterrupt):
        tokens_of(model, prefix)
    assert implementations == [own] * 3
    assert [dict(vars(part)) for part in model.model.modules()] == before


def test_code_of_the_user_that_takes_no_masks_is_refused(model, prefix, monkeypatch):
    monkeypatch.setattr(model.decoder.layers[1], "forward", model.decoder.layers[0].forward)
    monkeypatch.setattr(model.decoder.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(zipar.ZipARError, match=r"flash_attention_2.*takes no masks.*sdpa"):
        tokens_of(model, prefix)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_tokens_do_not_depend_on_the_users_attention(model, prefix, greedy, implementation):
    network = copy.deepcopy(model.model)
    network.set_attn_implementation(implementation)
    assert tokens_of(Janus(network), prefix).equal(greedy)


def test_layers_on_disk(janus_directory, tmp_path, greedy):
    pytest.importorskip("accelerate")
    from transformers import JanusForConditionalGeneration, JanusProcessor

    places = {"model.language_model.layers.1": "disk", "model.language_model.embed_tokens": "disk"}
    rest = ["model.language_model.layers.0", "model.language_model.norm", "model.language_model.rotary_emb"]
    rest += ["model.vision_model", "model.aligner", "model.vqmodel", "lm_head"]
    rest += [f"model.generation_{part}" for part in ("embeddings", "aligner", "head")]
    network = JanusForConditionalGeneration.from_pretrained(
        janus_directory, device_map=places | dict.fromkeys(rest, "cpu"), offload_folder=tmp_path
    )
    assert network.get_input_embeddings().weight.device.type == "meta"  # until it is used
    mapped = Janus(network, JanusProcessor.from_pretrained(janus_directory))
    assert mapped.device == torch.device("cpu")
    found = zipar.Pipeline(mapped)(PROMPTS, strategy=ZipAR(2), temperature=0)
    assert found.tokens.reshape(2, -1).tolist() == greedy.tolist()
