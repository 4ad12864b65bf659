"""How many of the most important pixels of one map are among those of another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from certframe import protocols
from certframe.protocols import Explanation
from certframe.ranking import Ranking, rank


class TopKOverlap:
    """Overlap of the clean map's most important pixels with those under noise, as observed; nothing is certified.

    For level K ``top-k-overlap.smoothed.K`` is the share of the top pixels of the clean map that are also top pixels of
    the smoothed map, and ``top-k-overlap.noisy.K`` the mean share over the noisy copies. The number of top pixels is
    the mean number of pixels that a copy marks at that level (K % of them for `top-k`, fewer for maps with ties, and 0
    gives 0). Pixels of equal importance at the edge of a top count with the probability that a random order would put
    them in.

    Source: R(x, x̃, K) of Levine, Singla, Feizi, "Certifiably Robust Interpretation in Deep Learning", 2019.
    """

    class Options(protocols.Options):
        """Options of `top-k-overlap`."""

        ranking: Ranking = "magnitude"

    requires: frozenset[str] = frozenset()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """Two shares for each level, without evaluating the model."""
        tally = explanation.tally
        clean = rank(explanation.map, self.options.ranking).double().numpy()
        result: dict[str, float] = {}
        for level, counts in zip(tally.levels, tally.counts, strict=True):
            marked = counts / (tally.samples * tally.unit)  # how often a pixel is at the top of a copy
            size = float(marked.sum())
            member = membership(clean, round(size))
            result[f"top-k-overlap.smoothed.{level}"] = overlap(clean, marked, round(size))
            result[f"top-k-overlap.noisy.{level}"] = float((member * marked).sum() / size) if size > 0 else 0.0
        return result


def overlap(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """|top k of a ∩ top k of b| / k for scores of one shape; ties count as in `membership`; 0 for k = 0."""
    return float((membership(a, k) * membership(b, k)).sum() / k) if k else 0.0


def membership(scores: np.ndarray, k: int) -> np.ndarray:
    """The probability of every score to be among the k largest, when equal scores are put in random order.

    That is 1 above the k-th largest score, 0 below it, and for those equal to it the share of them that still fits in.
    """
    if k <= 0:
        return np.zeros(scores.shape)
    if k >= scores.size:
        return np.ones(scores.shape)
    edge = np.partition(scores, scores.size - k, axis=None)[scores.size - k]
    above, equal = scores > edge, scores == edge
    probability: np.ndarray = above + equal * ((k - above.sum()) / equal.sum())
    return probability
