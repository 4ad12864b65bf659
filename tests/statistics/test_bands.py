"""Simultaneous bounds against rational arithmetic; overlaps and ranks against maps whose worst case is known.

A smoothed map of half-spaces, h̄_i(x) = Φ((w_i·x − t_i)/σ) with unit w_i, reaches what the Lipschitz bound allows: with
w_i = ±u the margins z_i = Φ⁻¹(h̄_i) move by exactly ±ρ/σ, the top ones down and the others up in the worst case.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from exact import pmf, tail
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from certframe.statistics.bands import (
    band_threshold,
    certified_ranks,
    certified_ranks_of_counts,
    clopper_pearson_bounds,
    clopper_pearson_table,
    hoeffding_bounds,
    hoeffding_margin,
    overlap_certificates,
    quantile_indices,
    shifted_down,
    shifted_shares,
)
from certframe.statistics.corrections import bonferroni_threshold, min_copies

# -- one threshold for all nested levels ------------------------------------------------------------------------------

@given(st.integers(1, 120), st.floats(0.5, 0.97), st.sampled_from([0.00101, 0.0503, 0.3307, 0.97]),
       st.integers(1, 60_000))
def test_band_threshold_equals_a_search(n: int, tau: float, alpha: float, pixels: int) -> None:
    slow = [k for k in range(n + 1) if 2 * k > n and stats.binom.sf(k - 1, n, tau) <= alpha / (2 * pixels)]
    assert band_threshold(n, tau, alpha, pixels) == min(slow, default=n + 1)


def test_band_threshold_of_the_vectors(vectors: dict[str, Any]) -> None:
    row = vectors["overlay"]
    assert band_threshold(row["n"], row["tau"], row["alpha"], row["N"]) == row["k_2N"]
    for row in vectors["kmin"]:
        expected = row["n"] + 1 if row["kmin_2N"] is None else row["kmin_2N"]
        assert band_threshold(row["n"], row["tau"], row["alpha"], row["N"]) == expected


@pytest.mark.parametrize(("n", "tau", "pixels", "k"), [
    (100, 0.75, 50176, 97), (90, 0.75, 50176, 88), (1000, 0.75, 50176, 825), (1000, 0.5, 50176, 590),
    (64, 0.75, 50176, 65), (65, 0.75, 50176, 65), (1, 0.5, 1, 2),
])
def test_known_band_thresholds(n: int, tau: float, pixels: int, k: int) -> None:
    assert band_threshold(n, tau, 0.001, pixels) == k


def nested_error(shares: tuple[Fraction, ...], n: int, tau: Fraction, threshold: int) -> float:
    """P(any false "in" or "out" at any level), one pixel, summed over how often it is in 0, 1, 2, … of the levels."""
    inside = [sum(shares[level + 1:], Fraction(0)) for level in range(len(shares) - 1)]
    error = 0.0
    for cells in itertools.product(range(n + 1), repeat=len(shares) - 1):
        first = n - sum(cells)
        if first < 0:
            continue
        counts = [sum(cells[level:]) for level in range(len(cells))]
        if any((count >= threshold and p <= tau) or (n - count >= threshold and 1 - p <= tau)
               for count, p in zip(counts, inside, strict=True)):
            error += float(stats.multinomial.pmf((first, *cells), n, [float(s) for s in shares]))
    return error


def cells(inside: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """Probabilities of being in exactly 0, 1, …, L levels, from those of being in each level."""
    ends = (Fraction(1), *inside, Fraction(0))
    return tuple(a - b for a, b in itertools.pairwise(ends))


def test_a_pixel_errs_at_most_at_twice_the_tail_whatever_its_levels() -> None:
    n, tau, alpha = 10, Fraction(3, 5), 0.2
    threshold = band_threshold(n, 0.6, alpha, 1)
    grid = [Fraction(9, 10), tau, Fraction(1, 2), 1 - tau, Fraction(1, 10)]
    worst = 0.0
    for inside in itertools.combinations_with_replacement(grid, 3):
        error = nested_error(cells(inside), n, tau, threshold)
        assert error <= alpha
        assert error <= 2 * float(tail(n, tau, threshold)) * (1 + 1e-9)
        worst = max(worst, error)
    assert worst > 1.99 * float(tail(n, tau, threshold))  # and the two errors hardly ever happen together


def test_levels_that_are_certified_separately_err_nearly_twice_as_often() -> None:
    """The published overlay: each level is right with probability 1 − α, all together are not."""
    n, tau, alpha = 10, Fraction(3, 5), 0.2
    separately = bonferroni_threshold(n, 0.6, alpha, 1)
    for level in (tau, 1 - tau):
        assert nested_error(cells((level,)), n, tau, separately) <= alpha
    error = nested_error(cells((tau, 1 - tau)), n, tau, separately)
    assert 1.6 * alpha < error <= 2 * alpha


# -- bounds of means --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("q", "values", "confidence", "margin"), [
    (8192, 150528, 0.95, 0.030867566007957654), (8192, 50176, 0.95, 0.029761597043145967),
    (1000, 50176, 0.999, 0.09597967118940386), (1000, 150528, 0.95, 0.08834812914400657),
])
def test_hoeffding_margins(q: int, values: int, confidence: float, margin: float) -> None:
    assert hoeffding_margin(q, values, confidence) == pytest.approx(margin, rel=1e-10)
    assert hoeffding_margin(50, 150528, 0.95) == pytest.approx(0.3951, abs=5e-5)
    assert hoeffding_margin(q, values, confidence) > hoeffding_margin(2 * q, values, confidence)
    low, high = hoeffding_bounds(np.array([[0.0, 0.5], [0.97, 1.0]]), q, confidence)
    c = hoeffding_margin(q, 4, confidence)
    np.testing.assert_allclose(low, np.maximum([[-1, 0.5 - c], [0.97 - c, 1 - c]], 0))
    np.testing.assert_allclose(high, np.minimum([[c, 0.5 + c], [0.97 + c, 2]], 1))


def test_hoeffding_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["levine_c"]:
        assert hoeffding_margin(row["q"], row["n"], row["p"]) == pytest.approx(row["c"], rel=1e-10)


@given(st.integers(1, 30), st.integers(1, 5), st.sampled_from([0.5, 0.9, 0.999]),
       st.fractions(0, 1, max_denominator=60))
@hypothesis_settings(max_examples=60)
def test_hoeffding_covers_exactly_computed(q: int, values: int, confidence: float, p: Fraction) -> None:
    """The worst values in [0, 1] are 0 and 1: the probability that one of N means is off is at most 1 − confidence."""
    c = hoeffding_margin(q, values, confidence)
    off = sum((w for k, w in enumerate(pmf(q, p)) if abs(k / q - p) > c), Fraction(0))
    assert values * off <= 1 - confidence


@given(st.integers(1, 25), st.sampled_from([0.4, 0.1003, 0.01, 1e-5]), st.fractions(0, 1, max_denominator=80))
@hypothesis_settings(max_examples=80)
def test_each_clopper_pearson_side_covers_exactly_computed(n: int, delta: float, p: Fraction) -> None:
    lower, upper = clopper_pearson_table(n, delta)
    weights = pmf(n, p)
    above = sum((w for k, w in enumerate(weights) if p < Fraction(float(lower[k]))), Fraction(0))
    below = sum((w for k, w in enumerate(weights) if p > Fraction(float(upper[k]))), Fraction(0))
    assert above <= delta
    assert below <= delta
    assert np.all(lower < upper)
    assert np.all(np.diff(lower) > 0)
    np.testing.assert_allclose(upper, 1 - lower[::-1], atol=1e-12)


@given(st.integers(1, 25), st.sampled_from([0.4, 0.1003, 0.01, 1e-5]))
@hypothesis_settings(max_examples=30)
def test_clopper_pearson_is_where_the_tail_reaches_delta(n: int, delta: float) -> None:
    lower, upper = clopper_pearson_table(n, delta)
    assert lower[0] == 0
    assert upper[n] == 1
    for m in range(1, n + 1):
        assert float(tail(n, Fraction(float(lower[m])), m)) == pytest.approx(delta, rel=1e-9)
        at = Fraction(float(upper[m - 1]))
        assert float(1 - tail(n, at, m)) == pytest.approx(delta, rel=1e-7)


def test_clopper_pearson_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["clopper_pearson"]:
        over, under = (float(v) for v in row["alpha"].split("/"))
        lower, upper = clopper_pearson_table(row["n"], over / under)
        assert lower[row["m"]] == pytest.approx(row["lower"], rel=1e-12, abs=0)
        assert upper[row["m"]] == pytest.approx(row["upper"], rel=1e-12, abs=0)
    for row in vectors["levine_cp"]:
        lower, upper = clopper_pearson_table(row["q"], (1 - row["p"]) / (2 * row["n"]))
        assert lower[row["m"]] == pytest.approx(row["cp_lower"], rel=1e-9, abs=0)
        assert upper[row["m"]] == pytest.approx(row["cp_upper"], rel=1e-9, abs=0)
        for distance, floor in row["cp_floor_pop"].items():
            assert shifted_down(lower[row["m"]], 2 * float(distance)) == pytest.approx(floor, rel=1e-9, abs=0)


@pytest.mark.parametrize(("m", "n", "delta", "lower", "upper"), [
    (100, 100, 0.001 / 50176, 0.8375197162014676, 1.0),
    (99, 100, 0.001 / 50176, 0.8112308069119394, 0.9999999998007015),
    (100, 8192, 0.05 / 301056, 0.00697713909217822, 0.019567012220816683),
])
def test_known_clopper_pearson_bounds(m: int, n: int, delta: float, lower: float, upper: float) -> None:
    low, high = clopper_pearson_table(n, delta)
    assert low[m] == pytest.approx(lower, rel=1e-12)
    assert high[m] == pytest.approx(upper, rel=1e-12)


def test_simultaneous_bounds_share_the_error_over_both_sides_of_all_values() -> None:
    counts = np.array([[0, 3], [7, 10]])
    low, high = clopper_pearson_bounds(counts, 10, 0.9)
    for m, a, b in zip(counts.ravel(), low.ravel(), high.ravel(), strict=True):
        assert a == pytest.approx(stats.beta.ppf(0.1 / 8, m, 11 - m) if m else 0.0)
        assert b == pytest.approx(stats.beta.isf(0.1 / 8, m + 1, 10 - m) if m < 10 else 1.0)
    with pytest.raises(ValueError, match="read-only"):
        clopper_pearson_table(10, 0.1)[0][3] = 0


def test_clopper_pearson_tightens_with_the_number_of_copies() -> None:
    for n in (10, 100, 1000):
        few, many = clopper_pearson_table(n, 1e-6), clopper_pearson_table(2 * n, 1e-6)
        assert np.all(many[0][::2] >= few[0])
        assert np.all(many[1][::2] <= few[1])


# -- overlap ----------------------------------------------------------------------------------------------------------

maps = st.integers(4, 7).flatmap(lambda n: hnp.arrays(float, n, elements=st.floats(-2.5, 2.5), unique=True))
distances = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


def top(margins: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-margins, kind="stable")[:k].tolist())


def no_ties(margins: np.ndarray, distance: float) -> bool:
    """Whether no two values meet at the image or at the worst place, where a last digit would decide."""
    gaps = np.abs(margins[:, None] - margins[None])[~np.eye(margins.size, dtype=bool)]
    return bool(gaps.min() > 1e-6 and np.abs(gaps - 2 * distance).min() > 1e-6)


def worst_overlap(margins: np.ndarray, k: int, distance: float) -> int:
    """The least that is left of the top K, over all directions of the half-spaces and steps up to `distance`."""
    before = top(margins, k)
    moves = itertools.product((-1.0, 1.0), repeat=margins.size)
    return min(len(before & top(margins + step * np.array(signs), k))
               for signs in moves for step in (0.0, distance / 2, distance))


@given(maps, st.integers(1, 3), distances)
@hypothesis_settings(max_examples=80)
def test_with_exact_bounds_the_overlap_is_the_worst_case_itself(margins: np.ndarray, k: int, distance: float) -> None:
    assume(2 * k <= margins.size and no_ties(margins, distance))
    exact = stats.norm.cdf(margins)
    found = overlap_certificates(exact, exact, k, np.array([distance]))
    assert found.tolist() == [worst_overlap(margins, k, distance)]


@given(maps, st.integers(1, 3), distances, st.data())
@hypothesis_settings(max_examples=60)
def test_with_loose_bounds_the_overlap_is_never_too_much(margins: np.ndarray, k: int, distance: float,
                                                         data: st.DataObject) -> None:
    assume(2 * k <= margins.size and no_ties(margins, distance))
    exact = stats.norm.cdf(margins)
    slack = data.draw(hnp.arrays(float, (2, margins.size), elements=st.floats(0, 0.2)))
    found = overlap_certificates(np.clip(exact - slack[0], 0, 1), np.clip(exact + slack[1], 0, 1), k,
                                 np.array([distance]))
    assert found[0] <= worst_overlap(margins, k, distance)


def slow_overlap(lower: np.ndarray, upper: np.ndarray, k: int, distance: float, *, index: int = 1) -> int:
    """The definition, with 1-based ranks; `index` 0 is the theorem as printed."""
    down, up = sorted(lower, reverse=True), sorted(upper, reverse=True)
    return max((i for i in range(1, k + 1) if 2 * k - i + index >= 1
                and stats.norm.cdf(stats.norm.ppf(down[i - 1]) - 2 * distance) > up[2 * k - i + index - 1]), default=0)


@given(hnp.arrays(float, st.integers(2, 40), elements=st.floats(0.02, 0.98)), st.integers(1, 20), distances,
       st.sampled_from([0.0, 0.01, 0.05]))
def test_overlap_equals_the_definition(mean: np.ndarray, k: int, distance: float, c: float) -> None:
    assume(2 * k <= mean.size)
    lower, upper = np.clip(mean - c, 0, 1), np.clip(mean + c, 0, 1)
    sorted_gaps = np.abs(stats.norm.cdf(stats.norm.ppf(lower)[:, None] - 2 * distance) - upper)
    assume(c > 0 or distance > 0)
    assume(sorted_gaps.min() > 1e-9)
    found = int(overlap_certificates(lower, upper, k, np.array([distance]))[0])
    assert found == slow_overlap(lower, upper, k, distance)
    assert found >= slow_overlap(lower, upper, k, distance, index=0)


def test_overlap_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["levine_overlap"]:
        z = np.array(row["z"])
        lower, upper = np.clip(z - row["c"], 0, 1), np.clip(z + row["c"], 0, 1)
        found = overlap_certificates(lower, upper, row["K"], np.array([row["rho_over_sigma"]]))
        assert found.tolist() == [row["R_cert"]]


def test_the_index_of_the_overlap_is_sharp() -> None:
    """One further in either direction: the printed index certifies less, the next one too much."""
    k, distance = 2, 0.3
    for margins, truth, printed, next_one in (([1.0, 0.9, -1.0, -2.0, -3.0], 2, 1, 2),
                                              ([1.0, 0.9, 0.85, -2.0, -3.0], 1, 0, 2)):
        exact = stats.norm.cdf(margins)
        assert worst_overlap(np.array(margins), k, distance) == truth
        assert overlap_certificates(exact, exact, k, np.array([distance])).tolist() == [truth]
        assert slow_overlap(exact, exact, k, distance, index=0) == printed
        assert slow_overlap(exact, exact, k, distance, index=2) == next_one


@given(hnp.arrays(float, st.integers(4, 40), elements=st.floats(0, 1)), st.sampled_from([5, 50, 8192]))
def test_overlap_falls_with_the_distance_and_grows_with_k_and_n(mean: np.ndarray, samples: int) -> None:
    lower, upper = hoeffding_bounds(mean, samples, 0.95)
    more = hoeffding_bounds(mean, 2 * samples, 0.95)
    steps, before = np.linspace(0, 2, 9), np.zeros(9, int)
    for k in range(1, mean.size // 2 + 1):
        found = overlap_certificates(lower, upper, k, steps)
        assert np.all(np.diff(found) <= 0)
        assert np.all(found >= before)
        assert np.all(found <= k)
        assert np.all(overlap_certificates(*more, k, steps) >= found)
        before = found


def test_bounds_of_zero_and_one() -> None:
    """Where nothing is known nothing is certified; a value that is certainly 1 or certainly 0 cannot move."""
    none = np.zeros(4), np.ones(4)
    assert overlap_certificates(*none, 2, np.array([0.0, 1.0])).tolist() == [0, 0]
    sure = np.array([1.0, 1.0, 0.0, 0.0])
    assert overlap_certificates(sure, sure, 2, np.array([0.0, 5.0])).tolist() == [2, 2]
    assert certified_ranks(*none, 0.0).tolist() == [4, 4, 4, 4]
    assert certified_ranks(sure, sure, 5.0).tolist() == [1, 1, 3, 3]


# -- ranks ------------------------------------------------------------------------------------------------------------

def rank_of(margins: np.ndarray, i: int) -> int:
    return 1 + int((margins > margins[i]).sum())


@given(maps, distances)
@hypothesis_settings(max_examples=60)
def test_with_exact_bounds_the_rank_is_the_worst_case_itself(margins: np.ndarray, distance: float) -> None:
    assume(no_ties(margins, distance))
    exact = stats.norm.cdf(margins)
    found = certified_ranks(exact, exact, distance)
    for i in range(margins.size):
        worst = max(rank_of(margins + distance * np.array(signs), i)
                    for signs in itertools.product((-1.0, 1.0), repeat=margins.size))
        assert found[i] == worst


def printed_ranks(lower: np.ndarray, upper: np.ndarray, distance: float) -> list[int]:
    """min{k : Φ(Φ⁻¹(L_i) − 2ρ/σ) ≥ U_[k]}, N when there is none."""
    up = sorted(upper.ravel(), reverse=True)
    floors = stats.norm.cdf(stats.norm.ppf(lower.ravel()) - 2 * distance)
    return [next((k for k, u in enumerate(up, start=1) if floor >= u), len(up)) for floor in floors]


def slow_ranks(lower: np.ndarray, upper: np.ndarray, distance: float) -> list[int]:
    floors = stats.norm.cdf(stats.norm.ppf(lower.ravel()) - 2 * distance)
    return [1 + sum(u > floor for j, u in enumerate(upper.ravel()) if j != i) for i, floor in enumerate(floors)]


@given(hnp.arrays(float, (4, 3), elements=st.floats(0, 1)), distances, st.sampled_from([0.01, 0.05, 0.3]))
def test_ranks_equal_the_definition_and_beat_the_printed_one(mean: np.ndarray, distance: float, c: float) -> None:
    lower, upper = np.clip(mean - c, 0, 1), np.clip(mean + c, 0, 1)
    assume(np.abs(stats.norm.cdf(stats.norm.ppf(lower).ravel()[:, None] - 2 * distance) - upper.ravel()).min() > 1e-9)
    found, printed = certified_ranks(lower, upper, distance), printed_ranks(lower, upper, distance)
    assert found.shape == (4, 3)
    assert found.ravel().tolist() == slow_ranks(lower, upper, distance)
    for ours, theirs in zip(found.ravel(), printed, strict=True):
        assert ours == theirs - 1 or ours == theirs == mean.size


@given(st.integers(1, 60), st.integers(1, 40), distances, st.integers(0, 1000))
def test_ranks_of_counts_equal_those_of_their_bounds(n: int, pixels: int, distance: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.binomial(n, generator.beta(0.5, 0.5, size=(pixels, 2)))
    bounds = clopper_pearson_bounds(counts, n, 0.9)
    found = certified_ranks_of_counts(counts, n, 0.9, distance)
    assert found.shape == counts.shape
    assert np.array_equal(found, certified_ranks(*bounds, distance))


@given(hnp.arrays(float, st.integers(2, 30), elements=st.floats(0, 1)), st.sampled_from([20, 500]))
def test_ranks_rise_with_the_distance_and_fall_with_n(mean: np.ndarray, samples: int) -> None:
    previous = np.ones(mean.size, int)
    for distance in (0.0, 0.2, 0.7, 3.0):
        ranks = certified_ranks(*hoeffding_bounds(mean, samples, 0.95), distance)
        assert np.all(ranks >= previous)
        assert np.all(ranks <= mean.size)
        assert np.all(certified_ranks(*hoeffding_bounds(mean, 4 * samples, 0.95), distance) <= ranks)
        previous = ranks


@given(st.integers(0, 1000), st.integers(10, 60), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([200, 2000]),
       st.sampled_from([0.0, 0.1, 0.2]))
@hypothesis_settings(max_examples=40)
def test_a_median_rank_within_the_top_gives_a_certified_rank(seed: int, pixels: int, share: float, n: int,
                                                             distance: float) -> None:
    """Levine et al.: median rank ≤ ⌊τN⌋ over the copies implies rank_cert ≤ τN / L̂(½)."""
    generator = np.random.default_rng(seed)
    kept = max(1, int(share * pixels))
    scores = np.linspace(0, 3, pixels) + generator.normal(size=(n, pixels))
    ranks = pixels - scores.argsort(axis=1).argsort(axis=1)
    mean = (ranks <= kept).mean(axis=0)
    c = hoeffding_margin(n, pixels, 0.95)
    floor = float(shifted_down(np.array(0.5 - c), 2 * distance)) - c
    assume(floor > 0)
    found = certified_ranks(*hoeffding_bounds(mean, n, 0.95), distance)
    inside = np.median(ranks, axis=0) <= kept
    assert np.all(found[inside] <= kept / floor)


# -- quantiles --------------------------------------------------------------------------------------------------------

def test_indices_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["median_indices"]:
        found = quantile_indices(row["n"], row["p"], row["R_over_sigma"], row["alpha"], row["N"])
        assert found == (row["l"], row["u"])
        assert shifted_shares(row["p"], row["R_over_sigma"]) == pytest.approx((row["p_lo"], row["p_hi"]), rel=1e-12)
    for row in vectors["min_n_finite_upper"]:
        n, shift = row["n_min"], row["R_over_sigma"]
        assert quantile_indices(n, 0.5, shift, 0.001, 50176)[1] == n
        assert quantile_indices(n - 1, 0.5, shift, 0.001, 50176) == (None, None)
        assert min_copies(shifted_shares(0.5, shift)[1], 0.0005, 50176, two_sided=False) == n


@pytest.mark.parametrize(("n", "found"), [(49, (None, None)), (50, (1, 50)), (100, (8, 93)), (1000, (229, 772))])
def test_known_indices(n: int, found: tuple[int, int]) -> None:
    assert quantile_indices(n, 0.5, 0.5, 0.001, 50176) == found


@given(st.integers(1, 80), st.floats(0.02, 0.98), st.floats(0, 2), st.sampled_from([0.0101, 0.2003, 0.97]),
       st.integers(1, 500))
def test_indices_equal_a_search(n: int, p: float, shift: float, alpha: float, pixels: int) -> None:
    low, high = stats.norm.cdf(stats.norm.ppf(p) - shift), stats.norm.cdf(stats.norm.ppf(p) + shift)
    level = alpha / (2 * pixels)
    lows = [k for k in range(1, n + 1) if stats.binom.cdf(k - 1, n, low) <= level]
    highs = [k for k in range(1, n + 1) if stats.binom.sf(k - 1, n, high) <= level]
    found = quantile_indices(n, p, shift, alpha, pixels)
    assert found == (max(lows, default=None), min(highs, default=None))
    if None not in found:
        assert found[0] <= found[1]


@pytest.mark.parametrize("p", [0.5, 0.2])
@pytest.mark.parametrize("shares", [(3, 3, 4), (5, 5, 0), (1, 8, 1), (2, 3, 5)])
def test_order_statistics_bracket_the_quantile_also_with_ties(p: float, shares: tuple[int, int, int]) -> None:
    """Scores of three values, all outcomes: the shifted quantiles are outside [X_(l), X_(u)] with at most α."""
    n, alpha, shift = 9, 0.6, 0.1
    low, high = quantile_indices(n, p, shift, alpha, 1)
    assert low is not None
    assert high is not None
    weights = np.array(shares) / 10
    cumulative = np.cumsum(weights)
    below, above = (int(np.searchsorted(cumulative, share - 1e-12)) for share in shifted_shares(p, shift))
    missed = 0.0
    for zeros, ones in itertools.product(range(n + 1), repeat=2):
        if zeros + ones <= n:
            ordered = [0] * zeros + [1] * ones + [2] * (n - zeros - ones)
            if ordered[low - 1] > below or ordered[high - 1] < above:
                missed += float(stats.multinomial.pmf((zeros, ones, n - zeros - ones), n, weights))
    assert missed <= alpha


@pytest.mark.parametrize("n", [9, 20, 50])
def test_one_order_statistic_further_in_would_miss_too_often(n: int) -> None:
    p, shift, alpha = 0.5, 0.2, 0.2
    low, high = quantile_indices(n, p, shift, alpha, 1)
    assert low is not None
    assert high is not None
    p_low, p_high = (Fraction(share) for share in shifted_shares(p, shift))

    def missed(lower: int, upper: int) -> tuple[Fraction, Fraction]:
        return 1 - tail(n, p_low, lower), tail(n, p_high, upper)
    assert max(missed(low, high)) <= alpha / 2
    assert min(missed(low + 1, high - 1)) > alpha / 2
