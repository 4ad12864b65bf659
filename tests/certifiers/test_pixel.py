from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from certframe import protocols
from certframe.certifiers.pixel import Pixel
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN
from certframe.tally import REAL_UNIT, Tally


def tally_of(pilot: np.ndarray, rest: np.ndarray, n0: int, n: int, **changes: Any) -> Tally:
    """Counts (L,h,w) of the first n0 and the next n copies."""
    levels = tuple(f"{level}" for level in range(len(pilot)))
    fields: dict[str, Any] = {"segments": np.stack([pilot, rest]).astype(np.int64), "copies": ((0, n0 + n),),
                              "levels": levels, "sigma": 0.25, "cuts": (n0,)}
    return Tally(**{**fields, **changes})


def random_counts(seed: int, n0: int, n: int, shape: tuple[int, ...] = (2, 4, 3)) -> Tally:
    """Counts of pixels from the hopeless to the unanimous."""
    generator = np.random.default_rng(seed)
    p = generator.beta(0.15, 0.15, size=shape)
    return tally_of(generator.binomial(n0, p), generator.binomial(n, p), n0, n)


def certify(tally: Tally, **options: Any) -> np.ndarray:
    return Pixel(Pixel.Options(**options)).certify(tally).labels


# -- the rules, written again ------------------------------------------------------------------------------------------

def published_label(first: int, n0: int, second: int, n: int, tau: float, alpha: float, pixels: int) -> int:
    """Anani et al. 2025 after Fischer et al. 2021: choose on n0 copies, test on n others, divide α by the pixels."""
    candidate = 1 if first > n0 - first else 0
    agreeing = second if candidate == 1 else n - second
    p = stats.binomtest(int(agreeing), n, tau, alternative="greater").pvalue
    return candidate if p <= alpha / pixels else ABSTAIN


def exact_label(count: int, n: int, tau: float, alpha: float, tests: int) -> int:
    """Majority label with the exact two-sided p-value and Bonferroni."""
    votes = max(count, n - count)
    p = stats.binom.sf(votes - 1, n, tau) + stats.binom.sf(votes - 1, n, 1 - tau)
    return int(2 * count > n) if votes > (n + 1) / 2 and p <= alpha / tests else ABSTAIN


SETTINGS = st.sampled_from([(0.5, 0.0503), (0.6, 0.0101), (0.75, 0.00101), (0.75, 0.3307), (0.9, 0.2003)])


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 90), SETTINGS)
@hypothesis_settings(max_examples=60)
def test_paper_is_the_published_rule_bit_for_bit(seed: int, n0: int, n: int, setting: tuple[float, float]) -> None:
    tau, alpha = setting
    tally = random_counts(seed, n0, n)
    expected = [[[published_label(first, n0, second, n, tau, alpha, 12) for first, second in zip(*rows, strict=True)]
                 for rows in zip(*levels, strict=True)] for levels in zip(*tally.segments, strict=True)]
    labels = certify(tally, correction="paper", pilot=n0, tau=tau, alpha=alpha)
    assert labels.dtype == np.int8
    assert labels.tobytes() == np.array(expected, np.int8).tobytes()


def test_paper_equals_the_published_rule_on_every_pair_of_counts() -> None:
    n0, n = 4, 20
    first, second = (grid.reshape(1, 1, -1) for grid in np.meshgrid(range(n0 + 1), range(n + 1)))
    for tau, alpha in ((0.5, 0.7), (0.6, 0.9)):
        labels = certify(tally_of(first, second, n0, n), correction="paper", pilot=n0, tau=tau, alpha=alpha)
        expected = [published_label(a, n0, b, n, tau, alpha, first.size) for a, b in
                    zip(first.ravel(), second.ravel(), strict=True)]
        assert labels.ravel().tolist() == expected
        assert {-1, 0, 1} == set(expected)


