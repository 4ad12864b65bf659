"""What a certificate claims, read from its arrays and not from its certifier's name.

The report knows these arrays, whoever made them; L levels, maps of h×w:

    radius        (L,h,w) float, radius of each pixel in pixel units, NaN where it abstains; all radii hold at once
    inner, outer  (h,w) int, index of the smallest level that certainly contains the pixel (−1: none) and of the largest
                  that certainly does not (L: none)
    lower, upper  (h,w) float, ends of the interval of each pixel's score, infinite where there is none
    overlap       (L,K,points) float in [0, 1], share of the top K that stays, with `k` (K,) in percent and
                  `rho` (points,) in pixel units
    rank          (L,h,w) int, worst rank of each pixel, 1 the most important, h·w when nothing is known
    class         [class, votes, certified]
    looks         numbers of copies at which an adaptive certifier looks, with `bounds`, the votes needed there

Labels are shown when they are the claim (`Certificate.about_labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certframe.protocols import Certificate, Explanation
from certframe.report import text
from certframe.statistics.binomial import smoothing_radius


def all_radii(certificate: Certificate) -> bool:
    """Whether the claim holds for every radius at once, so that one may be chosen after looking."""
    return "radius" in certificate.arrays


def is_band(certificate: Certificate) -> bool:
    """Whether the levels place every pixel in a band."""
    return {"inner", "outer"} <= certificate.arrays.keys()


def reach(certificate: Certificate) -> str:
    """How far the claim reaches: ``R = 0.1012 (25.8/255)``, or the range of radii."""
    if all_radii(certificate):
        radii = certificate.arrays["radius"]
        known = radii[np.isfinite(radii)]
        return f"R from {text.radius(float(known.min()))} to {text.radius(float(known.max()))}" if known.size else \
            "no pixel has a radius"
    return f"{'ρ' if certificate.arrays.keys() & {'overlap', 'rank'} else 'R'} = {text.radius(certificate.radius)}"


@dataclass(frozen=True)
class Headline:
    """One number that sums a certificate up.

    Attributes:
        heading: what it is, for all numbers of one table.
        name: what it is about: a level, a K.
        value: NaN when there is none.
        unit: ``share``, ``radius`` (pixel units) or ``number``.
    """

    heading: str
    name: str
    value: float
    unit: str


def headlines(certificate: Certificate, names: Sequence[str]) -> list[Headline]:
    """The numbers of everything but the labels, whose areas `certified-rate` counts.

    Args:
        certificate: of any certifier.
        names: what to call its levels.
    """
    arrays, result = certificate.arrays, []
    if "radius" in arrays:
        result += [Headline("Average certified radius", name, float(np.nan_to_num(radii).mean()), "radius")
                   for name, radii in zip(names, arrays["radius"], strict=True)]
    if "overlap" in arrays:
        at = int(np.searchsorted(arrays["rho"], certificate.radius))
        result += [Headline("Certified overlap with the top K", f"{name}, K = {k:g} %", float(overlap[at]), "share")
                   for name, level in zip(names, arrays["overlap"], strict=True)
                   for k, overlap in zip(arrays["k"], level, strict=True)]
    if "rank" in arrays:
        result += [Headline("Best certified rank, in percent of the pixels", name, float(ranks.min() / ranks.size),
                            "share") for name, ranks in zip(names, arrays["rank"], strict=True)]
    if {"lower", "upper"} <= arrays.keys():
        width = widths(certificate)
        bounded = np.isfinite(width)
        result += [Headline("Certified intervals", "bounded pixels", float(bounded.mean()), "share"),
                   Headline("Certified intervals", "median width where bounded",
                            float(np.median(width[bounded])) if bounded.any() else float("nan"), "number")]
    if "class" in arrays:
        result.append(Headline("Certified class", "share of images", float(arrays["class"][2]), "share"))
    if "looks" in arrays:
        most = f"of at most {arrays['looks'][-1]}"
        result.append(Headline("Copies used", most, float(certificate.samples), "number"))
    return result


def widths(certificate: Certificate) -> np.ndarray:
    """(h,w) width of the intervals, infinite where an end is."""
    return np.asarray(certificate.arrays["upper"] - certificate.arrays["lower"])


@dataclass(frozen=True)
class Badge:
    """Whether the class is certified together with the rest.

    Attributes:
        name: the class.
        certified: whether it is.
        votes: of the copies, how many predict it.
        samples: the copies.
        radius: within which it is certified, in pixel units.
        tau: the probability that its votes prove; None when unknown.
    """

    name: str
    certified: bool
    votes: int
    samples: int
    radius: float
    tau: float | None

    @property
    def verdict(self) -> str:
        """``class certified`` or ``class not certified``."""
        return "class certified" if self.certified else "class not certified"

    @property
    def detail(self) -> str:
        """``100 of 100 votes, R = 0.1012 (25.8/255)``."""
        return f"{self.votes} of {self.samples} votes, R = {text.radius(self.radius)}"


def badge(explanation: Explanation) -> Badge | None:
    """The class certificate that comes with another one, if there is one."""
    certificate = explanation.certificate
    if "class" not in certificate.arrays:
        return None
    _, votes, certified = (int(value) for value in certificate.arrays["class"])
    tau = certificate.options.get("tau")
    radius = certificate.radius if tau is None else smoothing_radius(certificate.sigma, float(tau))
    return Badge(explanation.target_name, bool(certified), votes, certificate.samples, radius, tau)


def validity(certificate: Certificate) -> list[str]:
    """What holds together with which confidence, one sentence each."""
    alpha, levels, arrays = 1.0 - certificate.confidence, len(certificate.levels), certificate.arrays
    jointly = bool(certificate.labels.size) and certificate.family >= certificate.labels.size
    result = []
    if all_radii(certificate):
        result.append("All radii hold at once, each pixel’s own and every smaller one: one may be chosen after "
                      "looking.")
    if "overlap" in arrays:
        result.append("One event covers the whole curve of a level: every K and every ρ hold at once.")
    if alpha > 0 and levels > 1 and "lower" not in arrays:
        result.append(
            f"All {levels} levels hold jointly with this confidence." if jointly else
            f"Each level holds with this confidence by itself; all {levels} hold together with probability at least "
            f"{max(0.0, 1.0 - levels * alpha):.6g}.")
    return result


def band_text(inner: int, outer: int, names: Sequence[str]) -> str:
    """Where a pixel certainly is: ``within top 25 %, outside top 5 %``; ``undecided``. The page's script agrees."""
    parts = [f"within {names[inner]}"] if inner >= 0 else []
    parts += [f"outside {names[outer]}"] if outer < len(names) else []
    return ", ".join(parts) or "undecided"


def bands(certificate: Certificate, names: Sequence[str]) -> list[tuple[str, float]]:
    """The bands that occur with their shares of the pixels, the most important first."""
    inner, outer = certificate.arrays["inner"].ravel(), certificate.arrays["outer"].ravel()
    pairs, counts = np.unique(np.stack([-inner, -outer]), axis=1, return_counts=True)
    return [(band_text(-int(i), -int(o), names), float(count) / inner.size)
            for (i, o), count in zip(pairs.T, counts, strict=True)]
