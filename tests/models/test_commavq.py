"""commaVQ against its authors' code (see tests/data/commavq.py) and against transformers' GPT-2."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import zipar
from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, ZipAR
from zipar.decoding.engine import decode
from zipar.image_tokenizers.commavq import CommaVQTokenizer
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.commavq import GPT, CommaVQ, CommaVQConfig

RECORDED = load_file(Path(__file__).parents[1] / "data" / "commavq.safetensors")
FRAMES = RECORDED["sequence"].view(4, -1)[:, 1:].view(4, 3, 4)
"""One that was given, and three that the authors' code decoded greedily."""
GREEDY, SAMPLED = Sampling(temperature=0), Sampling(temperature=1.2, top_k=30)


def decoded(model, strategy, given, *, frames=4, sampling=GREEDY, seeds=(0,), **settings):
    """Clips that go on from ``given``, int64 (given frames, rows, columns): int64 (clips, frames, rows, columns)."""
    grid = model.clip(12, 16, frames, len(given))
    codes = given.expand(len(seeds), -1, -1, -1) if len(given) else None
    with torch.inference_mode():
        prefix = model.prefix([""] * len(seeds), None, False, grid, codes)
    result = decode(model, prefix, grid, strategy, sampling, list(seeds), **settings)
    return grid.pick(result.tokens).view(len(seeds), frames, 3, 4)


def test_the_published_size_has_the_parameters_of_the_authors_model():
    with torch.device("meta"):
        decoder = GPT(CommaVQConfig())
    assert sum(weight.numel() for weight in decoder.parameters()) == 307_052_544
    assert decoder.config.positions == 2580


