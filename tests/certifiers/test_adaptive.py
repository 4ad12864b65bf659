"""`adaptive` against a pixel-by-pixel second implementation; where it stops; that nothing is won by choosing when."""

from __future__ import annotations

import itertools
import math
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
from certframe.certifiers.pixel import Pixel
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN
from certframe.statistics.sequential import geometric_looks, ladder
from certframe.tally import REAL_UNIT, Tally

PLANNED = 300
LOOKS = (96, 136, 192, 272, 300)
OPTIONS = st.fixed_dictionaries({
    "tau": st.sampled_from([0.5, 0.6, 0.75]), "alpha": st.sampled_from([0.001, 0.05, 0.3]),
    "spending": st.sampled_from(["calibrated", "union"]), "step_down": st.booleans()})


def made(**options: Any) -> Adaptive:
    return Adaptive(Adaptive.Options(**options))


def drawn(p: np.ndarray, looks: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(looks, L,h,w) counts between the looks."""
    steps = np.diff((0, *looks))
    return np.stack([rng.binomial(m, p) for m in steps])


def stopped(segments: np.ndarray, looks: tuple[int, ...], at: int, planned: int | None = None) -> Tally:
    """The tally as it is when the sampling is stopped at look number `at`."""
    kept = np.where(np.arange(len(looks)).reshape(-1, 1, 1, 1) <= at, segments, 0)
    return tally_of(kept, looks, copies=((0, looks[at]),), planned=planned or looks[-1])


def beta(seed: int, shape: tuple[int, ...] = (2, 4, 3)) -> np.ndarray:
    """Pixels from the hopeless to the unanimous."""
    return np.random.default_rng(seed).beta(0.15, 0.15, size=shape)


# -- the rule, written again -------------------------------------------------------------------------------------------

def slow_labels(levels: np.ndarray, looks: tuple[int, ...], seen: int, o: Adaptive.Options) -> list[list[int]]:
    """Certify pixel by pixel, count the certified, take the bounds for what is left, look again at all looks."""
    result = []
    for level in range(levels.shape[1]):
        counts = levels[:, level].reshape(len(looks), -1).cumsum(axis=0)
        pixels = counts.shape[1]
        tests, bounds = ladder(looks, o.tau, o.alpha, pixels, calibrated=o.spending == "calibrated",
                               step_down=o.step_down)
        labels, certified = [ABSTAIN] * pixels, -1
        while certified < (certified := sum(label != ABSTAIN for label in labels)):
            row = max(s for s, t in enumerate(tests) if t >= pixels - certified) if certified else 0
            for i in range(pixels):
                for j in range(seen):
                    votes = max(counts[j, i], looks[j] - counts[j, i])
                    if labels[i] == ABSTAIN and votes >= bounds[row, j]:
                        labels[i] = int(2 * counts[j, i] > looks[j])
        result.append(labels)
    return result


@given(st.integers(0, 10_000), OPTIONS, st.integers(0, len(LOOKS) - 1))
@hypothesis_settings(max_examples=60)
def test_labels_equal_the_procedure_pixel_by_pixel(seed: int, options: dict[str, Any], at: int) -> None:
    segments = drawn(beta(seed), LOOKS, np.random.default_rng(seed))
    certifier = made(**options)
    labels = certifier.certify(stopped(segments, LOOKS, at)).labels
    assert labels.dtype == np.int8
    assert labels.reshape(2, -1).tolist() == slow_labels(segments, LOOKS, at + 1, certifier.options)


def test_a_pixel_stays_certified_when_its_votes_turn() -> None:
    """136 votes of 136, and then none: it has crossed, and a claim about the probability does not expire."""
    segments = np.zeros((5, 1, 1, 2), int)
    segments[0, 0, 0, 0], segments[1, 0, 0, 0] = 96, 40
    labels = made().certify(stopped(segments, LOOKS, 4)).labels
    assert labels.ravel().tolist() == [1, 0]
    assert Pixel().certify(replace(stopped(segments, LOOKS, 4), cuts=(), segments=segments.sum(axis=0)[None])
                           ).labels.ravel().tolist() == [ABSTAIN, 0]


@given(st.integers(0, 10_000), OPTIONS)
@hypothesis_settings(max_examples=40)
def test_stopping_later_keeps_every_label(seed: int, options: dict[str, Any]) -> None:
    segments = drawn(beta(seed), LOOKS, np.random.default_rng(seed))
    before = np.full(segments.shape[1:], ABSTAIN)
    for at in range(len(LOOKS)):
        labels = made(**options).certify(stopped(segments, LOOKS, at)).labels
        assert np.array_equal(labels[before != ABSTAIN], before[before != ABSTAIN])
        before = labels


@given(st.integers(0, 10_000), OPTIONS)
@hypothesis_settings(max_examples=30)
def test_labels_of_the_complement_are_complementary(seed: int, options: dict[str, Any]) -> None:
    segments = drawn(beta(seed), LOOKS, np.random.default_rng(seed))
    mirrored = np.diff((0, *LOOKS)).reshape(-1, 1, 1, 1) - segments
    labels = made(**options).certify(stopped(segments, LOOKS, 4)).labels
    expected = np.where(labels == ABSTAIN, ABSTAIN, 1 - labels)
    assert np.array_equal(made(**options).certify(stopped(mirrored, LOOKS, 4)).labels, expected)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.6, 0.75]), st.sampled_from([0.001, 0.05]))
@hypothesis_settings(max_examples=30)
def test_calibration_and_stepping_down_never_lose_a_label(seed: int, tau: float, alpha: float) -> None:
    tally = stopped(drawn(beta(seed), LOOKS, np.random.default_rng(seed)), LOOKS, 4)
    plain = made(tau=tau, alpha=alpha, spending="union", step_down=False).certify(tally).labels
    for more in ({"spending": "calibrated"}, {"step_down": True}):
        given_more = {"spending": "union", "step_down": False, **more}
        labels = made(tau=tau, alpha=alpha, **given_more).certify(tally).labels
        assert np.array_equal(labels[plain != ABSTAIN], plain[plain != ABSTAIN])


# -- merging, resuming, what was planned ------------------------------------------------------------------------------

def test_counts_taken_in_pieces_and_in_any_order_give_the_same() -> None:
    rng = np.random.default_rng(0)
    copies = rng.random((PLANNED, 1, 5, 5)) < beta(1, (1, 5, 5))

    def piece(start: int, stop: int) -> Tally:
        edges = np.clip((0, *LOOKS), start, stop)
        segments = [copies[a:b].sum(axis=0) for a, b in itertools.pairwise(edges)]
        return tally_of(segments, LOOKS, copies=((start, stop),), planned=PLANNED)
    whole = piece(0, PLANNED)
    resumed = piece(150, 230).merge(piece(0, 110)).merge(piece(230, 300)).merge(piece(110, 150))
    first, second = made().certify(whole), made().certify(resumed)
    assert np.array_equal(first.labels, second.labels)
    assert first.statement == second.statement
    assert (first.labels != ABSTAIN).any()
    with pytest.raises(UsageError, match="does not cover"):
        made().certify(piece(0, 110).merge(piece(136, 230)))


def test_between_two_looks_only_those_before_count() -> None:
    segments = drawn(beta(3), LOOKS, np.random.default_rng(3))
    between = stopped(segments, LOOKS, 2)
    longer = replace(between, segments=between.segments + (np.arange(5) == 3).reshape(-1, 1, 1, 1) * 9,
                     copies=((0, 201),))
    assert np.array_equal(made().certify(longer).labels, made().certify(between).labels)


def test_before_the_first_look_nothing_is_certified() -> None:
    """Fifty copies of a planned thousand: which fifty it is could have been decided by looking."""
    certificate = made().certify(tally_of(np.full((1, 1, 2, 2), 90), (90,), planned=1000))
    assert (certificate.labels == ABSTAIN).all()
    assert "looked at 0 of 1 times" in certificate.statement
    assert (made().certify(tally_of(np.full((1, 1, 2, 2), 90), (90,))).labels == 1).all()


def test_a_tally_that_is_cut_nowhere_has_one_look_at_its_planned_end() -> None:
    p = beta(4, (1, 20, 20))
    tally = counted(np.random.default_rng(4).binomial(1000, p), 1000)
    certificate = made(step_down=False).certify(tally)
    fixed = Pixel(Pixel.Options(correction="bonferroni")).certify(tally)
    assert certificate.arrays["looks"].tolist() == [1000]
    assert np.array_equal(certificate.labels, fixed.labels)
    assert np.array_equal(made().certify(replace(tally, planned=0)).labels, made().certify(tally).labels)


def test_other_cuts_are_no_looks() -> None:
    segments = np.zeros((3, 1, 1, 1), int)
    tally = tally_of(segments, (10, 96, 300))
    assert made().certify(tally).arrays["looks"].tolist() == [96, 300]


def test_fixed_tests_refuse_counts_that_were_stopped() -> None:
    tally = stopped(drawn(beta(5), LOOKS, np.random.default_rng(5)), LOOKS, 1)
    with pytest.raises(UsageError, match=r"'pixel' is for a number .* stopped at 136 of 300 .* use 'adaptive'"):
        Pixel().certify(tally)


# -- the schedule -----------------------------------------------------------------------------------------------------

def test_schedule() -> None:
    schedule = made().looks(1000)
    assert schedule is not None
    assert tuple(schedule.looks) == geometric_looks(1000)
    assert made().cuts == ()


def test_it_stops_when_the_target_is_reached_or_little_is_left() -> None:
    counts = np.zeros((1, 1, 10, 10), int)
    counts[..., :9] = 96
    counts[..., 9] = 87  # 91 %: neither certified nor hopeless
    tally = tally_of(np.concatenate([counts, np.zeros((3, 1, 10, 10), int)]), (96, 136, 192, 200),
                     copies=((0, 96),), planned=200)
    for options, stop, said in (({}, False, "more to come: 90.0 % of the pixels are certified, 8.9 % more"),
                                ({"target": 0.9}, True, "target reached: 90.0 % of the pixels are certified"),
                                ({"futility": 0.09}, True, "little to come: 90"), ({"futility": 0.088}, False, "8.9 %"),
                                ({"enough": 0.91}, True, "enough: 90.0 %"), ({"enough": 0.911}, False, "8.9 %")):
        verdict, reason = made(step_down=False, **options).done(tally)
        assert (verdict, said in reason) == (stop, True), (options, reason)
    hopeless = replace(tally, segments=tally.segments // 2)
    assert made().done(hopeless) == (
        True, "little to come: 0.0 % of the pixels are certified, 0.0 % more are expected by the end")



def test_what_is_expected_at_the_end_is_what_comes() -> None:
    p, rng = mixture("typical", np.random.default_rng(8), (1, 224, 224)), np.random.default_rng(9)
    looks = geometric_looks(1000)
    segments = drawn(p, looks, rng)
    end = float((made().certify(stopped(segments, looks, len(looks) - 1)).labels != ABSTAIN).mean())
    for at in range(3, len(looks) - 1):
        tally = stopped(segments, looks, at)
        codes, steps = made()._reached(tally)
        certified = codes < 2 * steps[:, None, None]
        assert certified.mean() + made()._expected(tally, ~certified, steps) == pytest.approx(end, abs=0.012), looks[at]


def mixture(kind: str, rng: np.random.Generator, shape: tuple[int, ...] = (3, 224, 224)) -> np.ndarray:
    """Probabilities of a 1: what images look like under the noise.

    robust: 99.5 % of the pixels are nearly always or nearly never important. hopeless: everything is near a coin toss.
    typical: three fifths are clear, the others anywhere between never and always.
    """
    side = rng.random(shape) < 0.25
    clear = np.abs(side - rng.beta(0.3, 60, shape))
    other = {"robust": rng.random(shape), "typical": rng.random(shape), "hopeless": rng.beta(30, 30, shape)}[kind]
    share = {"robust": 0.995, "typical": 0.6, "hopeless": 0.0}[kind]
    return np.where(rng.random(shape) < share, clear, other)


def run(p: np.ndarray, planned: int, rng: np.random.Generator, **options: Any) -> tuple[int, np.ndarray, np.ndarray]:
    """Where it stops; the labels there; the labels of the fixed test on all planned copies."""
    certifier, looks = made(**options), geometric_looks(planned)
    segments = drawn(p, looks, rng)
    at = next((j for j in range(len(looks) - 1) if certifier.done(stopped(segments, looks, j))[0]), len(looks) - 1)
    fixed = Pixel().certify(counted(segments.sum(axis=0), planned))
    return looks[at], certifier.certify(stopped(segments, looks, at)).labels, fixed.labels


@pytest.mark.parametrize(("kind", "earliest", "latest", "area"), [
    ("robust", 96, 136, 0.96), ("hopeless", 96, 96, 0.0), ("typical", 544, 768, 0.96),
])
def test_where_images_stop(kind: str, earliest: int, latest: int, area: float) -> None:
    rng = np.random.default_rng(6)
    p = mixture(kind, rng)
    samples, labels, fixed = run(p, 1000, rng)
    assert earliest <= samples <= latest
    certified, at_the_end = (labels != ABSTAIN).mean(), (fixed != ABSTAIN).mean()
    assert certified >= area * at_the_end
    tau = 0.75
    assert not ((labels == 1) & (p <= tau)).any()
    assert not ((labels == 0) & (1 - p <= tau)).any()
    if kind == "hopeless":
        assert at_the_end < 0.01


# -- the certificate --------------------------------------------------------------------------------------------------

def test_the_certificate_says_what_is_proven() -> None:
    tally = stopped(drawn(beta(7), LOOKS, np.random.default_rng(7)), LOOKS, 2)
    certificate = made().certify(tally)
    assert isinstance(certificate, protocols.Certificate)
    assert (certificate.certifier, certificate.subject, certificate.norm) == ("adaptive", "pixel-label", "l2")
    assert (certificate.function, certificate.method) == ("smoothed", "statistical")
    assert (certificate.samples, certificate.sigma, certificate.levels) == (192, 0.25, tally.levels)
    assert (certificate.confidence, certificate.family) == (0.999, 12)
    assert certificate.radius == pytest.approx(0.25 * stats.norm.ppf(0.75))
    assert certificate.arrays["looks"].tolist() == list(LOOKS)
    assert certificate.arrays["bounds"].shape == (5,)
    for said in ("0.999", "192 noisy copies", "looked at 3 of 5 times", "of a level", "grad-cam", "espresso", "0.1686"):
        assert said in certificate.statement
    assert certificate.warnings == ()
    nothing = made().certify(stopped(np.zeros((5, 1, 2, 2), int), LOOKS, 0))
    assert "constant" in nothing.warnings[0]


def test_certifying_is_pure() -> None:
    tally, certifier = stopped(drawn(beta(8), LOOKS, np.random.default_rng(8)), LOOKS, 3), made()
    before = tally.to_bytes()
    first = certifier.certify(tally)
    certifier.done(tally)
    certifier.certify(stopped(drawn(beta(9), LOOKS, np.random.default_rng(9)), LOOKS, 4))
    assert np.array_equal(certifier.certify(tally).labels, first.labels)
    assert tally.to_bytes() == before


@pytest.mark.parametrize("options", [{}, {"spending": "union"}, {"tau": 0.6, "alpha": 0.05}, {"tau": 0.9}])
def test_min_samples_is_where_a_unanimous_pixel_is_first_certified(options: dict[str, Any]) -> None:
    needed = made(**options).min_samples(12, 1)
    for n in range(max(1, needed - 3), needed + 2):
        looks = geometric_looks(n)
        unanimous = np.diff((0, *looks)).reshape(-1, 1, 1, 1) * np.ones((1, 1, 3, 4), int)
        unanimous[..., 1:, :] //= 2
        labels = made(**options).certify(tally_of(unanimous, looks)).labels
        assert (labels[0, 0] == (1 if n >= needed else ABSTAIN)).all(), n


def test_all_pixels_certified_and_a_single_pixel() -> None:
    everything = np.full((1, 1, 224, 224), 1000)
    assert (made().certify(counted(everything[0], 1000)).labels == 1).all()
    assert made(tau=0.5).certify(counted([[[22]]], 22)).labels.item() == 1
    assert made(tau=0.5, alpha=0.9).certify(counted([[[1]]], 1)).labels.item() == ABSTAIN
    assert made(tau=0.5, alpha=0.9).certify(counted([[[2]]], 2)).labels.item() == 1
    assert made(tau=0.5, alpha=0.9).certify(counted([[[1]]], 2)).labels.item() == ABSTAIN


def test_other_tallies_are_refused() -> None:
    with pytest.raises(UsageError, match="real-valued"):
        made().certify(counted(np.zeros((1, 2, 2)), 100, unit=REAL_UNIT))


@pytest.mark.parametrize("options", [{"tau": 0.49}, {"tau": 1.0}, {"alpha": 0.0}, {"alpha": 1.0}, {"futility": 1.0},
                                     {"futility": -0.1}, {"target": 0.0}, {"target": 1.1}, {"spending": "all"},
                                     {"tau": math.nan}, {"looks": 3}])
def test_options_that_would_prove_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Adaptive.Options(**options)
