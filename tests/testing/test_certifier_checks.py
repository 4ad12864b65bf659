"""Each check of certifiers catches the mistake that it is there for, the statistical ones among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import Field
from scipy.stats import binom

from certframe import protocols
from certframe.errors import UsageError
from certframe.protocols import Certificate, Schedule
from certframe.statistics.binomial import smoothing_radius, upper_tail
from certframe.testing import run_checks
from certframe.testing.checks.certifier import wrong_runs


class Good:
    """Bonferroni, both sides."""

    class Options(protocols.Options):
        """Error."""

        alpha: float = Field(0.01, description="probability of any wrong claim")

    tau = 0.75
    cuts: tuple[int, ...] = ()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def looks(self, samples):
        return None

    def level(self, pixels):
        return self.options.alpha / pixels

    def threshold(self, n, pixels):
        low = (n + 1) // 2 + 1
        p = upper_tail(n, self.tau) + upper_tail(n, 1 - self.tau)
        hits = np.flatnonzero(p[low: n + 1] <= self.level(pixels))
        return low + int(hits[0]) if hits.size else n + 1

    def min_samples(self, pixels, levels):
        return next(n for n in range(3, 10_000) if self.threshold(n, pixels) <= n)

    def labels(self, tally):
        needed = self.threshold(tally.samples, tally.pixels)
        ones, n = tally.counts, tally.samples
        return np.where(ones >= needed, 1, np.where(n - ones >= needed, 0, -1)).astype(np.int8)

    def certify(self, tally):
        if tally.unit != 1:
            raise UsageError("binary levels only")
        return Certificate(
            certifier="good", options=self.options.model_dump(), subject="pixel-label", norm="l2",
            radius=smoothing_radius(tally.sigma, self.tau), confidence=1 - self.options.alpha, family=tally.pixels,
            function="smoothed", method="statistical", samples=tally.samples, sigma=tally.sigma, levels=tally.levels,
            labels=self.labels(tally), statement="The labels hold within the radius at this confidence.")


class Adaptive(Good):
    """Looks several times and shares the error out."""

    sizes = (40, 80, 160)

    def looks(self, samples):
        return Schedule(self.sizes, lambda tally: (bool((self.labels(tally) >= 0).all()), "all certified"))

    def level(self, pixels):
        return self.options.alpha / pixels / len(self.sizes)

    def labels(self, tally):
        found = np.full(tally.counts.shape, -1, dtype=np.int8)
        for n in self.sizes:
            if n <= tally.samples:
                ones = tally.upto(n)
                needed = self.threshold(n, tally.pixels)
                now = np.where(ones >= needed, 1, np.where(n - ones >= needed, 0, -1))
                found = np.where(found == -1, now, found).astype(np.int8)
        return found

    def min_samples(self, pixels, levels):
        return next(n for n in self.sizes if self.threshold(n, pixels) <= n)


class RealValued(Good):
    """The mean, plus and minus Hoeffding's bound, compared with one half; real-valued levels only."""

    def certify(self, tally):
        if tally.unit == 1:
            raise UsageError("real-valued levels only")
        good = super().certify(replace(tally, unit=1))
        half = np.sqrt(np.log(2 * tally.pixels / self.options.alpha) / (2 * tally.samples))
        labels = np.where(tally.mean - half > 0.5, 1, np.where(tally.mean + half < 0.5, 0, -1)).astype(np.int8)
        return replace(good, labels=labels, subject="value", radius=0.0)


@pytest.mark.parametrize("cls", [Good, Adaptive, RealValued])
def test_a_sound_certifier_passes(cls):
    report = run_checks("certifier", cls)
    assert report.ok, str(report)
    skipped = {Good: ["looks"], Adaptive: [], RealValued: ["looks", "min-samples", "more-votes", "sound"]}
    assert [r.check for r in report.skipped] == skipped[cls]


def saying(base=Good, **fields):
    """A certifier that says something else in its certificate; a function is given the right value."""
    def certify(self, tally):
        found = base.certify(self, tally)
        return replace(found, **{k: v(getattr(found, k)) if callable(v) else v for k, v in fields.items()})
    return type("Saying", (base,), {"__doc__": "Says.", "certify": certify})


def but(base=Good, **attributes):
    return type("But", (base,), {"__doc__": "But.", **attributes})


def _counting(self, tally):
    self.calls = getattr(self, "calls", 0) + 1
    return replace(Good.certify(self, tally), family=self.calls)


def _spoiling(self, tally):
    tally.segments[0, 0, 0, 0] += 1
    return Good.certify(self, tally)


def _global(self, tally):
    np.random.rand()  # noqa: NPY002
    return Good.certify(self, tally)


def _first_pixel_first(self, tally):
    found = Good.labels(self, tally)
    found[:, 0, 0] = -1
    return found


def _misreads_missing_cuts(self, tally):
    found = Good.labels(self, tally)
    return found if tally.cuts else np.full_like(found, -1)


def _only_the_middle(self, tally):
    found = Good.labels(self, tally)
    return np.where(tally.counts == tally.samples, -1, found).astype(np.int8)


def _lax(self, n, pixels):
    return Good.threshold(self, n, 1)


def _wrong_side(self, tally):
    """Forgets which label has the votes."""
    return np.where(Good.labels(self, tally) >= 0, 1, -1).astype(np.int8)


class Peeking(Adaptive):
    """Looks often and pays once."""

    sizes = tuple(range(40, 200, 12))

    def level(self, pixels):
        return self.options.alpha / pixels


class PicksAndTestsOnTheSame(Good):
    """One-sided test of the label chosen on the same copies, at twice the error that is stated."""

    def threshold(self, n, pixels):
        return int(binom.isf(2 * self.options.alpha, n, self.tau)) + 1


