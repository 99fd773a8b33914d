"""GLM-Image's autoregressive stage, against what transformers computes."""

import copy
import json
import shutil
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmImageConfig, GlmImageForConditionalGeneration, GlmImageProcessor

import zipar
from zipar import Raster, Sampling, TokenGrid, ZipAR, ZipARError
from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Prefix
from zipar.evaluation.samples import Study
from zipar.models import auto
from zipar.models.decodings import decodings
from zipar.models.glm_image import GlmImage

WORD, IMAGE, BEGIN, END = 70, 9, 64, 65


@pytest.fixture(scope="module")
def network(glm_directory):
    return GlmImageForConditionalGeneration.from_pretrained(glm_directory / "vision_language_encoder")


def batch(*rows):
    """Prompts of words, and of images as (rows, columns), padded on the left: ids, mask, sizes of the images."""
    written = []
    for row in rows:
        ids = []
        for part in row:
            ids += [WORD] * part if isinstance(part, int) else [BEGIN, *[IMAGE] * (part[0] * part[1]), END]
        written.append([*ids, BEGIN])
    length = max(map(len, written))
    ids = torch.tensor([[END] * (length - len(row)) + row for row in written])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in written])
    return ids, mask, [[part for part in row if not isinstance(part, int)] for row in rows]


@pytest.mark.parametrize(
    ("rows", "targets"),
    [
        ([[5], [2]], [(4, 5), (3, 2)]),
        ([[3], [1]], [(1, 7)]),
        ([[(2, 3), 4], [1, (3, 2), 2]], [(5, 3)]),
        ([[1, (4, 4), (2, 5), 3], [(1, 1), 2, (6, 2)]], [(2, 2), (4, 3)]),
    ],
    ids=str,
)
def test_positions_are_those_of_transformers(network, rows, targets):
    ids, mask, sources = batch(*rows)
    sizes = [[*theirs, *reversed(targets)] for theirs in sources]
    own = copy.deepcopy(network.model)
    expected, _ = own.get_rope_index(
        ids,
        image_grid_thw=torch.tensor([[1, *size] for theirs in sizes for size in theirs]),
        images_per_sample=torch.tensor([len(theirs) for theirs in sizes]),
        attention_mask=mask,
    )
    model = GlmImage(network)
    with torch.inference_mode():
        prefix = model.prompt(ids, mask.bool(), sources)
        assert prefix.positions[mask.bool()].equal(expected.permute(1, 2, 0)[mask.bool()])
        decoded = own._cached_decode_position_ids.permute(1, 0, 2)
        for target in targets:
            grid = TokenGrid(*target)
            model, slots = model.of(grid), torch.arange(grid.slots).expand(2, -1)
            assert model.positions_of(slots, prefix.lengths).equal(decoded[..., : grid.slots])
            prefix, decoded = model.followed(prefix, torch.full_like(slots, IMAGE)), decoded[..., grid.slots :]


def test_logits_are_those_of_transformers(network):
    """Of all tokens of the second grid, in one pass, in half of which the model's own cache has no part."""
    (ids, mask, sources), grid = batch([6], [2]), TokenGrid(4, 5)
    torch.manual_seed(0)
    small, large = torch.randint(64, (2, 6)), torch.randint(64, (2, 20))
    model = GlmImage(network, columns=2)
    with torch.inference_mode():
        prefix = model.followed(model.prompt(ids, mask.bool(), sources), small)
        model, length = model.of(grid), prefix.valid.shape[1]
        cache = SlotCache(model.layers, 2, length, grid.slots)
        cache.place(slice(2), torch.arange(length).expand(2, -1), slice(length))
        first = model.prefill(prefix, cache, prefix.mask())
        slots = torch.arange(grid.slots).expand(2, -1)
        cache.place(slice(2), length + slots, slice(length + grid.slots))
        seen = torch.ones(grid.slots, length + grid.slots, dtype=torch.bool).tril(length)
        seen = seen & torch.cat([prefix.valid, torch.ones_like(large, dtype=torch.bool)], 1)[:, None]
        found = torch.cat([first, model.step(large, slots, prefix.lengths, cache, additive(seen, first.dtype))], 1)
        for row in range(2):
            own, alone = copy.deepcopy(network), ids[row : row + 1, mask[row].bool()]
            grids = torch.tensor([[1, 4, 5], [1, 3, 2]])
            output = own(alone, image_grid_thw=grids, images_per_sample=torch.tensor([2]), use_cache=True)
            name = "cache" if "cache" in output else "past_key_values"  # its name before transformers 5.24
            written = torch.cat([small, large], 1)[row : row + 1]
            logits = own(written, **{name: output[name]}).logits[:, 5:, :64]
            assert (logits[0] - found[row]).abs().max() < 1e-4
    assert found.shape == (2, 21, 64)


