"""Generation of transformers with ours underneath, against its own."""

import copy
import functools
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    GenerationConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteriaList,
)

import zipar
from zipar import Raster, Sampling, ZipAR, ZipARError
from zipar.integrations.families import JanusFamily

IMAGE = {"generation_mode": "image", "do_sample": False}


@pytest.fixture(scope="module")
def loaded(janus_directory):
    return JanusForConditionalGeneration.from_pretrained(janus_directory)


@pytest.fixture
def model(loaded):
    """The same model for all, and a generation config for each."""
    own = loaded.generation_config
    loaded.generation_config = copy.deepcopy(own)
    yield loaded
    loaded.generation_config = own
    assert "generate" not in vars(loaded)


@pytest.fixture(scope="module")
def inputs(janus_directory):
    processor = JanusProcessor.from_pretrained(janus_directory)
    texts = ["User: a red fox in the snow Assistant:", "User: birds Assistant:"]
    return dict(processor(text=texts, generation_mode="image", padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def greedy(loaded, inputs):
    return loaded.generate(**inputs, **IMAGE)


@pytest.fixture
def decodings(monkeypatch):
    """What the engine was asked for, call by call; it answers at once."""
    asked = []

    def decode(visual, prefix, grid, strategy, sampling, seeds, **settings):
        asked.append((prefix, strategy, sampling, seeds))
        return type("Decoded", (), {"tokens": torch.zeros(len(seeds), grid.slots, dtype=torch.int64)})

    monkeypatch.setattr("zipar.models.decodings.decode", decode)
    return asked


def test_images_are_those_of_the_model_in_the_block_and_outside(model, inputs, greedy):
    with zipar.accelerate(model, Raster()) as accelerated:
        assert accelerated is model
        found = model.generate(**inputs, **IMAGE)
        assert vars(model)["generate"]
    assert found.equal(greedy)
    assert (found.dtype, found.device) == (greedy.dtype, greedy.device)
    assert "generate" not in vars(model)
    assert model.generate(**inputs, **IMAGE).equal(greedy)


def test_a_strategy_other_than_raster_makes_other_images_of_the_same_shape(model, inputs, greedy):
    with zipar.accelerate(model, ZipAR(1)):
        found = model.generate(**inputs, **IMAGE)
    assert found.shape == greedy.shape
    assert not found.equal(greedy)


def test_it_can_be_undone_in_order(model, decodings, inputs):
    outer = zipar.accelerate(model, Raster())
    inner = zipar.accelerate(model)
    model.generate(**inputs, **IMAGE)
    inner.undo()
    inner.undo()  # once more does nothing
    model.generate(**inputs, **IMAGE)
    assert [asked[1] for asked in decodings] == [zipar.DEFAULT, Raster()]
    outer.undo()
    assert "generate" not in vars(model)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_it_can_be_undone_in_any_order(model, decodings, inputs, order):
    handles = [zipar.accelerate(model, ZipAR(window)) for window in range(3, 6)]
    for undone, number in enumerate(order):
        handles[number].undo()
        left = set(order[undone + 1 :])
        if left:
            model.generate(**inputs, **IMAGE)
            assert decodings.pop()[1] == ZipAR(3 + max(left))
    assert "generate" not in vars(model)


def test_what_wraps_an_acceleration_paints_as_the_model_once_it_is_undone(model, decodings, inputs, greedy):
    handle = zipar.accelerate(model)
    model.generate = functools.partial(model.generate)
    handle.undo()
    assert model.generate(**inputs, **IMAGE).equal(greedy)
    assert not decodings
    del model.generate


@pytest.mark.parametrize("masked", [True, False])
def test_padding_after_a_prompt_is_refused(model, decodings, inputs, masked):
    ids, mask = inputs["input_ids"].clone(), inputs["attention_mask"].clone()
    padding = int((mask[1] == 0).sum())
    assert padding
    ids[1], mask[1] = ids[1].roll(-padding), mask[1].roll(-padding)
    arguments = {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids}
    with (
        zipar.accelerate(model),
        pytest.raises(ZipARError, match="padding after the tokens of a prompt: pad on the left"),
    ):
        model.generate(**arguments, **IMAGE)
    with pytest.raises(ZipARError, match="pad on the left"):
        model.generate(**arguments, custom_generate=zipar.generate, image_guidance_scale=5.0)
    assert not decodings


def test_a_prompt_and_an_image_beyond_the_last_position_are_refused(model, decodings, inputs, monkeypatch):
    longest = int(inputs["attention_mask"].sum(1).max())
    config = model.config.text_config
    monkeypatch.setattr(config, "max_position_embeddings", longest + 36)
    with zipar.accelerate(model):
        model.generate(**inputs, **IMAGE)
        assert decodings.pop()
        monkeypatch.setattr(config, "max_position_embeddings", longest + 35)
        with pytest.raises(ZipARError, match=f"of {longest} tokens leaves no room .* this Janus reads {longest + 35}"):
            model.generate(**inputs, **IMAGE)
    assert not decodings


@pytest.mark.parametrize(
    ("strategy", "expected"), [("raster", Raster()), ("zipar:3:2", ZipAR(3, 2)), (None, zipar.DEFAULT)]
)
def test_strategies_may_be_named(model, decodings, inputs, strategy, expected):
    with zipar.accelerate(model, strategy):
        model.generate(**inputs, **IMAGE)
    model.generate(**inputs, do_sample=False, custom_generate=zipar.generate, strategy=strategy, image_guidance_scale=5)
    assert [asked[1] for asked in decodings] == [expected] * 2


@pytest.mark.parametrize("strategy", ["fast", 4, ZipAR, [ZipAR()]], ids=str)
def test_what_is_no_strategy_is_refused_at_once(model, strategy):
    with pytest.raises(ZipARError, match="strategy"):
        zipar.accelerate(model, strategy)


class Adapted(torch.nn.Module):
    """What peft's models are like: adapters are in the layers of the model inside."""

    def __init__(self, model, **config):
        super().__init__()
        self.base_model, self.active_peft_config = model, SimpleNamespace(**config)

    def get_base_model(self):
        return self.base_model

    def generate(self, **arguments):
        return self.base_model.generate(**arguments)


def test_a_model_of_peft_is_accelerated_inside(model, decodings, inputs):
    adapted = Adapted(model, is_prompt_learning=False)
    with zipar.accelerate(adapted, Raster()) as given:
        assert given is adapted
        adapted.generate(**inputs, **IMAGE)
    assert [asked[1] for asked in decodings] == [Raster()]
    with pytest.raises(ZipARError, match="learned tokens before the prompt"):
        zipar.accelerate(Adapted(model, is_prompt_learning=True))


def test_adapters_of_peft_count(loaded, inputs, greedy):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(loaded), lora).eval()
    own = adapted.generate(**inputs, **IMAGE)
    assert not own.equal(greedy)
    with zipar.accelerate(adapted, Raster()):
        assert adapted.generate(**inputs, **IMAGE).equal(own)
        with adapted.disable_adapter():
            assert adapted.generate(**inputs, **IMAGE).equal(greedy)
    assert "generate" not in vars(adapted.get_base_model())


def test_a_failure_in_the_block_undoes_it(model):
    with pytest.raises(KeyError), zipar.accelerate(model):
        raise KeyError
    assert "generate" not in vars(model)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}], ids=str)
