"""Curves of a certificate: data for the SVG of the page, for matplotlib, and for Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from certframe.protocols import Certifier, Explanation
from certframe.report import claim, paint, text
from certframe.tally import Tally

_POINTS = 96
"""A curve has about so many points at most."""


@dataclass(frozen=True)
class Line:
    """One curve: x increasing, y a share in [0, 1].

    Attributes:
        name: for the legend.
        rgb: its colour.
        x: abscissae.
        y: ordinates.
        dashed: drawn with dashes.
        stepped: a value is proven for all abscissae up to its own, so it is drawn as steps and nothing is interpolated.
        value: what the legend says it is at the mark; empty when there is no mark.
    """

    name: str
    rgb: paint.Colour
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    stepped: bool = False
    value: str = ""

    @property
    def points(self) -> list[tuple[float, float]]:
        """The corners of the curve as it is drawn."""
        points = list(zip(self.x, self.y, strict=True))
        if not self.stepped:
            return points
        return points[:1] + [point for (x, _), (next_x, y) in pairwise(points) for point in ((x, y), (next_x, y))]

    @property
    def colour(self) -> str:
        """The colour as hexadecimal text."""
        return paint.hexadecimal(self.rgb)


@dataclass(frozen=True)
class Chart:
    """Curves over one axis; the ordinate is a share from 0 to 1.

    Attributes:
        title: what is shown.
        x_name: label of the abscissa, with its unit.
        y_name: label of the ordinate.
        lines: the curves.
        x_max: end of the abscissa, which begins at 0.
        mark: abscissa of a vertical line, with `mark_name` what it says; None for no line.
        ticks: abscissae to mark and write; round numbers when empty.
        unused_from: the abscissa beyond which nothing was needed any more, drawn hatched; None for none.
        follows_slider: whether the mark is where the slider is.
        wide: whether it takes the whole width; its drawing is `width`×`height` units of about a CSS pixel.
        first: whether it is shown before the maps, because it is the claim itself.
        compact: whether the whole width is that of a small screen.
    """

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    x_max: float
    mark: float | None = None
    mark_name: str = ""
    ticks: Sequence[float] = field(default=())
    unused_from: float | None = None
    follows_slider: bool = False
    wide: bool = False
    first: bool = False
    compact: bool = False
    height: int = 232

    LEFT, RIGHT, TOP, BOTTOM = 38, 10, 24, 36
    """Margins around the axes."""

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is in the drawing."""
        return (round(self.LEFT + x * self.unit, 2),
                round(self.TOP + (1.0 - y) * (self.height - self.TOP - self.BOTTOM), 2))

    @property
    def width(self) -> int:
        """Of the drawing; the height is given."""
        return 220 if not self.wide else 340 if self.compact else 840

    def narrow(self) -> Chart:
        """The same for a narrow window, so that its text need not shrink."""
        return replace(self, compact=True)

    @property
    def unit(self) -> float:
        """Units of the drawing per unit of the abscissa."""
        return (self.width - self.LEFT - self.RIGHT) / self.x_max if self.x_max > 0.0 else 0.0

    def path(self, line: Line) -> str:
        """The curve as the ``d`` of an SVG path."""
        return "M" + "L".join("{:g} {:g}".format(*self.at(x, y)) for x, y in line.points)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Abscissae to mark and what to write there."""
        if self.ticks:
            # Looks lie close together at the beginning: only those with room for them are written.
            written: list[float] = []
            for tick in reversed(self.ticks):
                if not written or (written[-1] - tick) * self.unit >= 34:
                    written.append(tick)
            return [(tick, f"{tick:g}" if tick in written else "") for tick in self.ticks]
        step = _round_step(self.x_max / max(2, self.width // 70))
        return [(i * step, f"{i * step:.6g}") for i in range(math.floor(self.x_max / step + 1e-9) + 1)] if step else []

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Ordinates to mark and what to write there."""
        step = 0.25 if self.height >= 160 else 0.5
        return [(i * step, f"{100 * i * step:.0f} %") for i in range(round(1 / step) + 1)]


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    if step <= 0.0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= step * (1 - 1e-9))


def charts(explanation: Explanation, certifier: Certifier | None = None) -> list[Chart]:
    """The curves of a certificate; that of an adaptive one needs the certifier, for what it knew at each look."""
    arrays, result = explanation.certificate.arrays, []
    if "radius" in arrays and np.isfinite(arrays["radius"]).any():
        result.append(_area_by_radius(explanation))
    if "overlap" in arrays:
        result.append(_overlap(explanation))
    if "rank" in arrays:
        result.append(_ranks(explanation))
    if {"lower", "upper"} <= arrays.keys() and np.isfinite(claim.widths(explanation.certificate)).any():
        result.append(_widths(explanation))
    if "looks" in arrays and certifier is not None and len(arrays["looks"]) > 1:
        result.append(_looks(explanation, certifier))
    return result


