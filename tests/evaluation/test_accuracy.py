import numpy as np
import pytest
from scipy.stats import binomtest

from zipar import ZipARError
from zipar.evaluation.accuracy import paired_difference, verdicts, wilson


def pairs(both: int, only_ours: int, only_base: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_ours, only_base, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_verdicts_count_only_what_a_prompt_names():
    asked = [{"shape": "round", "colour": "red"}, {"shape": "square"}, {"shape": "round", "colour": "blue"}]
    seen = {"shape": ["round", "round", "round"], "colour": ["red", "red", "red"], "size": ["big", "big", "big"]}
    found = verdicts(asked, seen)
    assert found["shape"].tolist() == [True, False, True]
    assert found["colour"].tolist() == [True, False]
    assert found["size"].tolist() == []
    assert found["all"].tolist() == [True, False, False]


def test_verdicts_refuse_attributes_that_the_judge_does_not_know():
    with pytest.raises(ZipARError, match="colour"):
        verdicts([{"colour": "red"}], {"shape": ["round"]})


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (1, 3), (497, 1000), (990, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_agrees_with_scipy(hits: int, total: int, confidence: float):
    expected = binomtest(hits, total).proportion_ci(confidence, method="wilson")
    assert wilson(hits, total, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0, 1)


def test_paired_difference_is_that_of_the_paper():
    value, low, high = paired_difference(*pairs(36, 12, 2, 0))
    assert value == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_paired_difference_is_antisymmetric():
    ours, base = pairs(70, 9, 4, 17)
    value, low, high = paired_difference(ours, base)
    assert paired_difference(base, ours) == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("counts", [(50, 0, 0, 0), (0, 0, 0, 50), (25, 0, 0, 25)])
def test_equal_answers_still_leave_doubt(counts: tuple[int, int, int, int]):
    value, low, high = paired_difference(*pairs(*counts))
    assert value == 0
    assert -0.1 < low < 0 < high < 0.1


def test_paired_difference_covers_the_truth():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        shared = rng.random(200)
        ours, base = shared + 0.1 * rng.standard_normal(200) < 0.9, shared + 0.1 * rng.standard_normal(200) < 0.9
        _, low, high = paired_difference(ours, base)
        inside += low <= 0 <= high
    assert 930 <= inside <= 985


@pytest.mark.parametrize("lengths", [(0, 0), (3, 4)])
def test_paired_difference_needs_pairs(lengths: tuple[int, int]):
    with pytest.raises(ZipARError, match="no pairs"):
        paired_difference(*(np.ones(length, dtype=bool) for length in lengths))