def test_prefixes_of_single_images_make_a_batch_again(network):
    ids, mask, sources = batch([6], [2, (2, 3)])
    with torch.inference_mode():
        prefix = GlmImage(network).prompt(ids, mask.bool(), sources)
    alone = [prefix.of(image, 2) for image in range(2)]
    assert alone[1].positions.shape == (1, 11, 3)
    joined = Prefix.joined(alone)
    for part, before in zip(joined, prefix, strict=True):
        assert (part is None) == (before is None)
    assert joined.positions.equal(prefix.positions)
    assert joined.lengths.equal(prefix.lengths)
    assert joined.lengths.tolist() == [7, 2 + 1 + 3 + 1 + 1]


@pytest.fixture(scope="module")
def outline(tmp_path_factory):
    """A published checkpoint in the layout of diffusers, of which there are the configs alone."""
    directory = tmp_path_factory.mktemp("published")
    config = GlmImageConfig(text_config={"num_hidden_layers": 1}, vision_config={"depth": 1})
    config.save_pretrained(directory / "vision_language_encoder")
    (directory / "model_index.json").write_text(json.dumps({"_class_name": "GlmImagePipeline"}))
    return auto.outline(directory)


def test_published_sizes_have_the_grids_of_the_processor(outline, glm_directory):
    processor = GlmImageProcessor.from_pretrained(glm_directory / "processor")
    assert outline.image_size == (1152, 768)  # what the processor asks for unless told otherwise
    sides = range(512, 2049, 96)
    for height in sides:
        for width in sides:
            made = processor(text=["bird"], target_h=height, target_w=width, return_tensors="pt")
            asked = [[1, grid.rows, grid.columns] for grid in outline.grids(outline.grid(height, width))]
            assert made["image_grid_thw"].tolist() == asked[::-1]
    assert outline.grid(1024, 1024) == TokenGrid(32, 32)


@pytest.mark.parametrize("size", [(1000, 1024), (1024, 0), (16, 16), (1024, 1040)])
def test_other_sizes_are_errors_of_one_line(outline, size):
    height, width = size
    message = rf"no images of {height}x{width} pixels \(height x width\): both must be multiples of 32, such as 512x512"
    with pytest.raises(ZipARError, match=message) as error:
        outline.grid(*size)
    assert "\n" not in str(error.value)


def test_a_side_without_a_small_grid_is_an_error(outline):
    with pytest.raises(ZipARError, match="no side may be more than 256 times the other"):
        outline.grid(32, 32 * 257)


def test_defaults_are_those_of_the_authors_unless_the_checkpoint_says_otherwise(network, outline):
    assert outline.defaults == Sampling(1.5, temperature=0.9, top_p=0.75)
    other = copy.deepcopy(network)
    other.generation_config.update(temperature=0.5, top_k=7)
    assert GlmImage(other).defaults == Sampling(1.5, temperature=0.5, top_k=7, top_p=0.75)


def test_the_stage_alone_makes_no_pictures(glm_directory, network):
    pytest.importorskip("diffusers")
    with pytest.raises(ZipARError, match=r"the autoregressive stage of GLM-Image alone: give the directory around it"):
        zipar.pipeline(glm_directory / "vision_language_encoder", device="cpu")
    with pytest.raises(ZipARError, match=r"make it of a pipeline of diffusers, as GlmImage\("):
        zipar.Pipeline(GlmImage(network))("a red fox")


def test_without_diffusers_an_extra_is_named(glm_pipeline_directory, monkeypatch):
    """Before the weights are downloaded; plans need none."""
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.append(allow_patterns) or glm_pipeline_directory,
    )
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for name in glm_pipeline_directory, "zai-org/GLM-Image":
        with pytest.raises(ZipARError, match=r'needs diffusers .*: pip install "zipar-torch\[glm\]"$') as error:
            zipar.pipeline(name, device="cpu")
        assert "\n" not in str(error.value)
        assert auto.outline(name).grid(1024, 1024) == TokenGrid(32, 32)
    assert asked == [["*.json"]] * 2


