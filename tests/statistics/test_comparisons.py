"""Intervals and tests of means and of differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from certframe.statistics.comparisons import holm_adjusted, interval, signed_rank_p


def test_the_interval_is_the_bootstraps() -> None:
    numbers = np.random.default_rng(0).normal(size=30) ** 2
    expected = stats.bootstrap((numbers,), np.mean, method="percentile", n_resamples=20000, rng=1).confidence_interval
    assert interval(numbers) == pytest.approx((expected.low, expected.high), rel=0.05)
    assert interval(numbers) == interval(numbers)
    assert all(map(math.isnan, interval(numbers[:1])))
    assert interval(np.full(5, 0.3)) == pytest.approx((0.3, 0.3))


def test_intervals_cover_the_mean_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        low, high = interval(generator.normal(size=40))
        covered += low <= 0 <= high
    assert 0.88 < covered / 300 < 0.99


@pytest.mark.parametrize("count", [2, 3, 6, 10, 13, 14, 30])
@pytest.mark.parametrize("kind", ["plain", "ties", "zeros", "both"])
def test_the_signed_rank_test_is_that_of_scipy(count: int, kind: str) -> None:
    differences = np.random.default_rng(count).normal(0.3, 1, count)
    if kind != "plain":
        differences = np.round(2 * differences) + (1 if kind == "ties" else 0) * (np.round(2 * differences) == 0)
    if kind in ("zeros", "both"):
        differences[0] = 0
    expected = stats.wilcoxon(differences).pvalue if np.any(differences) else 1.0
    assert signed_rank_p(differences) == pytest.approx(expected, rel=1e-12)


def test_the_signed_rank_test_counts_signs() -> None:
    differences = np.array([1.0, 2, 2, -1, 3, 0])
    ranks = stats.rankdata(np.abs(differences[:5]))
    sums = [float(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=5)]
    observed = float(np.dot(np.sign(differences[:5]), ranks))
    assert signed_rank_p(differences) == pytest.approx(2 * np.mean(np.array(sums) >= observed))


def test_without_differences_there_is_no_finding() -> None:
    assert signed_rank_p(np.zeros(5)) == 1.0
    assert signed_rank_p(np.array([0.0, 0, 3])) == 1.0
    assert math.isnan(signed_rank_p(np.ones(1)))


def test_adjusted_p_values_reject_what_holms_procedure_rejects() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        p = generator.uniform(size=6) ** 3
        adjusted = np.array(holm_adjusted(p))
        for alpha in (0.01, 0.05, 0.3):
            rejected = set()
            for rank, index in enumerate(np.argsort(p)):
                if p[index] > alpha / (6 - rank):
                    break
                rejected.add(int(index))
            assert set(np.flatnonzero(adjusted <= alpha).tolist()) == rejected


def test_what_could_not_be_compared_is_not_counted() -> None:
    assert holm_adjusted([math.nan, 0.02, 0.04, math.nan]) == pytest.approx([math.nan, 0.04, 0.04, math.nan],
                                                                            nan_ok=True)
    assert holm_adjusted([0.9, 0.9]) == [1.0, 1.0]
    assert holm_adjusted([]) == []
