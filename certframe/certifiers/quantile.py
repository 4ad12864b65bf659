"""Certified intervals of real-valued scores."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from certframe import protocols
from certframe.certifiers.claims import ball, probability, require_binary, require_complete
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN, Certificate, Schedule
from certframe.statistics.bands import quantile_indices, shifted_shares
from certframe.statistics.corrections import min_copies
from certframe.tally import Tally


class Quantile:
    """An interval for every pixel's p-quantile score, valid everywhere within a radius; no level has to be chosen.

    Made from the `threshold` sparsifier: its thresholds t are where the order statistics are known. With (l, u) the
    order statistics that bracket the p-quantile within R, the score is certainly above t when at least n − l + 1 copies
    were, and certainly at most t when at most n − u were. So the interval is the exact one rounded outward to the
    thresholds; more of them cost memory, not copies. ``arrays["lower"]`` and ``arrays["upper"]`` are float64 (h,w), ∓∞
    where nothing is known.

    Source: Chiang et al., *Detection as Regression: Certified Object Detection by Median Smoothing*, 2020.
    """

    class Options(protocols.Options):
        """Options of `quantile`."""

        p: float = Field(0.5, gt=0.0, lt=1.0, description="which quantile of the noisy scores; 0.5 is the median")
        radius: float = Field(0.5, ge=0.0, description="R in units of σ")
        alpha: float = Field(0.001, gt=0.0, lt=1.0, description="probability of any wrong claim")

    cuts: tuple[int, ...] = ()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def looks(self, samples: int) -> Schedule | None:
        """None: the number of copies is fixed in advance."""
        return None

    def min_samples(self, pixels: int, levels: int) -> int:
        """The number of copies below which no interval has a finite end.

        Raises:
            UsageError: the radius is so large that there is no such number.
        """
        o = self.options
        low, high = shifted_shares(o.p, o.radius)
        share = min(1.0 - low, high)
        if share == 1.0:
            raise UsageError(f"certifier 'quantile': no number of copies bounds the {o.p:g}-quantile within radius = "
                             f"{o.radius:g} σ: use a smaller radius")
        return min_copies(share, o.alpha / 2, pixels, two_sided=False)

    def certify(self, tally: Tally) -> Certificate:
        """The interval of every pixel; as labels, whether its score is certainly above (1) or not above (0) each t.

        Raises:
            UsageError: the levels are not thresholds.
        """
        require_binary("quantile", tally)
        require_complete("quantile", tally)
        o, n, thresholds = self.options, tally.samples, _thresholds(tally)
        low, high = quantile_indices(n, o.p, o.radius, o.alpha, tally.pixels)
        counts, t = tally.counts, thresholds[:, None, None]
        above = counts >= n - low + 1 if low is not None else np.zeros(counts.shape, bool)
        below = counts <= n - high if high is not None else np.zeros(counts.shape, bool)
        labels = np.where(above, 1, np.where(below, 0, ABSTAIN)).astype(np.int8)
        lower = np.where(above, t, -np.inf).max(axis=0)
        upper = np.where(below, t, np.inf).min(axis=0)
        radius = o.radius * tally.sigma
        what = tally.identity.get("attributor", "the attribution")
        statement = (f"{probability(o.alpha, tally)}, the {o.p:g}-quantile of the noisy {_scores(tally)} of {what} "
                     f"lies within every pixel's interval {ball(radius, tally)}.")
        return Certificate(
            certifier="quantile", options=o.model_dump(mode="json"), subject="value", norm="l2", radius=radius,
            confidence=1.0 - o.alpha, family=tally.pixels, function="smoothed", method="statistical", samples=n,
            sigma=tally.sigma, levels=tally.levels, labels=labels, arrays={"lower": lower, "upper": upper},
            statement=statement)


def _thresholds(tally: Tally) -> np.ndarray:
    try:
        if "threshold" not in str(tally.identity.get("sparsifier", "threshold")):
            raise ValueError
        return np.array([float(level) for level in tally.levels])
    except ValueError:
        raise UsageError("certifier 'quantile' needs the counts of thresholds: run with --sparsifier threshold and "
                         "several values of t") from None


def _scores(tally: Tally) -> str:
    """What the sparsifier has compared with its thresholds: "absolute scores"."""
    how = str(tally.identity.get("sparsifier", ""))
    what = "absolute scores" if '"ranking": "magnitude"' in how else \
        "positive parts of the scores" if '"ranking": "positive"' in how else "scores"
    return f"{what}, as shares of each map's largest," if '"relative": true' in how else what