def test_text_generation_is_left_as_it_is(model, inputs, settings):
    def written():
        torch.manual_seed(4)
        return model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, output_logits=True, **settings)

    own, implementation = written(), model.config.text_config._attn_implementation
    seen = set()
    layer = model.model.language_model.layers[0]
    hook = layer.register_forward_hook(lambda *_: seen.add(model.config.text_config._attn_implementation))
    with zipar.accelerate(model):
        model.generate(**inputs, **IMAGE)
        found = written()
    assert seen == {implementation}  # ours is used beside it
    hook.remove()
    assert found.sequences.equal(own.sequences)
    assert torch.stack(found.logits).equal(torch.stack(own.logits))


def test_arguments_may_be_given_by_position(model, inputs, greedy):
    with zipar.accelerate(model, Raster()):
        assert model.generate(inputs["input_ids"], inputs["attention_mask"], **IMAGE).equal(greedy)


def test_a_missing_mask_is_inferred_from_padding(model, inputs, greedy):
    with zipar.accelerate(model, Raster()):
        assert model.generate(inputs["input_ids"], **IMAGE).equal(greedy)


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        ({}, {}, Sampling(5.0, temperature=0)),
        ({}, {"do_sample": True}, Sampling(5.0, 1.0, top_k=50)),  # transformers' own default
        ({"do_sample": True, "temperature": 0.8, "top_k": 9}, {}, Sampling(5.0, 0.8, top_k=9)),
        ({"do_sample": True, "temperature": 0.8}, {"temperature": 1.5, "top_k": 0}, Sampling(5.0, 1.5)),
        ({"do_sample": True}, {"do_sample": False}, Sampling(5.0, temperature=0)),
        ({}, {"do_sample": True, "top_k": 0, "top_p": 0.7, "guidance_scale": 2.5}, Sampling(2.5, 1.0, 0, 0.7)),
        ({"min_p": 0.2}, {"do_sample": True, "top_k": 0}, Sampling(5.0, 1.0, min_p=0.2)),
        ({"guidance_scale": 3.0}, {}, Sampling(3.0, temperature=0)),
        ({"guidance_scale": 3.0}, {"guidance_scale": None}, Sampling(5.0, temperature=0)),
        ({}, {"guidance_scale": 1.0}, Sampling(1.0, temperature=0)),
        (
            {"temperature": 0.8, "top_k": 9, "top_p": 0.7},
            {"do_sample": True, "temperature": None, "top_k": None, "top_p": None},
            Sampling(5.0, 1.0),
        ),
        (
            {"top_p": 0.5},
            {"generation_config": GenerationConfig(do_sample=True, top_k=3)},
            Sampling(5.0, 1.0, 3, 0.5),
        ),
        ({}, {"max_new_tokens": 3}, Sampling(5.0, temperature=0)),  # an image has its length, as with Janus's own
        ({"max_length": 5}, {"use_cache": True}, Sampling(5.0, temperature=0)),
    ],
    ids=str,
)
def test_arguments_are_resolved_as_transformers_does(model, decodings, inputs, config, arguments, expected):
    model.generation_config.update(**config)
    with zipar.accelerate(model, Raster()):
        assert model.generate(**inputs, generation_mode="image", **arguments).shape == (2, 36)
    ((prefix, strategy, sampling, seeds),) = decodings
    assert (strategy, sampling) == (Raster(), expected)
    assert len(prefix.valid) == (4 if sampling.guided else 2)
    assert len(set(seeds)) == (2 if sampling.temperature else 1)


