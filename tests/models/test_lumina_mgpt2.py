"""Lumina-mGPT 2.0 against its authors' code (see tests/data/lumina_mgpt2.py) and a decoder without cache or plan."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zipar
from zipar import CoupledJacobi, Raster, Sampling, ZipAR
from zipar.decoding.engine import decode
from zipar.models import auto
from zipar.models.lumina_mgpt2 import LuminaMGPT2

RECORDED = load_file(Path(__file__).parents[1] / "data" / "lumina_mgpt2.safetensors")
PROMPTS = ["a red fox in the snow", "bird"]
SEEDS = [3, 2**80 + 5]
SIZE = 64, 32
HEADER = [151665, 151672, 151671]
"""Of an image of that height and width."""


@pytest.fixture(scope="module")
def model(lumina2_directory):
    return auto.load(lumina2_directory, torch.float32, "cpu")


@torch.inference_mode()
def test_logits_are_those_of_the_authors(model, lumina2_recipe):
    ids = RECORDED["ids"].long()
    start = len(lumina2_recipe.PROMPT) + 3
    hidden = model.decoder(input_ids=ids[None, :-1]).last_hidden_state
    logits = model.logits(hidden)[0, start - 1 :: 7, ::256]
    torch.testing.assert_close(logits, RECORDED["logits"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_greedy_raster_decoding_gives_the_tokens_of_the_authors(model, lumina2_recipe):
    """Their guidance, their constraints, their ids; lossless drafts too."""
    grid, prompt = model.grid(*SIZE), lumina2_recipe.PROMPT
    sampling = Sampling(guidance_scale=lumina2_recipe.GUIDANCE, temperature=0)
    rows = [[*prompt, *HEADER], [0] * len(prompt) + HEADER]
    valid = [[1] * len(rows[0]), [0] * len(prompt) + [1] * 3]
    prefix = model.prompt(torch.tensor(rows), torch.tensor(valid))
    for strategy in Raster(), CoupledJacobi(8):
        decoded = decode(model, prefix, grid, strategy, sampling, [0])
        written = [*model.header(grid), *model.vocabulary_ids(decoded.tokens)[0].tolist(), model.end]
        assert written == RECORDED["ids"][len(prompt) :].tolist()
        codes = model.codes(model.pick(decoded.tokens, grid))
        assert codes[0].equal(RECORDED["codes"].long())
    assert len(codes.unique()) > 5


def test_image_sizes_are_those_of_the_authors(model):
    published = LuminaMGPT2(model.model)
    assert sorted(published.sizes()) == sorted((high, wide) for wide, high in RECORDED["sizes.768"].tolist())
    grid = published.grid(*published.image_size)
    assert (grid.rows, grid.columns, grid.slots) == (96, 96, 96 * 97)
    assert grid.blank().view(96, 97)[:, -1].unique().tolist() == [151670 - 155000 + 171392]
    assert published.vocabulary_ids(grid.blank()).view(96, 97)[:, -1].unique().tolist() == [151670]
    with pytest.raises(zipar.ZipARError, match=r"no images of 512x512 .*768x768.* nearest are \d+x\d+"):
        published.grid(512, 512)


def test_headers_count_patches_of_four_tokens_a_side(model):
    assert model.header(model.grid(64, 32)) == [151665, 151672, 151671]
    assert model.header(model.grid(32, 128)) == [151665, 151671, 151674]
    with pytest.raises(zipar.ZipARError, match=r"no images of 96x96 "):
        model.grid(96, 96)


def test_passes_of_the_published_image(model):
    """As the README of the authors has it, 768 x 768: a row end costs no pass, and rows start in the wave."""
    grid = LuminaMGPT2(model.model).grid(768, 768)
    assert Raster().passes(grid) == 96 * 96
    assert [ZipAR(window).passes(grid) for window in (16, 8, 4)] == [96 + 95 * window for window in (16, 8, 4)]


@torch.inference_mode()
def test_prefixes_are_those_of_the_authors(model):
    grid = model.grid(*SIZE)
    prefix = model.prefix(PROMPTS, None, True, grid)
    request = [200, 201, 202, 203, 210, 204, 205, 104, 207, 208, 209]  # ... an image of 32x64 according to ...
    words = [[100, 101, 102, 103, 104, 105], [106]]
    assert bytes(RECORDED["conversation"].tolist()).decode() == "Generate it<reserved08706>"
    rows = [[151645, *request, *prompt, 171384, *HEADER] for prompt in words] + [HEADER] * 2
    embed = model.model.get_input_embeddings()
    assert prefix.valid.sum(1).tolist() == [len(row) for row in rows]
    for row, embedded, valid in zip(rows, prefix.embeddings, prefix.valid, strict=True):
        assert embedded[valid].equal(embed(torch.tensor(row)))
    negative = model.prefix(PROMPTS[:1], PROMPTS[1:], True, grid)
    assert negative.embeddings[1][negative.valid[1]].equal(embed(torch.tensor(rows[1])))


@pytest.mark.parametrize(("strategy", "window"), [(ZipAR(1), 1), (ZipAR(2), 2)], ids=str)
@torch.inference_mode()
def test_equals_the_brute_force_decoder(model, brute_force_of_codes, strategy, window):
    """Two prompts in a batch, left-padded, against each alone, unpadded and uncached."""
    grid, sampling = model.grid(*SIZE), Sampling(guidance_scale=2.5, top_k=4096)
    prefix = model.prefix(PROMPTS, None, True, grid)
    decoded = decode(model, prefix, grid, strategy, sampling, SEEDS)
    for image, seed in enumerate(SEEDS):
        prefixes = [prefix.embeddings[row][prefix.valid[row]] for row in (image, image + 2)]
        expected = brute_force_of_codes(model.model, range(155000, 171384), prefixes, grid, sampling, seed, window)
        assert (decoded.tokens[image].tolist(), decoded.forward_passes) == expected


class TestPipeline:
    def test_defaults_are_the_authors(self, model):
        assert model.defaults == Sampling(guidance_scale=4.0, temperature=1.0, top_k=4096, top_p=1.0)
        assert LuminaMGPT2(model.model).image_size == (768, 768)

    def test_paints(self, model):
        pipe = zipar.pipeline(model)
        output = pipe("bird", strategy=ZipAR(2), height=32, width=64, seed=4)
        assert output.stats.forward_passes == 8 + 3 * 2
        assert output.images[0].size == (64, 32)
        assert output.tokens.shape == (1, 4, 8)
        assert (output.tokens < 16384).all()
        assert (pipe("bird", strategy=ZipAR(2), height=32, width=64, seed=5).tokens != output.tokens).any()


class TestLoading:
    def test_the_outline_needs_no_weights(self, lumina2_directory, tmp_path):
        copy = Path(shutil.copytree(lumina2_directory, tmp_path / "copy"))
        for path in copy.rglob("*.safetensors"):
            path.unlink()
        outline = auto.outline(copy)
        assert outline.grid(*SIZE).tokens == 32
        assert outline.device.type == "meta"

    def test_without_diffusers_an_error_says_what_to_install(self, lumina2_directory, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(zipar.ZipARError, match=r'needs diffusers .*: pip install "zipar-torch\[lumina\]"'):
            auto.load(lumina2_directory, device="cpu")

    @pytest.mark.parametrize("beginning", [None, 171392])
    def test_a_config_that_says_not_how_prompts_begin(self, lumina2_directory, tmp_path, beginning):
        copy = Path(shutil.copytree(lumina2_directory, tmp_path / "copy"))
        config = json.loads((copy / "decoder" / "config.json").read_text())
        (copy / "decoder" / "config.json").write_text(json.dumps({**config, "bos_token_id": beginning}))
        with pytest.raises(zipar.ZipARError, match=f"says that prompts begin with token {beginning}, which it has not"):
            auto.outline(copy)
