"""Maps of numbers that a certificate proves, or is made from, each with its colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certframe.protocols import Explanation
from certframe.report import claim, paint, text


@dataclass(frozen=True)
class Plate:
    """One map.

    Attributes:
        title: what it is of, a level for instance.
        heat: the picture; hatching shows where it is transparent.
        low: what to write at the beginning of the colour bar.
        high: what to write at its end.
        detail: lines below.
    """

    title: str
    heat: paint.Heat
    low: str
    high: str
    detail: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """Maps that belong together.

    Attributes:
        title: what they show.
        plates: the maps.
        hatched: what hatching means in them; empty when there is none.
    """

    title: str
    plates: Sequence[Plate]
    hatched: str = ""


def rows(explanation: Explanation) -> list[Row]:
    """All rows of maps of an explanation, besides the labels; none for a certificate of labels alone."""
    arrays, result = explanation.certificate.arrays, []
    if "radius" in arrays:
        result.append(_radii(explanation))
    if "rank" in arrays:
        result.append(_ranks(explanation))
    if {"lower", "upper"} <= arrays.keys():
        result.append(_intervals(explanation))
    if "overlap" in arrays or ("rank" in arrays and explanation.tally.unit != 1):
        result.append(_smoothed(explanation))
    return result


def _radii(explanation: Explanation) -> Row:
    radii = explanation.certificate.arrays["radius"]
    high = float(np.nanmax(radii)) if np.isfinite(radii).any() else 0.0
    return Row("certified radius, pixel units", [
        Plate(name, paint.measure(level, 0.0, high), "0", text.radius(high),
              (f"on average {text.radius(float(np.nan_to_num(level).mean()))}",))
        for name, level in zip(text.level_names(explanation), radii, strict=True)], hatched="abstain")


def _ranks(explanation: Explanation) -> Row:
    ranks = explanation.certificate.arrays["rank"]
    size = ranks[0].size
    low = int(ranks.min()) if (ranks < size).any() else 1
    known = np.where(ranks < size, ranks.astype(np.float64), np.nan)
    return Row("certified rank, 1 the most important; logarithmic colours", [
        Plate(name, paint.measure(level, low, size, "rank", logarithmic=True), str(low), str(size),
              (f"best {int(all_ranks.min())} (top {text.percent(float(all_ranks.min()) / size)})",
               f"{text.percent(float(np.isfinite(level).mean()))} have a bound"))
        for name, level, all_ranks in zip(text.level_names(explanation), known, ranks, strict=True)],
        hatched="no bound")


def _intervals(explanation: Explanation) -> Row:
    certificate = explanation.certificate
    ends = {"lower end": certificate.arrays["lower"], "upper end": certificate.arrays["upper"]}
    finite = np.concatenate([values[np.isfinite(values)] for values in ends.values()])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    plates = [Plate(name, paint.measure(values, low, high, "one-sided"), text.plain(low), text.plain(high),
                    (f"{text.percent(float(np.isfinite(values).mean()))} have one",)) for name, values in ends.items()]
    width = claim.widths(certificate)
    widest = float(width[np.isfinite(width)].max()) if np.isfinite(width).any() else 0.0
    middle = text.plain(float(np.median(width[np.isfinite(width)]))) if np.isfinite(width).any() else "none"
    plates.append(Plate("width", paint.measure(width, 0.0, widest), "0", text.plain(widest),
                        (f"{text.percent(float(np.isfinite(width).mean()))} bounded", f"median {middle}")))
    what = certificate.options.get("p")
    quantile = "" if what is None else " of the median" if what == 0.5 else f" of the {what:g}-quantile"
    return Row(f"certified interval{quantile}", plates, hatched="infinite")


def _smoothed(explanation: Explanation) -> Row:
    tally, plates = explanation.tally, []
    for name, mean in zip(text.level_names(explanation), tally.mean, strict=True):
        heat = paint.heat(mean)
        plates.append(Plate(name, heat, text.plain(heat.low), f"{'≥ ' if heat.clipped else ''}{text.plain(heat.high)}"))
    what = "share" if tally.unit == 1 else "mean"
    return Row(f"smoothed map, as estimated: {what} over {tally.samples} copies", plates)
