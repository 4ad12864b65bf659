"""Looking at the counts several times without raising the error: boundaries for an adaptive number of copies."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, ndtr, xlog1py, xlogy

from certframe.statistics.binomial import upper_tail
from certframe.statistics.corrections import min_copies

FIRST_LOOK, RATIO, BLOCK = 96, math.sqrt(2.0), 8
EXACT_UP_TO = 4096
"""Planned copies up to which crossing probabilities are computed exactly; the cost grows with their square."""


def geometric_looks(max_samples: int) -> tuple[int, ...]:
    """96, 136, 192, 272, 384, 544, 768, 1088, …: a factor √2 apart, multiples of 8, up to `max_samples` itself."""
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


@functools.lru_cache(maxsize=1024)
def calibrated_boundaries(looks: tuple[int, ...], tau: float, alpha: float, pixels: int, tests: int) -> np.ndarray:
    """The lowest boundaries of the form min{k : S_{n_j,τ}(k) ≤ c·w_j·α/tests} whose exact error is at most α.

    The union bound wastes what the looks have in common: at p = τ its boundaries are crossed with probability 0.6 to
    0.8 of what is allowed. Here c is raised as far as tests·U_τ + pixels·U_½ ≤ α allows. That bounds every error: a
    pixel with p in [1 − τ, τ], say p ≥ ½, is wrongly certified with probability at most U_p + U_{1−p} ≤ U_τ + U_½; one
    with p > τ only on the wrong side, with U_{1−p} ≤ U_½.

    Args:
        looks: numbers of copies at which the counts are looked at.
        tau: in [½, 1).
        alpha: family-wise error.
        pixels: N, all pixels; 0 when only one label is tested, which was fixed before the first copy.
        tests: N − r, the pixels that are not yet certified; N to begin with.

    Returns:
        Read-only int64, a vote bound per look, n_j + 1 where no number of votes is enough.
    """
    low, high, best = 0.0, 16.0, np.array(looks) + 1
    while high - low > 1e-4 * high and high > 1e-6:
        middle = (low + high) / 2
        bounds = boundaries(looks, tau, middle * alpha / tests)
        if _allowed(looks, bounds, tau, alpha, pixels, tests):
            low, best = middle, bounds
        else:
            high = middle
    best.flags.writeable = False
    return best


@functools.lru_cache(maxsize=64)
def ladder(looks: tuple[int, ...], tau: float, alpha: float, pixels: int, *,
           calibrated: bool, step_down: bool) -> tuple[tuple[int, ...], np.ndarray]:
    """Boundaries for a falling number of tests: what `certified_steps` walks down.

    Returns:
        The numbers of tests N = t_0 > t_1 > … (a factor √2 apart, rounded up, which is conservative; N alone without
        step-down), and int64 (steps, looks), the boundaries of each.
    """
    tests, n = [pixels], pixels
    while step_down and n > 1:
        n = max(1, math.floor(n / RATIO))
        tests.append(n)
    rows: list[np.ndarray] = []
    for t in tests:
        row = union_boundaries(looks, tau, alpha, pixels, t)
        if looks[-1] <= EXACT_UP_TO and (calibrated or not _allowed(looks, row, tau, alpha, pixels, t)):
            row = calibrated_boundaries(looks, tau, alpha, pixels, t)
        # A row for more tests is valid for fewer, so the last one serves where rounding has not lowered every bound.
        rows.append(row if not rows or bool(np.all(row <= rows[-1])) else rows[-1])
    return tuple(tests), np.stack(rows)


def union_boundaries(looks: tuple[int, ...], tau: float, alpha: float, pixels: int, tests: int) -> np.ndarray:
    """Boundaries whose error is at most α by the union bound over the looks; the exact sum is not needed.

    Up to `EXACT_UP_TO` copies these are the plain `boundaries` at α/tests, which leave no room for the wrong side: the
    caller checks the exact sum. Beyond, the level is lowered until tests·Σ_j S_τ(b_j) + pixels·Σ_j S_½(b_j) ≤ α.
    """
    if looks[-1] <= EXACT_UP_TO:
        return boundaries(looks, tau, alpha / tests)
    share = 1.0 - 2.0**-10
    while True:
        row = boundaries(looks, tau, share * alpha / tests)
        at_tau, at_half = (sum(float(upper_tail(n, p)[b]) for n, b in zip(looks, row, strict=True)) for p in (tau, 0.5))
        if tests * at_tau + pixels * at_half <= alpha:
            return row
        share /= 2


def _allowed(looks: Sequence[int], bounds: np.ndarray, tau: float, alpha: float, pixels: int, tests: int) -> bool:
    """Whether tests·U_τ + pixels·U_½ ≤ α."""
    at_tau, at_half = (crossing_probability(looks, bounds, p) for p in (tau, 0.5))
    return tests * at_tau + pixels * at_half <= alpha


def steps_of_counts(counts: np.ndarray, samples: int, bounds: np.ndarray) -> np.ndarray:
    """First step of a ladder at which each count is certified at one look, and with which label.

    Args:
        counts: integers in [0, samples], any shape.
        samples: n_j.
        bounds: (steps,), the look's column of the ladder.

    Returns:
        int16 of the shape of the counts: 2·step + label; 2·steps + label when no step certifies it.
    """
    x = np.arange(samples + 1)
    votes, label = np.maximum(x, samples - x), (2 * x > samples)
    step = np.searchsorted(-bounds, -votes, side="left")  # bounds fall with the step: the first one that is ≤ votes
    return np.asarray((2 * step + label).astype(np.int16)[counts])


def certified_steps(codes: np.ndarray, tests: Sequence[int]) -> int:
    """Walk down the ladder: the number of steps whose pixels are certified.

    With r pixels certified, any row for at least N − r tests may be used. Sound for the reason given in
    `certframe.statistics.corrections.holm_threshold`, with "has k* votes" replaced by "ever crosses the row's bounds".

    Args:
        codes: for each pixel the smallest value of `steps_of_counts` over the looks so far.
        tests: the ladder's numbers of tests.

    Returns:
        s such that exactly the pixels with code // 2 < s are certified; at least 1.
    """
    reached = np.cumsum(np.bincount(codes.ravel() >> 1, minlength=len(tests) + 1))
    row = 0
    while row + 1 < len(tests) and codes.size - reached[row] <= tests[row + 1]:
        row += 1
    return row + 1


def chances(samples: int, bound: int, end: int) -> np.ndarray:
    """About how probable it is that a label with so many votes now has `bound` of them at the end.

    The further votes are predicted by a beta-binomial distribution (Jeffreys' prior), approximated by the normal one of
    the same mean and variance. Only for deciding when to stop, which is free: no claim depends on it.

    Args:
        samples: copies so far.
        bound: votes needed at the end.
        end: copies at the end, at least `samples`.

    Returns:
        float64 (samples + 1,) in [0, 1], for 0, …, `samples` votes; exactly 0 where even unanimity would not do.
    """
    votes, further = np.arange(samples + 1), end - samples
    missing = bound - votes
    p = (votes + 0.5) / (samples + 1.0)
    spread = np.sqrt(further * p * (1.0 - p) * (1.0 + (further - 1.0) / (samples + 2.0)))
    chance = ndtr((further * p - missing + 0.5) / np.where(spread > 0.0, spread, 1.0))
    return np.where(missing <= 0, 1.0, np.where(missing > further, 0.0, chance))


def min_planned_copies(tau: float, alpha: float, pixels: int, *, calibrated: bool) -> int:
    """The smallest number of planned copies at which a unanimous pixel can be certified at one of the looks."""
    n = min_copies(tau, alpha, pixels)
    while True:
        looks = geometric_looks(n)
        _, bounds = ladder(looks, tau, alpha, pixels, calibrated=calibrated, step_down=False)
        if bool(np.any(bounds[0] <= np.array(looks))):
            return n
        n += 1
