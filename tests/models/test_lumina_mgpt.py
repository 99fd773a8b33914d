"""Lumina-mGPT against its authors' code (see tests/data/lumina_mgpt.py) and a decoder without cache or schedule."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

import zipar
from zipar import Raster, Sampling, ZipAR
from zipar.decoding.engine import decode
from zipar.models import auto
from zipar.models.lumina_mgpt import Anole, LuminaMGPT

RECORDED = load_file(Path(__file__).parents[1] / "data" / "lumina_mgpt.safetensors")
PROMPTS = ["a red fox in the snow", "bird"]
IDS = {"a red fox in the snow": [8913, 8914, 8915, 8916, 8906, 8917], "bird": [8918]}
REQUEST = {"96x64": [8900, 8901, 8902, 8903, 8910, 8904, 8905, 8906, 8907, 8908, 8909]}
"""Generate an image of 96x64 according to the following prompt :"""
SEEDS = [3, 2**80 + 5]


@pytest.fixture(scope="module", params=["7b", "34b"])
def size(request):
    return request.param


@pytest.fixture(scope="module")
def model(lumina_models, size):
    return auto.load(lumina_models(size), torch.float32, "cpu")


@pytest.fixture(scope="module")
def small(lumina_models):
    return auto.load(lumina_models("7b"), torch.float32, "cpu")


@pytest.fixture(scope="module")
def anole(lumina_models):
    return auto.load(lumina_models("7b", Anole), torch.float32, "cpu")


def recorded_prefix(model, recipe):
    """The prefix of the recorded prompt, which is ids, and of its unconditional branch."""
    header = model.header(model.grid(64, 96))
    rows = [[*recipe.PROMPT, *header], [0] * len(recipe.PROMPT) + header]
    valid = [[1] * len(rows[0]), [0] * len(recipe.PROMPT) + [1] * len(header)]
    with torch.inference_mode():
        return model.prompt(torch.tensor(rows), torch.tensor(valid))


@torch.inference_mode()
def test_logits_are_those_of_the_authors(model, lumina_recipe, size):
    ids = RECORDED[f"{size}.ids"].long()
    start = len(lumina_recipe.PROMPT) + 3
    hidden = model.decoder(input_ids=ids[None, :-1]).last_hidden_state
    logits = model.logits(hidden)[0, start - 1 :: 5, ::64]
    torch.testing.assert_close(logits, RECORDED[f"{size}.logits"], atol=1e-4, rtol=0)


def test_greedy_raster_decoding_gives_the_tokens_of_the_authors(model, lumina_recipe, size):
    """Their guidance, their constraints: a picture that is not square, with its header and row ends."""
    grid, sampling = model.grid(64, 96), Sampling(guidance_scale=lumina_recipe.GUIDANCE, temperature=0)
    decoded = decode(model, recorded_prefix(model, lumina_recipe), grid, Raster(), sampling, [0])
    start, ids = len(lumina_recipe.PROMPT), RECORDED[f"{size}.ids"].long()
    assert model.written(decoded.tokens, grid)[0].tolist() == [*ids[start:].tolist(), 8710]
    codes = model.codes(decoded.tokens[:, grid.free().flatten()]).view(4, 6)
    assert codes.equal(RECORDED[f"{size}.codes"].long())
    assert len(codes.unique()) > 5


@torch.inference_mode()
def test_pixels_are_those_of_meta(small):
    codes = RECORDED["7b.codes"][None, :2, :3].long()
    torch.testing.assert_close(small.image_tokenizer.decode(codes), RECORDED["pixels"], atol=1e-4, rtol=0)
    pixels = (RECORDED["pixels"].clamp(-1, 1) + 1) * 127.5
    found = small.pixels(codes)
    assert found.dtype == torch.uint8
    assert (found.permute(0, 3, 1, 2) - pixels).abs().max() <= 0.51


@pytest.mark.parametrize("side", [512, 768, 1024])
def test_image_sizes_are_those_of_the_authors(small, side):
    model = LuminaMGPT(small.model, image_size=side)
    sizes = model.sizes()
    assert sorted(sizes) == sorted((height, width) for width, height in RECORDED[f"sizes.{side}"].tolist())
    assert model.grid(*model.image_size).tokens == (side // 16) ** 2


def test_a_grid_has_a_row_end_after_each_row(small):
    grid = small.grid(64, 96)
    assert (grid.rows, grid.columns) == (4, 6)
    assert small.vocabulary_ids(grid.blank()).view(4, 7)[:, -1].tolist() == [8803] * 4
    assert small.header(grid) == [8197, 8806, 8807]
    assert small.header(small.grid(96, 64)) == [8197, 8807, 8806]
    with pytest.raises(zipar.ZipARError, match=r"no images of 64x64 .*96x96.*nearest are 96x64, 64x96"):
        small.grid(64, 64)


def test_tokens_ids_and_codes(small, lumina_recipe):
    ids = torch.tensor([4, 8195, 7])
    tokens = small.tokens(ids)
    assert small.vocabulary_ids(tokens).equal(ids)
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = [f"IMGIMG{str(code).translate(letters)}Z" for code in small.codes(tokens).tolist()]
    assert [lumina_recipe.vocabulary()[name] for name in names] == ids.tolist()


@torch.inference_mode()
def test_prefixes_are_those_that_it_was_trained_on(small):
    grid = small.grid(64, 96)
    prefix = small.prefix(PROMPTS, None, True, grid)
    header = [8197, 8806, 8807]
    rows = [[0, *REQUEST["96x64"], *IDS[prompt], 8710, *header] for prompt in PROMPTS] + [header] * 2
    embed = small.model.get_input_embeddings()
    assert prefix.valid.sum(1).tolist() == [len(row) for row in rows]
    for row, embedded, valid in zip(rows, prefix.embeddings, prefix.valid, strict=True):
        assert embedded[valid].equal(embed(torch.tensor(row)))
    negative = small.prefix(PROMPTS[:1], PROMPTS[1:], True, grid)
    assert negative.embeddings[1][negative.valid[1]].equal(embed(torch.tensor(rows[1])))
    assert len(small.prefix(PROMPTS, None, False, grid).valid) == 2
    with pytest.raises(zipar.ZipARError, match="negative prompt does nothing"):
        small.prefix(PROMPTS, PROMPTS, False, grid)


def test_a_prompt_longer_than_any_it_was_trained_on_is_warned_about(small):
    with pytest.warns(UserWarning, match=r"'fox fox .* takes 316 tokens, .* 228 at most"):
        prefix = small.prefix(["fox " * 300], None, False, small.grid(64, 96))
    assert prefix.valid.shape == (1, 316)


@pytest.mark.parametrize(
    ("strategy", "window"), [(ZipAR(1), 1), (ZipAR(2), 2), (ZipAR(4, first_row="wave"), 4)], ids=str
)
@torch.inference_mode()
def test_equals_the_brute_force_decoder(model, brute_force_of_codes, strategy, window):
    """Two prompts in a batch, left-padded, against each alone, unpadded and uncached."""
    grid, sampling = model.grid(64, 96), Sampling(guidance_scale=2.5, top_k=2000)
    prefix = model.prefix(PROMPTS, None, True, grid)
    decoded = decode(model, prefix, grid, strategy, sampling, SEEDS)
    for image, seed in enumerate(SEEDS):
        prefixes = [prefix.embeddings[row][prefix.valid[row]] for row in (image, image + 2)]
        expected = brute_force_of_codes(model.model, range(4, 8196), prefixes, grid, sampling, seed, window)
        assert (decoded.tokens[image].tolist(), decoded.forward_passes) == expected


def test_the_users_model_is_left_as_it_was(small):
    own = small.model.config._attn_implementation
    zipar.pipeline(small)("bird")
    assert small.model.config._attn_implementation == own != "zipar"


class TestPipeline:
    def test_defaults_are_the_authors(self, small, anole):
        assert small.defaults == Sampling(guidance_scale=4.0, temperature=1.0, top_k=2000, top_p=1.0)
        assert anole.defaults == Sampling(guidance_scale=3.0, temperature=0.7, top_k=0, top_p=0.9)

    @pytest.mark.parametrize(("strategy", "passes"), [(Raster(), 24), (ZipAR(1), 9), (ZipAR(2), 12), (ZipAR(6), 24)])
    def test_known_tokens_cost_no_pass(self, small, strategy, passes):
        output = zipar.pipeline(small)("bird", strategy=strategy, height=64, width=96)
        assert output.stats.forward_passes == strategy.passes(small.grid(64, 96)) == passes
        assert output.images[0].size == (96, 64)
        assert output.tokens.shape == (1, 4, 6)

    def test_a_window_as_wide_as_the_grid_gives_rasters_tokens(self, small):
        pipe = zipar.pipeline(small)
        raster, wide, narrow = (pipe(PROMPTS, strategy=s, height=96, width=64) for s in (Raster(), ZipAR(4), ZipAR(1)))
        assert (raster.tokens == wide.tokens).all()
        assert (raster.tokens != narrow.tokens).any()

    def test_an_image_is_the_same_alone_and_in_a_batch(self, small):
        pipe = zipar.pipeline(small)
        together = pipe(PROMPTS, num_images_per_prompt=2, seed=[5, 6, 7, 8], strategy=ZipAR(2))
        assert len({image.tobytes() for image in together.images}) == 4
        for image, seed in enumerate([5, 6, 7, 8]):
            alone = pipe(PROMPTS[image // 2], seed=seed, strategy=ZipAR(2))
            assert (alone.tokens[0] == together.tokens[image]).all()

    def test_a_negative_prompt_changes_the_image(self, small):
        pipe = zipar.pipeline(small)
        plain, other = pipe("fox", strategy=ZipAR(2)), pipe("fox", negative_prompt="snow", strategy=ZipAR(2))
        assert (plain.tokens != other.tokens).any()


class TestAnole:
    def test_has_no_row_ends_and_one_size(self, anole):
        assert anole.grid(96, 96).slots == 36
        with pytest.raises(zipar.ZipARError, match=r"Anole makes no images of 64x96 .* 96x96 alone"):
            anole.grid(64, 96)

    def test_prefixes_are_those_of_its_authors(self, anole):
        prefix = anole.prefix(["bird"], None, True, anole.grid(96, 96))
        embed = anole.model.get_input_embeddings()
        assert prefix.embeddings[0].equal(embed(torch.tensor([0, 8918, 8710, 8197])))
        assert prefix.embeddings[1][prefix.valid[1]].equal(embed(torch.tensor([0, 8197])))

    def test_decodes(self, anole):
        output = zipar.pipeline(anole)(PROMPTS, strategy=ZipAR(2))
        assert output.tokens.shape == (2, 6, 6)
        assert output.stats.forward_passes == 2 * 6 + 4 * 2


class TestOfALoadedModel:
    """Without the files beside it."""

    def test_tokens_can_be_decoded_but_neither_prompts_read_nor_pixels_made(self, lumina_models, small):
        loaded = ChameleonForConditionalGeneration.from_pretrained(lumina_models("7b") / "decoder")
        model = LuminaMGPT(loaded, image_size=96)
        grid = model.grid(64, 96)
        with torch.inference_mode():
            prefix = model.prompt(torch.tensor([[0, 8918, 8710, *model.header(grid)]]), torch.ones(1, 6))
        decoded = decode(model, prefix, grid, ZipAR(2), Sampling(), [0])
        assert decoded.tokens.shape == (1, 28)
        with pytest.raises(zipar.ZipARError, match="LuminaMGPT was made without a tokenizer"):
            model.prefix(["bird"], None, False, grid)
        with pytest.raises(zipar.ZipARError, match="LuminaMGPT was made without an image decoder"):
            model.pixels(torch.zeros(1, 4, 6, dtype=torch.int64))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda names: names.clear(), "names no image tokens"),
            (lambda names: names.pop("IMGIMGBCZ"), "lacks 1 image tokens, such as that of code 12"),
            (lambda names: names.update(IMGIMGAZ=8900), "should have consecutive ids .* from 4 to 8900"),
            (lambda names: names.pop("<eoss>"), "has no token <eoss>: it is not that of LuminaMGPT"),
            (lambda names: names.update({"<s>": 99999}), "has no token <s>"),
        ],
    )
    def test_a_vocabulary_of_something_else_is_an_error(self, small, monkeypatch, change, message):
        names = dict(small.names)
        change(names)
        monkeypatch.setattr(small.model.config, "vocabulary_map", names)
        with pytest.raises(zipar.ZipARError, match=message):
            LuminaMGPT(small.model)


class TestLoading:
    @pytest.fixture
    def copy(self, lumina_models, tmp_path):
        return Path(shutil.copytree(lumina_models("7b"), tmp_path / "copy"))

    def test_the_outline_needs_no_weights(self, copy):
        for path in copy.rglob("*.safetensors"):
            path.unlink()
        outline = auto.family(copy).outline(copy)
        assert outline.grid(64, 96).tokens == 24
        assert outline.device.type == "meta"

    @pytest.mark.parametrize("name", ["tokenizer.json", "image_tokenizer.safetensors", "decoder"])
    def test_files_that_are_missing(self, copy, name):
        if (copy / name).is_dir():
            shutil.rmtree(copy / name)
        else:
            (copy / name).unlink()
        with pytest.raises(zipar.ZipARError, match=name):
            auto.load(copy, device="cpu")

    @pytest.mark.parametrize("number", [1, 2, 3])
    @pytest.mark.parametrize("kept", [0, 1000, -1])
    def test_files_that_are_cut(self, copy, number, kept):
        file = copy / "decoder" / f"model-{number:05}-of-00003.safetensors"
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(zipar.ZipARError, match=r"decoder holds no Chameleon\w+ that can be read"):
            auto.load(copy, device="cpu")

    def test_tensors_that_are_missing_are_not_made_up(self, copy):
        file = copy / "decoder" / "model-00001-of-00003.safetensors"
        tensors = load_file(file)
        name = sorted(tensors)[0]
        del tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(
            zipar.ZipARError, match=f"lacks 1 tensors of its Chameleon.*, such as {name}: fetch or convert it again"
        ):
            auto.load(copy, device="cpu")

    def test_tensors_of_another_shape(self, copy):
        config = json.loads((copy / "decoder" / "config.json").read_text())
        (copy / "decoder" / "config.json").write_text(json.dumps({**config, "intermediate_size": 50}))
        with pytest.raises(
            zipar.ZipARError, match=r"mlp.* is of shape \(.*\), but should be \(.*\) \(6 tensors of its"
        ):
            auto.load(copy, device="cpu")

    @pytest.mark.parametrize(
        "change", [{"image_size": None}, {"sampling": {"top_k": -1}}, {"image_tokenizer": {"a": 1}}]
    )
    def test_a_config_that_is_wrong(self, copy, change):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(zipar.ZipARError):
            auto.load(copy, device="cpu")

    def test_a_chameleon_as_published_is_to_be_converted(self, lumina_files):
        with pytest.raises(zipar.ZipARError, match="Chameleon without its image decoder: `zipar convert lumina-mgpt`"):
            auto.load(lumina_files("7b") / "lumina")
