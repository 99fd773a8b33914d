"""Models whose vocabulary goes on with a codebook: against transformers' generation, and a decoder without cache."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import GemmaForCausalLM, Qwen2ForCausalLM

import zipar
from zipar import Raster, Sampling, ZipAR, ZipARError
from zipar.decoding.engine import decode
from zipar.models import auto

PROMPTS = ["a red fox in the snow", "bird"]
SEEDS = [3, 2**80 + 5]
SIDE, SIZE = 6, (96, 96)
SPOKEN = ["a", "red", "fox", "in", "the", "snow", "bird", "two", "small", "birds", "blurry", "image", "of", "A", "An"]


@dataclass
class Case:
    """What a family's tiny model should do."""

    family: str
    network: type
    special: list[str]
    """The first words of its vocabulary, the last of which stands for any that it does not know."""
    codes: int
    defaults: Sampling
    before: list[str]
    after: list[str]
    """What stands around a prompt, and around a negative one."""
    before_negative: list[str]
    unconditional: list[str]

    @property
    def range(self):
        """The ids of the codes."""
        first = len(self.special) + len(SPOKEN)
        return range(first, first + self.codes)

    def ids(self, words):
        known = [*self.special, *SPOKEN]
        return [known.index(word) if word in known else len(self.special) - 1 for word in words]

    def asked(self, prompt):
        return self.ids([*self.before, *prompt.split(), *self.after])

    def refused(self, prompt):
        return self.ids([*self.before_negative, *prompt.split(), *self.after])


