"""GLM-Image with ours underneath, against the generation of transformers."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import (
    GlmImageForConditionalGeneration,
    GlmImageProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import zipar
from zipar import CoupledJacobi, Raster, ZipAR, ZipARError
from zipar.decoding.sampling import NEXT, gumbel

CODES, END = 64, 65
LARGE, SMALL = (4, 5), (3, 4)
LENGTH = 4 * 5 + 3 * 4
SEED = 7


@pytest.fixture(scope="module")
def processor(glm_directory):
    return GlmImageProcessor.from_pretrained(glm_directory / "processor")


@pytest.fixture(scope="module")
def model(glm_directory):
    return GlmImageForConditionalGeneration.from_pretrained(glm_directory / "vision_language_encoder")


def asked(processor, images=None, texts=("a red fox in the snow", "bird")):
    pictures = [[{"type": "image", "image": image} for image in each] for each in images or [[]] * len(texts)]
    messages = [
        [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
        for shown, text in zip(pictures, texts, strict=True)
    ]
    size = {"target_h": 32 * LARGE[0], "target_w": 32 * LARGE[1]}
    made = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True}
    return dict(processor.apply_chat_template(messages, **made, **size))


@pytest.fixture(scope="module")
def inputs(processor):
    """Two prompts of different lengths, and grids smaller than the processor asks for, which are as well."""
    made = asked(processor)
    assert made["image_grid_thw"].tolist() == [[1, *LARGE], [1, 14, 17]] * 2
    made["image_grid_thw"] = torch.tensor([[1, *LARGE], [1, *SMALL]] * 2)
    assert not made["attention_mask"].all()
    return made | {"max_new_tokens": LENGTH + 1, "do_sample": False}


@pytest.fixture(scope="module")
def pictured(processor):
    """Two prompts with two images each."""
    shapes = ([(24, 16), (20, 20)], [(16, 28), (24, 16)])
    colors = iter(["red", "blue", "green", "white"])
    made = asked(processor, [[Image.new("RGB", shape, next(colors)) for shape in each] for each in shapes])
    assert made["images_per_sample"].tolist() == [3, 3]
    assert len(made["image_grid_thw"].unique(dim=0)) == 4
    return made | {"max_new_tokens": LARGE[0] * LARGE[1] + 1, "do_sample": False}


class Codes(LogitsProcessor):
    """Codes alone are possible."""

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.arange(CODES, scores.shape[1]), -torch.inf)


class Noise(LogitsProcessor):
    """Turns greedy generation into sampling with the noise of our seeds."""

    def __init__(self, seeds):
        self.seeds, self.slot = torch.tensor(seeds), -1

    def __call__(self, input_ids, scores):
        self.slot += 1
        small = SMALL[0] * SMALL[1]
        large = self.slot >= small  # with seeds of its own
        seeds, slot = self.seeds + large * (NEXT - 2**64), self.slot - large * small
        noise = gumbel(seeds, torch.tensor([[slot]]), CODES)[:, 0]
        return scores + torch.nn.functional.pad(noise, (0, scores.shape[1] - CODES))


def own_images(model, inputs, *processors):
    """What the model itself writes, codes alone."""
    own = copy.deepcopy(model)  # it remembers positions
    return own.generate(**inputs, logits_processor=LogitsProcessorList([Codes(), *processors]))


@pytest.fixture(scope="module")
def greedy(model, inputs):
    found = own_images(model, inputs)
    assert len(found[:, -LENGTH:].unique()) > 10
    return found


def test_images_are_those_of_the_model(model, inputs, greedy, passes):
    with zipar.accelerate(model, Raster()) as accelerated:
        assert accelerated is model
        found = model.generate(**inputs)
    assert found[:, :-1].equal(greedy[:, :-1])
    assert found[:, -1].tolist() == [END] * 2
    assert "generate" not in vars(model)
    again = model.generate(**inputs, custom_generate=zipar.generate, strategy="raster", return_dict_in_generate=True)
    assert again.sequences.equal(found)
    assert passes == [12, 20] * 2


def test_it_is_the_model_itself_that_writes_so(model, inputs, greedy):
    """Without a constraint: of the tiny model, no other token is the likeliest."""
    assert copy.deepcopy(model).generate(**inputs)[:, :-1].equal(greedy[:, :-1])


def test_images_of_images_are_those_of_the_model(model, pictured, passes):
    own = own_images(model, pictured)
    for chosen in Raster(), CoupledJacobi(16), ZipAR(5):
        with zipar.accelerate(model, chosen):
            assert model.generate(**pictured)[:, :-1].equal(own[:, :-1])
    assert len(passes) == 3


def test_sampled_images_are_those_of_the_model_with_our_noise(model, inputs):
    torch.manual_seed(SEED)
    seeds = torch.randint(2**63 - 1, (2,)).tolist()
    filters = [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9)]
    own = own_images(model, inputs, *filters, Noise(seeds))
    sampled = inputs | {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9}
    for chosen in Raster(), CoupledJacobi(16):
        torch.manual_seed(SEED)
        with zipar.accelerate(model, chosen):
            assert model.generate(**sampled)[:, :-1].equal(own[:, :-1])


@pytest.mark.parametrize(("strategy", "expected"), [("zipar:2", [2 * 4 + 2, 2 * 5 + 2 * 2]), ("zipar:4:8", None)])
def test_strategies_take_fewer_passes(model, inputs, greedy, passes, strategy, expected):
    with zipar.accelerate(model, strategy):
        together = model.generate(**inputs)
        assert together.shape == greedy.shape
        for image in range(2):
            seen = inputs["attention_mask"][image].bool()
            alone = {"input_ids": inputs["input_ids"][image : image + 1, seen], "max_new_tokens": LENGTH + 1}
            alone |= {"image_grid_thw": inputs["image_grid_thw"][:2], "do_sample": False}
            found = model.generate(**alone)  # without images_per_sample, too
            assert found[0, seen.sum() :].equal(together[image, len(seen) :])
    assert passes[:2] == expected if expected else sum(passes[:2]) < LENGTH
    assert bool((together[:, -LENGTH - 1 : -1] < CODES).all())


def test_greedy_jacobi_gives_the_images_of_the_model(model, inputs, greedy, passes):
    with zipar.accelerate(model, "jacobi:16"):
        assert model.generate(**inputs)[:, :-1].equal(greedy[:, :-1])
    assert sum(passes) <= LENGTH


def test_no_image_ends_early(model, inputs):
    eager = copy.deepcopy(model)
    with torch.no_grad():
        eager.lm_head.weight[END] = 100 * eager.lm_head.weight[:CODES].mean(0)
    for sign in 1, -1:
        with torch.no_grad():
            eager.lm_head.weight[END] *= sign
        ended = eager.generate(**inputs)
        with zipar.accelerate(eager):
            found = eager.generate(**inputs)
        assert found.shape == (2, inputs["input_ids"].shape[1] + LENGTH + 1)
        if bool((ended[:, -LENGTH - 1 : -1] == END).any()):
            return
    pytest.fail("the model itself does not end early")


def test_the_length_asked_for_cuts(model, inputs, greedy):
    with zipar.accelerate(model, Raster()):
        found = model.generate(**inputs | {"max_new_tokens": 15})
    assert found.equal(greedy[:, : inputs["input_ids"].shape[1] + 15])


SEVERAL = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}


def test_images_of_one_prompt_lie_side_by_side(model, inputs):
    with zipar.accelerate(model, Raster()):
        single = model.generate(**inputs)
        assert model.generate(**inputs | SEVERAL).equal(single.repeat_interleave(2, 0))


def test_several_images_of_images_where_transformers_can(model, pictured):
    try:
        own = own_images(model, pictured | SEVERAL)
    except (ValueError, RuntimeError):
        own = None
    with zipar.accelerate(model, Raster()):
        if own is not None:
            assert model.generate(**pictured | SEVERAL)[:, :-1].equal(own[:, :-1])
            return
        message = r"num_return_sequences \(2\) cannot be honoured with images|split_with_sizes"  # transformers' own
        with pytest.raises((ZipARError, RuntimeError), match=message):
            model.generate(**pictured | SEVERAL)


def test_grids_repeated_as_older_versions_do(model, inputs, monkeypatch):
    """Those of a prompt together."""
    kind, expand = GlmImageForConditionalGeneration, GlmImageForConditionalGeneration._expand_inputs_for_generation

    def expanded(self, image_grid_thw, **settings):
        ids, others = expand(self, image_grid_thw=image_grid_thw, **settings)
        grids = image_grid_thw.view(2, 2, 3).repeat_interleave(2, 0).flatten(0, 1)
        return ids, others | {"image_grid_thw": grids}

    with zipar.accelerate(model, Raster()):
        single = model.generate(**inputs)
        monkeypatch.setattr(kind, "_expand_inputs_for_generation", expanded)
        found = model.generate(**inputs | SEVERAL)
    assert found.equal(single.repeat_interleave(2, 0))


def test_sampling_follows_torchs_global_seed(model, inputs):
    def drawn(seed):
        torch.manual_seed(seed)
        return model.generate(**inputs | {"do_sample": True})

    with zipar.accelerate(model):
        first = drawn(1)
        assert drawn(1).equal(first)
        assert not drawn(2).equal(first)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"image_grid_thw": None}, "image_grid_thw of type NoneType does not tell"),
        ({"images_per_sample": torch.tensor([3, 2])}, r"image_grid_thw of shape \(4, 3\) does not fit 2 prompts"),
        ({"images_per_sample": torch.tensor([4])}, r"image_grid_thw of shape \(4, 3\) does not fit 2 prompts"),
        ({"image_grid_thw": torch.tensor([[2, 4, 5], [1, 3, 4]] * 2)}, "does not fit 2 prompts"),
        ({"image_grid_thw": torch.tensor([[1, 4, 5], [1, 3, 4], [1, 5, 4], [1, 3, 4]])}, "same grids to decode"),
        ({"guidance_scale": 3.0}, "guidance_scale cannot be honoured"),
        ({"negative_prompt_ids": torch.ones(2, 3, dtype=torch.int64)}, "negative_prompt_ids .* cannot be honoured"),
        ({"num_beams": 2}, r"num_beams \(2\) cannot be honoured"),
        ({"prefix_allowed_tokens_fn": lambda *_: [1]}, "prefix_allowed_tokens_fn .* cannot be honoured"),
        ({"image_grid_thw": torch.tensor([[1, 30, 30], [1, 3, 4]] * 2)}, "leaves no room for an image of 912"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_what_cannot_be_honoured_is_named(model, inputs, others, message):
    with zipar.accelerate(model), pytest.raises(ZipARError, match=message):
        model.generate(**inputs | others)


def test_images_that_do_not_fit_the_prompt_are_named(model, pictured):
    grids = pictured["image_grid_thw"].clone()
    grids[[0, 1]] = grids[[1, 0]]
    ids = pictured["input_ids"].clone()
    ids[0, (ids[0] == model.config.image_token_id).nonzero()[0]] = CODES + 6
    with zipar.accelerate(model):
        with pytest.raises(ZipARError, match=r"image_grid_thw tells of an image of \d x \d tokens"):
            model.generate(**pictured | {"image_grid_thw": grids})
        with pytest.raises(ZipARError, match=r"pixel_values of (\d+) tokens do not fit prompts with room for"):
            model.generate(**pictured | {"input_ids": ids})


def test_a_model_that_is_offloaded_is_brought_back(glm_directory, inputs):
    accelerate = pytest.importorskip("accelerate")
    model = GlmImageForConditionalGeneration.from_pretrained(glm_directory / "vision_language_encoder")
    _, hook = accelerate.cpu_offload_with_hook(model, "cpu")
    calls = []
    model._hf_hook.pre_forward = lambda module, *args, **settings: calls.append(module) or (args, settings)
    with zipar.accelerate(model):
        model.generate(**inputs)
    assert calls == [model]
    hook.remove()


def test_the_stage_of_a_pipeline_is_accelerated(model, inputs, passes):
    pipe = SimpleNamespace(vision_language_encoder=model)
    with zipar.accelerate(pipe, Raster()) as given:
        assert given is pipe
        model.generate(**inputs)
    assert passes == [12, 20]
    with pytest.raises(ZipARError, match=re.escape("Linear is no model of transformers")):
        zipar.accelerate(SimpleNamespace(vision_language_encoder=torch.nn.Linear(1, 1)))
