"""Simultaneous bounds on the values of a smoothed map."""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.special import betainccinv, betaincinv, ndtr, ndtri

from certframe.statistics.binomial import upper_tail


def band_threshold(n: int, tau: float, alpha: float, pixels: int) -> int:
    """Smallest k > n/2 with S_{n,τ}(k) ≤ α/(2N): votes that place a pixel at any number of nested levels at once.

    One side of one pixel costs α/(2N) however many levels there are: with levels nested, let K* be the largest level
    with p_K ≤ τ. A false "in" at any K ≤ K* implies k votes at K* (more pixels are 1 at larger K), so all false "in" of
    the pixel are one event; the same for "out". Overlaying maps that were certified separately at several K is valid
    only at about twice the error.
    """
    low = n // 2 + 1
    hits = np.flatnonzero(upper_tail(n, tau)[low: n + 1] <= alpha / (2 * pixels))
    return int(hits[0]) + low if hits.size else n + 1


def hoeffding_margin(samples: int, values: int, confidence: float) -> float:
    """Margin c = √(ln(2N/(1−p)) / (2q)): |mean − expectation| ≤ c for N values in [0, 1] at once, with probability p.

    Levine, Singla, Feizi 2019, Theorem 2.
    """
    return math.sqrt(math.log(2 * values / (1.0 - confidence)) / (2 * samples))


