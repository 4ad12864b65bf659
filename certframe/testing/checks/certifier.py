"""What is demanded of a certifier."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import numpy as np
from scipy.special import ndtr
from scipy.stats import binom

from certframe.errors import UsageError
from certframe.protocols import ABSTAIN, Certificate, Certifier, Schedule
from certframe.tally import Tally
from certframe.testing import fixtures
from certframe.testing.kit import NotApplicable, Subject, check, require
from certframe.testing.unchanged import unchanged_process
from certframe.worker import cuts_of

_HEIGHT, _WIDTH = 3, 4
_PIXELS = _HEIGHT * _WIDTH
_RUNS, _ALPHA, _SUSPICION = 1000, 0.2, 1e-5
"""Simulated runs at error α; more errors than would happen with this probability are a violation."""
_HAIR = 1e-9


def _samples(certifier: Certifier, levels: int = 2) -> int:
    """Copies enough to certify something, and for an adaptive certifier to look more than once."""
    return max(2 * certifier.min_samples(_PIXELS, levels), 200)


def _count(certifier: Certifier, draws: np.ndarray, *, planned: int = 0, sigma: float = 0.25) -> Tally:
    """The tally that a run of so many planned copies, by default all, has after these."""
    planned = planned or len(draws)
    return fixtures.tally(draws, cuts=cuts_of([certifier], planned), planned=planned, nested=True, sigma=sigma)


def _draws(samples: int, levels: int = 2, *, binary: bool = True, seed: int = 0) -> np.ndarray:
    """(n,L,h,w): nested levels; some pixels are hardly ever on, some nearly always, some half the time."""
    generator = np.random.default_rng(seed)
    thresholds = np.linspace(0.0, 1.0, _PIXELS).reshape(_HEIGHT, _WIDTH)
    scores = np.clip(1.5 * thresholds - 0.25 + 0.1 * generator.normal(size=(samples, 1, _HEIGHT, _WIDTH)), 0, 1)
    if binary:
        return scores > np.linspace(0.3, 0.7, levels)[:, None, None]
    return np.asarray(scores ** np.arange(1, levels + 1)[:, None, None])


def _tallies(subject: Subject, certifier: Certifier, levels: int = 2) -> list[Tally]:
    """The tallies of 0/1 and of real-valued levels that the certifier accepts."""
    accepted, refusals = [], []
    n = _samples(certifier, levels)
    for binary in (True, False):
        tally = _count(certifier, _draws(n, levels, binary=binary))
        try:
            certifier.certify(tally)
        except UsageError as error:
            refusals.append(str(error))
        else:
            accepted.append(tally)
    require(bool(accepted), f"the certifier refuses tallies of 0/1 levels and of real-valued ones: {refusals}")
    return accepted


def _binary_tally(subject: Subject, certifier: Certifier) -> Tally:
    found = [tally for tally in _tallies(subject, certifier) if tally.unit == 1]
    if not found:
        raise NotApplicable("the certifier works on real-valued levels only")
    return found[0]


@check("certifier")
def certificate_arrays(subject: Subject) -> None:
    """`labels` is int8 of the tally's shape with values 1, 0, ABSTAIN; `arrays` are arrays: the store relies on it."""
    certifier = subject.build()
    for tally in _tallies(subject, certifier):
        found = certifier.certify(tally)
        require(isinstance(found, Certificate), f"certify() returns {type(found).__name__}, not certframe.Certificate")
        labels = found.labels
        require(isinstance(labels, np.ndarray) and labels.dtype == np.int8,
                f"labels are {getattr(labels, 'dtype', type(labels).__name__)}, not int8")
        shape = tally.counts.shape
        require(labels.shape == shape, f"labels have shape {labels.shape}, the counts {shape}")
        require(bool(np.isin(labels, (ABSTAIN, 0, 1)).all()), f"labels have the values {np.unique(labels).tolist()}")
        odd = [name for name, value in found.arrays.items() if not isinstance(value, np.ndarray)]
        require(not odd, f"arrays[{', '.join(map(repr, odd))}] is not a numpy array")


