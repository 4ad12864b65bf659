"""`importance-band` against a rule per pixel and level."""

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
from certframe.certifiers.importance_band import ImportanceBand
from certframe.certifiers.pixel import Pixel
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN
from certframe.tally import REAL_UNIT, Tally


def made(**options: Any) -> ImportanceBand:
    return ImportanceBand(ImportanceBand.Options(**options))


def nested_counts(seed: int, n: int, levels: int = 3, shape: tuple[int, int] = (4, 3)) -> np.ndarray:
    """Counts of scores above rising thresholds."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(2 * rng.normal(size=shape), 0.5, size=(n, *shape))
    return np.array([(scores > t).sum(axis=0) for t in np.linspace(-1, 1, levels)])


def nested(counts: Any, n: int, **changes: Any) -> Tally:
    return counted(counts, n, **{"nested": True, **changes})


def slow(counts: list[int], n: int, tau: float, alpha: float, pixels: int) -> tuple[list[int], int, int]:
    """Labels, innermost certain level, outermost certainly missed level of one pixel."""
    passing = [k for k in range(n + 1) if 2 * k > n and stats.binom.sf(k - 1, n, tau) <= alpha / (2 * pixels)]
    k = min(passing, default=n + 1)
    labels = [1 if x >= k else 0 if n - x >= k else ABSTAIN for x in counts]
    return (labels, max((i for i, label in enumerate(labels) if label == 1), default=-1),
            min((i for i, label in enumerate(labels) if label == 0), default=len(labels)))


@given(st.integers(0, 10_000), st.integers(1, 120), st.floats(0.5, 0.9), st.sampled_from([0.00101, 0.0503, 0.3307]),
       st.integers(1, 4))
@hypothesis_settings(max_examples=60)
def test_bands_equal_the_rule_per_pixel(seed: int, n: int, tau: float, alpha: float, levels: int) -> None:
    counts = nested_counts(seed, n, levels)
    certificate = made(tau=tau, alpha=alpha).certify(nested(counts, n))
    for index in np.ndindex(4, 3):
        labels, inner, outer = slow([int(x) for x in counts[(slice(None), *index)]], n, tau, alpha, 12)
        assert certificate.labels[(slice(None), *index)].tolist() == labels
        assert certificate.arrays["inner"][index] == inner
        assert certificate.arrays["outer"][index] == outer
        assert inner < outer
        assert labels[: inner + 1] == [1] * (inner + 1)
        assert labels[outer:] == [0] * (levels - outer)


def test_bands_of_the_vectors(vectors: dict[str, Any]) -> None:
    row = vectors["overlay"]
    shares = sorted(row["Ks_frac"], reverse=True)
    counts = np.full((3, 224, 224), 50)
    for i, case in enumerate(row["cases"]):
        counts[:, 0, i] = case["counts"][::-1]  # given from the smallest level on
    certificate = made(tau=row["tau"], alpha=row["alpha"]).certify(nested(counts, row["n"]))
    assert certificate.arrays["vote_thresholds"].tolist() == [row["k_2N"]] * 3
    for i, case in enumerate(row["cases"]):
        inner, outer = certificate.arrays["inner"][0, i], certificate.arrays["outer"][0, i]
        assert [shares[outer] if outer < 3 else 0, shares[inner] if inner >= 0 else 1] == case["band_lo_hi"], case


@pytest.mark.parametrize(("counts", "inner", "outer"), [
    ([100, 100, 98], 2, 3), ([100, 97, 2], 1, 2), ([99, 3, 0], 0, 1), ([3, 0, 0], -1, 0), ([100, 50, 0], 0, 2),
    ([70, 60, 50], -1, 3), ([97, 96, 96], 0, 3), ([96, 4, 3], -1, 2),
])
def test_known_bands(counts: list[int], inner: int, outer: int) -> None:
    everywhere = np.broadcast_to(np.array(counts).reshape(3, 1, 1), (3, 224, 224))
    certificate = made().certify(nested(everywhere, 100))
    assert (certificate.arrays["inner"] == inner).all()
    assert (certificate.arrays["outer"] == outer).all()


def test_one_level_costs_at_most_two_votes_more_than_alone() -> None:
    for n in (70, 100, 333, 1000):
        counts = np.random.default_rng(n).integers(0, n + 1, (1, 224, 224))
        band = made().vote_thresholds(nested(counts, n), 0.75)[0]
        alone = Pixel(Pixel.Options(correction="bonferroni")).vote_thresholds(nested(counts, n), 0.75)[0]
        assert alone <= band <= alone + 2


def test_the_number_of_levels_is_free() -> None:
    few, many = nested_counts(3, 200, 2), nested_counts(3, 200, 40)
    assert made().vote_thresholds(nested(few, 200), 0.6)[0] == made().vote_thresholds(nested(many, 200), 0.6)[0]
    assert np.array_equal(made(tau=0.6).certify(nested(few, 200)).labels,
                          made(tau=0.6).certify(nested(many, 200)).labels[[0, -1]])


def test_evidence_and_thresholds_decide_as_certify_does() -> None:
    tally = nested(nested_counts(4, 150), 150)
    for tau in (0.5, 0.61, 0.8, 0.99):
        candidate, votes = made(alpha=0.05).evidence(tally)
        thresholds = made(alpha=0.05).vote_thresholds(tally, tau)
        decided = np.where(votes >= thresholds[:, None, None], candidate, ABSTAIN)
        assert np.array_equal(decided, made(alpha=0.05, tau=tau).certify(tally).labels)


def test_the_certificate_says_what_is_proven() -> None:
    tally = nested(nested_counts(5, 300), 300)
    before, certificate = tally.to_bytes(), made().certify(tally)
    assert isinstance(certificate, protocols.Certificate)
    assert (certificate.certifier, certificate.subject, certificate.norm) == ("importance-band", "band", "l2")
    assert (certificate.function, certificate.method) == ("smoothed", "statistical")
    assert (certificate.samples, certificate.sigma, certificate.family) == (300, 0.25, 36)
    assert certificate.radius == pytest.approx(0.25 * stats.norm.ppf(0.75))
    for said in ("0.999", "300 noisy copies", "at all levels jointly", "grad-cam", "0.1686"):
        assert said in certificate.statement
    assert tally.to_bytes() == before


def test_min_samples_is_where_a_unanimous_pixel_is_first_certified() -> None:
    for options in ({}, {"tau": 0.5}, {"tau": 0.6, "alpha": 0.3}, {"alpha": 0.97}):
        needed = made(**options).min_samples(12, 2)
        for n in range(max(1, needed - 2), needed + 2):
            labels = made(**options).certify(nested(np.full((2, 3, 4), n), n)).labels
            assert (labels == (1 if n >= needed else ABSTAIN)).all(), (options, n)
    assert made().min_samples(50176, 3) == 65
    assert made(tau=1 - 1e-9).min_samples(50176, 3) == pytest.approx(1.842e10, rel=1e-3)  # without counting up to it
    assert made().looks(100) is None
    assert made().cuts == ()


def test_other_tallies_are_refused() -> None:
    tally = nested(nested_counts(6, 100), 100)
    with pytest.raises(UsageError, match="needs nested levels"):
        made().certify(replace(tally, nested=False))
    with pytest.raises(UsageError, match="real-valued"):
        made().certify(replace(tally, unit=REAL_UNIT))
    with pytest.raises(UsageError, match="'importance-band' is for a number of copies that is fixed"):
        made().certify(replace(tally, planned=1000))
    for options in ({"tau": 0.4}, {"tau": 1.0}, {"alpha": 0.0}, {"family": "all"}):
        with pytest.raises(ValidationError):
            ImportanceBand.Options(**options)
