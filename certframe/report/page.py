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
from certframe.report import chart, claim, levels, paint, plates, slider, text
from certframe.report.levels import Level
from certframe.report.templates import environment, source
from certframe.report.totals import Panel, Row, Totals
from certframe.sections import Section

__all__ = ["Page", "Panel", "render", "write"]


@dataclass(frozen=True)
class Page:
    """Everything the report shows.

    Attributes:
        title: the heading.
        panels: grouped by image, and for an image by method and σ; gone through once, so a generator that loads one
            panel at a time will do.
        config: the resolved configuration, nested as one likes.
        provenance: versions, plugins, hashes.
        failures: mappings with ``name`` (of an image) and ``reason``, and ``method`` when it was one method.
        command: what to type to make the run again.
        sections: what commands have added, below the images.
    """

    title: str
    panels: Iterable[Panel]
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    failures: Sequence[Mapping[str, Any]] = ()
    command: str = ""
    sections: Sequence[Section] = ()


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


def _spool(panels: Iterable[Panel], spool: IO[str]) -> Totals:
    totals, template, image, group = Totals(), environment().get_template("panel.html"), None, None
    codes: dict[str, int] = {}
    for panel in panels:
        opens_image = panel.explanation.name != image
        opens_group = opens_image or (panel.method, panel.sigma) != group
        if opens_group:
            spool.write("</div></div></div>\n" if totals.panels else "")
            group = (panel.method, panel.sigma)
            codes = {}
        if opens_image:
            spool.write("</section>\n" if totals.panels else "")
            image = panel.explanation.name
            totals.images.append(image)
        spool.writelines(template.generate(**_panel(panel, totals, codes), opens_image=opens_image,
                                           opens_group=opens_group, image=len(totals.images)))
    spool.write("</div></div></div>\n</section>\n" if totals.panels else "")
    return totals


def _chunks(spool: IO[str]) -> Iterator[Markup]:
    while chunk := spool.read(io.DEFAULT_BUFFER_SIZE * 8):
        yield Markup(chunk)


def _panel(panel: Panel, totals: Totals, codes: dict[str, int]) -> dict[str, Any]:
    """What panel.html shows; also adds the panel to the totals and its codes to those of its group."""
    explanation = panel.explanation
    certificate, names = explanation.certificate, text.level_names(explanation)
    data = slider.make(panel.certifier, certificate, explanation.tally)
    shown = levels.levels(explanation)
    row = totals.add(panel, shown, data)
    known = data is not None and data.codes in codes
    source = None if data is None else codes.setdefault(data.codes, totals.panels)
    drawn = chart.charts(explanation, panel.certifier)
    return {
        "panel": panel, "explanation": explanation, "certificate": certificate, "row": row,
        "metrics": dict(panel.metrics),
        "number": totals.panels, "picture": paint.picture(explanation.image), "heat": paint.heat(explanation.map),
        "shape": certificate.labels.shape[1:] if shown else (1, 1), "levels": shown, "names": names,
        "overlay": levels.overlay(explanation), "legend": levels.legend(explanation),
        "is_band": claim.is_band(certificate), "all_radii": claim.all_radii(certificate),
        "bands": claim.bands(certificate, names) if claim.is_band(certificate) else (),
        "reach": claim.reach(certificate), "badge": claim.badge(explanation), "validity": claim.validity(certificate),
        "planned": int(certificate.arrays["looks"][-1]) if "looks" in certificate.arrays else None,
        "rows_of_plates": plates.rows(explanation), "charts": drawn,
        "live": data is not None, "codes": None if known or data is None else data.codes, "source": source,
        "needed": data and _needed(data, shown, certificate.samples),
        "data": _script_data(panel, row, data, shown),
    }


def _needed(data: slider.Slider, shown: Sequence[Level], samples: int) -> list[str]:
    if not data.thresholds:
        return []
    return [text.votes_needed(threshold, samples, certified_all=level.ones + level.zeros == level.pixels)
            for threshold, level in zip(data.thresholds[data.own], shown, strict=True)]


def _script_data(panel: Panel, row: Row, data: slider.Slider | None, shown: Sequence[Level]) -> dict[str, Any]:
    """What page.js knows about a panel, besides the codes."""
    certificate = panel.explanation.certificate
    fixed = {"row": row.key, "method": row.method, "sigma": panel.sigma, "certifier": row.certifier,
             "names": [level.name for level in shown], "colours": [level.rgb for level in shown],
             "shape": [len(shown), *(certificate.labels.shape[1:] if shown else (1, 1))],
             "samples": certificate.samples, "anyRadius": claim.all_radii(certificate),
             "outside": paint.outside_colours(len(shown)) if claim.is_band(certificate) else None}
    if data is None:
        areas = [[(level.ones, level.zeros) for level in shown]]
        return {**fixed, "own": 0, "taus": [], "radii": [certificate.radius], "areas": areas}
    return {**fixed, "own": data.own, "taus": data.taus, "radii": data.radii, "areas": data.areas, "width": data.width,
            "thresholds": data.thresholds, "table": data.table, "classes": data.classes, "voteRadii": data.vote_radii}


def _head(page: Page, totals: Totals) -> dict[str, Any]:
    style = environment().get_template("page.css").render(
        important=paint.hexadecimal(paint.IMPORTANT), unimportant=paint.hexadecimal(paint.UNIMPORTANT),
        opacity=paint.OVERLAY_OPACITY, grey=paint.GREY_OPACITY)
    script = source("page.js")
    rows = list(totals.rows.values())
    live = [row for row in rows if row.live]
    return {
        "page": page, "totals": totals, "rows": rows, "style": Markup(style), "script": Markup(script),
        "policy": "; ".join([
            "default-src 'none'", "img-src data:", f"style-src '{_digest(style)}'", f"script-src '{_digest(script)}'",
            "base-uri 'none'", "form-action 'none'"]),
        "settings": {"important": paint.IMPORTANT, "unimportant": paint.UNIMPORTANT, "taus": sorted(totals.taus),
                     "own": totals.own_taus[0] if totals.own_taus else min(totals.taus, default=None)},
        "labelled": [row for row in rows if row.shares],
        "sigmas": sorted({row.sigma for row in live}),
        "one_radius": list(dict.fromkeys(row.certifier for row in live if not row.any_radius)),
        "any_radius": list(dict.fromkeys(row.certifier for row in live if row.any_radius)),
        "metrics": list(dict.fromkeys(name for row in rows for name in row.metrics)),
        "cells": list(dict.fromkeys((row.method, row.sigma) for row in rows)),
        "certifiers": list(dict.fromkeys(row.certifier for row in rows)),
    }


def _digest(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