@check("certifier")
def certificate_values(subject: Subject) -> None:
    """Radius, confidence, family and method are possible, and samples, sigma and levels are those of the tally."""
    certifier = subject.build()
    for tally in _tallies(subject, certifier):
        found = certifier.certify(tally)
        require(math.isfinite(found.radius) and found.radius >= 0, f"radius is {found.radius}")
        require(0 < found.confidence <= 1, f"confidence is {found.confidence}, not in (0, 1]")
        require(found.family >= 1, f"family is {found.family}: at least one claim is made")
        require(found.method in ("statistical", "deterministic"), f"method is {found.method!r}")
        require(found.function in ("smoothed", "base"), f"function is {found.function!r}")
        require(found.method == "deterministic" or found.confidence < 1, "a statistical proof has confidence below 1")
        require(found.samples == tally.samples, f"samples is {found.samples}, the tally has {tally.samples}")
        require(found.sigma == tally.sigma, f"sigma is {found.sigma}, the tally has {tally.sigma}")
        require(tuple(found.levels) == tally.levels, f"levels are {found.levels}, the tally has {tally.levels}")
        named = all(isinstance(text, str) and text for text in (found.certifier, found.subject, found.norm))
        require(named, "certifier, subject and norm must be names")
        json.dumps(dict(found.options))


@check("certifier")
def statement(subject: Subject) -> None:
    """The claim is stated in one full sentence, and warnings are text: this is what people read and quote."""
    certifier = subject.build()
    for tally in _tallies(subject, certifier):
        found = certifier.certify(tally)
        text = found.statement.strip()
        require(len(text.split()) >= 5 and text.endswith("."), f"statement is not a sentence: {text!r}")
        several = "\n" in text or re.search(r"\.\s+[A-Z]", text)
        require(not several, f"statement is more than one sentence: {text!r}")
        require(not isinstance(found.warnings, str) and all(isinstance(w, str) and w for w in found.warnings),
                f"warnings is not a sequence of texts: {found.warnings!r}")


def _as_plain(certificate: Certificate) -> Any:
    """Everything in a certificate, for comparison."""
    plain = {name: getattr(certificate, name) for name in certificate.__dataclass_fields__}
    plain["labels"] = certificate.labels.tobytes()
    plain["arrays"] = {name: np.asarray(value).tobytes() for name, value in certificate.arrays.items()}
    return plain


@check("certifier")
def pure(subject: Subject) -> None:
    """The same tally gives the same certificate, whatever was certified before, and nothing global is touched."""
    certifier = subject.build()
    for tally in _tallies(subject, certifier):
        first = _as_plain(certifier.certify(tally))
        other = _draws(tally.samples, seed=5, binary=tally.unit == 1)
        certifier.certify(_count(certifier, other, sigma=1.0))
        again, elsewhere = certifier.certify(tally), subject.build().certify(tally)
        require(_as_plain(again) == first, "certifying the same tally again gives another certificate")
        require(_as_plain(elsewhere) == first, "another instance gives another certificate")
        with unchanged_process("certify()"):
            certifier.certify(tally)


@check("certifier")
def tally_unchanged(subject: Subject) -> None:
    """The tally is left as it was: it is stored, merged and certified again."""
    certifier = subject.build()
    for tally in _tallies(subject, certifier):
        before = copy.deepcopy(tally)
        certifier.certify(tally)
        for name in tally.__dataclass_fields__:
            old, new = getattr(before, name), getattr(tally, name)
            same = np.array_equal(old, new) if isinstance(old, np.ndarray) else old == new
            require(bool(same), f"certify() changes the tally's {name}")