def test_paper_ties_of_the_pilot_go_to_unimportant() -> None:
    tally = tally_of(np.full((1, 1, 1), 5), np.full((1, 1, 1), 100), 10, 100)
    assert certify(tally, correction="paper").item() == ABSTAIN
    tally = tally_of(np.full((1, 1, 1), 5), np.full((1, 1, 1), 0), 10, 100)
    assert certify(tally, correction="paper").item() == 0


@given(st.integers(0, 10_000), st.integers(2, 100), SETTINGS, st.sampled_from(["level", "all"]))
@hypothesis_settings(max_examples=60)
def test_bonferroni_equals_the_rule_pixel_by_pixel(seed: int, n: int, setting: tuple[float, float],
                                                   family: str) -> None:
    tau, alpha = setting
    tally = random_counts(seed, 1, n - 1)
    tests = 24 if family == "all" else 12
    expected = [exact_label(count, n, tau, alpha, tests) for count in tally.counts.ravel()]
    labels = certify(tally, correction="bonferroni", tau=tau, alpha=alpha, family=family)
    assert labels.ravel().tolist() == expected


def slow_holm(counts: np.ndarray, n: int, tau: float, alpha: float) -> list[int]:
    votes, r = np.maximum(counts, n - counts).ravel(), 0
    pixels = votes.size
    while True:
        passing = [k for k in range(n + 1) if k > (n + 1) / 2 and (pixels - r) * stats.binom.sf(k - 1, n, tau)
                   + pixels * stats.binom.sf(k - 1, n, 1 - tau) <= alpha]
        threshold = min(passing, default=n + 1)
        if (found := int((votes >= threshold).sum())) == r:
            break
        r = found
    return [int(2 * count > n) if vote >= threshold else ABSTAIN
            for count, vote in zip(counts.ravel(), votes, strict=True)]


@given(st.integers(0, 10_000), st.integers(2, 100), SETTINGS)
@hypothesis_settings(max_examples=60)
def test_holm_equals_the_procedure_pixel_by_pixel(seed: int, n: int, setting: tuple[float, float]) -> None:
    tau, alpha = setting
    tally = random_counts(seed, 1, n - 1)
    by_level = certify(tally, tau=tau, alpha=alpha)
    for labels, counts in zip(by_level, tally.counts, strict=True):
        assert labels.ravel().tolist() == slow_holm(counts, n, tau, alpha)
    together = certify(tally, tau=tau, alpha=alpha, family="all")
    assert together.ravel().tolist() == slow_holm(tally.counts, n, tau, alpha)


@given(st.integers(0, 10_000), st.integers(2, 80), SETTINGS)
@hypothesis_settings(max_examples=60)
def test_more_power_keeps_every_label(seed: int, n: int, setting: tuple[float, float]) -> None:
    """Holm certifies what Bonferroni does; a level what all levels together do; both agree on the labels."""
    tau, alpha = setting
    tally = random_counts(seed, 1, n - 1)
    holm, bonferroni = certify(tally, tau=tau, alpha=alpha), certify(tally, tau=tau, alpha=alpha,
                                                                       correction="bonferroni")
    joint = certify(tally, tau=tau, alpha=alpha, correction="bonferroni", family="all")
    for more, fewer in ((holm, bonferroni), (bonferroni, joint)):
        assert np.array_equal(more[fewer != ABSTAIN], fewer[fewer != ABSTAIN])


@given(st.integers(0, 10_000), st.sampled_from(["holm", "bonferroni", "paper"]))
@hypothesis_settings(max_examples=40)
def test_labels_and_their_complement(seed: int, correction: str) -> None:
    """Exchanging 0 and 1 exchanges the labels (but for ties of the pilot)."""
    tally = random_counts(seed, 9, 51)
    flipped = replace(tally, segments=np.array([9, 51]).reshape(2, 1, 1, 1) - tally.segments)
    options = {"correction": correction, "pilot": 9, "alpha": 0.1}
    labels, mirrored = certify(tally, **options), certify(flipped, **options)
    assert np.array_equal(mirrored, np.where(labels == ABSTAIN, ABSTAIN, 1 - labels))


