"""What a certificate claims about every image within its radius, as tests on the counts at one such image.

The counts at the other image come from noise of its own. A claim is *violated significantly* when so few of the copies
agree with it that, were it true, that would happen with probability δ at most. δ is the level of the whole audit
divided by the number of all its comparisons (Bonferroni), so that with a sound certifier a single violation anywhere
has at most the probability of the level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import beta, binom

import certframe

SLACK = 1e-6
"""Relative slack in comparing distances with radii, for rounding in float32."""


@dataclass(frozen=True)
class Finding:
    """What came of testing a claim at one image.

    Attributes:
        tested: the claims that reach as far as the image.
        violated: of those, how many are violated significantly.
        differing: how many differ in the fresh copies, significantly or not; None where that cannot be said.
    """

    tested: int
    violated: int
    differing: int | None


@dataclass(frozen=True)
class Claim:
    """One family of claims of a certificate.

    Attributes:
        kind: "pixels", "class", "overlap" or "ranks".
        reach: the distance, in pixel units, of the farthest that is worth testing.
        comparisons: the number of comparisons at each image, at most.
        test: counts at the image, its distance, and δ → finding.
    """

    kind: str
    reach: float
    comparisons: int
    test: Callable[[certframe.Tally, float, float], Finding]


def claims_of(explanation: certframe.Explanation) -> list[Claim] | str:
    """The claims that can be tested, or why there are none."""
    c = explanation.certificate
    if c.function != "smoothed" or c.norm != "l2":
        return f"it is about the {c.function} function in the norm {c.norm}: noisy copies do not test it"
    found: list[Claim] = []
    if c.subject == "overlap":
        found = _overlaps(explanation)
    elif c.subject == "rank":
        found = _ranks(explanation)
    elif c.labels.size:
        found = _labels(explanation)
    else:
        return f"there is no test for claims about '{c.subject}'"
    found += _class(explanation)
    return found or "nothing is certified"


def most(samples: int, share: float, delta: float) -> int:
    """The largest k with P(Bin(samples, share) ≤ k) ≤ δ; −1 when there is none."""
    k = int(binom.ppf(delta, samples, share))
    while k >= 0 and binom.cdf(k, samples, share) > delta:
        k -= 1
    return k


def _labels(explanation: certframe.Explanation) -> list[Claim]:
    """Certified labels: the smoothed label (of `quantile`, the side of a threshold) is still the same."""
    c, counts = explanation.certificate, explanation.tally.counts
    labels = c.labels
    certified = labels != certframe.ABSTAIN
    if not certified.any() or labels.shape != counts.shape:
        return []
    p = float(c.options.get("p", 0.5)) if c.subject == "value" else 0.5
    radii = np.where(certified, c.arrays["radius"], 0.0) if "radius" in c.arrays else certified * c.radius
    reach = float(np.median(radii[radii > 0])) if (radii > 0).any() else 0.0
    if reach <= 0:
        return []

    def test(tally: certframe.Tally, distance: float, delta: float) -> Finding:
        here = certified & (radii * (1 + SLACK) >= distance)
        agree = np.where(labels == 1, tally.counts, tally.samples - tally.counts)
        needed = np.where(labels == 1, 1 - p, p)
        few = np.where(labels == 1, most(tally.samples, 1 - p, delta), most(tally.samples, p, delta))
        return Finding(int(here.sum()), int((here & (agree <= few)).sum()),
                       int((here & (agree < needed * tally.samples)).sum()))

    return [Claim("pixels", reach, int(certified.sum()), test)]


def _class(explanation: certframe.Explanation) -> list[Claim]:
    """A certified class keeps more than half of the votes."""
    c = explanation.certificate
    target, _, certified = (int(v) for v in c.arrays.get("class", (0, 0, 0)))
    if not certified:
        return []
    reach = c.sigma * NormalDist().inv_cdf(float(c.options["tau"]))

    def test(tally: certframe.Tally, distance: float, delta: float) -> Finding:
        votes = tally.class_votes
        if votes is None or reach * (1 + SLACK) < distance:
            return Finding(0, 0, 0)
        k = int(votes[target])
        return Finding(1, int(k <= most(tally.samples, 0.5, delta)), int(k < 0.5 * tally.samples))

    return [Claim("class", reach, 1, test)] if reach > 0 else []


def bounds(tally: certframe.Tally, level: int, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of a level of the smoothed map, (N,), each wrong with probability δ at most."""
    if tally.unit == 1:
        k, n = tally.counts[level].ravel(), tally.samples
        lower = np.where(k > 0, beta.ppf(delta, np.maximum(k, 1), n - k + 1), 0.0)
        upper = np.where(k < n, beta.isf(delta, k + 1, np.maximum(n - k, 1)), 1.0)
        return lower, upper
    mean = tally.mean[level].ravel()
    margin = math.sqrt(math.log(1 / delta) / (2 * tally.samples))  # Hoeffding, one side
    return np.clip(mean - margin, 0, 1), np.clip(mean + margin, 0, 1)


def most_overlap(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], top: int) -> int:
    """The largest overlap of two top-K sets that bounds of both maps leave open: pixels that may be in both."""
    possible = [upper >= np.partition(lower, -top)[-top] for lower, upper in (first, second)]
    return min(top, int((possible[0] & possible[1]).sum()))


def _overlaps(explanation: certframe.Explanation) -> list[Claim]:
    """So many of the top K pixels of the smoothed map stay in its top K."""
    c, own = explanation.certificate, explanation.tally
    overlap, rho, pixels = c.arrays["overlap"], c.arrays["rho"], own.pixels
    tops = [min(max(1, round(pixels * k / 100.0)), pixels // 2) for k in c.arrays["k"]]
    if c.radius <= 0 or not overlap.any():
        return []

    def test(tally: certframe.Tally, distance: float, delta: float) -> Finding:
        at = int(np.searchsorted(rho * (1 + SLACK), distance))
        if at == len(rho):
            return Finding(0, 0, None)
        violated = 0
        for level in range(overlap.shape[0]):
            before, after = bounds(own, level, delta), bounds(tally, level, delta)
            for index, top in enumerate(tops):
                claimed = round(overlap[level, index, at] * top)
                violated += most_overlap(before, after, top) < claimed
        return Finding(overlap.shape[0] * len(tops), violated, None)

    return [Claim("overlap", c.radius, 4 * overlap.shape[0] * pixels, test)]


def _ranks(explanation: certframe.Explanation) -> list[Claim]:
    """No pixel falls to a rank that is worse than certified."""
    c = explanation.certificate
    ranks = c.arrays["rank"]
    claimed = ranks < explanation.tally.pixels
    if c.radius <= 0 or not claimed.any():
        return []

    def test(tally: certframe.Tally, distance: float, delta: float) -> Finding:
        if c.radius * (1 + SLACK) < distance:
            return Finding(0, 0, None)
        violated = 0
        for level, certified in enumerate(ranks.reshape(len(ranks), -1)):
            lower, upper = bounds(tally, level, delta)
            above = len(lower) - np.searchsorted(np.sort(lower), upper, side="right")  # surely more important
            violated += int((above + 1 > certified).sum())
        return Finding(int(claimed.sum()), violated, None)

    return [Claim("ranks", c.radius, 2 * ranks.size, test)]
