"""Statistical tests use fixed inputs, so they do not flake; the error rates stated are those of their bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zipar import Sampling, ZipARError
from zipar.decoding.sampling import COLDEST, STRONGEST, Draw, filter_logits, guide, gumbel, probabilities, sample

RANGE = torch.arange


def draw_tokens(logits, sampling, seeds, slots):
    draw = Draw.of(sampling, seeds)
    return sample(filter_logits(logits, draw), draw, gumbel(draw.seeds, slots, logits.shape[-1]))


def transformers_filters(sampling):
    """The same filters, by transformers."""
    filters = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        filters.append(MinPLogitsWarper(sampling.min_p))
    return filters


@given(
    seed=st.integers(0, 2**32 - 1),
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0.1, 5),
        top_k=st.integers(0, 40),
        top_p=st.floats(0.01, 1),
        min_p=st.floats(0, 1),
        guidance_scale=st.just(1),
    ),
    ties=st.booleans(),
)
def test_filters_agree_with_transformers(seed, sampling, ties):
    logits = 3 * torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(seed))
    if ties:
        logits = logits.round()
    expected = transformers_filters(sampling)(None, logits.flatten(0, 1)).view(2, 3, 32)
    assert filter_logits(logits, Draw.of(sampling, [0, 0])).equal(expected)


def test_filters_leave_at_least_the_likeliest_token():
    logits = torch.tensor([[[0.0, 3.0, 1.0]]])
    for sampling in Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(min_p=1):
        assert filter_logits(logits, Draw.of(sampling, [0])).isfinite().tolist() == [[[False, True, False]]]


def test_a_token_that_completes_top_p_exactly_is_the_last_one_kept():
    assert filter_logits(torch.zeros(1, 1, 4), Draw.of(Sampling(top_p=0.5), [0])).isfinite().sum() == 2


def test_guidance_moves_away_from_the_unconditional_branch():
    conditional, unconditional = torch.randn(2, 3, 1, 5)
    both = torch.stack([conditional, unconditional], 1).flatten(0, 1)
    torch.testing.assert_close(guide(both, 4.0), 4 * conditional - 3 * unconditional)
    torch.testing.assert_close(guide(both, 1.0), conditional)
    torch.testing.assert_close(guide(both, 0.0), unconditional)
    each = guide(both, torch.tensor([4.0, 1.0, 0.0])[:, None, None])
    torch.testing.assert_close(
        each, torch.stack([4 * conditional[0] - 3 * unconditional[0], conditional[1], unconditional[2]])
    )
    assert Sampling(guidance_scale=0).guided
    assert not Sampling().guided


def test_temperature_0_is_greedy():
    logits = torch.randn(3, 4, 20)
    assert draw_tokens(logits, Sampling(temperature=0), RANGE(3), RANGE(4)[None]).equal(logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-39, 1e-30, 9e-21])
def test_a_temperature_that_logits_cannot_be_divided_by_is_greedy(temperature):
    torch.manual_seed(0)
    logits = guide(torch.randn(6, 4, 50) * 1e6, STRONGEST)
    assert draw_tokens(logits, Sampling(temperature=temperature), RANGE(3), RANGE(4)[None]).equal(logits.argmax(-1))


def test_the_coldest_and_strongest_stay_finite():
    logits = guide(torch.randn(6, 4, 50) * 1e6, STRONGEST)
    assert filter_logits(logits, Draw.of(Sampling(temperature=COLDEST), [0, 1, 2])).isfinite().all()


def test_images_of_one_batch_have_temperatures_of_their_own():
    logits, slots = torch.randn(3, 4, 20), RANGE(4)[None]
    draws = [Draw.of(Sampling(temperature=each), [5]) for each in (0.0, 0.7, 2.0)]
    together = Draw(*(torch.cat([draw[part] for draw in draws]) for part in range(3)))
    for image, draw in enumerate(draws):
        part = slice(image, image + 1)
        noise = gumbel(together.seeds, slots, 20)
        both, one = filter_logits(logits, together), filter_logits(logits[part], draw)
        assert sample(both, together, noise)[part].equal(sample(one, draw, noise[part]))
        assert probabilities(both, together)[part].equal(probabilities(one, draw))


@pytest.mark.parametrize("over", ["seeds", "slots"])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.7), Sampling(top_k=5), Sampling(top_p=0.8), Sampling(1.0, 1.5, 8, 0.9, 0.2)],
    ids=str,
)
def test_frequencies_match_the_softmax(sampling, over):
    """Chi-square, error rate 1e-4 for each of the ten cases."""
    draws = 40_000
    logits = 1.5 * torch.randn(12, generator=torch.Generator().manual_seed(3))
    if over == "seeds":
        tokens = draw_tokens(logits.expand(draws, 1, -1), sampling, RANGE(draws), torch.tensor([[17]]))
    else:
        tokens = draw_tokens(logits.expand(1, draws, -1), sampling, [17], RANGE(draws)[None])
    observed = tokens.flatten().bincount(minlength=12).numpy()
    expected = draws * transformers_filters(sampling)(None, logits[None])[0].double().softmax(-1).numpy()
    assert (observed[expected == 0] == 0).all()
    assert stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-4


@pytest.mark.parametrize("axis", ["seed", "slot"])
def test_draws_of_neighbouring_seeds_and_slots_are_independent(axis):
    """Chi-square of the contingency table of neighbours, error rate 1e-4 for each axis."""
    tokens = draw_tokens(torch.zeros(200, 200, 6), Sampling(), RANGE(200), RANGE(200)[None])
    if axis == "seed":
        tokens = tokens.T
    pairs = (tokens[:, 0::2] * 6 + tokens[:, 1::2]).flatten().bincount(minlength=36)
    assert stats.chi2_contingency(pairs.view(6, 6).numpy()).pvalue > 1e-4


@pytest.fixture(scope="module")
def noise():
    """A million values: 64 neighbouring seeds x 64 neighbouring slots x 256 tokens."""
    return gumbel(RANGE(64), RANGE(64)[None], 256).double().numpy()


def test_noise_has_the_moments_of_the_gumbel_distribution(noise):
    """Both within 5 standard errors: error rate 6e-7 each. The kurtosis of the distribution is 5.4."""
    variance = math.pi**2 / 6
    assert abs(noise.mean() - np.euler_gamma) < 5 * math.sqrt(variance / noise.size)
    assert abs(noise.var() - variance) < 5 * variance * math.sqrt(4.4 / noise.size)


def test_noise_follows_the_gumbel_distribution(noise):
    """Kolmogorov-Smirnov on all of it, and the mass of either far tail: error rate 1e-4 each."""
    assert stats.kstest(noise.ravel(), "gumbel_r").pvalue > 1e-4
    for mass in 1e-2, 1e-3, 1e-4:
        beyond = [noise > stats.gumbel_r.isf(mass), noise < stats.gumbel_r.ppf(mass)]
        assert all(stats.binomtest(int(tail.sum()), tail.size, mass).pvalue > 1e-4 for tail in beyond)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["seeds", "slots", "tokens"])
@pytest.mark.parametrize("distance", [1, 2, 32])
def test_noise_is_uncorrelated(noise, axis, distance):
    """Within 5 standard errors of 0: error rate 6e-7 for each of the nine."""
    along = np.moveaxis(noise, axis, 0)
    one, other = along[distance:].ravel(), along[:-distance].ravel()
    assert abs(np.corrcoef(one, other)[0, 1]) * math.sqrt(one.size) < 5


@pytest.mark.parametrize(("seed", "token", "expected"), [(163488, 10255, 22.18), (26274, 11310, -2.81)])
def test_the_most_extreme_noise_is_finite(seed, token, expected):
    """Those whose 31 random bits are all 0, and all 1."""
    assert gumbel(torch.tensor([seed]), torch.tensor([[0]]), token + 1)[0, 0, token].item() == pytest.approx(
        expected, abs=0.01
    )


def test_noise_of_every_seed_and_slot_is_its_own(noise):
    assert len(np.unique(noise.reshape(64 * 64, 256), axis=0)) == 64 * 64


def test_noise_does_not_depend_on_the_batch():
    seeds, slots = torch.tensor([5, -3, 2**62]), torch.tensor([[0, 7, 35], [1, 7, 2], [9, 8, 7]])
    together = gumbel(seeds, slots, 40)
    for image in range(3):
        for query in range(3):
            alone = gumbel(seeds[image : image + 1], slots[image : image + 1, query : query + 1], 40)
            assert alone[0, 0].equal(together[image, query])
    assert gumbel(seeds, slots, 23).equal(together[..., :23])
    assert gumbel(seeds, slots[:1], 40)[1, 1].equal(together[1, 1])  # slots that images share


def mix64(x):
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def mix32(x):
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


@given(seed=st.integers(-(2**63), 2**63 - 1), slot=st.integers(0, 2**31))
def test_noise_is_the_published_hashes_in_unbounded_integers(seed, slot):
    """Pins the noise, for a seed must mean the same image in every release."""
    assert mix64(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 with seed 0
    key = mix64(mix64(seed % 2**64) ^ slot)
    low, high = key % 2**32, key >> 32
    bits = [mix32((mix32(token ^ low) + high) % 2**32) % 2**31 for token in range(8)]
    expected = [-math.log(-math.log1p(-min((b + 0.5) / 2**31, 1 - 2**-24))) for b in bits]
    found = gumbel(torch.tensor([seed]), torch.tensor([[slot]]), 8)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"guidance_scale": -0.5}, "guidance_scale -0.5"),
        ({"guidance_scale": float("inf")}, "guidance_scale inf"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan"),
        ({"guidance_scale": 2e6}, "guidance_scale 2000000.0 .* 1000000 at most"),
        ({"guidance_scale": "5"}, "guidance_scale '5'"),
        ({"temperature": 1e39}, r"temperature 1e\+39"),
        ({"temperature": True}, "temperature True"),
        ({"top_k": 2.5}, "top_k 2.5 is not possible: use a whole number, 0 or more"),
        ({"top_p": None}, "top_p None"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"min_p": -0.1}, "min_p -0.1"),
        ({"min_p": 1.1}, "min_p 1.1 is not possible: use a number from 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ZipARError, match=message):
        Sampling(**setting)
