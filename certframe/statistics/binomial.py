"""Exact binomial tails and the l2 radius of randomized smoothing."""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import betainc, ndtri


@functools.lru_cache(maxsize=256)
def upper_tail(n: int, p: float) -> np.ndarray:
    """S(k) = P(Bin(n, p) ≥ k) for k = 0, …, n + 1, as a read-only float64 array of length n + 2.

    By the identity P(Bin(n, p) ≥ k) = I_p(k, n − k + 1): a tail is computed as a tail, never as 1 − cdf, which in
    float32 rounds to 0 near 1e-8 and would certify falsely.
    """
    k = np.arange(1, n + 1, dtype=np.float64)
    tail = np.concatenate([[1.0], betainc(k, n - k + 1, p), [0.0]])
    tail.flags.writeable = False
    return tail


def two_sided_p_values(n: int, tau: float) -> np.ndarray:
    """p-value of the majority label for each majority count m = 0, …, n: S_τ(m) + S_{1−τ}(m), float64, length n + 1.

    Null hypothesis: the probability p of a 1 lies in [1 − τ, τ]. Then P(max(X, n − X) ≥ m) = S_p(m) + S_p'(m) with
    p' = 1 − p, which for m > (n + 1)/2 is convex in p and symmetric about ½, hence largest at p = τ. No copies have to
    be set aside for choosing the label. Only entries with m > n/2 are meant to be used.
    """
    return np.asarray(upper_tail(n, tau)[: n + 1] + upper_tail(n, 1.0 - tau)[: n + 1])


def smoothing_radius(sigma: float, tau: float) -> float:
    """R = σ Φ⁻¹(τ) in pixel units: if P(label) > τ under N(0, σ²I), the majority label is constant within R in l2.

    Cohen et al. 2019, Theorem 1, with Fischer et al. 2021 for many components.
    """
    return float(sigma * ndtri(tau))