def test_the_prefix_follows_the_given_tokens(model, decodings, inputs):
    with zipar.accelerate(model):
        model.generate(**inputs, **IMAGE, pad_token_id=9)
    unconditional = model.get_input_embeddings()(torch.tensor([1, *[9] * 5, 4]))
    assert decodings[0][0].embeddings[3, -7:].equal(unconditional)


def test_images_of_one_prompt_lie_side_by_side(model, inputs, greedy):
    with zipar.accelerate(model, Raster()):
        found = model.generate(**inputs, generation_mode="image", do_sample=True, top_k=1, num_return_sequences=2)
    assert found.equal(greedy.repeat_interleave(2, 0))


def test_sampling_follows_torchs_global_seed(model, inputs):
    def drawn(seed):
        torch.manual_seed(seed)
        return model.generate(**inputs, generation_mode="image", do_sample=True)

    with zipar.accelerate(model):
        first = drawn(1)
        assert drawn(1).equal(first)
        assert not drawn(2).equal(first)
        state = torch.get_rng_state()
        assert not model.generate(**inputs, generation_mode="image", do_sample=True).equal(drawn(2))
        torch.set_rng_state(state)
        model.generate(**inputs, **IMAGE)
        assert torch.get_rng_state().equal(state)  # greedy decoding draws nothing, as transformers'


def test_a_dictionary_holds_the_sequences(model, inputs, greedy):
    own = model.generate(**inputs, **IMAGE, return_dict_in_generate=True)
    with zipar.accelerate(model, Raster()):
        found = model.generate(**inputs, **IMAGE, return_dict_in_generate=True)
    assert type(found) is type(own)
    assert found.sequences.equal(greedy)


def test_what_comes_after_generate_needs_no_change(model, inputs):
    with zipar.accelerate(model):
        found = model.generate(**inputs, **IMAGE)
    pixels = model.decode_image_tokens(found)
    assert pixels.shape == (2, 12, 12, 3)
    pixels.sum().backward()  # tensors made in inference mode could not be used here
    found += 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 2),
        ("typical_p", 0.5),
        ("repetition_penalty", 1.2),
        ("bad_words_ids", [[3]]),
        ("suppress_tokens", [3]),
        ("min_new_tokens", 4),
        ("max_time", 9.0),
        ("output_scores", True),
        ("output_logits", True),
        ("output_attentions", True),
        ("output_hidden_states", True),
        ("renormalize_logits", True),
        ("streamer", object()),
        ("assistant_model", object()),
        ("stopping_criteria", StoppingCriteriaList([object()])),
        ("logits_processor", LogitsProcessorList([MinPLogitsWarper(0.1)])),
        ("prefix_allowed_tokens_fn", lambda *_: [1]),
        ("negative_prompt_ids", torch.ones(2, 3, dtype=torch.int64)),
        ("custom_generate", zipar.generate),
        ("pixel_values", torch.zeros(2, 3, 12, 12)),
        ("inputs_embeds", torch.zeros(2, 3, 32)),
        ("position_ids", torch.zeros(2, 12, dtype=torch.int64)),
        ("cache", object()),
        ("past_key_values", object()),
    ],
)
def test_what_cannot_be_honoured_is_named(model, decodings, inputs, name, value):
    with zipar.accelerate(model), pytest.raises(ZipARError, match=rf"^{name} \(.*cannot be honoured"):
        model.generate(**inputs, generation_mode="image", **{"do_sample": True, name: value})
    assert not decodings


