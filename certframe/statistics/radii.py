"""A certified radius for every pixel, from its count alone."""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import betainc, ndtri

from certframe.statistics.binomial import upper_tail

_BISECTIONS = 200


def majority_threshold(n: int, level: float) -> int:
    """k_r = min{k > n/2 : 2 S_{n,½}(k) ≤ a}, the votes that decide which label is the majority; n + 1 if none do."""
    low = n // 2 + 1
    hits = np.flatnonzero(2.0 * upper_tail(n, 0.5)[low: n + 1] <= level)
    return int(hits[0]) + low if hits.size else n + 1


@functools.lru_cache(maxsize=64)
def probability_bounds(n: int, level: float) -> np.ndarray:
    """L(m), m = 0, …, n: a lower bound on the probability of the majority label, valid at error `level` per pixel.

    L(m) = inf{t ≥ ½ : S_{n,t}(m) + S_{n,1−t}(k_r) > a} for m ≥ k_r, and ½ below (nothing is claimed there).

    Proof. Let p be the probability of label 1, ½ ≤ p without loss. The claim "the probability of the majority label
    is at least L(m)" is wrong when X ≥ k_r and L(X) > p, or when n − X ≥ k_r at all (wrong label). L grows with m, so
    the first event is X ≥ m*, where m* is the smallest count with L(m*) > p; L(m*) > p means that S_p(m*) +
    S_{1−p}(k_r) ≤ a, and that sum is the probability of both events together. Plain Clopper–Pearson at a forgets the
    second term, which matters for the smallest counts.

    Returns:
        Read-only float64 array of length n + 1.
    """
    k = majority_threshold(n, level)
    table = np.full(n + 1, 0.5)
    if k <= n:
        m = np.arange(k, n + 1, dtype=np.float64)
        low, high = np.full(m.shape, 0.5), np.ones(m.shape)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = betainc(m, n - m + 1, middle) + betainc(k, n - k + 1, 1.0 - middle) > level
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        table[k:] = low  # the side on which the claim still holds
    table.flags.writeable = False
    return table


def radius_table(n: int, sigma: float, level: float) -> np.ndarray:
    """R(m) = σΦ⁻¹(L(m)) in pixel units for m = 0, …, n votes of the majority; NaN where it abstains.

    With probability 1 − N·level all pixels' radii hold at once, for every radius up to each pixel's own.
    """
    table = sigma * ndtri(probability_bounds(n, level))
    table[: majority_threshold(n, level)] = np.nan
    return np.asarray(table)


def largest_radius(n: int, sigma: float, level: float) -> float:
    """The radius of a unanimous pixel, about σΦ⁻¹(a^{1/n}): what n copies can certify at best; NaN if nothing."""
    return float(radius_table(n, sigma, level)[n])
