"""A percentile over images, and what a few images say about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom


@dataclass(frozen=True)
class Percentile:
    """An empirical percentile of shares in [0, 1] with the confidence interval of the true one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """``.52 [.31, 1]``; the value alone where nothing is known about the true one."""
        known = (self.low, self.high) != (0.0, 1.0)
        return _short(self.value) + (f" [{_short(self.low)}, {_short(self.high)}]" if known else "")


def _short(value: float) -> str:
    return {0.0: "0", 1.0: "1"}.get(round(value, 2), f"{value:.2f}"[1:])


def order_statistics(count: int, share: float, confidence: float = 0.95) -> tuple[int, int]:
    """(l, u), 1-based: the percentile lies in [X_(l), X_(u)] with at least the confidence; 0 or n + 1 for none.

    Exact: l = max{l : P(Bin(n, share) ≤ l − 1) ≤ (1 − confidence)/2}, u = min{u : P(Bin(n, share) ≥ u) ≤ the same}.
    For 64 values and the 60th percentile (31, 47), the 48th to the 73rd percent of them.
    """
    tail = (1.0 - confidence) / 2
    k = np.arange(count + 2)
    low = int(np.flatnonzero(binom.cdf(k - 1, count, share) <= tail)[-1])
    return min(low, count), int(np.flatnonzero(binom.sf(k - 1, count, share) <= tail)[0])


def percentile(values: Sequence[float], share: float = 0.6, confidence: float = 0.95) -> Percentile:
    """The ⌈share·n⌉-th smallest value and the interval of `order_statistics`, open ends filled with 0 and 1."""
    ordered = [0.0, *sorted(values), 1.0]
    low, high = order_statistics(len(values), share, confidence)
    return Percentile(ordered[max(1, math.ceil(share * len(values) - 1e-9))], ordered[low], ordered[high])
