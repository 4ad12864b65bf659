"""`radius` against a bisection per pixel, and against the radius within which a label is truly constant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exact import counted
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import optimize, stats

from certframe import protocols
from certframe.certifiers.pixel import Pixel
from certframe.certifiers.radius import Radius
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN
from certframe.statistics.binomial import smoothing_radius
from certframe.tally import REAL_UNIT

ALPHAS = st.sampled_from([0.001, 0.05, 0.3, 0.9])


def made(**options: Any) -> Radius:
    return Radius(Radius.Options(**options))


def random_counts(seed: int, n: int, shape: tuple[int, ...] = (2, 4, 3)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.binomial(n, rng.beta(0.2, 0.2, size=shape)))


def slow(count: int, n: int, sigma: float, level: float) -> tuple[int, float]:
    """Label and radius of one pixel, with scipy's survival function and root finding; (ABSTAIN, NaN) if undecided."""
    enough = [k for k in range(n + 1) if 2 * k > n and 2 * stats.binom.sf(k - 1, n, 0.5) <= level]
    votes = max(count, n - count)
    if not enough or votes < enough[0]:
        return ABSTAIN, float("nan")

    def excess(t: float) -> float:
        return float(stats.binom.sf(votes - 1, n, t) + stats.binom.sf(enough[0] - 1, n, 1 - t) - level)
    # The sum falls before it rises: look for the root to the right of its minimum.
    grid = np.linspace(0.5, 1, 400)
    lowest = grid[np.argmin([excess(t) for t in grid])]
    bound = optimize.brentq(excess, lowest, 1.0, xtol=1e-14) if excess(lowest) < 0 else lowest
    return int(2 * count > n), float(sigma * stats.norm.ppf(bound))


@given(st.integers(0, 10_000), st.integers(2, 60), ALPHAS)
@hypothesis_settings(max_examples=25)
def test_labels_and_radii_equal_a_search_per_pixel(seed: int, n: int, alpha: float) -> None:
    counts = random_counts(seed, n, (1, 3, 2))
    certificate = made(alpha=alpha).certify(counted(counts, n))
    for index in np.ndindex(*counts.shape):
        label, radius = slow(int(counts[index]), n, 0.25, alpha / 6)
        assert certificate.labels[index] == label
        assert certificate.arrays["radius"][index] == pytest.approx(radius, rel=1e-6, abs=1e-6, nan_ok=True)


@given(st.integers(0, 10_000), st.integers(2, 120), ALPHAS, st.floats(0.5, 0.99))
@hypothesis_settings(max_examples=60)
def test_one_table_serves_every_tau(seed: int, n: int, alpha: float, tau: float) -> None:
    """Votes that reach σΦ⁻¹(τ): never fewer than `pixel` with Bonferroni asks for, and seldom more."""
    tally = counted(random_counts(seed, n), n)
    certifier = made(alpha=alpha)
    certificate = certifier.certify(tally)
    candidate, votes = certifier.evidence(tally)
    thresholds = certifier.vote_thresholds(tally, tau)
    assert thresholds.shape == (2,)
    reached = votes >= thresholds[:, None, None]
    radii = np.nan_to_num(certificate.arrays["radius"], nan=-1.0)
    safely = np.abs(radii - smoothing_radius(0.25, tau)) > 1e-9
    assert np.array_equal(reached[safely], (radii >= smoothing_radius(0.25, tau))[safely])
    assert np.array_equal(certificate.labels[reached], candidate[reached])
    fixed = Pixel(Pixel.Options(tau=tau, alpha=alpha, correction="bonferroni")).vote_thresholds(tally, tau)
    if tau > 0.5:
        assert np.all(thresholds >= fixed)
    if tau >= 0.6:
        assert np.all(thresholds <= fixed + 1)


