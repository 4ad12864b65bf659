"""Binomial probabilities in rational arithmetic, and tallies made of counts."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import stats

from certframe.tally import Tally


@functools.cache
def pmf(n: int, p: Fraction) -> tuple[Fraction, ...]:
    """P(Bin(n, p) = k) for k = 0, …, n."""
    return tuple(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1))


@functools.cache
def tail(n: int, p: Fraction, k: int) -> Fraction:
    """P(Bin(n, p) ≥ k)."""
    return sum(pmf(n, p)[max(k, 0):], Fraction(0))


def tally_of(segments: Any, ends: tuple[int, ...], **changes: Any) -> Tally:
    """A tally of the first ``ends[-1]`` copies, cut at the other ends; segments (S,L,h,w)."""
    array = np.asarray(segments, dtype=np.int64)
    fields: dict[str, Any] = {
        "segments": array, "copies": ((0, ends[-1]),), "cuts": ends[:-1], "sigma": 0.25,
        "levels": tuple(f"level {i}" for i in range(array.shape[1])), "planned": ends[-1],
        "identity": {"attributor": "grad-cam", "target": 1, "target_name": "espresso"}}
    return Tally(**{**fields, **changes})


def counted(counts: Any, n: int, **changes: Any) -> Tally:
    """A tally of n copies that is cut nowhere; counts (L,h,w)."""
    return tally_of(np.asarray(counts)[None], (n,), **changes)


def significantly_above(errors: Any, alpha: float) -> bool:
    """Whether so many errors refute that their probability is at most α (Clopper–Pearson lower limit, 99.99 %)."""
    found, runs = int(np.sum(errors)), np.size(errors)
    return found > 0 and bool(stats.beta.ppf(1e-4, found, runs - found + 1) > alpha)
