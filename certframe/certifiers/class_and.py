"""The predicted class together with the explanation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from certframe import protocols
from certframe.certifiers.claims import require_complete
from certframe.config import resolve_component
from certframe.errors import UsageError
from certframe.protocols import Certificate, Certifier, Schedule
from certframe.statistics.binomial import smoothing_radius
from certframe.statistics.sequential import calibrated_boundaries, chances
from certframe.tally import Tally

HOPELESS = 0.05
"""Sampling does not go on for a class whose probability of being certified by the end is below this."""


class ClassAnd:
    """Certifies that the smoothed classifier keeps predicting the explained class, jointly with another certificate.

    The votes of the same noisy copies are used. The error α is split: `share` of it for the class, the rest for the
    certifier named by `joint`, so "the class *and* these pixels" hold together with probability 1 − α. The class is
    fixed before the first copy is drawn, so its test is one-sided and needs no correction for several classes: it is
    certified within σΦ⁻¹(τ) when its votes k have S_τ(k) ≤ α_class. Jointly with a certifier that looks several times
    the class is looked at as often, with the bounds of `adaptive` for a single test, and sampling goes on as long as
    there is hope for it. If the class cannot be certified the pixels still can.
    """

    class Options(protocols.Options):
        """Options of `class`."""

        joint: str = Field("pixel", description="the certifier whose claim has to hold together with the class")
        tau: float = Field(0.75, ge=0.5, lt=1.0, description="probability to exceed, for the class and in `joint`")
        alpha: float = Field(0.001, gt=0.0, lt=1.0, description="probability of any wrong claim, class or other")
        share: float = Field(0.5, gt=0.0, lt=1.0, description="part of alpha that the class may use")

    def __init__(self, options: Options | None = None) -> None:
        self.options = o = options or self.Options()
        if o.joint == "class":
            raise UsageError("certifier 'class' cannot be joint with itself: name another, such as pixel")
        given: dict[str, Any] = {"name": o.joint, "alpha": o.alpha * (1.0 - o.share), "tau": o.tau}
        try:
            component = resolve_component("certifier", given)
        except UsageError:  # a certifier without τ, such as radius
            component = resolve_component("certifier", {k: v for k, v in given.items() if k != "tau"})
        self._inner: Certifier | Any = component.build()
        self.cuts: tuple[int, ...] = tuple(self._inner.cuts)
        if hasattr(self._inner, "evidence") and hasattr(self._inner, "vote_thresholds"):
            self.evidence, self.vote_thresholds = self._inner.evidence, self._inner.vote_thresholds

    def looks(self, samples: int) -> Schedule | None:
        """Those of the joint certifier; it has to be content, and the class certified or without much hope."""
        inner: Schedule | None = self._inner.looks(samples)
        return inner and Schedule(inner.looks, lambda tally: self._done(inner, tally))

    def _done(self, inner: Schedule, tally: Tally) -> tuple[bool, str]:
        stop, why = inner.done(tally)
        if not stop or tally.votes is None:
            return stop, why
        if self.class_certified(tally, self.options.tau):
            return True, f"{why}; the class is certified"
        looks, bounds = self._class_bounds(tally, self.options.tau)
        votes = _votes_upto(tally, tally.samples, int(tally.identity["target"]))
        hope = float(chances(tally.samples, int(bounds[-1]), looks[-1])[votes])
        return hope < HOPELESS, f"{why}; the class is not certified, and its chance is {100 * hope:.0f} %"

    def min_samples(self, pixels: int, levels: int) -> int:
        """The number of copies that the joint certifier needs."""
        return int(self._inner.min_samples(pixels, levels))

    def certify(self, tally: Tally) -> Certificate:
        """The joint certifier's certificate, with the class added.

        ``arrays["class"]`` is ``[class, votes, certified]``.

        Raises:
            UsageError: the attributor computes no logits, so there are no class votes.
        """
        o, votes = self.options, tally.class_votes
        if votes is None:
            raise UsageError(f"attributor '{tally.identity.get('attributor', '?')}' computes no logits, so no class "
                             "was voted for: use one that does, or the certifier by itself")
        inner, target = self._inner.certify(tally), int(tally.identity["target"])
        k, n, certified = int(votes[target]), tally.samples, self.class_certified(tally, o.tau)
        radius = smoothing_radius(tally.sigma, o.tau)
        name = tally.identity.get("target_name", target)
        claim = (f"and, jointly with it, the smoothed classifier predicts {name} ({k} of {n} votes) within R = "
                 f"{radius:.4g}, both with probability at least {1.0 - o.alpha:.6g}" if certified else
                 f"the class {name} is not certified ({k} of {n} votes)")
        return replace(
            inner, certifier="class", options=o.model_dump(mode="json"), confidence=1.0 - o.alpha,
            family=inner.family + 1, arrays={**inner.arrays, "class": np.array([target, k, int(certified)])},
            statement=f"{inner.statement.rstrip('.')}; {claim}.")

    def class_certified(self, tally: Tally, tau: float) -> bool:
        """Whether the class has had the votes that this τ takes at one of the looks so far."""
        (looks, bounds), target = self._class_bounds(tally, tau), int(tally.identity["target"])
        return any(_votes_upto(tally, look, target) >= bound
                   for look, bound in zip(looks, bounds, strict=True) if look <= tally.samples)

    def _class_bounds(self, tally: Tally, tau: float) -> tuple[tuple[int, ...], np.ndarray]:
        """When the class is looked at, and how many votes certify it there."""
        planned = tally.planned or tally.samples
        schedule = self.looks(planned)
        if schedule is None:
            require_complete("class", tally)
            looks: tuple[int, ...] = (tally.samples,)
        else:
            looks = (*(n for n in schedule.looks if n in tally.cuts and n < planned), planned)
        return looks, calibrated_boundaries(looks, tau, self.options.alpha * self.options.share, 0, 1)


def _votes_upto(tally: Tally, copies: int, target: int) -> int:
    """The target's votes among the first so many copies; the joint certifier has checked that they are covered."""
    assert tally.votes is not None
    segments = tally.votes if copies == tally.samples else tally.votes[: tally.cuts.index(copies) + 1]
    return int(segments[:, target].sum())
