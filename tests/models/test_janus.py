"""Janus against the generation of transformers itself, and against a decoder with no cache and no plan."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ClassifierFreeGuidanceLogitsProcessor,
    GenerationConfig,
    JanusConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import zipar
from zipar import Raster, Sampling, TokenGrid, ZipAR, ZipARError
from zipar.decoding.engine import decode
from zipar.decoding.sampling import gumbel
from zipar.models import auto
from zipar.models.janus import Janus

PROMPTS = ["a red fox in the snow", "birds"]
SEEDS = [3, 8]


@pytest.fixture(scope="module")
def model(janus_directory):
    return auto.load(janus_directory, device="cpu")


@pytest.fixture(scope="module")
def pipe(model):
    return zipar.Pipeline(model)


@pytest.fixture(scope="module")
def inputs(model):
    """Of the prompts, as the documentation of transformers makes them, but with the template by hand."""
    texts = [f"User: {prompt} Assistant:" for prompt in PROMPTS]
    return model.processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def greedy(model, inputs):
    return model.model.generate(**inputs, generation_mode="image", do_sample=False)


class Noise(LogitsProcessor):
    """Turns greedy generation into sampling with the noise of our seeds."""

    def __init__(self):
        self.slot = -1

    def __call__(self, input_ids, scores):
        self.slot += 1
        return scores + gumbel(torch.tensor(SEEDS), torch.tensor([[self.slot]]), scores.shape[-1])[:, 0]


@pytest.mark.parametrize("strategy", [Raster(), ZipAR(6)], ids=["raster", "as wide as the grid"])
def test_greedy_tokens_are_those_of_transformers(pipe, inputs, greedy, strategy):
    assert not inputs["attention_mask"].all()  # prompts of different lengths
    assert len(greedy.unique()) > 10
    found = pipe(PROMPTS, strategy=strategy, temperature=0)
    assert found.tokens.reshape(2, -1).tolist() == greedy.tolist()
    assert found.stats.forward_passes == 36


def test_sampled_tokens_are_those_of_transformers_with_our_noise(model, pipe, inputs):
    filters = [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)]
    processors = LogitsProcessorList([ClassifierFreeGuidanceLogitsProcessor(3.0), *filters, Noise()])
    expected = model.model.generate(
        **inputs, generation_mode="image", do_sample=False, guidance_scale=1.0, logits_processor=processors
    )
    asked = {"guidance_scale": 3.0, "temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05}
    found = pipe(PROMPTS, strategy=Raster(), seed=SEEDS, **asked).tokens.reshape(2, -1)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("strategy", "window", "alone"),
    [(ZipAR(2), 2, True), (ZipAR(4), 4, True), (ZipAR(2, first_row="wave"), 2, False)],
    ids=["window 2", "window 4", "window 2, wave"],
)
def test_equals_the_brute_force_decoder(model, brute_force, strategy, window, alone):
    grid, sampling, decoder = TokenGrid(6, 6), Sampling(5.0, temperature=0), model.model.model.language_model
    with torch.inference_mode():
        prefix = model.prefix(PROMPTS, None, True, grid)
        decoded = decode(model, prefix, grid, strategy, sampling, SEEDS)
        for image, seed in enumerate(SEEDS):
            prefixes = [prefix.embeddings[row][prefix.valid[row]] for row in (image, image + 2)]
            given = (prefixes, grid, sampling, seed, window, alone)
            expected = brute_force(decoder, model.embed, model.logits, *given)
            assert (decoded.tokens[image].tolist(), decoded.forward_passes) == expected


def embedded(model, rows):
    return model.decoder.embed_tokens(torch.tensor(rows))


def test_the_unconditional_branch_keeps_begin_of_sequence_and_of_image_and_attends_to_padding(model, inputs):
    prefix = model.prefix(PROMPTS, None, True, TokenGrid(6, 6))
    valid = inputs["attention_mask"].bool()
    assert torch.equal(prefix.valid, torch.cat([valid, valid]))
    length = valid.shape[1]
    unconditional = [[1, *[0] * (length - 2), 4], [*[0] * (length - 7), 1, *[0] * 5, 4]]
    assert valid.sum(1).tolist() == [length, 7]
    assert torch.equal(prefix.embeddings, embedded(model, [*inputs["input_ids"].tolist(), *unconditional]))
    alone = model.prefix(PROMPTS, None, False, TokenGrid(6, 6))
    assert torch.equal(alone.embeddings, prefix.embeddings[:2])


def test_a_negative_prompt_takes_the_unconditional_branch(model):
    grid = TokenGrid(6, 6)
    prefix = model.prefix(PROMPTS, ["blurry", "a fox"], True, grid)
    for row, prompt in enumerate([*PROMPTS, "blurry", "a fox"]):
        alone = model.prefix([prompt], None, False, grid)
        assert torch.equal(prefix.embeddings[row][prefix.valid[row]], alone.embeddings[0])


def test_a_negative_prompt_without_guidance_is_an_error(pipe):
    with pytest.raises(ZipARError, match="negative prompt does nothing"):
        pipe(PROMPTS[0], negative_prompt="blurry", guidance_scale=1)


def test_an_image_depends_on_its_prompt_and_seed_alone(pipe):
    together = pipe(PROMPTS, seed=[5, 6, 7, 8], num_images_per_prompt=2)
    assert together.tokens.shape == (4, 6, 6)
    assert len(np.unique(together.tokens.reshape(4, -1), axis=0)) == 4
    for image in range(4):
        alone = pipe(PROMPTS[image // 2], seed=5 + image)
        assert (alone.tokens[0] == together.tokens[image]).all()
    other = pipe(PROMPTS, seed=[5, 6, 7, 8], num_images_per_prompt=2, negative_prompt="blurry")
    assert (other.tokens != together.tokens).any()


def test_images_are_what_the_processor_makes_of_the_decoded_tokens(model, pipe):
    output = pipe(PROMPTS, seed=1)
    pixels = model.model.decode_image_tokens(torch.from_numpy(output.tokens).long().flatten(1))
    channels_first = list(pixels.detach().permute(0, 3, 1, 2).float())  # the one order that its PIL version reads
    expected = model.processor.postprocess(channels_first, return_tensors="PIL.Image.Image")["pixel_values"]
    for image, wanted in zip(output.images, expected, strict=True):
        assert image.size == (12, 12)
        assert np.abs(np.asarray(image, int) - np.asarray(wanted, int)).max() <= 1  # their rounding is in float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(janus_directory, dtype):
    pipe = zipar.pipeline(janus_directory, dtype=dtype, device="cpu")
    assert pipe.model.dtype == dtype
    assert not any(weight.requires_grad for weight in pipe.model.parameters())
    tokens = pipe(PROMPTS, seed=1).tokens
    assert ((tokens >= 0) & (tokens < 50)).all()


def test_the_authors_defaults_hold_unless_the_checkpoint_says_otherwise(model):
    assert model.defaults == Sampling(guidance_scale=5.0)
    network, own = model.model, model.model.generation_config
    try:
        network.generation_config = GenerationConfig(guidance_scale=3.0, top_k=7, top_p=0.8, min_p=0.1)
        assert Janus(network).defaults == Sampling(guidance_scale=3.0, top_k=7, top_p=0.8, min_p=0.1)
        network.generation_config = GenerationConfig()
        assert Janus(network).defaults == Sampling(guidance_scale=5.0)
        network.generation_config = GenerationConfig(do_sample=False)
        assert Janus(network).defaults == Sampling(guidance_scale=5.0, temperature=0)
    finally:
        network.generation_config = own


def test_published_sizes_make_24_by_24_tokens(tmp_path):
    JanusConfig(text_config={"num_hidden_layers": 1}).save_pretrained(tmp_path)
    model = auto.family(tmp_path).outline(tmp_path)
    assert model.image_size == (384, 384)
    assert model.grid(384, 384) == TokenGrid(24, 24)


def test_other_sizes_and_a_missing_processor_are_errors(model):
    with pytest.raises(ZipARError, match=r"no images of 12x16 pixels.*12x12 alone"):
        model.grid(12, 16)
    with pytest.raises(ZipARError, match="no processor to read prompts"):
        Janus(model.model).prefix(["fox"], None, True, TokenGrid(6, 6))


def test_the_unconditional_branch_needs_its_tokens(model, inputs):
    lacking = GenerationConfig(bos_token_id=1, pad_token_id=0)
    with pytest.raises(ZipARError, match=r"lacks .*boi_token_id"):
        model.guided_prompt(inputs["input_ids"], inputs["attention_mask"].bool(), lacking)


def _remove(*names):
    def damage(directory):
        for name in names:
            (directory / name).unlink()

    return damage


def _truncate(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _drop_a_tensor(directory):
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.generation_head.vision_head.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _change(name, *path, value):
    def damage(directory):
        config = json.loads((directory / name).read_text())
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (directory / name).write_text(json.dumps(config))

    return damage


def _garble(name):
    return lambda directory: (directory / name).write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("tokenizer.json"), "holds no tokenizer"),
        (_remove("processor_config.json"), "holds no JanusProcessor that can be read"),
        (_remove("chat_template.jinja"), "holds no chat template"),
        (_garble("tokenizer.json"), "holds no JanusProcessor that can be read"),
        (_garble("processor_config.json"), "holds no JanusProcessor that can be read"),
        (_remove("model.safetensors"), "holds no JanusForConditionalGeneration that can be read"),
        (_truncate, "holds no JanusForConditionalGeneration that can be read"),
        (_drop_a_tensor, r"lacks 1 tensors.*model\.generation_head\.vision_head\.weight"),
        (
            _change("config.json", "text_config", "hidden_size", value=64),
            r"is of shape \([\d, ]+\), but should be \([\d, ]*64",
        ),
        (_change("config.json", "vision_config", "num_image_tokens", value=30), "a Janus of 30 tokens an image"),
    ],
)
def test_damaged_and_incomplete_checkpoints_are_named(janus_directory, tmp_path, damage, message):
    directory = shutil.copytree(janus_directory, tmp_path / "janus")
    damage(directory)
    with pytest.raises(ZipARError, match=message):
        auto.load(directory, device="cpu")


def test_code_of_a_checkpoint_is_never_run(janus_directory, tmp_path):
    directory = shutil.copytree(janus_directory, tmp_path / "janus")
    ran = tmp_path / "ran"
    (directory / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    auto_classes = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    auto_classes |= {"AutoProcessor": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    for name in "config.json", "processor_config.json", "tokenizer_config.json":
        _change(name, "auto_map", value=auto_classes)(directory)
    _change("processor_config.json", "image_processor", "auto_map", value=auto_classes)(directory)
    model = auto.load(directory, device="cpu")
    assert not ran.exists()
    assert type(model.model).__name__ == "JanusForConditionalGeneration"
