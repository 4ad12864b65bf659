"""How many of the most important pixels stay among the most important ones, and how far a pixel's rank can fall."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from certframe import protocols
from certframe.certifiers.claims import ball, require_complete, smoothed_map
from certframe.errors import UsageError
from certframe.protocols import ABSTAIN, Certificate, Schedule
from certframe.statistics.bands import (
    certified_ranks,
    certified_ranks_of_counts,
    clopper_pearson_bounds,
    hoeffding_bounds,
    overlap_certificates,
)
from certframe.tally import Tally

_POINTS = 33
_FARTHEST = 1.0
"""The curve reaches from 0 to ρ = σ in so many points."""


class _Bounds(protocols.Options):
    rho: float = Field(0.03, ge=0.0, description="radius of the l2 ball of the headline claim, in pixel units")
    alpha: float = Field(0.05, gt=0.0, lt=1.0, description="probability of any wrong claim")
    bounds: Literal["auto", "hoeffding", "clopper-pearson"] = Field(
        "auto", description="hoeffding as published, clopper-pearson (tighter) for 0/1 levels; auto takes the tightest "
                            "that applies")


def simultaneous_bounds(name: str, tally: Tally, options: _Bounds, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of the smoothed map of one level, (h,w) each, all at once with probability 1 − α.

    Raises:
        UsageError: clopper-pearson asked for on real-valued levels.
    """
    confidence = 1.0 - options.alpha
    if options.bounds == "clopper-pearson" and tally.unit != 1:
        raise UsageError(f"certifier '{name}': clopper-pearson bounds are for 0/1 levels, and this sparsifier's are "
                         "real-valued: use bounds=hoeffding or auto")
    if tally.unit == 1 and options.bounds != "hoeffding":
        return clopper_pearson_bounds(tally.counts[level], tally.samples, confidence)
    return hoeffding_bounds(tally.mean[level], tally.samples, confidence)


class TopKOverlap:
    """How many of the K most important pixels of the smoothed map certainly stay among the K most important.

    R_cert(K) is the largest i ≤ K with Φ(Φ⁻¹(L_[i]) − 2ρ/σ) > U_[2K−i+1], [i] the i-th largest of simultaneous bounds.
    One event of probability 1 − α covers all K and ρ of a level. ``arrays["overlap"]`` is R_cert/K, float64
    (L, number of K, points), for the distances ``arrays["rho"]`` in pixel units and the ``arrays["k"]`` in percent.

    Source: Levine, Singla, Feizi, *Certifiably Robust Interpretation in Deep Learning*, 2019, Theorem 2, with an index
    that is tighter by one (see `certframe.statistics.bands.overlap_certificates`).
    """

    class Options(_Bounds):
        """Options of `top-k-overlap`."""

        k: tuple[Annotated[float, Field(gt=0.0, le=50.0)], ...] = Field(
            (20.0,), min_length=1, description="K in percent of the pixels, at most 50; one or several")

    cuts: tuple[int, ...] = ()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def looks(self, samples: int) -> Schedule | None:
        """None: the number of copies is fixed in advance."""
        return None

    def min_samples(self, pixels: int, levels: int) -> int:
        """1: few copies give wide bounds, but they are bounds."""
        return 1

    def certify(self, tally: Tally) -> Certificate:
        """The overlap that is certified, for every level, K and distance.

        Raises:
            UsageError: fewer than two pixels, or bounds that do not fit the levels.
        """
        require_complete("top-k-overlap", tally)
        o = self.options
        if tally.pixels < 2:
            raise UsageError("certifier 'top-k-overlap' needs 2K ≤ N, and the map has only 1 pixel: certify at a finer "
                             "resolution")
        tops = [min(max(1, round(tally.pixels * k / 100.0)), tally.pixels // 2) for k in o.k]
        rho = np.unique(np.append(np.linspace(0.0, _FARTHEST * tally.sigma, _POINTS), o.rho))
        overlap = np.array([[overlap_certificates(*simultaneous_bounds("top-k-overlap", tally, o, level), top,
                                                  rho / tally.sigma) / top for top in tops]
                            for level in range(len(tally.levels))])
        at = int(np.searchsorted(rho, o.rho))
        shares = ", ".join(f"{overlap[level, 0, at]:.0%} at level {name}" for level, name in enumerate(tally.levels))
        return Certificate(
            certifier="top-k-overlap", options=o.model_dump(mode="json"), subject="overlap", norm="l2", radius=o.rho,
            confidence=1.0 - o.alpha, family=tally.pixels, function="smoothed", method="statistical",
            samples=tally.samples, sigma=tally.sigma, levels=tally.levels,
            labels=np.full(tally.segments.shape[1:], ABSTAIN, np.int8),
            arrays={"overlap": overlap, "rho": rho, "k": np.array(o.k)},
            statement=f"With probability at least {1.0 - o.alpha:.6g} over the {tally.samples} noisy copies, "
                      f"{'for each level by itself, ' if len(tally.levels) > 1 else ''}at least "
                      f"this share of the top {o.k[0]:g} % of {smoothed_map(tally)} stays in its top "
                      f"{o.k[0]:g} % {ball(o.rho, tally)}: {shares}.")


class CertifiedRank:
    """The worst rank that every pixel of the smoothed map can fall to within ρ.

    rank_cert(i) = 1 + the number of j ≠ i with U_j > Φ(Φ⁻¹(L_i) − 2ρ/σ), for simultaneous bounds L and U: no other
    pixel can come to lie above it. ``arrays["rank"]`` is int64 (L,h,w), 1 the most important.

    Source: Levine, Singla, Feizi, *Certifiably Robust Interpretation in Deep Learning*, 2019, Theorem 3, tighter by one
    (see `certframe.statistics.bands.certified_ranks`).
    """

    class Options(_Bounds):
        """Options of `certified-rank`."""

    cuts: tuple[int, ...] = ()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def looks(self, samples: int) -> Schedule | None:
        """None: the number of copies is fixed in advance."""
        return None

    def min_samples(self, pixels: int, levels: int) -> int:
        """1: few copies give wide bounds, but they are bounds."""
        return 1

    def certify(self, tally: Tally) -> Certificate:
        """The certified rank of every pixel at every level.

        Raises:
            UsageError: bounds that do not fit the levels.
        """
        require_complete("certified-rank", tally)
        o = self.options
        ranks = np.array([self._ranks(tally, level) for level in range(len(tally.levels))])
        return Certificate(
            certifier="certified-rank", options=o.model_dump(mode="json"), subject="rank", norm="l2", radius=o.rho,
            confidence=1.0 - o.alpha, family=tally.pixels, function="smoothed", method="statistical",
            samples=tally.samples, sigma=tally.sigma, levels=tally.levels,
            labels=np.full(tally.segments.shape[1:], ABSTAIN, np.int8), arrays={"rank": ranks},
            statement=f"With probability at least {1.0 - o.alpha:.6g} over the {tally.samples} noisy copies, no pixel "
                      f"of a level falls below its certified rank in {smoothed_map(tally)} {ball(o.rho, tally)}.")

    def _ranks(self, tally: Tally, level: int) -> np.ndarray:
        o, distance = self.options, self.options.rho / tally.sigma
        if tally.unit == 1 and o.bounds != "hoeffding":
            return certified_ranks_of_counts(tally.counts[level], tally.samples, 1.0 - o.alpha, distance)
        return certified_ranks(*simultaneous_bounds("certified-rank", tally, o, level), distance)
