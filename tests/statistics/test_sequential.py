"""Boundaries against rational arithmetic over all paths, and the family-wise error under the worst dependence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from exact import pmf, tail
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import optimize, sparse, stats

from certframe.statistics import sequential
from certframe.statistics.corrections import bonferroni_threshold, min_copies
from certframe.statistics.sequential import (
    boundaries,
    calibrated_boundaries,
    certified_steps,
    chances,
    crossing_probability,
    geometric_looks,
    ladder,
    min_planned_copies,
    steps_of_counts,
)

LOOKS = (96, 136, 192, 272, 384, 544, 768, 1024)
SMALL = [(5,), (3, 7), (6, 12), (2, 5, 9), (4, 8, 12)]
ALPHAS = st.sampled_from([0.0101, 0.0503, 0.2003, 0.4507])
TAUS = st.sampled_from([Fraction(1, 2), Fraction(11, 20), Fraction(3, 5), Fraction(3, 4)])


def paths(looks: tuple[int, ...], p: Fraction) -> Iterator[tuple[tuple[int, ...], Fraction]]:
    """Every sequence of counts at the looks with its probability."""
    steps = [b - a for a, b in zip((0, *looks), looks, strict=False)]
    for increments in itertools.product(*(range(m + 1) for m in steps)):
        weight = math.prod((pmf(m, p)[k] for m, k in zip(steps, increments, strict=True)), start=Fraction(1))
        yield tuple(itertools.accumulate(increments)), weight


def exact_crossing(looks: tuple[int, ...], bounds: Any, p: Fraction) -> Fraction:
    return sum((weight for counts, weight in paths(looks, p)
                if any(x >= b for x, b in zip(counts, bounds, strict=True))), Fraction(0))


# -- looks ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("most", "looks"), [
    (1, (1,)), (50, (50,)), (96, (96,)), (97, (96, 97)), (136, (96, 136)),
    (1000, (96, 136, 192, 272, 384, 544, 768, 1000)), (1024, LOOKS),
    (1500, (96, 136, 192, 272, 384, 544, 768, 1088, 1500)),
])
def test_looks(most: int, looks: tuple[int, ...]) -> None:
    assert geometric_looks(most) == looks


@given(st.integers(1, 10**9))
def test_looks_increase_by_the_square_root_of_two_and_end_with_the_plan(most: int) -> None:
    looks = geometric_looks(most)
    assert looks[-1] == most
    assert all(a < b for a, b in itertools.pairwise(looks))
    for a, b in itertools.pairwise(looks[:-1]):
        assert b / a == pytest.approx(math.sqrt(2), rel=0.05)
        assert a % 8 == 0


# -- crossing probability ---------------------------------------------------------------------------------------------

@given(st.sampled_from(SMALL), st.data(), st.fractions(Fraction(1, 100), Fraction(99, 100), max_denominator=200))
@hypothesis_settings(max_examples=60)
def test_crossing_equals_the_sum_over_all_paths(looks: tuple[int, ...], data: st.DataObject, p: Fraction) -> None:
    bounds = [data.draw(st.integers(1, n + 1)) for n in looks]
    exact = exact_crossing(looks, bounds, p)
    assert crossing_probability(looks, bounds, float(p)) == pytest.approx(float(exact), rel=1e-12, abs=0)


@given(st.integers(1, 2000), st.floats(0.01, 0.99), st.data())
def test_with_one_look_crossing_is_the_tail(n: int, p: float, data: st.DataObject) -> None:
    bound = data.draw(st.integers(0, n + 1))
    expected = stats.binom.sf(bound - 1, n, p)
    assume(expected > 1e-290)
    assert crossing_probability((n,), [bound], p) == pytest.approx(expected, rel=1e-9)


def test_tiny_crossing_probabilities_keep_their_digits() -> None:
    """Rational arithmetic from look to look, over three real looks; an FFT would have errors near 1e-17."""
    looks, bounds, p = (96, 136, 192), (94, 130, 177), Fraction(1, 2)
    alive: dict[int, Fraction] = {0: Fraction(1)}
    crossed, before = Fraction(0), 0
    for n, bound in zip(looks, bounds, strict=True):
        now: dict[int, Fraction] = {}
        for x, weight in alive.items():
            for k, step in enumerate(pmf(n - before, p)):
                now[x + k] = now.get(x + k, Fraction(0)) + weight * step
        crossed += sum((w for x, w in now.items() if x >= bound), Fraction(0))
        alive, before = {x: w for x, w in now.items() if x < bound}, n
    assert crossed < Fraction(1, 10**20)
    assert crossing_probability(looks, bounds, 0.5) == pytest.approx(float(crossed), rel=1e-11, abs=0)


def test_crossing_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["group_sequential_union_bounds"]:
        looks, tau, level = tuple(row["looks"]), row["tau"], row["alpha"] / row["N"]
        expected = [n + 1 if b is None else b for n, b in zip(looks, row["bounds"], strict=True)]
        bounds = boundaries(looks, tau, level)
        assert bounds.tolist() == expected
        assert crossing_probability(looks, bounds, tau) / level == pytest.approx(row["null_crossing_over_alpha_i"])
        assert crossing_probability(looks, bounds, 0.5) == pytest.approx(row["half_crossing"], rel=1e-9, abs=0)


@pytest.mark.parametrize(("tau", "alpha", "pixels", "expected", "share"), [
    (0.75, 0.001, 50176, [94, 130, 177, 244, 335, 465, 643, 845], 0.6800391870289536),
    (0.6, 0.001, 50176, [86, 115, 155, 210, 286, 392, 538, 703], 0.8232225775937294),
    (0.9, 0.001, 50176, [97, 137, 193, 270, 376, 526, 735, 973], 0.5000096105309908),
    (0.75, 0.05, 2000, [91, 125, 171, 236, 326, 452, 628, 827], 0.6857579396702544),
])
def test_bounds_of_the_usual_looks(tau: float, alpha: float, pixels: int, expected: list[int], share: float) -> None:
    bounds = boundaries(LOOKS, tau, alpha / pixels)
    assert bounds.tolist() == expected
    assert crossing_probability(LOOKS, bounds, tau) * pixels / alpha == pytest.approx(share, rel=1e-9)


def test_peeking_with_the_bounds_of_a_single_look_has_four_times_the_error() -> None:
    for tau, times in ((0.6, 5.58), (0.75, 4.45), (0.9, 3.05)):
        fixed = [bonferroni_threshold(n, tau, 0.001, 50176) for n in LOOKS]
        assert crossing_probability(LOOKS, fixed, tau) * 50176 / 0.001 == pytest.approx(times, abs=0.01)
        once = [bonferroni_threshold(LOOKS[-1], tau, 0.001, 50176)]
        assert crossing_probability(LOOKS[-1:], once, tau) * 50176 <= 0.001


# -- boundaries -------------------------------------------------------------------------------------------------------

@given(st.sampled_from([(10,), (20, 30, 45), LOOKS[:5]]), st.floats(0.5, 0.95),
       st.sampled_from([1e-8, 1e-3, 0.0501, 0.31]))
def test_boundaries_equal_a_search_with_scipy(looks: tuple[int, ...], tau: float, level: float) -> None:
    for n, bound in zip(looks, boundaries(looks, tau, level), strict=True):
        slow = [k for k in range(n + 1) if 2 * k > n and stats.binom.sf(k - 1, n, tau) <= level * n / sum(looks)]
        assert bound == min(slow, default=n + 1)


@given(st.sampled_from(SMALL), TAUS, ALPHAS, st.integers(1, 6), st.data())
@hypothesis_settings(max_examples=60)
def test_calibrated_bounds_use_the_error_and_no_more(looks: tuple[int, ...], tau: Fraction, alpha: float, pixels: int,
                                                     data: st.DataObject) -> None:
    tests = data.draw(st.integers(1, pixels))
    bounds = calibrated_boundaries(looks, float(tau), alpha, pixels, tests)
    assert exact_error(looks, bounds, tau, pixels, tests) <= alpha
    # With a slightly larger factor (0.1 % more than what gives these bounds) the error would be exceeded.
    total = sum(looks)
    factors = sorted({float(tail(n, tau, k)) * total * tests / (n * alpha) * (1 + 1e-12)
                      for n in looks for k in range(n // 2 + 1, n + 1)})
    for factor in factors:
        larger = boundaries(looks, float(tau), factor * alpha / tests)
        if factor <= 16 and np.any(larger < bounds):
            assert exact_error(looks, larger, tau, pixels, tests) > alpha * (1 - 1e-3)
            break


def exact_error(looks: tuple[int, ...], bounds: np.ndarray, tau: Fraction, pixels: int, tests: int) -> Fraction:
    """tests·U_τ + pixels·U_½."""
    return tests * exact_crossing(looks, bounds, tau) + pixels * exact_crossing(looks, bounds, Fraction(1, 2))


def test_calibration_lowers_the_bounds_of_the_usual_looks() -> None:
    union = boundaries(LOOKS, 0.75, 0.001 / 50176)
    calibrated = calibrated_boundaries(LOOKS, 0.75, 0.001, 50176, 50176)
    assert np.all(calibrated <= union)
    assert np.any(calibrated < union)
    error = 50176 * (crossing_probability(LOOKS, calibrated, 0.75) + crossing_probability(LOOKS, calibrated, 0.5))
    assert 0.89e-3 < error <= 1e-3
    with pytest.raises(ValueError, match="read-only"):
        calibrated[0] = 0


@pytest.mark.parametrize("calibrated", [True, False])
@given(st.sampled_from(SMALL), TAUS, ALPHAS, st.integers(1, 9))
@hypothesis_settings(max_examples=30)
def test_every_row_of_a_ladder_is_within_the_error(calibrated: bool, looks: tuple[int, ...], tau: Fraction,
                                                   alpha: float, pixels: int) -> None:
    tests, bounds = ladder(looks, float(tau), alpha, pixels, calibrated=calibrated, step_down=True)
    assert tests[0] == pixels
    assert tests[-1] == 1
    assert all(a > b for a, b in itertools.pairwise(tests))
    assert np.all(np.diff(bounds, axis=0) <= 0)
    assert np.all(2 * bounds > looks)
    for t, row in zip(tests, bounds, strict=True):
        assert exact_error(looks, row, tau, pixels, t) <= alpha
    alone = ladder(looks, float(tau), alpha, pixels, calibrated=calibrated, step_down=False)
    assert alone[0] == (pixels,)
    assert alone[1].tolist() == bounds[:1].tolist()


@given(st.integers(1, 120), st.floats(0.5, 0.95), ALPHAS, st.integers(1, 5000))
def test_one_look_is_the_fixed_test(n: int, tau: float, alpha: float, pixels: int) -> None:
    """Calibrated or not, a single look has the exact two-sided bound: nothing is paid for looking once."""
    fixed = bonferroni_threshold(n, tau, alpha, pixels)
    for calibrated in (True, False):
        _, bounds = ladder((n,), tau, alpha, pixels, calibrated=calibrated, step_down=False)
        # N·(S_τ + S_½) instead of N·(S_τ + S_{1−τ}): at most one vote more, and only near τ = ½.
        assert fixed <= bounds[0, 0] <= fixed + 1 or bounds[0, 0] == n + 1
        if tau >= 0.6 and n >= 60 and pixels >= 100:
            assert bounds[0, 0] == fixed


@given(st.floats(0.5, 0.9), ALPHAS, st.integers(1, 3000), st.booleans())
@hypothesis_settings(max_examples=25)
def test_min_planned_copies(tau: float, alpha: float, pixels: int, calibrated: bool) -> None:
    needed = min_planned_copies(tau, alpha, pixels, calibrated=calibrated)
    assert needed >= min_copies(tau, alpha, pixels)

    def can(n: int) -> bool:
        looks = geometric_looks(n)
        return bool((ladder(looks, tau, alpha, pixels, calibrated=calibrated, step_down=False)[1][0] <= looks).any())
    assert can(needed)
    assert not any(can(n) for n in range(max(1, needed - 4), needed))


# -- counts → steps → certified ---------------------------------------------------------------------------------------

@given(st.integers(1, 40), st.data())
def test_steps_of_counts_equal_a_loop(n: int, data: st.DataObject) -> None:
    bounds = np.array(sorted(data.draw(st.lists(st.integers(n // 2 + 1, n + 1), min_size=1, max_size=6)), reverse=True))
    counts = np.arange(n + 1)
    found = steps_of_counts(counts.reshape(1, -1), n, bounds)
    assert found.dtype == np.int16
    for x, code in zip(counts, found[0], strict=True):
        votes = max(x, n - x)
        step = next((s for s, bound in enumerate(bounds) if votes >= bound), len(bounds))
        assert code // 2 == step
        if step < len(bounds):
            assert code % 2 == (2 * x > n)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.booleans())
def test_walking_down_equals_certifying_again_and_again(steps: list[int], label: bool) -> None:
    pixels = len(steps)
    tests = [pixels]
    while tests[-1] > 1 and len(tests) < 5:
        tests.append(max(1, math.floor(tests[-1] / math.sqrt(2))))
    codes = np.array([2 * min(s, len(tests)) + label for s in steps], dtype=np.int16)
    row = 0
    while True:
        certified = sum(code // 2 <= row for code in codes)
        deeper = [s for s, t in enumerate(tests) if t >= pixels - certified]
        if max(deeper) <= row:
            break
        row += 1
    assert certified_steps(codes, tests) == row + 1


# -- the family-wise error, over all paths of two pixels and the worst dependence that there is ------------------------

def two_pixels(looks: tuple[int, ...], tau: float, alpha: float, *, calibrated: bool
               ) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """labels[a, b] = (label of the first pixel, of the second) when their paths are a and b; −1 abstains."""
    tests, bounds = ladder(looks, tau, alpha, 2, calibrated=calibrated, step_down=True)
    every = [counts for counts, _ in paths(looks, Fraction(1, 2))]
    codes = np.full(len(every), 2 * len(tests), np.int16)
    for j, n in enumerate(looks):
        codes = np.minimum(codes, steps_of_counts(np.array([c[j] for c in every]), n, bounds[:, j]))
    labels = np.full((len(every), len(every), 2), -1)
    for a, b in itertools.product(range(len(every)), repeat=2):
        pair = codes[[a, b]]
        labels[a, b] = np.where(pair < 2 * certified_steps(pair, tests), pair & 1, -1)
    return labels, every


def wrong(labels: np.ndarray, p: tuple[Fraction, Fraction], tau: Fraction) -> np.ndarray:
    """(paths, paths): whether a label is claimed whose probability does not exceed τ."""
    true = np.array([[1 - q > tau, q > tau] for q in p])
    return np.array((labels >= 0) & ~true[np.arange(2), labels.clip(0)]).any(axis=2)


def worst_error(bad: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """The largest P(bad) over all joint distributions with these marginals: a transport problem."""
    m, k = bad.shape
    rows = sparse.kron(sparse.eye(m), np.ones((1, k)))
    columns = sparse.kron(np.ones((1, m)), sparse.eye(k))
    # "At most" in place of "equal to": what is missing of the marginals can always be added.
    found = optimize.linprog(-bad.ravel().astype(float), A_ub=sparse.vstack([rows, columns]).tocsr(),
                             b_ub=np.concatenate([first, second]), method="highs")
    return float(-found.fun)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(("looks", "tau", "alpha"), [
    ((4, 8), Fraction(1, 2), 0.3), ((6, 10), Fraction(3, 5), 0.35), ((3, 6, 8), Fraction(11, 20), 0.4),
    ((7, 10), Fraction(3, 4), 0.6),
])
def test_two_pixels_err_at_most_at_alpha_whatever_their_dependence(looks: tuple[int, ...], tau: Fraction, alpha: float,
                                                                  calibrated: bool) -> None:
    labels, _ = two_pixels(looks, float(tau), alpha, calibrated=calibrated)
    assert (labels >= 0).any()
    hardest = 0.0
    truths = (tau, 1 - tau, Fraction(1, 2), tau + Fraction(1, 50), Fraction(24, 25))
    for p in itertools.combinations_with_replacement(truths, 2):
        weights = [np.array([float(w) for _, w in paths(looks, q)]) for q in p]
        error = worst_error(wrong(labels, p, tau), *weights)
        assert error <= alpha * (1 + 1e-9), p
        hardest = max(hardest, error)
    assert hardest > 0.2 * alpha


def test_the_same_judgement_finds_bounds_that_forget_the_looks() -> None:
    looks, tau, alpha = (4, 8, 12), Fraction(3, 5), 0.3
    every = [counts for counts, _ in paths(looks, tau)]
    fixed = [bonferroni_threshold(n, 0.6, alpha, 1) for n in looks]
    label = [next((int(2 * x > n) for x, n, b in zip(path, looks, fixed, strict=True) if max(x, n - x) >= b), -1)
             for path in every]
    error = sum((w for (_, w), found in zip(paths(looks, tau), label, strict=True) if found >= 0), Fraction(0))
    assert error > alpha


@given(st.sampled_from([(6, 12), (4, 8, 12)]), st.integers(0, 10_000))
@hypothesis_settings(max_examples=40)
def test_more_looks_never_take_a_label_back(looks: tuple[int, ...], seed: int) -> None:
    """What makes any reason to stop a valid one: what is certified at a stop is certified at every later one."""
    pixels, generator = 12, np.random.default_rng(seed)
    tests, bounds = ladder(looks, 0.55, 0.4, pixels, calibrated=True, step_down=True)
    p = generator.beta(0.2, 0.2, pixels)
    codes, before, counts = np.full(pixels, 2 * len(tests), np.int16), np.full(pixels, -1), np.zeros(pixels, int)
    for j, n in enumerate(looks):
        counts = counts + generator.binomial(n - ([0, *looks][j]), p)
        codes = np.minimum(codes, steps_of_counts(counts, n, bounds[:, j]))
        now = np.where(codes < 2 * certified_steps(codes, tests), codes & 1, -1)
        assert np.all((before < 0) | (now >= 0))
        before = now


# -- what is still to come -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("samples", "end"), [(96, 1000), (136, 300), (544, 1000), (768, 1000), (999, 1000)])
def test_chances_are_about_those_of_the_beta_binomial_distribution(samples: int, end: int) -> None:
    bound = math.ceil(0.82 * end)
    votes = np.arange(samples + 1)
    exact = stats.betabinom.sf(bound - votes - 1, end - samples, votes + 0.5, samples - votes + 0.5)
    found = chances(samples, bound, end)
    assert found == pytest.approx(exact, abs=0.03)
    assert np.all(np.diff(found) >= 0)


def test_chances_at_the_ends() -> None:
    assert not chances(10, 15, 20)[:5].any()
    assert chances(10, 15, 20)[5] == pytest.approx(0.0, abs=0.02)
    assert np.all(chances(10, 16, 20)[:6] == 0.0)
    assert np.all(chances(10, 8, 20)[8:] == 1.0)
    assert chances(10, 8, 10).tolist() == [0.0] * 8 + [1.0] * 3
    assert not chances(10, 21, 20).any()


@pytest.mark.parametrize("tau", [0.5, 0.6, 0.9])
@pytest.mark.parametrize("tests", [1, 49])
def test_boundaries_for_many_copies_keep_the_level_without_the_exact_sum(tau: float, tests: int) -> None:
    """Beyond `EXACT_UP_TO` the union bound is used, wrong side included; the exact sum confirms it here."""
    looks = sequential.geometric_looks(sequential.EXACT_UP_TO + 500)
    row = sequential.union_boundaries(looks, tau, 0.05, 49, tests)
    at_tau, at_half = (sequential.crossing_probability(looks, row, p) for p in (tau, 0.5))
    assert tests * at_tau + 49 * at_half <= 0.05
    assert tests * at_tau + 49 * at_half >= 0.05 / 8  # and it is not idle


@pytest.mark.parametrize("tests", [224 * 224, 5000])
def test_what_the_union_bound_costs_beyond(monkeypatch: pytest.MonkeyPatch, tests: int) -> None:
    """At most two more votes than with exact spending at 8192 planned copies: about 2 % more copies make up for it."""
    looks, pixels = sequential.geometric_looks(8192), 224 * 224
    assert looks[-1] > sequential.EXACT_UP_TO
    union = sequential.union_boundaries(looks, 0.75, 0.001, pixels, tests)
    monkeypatch.setattr(sequential, "EXACT_UP_TO", looks[-1])
    more = union - calibrated_boundaries(looks, 0.75, 0.001, pixels, tests)
    assert more.min() >= 0
    assert 1 <= more.max() <= 2
    above = union[-1] / looks[-1] - 0.75  # what a share of the votes has to exceed τ by falls with √n
    assert 1.0 < (above / (above - more[-1] / looks[-1])) ** 2 < 1.021


def test_a_hundred_thousand_copies_are_planned_at_once() -> None:
    looks = sequential.geometric_looks(100_000)
    _, bounds = sequential.ladder(looks, 0.75, 0.001, 224 * 224, calibrated=True, step_down=True)
    assert bool(np.all(bounds[0] <= np.array(looks)))
