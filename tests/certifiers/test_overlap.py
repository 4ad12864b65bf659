"""`top-k-overlap` and `certified-rank` on smoothed maps whose worst change is known or attacked.

A map of half-spaces, h_i(x) = [w_i·x > t_i] with unit w_i, has the smoothed values Φ((w_i·x − t_i)/σ) exactly.
"""

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
from scipy import stats

from certframe import protocols
from certframe.certifiers.overlap import CertifiedRank, TopKOverlap
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN
from certframe.statistics.bands import (
    certified_ranks,
    clopper_pearson_bounds,
    hoeffding_bounds,
    overlap_certificates,
)
from certframe.tally import REAL_UNIT, Tally

SIGMA = 0.25


def made(**options: Any) -> TopKOverlap:
    return TopKOverlap(TopKOverlap.Options(**options))


def rank(**options: Any) -> CertifiedRank:
    return CertifiedRank(CertifiedRank.Options(**options))


def overlap_at(certificate: protocols.Certificate, rho: float, level: int = 0, k: int = 0) -> float:
    at = int(np.argmin(np.abs(certificate.arrays["rho"] - rho)))
    assert certificate.arrays["rho"][at] == rho
    return float(certificate.arrays["overlap"][level, k, at])


class HalfSpaces:
    """A smoothed map of N half-spaces in d dimensions, and what becomes of it when the image moves."""

    def __init__(self, seed: int, pixels: int = 40, dimensions: int = 5, spread: float = 1.5) -> None:
        self.rng = np.random.default_rng(seed)
        directions = self.rng.normal(size=(pixels, dimensions))
        self.w = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self.margins = spread * self.rng.normal(size=pixels)  # (w·x − t)/σ at the image

    def smoothed(self, delta: np.ndarray) -> np.ndarray:
        return np.asarray(stats.norm.cdf(self.margins + self.w @ delta / SIGMA))

    def counts(self, n: int) -> np.ndarray:
        """Copies of x + ε: all pixels see the same noise."""
        noise = SIGMA * self.rng.normal(size=(n, self.w.shape[1]))
        return np.asarray((self.margins + noise @ self.w.T / SIGMA > 0).sum(axis=0))

    def attacks(self, rho: float, k: int) -> list[np.ndarray]:
        """Changes of norm ρ: away from the top and towards the others, pair by pair and in all; and random ones."""
        order = np.argsort(-self.margins)
        last, first = order[max(0, k - 6): k], order[k: k + 6]
        found = [self.w[j] - self.w[i] for i in last for j in first]
        found += [self.w[first].sum(axis=0) - self.w[last].sum(axis=0), -self.w[last].sum(axis=0)]
        found += list(self.rng.normal(size=(60, self.w.shape[1])))
        return [rho * delta / np.linalg.norm(delta) for delta in found]


def top(values: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-values)[:k].tolist())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("bounds", ["clopper-pearson", "hoeffding"])
def test_no_attack_within_rho_leaves_less_overlap_than_is_certified(seed: int, bounds: str) -> None:
    """At α = 10⁻⁶ a single counterexample refutes; some of what is certified is nearly reached."""
    world = HalfSpaces(seed)
    tally = counted(world.counts(20_000).reshape(1, 5, 8), 20_000, sigma=SIGMA)
    for rho in (0.0, 0.02, 0.05, 0.1):
        certificate = made(alpha=1e-6, rho=rho, k=(10, 25, 50), bounds=bounds).certify(tally)
        for j, k in enumerate((4, 10, 20)):
            before = top(world.margins, k)
            left = [len(before & top(world.smoothed(delta), k)) / k for delta in world.attacks(rho, k)]
            assert overlap_at(certificate, rho, k=j) <= min(left), (rho, k)
    assert overlap_at(certificate, 0.0, k=2) > 0.5


@pytest.mark.parametrize("seed", range(12))
def test_no_attack_within_rho_pushes_a_pixel_below_its_certified_rank(seed: int) -> None:
    world = HalfSpaces(seed)
    tally = counted(world.counts(20_000).reshape(1, 5, 8), 20_000, sigma=SIGMA)
    for rho in (0.0, 0.05, 0.1):
        certified = rank(alpha=1e-6, rho=rho).certify(tally).arrays["rank"].ravel()
        for k in (4, 20, 35):
            for delta in world.attacks(rho, k):
                values = world.smoothed(delta)
                assert np.all(1 + (values[None] > values[:, None]).sum(axis=1) <= certified)
    assert rank(alpha=1e-6, rho=0.0).certify(tally).arrays["rank"].min() < 8