# -- the certificate --------------------------------------------------------------------------------------------------

def test_the_published_setting_certifies_at_the_published_votes() -> None:
    counts = np.zeros((1, 224, 224), np.int64)
    counts[0, 0, :8] = [100, 96, 95, 50, 5, 4, 3, 0]
    counts[0, 1:] = 50
    tally = Tally(counts[None], ((0, 100),), ("50",), 0.15)
    certificate = Pixel(Pixel.Options(correction="bonferroni")).certify(tally)
    assert certificate.labels[0, 0, :8].tolist() == [1, 1, -1, -1, -1, 0, 0, 0]
    assert (certificate.labels[0, 1:] == ABSTAIN).all()
    assert certificate.radius == pytest.approx(0.10117346252941226, rel=1e-12)
    assert certificate.arrays["vote_thresholds"].tolist() == [96]


def test_the_certificate_says_what_is_proven() -> None:
    identity = {"attributor": "grad-cam", "target": 3, "target_name": "espresso"}
    tally = replace(random_counts(0, 10, 90), identity=identity)
    certificate = Pixel().certify(tally)
    assert isinstance(certificate, protocols.Certificate)
    assert (certificate.certifier, certificate.subject, certificate.norm) == ("pixel", "pixel-label", "l2")
    assert (certificate.function, certificate.method) == ("smoothed", "statistical")
    assert (certificate.samples, certificate.sigma, certificate.levels) == (100, 0.25, ("0", "1"))
    assert certificate.confidence == pytest.approx(0.999)
    assert certificate.family == 12
    assert certificate.options == {"tau": 0.75, "alpha": 0.001, "correction": "holm", "pilot": 10, "family": "level"}
    assert certificate.radius == pytest.approx(0.25 * stats.norm.ppf(0.75))
    for said in ("0.999", "100 noisy copies", "a level", "grad-cam", "espresso", "0.1686", "σ = 0.25", "τ = 0.75", "l2",
                 "smoothed"):
        assert said in certificate.statement
    assert "\n" not in certificate.statement
    joint = Pixel(Pixel.Options(family="all")).certify(tally)
    assert joint.family == 24
    assert "all levels" in joint.statement


def test_certifying_is_pure() -> None:
    tally = random_counts(3, 10, 90)
    before, certifier = tally.to_bytes(), Pixel()
    first, second = certifier.certify(tally), certifier.certify(tally)
    assert tally.to_bytes() == before
    assert np.array_equal(first.labels, second.labels)
    assert first.statement == second.statement


def test_nothing_important_is_certified_with_a_warning() -> None:
    nothing = Tally(np.zeros((1, 2, 3, 3), np.int64), ((0, 100),), ("a", "b"), 0.25)
    certificate = Pixel().certify(nothing)
    assert (certificate.labels == 0).all()
    assert len(certificate.warnings) == 1
    assert "constant" in certificate.warnings[0]
    one = np.zeros((1, 2, 3, 3), np.int64)
    one[0, 0, 1, 1] = 1
    assert Pixel().certify(Tally(one, ((0, 100),), ("a", "b"), 0.25)).warnings == ()


# -- the parts that the slider uses ------------------------------------------------------------------------------------

@pytest.mark.parametrize("correction", ["holm", "bonferroni", "paper"])
@pytest.mark.parametrize("family", ["level", "all"])
def test_thresholds_and_evidence_decide_as_certify_does(correction: str, family: str) -> None:
    tally = random_counts(5, 10, 190, (3, 6, 6))
    for tau in (0.5, 0.55, 0.7, 0.83, 0.95, 0.999):
        certifier = Pixel(Pixel.Options(correction=correction, family=family, tau=tau, alpha=0.05))
        certificate = certifier.certify(tally)
        other_tau = Pixel(Pixel.Options(correction=correction, family=family, tau=0.6, alpha=0.05))
        candidate, votes = other_tau.evidence(tally)
        thresholds = other_tau.vote_thresholds(tally, tau)
        assert thresholds.shape == (3,)
        decided = np.where(votes >= thresholds[:, None, None], candidate, ABSTAIN)
        assert np.array_equal(decided, certificate.labels)
        assert np.array_equal(certificate.arrays["vote_thresholds"], thresholds)
    assert (thresholds > 200 - 10).all()