@torch.inference_mode()
def test_logits_are_those_of_the_authors(commavq):
    sequence = RECORDED["sequence"][None]
    embeddings = commavq.decoder.transformer.wte(sequence)
    mask = torch.full((52, 52), float("-inf")).triu(1)
    logits = commavq.decoder(embeddings, torch.arange(52)[None], mask)
    torch.testing.assert_close(logits[0], RECORDED["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("given", [1, 2, 3])
def test_greedy_raster_decoding_gives_the_tokens_of_the_authors_whatever_is_given_of_them(commavq, given):
    assert decoded(commavq, Raster(), FRAMES[:given])[0].equal(FRAMES)
    assert decoded(commavq, Raster(), FRAMES[:given], deterministic=True)[0].equal(FRAMES)


@pytest.fixture(scope="module")
def gpt2(commavq):
    """Transformers' GPT-2 with the same weights, in its layout."""
    config = commavq.decoder.config
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.codes + 1,
            n_positions=config.positions,
            n_embd=config.dim,
            n_layer=config.layers,
            n_head=config.heads,
            bos_token_id=config.bos,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    ).eval()
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = commavq.decoder.state_dict()
    model.load_state_dict({name: w.T if name.endswith(transposed) else w for name, w in weights.items()})
    return model


@torch.inference_mode()
def imagined(gpt2, frames, **settings):
    """A clip from nothing: a token that begins each frame, then 12 of transformers' own."""
    sequence = torch.empty(1, 0, dtype=torch.int64)
    for _ in range(frames):
        sequence = torch.cat([sequence, torch.tensor([[60]])], dim=1)
        mask = torch.ones_like(sequence)
        sequence = gpt2.generate(
            sequence, attention_mask=mask, max_new_tokens=12, suppress_tokens=[60], pad_token_id=60, **settings
        )
    return sequence.view(frames, 13)[:, 1:].view(frames, 3, 4)


def test_greedy_raster_decoding_gives_the_tokens_of_transformers(commavq, gpt2):
    clip = decoded(commavq, Raster(), FRAMES[:0])[0]
    assert clip.equal(imagined(gpt2, 4, do_sample=False))
    assert len(clip.unique()) > 10
    assert decoded(commavq, Raster(), clip[:2])[0].equal(clip)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_frames_that_are_given_count_as_those_that_are_decoded(commavq, sampling):
    clips = decoded(commavq, Raster(), FRAMES[:0], sampling=sampling, seeds=[3, 4])
    for seed, clip in zip((3, 4), clips, strict=True):
        for given in (1, 3):
            assert decoded(commavq, Raster(), clip[:given], sampling=sampling, seeds=[seed])[0].equal(clip)
    other = clips[0, :1].roll(1, -1)
    assert not decoded(commavq, Raster(), other, sampling=sampling, seeds=[3])[0, 1:].equal(clips[0, 1:])


@pytest.fixture(scope="module")
def raster(commavq):
    """raster(sampling, given frames) -> clips."""
    return cache(lambda sampling, given: decoded(commavq, Raster(), FRAMES[:given], sampling=sampling, seeds=[5, 6, 7]))


@pytest.mark.parametrize(("sampling", "given"), [(GREEDY, 2), (SAMPLED, 0), (SAMPLED, 2)], ids=str)
@pytest.mark.parametrize(
    "strategy",
    [ZipAR(4), ZipAR(4, lookahead=8), AdaptiveZipAR(4), CoupledJacobi(16), CoupledJacobi(3, window=2)],
    ids=str,
)
def test_exact_strategies_and_windows_as_wide_as_a_row_give_rasters_clips(commavq, raster, strategy, sampling, given):
    clips = decoded(commavq, strategy, FRAMES[:given], sampling=sampling, seeds=[5, 6, 7])
    assert clips.equal(raster(sampling, given))
    assert clips[:, :given].equal(FRAMES[:given].expand(3, -1, -1, -1))


@pytest.mark.parametrize("strategy", [ZipAR(1), ZipAR(2), ZipAR(2, lookahead=3), AdaptiveZipAR(1)], ids=str)
def test_a_clip_is_that_of_its_seed_in_any_batch(commavq, strategy):
    settings = {"sampling": SAMPLED}
    together = decoded(commavq, strategy, FRAMES[:1], seeds=[5, 6, 7], **settings)
    assert len({tuple(clip.flatten().tolist()) for clip in together}) == 3
    for seed, clip in zip((5, 6, 7), together, strict=True):
        assert decoded(commavq, strategy, FRAMES[:1], seeds=[seed], **settings)[0].equal(clip)


def test_no_token_that_begins_a_frame_is_drawn_within_one(commavq):
    clips = decoded(commavq, Raster(), FRAMES[:1], sampling=Sampling(temperature=50), seeds=range(40))
    assert clips.max() == 59


@torch.inference_mode()
def test_frames_are_read_and_painted_as_the_authors_do(commavq, commavq_recipe):
    frames = commavq_recipe.frames(3)
    codes = commavq.read(frames[None])
    assert codes.dtype == torch.int64
    assert codes.view(3, 12).equal(RECORDED["codes"])
    assert commavq.read(torch.stack([frames[:2], frames[1:]]))[:, 1].equal(codes[0, 1:])
    pixels = commavq.pixels(FRAMES[None, :2])
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1, 2, 12, 16, 3)
    theirs = RECORDED["pixels"].clamp(0, 255).permute(0, 2, 3, 1)
    assert (pixels[0] <= theirs + 1e-3).all()
    assert (pixels[0] > theirs - 1.001).all()


def test_frames_of_another_size_are_refused(commavq):
    for frames in (torch.zeros(1, 2, 16, 12, 3), torch.zeros(1, 2, 16, 12, 3).byte(), torch.zeros(2, 12, 16, 3).byte()):
        with pytest.raises(zipar.ZipARError, match=r"are not possible: use uint8 \(clips, frames, 12, 16, 3\)"):
            commavq.read(frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 12, 4), "no frames of 16x12 pixels .*: it was trained on 12x16 alone"),
        ((12, 16, 5), "frames 5 is not possible: use a whole number from 1 to 4"),
        ((12, 16, 0), "frames 0 is not possible: use a whole number from 1 to 4"),
        ((12, 16, 4, 4), "given 4 is not possible: use a whole number from 0 to 3"),
        ((12, 16, 1, -1), "given -1 is not possible"),
    ],
)
def test_clips_that_are_not_possible(commavq, arguments, message):
    with pytest.raises(zipar.ZipARError, match=message):
        commavq.clip(*arguments)


