"""The report of a run: one HTML file that needs no network, no other file and no particular viewer.

Panels are rendered one at a time into a temporary file, so memory does not grow with their number; the page's head,
which needs the aggregates, is written after them and in front of them. Votes are embedded compressed and only decoded
by the browser for what is on the screen.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from markupsafe import Markup

from certframe.files import disk_error
from certframe.protocols import Certifier, Explanation
from certframe.report import paint, slider, text
from certframe.report.levels import Level, levels
from certframe.report.templates import environment, source

__all__ = ["Page", "Panel", "render", "write"]


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
    """

    method: str
    sigma: float
    explanation: Explanation
    certifier: Certifier
    metrics: Mapping[str, float] = field(default_factory=dict)
    proof: str = ""


@dataclass(frozen=True)
class Page:
    """Everything the report shows.

    Attributes:
        title: the heading.
        panels: grouped by image; gone through once, so a generator that loads one panel at a time will do.
        config: the resolved configuration, nested as one likes.
        provenance: versions, plugins, hashes.
        failures: mappings with ``name`` (of an image) and ``reason``, and ``method`` when it was one method.
        command: what to type to make the run again.
    """

    title: str
    panels: Iterable[Panel]
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    failures: Sequence[Mapping[str, Any]] = ()
    command: str = ""


@dataclass
class _Row:
    """The aggregates of one method, σ and certifier over the images."""

    key: int
    method: str
    sigma: float
    certifier: str
    radius: float
    live: bool
    images: int = 0
    shares: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def certified(self, level: str) -> list[float]:
        """The share of certified pixels of each image."""
        return [one + zero for one, zero in self.shares[level]]

    def important(self, level: str) -> list[float]:
        """The share of pixels certified important of each image."""
        return [one for one, _ in self.shares[level]]


@dataclass
class _Totals:
    """What the head of the page has to know, gathered while the panels go by."""

    rows: dict[tuple[str, float, str], _Row] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    levels: dict[str, None] = field(default_factory=dict)
    taus: set[float] = field(default_factory=set)
    own_taus: list[float] = field(default_factory=list)
    panels: int = 0

    def add(self, panel: Panel, shown: Sequence[Level], data: slider.Slider | None) -> _Row:
        """Count the panel in, and give back its row of the table."""
        certificate = panel.explanation.certificate
        name = (panel.method, panel.sigma, panel.proof or certificate.certifier)
        row = self.rows.setdefault(name, _Row(len(self.rows), *name, certificate.radius, data is not None))
        row.images += 1
        for level in shown:
            self.levels.setdefault(level.name)
            row.shares.setdefault(level.name, []).append((level.one, level.zero))
        for metric, value in panel.metrics.items():
            row.metrics.setdefault(metric, []).append(float(value))
        if data is not None:
            self.taus.update(data.taus)
            self.own_taus.append(data.taus[data.own])
        self.panels += 1
        return row


def render(page: Page) -> str:
    """The page as one string."""
    return "".join(_generate(page))


def write(page: Page, path: Path) -> None:
    """Write the page; the file is complete or absent.

    Raises:
        CertframeError: the disk is full or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(_generate(page))
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise disk_error(error, path) from error


def _generate(page: Page) -> Iterator[str]:
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as spool:
        totals = _spool(page.panels, spool)
        spool.seek(0)
        yield from environment().get_template("page.html").generate(**_head(page, totals), sections=_chunks(spool))


def _spool(panels: Iterable[Panel], spool: IO[str]) -> _Totals:
    totals, template, name = _Totals(), environment().get_template("panel.html"), None
    for panel in panels:
        opens = panel.explanation.name != name
        if opens:
            spool.write("</section>\n" if totals.images else "")
            name = panel.explanation.name
            totals.images.append(name)
        spool.writelines(template.generate(**_panel(panel, totals), opens=opens, image=len(totals.images)))
    spool.write("</section>\n" if totals.images else "")
    return totals


def _chunks(spool: IO[str]) -> Iterator[Markup]:
    while chunk := spool.read(io.DEFAULT_BUFFER_SIZE * 8):
        yield Markup(chunk)


def _panel(panel: Panel, totals: _Totals) -> dict[str, Any]:
    """What panel.html shows; also adds the panel to the totals."""
    explanation = panel.explanation
    data = slider.make(panel.certifier, explanation.certificate, explanation.tally)
    shown = levels(explanation)
    row = totals.add(panel, shown, data)
    return {
        "panel": panel, "explanation": explanation, "certificate": explanation.certificate, "row": row,
        "number": totals.panels, "picture": paint.picture(explanation.image), "heat": paint.heat(explanation.map),
        "shape": explanation.certificate.labels.shape[1:] if shown else (1, 1), "levels": shown,
        "overlay": paint.overlay(explanation.certificate.labels) if shown else None,
        "votes": data and data.votes, "needed": data and _needed(data, shown, explanation.certificate.samples),
        "data": _script_data(panel, row, data, shown),
    }


def _needed(data: slider.Slider, shown: Sequence[Level], samples: int) -> list[str]:
    return [text.votes_needed(threshold, samples, certified_all=level.ones + level.zeros == level.pixels)
            for threshold, level in zip(data.thresholds[data.own], shown, strict=True)]


def _script_data(panel: Panel, row: _Row, data: slider.Slider | None, shown: Sequence[Level]) -> dict[str, Any]:
    """What page.js knows about a panel, besides the votes."""
    certificate = panel.explanation.certificate
    fixed = {"row": row.key, "names": [level.name for level in shown], "colours": [level.rgb for level in shown],
             "shape": [len(shown), *(certificate.labels.shape[1:] if shown else (1, 1))],
             "samples": certificate.samples, "sigma": panel.sigma}
    if data is None:
        areas = [[(level.ones, level.zeros) for level in shown]]
        return {**fixed, "own": 0, "taus": [], "radii": [certificate.radius], "thresholds": [], "areas": areas}
    return {**fixed, "own": data.own, "taus": data.taus, "radii": data.radii, "thresholds": data.thresholds,
            "areas": data.areas, "width": data.width}


def _head(page: Page, totals: _Totals) -> dict[str, Any]:
    style = environment().get_template("page.css").render(
        important=paint.hexadecimal(paint.IMPORTANT), unimportant=paint.hexadecimal(paint.UNIMPORTANT),
        opacity=paint.OVERLAY_OPACITY, grey=paint.GREY_OPACITY)
    script = source("page.js")
    rows = list(totals.rows.values())
    return {
        "page": page, "totals": totals, "rows": rows, "style": Markup(style), "script": Markup(script),
        "policy": "; ".join([
            "default-src 'none'", "img-src data:", f"style-src '{_digest(style)}'", f"script-src '{_digest(script)}'",
            "base-uri 'none'", "form-action 'none'"]),
        "settings": {"important": paint.IMPORTANT, "unimportant": paint.UNIMPORTANT, "taus": sorted(totals.taus),
                     "own": totals.own_taus[0] if totals.own_taus else None},
        "sigmas": sorted({row.sigma for row in rows if row.live}),
        "metrics": list(dict.fromkeys(name for row in rows for name in row.metrics)),
        "certifiers": {row.certifier for row in rows},
    }


def _digest(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
