"""The video tokenizer of Cosmos against its authors' code (see tests/data/cosmos.py), matrices and brute force."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zipar.image_tokenizers.cosmos import CosmosTokenizer, CosmosTokenizerConfig, haar, lookup, nearest, unhaar

RECORDED = load_file(Path(__file__).parents[1] / "data" / "cosmos.safetensors")


def pixels_of(video):
    """A clip, uint8 (frames, height, width, 3), as the tokenizer takes it."""
    return video.permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def test_tensors_are_named_and_shaped_as_in_the_published_tokenizer(cosmos_recipe):
    with torch.device("meta"):
        tokenizer = CosmosTokenizer(CosmosTokenizerConfig())
    assert cosmos_recipe.digest(cosmos_recipe.shapes_of(tokenizer)).equal(RECORDED["names.tokenizer"])
    assert tokenizer.config.codebook_size == 64000


@torch.inference_mode()
def test_codes_are_those_of_the_authors_whose_padding_changes_nothing(cosmos_recipe, cosmos_tokenizer):
    """They repeat the last frame up to 33 before they encode; here nothing is repeated."""
    for frames in (1, 9, 33):
        codes = cosmos_tokenizer.encode(pixels_of(cosmos_recipe.video(frames)))[0]
        assert codes.equal(RECORDED[f"codes.{frames}"].long())
        assert len(codes.unique()) > 5


@torch.inference_mode()
def test_pixels_are_those_of_the_authors(cosmos_recipe, cosmos_tokenizer):
    pixels = cosmos_tokenizer.decode(RECORDED["codes.33"][None].long())[0]
    assert pixels.shape == (3, 33, 48, 96)
    torch.testing.assert_close(pixels[cosmos_recipe.PIXELS], RECORDED["pixels"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_no_frame_depends_on_later_ones(cosmos_recipe, cosmos_tokenizer):
    codes = RECORDED["codes.33"][None].long()
    whole = cosmos_tokenizer.decode(codes)
    for count in (1, 2, 3):
        part = cosmos_tokenizer.decode(codes[:, :count])
        torch.testing.assert_close(part, whole[:, :, : part.shape[2]], atol=1e-5, rtol=0)
        assert part.shape[2] == 1 + 8 * (count - 1)


def haar_matrix(size):
    """(size, size): what halving neighbours again and again makes of a row of them, low halves first."""
    if size == 1:
        return torch.ones(1, 1)
    pairs = torch.eye(size // 2)
    low, high = (torch.kron(pairs, torch.tensor([[0.5, 0.5 * sign]])) for sign in (1, -1))
    rest = haar_matrix(size // 2)
    return torch.cat([rest @ low, rest @ high])


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_wavelets_are_a_matrix_along_each_axis(patch):
    torch.manual_seed(0)
    frames, rows, columns = 2, 3, 2
    pixels = torch.randn(1, 3, 1 + patch * frames, patch * rows, patch * columns)
    coefficients = haar(pixels, patch)
    assert coefficients.shape == (1, 3 * patch**3, 1 + frames, rows, columns)
    matrix, levels = haar_matrix(patch), int(math.log2(patch))
    repeated = torch.cat([pixels[:, :, :1]] * (patch - 1) + [pixels], dim=2)
    for t, row, column in itertools.product(range(1 + frames), range(rows), range(columns)):
        place = [slice(patch * at, patch * at + patch) for at in (t, row, column)]
        block = torch.einsum("bcthw,xt,yh,zw->bcxyz", repeated[(..., *place)], matrix, matrix, matrix)[0]
        for index in itertools.product(range(patch), repeat=3):
            # the last halving comes first, its bits of the axes side by side; the colour comes last
            bits = [[index[axis] >> level & 1 for axis in range(3)] for level in range(levels)]
            channel = 0
            for bit in itertools.chain(*bits):
                channel = 2 * channel + bit
            torch.testing.assert_close(
                coefficients[0, 3 * channel : 3 * channel + 3, t, row, column], block[(slice(None), *index)]
            )
    torch.testing.assert_close(unhaar(coefficients, patch), pixels)


@pytest.mark.parametrize("levels", [[8, 8, 8, 5, 5, 5], [4, 3], [5]])
def test_latents_become_the_nearest_of_equally_spaced_digits(levels):
    torch.manual_seed(0)
    latents = 2 * torch.randn(2, len(levels), 3, 4)
    indices = nearest(latents, levels)
    assert indices.shape == (2, 3, 4)
    for at in itertools.product(*map(range, indices.shape)):
        expected, worth = 0, 1
        for dimension, count in enumerate(levels):
            reach, shift = (count - 1) * 1.001 / 2, (1 - count % 2) / 2
            value = latents[at[0], dimension, at[1], at[2]].item()
            bounded = math.tanh(value + math.atanh(shift / reach)) * reach - shift
            digit = min(range(count), key=lambda digit: abs(digit - count // 2 - bounded))
            expected, worth = expected + digit * worth, worth * count
        assert indices[at] == expected


def test_codes_of_all_indices_are_told_apart_and_found_again():
    levels = [8, 5, 3]
    indices = torch.arange(120)[None]
    codes = lookup(indices, levels)
    assert len(codes[0].unique(dim=1).T) == 120
    assert [sorted(set(codes[0, d].tolist())) for d in (1, 2)] == [[-1, -0.5, 0, 0.5, 1], [-1, 0, 1]]
    count = torch.tensor(levels)[:, None]
    reach, shift = (count - 1) * 1.001 / 2, (1 - count % 2) / 2
    latents = ((codes[0] * (count // 2) + shift) / reach).atanh() - (shift / reach).atanh()
    assert nearest(latents[None], levels).equal(indices)