SIZE = {"height": 64, "width": 96}
"""2 x 3 tokens, after 13 x 19 of the small grid."""
PROMPTS = ['a "red" fox in the snow', "bird"]
SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 0.9}


@pytest.fixture(scope="module")
def pipe(glm_pipeline_directory):
    loaded = zipar.pipeline(glm_pipeline_directory, device="cpu")
    loaded.model.steps = 2
    return loaded


@pytest.fixture(scope="module")
def theirs(glm_pipeline_directory):
    """theirs(prompt, seed) -> the picture that diffusers makes, and the tokens, its own unless they are given."""
    diffusers = pytest.importorskip("diffusers")
    whole = diffusers.GlmImagePipeline.from_pretrained(glm_pipeline_directory)
    whole.set_progress_bar_config(disable=True)

    def painted(prompt, seed, tokens=None, **settings):
        generator = torch.Generator().manual_seed(seed)
        if tokens is None:
            fine, _, _ = whole.generate_prior_tokens([prompt], **SIZE, generator=generator)
        else:
            fine = torch.from_numpy(np.kron(tokens, np.ones((2, 2), int))).view(1, -1)
        asked = {"num_inference_steps": 2, "prior_token_ids": fine, "generator": generator}
        return np.asarray(whole(prompt, **SIZE, **asked, **settings).images[0]), fine.view(4, 6)[::2, ::2].numpy()

    return painted


@pytest.fixture(scope="module")
def raster(pipe):
    """Of the likeliest tokens, as the checkpoint's config asks for."""
    return pipe(PROMPTS, **SIZE, strategy=Raster(), seed=[3, 2**70 + 8])


def test_pictures_and_tokens_are_those_of_diffusers(pipe, theirs, raster):
    for image, (prompt, seed) in enumerate(zip(PROMPTS, [3, 8 + 2**70 % 2**64], strict=True)):
        picture, tokens = theirs(prompt, seed)
        assert picture.std() > 5
        assert np.array_equal(np.asarray(raster.images[image]), picture)
        assert np.array_equal(raster.tokens[image], tokens)
    assert raster.tokens.shape == raster.born.shape == (2, 2, 3)
    stats = raster.stats
    assert stats.forward_passes == raster.born.max() + 1 == stats.slots == 13 * 19 + 2 * 3
    assert raster.born.min() == 13 * 19
    assert min(stats.prefill_seconds, stats.decode_seconds, stats.vision_seconds) > 0


def test_lossless_pictures_are_those_of_raster(pipe, raster):
    told = []
    found = pipe(PROMPTS, **SIZE, strategy="jacobi:16", seed=[3, 8], callback=told.append)
    assert np.array_equal(found.tokens, raster.tokens)
    first, last = found.born.min(), found.stats.forward_passes
    assert [progress.done for progress in told] == [*range(2, first + 1), *range(first + 2, last + 1)]


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_picture_is_that_of_its_seed_in_any_batch(pipe, deterministic):
    asked = {**SIZE, **SAMPLED, "strategy": ZipAR(4), "deterministic": deterministic}
    both = pipe(PROMPTS, seed=[3, 9], num_images_per_prompt=1, **asked)
    assert both.stats.forward_passes == 2 * 19 + 11 * 4 + 2 * 3
    for image, (prompt, seed) in enumerate(zip(PROMPTS, [3, 9], strict=True)):
        alone = pipe(prompt, seed=seed, **asked)
        assert np.array_equal(alone.tokens[0], both.tokens[image])
        assert np.abs(np.asarray(alone.images[0], int) - np.asarray(both.images[image], int)).max() <= 1
    other = pipe(PROMPTS[0], seed=9, **asked)
    assert not np.array_equal(other.tokens[0], both.tokens[0])


def test_noise_of_pixels_is_the_seeds(pipe, theirs):
    made = pipe(PROMPTS[0], **SIZE, strategy=ZipAR(1), seed=4, num_images_per_prompt=2)
    assert np.array_equal(*made.tokens)
    assert not np.array_equal(*map(np.asarray, made.images))
    for image, tokens, seed in zip(made.images, made.tokens, [4, 5], strict=True):
        assert np.array_equal(np.asarray(image), theirs(PROMPTS[0], seed, tokens)[0])