def _area_by_radius(explanation: Explanation) -> Chart:
    names, radii = text.level_names(explanation), explanation.certificate.arrays["radius"]
    lines = [Line(name, rgb, *_at_least(level[np.isfinite(level)], level.size))
             for name, rgb, level in zip(names, paint.line_colours(len(names)), radii, strict=True)]
    return Chart("certified area", "R, pixel units", "pixels certified within R", lines, float(np.nanmax(radii)) * 1.04,
                 mark=0.0, follows_slider=True)


def _at_least(values: np.ndarray, total: int) -> tuple[list[float], list[float]]:
    """Steps of the share of values that are at least x."""
    steps, counts = np.unique(values, return_counts=True)
    share = counts[::-1].cumsum()[::-1] / total
    x = np.repeat(np.append(0.0, steps), 2)[1:]
    y = np.repeat(np.append(share, 0.0), 2)[:-1] if share.size else np.zeros(1)
    return _thin(x[: y.size], y)


def _at_most(values: np.ndarray, total: int, end: float) -> tuple[list[float], list[float]]:
    """Steps of the share of values that are at most x, up to `end`."""
    steps, counts = np.unique(values, return_counts=True)
    share = counts.cumsum() / total
    x = np.append(0.0, np.repeat(steps, 2))
    y = np.append(np.repeat(np.append(0.0, share[:-1]), 2), share[-1:]) if share.size else np.zeros(1)
    return _thin(np.append(x, end), np.append(y, y[-1]))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), 4 * _POINTS)).round().astype(int))
    return [float(v) for v in x[keep]], [float(v) for v in y[keep]]


def _overlap(explanation: Explanation) -> Chart:
    certificate, names = explanation.certificate, text.level_names(explanation)
    rho, tops = certificate.arrays["rho"], certificate.arrays["k"]
    at, colours, lines = int(np.searchsorted(rho, certificate.radius)), paint.line_colours(len(names)), []
    for name, rgb, level in zip(names, colours, certificate.arrays["overlap"], strict=True):
        for i, (k, overlap) in enumerate(zip(tops, level, strict=True)):
            lines.append(Line(f"{name}, K = {k:g} %", rgb, [float(v) for v in rho], [float(v) for v in overlap],
                              dashed=i % 2 == 1, stepped=True, value=text.percent(float(overlap[at]))))
    return Chart("certified overlap", "ρ, pixel units", "share of the top K that stays", lines, float(rho[-1]),
                 mark=certificate.radius, mark_name=f"ρ = {certificate.radius:g}", wide=True, first=True, height=260)


def _ranks(explanation: Explanation) -> Chart:
    names, ranks = text.level_names(explanation), explanation.certificate.arrays["rank"]
    size = ranks[0].size
    lines = [Line(name, rgb, *_at_most(level[level < size] / size, size, 1.0))
             for name, rgb, level in zip(names, paint.line_colours(len(names)), ranks, strict=True)]
    best = Line("best possible", (128, 128, 124), [0.0, 1.0], [0.0, 1.0], dashed=True)
    return Chart("pixels by certified rank", "rank / number of pixels", "pixels at or above it", [*lines, best], 1.0)


def _widths(explanation: Explanation) -> Chart:
    width = claim.widths(explanation.certificate)
    finite = width[np.isfinite(width)]
    end = float(finite.max()) * 1.04
    line = Line("all pixels", paint.IMPORTANT, *_at_most(finite, width.size, end))
    return Chart("pixels by width", "width of the interval", "pixels at most so wide", [line], end or 1.0)


def _looks(explanation: Explanation, certifier: Certifier) -> Chart:
    """What was certified at each look: the certificate of the counts up to there."""
    certificate, tally, names = explanation.certificate, explanation.tally, text.level_names(explanation)
    looks = [int(n) for n in certificate.arrays["looks"]]
    taken = [n for n in looks if n < tally.samples and n in tally.cuts]
    shares = [(certifier.certify(_first(tally, n)).labels >= 0).mean(axis=(1, 2)) for n in taken]
    shares.append((certificate.labels >= 0).mean(axis=(1, 2)))
    x = [0.0, *np.repeat([float(n) for n in (*taken, tally.samples)], 2).tolist()]
    lines = []
    for level, (name, rgb) in enumerate(zip(names, paint.line_colours(len(names)), strict=True)):
        y = np.repeat([0.0, *(float(share[level]) for share in shares)], 2)[:-1].tolist()
        lines.append(Line(name, rgb, x, y, value=text.percent(y[-1])))
    stop = float(tally.samples) if tally.samples < looks[-1] else None
    return Chart("looks", "noisy copies", "certified after so many copies", lines, float(looks[-1]), mark=stop,
                 unused_from=stop, ticks=[float(n) for n in looks], wide=True, height=140)


def _first(tally: Tally, copies: int) -> Tally:
    """The tally as it was after so many copies: later segments are empty."""
    parts = tally.cuts.index(copies) + 1
    segments = tally.segments.copy()
    segments[parts:] = 0
    votes = None if tally.votes is None else tally.votes.copy()
    if votes is not None:
        votes[parts:] = 0
    return replace(tally, segments=segments, votes=votes, copies=((0, copies),))
