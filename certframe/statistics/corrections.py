"""How many votes certify a pixel, when N pixels are tested at once and the error α is for all of them.

All functions return vote thresholds: the label is certified when it has at least so many votes. n + 1 means that no
number of votes is enough.
"""

from __future__ import annotations

import numpy as np

from certframe.statistics.binomial import two_sided_p_values, upper_tail


def _first(condition: np.ndarray, offset: int, otherwise: int) -> int:
    hits = np.flatnonzero(condition)
    return int(hits[0]) + offset if hits.size else otherwise


def _majority(n: int) -> int:
    """The smallest k with k > (n + 1)/2, from which on the two-sided p-value is valid."""
    return (n + 1) // 2 + 1


def bonferroni_threshold(n: int, tau: float, alpha: float, pixels: int) -> int:
    """Smallest k > (n + 1)/2 with S_τ(k) + S_{1−τ}(k) ≤ α/N. Valid under any dependence between the pixels."""
    low = _majority(n)
    return _first(two_sided_p_values(n, tau)[low:] <= alpha / pixels, low, n + 1)


def holm_threshold(votes: np.ndarray, n: int, tau: float, alpha: float) -> int:
    """Step-down threshold of the exact two-sided test; never above `bonferroni_threshold`.

    With r pixels certified so far, use the smallest k > (n + 1)/2 with (N − r) S_τ(k) + N S_{1−τ}(k) ≤ α, and repeat
    until r stops growing. Sound under any dependence: let r* be the number of pixels with p outside [1 − τ, τ] and k*
    the threshold for it. With probability 1 − α no pixel inside has k* votes for either label and none outside has k*
    votes for the wrong one; on that event r never exceeds r*, so no threshold falls below k*. The second term carries
    N, not N − r, because a certified pixel can still have been certified with the wrong label: Holm's procedure on
    two-sided p-values would forget that.

    Args:
        votes: majority votes of all N pixels, integers in [n/2, n], any shape.
        n: number of copies.
        tau: in [½, 1).
        alpha: family-wise error.
    """
    low = _majority(n)
    right, wrong = upper_tail(n, tau)[low: n + 1], upper_tail(n, 1.0 - tau)[low: n + 1]
    pixels = votes.size
    at_least = np.cumsum(np.bincount(votes.ravel(), minlength=n + 2)[::-1])[::-1]
    certified, threshold = -1, n + 1
    reached = 0
    while reached > certified:
        certified = reached
        threshold = _first((pixels - certified) * right + pixels * wrong <= alpha, low, n + 1)
        reached = int(at_least[threshold])
    return threshold


def split_threshold(n: int, tau: float, alpha: float, pixels: int) -> int:
    """Smallest k with S_τ(k) ≤ α/N over the n copies that were *not* used to choose the label.

    The published rule of pixel-level certified explanations (Anani et al. 2025, after Fischer et al. 2021).
    """
    return _first(upper_tail(n, tau)[: n + 1] <= alpha / pixels, 0, n + 1)


def min_copies(tau: float, alpha: float, pixels: int, *, two_sided: bool = True) -> int:
    """The smallest n at which a unanimous vote certifies: τⁿ (+ (1 − τ)ⁿ) ≤ α/N."""
    floor = int(np.log(alpha / pixels) / np.log(tau)) - 1  # below it τⁿ alone is too much: no need to look there
    n = max(floor, 2 if two_sided else 1)  # the two-sided test needs more than (n + 1)/2 votes
    while tau**n + (two_sided * (1.0 - tau) ** n) > alpha / pixels:
        n += 1
    return n
