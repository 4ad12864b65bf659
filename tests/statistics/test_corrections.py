from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from certframe.statistics.corrections import bonferroni_threshold, holm_threshold, min_copies, split_threshold

# Odd numbers, so that no tail equals α/N exactly and a last digit cannot decide.
ALPHAS = st.sampled_from([0.00101, 0.0137, 0.0503, 0.2003, 0.3307])
TAUS = st.one_of(st.floats(0.5, 0.52), st.floats(0.5, 0.95))


@functools.cache
def tail(k: int, n: int, p: float) -> float:
    return float(stats.binom.sf(k - 1, n, p))


def slow_bonferroni(n: int, tau: float, alpha: float, pixels: int) -> int:
    for k in range(n + 1):
        if k > (n + 1) / 2 and tail(k, n, tau) + tail(k, n, 1 - tau) <= alpha / pixels:
            return k
    return n + 1


def slow_holm(votes: list[int], n: int, tau: float, alpha: float) -> list[bool]:
    """Pixel by pixel: certify, count the certified, lower the bar, look again."""
    certified = [False] * len(votes)
    while True:
        r = sum(certified)
        now = []
        for m, before in zip(votes, certified, strict=True):
            enough = m > (n + 1) / 2 and any(
                (len(votes) - r) * tail(k, n, tau) + len(votes) * tail(k, n, 1 - tau) <= alpha
                for k in range(m, (n + 1) // 2, -1))
            now.append(before or enough)
        if now == certified:
            return certified
        certified = now


@st.composite
def many_votes(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    n = draw(st.integers(2, 60))
    low = draw(st.integers((n + 1) // 2, n))
    votes = draw(st.lists(st.integers(low, n), min_size=1, max_size=25))
    alike = draw(st.integers(0, 25))  # many pixels with the same votes make the bar fall far at once
    return np.array(votes + alike * [votes[0]]), n


@given(st.integers(1, 150), TAUS, ALPHAS, st.integers(1, 60_000))
def test_bonferroni_equals_a_search_with_scipy(n: int, tau: float, alpha: float, pixels: int) -> None:
    assert bonferroni_threshold(n, tau, alpha, pixels) == slow_bonferroni(n, tau, alpha, pixels)


@given(st.integers(1, 150), TAUS, ALPHAS, st.integers(1, 60_000))
def test_split_equals_a_search_with_scipy(n: int, tau: float, alpha: float, pixels: int) -> None:
    slow = next((k for k in range(n + 1) if tail(k, n, tau) <= alpha / pixels), n + 1)
    assert split_threshold(n, tau, alpha, pixels) == slow


@given(many_votes(), TAUS, ALPHAS)
@hypothesis_settings(max_examples=150)
def test_holm_equals_the_slow_pixel_by_pixel_procedure(given_votes: tuple[np.ndarray, int], tau: float,
                                                       alpha: float) -> None:
    votes, n = given_votes
    threshold = holm_threshold(votes, n, tau, alpha)
    assert (votes >= threshold).tolist() == slow_holm(votes.tolist(), n, tau, alpha)


@given(many_votes(), TAUS, ALPHAS)
def test_holm_never_certifies_less_than_bonferroni(given_votes: tuple[np.ndarray, int], tau: float,
                                                   alpha: float) -> None:
    votes, n = given_votes
    holm = holm_threshold(votes, n, tau, alpha)
    bonferroni = bonferroni_threshold(n, tau, alpha, votes.size)
    assert (n + 1) / 2 < holm <= bonferroni <= n + 1
    if not (votes >= bonferroni).any():
        assert holm == bonferroni


@given(many_votes(), TAUS, ALPHAS, st.data())
def test_more_votes_never_uncertify_anything(given_votes: tuple[np.ndarray, int], tau: float, alpha: float,
                                             data: st.DataObject) -> None:
    votes, n = given_votes
    more = np.array([data.draw(st.integers(int(m), n)) for m in votes])
    assert holm_threshold(more, n, tau, alpha) <= holm_threshold(votes, n, tau, alpha)


@given(many_votes(), TAUS, st.data())
def test_a_larger_error_a_smaller_tau_or_fewer_pixels_never_uncertify(given_votes: tuple[np.ndarray, int], tau: float,
                                                           data: st.DataObject) -> None:
    votes, n = given_votes
    lower = data.draw(st.floats(0.5, tau))
    assert holm_threshold(votes, n, tau, 0.2003) <= holm_threshold(votes, n, tau, 0.0503)
    for rule in (bonferroni_threshold, split_threshold):
        assert rule(n, tau, 0.2003, votes.size) <= rule(n, tau, 0.0503, votes.size)
        assert rule(n, lower, 0.0503, votes.size) <= rule(n, tau, 0.0503, votes.size)
        assert rule(n, tau, 0.0503, votes.size) <= rule(n, tau, 0.0503, votes.size + 1)


def test_the_shape_of_the_votes_does_not_matter() -> None:
    votes = np.array([[60, 100, 97], [88, 100, 100]])
    assert holm_threshold(votes, 100, 0.75, 0.05) == holm_threshold(votes.T.ravel(), 100, 0.75, 0.05)


def test_equality_certifies() -> None:
    """P(Bin(2, ½) ≥ 2) is ¼ exactly."""
    assert split_threshold(2, 0.5, 0.25, 1) == 2
    assert bonferroni_threshold(2, 0.5, 0.5, 1) == 2
    assert holm_threshold(np.array([2]), 2, 0.5, 0.5) == 2


@pytest.mark.parametrize(("n", "tau", "pixels", "split", "exact"), [
    (90, 0.75, 50176, 88, 88), (100, 0.75, 50176, 96, 96), (200, 0.75, 50176, 182, 182), (1000, 0.75, 50176, 824, 824),
    (1000, 0.5, 50176, 588, 590), (100, 0.85, 50176, 101, 101), (61, 0.75, 50176, 62, 62), (62, 0.75, 50176, 62, 62),
    (100, 0.75, 1, 89, 89), (300, 0.75, 150528, 265, 265),
])
def test_votes_that_are_needed(n: int, tau: float, pixels: int, split: int, exact: int) -> None:
    assert split_threshold(n, tau, 0.001, pixels) == split
    assert bonferroni_threshold(n, tau, 0.001, pixels) == exact


def test_votes_that_are_needed_in_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["kmin"]:
        given = (row["n"], row["tau"], row["alpha"], row["N"])
        for rule, key in ((split_threshold, "kmin_split_onesided"), (bonferroni_threshold, "kmin_nosplit_exact")):
            assert rule(*given) == (row["n"] + 1 if row[key] is None else row[key]), (key, row)


@pytest.mark.parametrize(("counts", "n", "tau", "alpha", "final", "certified"), [
    ([100] * 8 + [88, 87, 86, 85, 60, 50], 100, 0.75, 0.05, 84, 12), ([100, 100, 88, 87], 100, 0.75, 0.01, 51, 4),
    ([20, 20, 20, 19, 19, 18, 10], 20, 0.6, 0.05, 17, 6),
])
def test_holm_on_known_counts(counts: list[int], n: int, tau: float, alpha: float, final: int, certified: int) -> None:
    votes = np.maximum(counts, n - np.array(counts))
    assert holm_threshold(votes, n, tau, alpha) == final
    assert int((votes >= final).sum()) == certified
    mirrored = np.maximum(n - np.array(counts), counts)
    assert holm_threshold(mirrored, n, tau, alpha) == final


def test_a_certified_pixel_still_counts_for_the_wrong_label() -> None:
    """Five pixels pass at 31 of 44 votes. Textbook Holm then asks the sixth for 29; the valid rule still for 31."""
    votes = np.array([31] * 5 + [30])
    assert 12 * tail(31, 44, 0.5) <= 0.0603 < 12 * tail(30, 44, 0.5)
    assert 2 * tail(29, 44, 0.5) <= 0.0603
    assert 1 * tail(30, 44, 0.5) + 6 * tail(30, 44, 0.5) > 0.0603
    assert holm_threshold(votes, 44, 0.5, 0.0603) == 31


def test_holm_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["directional_holm_counts"]:
        n, tau, alpha, counts = row["n"], row["tau"], row["alpha"], np.array(row["counts_class1"])
        votes = np.maximum(counts, n - counts)
        assert holm_threshold(votes, n, tau, alpha) == row["holm_final_k"]
        assert int((votes >= row["holm_final_k"]).sum()) == row["holm_rejected"]
        assert bonferroni_threshold(n, tau, alpha, votes.size) == row["bonferroni_k"]
        assert int((votes >= row["bonferroni_k"]).sum()) == row["bonferroni_rejected"]


@given(st.floats(0.5, 0.9), st.sampled_from([0.00101, 0.0503, 0.3307, 0.87, 0.993]), st.integers(1, 60_000),
       st.booleans())
def test_min_copies_is_where_a_unanimous_vote_first_certifies(tau: float, alpha: float, pixels: int,
                                                              two_sided: bool) -> None:
    needed = min_copies(tau, alpha, pixels, two_sided=two_sided)
    assume(abs(tau**needed / (alpha / pixels) - 1) > 1e-9)
    rule = bonferroni_threshold if two_sided else split_threshold
    assert rule(needed, tau, alpha, pixels) == needed
    assert all(rule(n, tau, alpha, pixels) == n + 1 for n in range(1, needed))


def test_min_copies_of_the_published_setting() -> None:
    assert min_copies(0.75, 0.001, 224 * 224) == 62
    assert min_copies(0.75, 0.001, 224 * 224, two_sided=False) == 62
    assert min_copies(0.5, 0.001, 1) == 11
    assert min_copies(0.5, 0.001, 1, two_sided=False) == 10
    # Near 1 there are very many, and they are found without counting up to them.
    assert min_copies(1 - 1e-12, 0.001, 50176) == pytest.approx(1.7731e13, rel=1e-4)


def test_near_one_half_a_larger_tau_may_certify_more() -> None:
    """Sound, but odd: at τ = ½ a wrong label is as probable as can be, and all N pixels count for it.

    Where most pixels pass, step-down takes them off the other term only. At τ = 0.55 the claim is stronger, yet a wrong
    label is so improbable that the bound falls further. Bonferroni's bound, which never steps down, grows with τ.
    """
    n, alpha, pixels = 100, 0.001, 1000
    votes = np.array([100] * (pixels - 1) + [73])
    half, more = (holm_threshold(votes, n, tau, alpha) for tau in (0.5, 0.55))
    assert half > 73 >= more
    assert (1 + pixels) * tail(73, n, 0.5) > alpha
    assert tail(73, n, 0.55) + pixels * tail(73, n, 0.45) <= alpha
    assert np.all(np.diff([bonferroni_threshold(n, tau, alpha, pixels) for tau in np.linspace(0.5, 0.95, 46)]) >= 0)
