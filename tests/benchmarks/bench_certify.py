"""Counts → certificate for three levels of 224×224, against one exact binomial test per pixel."""

from __future__ import annotations

import numpy as np
from measure import Ratio, alternate, record
from scipy.stats import binomtest

from certframe.certifiers.pixel import Pixel
from certframe.tally import Tally


def _tally(side: int = 224, levels: int = 3, n: int = 100) -> Tally:
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 0.3, size=(levels, side, side))
    counts = rng.binomial(n, p)[None].astype(np.int64)
    pilot = np.minimum(rng.binomial(10, p)[None], counts)
    return Tally(segments=np.concatenate([pilot, counts - pilot]), copies=((0, n),), cuts=(10,), sigma=0.15,
                 levels=("50", "25", "5"))


def _per_pixel(tally: Tally, alpha: float, tau: float, rows: int) -> np.ndarray:
    """The obvious way, on a few rows of the first level: a test for every pixel, Bonferroni."""
    counts, n = tally.counts[0, :rows].ravel(), tally.samples
    votes = np.maximum(counts, n - counts)
    p = [binomtest(int(v), n, tau, alternative="greater").pvalue for v in votes]
    return np.array(p) <= alpha / tally.pixels


def bench_certificate(benchmark):
    """All three levels in milliseconds; the reference is timed on one row and scaled to 3 · 224 rows."""
    tally, certifier = _tally(), Pixel()
    ratio = alternate(lambda: certifier.certify(tally), lambda: _per_pixel(tally, 0.001, 0.75, rows=1))
    scaled = Ratio(ratio.ours, ratio.theirs * 3 * 224)
    record(benchmark, "certificate for 3 levels of 224×224", scaled, milliseconds=1000 * scaled.ours)
    benchmark(certifier.certify, tally)
