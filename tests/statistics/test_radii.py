"""The radius table against rational arithmetic: its coverage at every p, and that nothing more could be claimed."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from exact import pmf, tail
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from certframe.statistics.radii import largest_radius, majority_threshold, probability_bounds, radius_table

LEVELS = st.sampled_from([1e-8, 0.0013, 0.0501, 0.2003, 0.4507, 0.9001])
HALF = Fraction(1, 2)
# (n, level)
SMALL = [(1, 0.9), (2, 0.6), (3, 0.3), (5, 0.2), (8, 0.1), (9, 0.05), (16, 0.2003), (17, 0.0137), (25, 0.001)]


@given(st.integers(1, 60), LEVELS)
def test_majority_threshold_equals_a_search(n: int, level: float) -> None:
    slow = [k for k in range(n + 1) if 2 * k > n and 2 * tail(n, HALF, k) <= Fraction(level)]
    assert majority_threshold(n, level) == min(slow, default=n + 1)


@pytest.mark.parametrize(("n", "level", "k"), [
    (1, 0.999, 2), (2, 0.5, 2), (2, 0.4999, 3), (3, 0.25, 3), (100, 0.001 / 50176, 78), (50, 0.005, 36),
])
def test_known_majority_thresholds(n: int, level: float, k: int) -> None:
    assert majority_threshold(n, level) == k


def wrong_probability(n: int, p: Fraction, table: np.ndarray, k: int) -> Fraction:
    """P(a label is claimed that is not the majority, or a lower bound that p does not exceed), p = P(label 1)."""
    majority = 1 if p > HALF else 0 if p < HALF else None
    total = Fraction(0)
    for x, weight in enumerate(pmf(n, p)):
        label, votes = int(2 * x > n), max(x, n - x)
        if votes >= k and (label != majority or max(p, 1 - p) <= Fraction(float(table[votes]))):
            total += weight
    return total


@pytest.mark.parametrize(("n", "level"), SMALL)
def test_the_error_is_at_most_the_level_at_every_p(n: int, level: float) -> None:
    table, k = probability_bounds(n, level), majority_threshold(n, level)
    # The hardest are those that a bound just fails to be below.
    hardest = [Fraction(float(bound)) for bound in table[k:]]
    assert k > n or hardest
    errors = [wrong_probability(n, p, table, k) for q in (*hardest, *(Fraction(i, 97) for i in range(98)), HALF)
              for p in (q, 1 - q)]
    assert max(errors) <= Fraction(level) * (1 + Fraction(1, 10**12))  # the last digit of a float
    if hardest:
        assert max(errors) >= Fraction(level) * Fraction(999, 1000)


@pytest.mark.parametrize(("n", "level"), SMALL)
def test_every_entry_is_as_large_as_it_can_be(n: int, level: float) -> None:
    table, k = probability_bounds(n, level), majority_threshold(n, level)
    for m in range(k, n + 1):
        bound, more = Fraction(float(table[m])), Fraction(float(table[m])) + Fraction(1, 10**12)
        assert tail(n, bound, m) + tail(n, 1 - bound, k) <= Fraction(level) * (1 + Fraction(1, 10**12))
        assert tail(n, more, m) + tail(n, 1 - more, k) > Fraction(level)
    assert np.all(table[:k] == 0.5)


def test_clopper_pearson_would_claim_too_much_for_the_smallest_count() -> None:
    n, level, k = 100, 0.001 / 50176, 78
    table = probability_bounds(n, level)
    plain = float(stats.beta.ppf(level, k, n - k + 1))
    assert plain == pytest.approx(0.5082, abs=5e-5)
    assert table[k] == pytest.approx(0.5062559683502014, rel=1e-12)
    between = (table[k] + plain) / 2
    claimed = np.where(np.arange(n + 1) >= k, stats.beta.ppf(level, np.arange(n + 1), n - np.arange(n + 1) + 1), 0.5)
    assert wrong_probability(n, Fraction(float(between)), claimed, k) > Fraction(level)
    assert wrong_probability(n, Fraction(float(between)), table, k) <= Fraction(level)


def test_table_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["radius_table_exact"]:
        n, level, m = row["n"], row["alpha"] / row["N"], row["m"]
        assert majority_threshold(n, level) == row["k_r"]
        assert probability_bounds(n, level)[m] == pytest.approx(row["L"], rel=1e-12)
        assert radius_table(n, 0.3, level)[m] == pytest.approx(0.3 * row["R_over_sigma"], rel=1e-11)


@pytest.mark.parametrize(("n", "votes", "bound", "radius"), [
    (100, 79, 0.5191374048600406, 0.047988772833658926), (100, 83, 0.5665524285656159, 0.16760359492607196),
])
def test_known_entries(n: int, votes: int, bound: float, radius: float) -> None:
    assert probability_bounds(n, 0.001 / 50176)[votes] == pytest.approx(bound, rel=1e-12)
    assert radius_table(n, 1.0, 0.001 / 50176)[votes] == pytest.approx(radius, rel=1e-11)


def test_the_ceilings() -> None:
    level = 0.001 / 50176
    assert round(largest_radius(100, 1.0, level), 2) == 0.98
    assert round(largest_radius(1000, 1.0, level), 2) == 2.11
    for n in (40, 100, 1000):
        assert largest_radius(n, 0.15, level) == pytest.approx(0.15 * stats.norm.ppf(level ** (1 / n)), rel=1e-6)
    assert np.isnan(largest_radius(26, 0.15, level))
    assert not np.isnan(largest_radius(27, 0.15, level))


@given(st.integers(1, 400), LEVELS, st.floats(0.01, 2.0))
@hypothesis_settings(max_examples=60)
def test_tables_grow_with_the_votes_and_the_level(n: int, level: float, sigma: float) -> None:
    table, radii, k = probability_bounds(n, level), radius_table(n, sigma, level), majority_threshold(n, level)
    assert np.all(np.diff(table) >= 0)
    assert np.all((table >= 0.5) & (table < 1))
    assert np.isnan(radii[:k]).all()
    assert (radii[k:] >= 0).all()
    np.testing.assert_allclose(radii[k:], sigma * stats.norm.ppf(table[k:]), rtol=1e-9, atol=1e-12)
    smaller = probability_bounds(n, level / 3)
    assert np.all(smaller <= table)
    assert majority_threshold(n, level / 3) >= k
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


@given(st.integers(2, 300), LEVELS)
@hypothesis_settings(max_examples=40)
def test_the_bound_is_close_to_clopper_pearson_and_never_above(n: int, level: float) -> None:
    table, k = probability_bounds(n, level), majority_threshold(n, level)
    assume(k <= n)
    m = np.arange(k, n + 1)
    plain = stats.beta.ppf(level, m, n - m + 1)
    assert np.all(table[k:] <= np.maximum(plain, 0.5) + 1e-12)
    # The wrong label soon costs nothing.
    assert plain[-1] - table[n] <= plain[0] - table[k] + 1e-9
