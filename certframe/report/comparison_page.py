"""The tables of a comparison, in a terminal and as an HTML page whose tables can be sorted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from certframe.comparing import Group, Paired, Summary
from certframe.report.comparison import Drawing, rows_of
from certframe.report.templates import environment
from certframe.statistics.comparisons import CONFIDENCE

SHARES = ("certified", "certified1", "certified0", "abstain")
"""Metrics that are written in percent."""
MOST_PAIRS = 500
"""The most comparisons of two methods that the page shows for a quantity."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, the number that it is sorted by (NaN: last, None: its words), its short form."""

    text: str
    sort: float | None = None
    short: str | None = None


@dataclass(frozen=True)
class Table:
    """A table with its heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]] = field(default_factory=list)
    note: str = ""


def number(value: float) -> Cell:
    """A number, or a dash for NaN, which is sorted after all others."""
    if math.isnan(value):
        return Cell("–", math.nan)
    return Cell(f"{value:.4g}", value)


def mean(s: Summary) -> Cell:
    """``43.1 ± 2.0 % [39.2, 46.9]`` for a share, ``0.52 ± 0.02 [0.48, 0.56]`` for others."""
    scale, unit, form = (100, " %", ".1f") if s.metric in SHARES else (1, "", ".3f")
    if math.isnan(s.standard_error):
        return Cell(f"{scale * s.mean:{form}}{unit}", s.mean)
    short = f"{scale * s.mean:{form}} ± {scale * s.standard_error:{form}}{unit}"
    return Cell(f"{short} [{scale * s.low:{form}}, {scale * s.high:{form}}]", s.mean, short)


def by_level(found: Sequence[Summary], metric: str, title: str) -> Table | None:
    """A row for each data set, model, method, layer and noise level, a column for each K; None when never measured."""
    chosen = [s for s in found if s.metric == metric]
    if not chosen:
        return None
    levels = sorted({s.level for s in chosen if not math.isnan(s.level)}, reverse=True)
    columns = [f"K = {level:g} %" for level in levels] or ["mean"]
    cells = {(s.group, s.level if levels else 0.0): mean(s) for s in chosen}
    order = {row: i for i, row in enumerate(rows_of(chosen))}
    groups = sorted(dict.fromkeys(s.group for s in chosen), key=lambda g: (g.data, g.model, g.sigma, g.certifier,
                                                                          order[g.method, g.layer]))
    images = {s.group: s.images for s in chosen}
    rows = [[Cell(g.data), Cell(g.model), Cell(g.family), Cell(g.method), Cell(g.layer), number(g.sigma),
             number(g.radius), Cell(g.certifier),
             *(cells.get((g, level), Cell("", math.nan)) for level in levels or [0.0]),
             Cell(str(images[g]), images[g])] for g in groups]
    return Table(title, ["data", "model", "family", "method", "layer", "σ", "R", "certifier", *columns, "images"], rows)


TITLES = {
    "certified": "Certified pixels", "certified1": "Certified important pixels",
    "certified0": "Certified unimportant pixels", "certified-gridpg": "Certified GridPG", "gridpg": "GridPG",
    "deletion.auc": "Deletion", "insertion.auc": "Insertion", "mu-fidelity": "µ-fidelity",
    "certified-faithfulness.drop": "Certified faithfulness: drop at the first level",
    "certified-faithfulness.area": "Certified faithfulness: area", "localization.loc": "Localization (Loc)",
    "localization.eg": "Energy game (EG)", "localization.certified-loc": "Certified Loc",
    "localization.certified-eg": "Certified EG", "top-k-overlap.noisy": "Top-K overlap of noisy copies",
    "confidence": "Confidence on the clean image",
}
"""Headings of the metrics that are shown, in this order; others follow under their own names."""
MAIN = tuple(TITLES[name] for name in (
    "certified", "certified-gridpg", "gridpg", "deletion.auc", "insertion.auc", "mu-fidelity",
    "certified-faithfulness.drop", "localization.loc", "localization.certified-loc"))
"""The tables that are printed in a terminal."""
_CURVES = ("deletion.score", "insertion.score", "certified-faithfulness.score", "abstain")


def tables(found: Sequence[Summary]) -> list[Table]:
    """A table for every metric that was measured; curves are drawn instead."""
    measured = dict.fromkeys(s.metric for s in found)
    order = [*(m for m in TITLES if m in measured), *(m for m in measured if m not in TITLES)]
    return [table for metric in order if not metric.startswith(_CURVES) and metric != "certified-gridpg.random"
            and (table := by_level(found, metric, TITLES.get(metric, metric))) is not None]


def differences(found: Sequence[Paired], title: str) -> Table:
    """The comparisons of two methods each; of very many, those with the method that has the highest mean."""
    shown, note = found, ""
    if len(found) > MOST_PAIRS:
        shown = [pair for block in _blocks(found) for pair in _with_the_highest(block)]
        note = (f"The {len(shown)} comparisons with the method of the highest mean, for every data set, model, σ and "
                f"K; all {len(found)} are in paired.csv.")
    rows = [[Cell(p.first.data), Cell(p.first.model), number(p.first.sigma), Cell(p.first.certifier), number(p.level),
             Cell(f"{p.first.method}, {p.first.layer}"), Cell(f"{p.second.method}, {p.second.layer}"),
             number(p.difference), number(p.low), number(p.high), number(p.p), number(p.adjusted),
             Cell(str(p.images), p.images)] for p in shown]
    return Table(title, ["data", "model", "σ", "certifier", "K (%)", "method", "less method", "difference", "low",
                         "high", "p", "p (Holm)", "images"], rows, note)


def _blocks(found: Sequence[Paired]) -> list[list[Paired]]:
    blocks: dict[tuple[object, ...], list[Paired]] = {}
    for p in found:
        g = p.first
        blocks.setdefault((g.run, g.data, g.model, g.sigma, g.certifier, str(p.level)), []).append(p)
    return list(blocks.values())


def _with_the_highest(block: Sequence[Paired]) -> list[Paired]:
    """Its comparisons, as its lead over each of the others."""
    wins: dict[Group, int] = {}
    for p in block:
        wins[p.first] = wins.get(p.first, 0) + (p.difference >= 0)
        wins[p.second] = wins.get(p.second, 0) + (p.difference < 0)
    best = max(wins, key=lambda group: wins[group])
    return [p if p.first == best else p.turned() for p in block if best in (p.first, p.second)]


def write_page(path: Path, runs: Sequence[str], shown: Sequence[Table], drawn: Sequence[tuple[Drawing, Path]]) -> None:
    """Write the page: one file, with its figures inside."""
    from certframe.files import write_atomic

    figures = [{"caption": one.caption, "svg": Markup(_inline(file.read_text(encoding="utf-8"), i))}
               for i, (one, file) in enumerate(drawn)]
    text = environment().get_template("comparison.html").render(
        title="Comparison of certified explanations", runs=runs, tables=shown, figures=figures, confidence=CONFIDENCE)
    write_atomic(path, text.encode())


def _inline(svg: str, number: int) -> str:
    """An SVG for the inside of a page: without declarations, and with names that no other figure has."""
    body = svg[svg.index("<svg"):]
    for name in dict.fromkeys(re.findall(r'\bid="([^"]+)"', body)):
        body = body.replace(f'id="{name}"', f'id="f{number}-{name}"').replace(f'"#{name}"', f'"#f{number}-{name}"')
        body = body.replace(f"url(#{name})", f"url(#f{number}-{name})")
    return body
