from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from certframe.statistics.binomial import smoothing_radius, two_sided_p_values, upper_tail

TAUS = st.floats(0.5, 0.999)


def exact_tail(n: int, p: float, k: int) -> Fraction:
    """P(Bin(n, p) ≥ k) in rational arithmetic."""
    q = Fraction(p)
    return sum((math.comb(n, j) * q**j * (1 - q) ** (n - j) for j in range(max(k, 0), n + 1)), Fraction(0))


@given(st.integers(1, 40), st.floats(0.001, 0.999))
@hypothesis_settings(max_examples=40)
def test_tails_equal_rational_arithmetic(n: int, p: float) -> None:
    tail = upper_tail(n, p)
    assert tail.dtype == np.float64
    assert len(tail) == n + 2
    for k in range(n + 2):
        assert tail[k] == pytest.approx(float(exact_tail(n, p, k)), rel=1e-12, abs=0)


@pytest.mark.parametrize("n", [1, 2, 99, 100, 1000, 5000, 20_000])
@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.75, 0.95])
def test_tails_equal_scipys_survival_function(n: int, p: float) -> None:
    k = np.arange(n + 2)
    ours, scipys = upper_tail(n, p), stats.binom.sf(k - 1, n, p)
    representable = scipys > 1e-290
    np.testing.assert_allclose(ours[representable], scipys[representable], rtol=1e-10)
    assert np.all(np.diff(ours) <= 0)
    assert ours[0] == 1.0
    assert ours[n + 1] == 0.0


def test_the_cached_array_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        upper_tail(10, 0.75)[3] = 0.0


def test_a_tail_near_the_border_is_not_rounded_to_zero() -> None:
    """In float32, 1 − cdf is 0 here, and 0 certifies."""
    for n, k, exact in ((90, 87, 2.749166232032522e-08), (200, 181, 2.2721278928876812e-08)):
        assert np.float32(1) - np.float32(stats.binom.cdf(k - 1, n, 0.75)) == 0
        assert upper_tail(n, 0.75)[k] == pytest.approx(exact, rel=1e-12)
        assert upper_tail(n, 0.75)[k] > 0.001 / 50176


@pytest.mark.parametrize(("n", "tau", "votes", "p"), [
    (100, 0.75, 96, 1.763429043967586e-08), (100, 0.5, 78, 1.590532847378614e-08),
    (1000, 0.6, 690, 2.22837827640646e-09), (20, 0.55, 19, 0.00011435252493852896),
    (10, 0.75, 5, 1.0583992004394531),
])
def test_two_sided_p_values(n: int, tau: float, votes: int, p: float) -> None:
    assert two_sided_p_values(n, tau)[votes] == pytest.approx(p, rel=1e-12)


def test_two_sided_p_values_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["nosplit_pvalue"]:
        assert row["m"] == max(row["x"], row["n"] - row["x"])
        assert two_sided_p_values(row["n"], row["tau"])[row["m"]] == pytest.approx(row["p"], rel=1e-12)


def test_float32_trap_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["float32_trap"]:
        p = upper_tail(row["n"], row["tau"])[row["k"]]
        assert p == pytest.approx(row["p_exact"], rel=1e-12)
        assert bool(p <= row.get("alpha_per_pixel", 0.001 / 50176)) is row["reject"]


@given(st.integers(2, 60), TAUS)
@hypothesis_settings(max_examples=40)
def test_the_p_value_is_the_largest_over_the_null_hypothesis(n: int, tau: float) -> None:
    """For every p in [1 − τ, τ], P(max(X, n − X) ≥ m) is at most the p-value, and equal to it at p = τ."""
    values = two_sided_p_values(n, tau)
    for m in range((n + 1) // 2 + 1, n + 1):
        for p in np.linspace(1 - tau, tau, 23):
            both = stats.binom.sf(m - 1, n, p) + stats.binom.cdf(n - m, n, p)
            assert both <= values[m] * (1 + 1e-9)
        at_tau = stats.binom.sf(m - 1, n, tau) + stats.binom.cdf(n - m, n, tau)
        assert at_tau == pytest.approx(values[m], rel=1e-9)


@pytest.mark.parametrize(("sigma", "tau", "radius"), [
    (0.15, 0.75, 0.10117346252941226), (0.33, 0.75, 0.22258161756470699), (0.15, 0.5, 0.0),
    (0.25, 0.9, 0.3203878913861501), (0.5, 0.6, 0.1266735515678999),
])
def test_radius(sigma: float, tau: float, radius: float) -> None:
    assert smoothing_radius(sigma, tau) == pytest.approx(radius, rel=1e-12, abs=0)
    assert smoothing_radius(sigma, tau) == pytest.approx(sigma * stats.norm.ppf(tau), rel=1e-12)


def test_radius_of_the_vectors(vectors: dict[str, Any]) -> None:
    for row in vectors["radius"]:
        assert smoothing_radius(row["sigma"], row["tau"]) == pytest.approx(row["R"], rel=1e-12, abs=0)
    for sigma, rounded in vectors["paper_radius_rounded"].items():
        assert round(smoothing_radius(float(sigma), 0.75), 2) == rounded
