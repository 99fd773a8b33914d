"""Cosmos against its authors' code (see tests/data/cosmos.py), and under every strategy."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import zipar
from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, ZipAR
from zipar.decoding.engine import decode
from zipar.models.cosmos import CosmosConfig, Transformer, frequencies, rotary_3d

RECORDED = load_file(Path(__file__).parents[1] / "data" / "cosmos.safetensors")
FILTERED = Sampling(temperature=1.3, top_p=0.9)
GREEDY = Sampling(temperature=0)
SEEDS = [3, 2**70 + 8]


def published(recipe, name):
    """The config of a published size."""
    size = recipe.PUBLISHED[name]
    shape = [size[key] for key in ("n_layers", "dim", "n_heads", "n_kv_heads", "head_dim", "ffn_hidden_size")]
    return CosmosConfig(*shape, trained={"4b": None, "12b": (3, 40)}[name])


def given_codes(frames, images=1):
    """The recorded codes of frames, and of others for more images."""
    codes = RECORDED[f"codes.{frames}"].long()
    return torch.stack([(codes + 7 * image) % 60 for image in range(images)])


def decoded(model, frames, strategy, sampling=FILTERED, seeds=SEEDS, clip=33):
    """Tokens (images, frames, rows, columns), given ones included, and forward passes."""
    grid = model.clip(48, 96, clip, frames)
    codes = given_codes(frames, len(seeds))
    with torch.inference_mode():
        prefix = model.prefix([""] * len(seeds), None, False, grid, codes)
        result = decode(model, prefix, grid, strategy, sampling, seeds)
    tokens = result.tokens[:, grid.places()]
    assert tokens[:, : codes.shape[1]].equal(codes)
    return tokens, result.forward_passes


@pytest.mark.parametrize(("name", "parameters"), [("4b", 4_000_000_000), ("12b", 12_000_000_000)])
def test_published_sizes_have_the_tensors_and_rotations_of_the_authors(cosmos_recipe, name, parameters):
    config = published(cosmos_recipe, name)
    with torch.device("meta"):
        decoder = Transformer(config)
    assert cosmos_recipe.digest(cosmos_recipe.shapes_of(decoder)).equal(RECORDED[f"names.{name}"])
    assert sum(weight.numel() for weight in decoder.parameters()) == pytest.approx(parameters, rel=0.05)
    rotary = rotary_3d(config)
    assert rotary.shape == (12800, 64)
    found = torch.view_as_real(rotary[cosmos_recipe.SLOTS]).movedim(-1, 0)
    torch.testing.assert_close(found, RECORDED[f"rotary.{name}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("trained", [None, (3, 40)])
def test_pairs_turn_with_the_frame_then_the_row_then_the_column(trained):
    grid, head_dim = (5, 4, 6), 32
    config = CosmosConfig(1, 32, 1, 1, head_dim, 8, grid=grid, trained=trained)
    rotary = rotary_3d(config)
    assert rotary.shape == (120, 16)
    for slot in (0, 5, 29, 77, 119):
        place = (slot // 24, slot % 24 // 6, slot % 6)
        pair = 0
        for axis, width in enumerate((12, 10, 10)):
            for i in range(width // 2):
                angle = 500000 ** (-2 * i / width)
                if trained is not None:
                    turns = angle * trained[min(axis, 1)] / (2 * math.pi)
                    share = min(max((turns - 1) / 3, 0), 1)
                    angle = share * angle + (1 - share) * angle / 2
                angle *= place[axis]
                expected = complex(math.cos(angle), math.sin(angle))
                assert abs(rotary[slot, pair].item() - expected) < 1e-5
                pair += 1


def test_yarn_halves_slow_turns_and_leaves_fast_ones():
    plain, stretched = frequencies(42, 500000.0, None), frequencies(42, 500000.0, 40)
    turns = plain * 40 / (2 * math.pi)
    assert stretched[turns > 4].equal(plain[turns > 4])
    assert stretched[turns < 1].equal(plain[turns < 1] / 2)
    assert (turns > 4).any()


@pytest.mark.parametrize("kind", ["plain", "yarn"])
@torch.inference_mode()
def test_logits_are_those_of_the_authors(cosmos_models, cosmos_recipe, kind):
    decoder = cosmos_models(kind).decoder
    tokens = RECORDED[f"{kind}.9.tokens"].long().view(1, -1)
    mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    hidden = decoder(decoder.tok_embeddings(tokens), cosmos_models(kind).rotary[None], mask)
    logits = decoder.output(hidden)[0, 17:-1][::3]
    torch.testing.assert_close(logits, RECORDED[f"{kind}.logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("kind", ["plain", "yarn"])
def test_greedy_raster_decoding_gives_the_tokens_of_the_authors(cosmos_models, kind, frames):
    tokens, passes = decoded(cosmos_models(kind), frames, Raster(), GREEDY, [0])
    assert tokens[0].equal(RECORDED[f"{kind}.{frames}.tokens"].long())
    assert passes == {1: 4, 9: 3}[frames] * 18


@pytest.mark.parametrize("frames", [1, 9])
def test_a_shorter_clip_is_the_beginning_of_a_longer_one(cosmos_models, frames):
    model = cosmos_models("yarn")
    whole, _ = decoded(model, frames, Raster())
    for clip, count in ((17, 3), (25, 4)):
        assert decoded(model, frames, Raster(), clip=clip)[0].equal(whole[:, :count])


@pytest.mark.parametrize(
    ("strategy", "sampling", "frames"),
    [(CoupledJacobi(7), FILTERED, 1), (CoupledJacobi(7), GREEDY, 9), (CoupledJacobi(4, window=2), FILTERED, 9)],
    ids=str,
)
def test_jacobi_gives_the_tokens_of_raster_in_no_more_passes(cosmos_models, strategy, sampling, frames):
    expected, usual = decoded(cosmos_models("yarn"), frames, Raster(), sampling)
    tokens, passes = decoded(cosmos_models("yarn"), frames, strategy, sampling)
    assert tokens.equal(expected)
    assert passes <= usual


@pytest.mark.parametrize("make", [lambda window: ZipAR(window, lookahead=4), AdaptiveZipAR])
def test_windows_as_wide_as_the_grid_give_the_tokens_of_raster(cosmos_models, make):
    expected, usual = decoded(cosmos_models("yarn"), 1, Raster())
    assert decoded(cosmos_models("yarn"), 1, make(6))[0].equal(expected)
    narrow, passes = decoded(cosmos_models("yarn"), 1, make(1))
    assert not narrow.equal(expected)
    assert passes < usual


@pytest.mark.parametrize(
    "strategy", [Raster(), ZipAR(2), ZipAR(2, frame_delay=7), ZipAR(2, lookahead=4), AdaptiveZipAR(2)], ids=str
)
def test_a_clip_is_that_of_its_seed_in_any_batch(cosmos_models, strategy):
    together, _ = decoded(cosmos_models("plain"), 9, strategy)
    alone, _ = decoded(cosmos_models("plain"), 9, strategy, seeds=SEEDS[:1])
    assert together[:1].equal(alone)


@torch.inference_mode()
def test_frames_become_tokens_and_tokens_frames(cosmos_models, cosmos_recipe):
    model = cosmos_models("plain")
    clip = cosmos_recipe.video(33)
    tokens = model.read(clip[None])
    assert tokens.equal(RECORDED["codes.33"][None].long())
    assert model.read(torch.stack([clip[:9], clip[9:18]]))[0].equal(RECORDED["codes.9"].long())
    pixels = model.pixels(tokens)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (1, 33, 48, 96, 3))
    wanted = ((RECORDED["pixels"] * 0.5 + 0.5).clamp(0, 1) * 255).permute(1, 2, 3, 0)
    found = pixels[0, ::4, ::7, ::5].float()
    assert (found - (wanted - 0.5)).abs().max() < 0.51  # the authors round down
    assert ((found > 0) & (found < 255)).any()
    assert model.pixels(tokens.repeat(2, 1, 1, 1))[1].equal(pixels[0])


def test_clips_go_on_past_the_context_from_their_last_nine_frames(cosmos_models, cosmos_recipe):
    pipe, settings = zipar.Pipeline(cosmos_models("plain")), {"strategy": "raster", "temperature": 0}
    output = pipe("", given=cosmos_recipe.video(9).numpy(), frames=57, **settings)
    expected = RECORDED["plain.9.tokens"].long()
    assert output.tokens.shape == (1, 8, 3, 6)
    assert torch.from_numpy(output.tokens[0, :5]).equal(expected.int())
    assert len(output.videos[0].frames) == 57
    pixels = torch.stack([torch.tensor(np.asarray(frame)) for frame in output.videos[0].frames])
    with torch.inference_mode():
        assert pixels[None, :33].equal(pipe.model.pixels(expected[None]))
    anew = pipe("", given=pixels[24:33].numpy(), **settings)
    assert (anew.tokens[0, 2:] == output.tokens[0, 5:]).all()
    assert output.stats.forward_passes == 2 * 54
    alike = pipe(["", ""], given=cosmos_recipe.video(9).numpy(), deterministic=True, **settings)
    assert (alike.tokens == output.tokens[:, :5]).all()


@pytest.mark.parametrize("frames", [0, 2, 8, 34])
def test_frames_that_make_no_whole_tokens(cosmos_models, frames):
    with pytest.raises(zipar.ZipARError, match=f"^{frames} frames make no whole tokens: give 1, or 8 more"):
        cosmos_models("plain").read(torch.zeros(1, frames, 48, 96, 3, dtype=torch.uint8))


def test_clips_are_those_of_the_authors_or_shorter(cosmos_models):
    model = cosmos_models("plain")
    assert (model.frames, model.image_size, model.context) == (33, (48, 96), 33)
    for frames, given, counts in ((33, 1, (5, 1)), (33, 9, (5, 2)), (17, 9, (3, 2)), (9, 1, (2, 1))):
        grid = model.clip(48, 96, frames, given)
        assert (grid.frames, grid.given, grid.rows, grid.columns) == (*counts, 3, 6)
        assert grid.slots == 18 * counts[0]


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((96, 48, 33, 1), r"96x48 pixels .*trained on 48x96 alone"),
        ((48, 96, 33, 0), "33 frames, 0 of them given, .* makes 9, 17, 25 or 33 frames at a time, the first 1 or 9 of"),
        ((48, 96, 33, 17), "33 frames, 17 of them given"),
        ((48, 96, 32, 1), "32 frames, 1 of them given"),
        ((48, 96, 9, 9), "9 frames, 9 of them given"),
        ((48, 96, 41, 9), "41 frames, 9 of them given"),
        ((48, 96, 1, 1), "1 frames, 1 of them given"),
    ],
)
def test_clips_that_are_not_possible(cosmos_models, clip, message):
    with pytest.raises(zipar.ZipARError, match=message):
        cosmos_models("plain").clip(*clip)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["", "a fox"], None, False, 1), "prompt 'a fox': a Cosmos base model reads no text"),
        (([""], ["blurry"], False, 1), "prompt 'blurry'"),
        (([""], None, True, 1), "leave the guidance scale at 1"),
        (([""], None, False, None), "give it 1 or 9 frames"),
    ],
)
def test_prompts_are_frames_alone(cosmos_models, arguments, message):
    model = cosmos_models("plain")
    *texts, frames = arguments
    codes = None if frames is None else given_codes(frames, len(texts[0]))
    with pytest.raises(zipar.ZipARError, match=message):
        model.prefix(*texts, model.clip(48, 96, 33, 1), codes)