def test_guidance_is_that_of_pixels(pipe, theirs):
    usual, found = (pipe(PROMPTS[0], **SIZE, strategy=ZipAR(1), seed=3, **each) for each in ({}, {"guidance_scale": 6}))
    assert np.array_equal(found.tokens, usual.tokens)
    assert not np.array_equal(np.asarray(found.images[0]), np.asarray(usual.images[0]))
    picture, _ = theirs(PROMPTS[0], 3, found.tokens[0], guidance_scale=6.0)
    assert np.array_equal(np.asarray(found.images[0]), picture)


def test_of_a_prompt_pixels_show_what_is_in_quotes(pipe):
    codes = torch.arange(6).view(1, 2, 3)
    with torch.inference_mode():
        bare, plain, quoted = (
            pipe.model.painted(codes, [prompt], [0], 1.5) for prompt in ("", "a red fox", 'a "red" fox')
        )
        assert pipe.model.pixels(codes).equal(bare)
    assert plain.equal(bare)
    assert not quoted.equal(bare)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negative_prompt": "bird"}, "nowhere to put a negative prompt"),
        ({"width": 100}, "no images of 64x100 pixels"),
        ({"prompt": "fox " * 400}, "leaves no room for an image of 253"),
        ({"frames": 3}, "makes images"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_what_is_not_possible_is_named(pipe, arguments, message):
    with pytest.raises(ZipARError, match=message):
        pipe(**{"prompt": "a red fox", **SIZE, **arguments})


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "vision_language_encoder"])
def test_damaged_parts_are_named(glm_pipeline_directory, tmp_path, part):
    shutil.copytree(glm_pipeline_directory, tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / part).glob("*.safetensors")
    tensors = load_file(path)
    del tensors[max(tensors, key=lambda name: tensors[name].numel())]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ZipARError, match=rf"{part} lacks \d tensors"):
        zipar.pipeline(tmp_path, device="cpu")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ZipARError, match=f"{part} holds no .* that can be read"):
        zipar.pipeline(tmp_path, device="cpu")


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "processor"])
def test_missing_parts_are_named(glm_pipeline_directory, tmp_path, part):
    shutil.copytree(glm_pipeline_directory, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(ZipARError, match=part) as error:
        zipar.pipeline(tmp_path, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_other_number_formats(glm_pipeline_directory, settings):
    whole = zipar.pipeline(glm_pipeline_directory, device="cpu", **settings)
    whole.model.steps = 2
    assert whole("a red fox", **SIZE, strategy="zipar:2").images[0].size == (96, 64)


def test_all_grids_count_in_studies(pipe, tmp_path):
    """The likelihood of every token, as transformers computes it."""
    model, sampling = pipe.model, Sampling(1.5, temperature=1.3)
    study = Study(model, "stamp", PROMPTS, sampling, model.grid(64, 96), seed=3, batch_size=2, folder=tmp_path)
    (batch,) = study.batches(ZipAR(4))
    made = pipe(PROMPTS, **SIZE, seed=3, guidance_scale=1.5, temperature=1.3, top_k=0, top_p=1.0, strategy=ZipAR(4))
    assert np.array_equal(batch.tokens, made.tokens)
    assert np.array_equal(batch.images, [np.asarray(image) for image in made.images])
    assert batch.forward_passes.tolist() == [made.stats.forward_passes] * 2
    written = []
    with torch.inference_mode():
        prefix = model.prefix(PROMPTS, None, False, study.grid)
        seeds = range(3, 5)
        for each in decodings(model, prefix, model.grids(study.grid), ZipAR(4), model.drawn(sampling), seeds):
            written.append(each.decoded.tokens)
    assert written[1].view(2, 2, 3).numpy().tolist() == batch.tokens.tolist()
    for image, prompt in enumerate(PROMPTS):
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        asked = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "target_h": 64, "target_w": 96}
        inputs = dict(model.pipe.processor.apply_chat_template(messages, **asked))
        own = copy.deepcopy(model.model)
        with torch.no_grad():
            output = own(**inputs, use_cache=True)
            name = "cache" if "cache" in output else "past_key_values"  # its name before transformers 5.24
            tokens = torch.cat(written, 1)[image : image + 1]
            after = own(tokens[:, :-1], **{name: output[name]}).logits
            logits = torch.cat([output.logits[:, -1:], after], 1)[0, :, :64] / 1.3
        nats = -logits.log_softmax(-1).gather(1, tokens[0, :, None]).mean().item()
        assert batch.nats[image] == pytest.approx(nats, abs=1e-4)
