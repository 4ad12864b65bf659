"""Replayed rules against the certifiers they stand for."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from adaptive import CUTS, FINE, LEVERS, SAMPLES, USUAL
from stopping import Rule, fixed, fixed_area, mean_and_error, replay, share

from certframe.certifiers.adaptive import Adaptive
from certframe.certifiers.pixel import Pixel
from certframe.protocols import ABSTAIN
from certframe.tally import Tally


def stored(seed: int, clear: float, shape: tuple[int, ...] = (2, 30, 30)) -> Tally:
    """A tally as the study stores it; a share of the pixels is clear, the others are anything."""
    rng = np.random.default_rng(seed)
    p = np.where(rng.random(shape) < clear, np.round(rng.random(shape)), rng.random(shape))
    steps = [b - a for a, b in itertools.pairwise((0, *CUTS, SAMPLES))]
    return Tally(np.stack([rng.binomial(n, p) for n in steps]), ((0, SAMPLES),), ("50", "25"), 0.15, CUTS, SAMPLES)


def until(tally: Tally, samples: int) -> Tally:
    """The tally of a run of `adaptive` that has come so far: cut at its looks, and nothing later."""
    edges = [0, *USUAL[:-1], SAMPLES]
    whole = [tally.upto(n) if n else 0 * tally.counts for n in edges]
    segments = np.stack([(b - a) * (n <= samples) for (a, b), n in zip(itertools.pairwise(whole), edges[1:],
                                                                       strict=True)])
    return replace(tally, segments=segments, cuts=USUAL[:-1], copies=((0, samples),))


@pytest.mark.parametrize("clear", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("name", ["default", "union", "no step-down", "futility", "enough"])
def test_rules_that_adaptive_has_stop_where_it_stops_and_certify_what_it_certifies(clear: float, name: str) -> None:
    rule, options = {
        "default": (Rule(), {}), "union": (Rule(calibrated=False), {"spending": "union"}),
        "no step-down": (Rule(step_down=False), {"step_down": False}),
        "futility": (Rule(futility=0.1), {"futility": 0.1}), "enough": (Rule(enough=0.8), {"enough": 0.8}),
    }[name]
    tally, certifier = stored(1, clear), Adaptive(Adaptive.Options.model_validate(options))
    outcome = replay(tally, rule)
    at = next((n for n in USUAL[:-1] if certifier.done(until(tally, n))[0]), SAMPLES)
    assert outcome.samples == at
    assert outcome.area == pytest.approx((certifier.certify(until(tally, at)).labels != ABSTAIN).mean())
    assert outcome.reason == "last look" if at == SAMPLES else outcome.reason in ("enough", "little to come")


def test_fixed_n_is_a_run_with_that_many_copies() -> None:
    tally = stored(2, 0.6)
    shorter = fixed(tally, 100)
    assert (shorter.samples, shorter.planned, shorter.cuts) == (100, 100, (10,))
    assert np.array_equal(shorter.counts, tally.upto(100))
    assert np.array_equal(shorter.upto(10), tally.upto(10))
    whole = Pixel().certify(replace(tally, segments=tally.counts[None], cuts=()))
    assert fixed_area(tally, SAMPLES) == pytest.approx((whole.labels != ABSTAIN).mean())
    assert fixed_area(tally, 100, correction="paper") < fixed_area(tally, 100) < fixed_area(tally, SAMPLES)


def test_every_rule_of_the_study_finds_its_looks_in_the_stored_counts() -> None:
    assert set(FINE) | set(USUAL) <= {*CUTS, SAMPLES}
    assert set(USUAL) < set(FINE)
    tally = stored(3, 0.7)
    outcomes = {name: replay(tally, rule) for name, rule in LEVERS.items()}
    never = outcomes["default, never stop early"]
    assert never.samples == SAMPLES
    assert all(outcome.area <= never.area + 0.01 for outcome in outcomes.values())
    assert outcomes["default, enough = 0.94"].samples <= outcomes["default, enough = 0.98"].samples


def test_shares_and_errors() -> None:
    assert share(1.0, 4.0) == 0.25
    assert share(0.0, 0.0) == 1.0
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / np.sqrt(3)))
    assert np.isnan(mean_and_error([1.0])[1])