def test_grids_have_a_known_token_before_each_frame_the_first_one_in_the_prompt(commavq):
    grid = commavq.clip(12, 16, 3, 1)
    assert (grid.slots, grid.tokens, grid.first) == (39, 24, 13)
    assert grid.blank()[[12, 25, 38]].tolist() == [60] * 3
    assert commavq.grid(12, 16) == commavq.clip(12, 16, 4)
    assert (commavq.frames, commavq.context, commavq.fps) == (4, 4, 20)
    prefix = commavq.prefix([""], None, False, grid, FRAMES[None, :1])
    embedded = commavq.decoder.transformer.wte(torch.tensor([[60, *FRAMES[0].flatten(), 60]]))
    assert prefix.embeddings.equal(embedded)
    assert prefix.given[0].tolist() == [*FRAMES[0].flatten(), 60]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a road"], None, False), "prompt 'a road' is not possible: use an empty one"),
        ((["", "7"], None, False), "prompt '7' is not possible"),
        (([""], None, True), "no guidance: leave the scale at 1"),
        (([""], [""], False), "no guidance: .* negative prompts out"),
    ],
)
def test_there_is_nothing_to_say(commavq, arguments, message):
    with pytest.raises(zipar.ZipARError, match=message):
        commavq.prefix(*arguments, commavq.clip(12, 16, 2))


def test_examples_and_defaults_suit_the_model(commavq):
    assert commavq.examples(2) == ["", ""]
    assert commavq.defaults == Sampling(guidance_scale=1, temperature=1, top_k=0, top_p=1)


def test_parts_that_do_not_belong_together(commavq):
    with pytest.raises(zipar.ZipARError, match="decoder knows 60 tokens and the image tokenizer 61"):
        CommaVQ(commavq.decoder, CommaVQTokenizer(VQConfig(61, 8, 32, (1,), 1, 8)))


class TestPipeline:
    def test_goes_on_from_frames_and_past_what_it_sees_at_once(self, commavq, commavq_recipe):
        frames = commavq_recipe.frames(3)[1:]
        output = zipar.pipeline(commavq)("", given=frames.numpy(), frames=7, strategy="raster", temperature=0)
        tokens = torch.from_numpy(output.tokens).long()[0]
        assert tokens[:2].flatten(1).equal(RECORDED["codes"][1:])
        assert decoded(commavq, Raster(), tokens[:2])[0].equal(tokens[:4])
        assert decoded(commavq, Raster(), tokens[2:4])[0].equal(tokens[2:6])
        assert decoded(commavq, Raster(), tokens[4:6], frames=3)[0].equal(tokens[4:])
        (video,) = output.videos
        assert (len(video.frames), video.frames[0].size, video.fps) == (7, (16, 12), 20)
        assert (output.images, output.stats.forward_passes) == ([], 5 * 12)

    @pytest.mark.parametrize(
        ("strategy", "passes"), [("raster", 36), ("zipar:2", 30), ("zipar:1:wave", 18), ("zipar:1:wave@4", 14)]
    )
    def test_known_tokens_and_given_frames_cost_no_pass(self, commavq, commavq_recipe, strategy, passes):
        output = zipar.pipeline(commavq)("", given=commavq_recipe.frames(1).numpy(), strategy=strategy)
        assert output.stats.forward_passes == passes
        assert output.born.max() == passes - 1

    def test_clips_of_a_call_are_those_of_their_seeds(self, commavq):
        pipe = zipar.pipeline(commavq)
        together = pipe("", num_images_per_prompt=3, frames=6)
        alone = [pipe("", seed=seed, frames=6) for seed in range(3)]
        assert [clip.tolist() for clip in together.tokens] == [output.tokens[0].tolist() for output in alone]
        assert (together.tokens[0] != together.tokens[1]).any()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"prompt": "rain"}, "prompt 'rain' is not possible: use an empty one"),
            ({"guidance_scale": 2}, "no guidance"),
            ({"height": 16}, "no frames of 16x16 pixels"),
            ({"frames": 0}, "frames 0 is not possible"),
        ],
    )
    def test_what_it_cannot_do(self, commavq, arguments, message):
        with pytest.raises(zipar.ZipARError, match=message):
            zipar.pipeline(commavq)(**{"prompt": "", **arguments})
