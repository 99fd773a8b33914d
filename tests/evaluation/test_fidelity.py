"""Fidelity against a plain forward over prompt and image."""

import numpy as np
import pytest
import scipy.stats
import torch

from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, TokenGrid, ZipAR
from zipar.decoding.attention import additive
from zipar.decoding.engine import decode
from zipar.evaluation.fidelity import likelihood

TEXTS = ["a red fox in the snow", "fox", "two small birds"]
SAMPLINGS = {
    "plain": Sampling(),
    "top-k": Sampling(2.5, 0.7, top_k=20),
    "top-k and top-p": Sampling(2.0, top_k=30, top_p=0.7),
    "min-p": Sampling(2.0, min_p=0.1),
    "greedy": Sampling(temperature=0),
}
GRIDS = {"plain": TokenGrid(4, 5), "row and frame ends": TokenGrid(3, 3, frames=2, row_end=7, frame_end=(8, 9))}


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def drawn_from(logits, sampling):
    """What raster decoding draws a token from, (vocabulary,), by the definitions of the filters."""
    if sampling.temperature == 0:
        return (np.arange(len(logits)) == logits.argmax()).astype(float)
    shares = softmax(logits / sampling.temperature)
    order = np.argsort(-shares)
    if sampling.top_k:
        shares[order[sampling.top_k :]] = 0
    shares /= shares.sum()
    # the fewest of the likeliest tokens that hold a share of top-p
    shares[order[1:][shares[order].cumsum()[:-1] >= sampling.top_p]] = 0
    shares[shares < sampling.min_p * shares.max()] = 0
    return shares / shares.sum()


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("chunk", [1024, 4])
def test_equals_one_plain_forward(tiny_models, grid, sampling, chunk):
    model = tiny_models.by_text
    with torch.inference_mode():
        prefix = model.prefix(TEXTS, None, sampling.guided, grid)
        tokens = decode(model, prefix, grid, ZipAR(2), sampling, [1, 2, 3]).tokens
        found = likelihood(model, prefix, grid, tokens, sampling, chunk)
        for image, text in enumerate(TEXTS):
            branches = []
            alone = model.prefix([text], None, sampling.guided, grid)
            for embeddings in alone.embeddings:
                hidden = torch.cat([embeddings, model.decoder.tok_embeddings(tokens[image, :-1])])[None]
                length = hidden.shape[1]
                rotary = torch.cat(
                    [torch.zeros(len(embeddings), model.rotary.shape[1]), model.rotary[: grid.slots - 1]]
                )[None]
                seen = torch.ones(1, length, length, dtype=torch.bool).tril()
                states = model.decoder(hidden, rotary, additive(seen, hidden.dtype))
                branches.append(model.decoder.output(states)[0, len(embeddings) - 1 :])
            logits = branches[0]
            if sampling.guided:
                logits = branches[1] + sampling.guidance_scale * (branches[0] - branches[1])
            expected = []
            for slot in grid.free().flatten():
                row, token = logits[slot].double().numpy(), tokens[image, slot]
                before = softmax(row / (sampling.temperature or 1))[token]
                after = drawn_from(row, sampling)
                entropy = scipy.stats.entropy(after)
                expected.append(
                    (-np.log(before), after[token] == 0, -np.log(after[token] or before) - entropy, entropy)
                )
            figures = torch.stack(found)[:, image].numpy()
            np.testing.assert_allclose(figures, np.mean(expected, axis=0), atol=1e-5, rtol=1e-5)


def test_raster_draws_nothing_that_raster_could_not(tiny_models):
    model, grid, sampling = tiny_models.by_text, TokenGrid(4, 5), Sampling(2.0, top_k=5, top_p=0.8)
    with torch.inference_mode():
        prefix = model.prefix(TEXTS, None, True, grid)
        outside = {
            strategy: likelihood(
                model, prefix, grid, decode(model, prefix, grid, strategy, sampling, [1, 2, 3]).tokens, sampling
            ).outside
            for strategy in (Raster(), ZipAR(1))
        }
    assert not outside[Raster()].any()
    assert outside[ZipAR(1)].all()


def test_raster_samples_are_as_likely_as_the_model_is_sure(tiny_models):
    """Greedy tokens are the likeliest of all, so nothing else can have a lower figure."""
    model, grid = tiny_models.by_text, TokenGrid(4, 5)
    greedy, free = Sampling(temperature=0), Sampling()
    with torch.inference_mode():
        prefix = model.prefix(TEXTS, None, False, grid)
        figures = {
            name: likelihood(
                model, prefix, grid, decode(model, prefix, grid, strategy, sampling, [1, 2, 3]).tokens, free
            ).nats.mean()
            for name, strategy, sampling in (
                ("greedy", Raster(), greedy),
                ("raster", Raster(), free),
                ("zipar", ZipAR(1), free),
            )
        }
    assert figures["greedy"] < figures["raster"]
    assert figures["greedy"] < figures["zipar"]


