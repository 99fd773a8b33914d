"""GLM-Image's autoregressive stage, against what transformers computes."""

import copy
import json

import pytest
import torch
from transformers import GlmImageConfig, GlmImageForConditionalGeneration, GlmImageProcessor

import zipar
from zipar import Sampling, TokenGrid, ZipARError
from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Prefix
from zipar.models import auto
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
    model = GlmImage(network, 2)
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
            asked = [[1, grid.rows, grid.columns] for grid in outline.grids(height, width)]
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
    assert outline.defaults == Sampling(temperature=0.9, top_p=0.75)
    other = copy.deepcopy(network)
    other.generation_config.update(temperature=0.5, top_k=7)
    assert GlmImage(other).defaults == Sampling(temperature=0.5, top_k=7, top_p=0.75)


def test_pixels_are_left_to_diffusers(glm_directory, tmp_path, network):
    whole = tmp_path / "pipeline"
    whole.mkdir()
    (whole / "model_index.json").write_text("{}")
    (whole / "vision_language_encoder").symlink_to(glm_directory / "vision_language_encoder")
    for directory in whole, whole / "vision_language_encoder":
        with pytest.raises(ZipARError, match=r"load all of it with diffusers.*call zipar\.accelerate\(pipe\)"):
            zipar.pipeline(directory)
    with pytest.raises(ZipARError, match="load all of it with diffusers"):
        zipar.Pipeline(GlmImage(network))("a red fox")