def test_a_clear_map_is_certified_in_full() -> None:
    """Two groups that no change within ρ can mix, and the first of all, which the printed formula cannot certify."""
    counts = np.array([[[9999, 9000, 8990, 8980], [100, 90, 80, 70], [10, 9, 8, 7]]])
    certificate = made(rho=0.1, k=(100 / 3,)).certify(counted(counts, 10_000, sigma=SIGMA))
    assert overlap_at(certificate, 0.1) == 1.0
    ranks = rank(rho=0.1).certify(counted(counts, 10_000, sigma=SIGMA)).arrays["rank"]
    assert ranks[0, 0].tolist() == [1, 4, 4, 4]


@given(st.integers(0, 10_000), st.integers(1, 300), st.sampled_from([0.05, 0.5]),
       st.sampled_from(["auto", "hoeffding", "clopper-pearson"]))
@hypothesis_settings(max_examples=40)
def test_the_certificate_is_made_of_the_statistics(seed: int, n: int, alpha: float, bounds: str) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.binomial(n, rng.beta(0.3, 0.3, size=(2, 5, 7)))
    tally = counted(counts, n, sigma=SIGMA)
    certificate = made(alpha=alpha, bounds=bounds, k=(10, 50), rho=0.03).certify(tally)
    ranks = rank(alpha=alpha, bounds=bounds, rho=0.03).certify(tally).arrays["rank"]
    rho = certificate.arrays["rho"]
    assert certificate.arrays["overlap"].shape == (2, 2, rho.size)
    assert rho[0] == 0
    assert rho[-1] == SIGMA
    assert np.all(np.diff(rho) > 0)
    for level in range(2):
        low, high = (hoeffding_bounds(counts[level] / n, n, 1 - alpha) if bounds == "hoeffding" else
                     clopper_pearson_bounds(counts[level], n, 1 - alpha))
        for j, k in enumerate((4, 17)):
            expected = overlap_certificates(low, high, k, rho / SIGMA) / k
            np.testing.assert_array_equal(certificate.arrays["overlap"][level, j], expected)
        np.testing.assert_array_equal(ranks[level], certified_ranks(low, high, 0.03 / SIGMA))


def test_real_values_have_hoeffding_bounds() -> None:
    rng = np.random.default_rng(0)
    mean = rng.random((1, 6, 6))
    n = 5000
    tally = counted(np.rint(mean * n * REAL_UNIT).astype(np.int64), n, unit=REAL_UNIT, sigma=SIGMA)
    low, high = hoeffding_bounds(tally.mean[0], n, 0.95)
    certificate = made(rho=0.02).certify(tally)
    expected = overlap_certificates(low, high, 7, certificate.arrays["rho"] / SIGMA) / 7
    np.testing.assert_array_equal(certificate.arrays["overlap"][0, 0], expected)
    np.testing.assert_array_equal(rank(rho=0.02).certify(tally).arrays["rank"][0],
                                  certified_ranks(low, high, 0.02 / SIGMA))
    for certifier in (made(bounds="clopper-pearson"), rank(bounds="clopper-pearson")):
        with pytest.raises(UsageError, match="clopper-pearson bounds are for 0/1 levels"):
            certifier.certify(tally)


def certified_curves(tally: Tally, **options: Any) -> np.ndarray:
    return np.asarray(made(k=(5, 10, 20, 50), **options).certify(tally).arrays["overlap"][0])