MILD = Sampling(temperature=0.5)
"""At which tokens of the tiny model have an entropy of about 1.5 nats."""


@pytest.fixture(scope="module")
def raster(tiny_models):
    """Raster images of many prompts, one a seed, and how likely they are as draws at MILD: (draw, judge)."""
    model = tiny_models.by_text

    def prefix(grid, count):
        return model.prefix([f"fox {'a' * (i % 60)} {'b' * (i // 60)}" for i in range(count)], None, False, grid)

    def draw(grid, count, sampling=MILD):
        with torch.inference_mode():
            tokens = decode(model, prefix(grid, count), grid, Raster(), sampling, range(count)).tokens
        return tokens.clone()

    def judge(grid, tokens):
        with torch.inference_mode():
            return likelihood(model, prefix(grid, len(tokens)), grid, tokens, MILD)

    return draw, judge


def interval(excess):
    """95 %, over images."""
    return scipy.stats.norm.interval(0.95, excess.mean(), scipy.stats.sem(excess))


SQUARE = TokenGrid(6, 6)
IMAGES = 400


def greedy(draw):
    return draw(SQUARE, IMAGES, Sampling(temperature=0))


def colder(draw):
    return draw(SQUARE, IMAGES, Sampling(temperature=0.95 * MILD.temperature))


def hotter(draw):
    return draw(SQUARE, IMAGES, Sampling(temperature=1.05 * MILD.temperature))


def shuffled_row(draw):
    tokens = draw(SQUARE, IMAGES)
    order = torch.rand(IMAGES, 6, generator=torch.Generator().manual_seed(0)).argsort(1)
    tokens[:, 18:24] = tokens[:, 18:24].gather(1, order)
    return tokens


def frozen_slot(draw):
    tokens = draw(SQUARE, IMAGES)
    tokens[:, 14] = 7
    return tokens


@pytest.mark.parametrize(
    ("fault", "sign"),
    [(greedy, -1), (colder, -1), (hotter, 1), (shuffled_row, 1), (frozen_slot, 1)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_faults_are_seen_with_their_sign(raster, fault, sign):
    draw, judge = raster
    low, high = interval(judge(SQUARE, fault(draw)).excess.numpy())
    assert min(sign * low, sign * high) > 0


def test_raster_is_not_taken_for_faulty(raster):
    """A 95 % interval misses 0 in 5 of 100 runs on average, and in more than 10 with a probability of 1.15 %."""
    draw, judge = raster
    assert scipy.stats.binom.sf(10, 100, 0.05) < 0.012
    grid = TokenGrid(4, 4)
    found = judge(grid, draw(grid, 100 * 32))
    assert 1 < found.entropy.mean() < 2
    bounds = [interval(run.numpy()) for run in found.excess.split(32)]
    assert sum(low <= 0 <= high for low, high in bounds) >= 90


@pytest.mark.parametrize("sampling", [MILD, Sampling(temperature=0.5, top_k=8), Sampling(temperature=0.5, top_p=0.8)])
@pytest.mark.parametrize("strategy", [Raster(), CoupledJacobi(4), CoupledJacobi(4, 2), ZipAR(6)])
def test_lossless_images_do_not_diverge(tiny_models, strategy, sampling):
    """Not one of them: the divergence needs no average where q is p."""
    model, grid = tiny_models.by_text, SQUARE
    with torch.inference_mode():
        prefix = model.prefix(["a fox", "two foxes", "snow"], None, False)
        decoded = decode(model, prefix, grid, strategy, sampling, range(3))
        found = likelihood(model, prefix, grid, decoded.tokens, sampling)
    assert found.divergence(decoded.log_probabilities, grid).abs().max() < 1e-5
    assert (decoded.log_probabilities < 0).any()


@pytest.mark.parametrize("strategy", [ZipAR(1), ZipAR(2), ZipAR(3, nats=2.0), AdaptiveZipAR(1)])
def test_divergence_is_of_distributions_of_images(tiny_models, strategy):
    """Images x of a distribution q have a mean p(x) / q(x) of 1, whatever p and q are that draw the same images."""
    model, grid, images = tiny_models.by_text, TokenGrid(3, 3), 4000
    sampling = Sampling(temperature=1.5)
    ratios, divergences = [], []
    with torch.inference_mode():
        for first in range(0, images, 500):
            prefix = model.prefix(["a fox"] * 500, None, False)
            decoded = decode(model, prefix, grid, strategy, sampling, range(first, first + 500))
            found = likelihood(model, prefix, grid, decoded.tokens, sampling)
            divergences.append(found.divergence(decoded.log_probabilities, grid))
            ratios.append((-divergences[-1] * grid.tokens).exp())
    ratio, divergence = torch.cat(ratios), torch.cat(divergences)
    assert abs(ratio.mean() - 1) < 4 * scipy.stats.sem(ratio)
    assert scipy.stats.sem(ratio) < 0.1
    assert interval(divergence.numpy())[0] > 0