def test_evidence_is_the_majority() -> None:
    counts = np.array([[[0, 1, 2, 3, 4]]])
    candidate, votes = Pixel().evidence(Tally(counts[None], ((0, 4),), ("a",), 0.1))
    assert candidate.ravel().tolist() == [0, 0, 0, 1, 1]
    assert votes.ravel().tolist() == [4, 3, 2, 3, 4]
    tally = tally_of(np.array([[[0, 1, 2, 2]]]), np.array([[[4, 4, 4, 0]]]), 2, 4)
    candidate, votes = Pixel(Pixel.Options(correction="paper", pilot=2)).evidence(tally)
    assert candidate.ravel().tolist() == [0, 0, 1, 1]
    assert votes.ravel().tolist() == [0, 0, 4, 0]


@pytest.mark.parametrize("options", [{}, {"correction": "bonferroni"}, {"correction": "paper", "pilot": 7},
                                     {"family": "all"}, {"tau": 0.6, "alpha": 0.05},
                                     {"correction": "paper", "family": "all"}])
def test_min_samples_is_where_a_unanimous_pixel_is_first_certified(options: dict[str, Any]) -> None:
    certifier = Pixel(Pixel.Options(**options))
    needed, pilot = certifier.min_samples(30, 2), certifier.options.pilot
    for n in range(max(pilot + 1, needed - 3), needed + 2):
        unanimous = tally_of(np.zeros((2, 5, 6)), np.zeros((2, 5, 6)), pilot, n - pilot)
        unanimous.segments[0, :, 0, 0], unanimous.segments[1, :, 0, 0] = pilot, n - pilot
        unanimous.segments[0, :, 1:], unanimous.segments[1, :, 1:] = pilot // 2, (n - pilot) // 2
        certified = certifier.certify(unanimous).labels != ABSTAIN
        assert certified[:, 0].all() == (n >= needed)


def test_the_tally_is_cut_for_every_correction_so_that_another_can_be_asked_later() -> None:
    assert Pixel().cuts == (10,)
    assert Pixel(Pixel.Options(pilot=25)).cuts == (25,)
    assert Pixel().looks(100) is None


# -- refusals ---------------------------------------------------------------------------------------------------------

def test_tallies_of_another_kind_are_refused() -> None:
    tally = random_counts(0, 10, 90)
    with pytest.raises(UsageError, match="real-valued"):
        Pixel().certify(replace(tally, unit=REAL_UNIT))
    with pytest.raises(UsageError, match="use more samples"):
        certify(Tally(np.zeros((1, 1, 2, 2), np.int64), ((0, 10),), ("a",), 0.1), correction="paper")
    with pytest.raises(UsageError, match="first 12 copies"):
        certify(tally, correction="paper", pilot=12)
    for call in (lambda p, t: p.evidence(t), lambda p, t: p.vote_thresholds(t, 0.7)):
        with pytest.raises(UsageError, match="real-valued"):
            call(Pixel(), replace(tally, unit=REAL_UNIT))


@pytest.mark.parametrize("options", [{"tau": 0.4999}, {"tau": 1.0}, {"tau": float("nan")}, {"alpha": 0.0},
                                     {"alpha": 1.0}, {"alpha": -0.1}, {"pilot": 0}, {"correction": "hochberg"},
                                     {"family": "none"}, {"taus": 0.7}])
def test_options_that_would_prove_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Pixel.Options(**options)