def _schedule(looks, verdict=(False, "")):
    return lambda self, samples: Schedule(looks, lambda tally: verdict)


def _changing_schedule(self, samples):
    def done(tally):
        tally.segments[:] = 0
        return False, ""
    return Schedule((40,), done)


BROKEN = [
    ("certificate-arrays", saying(labels=lambda labels: labels.astype(int)), "not int8"),
    ("certificate-arrays", saying(labels=lambda labels: labels[0]), "have shape"),
    ("certificate-arrays", saying(labels=lambda labels: labels + np.int8(2)), "have the values"),
    ("certificate-arrays", saying(arrays={"bounds": [1.0]}), "not a numpy array"),
    ("certificate-arrays", but(certify=lambda self, tally: self.labels(tally)), "not certframe.Certificate"),
    ("certificate-arrays", but(certify=lambda self, tally: (_ for _ in ()).throw(UsageError("no"))), "refuses tallies"),
    ("certificate-values", saying(radius=-1.0), "radius is -1.0"),
    ("certificate-values", saying(radius=float("inf")), "radius is inf"),
    ("certificate-values", saying(confidence=0.0), "confidence is 0.0"),
    ("certificate-values", saying(confidence=1.0), "confidence below 1"),
    ("certificate-values", saying(family=0), "family is 0"),
    ("certificate-values", saying(method="guess"), "method is 'guess'"),
    ("certificate-values", saying(function="other"), "function is 'other'"),
    ("certificate-values", saying(samples=1), "samples is 1"),
    ("certificate-values", saying(sigma=9.0), "sigma is 9.0"),
    ("certificate-values", saying(levels=("a", "b")), "levels are"),
    ("certificate-values", saying(norm=""), "must be names"),
    ("certificate-values", saying(options={"when": object()}), "JSON"),
    ("statement", saying(statement=""), "not a sentence"),
    ("statement", saying(statement="Certified."), "not a sentence"),
    ("statement", saying(statement="This is the claim that is made. And this is another one."), "more than one"),
    ("statement", saying(warnings="beware"), "warnings is not a sequence"),
    ("pure", but(certify=_counting), "another certificate"),
    ("pure", but(certify=_global), "numpy's global random state"),
    ("tally-unchanged", but(certify=_spoiling), "changes the tally's segments"),
    ("pixel-order", but(labels=_first_pixel_first), "where in the map"),
    ("cuts", but(cuts=(20, 10)), "not increasing"),
    ("cuts", but(cuts=(0,)), "not increasing"),
    ("cuts", but(cuts=(10,), labels=_misreads_missing_cuts), "neither refused nor"),
    ("looks", but(Adaptive, looks=_schedule((80, 40))), "not increasing"),
    ("looks", but(Adaptive, looks=_schedule(())), "not increasing"),
    ("looks", but(Adaptive, looks=_schedule((40, 80, 10_000))), "the last look is at 10000"),
    ("looks", but(Adaptive, looks=_schedule((40, 80), True)), "not (bool, reason)"),
    ("looks", but(Adaptive, looks=_schedule((40, 80), (True, " "))), "without a reason"),
    ("looks", but(Adaptive, looks=_changing_schedule), "changes the tally"),
    ("looks", but(Adaptive, looks=lambda self, samples: [40, 80]), "not certframe.Schedule"),
    ("min-samples", but(min_samples=lambda self, p, n: Good.min_samples(self, p, n) - 1), "certify nothing"),
    ("min-samples", but(min_samples=lambda self, p, n: Good.min_samples(self, p, n) + 1), "copies certify something"),
    ("min-samples", but(min_samples=lambda self, p, n: 1000 // p), "falls with the number of pixels"),
    ("min-samples", but(min_samples=lambda self, p, n: float(p)), "not a number of copies"),
    ("more-votes", but(labels=_only_the_middle), "votes give label 1"),
    ("more-votes", but(labels=_wrong_side), "votes give label 1"),
    ("sound", but(threshold=_lax), "just below τ"),
    ("sound", but(labels=_wrong_side), "some certain"),
    ("sound", saying(radius=lambda radius: 1.5 * radius), "false claims in"),
    ("sound", PicksAndTestsOnTheSame, "false claims in"),
    ("sound", Peeking, "false claims in"),
]


@pytest.mark.parametrize(("name", "cls", "said"), BROKEN, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BROKEN)])
def test_a_mistake_is_caught(ask, name, cls, said):
    found = ask("certifier", name, cls)
    assert found.outcome == "failed", found
    assert said in found.message


def test_every_check_has_a_mistake_that_it_catches(own_checks):
    assert own_checks("certifier") == {name for name, _, _ in BROKEN}


def test_the_simulation_counts_wrong_runs_as_the_binomial_distribution_has_it():
    """One pixel just below τ is wrongly certified with exactly the probability of the threshold."""
    certifier = Good(Good.Options(alpha=0.3))
    n, runs, p = 101, 4000, 0.75 - 1e-9
    expected = binom.sf(certifier.threshold(n, 1) - 1, n, p)
    found = wrong_runs(certifier, np.full((1, 1), p), n, runs) / runs
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / runs)
    assert wrong_runs(certifier, np.full((1, 1), 0.76), n, 200) == 0


def test_a_certifier_without_alpha_is_not_said_to_be_sound(ask):
    class NoAlpha(Good):
        """Fixed error."""

        class Options(protocols.Options):
            """None."""

        def __init__(self, options=None):
            self.options = Good.Options()

    found = ask("certifier", "sound", NoAlpha)
    assert found.outcome == "skipped"
    assert "no option alpha" in found.message
