"""`class`: the class's own test against scipy, jointly with fixed and adaptive certifiers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exact import counted, tally_of
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from certframe import protocols
from certframe.certifiers.adaptive import Adaptive
from certframe.certifiers.class_and import ClassAnd
from certframe.certifiers.importance_band import ImportanceBand
from certframe.certifiers.overlap import TopKOverlap
from certframe.certifiers.pixel import Pixel
from certframe.certifiers.radius import Radius
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN
from certframe.statistics.sequential import calibrated_boundaries, geometric_looks

TARGET = 1


def made(**options: Any) -> ClassAnd:
    return ClassAnd(ClassAnd.Options(**options))


def voted(n: int, votes: int, counts: Any = None, classes: int = 4, **changes: Any) -> Any:
    """A tally whose target had so many votes, the others went to the last class."""
    ballots = np.zeros((1, classes), np.int64)
    ballots[0, TARGET], ballots[0, -1] = votes, n - votes
    levels = np.full((1, 2, 2), n) if counts is None else counts
    return counted(levels, n, votes=ballots, nested=True, **changes)


def is_certified(certificate: protocols.Certificate) -> bool:
    return bool(certificate.arrays["class"][2])


@given(st.integers(1, 300), st.floats(0.5, 0.97), st.sampled_from([0.00101, 0.0503, 0.3307, 0.97]),
       st.sampled_from([0.1, 0.5, 0.9]))
@hypothesis_settings(max_examples=60)
def test_the_class_is_tested_one_sidedly_at_its_share(n: int, tau: float, alpha: float, share: float) -> None:
    """The target is fixed before any noise is drawn, so its votes are binomial, however many classes there are."""
    certifier = made(tau=tau, alpha=alpha, share=share)
    passing = [k for k in range(n + 1) if 2 * k > n and stats.binom.sf(k - 1, n, tau) <= alpha * share]
    needed = min(passing, default=n + 1)
    for k in {0, n // 2, needed - 1, needed, n} - {n + 1}:
        certificate = certifier.certify(voted(n, k))
        assert is_certified(certificate) == (k >= needed), (k, needed)
        assert certificate.arrays["class"].tolist() == [TARGET, k, int(k >= needed)]


@pytest.mark.parametrize(("joint", "cls"), [("pixel", Pixel), ("radius", Radius), ("importance-band", ImportanceBand),
                                            ("adaptive", Adaptive), ("top-k-overlap", TopKOverlap)])
def test_the_others_have_the_rest_of_the_error(joint: str, cls: Any) -> None:
    rng = np.random.default_rng(0)
    counts = np.sort(rng.binomial(400, rng.beta(0.2, 0.2, size=(2, 6, 6))), axis=0)[::-1]
    tally = voted(400, 398, counts)
    certificate = made(joint=joint, alpha=0.1, share=0.3).certify(tally)
    alone = cls(cls.Options(alpha=0.07)).certify(tally)
    assert np.array_equal(certificate.labels, alone.labels)
    for name, value in alone.arrays.items():
        np.testing.assert_allclose(certificate.arrays[name], value, rtol=1e-12)
    assert certificate.confidence == pytest.approx(0.9)
    assert certificate.family == alone.family + 1
    assert certificate.subject == alone.subject
    assert is_certified(certificate)
    assert certificate.statement.startswith(alone.statement.rstrip("."))
    for said in ("jointly", "espresso", "398 of 400 votes", "both with probability at least 0.9"):
        assert said in certificate.statement
    assert certificate.certifier == "class"
    assert certificate.options["joint"] == joint


def test_tau_is_passed_on() -> None:
    tally = voted(200, 150, np.full((1, 2, 2), 150))
    assert (made(tau=0.6).certify(tally).labels == 1).all()
    assert (made(tau=0.7).certify(tally).labels == ABSTAIN).all()
    assert made(tau=0.6).certify(tally).radius == pytest.approx(0.25 * stats.norm.ppf(0.6))


def test_without_the_class_the_pixels_still_hold() -> None:
    certificate = made().certify(voted(200, 120))
    assert (certificate.labels == 1).all()
    assert not is_certified(certificate)
    assert "the class espresso is not certified (120 of 200 votes)" in certificate.statement
    assert "both" not in certificate.statement


def test_another_class_with_all_the_votes_certifies_nothing() -> None:
    ballots = np.array([[0, 3, 97]])
    certificate = made().certify(counted(np.full((1, 2, 2), 100), 100, votes=ballots))
    assert certificate.arrays["class"].tolist() == [1, 3, 0]
    assert not is_certified(made(alpha=0.97, share=0.9).certify(voted(1, 0)))


# -- jointly with several looks ---------------------------------------------------------------------------------------

LOOKS = geometric_looks(400)


def looked(votes: list[int], at: int, counts: list[int] | None = None) -> Any:
    """The tally at look `at`, with so many new votes of the target at each look."""
    steps = np.diff((0, *LOOKS))
    segments = np.array(counts if counts is not None else steps).reshape(-1, 1, 1, 1) * np.ones((1, 1, 2, 2), int)
    ballots = np.stack([np.array([0, v, m - v]) for v, m in zip(votes, steps, strict=True)])
    kept = np.arange(len(LOOKS)) <= at
    return tally_of(segments * kept.reshape(-1, 1, 1, 1), LOOKS, votes=ballots * kept[:, None],
                    copies=((0, LOOKS[at]),), planned=400)


def test_jointly_with_adaptive_the_class_is_looked_at_as_often() -> None:
    certifier = made(joint="adaptive", alpha=0.02)
    bounds = calibrated_boundaries(LOOKS, 0.75, 0.01, 0, 1)
    steps = np.diff((0, *LOOKS))
    for j in range(len(LOOKS)):
        for votes, expected in ((int(bounds[j]), True), (int(bounds[j]) - 1, False)):
            # All of them at the last possible moment, so that no earlier look certifies.
            first = np.zeros(len(LOOKS), int)
            left = votes
            for i in range(j, -1, -1):
                first[i] = min(left, steps[i])
                left -= first[i]
            assert is_certified(certifier.certify(looked(first.tolist(), j))) == expected, (j, votes)


def test_the_class_stays_certified() -> None:
    votes = [96] + [0] * (len(LOOKS) - 1)
    assert is_certified(made(joint="adaptive").certify(looked(votes, 0)))
    assert is_certified(made(joint="adaptive").certify(looked(votes, len(LOOKS) - 1)))
    assert not is_certified(made(joint="pixel").certify(looked(votes, len(LOOKS) - 1)))


def test_the_schedule_and_the_cuts_are_those_of_the_joint_certifier() -> None:
    schedule = made(joint="adaptive").looks(1000)
    assert schedule is not None
    assert tuple(schedule.looks) == geometric_looks(1000)
    assert made().looks(1000) is None
    assert made().cuts == Pixel().cuts
    assert made().min_samples(100, 1) == Pixel(Pixel.Options(alpha=0.0005)).min_samples(100, 1)


def test_sampling_goes_on_while_there_is_hope_for_the_class() -> None:
    """The pixels are all certain at the first look: `adaptive` by itself would stop."""
    schedule = made(joint="adaptive").looks(LOOKS[-1])
    assert schedule is not None
    for votes, stop, said in ((96, True, "the class is certified"), (84, False, "the class is not certified"),
                              (60, True, "the class is not certified, and its chance is 0 %")):
        tally = looked([votes] + [0] * (len(LOOKS) - 1), 0)
        assert Adaptive().done(tally)[0]
        verdict, reason = schedule.done(tally)
        assert (verdict, said in reason) == (stop, True), (votes, reason)
        assert schedule.done(replace(tally, votes=None)) == made(joint="adaptive")._inner.done(tally)
    later = looked([84, 40, 50, *[0] * (len(LOOKS) - 3)], 2)
    assert schedule.done(later)[0] == is_certified(made(joint="adaptive").certify(later))


def test_counts_that_were_stopped_are_only_for_adaptive() -> None:
    tally = looked([90] * len(LOOKS), 1)
    made(joint="adaptive").certify(tally)
    for joint in ("pixel", "radius"):
        with pytest.raises(UsageError, match="fixed in advance"):
            made(joint=joint).certify(tally)


# -- the slider, refusals ---------------------------------------------------------------------------------------------

def test_evidence_is_offered_where_the_joint_certifier_offers_it() -> None:
    tally = voted(200, 190, np.full((1, 2, 2), 185))
    certifier = made(alpha=0.02)
    candidate, votes = certifier.evidence(tally)
    for tau in (0.6, 0.75, 0.9):
        thresholds = certifier.vote_thresholds(tally, tau)
        decided = np.where(votes >= thresholds[:, None, None], candidate, ABSTAIN)
        assert np.array_equal(decided, made(alpha=0.02, tau=tau).certify(tally).labels)
    for joint in ("adaptive", "top-k-overlap", "quantile"):
        assert not hasattr(made(joint=joint), "evidence")


def test_certifying_is_pure() -> None:
    tally = voted(200, 190)
    before, first = tally.to_bytes(), made().certify(tally)
    assert made().certify(tally).statement == first.statement
    assert tally.to_bytes() == before


def test_refusals() -> None:
    with pytest.raises(UsageError, match="computes no logits"):
        made().certify(replace(voted(100, 90), votes=None))
    with pytest.raises(UsageError, match="cannot be joint with itself"):
        made(joint="class")
    with pytest.raises(UsageError, match=r"unknown certifier 'pixle'.*did you mean"):
        made(joint="pixle")
    for options in ({"share": 0.0}, {"share": 1.0}, {"tau": 0.4}, {"alpha": 1.0}):
        with pytest.raises(ValidationError):
            ClassAnd.Options(**options)