NEGATIVE = (
    "An image of aerial view , overexposed , low quality , deformation , a poor composition , bad hands , bad teeth , "
    "bad eyes , bad limbs , distortion"
)
CASES = {
    "liquid": Case(
        "liquid",
        GemmaForCausalLM,
        ["<pad>", "<eos>", "<bos>", "<boi>", "<eoi>", "<unconditional>", "<unk>"],
        64,
        Sampling(guidance_scale=7.0, temperature=0.99, top_k=4096, top_p=0.96),
        ["<bos>"],
        ["Generate", "an", "image", "based", "on", "this", "description", ".", "<boi>"],
        ["<bos>"],
        ["<bos>", "<unconditional>", "<boi>"],
    ),
    "simplear": Case(
        "simplear",
        Qwen2ForCausalLM,
        ["<|endoftext|>", "<|t2i|>", "<|i2t|>", "<|soi|>", "<unk>"],
        60,
        Sampling(guidance_scale=6.0),
        ["<|t2i|>", "A", "highly", "realistic", "image", "of"],
        ["<|soi|>"],
        ["<|t2i|>"],
        ["<|t2i|>", *NEGATIVE.split(), "<|soi|>"],
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def directory(case, checkpoints):
    return checkpoints(case.family)


@pytest.fixture(scope="module")
def model(directory):
    return auto.load(directory, torch.float32, "cpu")


@pytest.fixture(scope="module")
def network(case, request):
    """What transformers makes of the published directory."""
    published = request.getfixturevalue(f"{case.family}_files") / case.family
    return case.network.from_pretrained(published, dtype=torch.float32)


def decoded(model, strategy, sampling, negative=None):
    grid = model.grid(*SIZE)
    with torch.inference_mode():
        prefix = model.prefix(PROMPTS, negative, sampling.guided, grid)
    return decode(model, prefix, grid, strategy, sampling, SEEDS)


def padded(rows):
    """Token ids and their mask, padded on the left."""
    length = max(map(len, rows))
    ids = [[0] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("negative", [None, ["blurry", "a blurry fox"]], ids=["unconditional", "negative"])
def test_greedy_equals_generate_of_transformers(case, model, network, negative):
    """Its own guidance, over a batch of prompts of different lengths; codes alone are allowed."""
    against = [case.ids(case.unconditional)] * 2 if negative is None else [case.refused(text) for text in negative]
    ids, mask = padded([case.asked(prompt) for prompt in PROMPTS])
    negative_ids, negative_mask = padded(against)
    written = network.generate(
        ids,
        attention_mask=mask,
        negative_prompt_ids=negative_ids,
        negative_prompt_attention_mask=negative_mask,
        guidance_scale=case.defaults.guidance_scale,
        do_sample=False,
        max_new_tokens=SIDE * SIDE,
        prefix_allowed_tokens_fn=lambda *_: list(case.range),
    )[:, ids.shape[1] :]
    for strategy in Raster(), ZipAR(SIDE):
        sampling = Sampling(guidance_scale=case.defaults.guidance_scale, temperature=0)
        found = decoded(model, strategy, sampling, negative)
        assert model.vocabulary_ids(found.tokens).equal(written)
    assert len(written.unique()) > 5


@torch.inference_mode()
def test_logits_are_those_of_transformers(case, model, network):
    """Of each token of an image, alone, unpadded and uncached, by both branches of guidance."""
    codes = decoded(model, Raster(), Sampling(temperature=0)).tokens
    for prompt, image in zip(PROMPTS, codes, strict=True):
        for words in case.asked(prompt), case.ids(case.unconditional):
            ids = torch.cat([torch.tensor(words), image + case.range.start])[None]
            expected = network(ids, use_cache=False).logits[0, len(words) - 1 :, list(case.range)]
            found = model.logits(model.decoder(input_ids=ids).last_hidden_state)[0, len(words) - 1 :]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("strategy", "window", "alone"),
    [(ZipAR(2), 2, True), (ZipAR(4), 4, True), (ZipAR(1, first_row="wave"), 1, False)],
    ids=str,
)
@torch.inference_mode()
def test_equals_the_brute_force_decoder(case, model, brute_force_of_codes, strategy, window, alone):
    """Two prompts in a batch, left-padded, against each alone, unpadded and uncached, with all filters."""
    grid, sampling = model.grid(*SIZE), Sampling(guidance_scale=2.5, temperature=0.99, top_k=30, top_p=0.96)
    found = decoded(model, strategy, sampling)
    prefix = model.prefix(PROMPTS, None, True, grid)
    for image, seed in enumerate(SEEDS):
        prefixes = [prefix.embeddings[row][prefix.valid[row]] for row in (image, image + 2)]
        given = (prefixes, grid, sampling, seed, window, alone)
        expected = brute_force_of_codes(model.model, case.range, *given)
        assert (found.tokens[image].tolist(), found.forward_passes) == expected


@torch.inference_mode()
def test_prefixes_are_those_that_it_was_trained_on(case, model):
    grid, embed = model.grid(*SIZE), model.model.get_input_embeddings()
    prefix = model.prefix(PROMPTS, None, True, grid)
    rows = [case.asked(prompt) for prompt in PROMPTS] + [case.ids(case.unconditional)] * 2
    for row, embedded, valid in zip(rows, prefix.embeddings, prefix.valid, strict=True):
        assert embedded[valid].equal(embed(torch.tensor(row)))
    assert len(model.prefix(PROMPTS, None, False, grid).valid) == 2
    with pytest.raises(ZipARError, match="negative prompt does nothing"):
        model.prefix(PROMPTS, PROMPTS, False, grid)
    with pytest.raises(ZipARError, match=r"a prompt of \d+ tokens leaves no room for an image of 36, .* 150 at most"):
        model.prefix(["fox " * 120], None, False, grid)


def test_pipeline_from_a_directory(case, directory):
    pipe = zipar.pipeline(directory, device="cpu")
    assert (pipe.model.family, pipe.model.defaults) == (case.family, case.defaults)
    settings = {"strategy": ZipAR(2), "height": 96, "width": 96}
    output = pipe(PROMPTS, num_images_per_prompt=2, seed=[5, 6, 7, 8], **settings)
    assert output.stats.forward_passes == ZipAR(2).passes(pipe.model.grid(*SIZE)) == 2 * 6 + 4 * 2
    assert output.tokens.shape == (4, 6, 6)
    assert output.tokens.max() < case.codes
    assert [image.size for image in output.images] == [(96, 96)] * 4
    assert len({image.tobytes() for image in output.images}) == 4
    alone = pipe(PROMPTS[1], seed=8, **settings)
    assert (alone.tokens[0] == output.tokens[3]).all()
    other = pipe(PROMPTS[1], seed=8, negative_prompt="blurry", **settings)
    assert (other.tokens != alone.tokens).any()


class TestLoading:
    @pytest.fixture
    def copy(self, directory, tmp_path):
        return Path(shutil.copytree(directory, tmp_path / "copy"))

    def test_the_outline_needs_no_weights(self, copy):
        for path in copy.rglob("*.safetensors"):
            path.unlink()
        outline = auto.outline(copy)
        assert outline.grid(96, 96).tokens == 36
        assert outline.device.type == "meta"
        with pytest.raises(ZipARError, match="was made without a tokenizer"):
            outline.prefix(["fox"], None, False, outline.grid(96, 96))

    def test_the_decoder_is_of_the_wanted_type_and_the_image_decoder_of_float32(self, copy):
        model = auto.load(copy, torch.bfloat16, "cpu")
        assert {weight.dtype for weight in model.model.parameters()} == {torch.bfloat16}
        assert {weight.dtype for weight in model.image_tokenizer.parameters()} == {torch.float32}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda config: config.pop("first"), "is no checkpoint that can be read: .*first"),
            (lambda config: config.update(first=30), "30 words and 6. codes are more than the 8. that this .* knows"),
            (lambda config: config.update(image_tokenizer={}), "image_tokenizer.safetensors"),
            (lambda config: config.update(sampling={"heat": 1}), "is no checkpoint that can be read"),
        ],
    )
    def test_another_config(self, copy, change, message):
        config = json.loads((copy / "config.json").read_text())
        change(config)
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ZipARError, match=message):
            auto.load(copy, device="cpu")

    def test_what_is_published_is_to_be_converted(self, case, request):
        published = request.getfixturevalue(f"{case.family}_files") / case.family
        with pytest.raises(ZipARError, match=f"if it is a .*, `zipar convert {case.family}` makes it loadable"):
            auto.load(published, device="cpu")
