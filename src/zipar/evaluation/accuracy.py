"""Prompt accuracy: how often pictures show what their prompts say, with intervals."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from zipar.arguments import level, refusal, whole
from zipar.errors import ZipARError


def verdicts(asked: Sequence[Mapping[str, str]], seen: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Whether each picture shows what its prompt says.

    Args:
        asked: attribute -> value, for each picture, as ``PromptVocabulary.parse`` reads its prompt.
        seen: attribute -> value in each picture, as ``Judge.classify`` sees it.

    Returns:
        Attribute -> bool (pictures whose prompt names it,), and "all" -> bool (pictures,): nothing in it is wrong.

    Raises:
        ZipARError: a prompt names an attribute that the judge does not know.
    """
    if foreign := sorted({name for values in asked for name in values} - seen.keys()):
        raise ZipARError(f"the judge knows {', '.join(seen)}, but prompts name {', '.join(foreign)}")
    right = [{name: seen[name][i] == value for name, value in values.items()} for i, values in enumerate(asked)]
    found = {name: np.array([each[name] for each in right if name in each], dtype=bool) for name in seen}
    return {**found, "all": np.array([all(each.values()) for each in right], dtype=bool)}


def wilson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the proportion ``hits / total`` (JASA 22, 1927); (0, 1) where total is 0.

    Raises:
        ZipARError: they make no proportion, or the confidence is none.
    """
    total = whole("total", total)
    hits, confidence = whole("hits", hits, 0, total), level(confidence)
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / total
    center = share + z**2 / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def paired_difference(ours: np.ndarray, base: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Difference of the shares of true in two paired bool arrays (n,), and its interval (low, high).

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17 (1998), method 10: it stays sound where few pairs differ, or none.

    Raises:
        ZipARError: the arrays are not of one length, or empty, or not bool.
    """
    confidence = level(confidence)
    ours, base = (_verdicts(name, given) for name, given in (("ours", ours), ("base", base)))
    n = len(ours)
    if n != len(base) or n == 0:
        raise ZipARError(f"{n} and {len(base)} verdicts make no pairs")
    first, second = int(ours.sum()), int(base.sum())
    both = int((ours & base).sum())
    only_ours, only_base, neither = first - both, second - both, n - first - second + both
    low1, high1 = wilson(first, n, confidence)
    low2, high2 = wilson(second, n, confidence)
    p1, p2 = first / n, second / n
    product = first * (n - first) * second * (n - second)
    excess: float = both * neither - only_ours * only_base
    if excess > 0:  # only a positive correlation gets a continuity correction, as in the paper
        excess = max(excess - n / 2, 0)
    correlation = excess / math.sqrt(product) if product else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 - 2 * correlation * a * b + b**2))

    difference = p1 - p2
    return difference, difference - reach(p1 - low1, high2 - p2), difference + reach(high1 - p1, p2 - low2)


def _verdicts(name: str, given: Any) -> np.ndarray:
    if not isinstance(given, np.ndarray) or given.dtype != bool or given.ndim != 1:
        raise refusal(name, given, "an array of bool (n,)")
    return given