@pytest.mark.parametrize(
    "arguments", [{"no_such_argument": 1}, {"num_return_sequences": 2, "do_sample": False}], ids=str
)
def test_what_transformers_refuses_is_still_refused(model, inputs, arguments):
    for accelerated in False, True:
        handle = zipar.accelerate(model) if accelerated else None
        with pytest.raises(ValueError, match=r"no_such_argument|num_return_sequences"):
            model.generate(**inputs, generation_mode="image", **arguments)
        if handle:
            handle.undo()


def test_custom_generate_reaches_janus_in_text_mode(model, decodings, inputs):
    model.generate(**inputs, custom_generate=zipar.generate)
    model.generate(**inputs, custom_generate=zipar.generate, strategy=Raster(), image_guidance_scale=2.0)
    model.generate(
        **inputs, custom_generate=functools.partial(zipar.generate, strategy=ZipAR(9)), do_sample=True, top_p=0.9
    )
    expected = [Sampling(5.0, temperature=0), Sampling(2.0, temperature=0), Sampling(5.0, 1.0, 50, 0.9)]
    assert [asked[2] for asked in decodings] == expected
    assert [asked[1] for asked in decodings] == [zipar.DEFAULT, Raster(), ZipAR(9)]


def test_custom_generate_makes_the_models_own_images(model, inputs, greedy):
    assert model.generate(**inputs, custom_generate=zipar.generate, strategy=Raster()).equal(greedy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("typical_p", 0.5),
        ("stopping_criteria", StoppingCriteriaList([lambda *_, **__: True])),
        ("position_ids", torch.zeros(2, 12, dtype=torch.int64)),
        ("pixel_values", torch.zeros(2, 3, 12, 12)),
    ],
)
def test_custom_generate_names_what_it_cannot_honour(model, decodings, inputs, name, value):
    with pytest.raises(ZipARError, match=rf"^{name} \(.*cannot be honoured"):
        model.generate(**inputs, custom_generate=zipar.generate, **{"do_sample": True, name: value})


def test_custom_generate_names_positions_without_padding_too(model, decodings, inputs):
    ids = inputs["input_ids"][:1]
    model.generate(ids, custom_generate=zipar.generate, position_ids=torch.arange(ids.shape[1])[None])
    for positions in torch.zeros_like(ids), torch.arange(3)[None]:
        with pytest.raises(ZipARError, match=r"^position_ids \("):
            model.generate(ids, custom_generate=zipar.generate, position_ids=positions)
    assert len(decodings) == 1


def test_janus_has_no_custom_generate_in_image_mode(model, inputs):
    """If transformers comes to accept one there, ``image_guidance_scale`` can go."""
    with pytest.raises(ValueError, match="custom_generate"):
        model.generate(**inputs, **IMAGE, custom_generate=zipar.generate)


def test_models_of_other_classes_are_named():
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    for other in LlamaForCausalLM(config), torch.nn.Linear(1, 1):
        with pytest.raises(ZipARError, match=rf"^{type(other).__name__} is no model.*of type janus"):
            zipar.accelerate(other)


def test_the_example_of_the_readme(janus_directory):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n((?:(?!```).)*zipar\.accelerate.*?)```", readme, flags=re.DOTALL)
    scope = {}
    exec(re.sub(r'"[\w-]+/Janus[\w.-]+"', repr(str(janus_directory)), example), scope)
    assert scope["tokens"].shape == (1, 36)
    assert scope["pixels"].shape == (1, 12, 12, 3)


def test_families_say_what_is_an_image(model):
    family = JanusFamily()
    assert family.wanted(model, {"generation_mode": "image"})
    assert not family.wanted(model, {"generation_mode": "text"})
    assert not family.wanted(model, {})