@given(st.integers(0, 10_000))
@hypothesis_settings(max_examples=30)
def test_certificates_fall_with_rho_and_grow_with_k_n_and_alpha(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.binomial(200, rng.beta(0.3, 0.3, size=(1, 8, 10)))
    few, many = counted(counts, 200), counted(10 * counts, 2000)
    curves, ranks = certified_curves(few), rank(rho=0.05).certify(few).arrays["rank"]
    assert np.all(np.diff(curves, axis=1) <= 0)
    pixels = curves * np.array([4, 8, 16, 40])[:, None]
    assert np.all(np.diff(pixels, axis=0) >= -1e-9)
    assert np.all(certified_curves(many) >= curves)
    assert np.all(certified_curves(few, alpha=0.5) >= curves)
    assert np.all(rank(rho=0.05).certify(many).arrays["rank"] <= ranks)
    assert np.all(rank(rho=0.05, alpha=0.5).certify(few).arrays["rank"] <= ranks)
    assert np.all(rank(rho=0.0).certify(few).arrays["rank"] <= ranks)
    assert np.all(rank(rho=5.0).certify(few).arrays["rank"] >= ranks)


def test_exact_bounds_certify_more_than_hoeffdings_where_values_are_near_zero_or_one() -> None:
    rng = np.random.default_rng(1)
    counts = rng.binomial(1000, rng.beta(0.1, 0.1, size=(1, 30, 30)))
    tally = counted(counts, 1000)
    exact, loose = certified_curves(tally, bounds="auto"), certified_curves(tally, bounds="hoeffding")
    assert np.all(exact >= loose)
    assert exact.sum() > 1.05 * loose.sum()


@pytest.mark.parametrize(("shape", "k", "pixels"), [
    ((1, 2), 50, 1), ((1, 3), 50, 1), ((7, 7), 50, 24), ((3, 17), 50, 25), ((5, 5), 0.001, 1), ((5, 5), 20, 5),
])
def test_k_is_a_number_of_pixels_with_at_most_half_of_them(shape: tuple[int, int], k: float, pixels: int) -> None:
    counts = np.zeros((1, *shape), int)
    counts.reshape(-1)[:pixels] = 1000
    certificate = made(k=(k,), rho=0.0).certify(counted(counts, 1000))
    assert overlap_at(certificate, 0.0) == 1.0
    counts.reshape(-1)[: pixels + 1] = 1000
    if pixels * 2 < counts.size:
        assert overlap_at(made(k=(k,), rho=0.0).certify(counted(counts, 1000)), 0.0) < 1.0


@pytest.mark.parametrize("certifier", [made(), rank()])
def test_nothing_is_certified_from_one_copy_or_of_a_constant_map(certifier: Any) -> None:
    assert certifier.min_samples(50176, 3) == 1
    for tally in (counted(np.ones((1, 4, 4)), 1), counted(np.zeros((1, 4, 4)), 1000)):
        certificate = certifier.certify(tally)
        if "rank" in certificate.arrays:
            assert (certificate.arrays["rank"] == 16).all()
        else:
            assert (certificate.arrays["overlap"] == 0).all()
        assert (certificate.labels == ABSTAIN).all()


@pytest.mark.parametrize(("certifier", "name", "subject"), [(made(), "top-k-overlap", "overlap"),
                                                            (rank(), "certified-rank", "rank")])
def test_the_certificate_says_what_is_proven(certifier: Any, name: str, subject: str) -> None:
    rng = np.random.default_rng(2)
    tally = counted(rng.binomial(500, rng.beta(0.2, 0.2, size=(2, 10, 10))), 500)
    before, certificate = tally.to_bytes(), certifier.certify(tally)
    assert isinstance(certificate, protocols.Certificate)
    assert (certificate.certifier, certificate.subject, certificate.norm) == (name, subject, "l2")
    assert (certificate.function, certificate.method) == ("smoothed", "statistical")
    assert (certificate.samples, certificate.sigma, certificate.family) == (500, 0.25, 100)
    assert (certificate.radius, certificate.confidence) == (0.03, 0.95)
    for said in ("0.95", "500 noisy copies", "grad-cam", "espresso", "R = 0.03", "level"):
        assert said in certificate.statement
    assert tally.to_bytes() == before
    assert certifier.looks(100) is None
    assert certifier.cuts == ()
    with pytest.raises(UsageError, match=f"'{name}' is for a number of copies that is fixed"):
        certifier.certify(replace(tally, planned=1000))


def test_levels_are_certified_one_by_one_and_the_statement_says_so() -> None:
    several = made().certify(counted(np.ones((2, 4, 4)), 10)).statement
    alone = made().certify(counted(np.ones((1, 4, 4)), 10)).statement
    assert "for each level by itself" in several
    assert "by itself" not in alone
    assert "of a level" in rank().certify(counted(np.ones((2, 4, 4)), 10)).statement


def test_refusals() -> None:
    with pytest.raises(UsageError, match="only 1 pixel"):
        made().certify(counted([[[5]]], 10))
    assert rank().certify(counted([[[5]]], 10)).arrays["rank"].item() == 1
    for options in ({"k": (51,)}, {"k": (0,)}, {"k": ()}, {"rho": -0.1}, {"alpha": 0.0}, {"alpha": 1.0},
                    {"bounds": "wald"}):
        with pytest.raises(ValidationError):
            TopKOverlap.Options(**options)
