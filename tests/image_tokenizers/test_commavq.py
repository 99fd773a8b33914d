"""commaVQ's image tokenizer against its authors' code (see tests/data/commavq.py)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zipar.image_tokenizers.commavq import CommaVQTokenizer
from zipar.image_tokenizers.vq import AttnBlock

RECORDED = load_file(Path(__file__).parents[1] / "data" / "commavq.safetensors")


@pytest.mark.parametrize(("half", "parameters"), [("encoder", 29_626_112), ("decoder", 42_777_731)])
def test_the_published_halves_have_the_parameters_of_the_authors_models(half, parameters):
    with torch.device("meta"):
        module = getattr(CommaVQTokenizer(), half)
    assert sum(weight.numel() for weight in module.parameters()) == parameters
    attention = {name.split(".")[0] for name, part in module.named_modules() if isinstance(part, AttnBlock)}
    assert attention == {"mid", "down" if half == "encoder" else "up"}


@torch.inference_mode()
def test_codes_are_those_of_the_authors(commavq, commavq_recipe):
    pixels = commavq_recipe.frames(3).permute(0, 3, 1, 2).float()
    codes = commavq.image_tokenizer.encode(pixels)
    assert codes.dtype == torch.int64
    assert codes.flatten(1).equal(RECORDED["codes"])
    assert len(codes.unique()) > 10


@torch.inference_mode()
def test_pixels_are_those_of_the_authors(commavq, commavq_recipe):
    recipe = commavq_recipe
    codes = RECORDED["sequence"].view(recipe.FRAMES, -1)[:2, 1:].unflatten(1, (recipe.ROWS, recipe.COLUMNS))
    pixels = commavq.image_tokenizer.decode(codes)
    torch.testing.assert_close(pixels / 127.5, RECORDED["pixels"] / 127.5, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_the_nearest_code_is_nearest_in_space(commavq, commavq_recipe):
    encoder = commavq.image_tokenizer.encoder
    pixels = commavq_recipe.frames(1).permute(0, 3, 1, 2).float()
    distances = torch.cdist(encoder.latents(pixels).flatten(0, 2), encoder.quantize.codes)
    assert encoder.encode(pixels).flatten().equal(distances.argmin(1))