def test_radii_never_exceed_the_true_ones_and_approach_them() -> None:
    """A label of probability p is constant exactly within σ|Φ⁻¹(p)| when the attribution is linear."""
    p = np.linspace(0.005, 0.995, 199).reshape(1, 1, -1)
    true, gaps = 0.25 * np.abs(stats.norm.ppf(p)), []
    for n in (100, 1000, 10_000):
        counts = np.random.default_rng(n).binomial(n, p)
        certificate = made(alpha=0.05).certify(counted(counts, n))
        radii = np.nan_to_num(certificate.arrays["radius"])
        assert np.all(radii <= true)
        assert np.all((certificate.labels == ABSTAIN) | (certificate.labels == (p > 0.5)))
        gaps.append(float((true - radii).mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_the_usual_setting() -> None:
    counts = np.full((1, 224, 224), 50)
    counts[0, 0, :5] = [100, 79, 78, 77, 21]
    certificate = made().certify(counted(counts, 100, sigma=0.15))
    assert certificate.labels[0, 0, :6].tolist() == [1, 1, 1, ABSTAIN, 0, ABSTAIN]
    radii = certificate.arrays["radius"][0, 0]
    assert radii[0] == pytest.approx(0.15 * 0.9843, abs=1e-5)
    assert radii[1] == radii[4] == pytest.approx(0.15 * 0.047988772833658926, rel=1e-10)
    assert radii[2] == pytest.approx(0.15 * 0.015682029898076367, rel=1e-10)
    assert np.isnan(radii[[3, 5]]).all()
    assert certificate.radius == radii[2]


def test_ties_single_pixels_and_too_few_copies() -> None:
    assert made(alpha=0.9).certify(counted([[[1, 2]]], 2)).labels.tolist() == [[[ABSTAIN, ABSTAIN]]]
    single = made(alpha=0.9).certify(counted([[[2]]], 2))
    assert single.labels.item() == 1
    # S_t(2) + S_{1−t}(2) = t² + (1 − t)² = 0.9 at t = (1 + √0.8)/2.
    assert single.radius == pytest.approx(0.25 * stats.norm.ppf((1 + 0.8**0.5) / 2), rel=1e-9)
    none = made().certify(counted(np.full((1, 5, 5), 5), 5))
    assert (none.labels == ABSTAIN).all()
    assert none.radius == 0.0
    assert np.isnan(none.arrays["radius"]).all()
    assert made().vote_thresholds(counted(np.full((1, 5, 5), 5), 5), 0.5).tolist() == [6]


def test_labels_of_the_complement_are_complementary() -> None:
    counts = random_counts(1, 80)
    one, other = (made(alpha=0.05).certify(counted(c, 80)) for c in (counts, 80 - counts))
    assert np.array_equal(other.labels, np.where(one.labels == ABSTAIN, ABSTAIN, 1 - one.labels))
    np.testing.assert_array_equal(one.arrays["radius"], other.arrays["radius"])


def test_the_certificate_says_what_is_proven() -> None:
    tally = counted(random_counts(2, 400), 400)
    before, certificate = tally.to_bytes(), made().certify(tally)
    assert isinstance(certificate, protocols.Certificate)
    assert (certificate.certifier, certificate.subject, certificate.norm) == ("radius", "pixel-label", "l2")
    assert (certificate.function, certificate.method) == ("smoothed", "statistical")
    assert (certificate.samples, certificate.sigma, certificate.family) == (400, 0.25, 12)
    assert certificate.confidence == 0.999
    assert certificate.radius == np.nanmin(certificate.arrays["radius"])
    assert certificate.arrays["radius"].shape == certificate.labels.shape
    for said in ("0.999", "400 noisy copies", "of a level", "the pixel's own radius", "grad-cam", "cannot certify"):
        assert said in certificate.statement
    assert tally.to_bytes() == before
    assert "constant" in made().certify(counted(np.zeros((1, 2, 2)), 100)).warnings[0]


def test_min_samples_is_where_a_unanimous_pixel_is_first_certified() -> None:
    for alpha in (0.001, 0.05, 0.9):
        needed = made(alpha=alpha).min_samples(12, 1)
        for n in range(max(1, needed - 2), needed + 2):
            labels = made(alpha=alpha).certify(counted(np.full((1, 3, 4), n), n)).labels
            assert (labels == (1 if n >= needed else ABSTAIN)).all()
    assert made().min_samples(50176, 3) == 27
    assert made().looks(100) is None
    assert made().cuts == ()


def test_other_tallies_are_refused() -> None:
    tally = counted(random_counts(3, 100), 100)
    with pytest.raises(UsageError, match="real-valued"):
        made().certify(replace(tally, unit=REAL_UNIT))
    with pytest.raises(UsageError, match="'radius' is for a number of copies that is fixed"):
        made().certify(replace(tally, planned=1000))
    for options in ({"alpha": 0.0}, {"alpha": 1.0}, {"tau": 0.75}):
        with pytest.raises(ValidationError):
            Radius.Options(**options)
