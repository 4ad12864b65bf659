"""The label of every pixel, certified within one l2 radius from a fixed number of copies."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from certframe import protocols
from certframe.certifiers.claims import ball, notes, probability, require_binary, require_complete, smoothed_map
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN, Certificate, Schedule
from certframe.statistics.binomial import smoothing_radius
from certframe.statistics.corrections import bonferroni_threshold, holm_threshold, min_copies, split_threshold
from certframe.tally import Tally


class Pixel:
    """Certifies, for each level, which pixels are and which are not important, everywhere within one l2 ball.

    If a pixel's label has probability above τ under the noise, it is the majority label of the smoothed map at every
    x + δ with ‖δ‖₂ ≤ R = σΦ⁻¹(τ). With probability at least 1 − α over the sampling that holds for all certified pixels
    of a level at once (`family: level`, as published) or of all levels at once (`family: all`).

    Source: Anani, Lorenz, Fritz, Schiele, *Pixel-level Certified Explanations via Randomized Smoothing*, ICML 2025. The
    default correction needs no copies for choosing the label and steps down, so it certifies at least as many pixels as
    the published rule, which is ``correction=paper``.
    """

    class Options(protocols.Options):
        """Options of `pixel`."""

        tau: float = Field(0.75, ge=0.5, lt=1.0, description="probability that a label has to exceed; gives the radius")
        alpha: float = Field(0.001, gt=0.0, lt=1.0, description="probability of any wrong claim")
        correction: Literal["holm", "bonferroni", "paper"] = Field(
            "holm", description="holm and bonferroni use all copies; paper sets `pilot` copies aside as published")
        pilot: int = Field(10, ge=1, description="copies that choose the label when correction=paper")
        family: Literal["level", "all"] = Field(
            "level", description="whether the confidence is for each level by itself or for all levels together")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.cuts: tuple[int, ...] = (self.options.pilot,)

    def looks(self, samples: int) -> Schedule | None:
        """None: the number of copies is fixed in advance."""
        return None

    def min_samples(self, pixels: int, levels: int) -> int:
        """The number of copies below which not even a unanimous pixel can be certified."""
        o, tests = self.options, pixels * (levels if self.options.family == "all" else 1)
        if o.correction == "paper":
            return o.pilot + min_copies(o.tau, o.alpha, tests, two_sided=False)
        return min_copies(o.tau, o.alpha, tests)

    def evidence(self, tally: Tally) -> tuple[np.ndarray, np.ndarray]:
        """The candidate label (int8, 0 or 1) and the votes for it (int64), both (L,h,w)."""
        self._check(tally)
        counts, n = tally.counts, tally.samples
        if self.options.correction == "paper":
            pilot = tally.upto(self.options.pilot)
            candidate = 2 * pilot > self.options.pilot
            counts, n = counts - pilot, n - self.options.pilot
        else:
            candidate = 2 * counts > n
        return candidate.astype(np.int8), np.where(candidate, counts, n - counts)

    def vote_thresholds(self, tally: Tally, tau: float) -> np.ndarray:
        """(L,) int64: how many votes certify a pixel at this τ; more than n when nothing can be certified."""
        self._check(tally)
        return self._thresholds(tally, self.evidence(tally)[1], tau)

    def _thresholds(self, tally: Tally, votes: np.ndarray, tau: float) -> np.ndarray:
        o, n, levels = self.options, tally.samples, len(tally.levels)
        tests = tally.pixels * (levels if o.family == "all" else 1)
        if o.correction == "paper":
            return np.full(levels, split_threshold(n - o.pilot, tau, o.alpha, tests))
        if o.correction == "bonferroni":
            return np.full(levels, bonferroni_threshold(n, tau, o.alpha, tests))
        if o.family == "all":
            return np.full(levels, holm_threshold(votes, n, tau, o.alpha))
        return np.array([holm_threshold(level, n, tau, o.alpha) for level in votes])

    def certify(self, tally: Tally) -> Certificate:
        """Certify every pixel of every level that has the votes; the others abstain.

        Raises:
            UsageError: the tally is of real-valued levels, or (correction=paper) too short.
        """
        o = self.options
        candidate, votes = self.evidence(tally)
        thresholds = self._thresholds(tally, votes, o.tau)
        labels = np.where(votes >= thresholds[:, None, None], candidate, np.int8(ABSTAIN)).astype(np.int8)
        radius = smoothing_radius(tally.sigma, o.tau)
        joint = o.family == "all"
        return Certificate(
            certifier="pixel", options=o.model_dump(mode="json"), subject="pixel-label", norm="l2", radius=radius,
            confidence=1.0 - o.alpha, family=tally.pixels * (len(tally.levels) if joint else 1), function="smoothed",
            method="statistical", samples=tally.samples, sigma=tally.sigma, levels=tally.levels, labels=labels,
            arrays={"vote_thresholds": thresholds}, statement=self._statement(tally, radius),
            warnings=notes(tally))

    def _statement(self, tally: Tally, radius: float) -> str:
        together = "all certified pixels of all levels" if self.options.family == "all" else \
            "all certified pixels of a level"
        return (f"{probability(self.options.alpha, tally)}, {together} keep their label in {smoothed_map(tally)} "
                f"{ball(radius, tally, self.options.tau)}.")

    def _check(self, tally: Tally) -> None:
        require_binary("pixel", tally)
        require_complete("pixel", tally)
        if self.options.correction == "paper" and tally.samples <= self.options.pilot:
            raise UsageError(f"correction=paper sets {self.options.pilot} copies aside and the run has only "
                             f"{tally.samples}: use more samples")