@check("certifier")
def pixel_order(subject: Subject) -> None:
    """Certificates follow the counts: permuting the pixels only permutes the labels."""
    certifier = subject.build()
    order = np.random.default_rng(3).permutation(_PIXELS)
    for tally in _tallies(subject, certifier):
        draws = _draws(tally.samples, binary=tally.unit == 1)
        shuffled = draws.reshape(*draws.shape[:2], -1)[:, :, order].reshape(draws.shape)
        found = certifier.certify(_count(certifier, shuffled)).labels
        straight = certifier.certify(tally).labels
        require(np.array_equal(found.reshape(2, -1), straight.reshape(2, -1)[:, order]),
                "the labels depend on where in the map a pixel is")


@check("certifier")
def cuts(subject: Subject) -> None:
    """`cuts` are increasing numbers of copies; a tally that is not cut there is refused or makes no difference."""
    certifier = subject.build()
    found = list(certifier.cuts)
    require(all(isinstance(cut, int) and cut > 0 for cut in found) and found == sorted(set(found)),
            f"cuts is {found}, not increasing positive whole numbers")
    for tally in _tallies(subject, certifier) if found else ():
        uncut = fixtures.tally(_draws(tally.samples, binary=tally.unit == 1), nested=True)
        try:
            labels = certifier.certify(uncut).labels
        except UsageError:
            continue
        require(np.array_equal(labels, certifier.certify(tally).labels),
                f"a tally without the cuts {found} is neither refused nor certified alike")


@check("certifier")
def looks(subject: Subject) -> None:
    """`looks` is None or a schedule of increasing looks whose verdict is (bool, reason) and leaves the tally alone."""
    certifier = subject.build()
    planned = _samples(certifier)
    schedule = certifier.looks(planned)
    if schedule is None:
        raise NotApplicable("the number of copies is fixed in advance")
    require(isinstance(schedule, Schedule), f"looks() returns {type(schedule).__name__}, not certframe.Schedule")
    at = list(schedule.looks)
    require(bool(at) and at == sorted(set(at)) and at[0] > 0, f"looks are {at}, not increasing positive numbers")
    require(at[-1] <= planned, f"the last look is at {at[-1]}, of {planned} copies that are planned")
    for n in (at[0], at[-1]):
        tally = _count(certifier, _draws(n), planned=planned)
        before = tally.segments.copy()
        verdict = schedule.done(tally)
        require(isinstance(verdict, tuple) and len(verdict) == 2 and isinstance(verdict[0], bool | np.bool_)
                and isinstance(verdict[1], str), f"done() returns {verdict!r}, not (bool, reason)")
        require(not verdict[0] or bool(verdict[1].strip()), "done() stops without a reason")
        require(np.array_equal(before, tally.segments), "done() changes the tally")


def _unanimous(certifier: Certifier, samples: int, levels: int = 2) -> Tally:
    draws = np.zeros((samples, levels, _HEIGHT, _WIDTH), dtype=np.bool_)
    draws[:, :, 0] = True
    return _count(certifier, draws)


@check("certifier")
def min_samples(subject: Subject) -> None:
    """At `min_samples` a unanimous vote certifies something, with one copy less nothing: plans are made with it."""
    certifier = subject.build()
    needed = certifier.min_samples(_PIXELS, 2)
    require(isinstance(needed, int) and needed >= 0, f"min_samples() returns {needed!r}, not a number of copies")
    require(certifier.min_samples(100 * _PIXELS, 2) >= needed, "min_samples() falls with the number of pixels")
    if _binary_tally(subject, certifier) and needed > 100_000:
        raise NotApplicable(f"it needs {needed} copies, too many to try")
    if certifier.certify(_unanimous(certifier, max(needed, 1))).subject != "pixel-label":
        raise NotApplicable("the claim is not about pixel labels")
    labels = certifier.certify(_unanimous(certifier, needed)).labels
    require(bool((labels != ABSTAIN).any()), f"min_samples() is {needed}, but so many unanimous copies certify nothing")
    if needed > 1:
        try:
            fewer = certifier.certify(_unanimous(certifier, needed - 1)).labels
        except UsageError:
            return
        require(bool((fewer == ABSTAIN).all()), f"min_samples() is {needed}, but {needed - 1} copies certify something")


