"""Looking at the counts several times without raising the error: boundaries for an adaptive number of copies."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from certframe.statistics.binomial import upper_tail

FIRST_LOOK, RATIO, BLOCK = 96, math.sqrt(2.0), 8


def geometric_looks(max_samples: int) -> tuple[int, ...]:
    """96, 136, 192, 272, 384, 544, 768, 1024, …: a factor √2 apart, multiples of 8, up to `max_samples` itself."""
    looks = []
    for i in range(200):
        n = BLOCK * math.floor(FIRST_LOOK * RATIO**i / BLOCK + 0.5)
        if n >= max_samples:
            break
        looks.append(n)
    return (*looks, max_samples)


def boundaries(looks: Sequence[int], tau: float, level: float) -> np.ndarray:
    """b_j = min{k : S_{n_j,τ}(k) ≤ w_j·a} with w_j = n_j / Σn: votes that certify at look j, n_j + 1 when none do.

    By the union bound over the looks the probability of ever crossing at p = τ is at most a.
    """
    total = sum(looks)
    return np.array([_smallest(n, tau, level * n / total) for n in looks])


def _smallest(n: int, tau: float, level: float) -> int:
    hits = np.flatnonzero(upper_tail(n, tau)[: n + 1] <= level)
    return int(max(hits[0], n // 2 + 1)) if hits.size else n + 1


def crossing_probability(looks: Sequence[int], bounds: Sequence[int] | np.ndarray, p: float) -> float:
    """U_p: the probability that a Bin(·, p) count is at or above its bound at one of the looks at least.

    The distribution of the counts that have not crossed is carried from look to look by direct convolution with the
    increment's binomial weights: every term is positive and keeps its relative accuracy, which an FFT would lose (it
    has an absolute error near 1e-17, and the probabilities of interest are as small as 1e-26).
    """
    alive, before, crossed = np.ones(1), 0, 0.0
    for n, bound in zip(looks, bounds, strict=True):
        now = np.convolve(alive, _weights(n - before, p))
        crossed += float(now[bound:].sum())
        alive, before = now[:bound], n
    return crossed


@functools.lru_cache(maxsize=256)
def _weights(n: int, p: float) -> np.ndarray:
    k = np.arange(n + 1, dtype=np.float64)
    log = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) + xlogy(k, p) + xlog1py(n - k, -p)
    return np.asarray(np.exp(log))


@functools.lru_cache(maxsize=64)
def calibrated_boundaries(looks: tuple[int, ...], tau: float, level: float) -> tuple[int, ...]:
    """The lowest boundaries of the form min{k : S_{n_j,τ}(k) ≤ c·w_j·a} whose exact error is at most a.

    The union bound wastes what the looks have in common: at p = τ its boundaries are crossed with probability 0.6 to
    0.8 a. Here c is raised as far as U_τ + U_½ ≤ a allows. That sum bounds every error: a pixel with p in [1 − τ, τ],
    say p ≥ ½, is wrongly certified with probability at most U_p + U_{1−p} ≤ U_τ + U_½; one with p > τ only on the wrong
    side, with U_{1−p} ≤ U_½.

    Returns:
        A vote bound per look, n_j + 1 where no number of votes is enough.
    """
    low, high = 0.0, 16.0
    best = boundaries(looks, tau, level * 0.5)
    for _ in range(30):
        middle = (low + high) / 2 if low else high / 16
        bounds = boundaries(looks, tau, level * middle)
        if error_of(looks, bounds, tau) <= level:
            low, best = middle, bounds
        else:
            high = middle
        if high - low < 1e-4 * high:
            break
    return tuple(int(b) for b in best)


def error_of(looks: Sequence[int], bounds: Sequence[int] | np.ndarray, tau: float) -> float:
    """U_τ + U_½, an upper bound on the probability of a wrong claim about one pixel."""
    return crossing_probability(looks, bounds, tau) + crossing_probability(looks, bounds, 0.5)
