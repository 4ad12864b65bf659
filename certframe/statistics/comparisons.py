"""Intervals and tests for means over images, and for mean differences on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
ENUMERATED = 13
"""With so many images all signs are tried where differences are tied, as scipy's `wilcoxon` does by default."""


def interval(numbers: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean; the same numbers give the same interval. NaN for fewer than 2."""
    if len(numbers) < 2:
        return math.nan, math.nan
    means = numbers[_picks(len(numbers))].mean(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _picks(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, count, (RESAMPLES, count))


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; 1 when nothing differs, NaN for fewer than 2 differences.

    It is scipy's, zeros left out. Few images with ties are ranked here once and then given all signs, which
    `scipy.stats.wilcoxon` does too, ranking anew for every sign.
    """
    from scipy.stats import permutation_test, rankdata, wilcoxon

    if len(differences) < 2:
        return math.nan
    other = differences[differences != 0]
    if not other.size:
        return 1.0
    tied = other.size < len(differences) or len(np.unique(np.abs(other))) < other.size
    if not tied or len(differences) > ENUMERATED:
        return float(wilcoxon(differences).pvalue)
    ranks = np.zeros(len(differences))
    ranks[differences != 0] = np.sign(other) * rankdata(np.abs(other))
    return float(permutation_test((ranks,), lambda ranks, axis: ranks.sum(axis=axis), permutation_type="samples",
                                  vectorized=True, n_resamples=2**ENUMERATED).pvalue)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): rejecting those ≤ α errs with probability ≤ α, however they
    depend on each other. NaN stays NaN and is not counted.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]
    adjusted = np.full(len(p), math.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted.tolist()