@check("certifier")
def more_votes(subject: Subject) -> None:
    """More votes for a label never lose it: among pixels of one level, labels are ordered as the counts are."""
    certifier = subject.build()
    tally = _binary_tally(subject, certifier)
    if certifier.certify(tally).subject != "pixel-label":
        raise NotApplicable("the claim is not about pixel labels")
    n = tally.samples
    counts = np.unique(np.linspace(0, n, 200).astype(int))
    prefix = np.arange(n)[:, None] < counts[None]  # pixel j is 1 in the first counts[j] copies
    found = certifier.certify(_count(certifier, prefix[:, None, None, :])).labels[0, 0]
    rank = np.select([found == 0, found == ABSTAIN], [0, 1], 2)
    drop = np.flatnonzero(np.diff(rank) < 0)
    if drop.size:
        low, high = counts[drop[0]], counts[drop[0] + 1]
        require(False, f"of {n} copies, {low} votes give label {found[drop[0]]} and {high} votes {found[drop[0] + 1]}")


def _stop(certifier: Certifier, draws: np.ndarray) -> Tally:
    """The tally at which a run would have stopped."""
    planned = len(draws)
    schedule = certifier.looks(planned)
    for n in schedule.looks if schedule is not None else ():
        tally = _count(certifier, draws[:n], planned=planned)
        if n < planned and schedule is not None and schedule.done(tally)[0]:
            return tally
    return _count(certifier, draws)


def wrong_runs(certifier: Certifier, probabilities: np.ndarray, samples: int, runs: int, seed: int = 0) -> int:
    """In how many simulated runs does a certificate of pixel labels say something false?

    Args:
        certifier: certifies pixel labels of a smoothed map at one radius R, that is with τ = Φ(R/σ).
        probabilities: (h,w), the true probability of a 1 under the noise. The label 1 is truly constant within R when
            it exceeds τ, the label 0 when 1 − probability does.
        samples: noisy copies of each run.
        runs: number of independent runs.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    wrong = 0
    for _ in range(runs):
        draws = generator.random((samples, 1, *probabilities.shape)) < probabilities
        found = certifier.certify(_stop(certifier, draws))
        tau = float(ndtr(found.radius / found.sigma))
        false_one = (found.labels[0] == 1) & (probabilities < tau)
        false_zero = (found.labels[0] == 0) & (1 - probabilities < tau)
        wrong += bool((false_one | false_zero).any())
    return wrong


@check("certifier")
def sound(subject: Subject) -> None:
    """Certified pixel labels are false in no more runs than stated, in simulated runs on the hardest probabilities."""
    if "alpha" not in subject.cls.Options.model_fields:
        raise NotApplicable("there is no option alpha to raise, and at the stated confidence errors are too rare")
    certifier = subject.build(alpha=_ALPHA)
    found = certifier.certify(_binary_tally(subject, certifier))
    if found.subject != "pixel-label" or found.function != "smoothed" or found.norm != "l2":
        raise NotApplicable("the claim is not about pixel labels of a smoothed map within an l2 ball")
    tau, n = float(ndtr(found.radius / found.sigma)), _samples(certifier, 1)
    stated = 1 - found.confidence
    limit = int(binom.isf(_SUSPICION, _RUNS, stated))
    pixels = np.arange(30).reshape(3, 10)
    cases = {
        "just below τ": np.full(pixels.shape, tau - _HAIR),
        "just above 1 − τ": np.full(pixels.shape, 1 - tau + _HAIR),
        "some just below τ, some certain": np.choose(pixels % 3, [tau - _HAIR, 0.0, 1.0]),
    }
    for name, probabilities in cases.items():
        wrong = wrong_runs(certifier, probabilities, n, _RUNS)
        require(wrong <= limit, f"false claims in {wrong} of {_RUNS} runs with pixels {name}; at confidence "
                                f"{found.confidence:g} about {stated * _RUNS:.0f} are allowed")
