"""What the head of the report has to know about all panels, gathered while they go by one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from certframe.protocols import Certifier, Explanation
from certframe.report import claim, slider, text
from certframe.report.levels import Level


@dataclass(frozen=True)
class Panel:
    """One attribution method at one σ on one image.

    Attributes:
        method: what to call the attributor; panels with one method, σ and proof make one row of the table.
        sigma: standard deviation of the noise in pixel units.
        explanation: what was found.
        certifier: the instance that made the certificate; with ``evidence`` and ``vote_thresholds`` the panel follows
            the slider, without them it shows the certificate as it is.
        metrics: name → value.
        proof: what to call the certifier; its name when empty.
        stopped: why no more copies were drawn.
    """

    method: str
    sigma: float
    explanation: Explanation
    certifier: Certifier
    metrics: Mapping[str, float] = field(default_factory=dict)
    proof: str = ""
    stopped: str = ""


@dataclass(frozen=True)
class Table:
    """Numbers that sum certificates up: the rows that have them, and the columns' names."""

    heading: str
    columns: list[str]
    rows: list[Row]


@dataclass
class Row:
    """The aggregates of one method, σ and certifier over the images."""

    key: int
    method: str
    sigma: float
    certifier: str
    reach: str
    live: bool
    any_radius: bool
    images: int = 0
    shares: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    headlines: dict[str, dict[str, tuple[str, list[float]]]] = field(default_factory=dict)

    def certified(self, level: str) -> list[float]:
        """The share of certified pixels of each image."""
        return [one + zero for one, zero in self.shares[level]]

    def important(self, level: str) -> list[float]:
        """The share of pixels certified important of each image."""
        return [one for one, _ in self.shares[level]]


@dataclass
class Totals:
    """What the head of the page has to know, gathered while the panels go by."""

    rows: dict[tuple[str, float, str], Row] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    levels: dict[str, None] = field(default_factory=dict)
    taus: set[float] = field(default_factory=set)
    own_taus: list[float] = field(default_factory=list)
    panels: int = 0

    def add(self, panel: Panel, shown: Sequence[Level], data: slider.Slider | None) -> Row:
        """Count the panel in, and give back its row of the table."""
        certificate = panel.explanation.certificate
        name = (panel.method, panel.sigma, panel.proof or certificate.certifier)
        all_radii = claim.all_radii(certificate)
        row = self.rows.setdefault(name, Row(
            len(self.rows), *name, "each pixel’s own" if all_radii else text.radius(certificate.radius),
            data is not None, all_radii))
        row.images += 1
        for level in shown:
            self.levels.setdefault(level.name)
            row.shares.setdefault(level.name, []).append((level.one, level.zero))
        for metric, value in panel.metrics.items():
            row.metrics.setdefault(metric, []).append(float(value))
        for found in claim.headlines(certificate, text.level_names(panel.explanation)):
            row.headlines.setdefault(found.heading, {}).setdefault(found.name, (found.unit, []))[1].append(found.value)
        if data is not None:
            self.taus.update(data.taus)
            if not all_radii:
                self.own_taus.append(data.taus[data.own])
        self.panels += 1
        return row

    def tables(self) -> list[Table]:
        """The tables of headlines."""
        result = []
        for heading in dict.fromkeys(heading for row in self.rows.values() for heading in row.headlines):
            members = [row for row in self.rows.values() if heading in row.headlines]
            columns = list(dict.fromkeys(name for row in members for name in row.headlines[heading]))
            result.append(Table(heading, columns, members))
        return result
