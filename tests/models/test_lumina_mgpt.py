from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zipar
from zipar.decoding.engine import Prefix, additive, decode
from zipar.decoding.raster import Raster
from zipar.decoding.sampling import Sampling
from zipar.models import auto
from zipar.models.lumina_mgpt import Anole, LuminaMGPT

RECORDED = load_file(Path(__file__).parents[1] / "data" / "lumina_mgpt.safetensors")
FIRST = 4


@pytest.fixture(scope="module", params=["7b", "34b"])
def size(request):
    return request.param


@pytest.fixture(scope="module")
def model(lumina_models, size):
    return auto.load(lumina_models(size), torch.float32, "cpu")


@pytest.fixture(scope="module")
def small(lumina_models):
    return auto.load(lumina_models("7b"), torch.float32, "cpu")


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
    hidden = model.model.model(input_ids=ids[None, :-1]).last_hidden_state
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
