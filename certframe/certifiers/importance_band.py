"""How important every pixel is, between two bounds: several nested levels at the price of one."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from certframe import protocols
from certframe.certifiers.claims import ball, notes, probability, require_binary, require_complete, smoothed_map
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN, Certificate, Schedule
from certframe.statistics.bands import band_threshold
from certframe.statistics.binomial import smoothing_radius
from certframe.statistics.corrections import min_copies
from certframe.tally import Tally


class ImportanceBand:
    """Places every pixel between two of the sparsifier's nested levels, all levels jointly.

    With k = min{k > n/2 : P(Bin(n, τ) ≥ k) ≤ α/(2N)}: a pixel is certainly in every level where it has k votes, and
    certainly out of every level where n − k copies or fewer had it. With probability 1 − α that is right for all pixels
    and all levels at once. ``arrays["inner"]`` is the index of the smallest level that certainly contains the pixel
    (L − 1 the smallest of all; −1: none), ``arrays["outer"]`` the index of the largest level that certainly does not
    (L: none). For top-k levels this bounds the pixel's smoothed rank; the overlay of Anani et al. 2025 is drawn from
    it.
    """

    class Options(protocols.Options):
        """Options of `importance-band`."""

        tau: float = Field(0.75, ge=0.5, lt=1.0, description="probability that a label has to exceed; gives the radius")
        alpha: float = Field(0.001, gt=0.0, lt=1.0, description="probability of any wrong claim, over all levels")

    cuts: tuple[int, ...] = ()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def looks(self, samples: int) -> Schedule | None:
        """None: the number of copies is fixed in advance."""
        return None

    def min_samples(self, pixels: int, levels: int) -> int:
        """The number of copies below which nothing can be certified."""
        return min_copies(self.options.tau, self.options.alpha / 2, pixels, two_sided=False)

    def evidence(self, tally: Tally) -> tuple[np.ndarray, np.ndarray]:
        """The majority label (int8) and its votes (int64), both (L,h,w)."""
        require_binary("importance-band", tally)
        require_complete("importance-band", tally)
        if not tally.nested:
            raise UsageError("certifier 'importance-band' needs nested levels, such as those of top-k: with this "
                             "sparsifier use 'pixel'")
        counts, n = tally.counts, tally.samples
        return (2 * counts > n).astype(np.int8), np.maximum(counts, n - counts)

    def vote_thresholds(self, tally: Tally, tau: float) -> np.ndarray:
        """(L,) int64, the same number for all levels."""
        return np.full(len(tally.levels), band_threshold(tally.samples, tau, self.options.alpha, tally.pixels))

    def certify(self, tally: Tally) -> Certificate:
        """The band of every pixel, and with it its label at every level.

        Raises:
            UsageError: real-valued or not nested levels.
        """
        o, levels = self.options, len(tally.levels)
        candidate, votes = self.evidence(tally)
        threshold = self.vote_thresholds(tally, o.tau)
        labels = np.where(votes >= threshold[0], candidate, np.int8(ABSTAIN)).astype(np.int8)
        inside, outside = labels == 1, labels == 0
        # Levels shrink with the index: the last level a pixel is in, the first it is out of.
        inner = np.where(inside.any(axis=0), levels - 1 - inside[::-1].argmax(axis=0), -1)
        outer = np.where(outside.any(axis=0), outside.argmax(axis=0), levels)
        radius = smoothing_radius(tally.sigma, o.tau)
        statement = (f"{probability(o.alpha, tally)}, every pixel's importance in {smoothed_map(tally)} lies within "
                     f"its band, at all levels jointly, {ball(radius, tally, o.tau)}.")
        return Certificate(
            certifier="importance-band", options=o.model_dump(mode="json"), subject="band", norm="l2", radius=radius,
            confidence=1.0 - o.alpha, family=tally.pixels * levels, function="smoothed", method="statistical",
            samples=tally.samples, sigma=tally.sigma, levels=tally.levels, labels=labels, statement=statement,
            arrays={"inner": inner.astype(np.int16), "outer": outer.astype(np.int16), "vote_thresholds": threshold},
            warnings=notes(tally))
