"""What the page needs to decide again, for any τ, which pixels are certified.

A certifier of pixel labels says with `evidence` which label each pixel is a candidate for and how many votes it has,
and with `vote_thresholds` how many votes are needed at a τ. The page embeds the votes and the thresholds and compares
two integers, so that it decides as the certifier does, for every count.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from certframe.protocols import Certificate, Certifier
from certframe.tally import Tally

TAUS = tuple(percent / 100 for percent in range(50, 100))
"""The positions of the slider; the certificate's own τ is always one more."""

Areas = list[tuple[int, int]]
"""Per level, how many pixels are certified important and how many unimportant."""


@dataclass(frozen=True)
class Slider:
    """One panel's certificate at many τ.

    Attributes:
        taus: T increasing values, with the certificate's own at index `own`.
        radii: T radii in pixel units.
        thresholds: T×L votes needed.
        areas: T×L pairs of certified pixels.
        votes: base64 of the zlib-compressed little-endian unsigned integers 2·votes + candidate, (L,h,w).
        width: bytes of one of these integers, 2 or 4.
    """

    taus: Sequence[float]
    own: int
    radii: Sequence[float]
    thresholds: Sequence[Sequence[int]]
    areas: Sequence[Areas]
    votes: str
    width: int


def make(certifier: Certifier | Any, certificate: Certificate, tally: Tally) -> Slider | None:
    """The slider's data, or None when the certifier does not offer it or it would not show the certificate itself."""
    own = certificate.options.get("tau")
    if not (hasattr(certifier, "evidence") and hasattr(certifier, "vote_thresholds")) or own is None:
        return None
    candidate, votes = certifier.evidence(tally)
    taus = sorted({*TAUS, float(own)})
    index = taus.index(float(own))
    thresholds = np.array([certifier.vote_thresholds(tally, tau) for tau in taus])
    if not np.array_equal(relabel(candidate, votes, thresholds[index]), certificate.labels):
        return None
    radii = [certificate.sigma * NormalDist().inv_cdf(tau) for tau in taus]
    radii[index] = certificate.radius
    packed, width = _pack(candidate, votes)
    return Slider(taus=taus, own=index, radii=radii, thresholds=thresholds.tolist(),
                  areas=_areas(candidate, votes, thresholds), votes=packed, width=width)


def relabel(candidate: np.ndarray, votes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(L,h,w) int8 labels: the candidate where it has the votes its level needs, else −1. The page does the same."""
    return np.where(votes >= thresholds[:, None, None], candidate, -1).astype(np.int8)


def count(labels: np.ndarray) -> Areas:
    """Certified pixels per level of (L,h,w) labels."""
    return [(int((level == 1).sum()), int((level == 0).sum())) for level in labels]


def _areas(candidate: np.ndarray, votes: np.ndarray, thresholds: np.ndarray) -> list[Areas]:
    columns = [[_reaching(votes[level][candidate[level] == label], thresholds[:, level]) for label in (1, 0)]
               for level in range(len(votes))]
    return [[(int(one[t]), int(zero[t])) for one, zero in columns] for t in range(len(thresholds))]


def _reaching(votes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """For each threshold, how many of the votes reach it."""
    return votes.size - np.searchsorted(np.sort(votes, axis=None), thresholds, side="left")


def _pack(candidate: np.ndarray, votes: np.ndarray) -> tuple[str, int]:
    packed = 2 * votes.astype(np.int64) + candidate
    width = 2 if int(packed.max(initial=0)) < 2**16 else 4
    data = zlib.compress(packed.astype(f"<u{width}").tobytes(), 9)
    return base64.b64encode(data).decode("ascii"), width
