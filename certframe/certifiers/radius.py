"""A radius for every pixel instead of one for all."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from certframe import protocols
from certframe.certifiers.claims import notes, probability, require_binary, require_complete, smoothed_map
from certframe.protocols import ABSTAIN, Certificate, Schedule
from certframe.statistics.radii import largest_radius, majority_threshold, probability_bounds, radius_table
from certframe.tally import Tally


class Radius:
    """For every pixel the radius within which its label is certified; no τ has to be chosen.

    With probability 1 − α all pixels of a level keep their label at once, each within its own radius, and within every
    smaller one. ``arrays["radius"]`` holds the radii in pixel units, NaN where the pixel abstains. The certificate's
    `radius` is the smallest one among the labelled pixels.
    """

    class Options(protocols.Options):
        """Options of `radius`."""

        alpha: float = Field(0.001, gt=0.0, lt=1.0, description="probability of any wrong claim")

    cuts: tuple[int, ...] = ()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def looks(self, samples: int) -> Schedule | None:
        """None: the number of copies is fixed in advance."""
        return None

    def min_samples(self, pixels: int, levels: int) -> int:
        """The number of copies below which not even a unanimous pixel has a majority for certain."""
        n = 1
        while majority_threshold(n, self.options.alpha / pixels) > n:
            n += 1
        return n

    def evidence(self, tally: Tally) -> tuple[np.ndarray, np.ndarray]:
        """The majority label (int8) and its votes (int64), both (L,h,w)."""
        require_binary("radius", tally)
        require_complete("radius", tally)
        counts, n = tally.counts, tally.samples
        return (2 * counts > n).astype(np.int8), np.maximum(counts, n - counts)

    def vote_thresholds(self, tally: Tally, tau: float) -> np.ndarray:
        """(L,) int64: the votes from which on a pixel's radius reaches σΦ⁻¹(τ); all τ hold at once."""
        n, level = tally.samples, self.options.alpha / tally.pixels
        reached = np.flatnonzero(probability_bounds(n, level) >= tau)
        first = max(int(reached[0]), majority_threshold(n, level)) if reached.size else n + 1
        return np.full(len(tally.levels), first)

    def certify(self, tally: Tally) -> Certificate:
        """Label and radius of every pixel; those without a certain majority abstain.

        Raises:
            UsageError: real-valued levels.
        """
        labels, votes = self.evidence(tally)
        level = self.options.alpha / tally.pixels
        radii = radius_table(tally.samples, tally.sigma, level)[votes]
        labels = np.where(np.isnan(radii), np.int8(ABSTAIN), labels).astype(np.int8)
        smallest = 0.0 if np.isnan(radii).all() else float(np.nanmin(radii))
        ceiling = largest_radius(tally.samples, tally.sigma, level)
        statement = (f"{probability(self.options.alpha, tally)}, every labelled pixel of a level keeps its label in "
                     f"{smoothed_map(tally)} under every change of the image whose l2 norm is at most the pixel's own "
                     f"radius, in pixel units (σ = {tally.sigma:g}; {tally.samples} copies cannot certify more than "
                     f"R = {ceiling:.4g}).")
        return Certificate(
            certifier="radius", options=self.options.model_dump(mode="json"), subject="pixel-label", norm="l2",
            radius=smallest, confidence=1.0 - self.options.alpha, family=tally.pixels, function="smoothed",
            method="statistical", samples=tally.samples, sigma=tally.sigma, levels=tally.levels, labels=labels,
            arrays={"radius": radii}, statement=statement, warnings=notes(tally))