def hoeffding_bounds(mean: np.ndarray, samples: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean ∓ c, clipped to [0, 1], for all values at once."""
    c = hoeffding_margin(samples, mean.size, confidence)
    return np.clip(mean - c, 0.0, 1.0), np.clip(mean + c, 0.0, 1.0)


def clopper_pearson_bounds(counts: np.ndarray, samples: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact binomial bounds at (1−p)/(2N) a side for all N counts at once; any shape.

    L = betaincinv(m, q−m+1, δ), U = betainccinv(m+1, q−m, δ), computed once for each count that is possible.
    """
    lower, upper = clopper_pearson_table(samples, (1.0 - confidence) / (2 * counts.size))
    return lower[counts], upper[counts]


@functools.lru_cache(maxsize=64)
def clopper_pearson_table(samples: int, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds, each wrong with probability at most δ, for every count 0, …, n; read-only."""
    m = np.arange(samples + 1)
    inner, last = np.maximum(m, 1), np.minimum(m, samples - 1)
    lower = np.where(m > 0, betaincinv(inner, samples - inner + 1, delta), 0.0)
    upper = np.where(m < samples, betainccinv(last + 1, samples - last, delta), 1.0)
    lower.flags.writeable = upper.flags.writeable = False
    return lower, upper


def shifted_down(lower: np.ndarray, distance: float) -> np.ndarray:
    """Φ(Φ⁻¹(L) − d): the least a value in [0, 1] with smoothed mean ≥ L can have d·σ away from the image."""
    return np.asarray(ndtr(ndtri(lower) - distance))


def overlap_certificates(lower: np.ndarray, upper: np.ndarray, top: int, distances: np.ndarray) -> np.ndarray:
    """R_cert(K) for each ρ/σ: how many of the top-K values certainly stay in the top K.

    The largest i ≤ K with Φ(Φ⁻¹(L_[i]) − 2ρ/σ) > U_[2K−i+1], [i] the i-th largest; 0 when there is none.

    Proof. Suppose fewer than i of the top K stay. Then one of the i largest, a, is not in the new top K, and the new
    top K has at least K − i + 1 members from below rank K. Each of them is above a at x̃, so its old rank is at most
    2K − i; but only K − i ranks lie in (K, 2K − i]. (Levine, Singla, Feizi 2019, Theorem 2, state it with U_[2K−i].)

    Args:
        lower: simultaneous lower bounds, flattened, N values.
        upper: simultaneous upper bounds.
        top: K, with 2K ≤ N.
        distances: ρ/σ, any number of them.

    Returns:
        int64, one per distance.
    """
    i = np.arange(1, top + 1)
    low, high = -np.sort(-lower.ravel())[:top], -np.sort(-upper.ravel())[2 * top - i]
    # Φ is increasing, so the comparison is made before it: no value is rounded to 1.
    possible = (low > 0.0) & (high < 1.0)
    margin = np.full(top, -np.inf)
    margin[possible] = ndtri(low[possible]) - ndtri(high[possible])
    return np.array([int(i[margin > 2 * d].max(initial=0)) for d in np.atleast_1d(distances)])


def certified_ranks(lower: np.ndarray, upper: np.ndarray, distance: float) -> np.ndarray:
    """1 + #{j ≠ i : U_j > Φ(Φ⁻¹(L_i) − 2ρ/σ)}, the worst rank of each value within ρ; int64 in [1, N], same shape.

    A value that lies above h̄_i at x̃ has Φ(Φ⁻¹(U_j) + ρ/σ) > Φ(Φ⁻¹(L_i) − ρ/σ), and i is not above itself. (Levine,
    Singla, Feizi 2019, Definition 3.1 and Theorem 3, state min{k : Φ(Φ⁻¹(L_i) − 2ρ/σ) ≥ U_[k]}. As U_i ≥ L_i, that
    counts i among the values above it: one rank too many, so that no value could ever be certified to be the first.)
    """
    floors, flat = ndtr(ndtri(lower.ravel()) - 2 * distance), upper.ravel()
    above = flat.size - np.searchsorted(np.sort(flat), floors, side="right")
    return np.asarray(1 + above - (flat > floors)).reshape(lower.shape)


def certified_ranks_of_counts(counts: np.ndarray, samples: int, confidence: float, distance: float) -> np.ndarray:
    """`certified_ranks` with Clopper–Pearson bounds, by a table with an entry for each count that is possible."""
    lower, upper = clopper_pearson_table(samples, (1.0 - confidence) / (2 * counts.size))
    floors = ndtr(ndtri(lower) - 2 * distance)
    at_least = np.cumsum(np.bincount(counts.ravel(), minlength=samples + 2)[::-1])[::-1]
    above = at_least[np.searchsorted(upper, floors, side="right")]
    ranks: np.ndarray = 1 + above - (upper > floors)
    return np.asarray(ranks[counts])


def shifted_shares(p: float, shift: float) -> tuple[float, float]:
    """Φ(Φ⁻¹(p) − R/σ) and Φ(Φ⁻¹(p) + R/σ): what a share p of the noise can become within R = shift·σ."""
    return float(ndtr(ndtri(p) - shift)), float(ndtr(ndtri(p) + shift))


def quantile_indices(n: int, p: float, shift: float, alpha: float, pixels: int) -> tuple[int | None, int | None]:
    """Order statistics that bracket the p-quantile everywhere within R = shift·σ: (l, u), 1-based, None for ∓∞.

    p_lo = Φ(Φ⁻¹(p) − R/σ), p_hi = Φ(Φ⁻¹(p) + R/σ); l = max{l : P(Bin(n, p_lo) ≤ l−1) ≤ α/(2N)} and u = min{u :
    P(Bin(n, p_hi) ≥ u) ≤ α/(2N)}. Chiang et al. 2020 (median smoothing), for N pixels at once.
    """
    level = alpha / (2 * pixels)
    p_low, p_high = shifted_shares(p, shift)
    # P(Bin(n, p) ≤ l − 1) = P(Bin(n, 1 − p) ≥ n − l + 1): again a tail computed as a tail.
    below = upper_tail(n, 1.0 - p_low)[n - np.arange(1, n + 1) + 1]
    lows = np.flatnonzero(below <= level)
    highs = np.flatnonzero(upper_tail(n, p_high)[1: n + 1] <= level)
    return (int(lows[-1]) + 1 if lows.size else None), (int(highs[0]) + 1 if highs.size else None)
