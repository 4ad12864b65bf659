"""What the page needs to decide again, for any τ of a grid, which pixels are certified.

A certifier of pixel labels says with `evidence` which label each pixel is a candidate for and how many votes it has,
and with `vote_thresholds` how many votes are needed at a τ. The page embeds the votes and the thresholds and compares
two integers, so that it decides as the certifier does, for every count.

Where a decision takes more than one threshold (several looks at the counts), the certifier is asked for its labels at
every τ of a coarser grid. Pixels that are labelled alike at all of them are one class; the page embeds the class of
each pixel and what the class is labelled at each τ. So any rule is followed exactly, in a byte a pixel.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from certframe.errors import UsageError
from certframe.protocols import Certificate, Certifier
from certframe.report import claim
from certframe.tally import Tally

TAUS = tuple(percent / 100 for percent in range(50, 100))
"""The positions of the slider; the certificate's own τ is always one more."""
COARSE = (*TAUS[::5], TAUS[-1])
"""The positions at which a certifier is asked again, for those that have no single threshold."""

Areas = list[tuple[int, int]]
"""Per level, how many pixels are certified important and how many unimportant."""


@dataclass(frozen=True)
class Slider:
    """One panel's certificate at many τ.

    Attributes:
        taus: T increasing values, with the certificate's own at index `own`.
        radii: T radii in pixel units.
        areas: T×L pairs of certified pixels.
        codes: base64 of the zlib-compressed little-endian unsigned integers (L,h,w): 2·votes + candidate, or the
            pixel's class when there is a `table`.
        width: bytes of one of these integers, 1, 2 or 4.
        thresholds: T×L votes needed; empty when there is a table.
        table: for each class its labels at the T positions, as a text of ``1``, ``0`` and ``-``; empty with thresholds.
        classes: whether the class of the image is certified at each τ, T values; empty when that is no part of it.
        vote_radii: certified radius for 0, …, n votes (None: abstains), for certificates that hold at all radii.
    """

    taus: Sequence[float]
    own: int
    radii: Sequence[float]
    areas: Sequence[Areas]
    codes: str
    width: int
    thresholds: Sequence[Sequence[int]] = ()
    table: Sequence[str] = ()
    classes: Sequence[bool] = ()
    vote_radii: Sequence[float | None] = ()


def make(certifier: Certifier | Any, certificate: Certificate, tally: Tally) -> Slider | None:
    """The slider's data, or None when the certifier does not offer it or it would not show the certificate itself."""
    own = 0.5 if claim.all_radii(certificate) else certificate.options.get("tau")
    if own is None or not certificate.about_labels:
        return None
    if hasattr(certifier, "evidence") and hasattr(certifier, "vote_thresholds"):
        return _from_votes(certifier, certificate, tally, float(own))
    return _from_certificates(certifier, certificate, tally, float(own))


def _from_votes(certifier: Any, certificate: Certificate, tally: Tally, own: float) -> Slider | None:
    candidate, votes = certifier.evidence(tally)
    taus = sorted({*TAUS, own})
    index = taus.index(own)
    thresholds = np.array([certifier.vote_thresholds(tally, tau) for tau in taus])
    if not np.array_equal(relabel(candidate, votes, thresholds[index]), certificate.labels):
        return None
    codes, width = _pack(2 * votes.astype(np.int64) + candidate)
    certain = getattr(certifier, "class_certified", None)
    return Slider(taus=taus, own=index, radii=_radii(certificate, taus, index), codes=codes, width=width,
                  areas=_areas(candidate, votes, thresholds), thresholds=thresholds.tolist(),
                  classes=[bool(certain(tally, tau)) for tau in taus] if certain else (),
                  vote_radii=_vote_radii(certificate, votes))


def _from_certificates(certifier: Any, certificate: Certificate, tally: Tally, own: float) -> Slider | None:
    """By certifying again at each τ."""
    cls, taus = type(certifier), sorted({*COARSE, own})
    index = taus.index(own)
    try:
        found = [cls(cls.Options(**{**certificate.options, "tau": tau})).certify(tally) for tau in taus]
    except (AttributeError, TypeError, ValueError, UsageError):
        return None  # it cannot be made from its options, or has no τ to choose
    labels = np.stack([one.labels for one in found])
    if not np.array_equal(labels[index], certificate.labels):
        return None
    weights = 3 ** np.arange(len(taus), dtype=np.int64)  # the labels at all τ as one number
    _, first, members = np.unique(np.tensordot(weights, labels + np.int64(1), 1), return_index=True,
                                  return_inverse=True)
    codes, width = _pack(members.reshape(certificate.labels.shape))
    return Slider(taus=taus, own=index, radii=_radii(certificate, taus, index), codes=codes, width=width,
                  areas=[count(one) for one in labels],
                  table=["".join("-01"[label + 1] for label in column)
                         for column in labels.reshape(len(taus), -1)[:, first].T],
                  classes=[bool(one.arrays["class"][2]) for one in found if "class" in one.arrays])


def _radii(certificate: Certificate, taus: Sequence[float], own: int) -> list[float]:
    radii = [certificate.sigma * NormalDist().inv_cdf(tau) for tau in taus]
    if not claim.all_radii(certificate):
        radii[own] = certificate.radius
    return radii


def _vote_radii(certificate: Certificate, votes: np.ndarray) -> list[float | None]:
    """The radius that goes with each number of votes, read from the certificate; None where no pixel has so many."""
    if not claim.all_radii(certificate):
        return []
    table: list[float | None] = [None] * (int(votes.max(initial=0)) + 1)
    radii = certificate.arrays["radius"]
    found, where = np.unique(votes, return_index=True)
    for count_, radius in zip(found.tolist(), radii.ravel()[where].tolist(), strict=True):
        table[count_] = round(radius, 6) if np.isfinite(radius) else None
    return table


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


def _pack(codes: np.ndarray) -> tuple[str, int]:
    top = int(codes.max(initial=0))
    width = 1 if top < 2**8 else 2 if top < 2**16 else 4
    data = zlib.compress(codes.astype(f"<u{width}").tobytes(), 9)
    return base64.b64encode(data).decode("ascii"), width
