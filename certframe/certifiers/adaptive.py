"""Pixel labels with as many copies as the image needs."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from certframe import protocols
from certframe.certifiers.claims import ball, notes, probability, require_binary, smoothed_map
from certframe.protocols import ABSTAIN, Certificate, Schedule
from certframe.statistics.binomial import smoothing_radius
from certframe.statistics.sequential import (
    certified_steps,
    chances,
    geometric_looks,
    ladder,
    min_planned_copies,
    steps_of_counts,
)
from certframe.tally import Tally


class Adaptive:
    """Looks at the counts on the way, keeps what is certified, and stops when going on would not pay.

    At look j a pixel is certified when its majority has b_j votes, and it stays certified. The bounds b_j are so high
    that the probability of *ever* crossing one wrongly is within the error, so any reason to stop is a valid one:
    little that is still to come, or the share that was wanted. What is still to come is predicted: each pixel that is
    not certified yet counts with its probability of reaching the last bound, given its votes so far. The run's number
    of samples is the most that is ever drawn. ``spending=calibrated`` computes the crossing probability exactly and
    uses all of the error; ``union`` is the union bound over the looks, which is also used beyond 4096 planned copies.
    With `step_down` the bounds fall as pixels are certified.
    """

    class Options(protocols.Options):
        """Options of `adaptive`."""

        tau: float = Field(0.75, ge=0.5, lt=1.0, description="probability that a label has to exceed; gives the radius")
        alpha: float = Field(0.001, gt=0.0, lt=1.0, description="probability of any wrong claim")
        spending: Literal["calibrated", "union"] = Field("calibrated", description="how the error is spread over looks")
        step_down: bool = Field(True, description="lower the bounds as pixels are certified (Holm)")
        futility: float = Field(0.01, ge=0.0, lt=1.0, description="stop when at most this share of the pixels is "
                                                                  "expected to be certified yet")
        enough: float = Field(0.96, gt=0.0, le=1.0, description="stop when this share of what is expected to be "
                                                                "certified at the end is certified")
        target: float = Field(1.0, gt=0.0, le=1.0, description="stop when this share of the pixels is certified")

    cuts: tuple[int, ...] = ()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def looks(self, samples: int) -> Schedule:
        """96, 136, 192, 272, … copies, a factor √2 apart, and the last one."""
        return Schedule(geometric_looks(samples), self.done)

    def min_samples(self, pixels: int, levels: int) -> int:
        """The number of copies below which not even a unanimous pixel can be certified."""
        return min_planned_copies(self.options.tau, self.options.alpha, pixels,
                                  calibrated=self.options.spending == "calibrated")

    def done(self, tally: Tally) -> tuple[bool, str]:
        """Whether to stop at this look, and why; the shares are over the pixels of all levels."""
        o, (codes, steps) = self.options, self._reached(tally)
        certified = codes < 2 * steps[:, None, None]
        share = float(certified.mean())
        if share >= o.target:
            return True, f"target reached: {100 * share:.1f} % of the pixels are certified"
        to_come = self._expected(tally, ~certified, steps)
        enough = share > 0.0 and to_come <= (1.0 - o.enough) * (share + to_come)
        verdict = "enough" if enough else "little to come" if to_come <= o.futility else "more to come"
        return verdict != "more to come", (f"{verdict}: {100 * share:.1f} % of the pixels are certified, "
                                           f"{100 * to_come:.1f} % more are expected by the end")

    def certify(self, tally: Tally) -> Certificate:
        """Certify every pixel that has crossed its bound at one of the looks so far.

        Raises:
            UsageError: real-valued levels.
        """
        require_binary("adaptive", tally)
        o, radius = self.options, smoothing_radius(tally.sigma, self.options.tau)
        looks = ladder_of(o, tally)[0]
        return Certificate(
            certifier="adaptive", options=o.model_dump(mode="json"), subject="pixel-label", norm="l2", radius=radius,
            confidence=1.0 - o.alpha, family=tally.pixels, function="smoothed", method="statistical",
            samples=tally.samples, sigma=tally.sigma, levels=tally.levels, labels=self._labels(tally),
            statement=f"{probability(o.alpha, tally)}, looked at {sum(n <= tally.samples for n in looks)} of "
                      f"{len(looks)} times, all certified pixels of a level keep their label in {smoothed_map(tally)} "
                      f"{ball(radius, tally, o.tau)}.",
            arrays={"looks": np.array(looks), "bounds": ladder_of(o, tally)[2][0]}, warnings=notes(tally))

    def _reached(self, tally: Tally) -> tuple[np.ndarray, np.ndarray]:
        """For each pixel the first step that certifies it, with its label (see `steps_of_counts`); steps per level."""
        looks, tests, bounds = ladder_of(self.options, tally)
        codes = np.full(tally.segments.shape[1:], 2 * len(tests), dtype=np.int16)
        for j, n in enumerate(looks):
            if n <= tally.samples:
                codes = np.minimum(codes, steps_of_counts(tally.upto(n), n, bounds[:, j]))
        return codes, np.array([certified_steps(level, tests) for level in codes])

    def _labels(self, tally: Tally) -> np.ndarray:
        """int8 (L,h,w); the label of a pixel is the one it had where it crossed furthest."""
        codes, steps = self._reached(tally)
        return np.where(codes < 2 * steps[:, None, None], codes & 1, ABSTAIN).astype(np.int8)

    def _expected(self, tally: Tally, undecided: np.ndarray, steps: np.ndarray) -> float:
        """The share of the pixels of all levels that is expected to be certified by the end and is not yet."""
        looks, _, bounds = ladder_of(self.options, tally)
        n = tally.samples
        votes = np.maximum(np.arange(n + 1), n - np.arange(n + 1))
        expected = 0.0
        for counts, left, step in zip(tally.counts, undecided, steps, strict=True):
            how_often = np.bincount(counts[left], minlength=n + 1)
            expected += float(how_often @ chances(n, int(bounds[step - 1, -1]), looks[-1])[votes])
        return expected / undecided.size


def ladder_of(options: Adaptive.Options, tally: Tally) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray]:
    """The looks at which the tally keeps counts, the numbers of tests, the boundaries (steps, looks).

    The looks follow from the planned number of copies and from where the tally is cut, both fixed before the first
    copy. A tally that is cut nowhere has one look, the planned end; before the first look nothing is certified.
    """
    planned = tally.planned or tally.samples
    looks = tuple(n for n in geometric_looks(planned) if n in tally.cuts or n == planned)
    tests, bounds = ladder(looks, options.tau, options.alpha, tally.pixels,
                           calibrated=options.spending == "calibrated", step_down=options.step_down)
    return looks, tests, bounds
