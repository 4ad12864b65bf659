"""What a command prints at its end: tables, JSON, and the gates of --fail-under."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from certframe.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from certframe.report.claim import Headline
    from certframe.store import Run
    from certframe.summary import Mean
    from certframe.worker import CellSpec

GATE_NOT_MET = 3
_MOST_COLUMNS = 6
"""More levels than this become rows."""


def parse_gates(texts: Sequence[str] | None) -> list[tuple[str, float]]:
    """``METRIC=VALUE`` texts, checked before any work."""
    gates = []
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            gates.append((name.strip(), float(value)))
        except ValueError:
            raise UsageError(f"--fail-under {text!r} is not METRIC=VALUE, such as certified-rate=0.3") from None
    return gates


@dataclass
class Outcome:
    """What a run says of one method, noise level and certifier, over its images.

    Attributes:
        method: what to call the method, with `sigma`.
        proof: what to call the certifier; `certifier` is its key in the ledger.
        shares: level → share of certified pixels of each image; none when labels are not what is claimed.
        headlines: the other numbers of the certificates, one list for each image.
    """

    cell: CellSpec
    method: str
    certifier: str
    proof: str
    about_labels: bool = True
    shares: dict[str, list[float]] = field(default_factory=dict)
    headlines: list[list[Headline]] = field(default_factory=list)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in pixel units."""
        return self.cell.sigma

    def tables(self) -> dict[str, dict[str, tuple[str, list[float]]]]:
        """Heading → name → unit and values of the images."""
        result: dict[str, dict[str, tuple[str, list[float]]]] = {}
        for one in (headline for image in self.headlines for headline in image):
            result.setdefault(one.heading, {}).setdefault(one.name, (one.unit, []))[1].append(one.value)
        return result


def outcomes(run: Run, certifiers: Sequence[str]) -> list[Outcome]:
    """What there is to say, in the order of the configuration, from the certificates."""
    from certframe.config import distinct
    from certframe.report import claim, text
    from certframe.worker import cells_of
    proofs = run.certifier_names()
    methods, sparsifier, result = distinct(run.config.attributor), run.config.sparsifier.fingerprint, []
    for cell in cells_of(run.config):
        for key in certifiers:
            one = Outcome(cell, methods[cell.attributor], key, proofs.get(key, key))
            for image in run.image_keys():
                if not run.ledger_path(image, cell.key, key).exists():
                    continue
                certificate = run.certificate(image, cell.key, key)
                names = [text.level_name(level, sparsifier) for level in certificate.levels]
                one.headlines.append(claim.headlines(certificate, names))
                one.about_labels = certificate.about_labels
                for name, labels in zip(names, certificate.labels if one.about_labels else (), strict=False):
                    share = float((labels == 1).mean()) + float((labels == 0).mean())
                    one.shares.setdefault(name, []).append(share)
            if one.headlines:
                result.append(one)
    return result


def show_tables(found: Sequence[Outcome]) -> None:
    """Certified rates per method and noise level, and what else is certified, mean ± standard error over the images.

    Written as in the report.
    """
    from rich.console import Console

    from certframe.report import text
    several, console = len({one.certifier for one in found}) > 1, Console()
    labelled = [one for one in found if one.about_labels]
    printed = []
    if labelled:
        levels = list(dict.fromkeys(level for one in labelled for level in one.shares))
        cells = [[text.percent_error(one.shares[level]) if level in one.shares else "" for level in levels]
                 for one in labelled]
        printed.append(("certified pixels", _table(labelled, levels, cells, several)))
    for heading in dict.fromkeys(heading for one in found for heading in one.tables()):
        members = [one for one in found if heading in one.tables()]
        names = list(dict.fromkeys(name for one in members for name in one.tables()[heading]))
        cells = [[_quantity(one.tables()[heading].get(name)) for name in names] for one in members]
        printed.append((heading[:1].lower() + heading[1:], _table(members, names, cells, several)))
    for i, (heading, table) in enumerate(printed):
        console.print(("\n" if i else "") + heading, style="bold", markup=False, highlight=False)
        console.print(table)


def _quantity(found: tuple[str, list[float]] | None) -> str:
    from certframe.report import text
    return "" if found is None else text.quantity_error(found[1], found[0])


def _table(rows: Sequence[Outcome], names: Sequence[str], cells: Sequence[Sequence[str]],
           several: bool) -> Table:
    from rich.table import Table
    from rich.text import Text
    table = Table(box=None, header_style="bold", pad_edge=False)
    heads = [("method", [one.method for one in rows]), ("σ", [f"{one.sigma:g}" for one in rows])]
    if several:
        heads.append(("certifier", [one.proof for one in rows]))
    if len(names) <= _MOST_COLUMNS:
        for name, _ in heads:
            table.add_column(Text(name), justify="right" if name == "σ" else "left", no_wrap=True)
        for name in names:
            table.add_column(Text(name), justify="right")
        for i, line in enumerate(cells):
            table.add_row(*(Text(values[i]) for _, values in heads), *map(Text, line))
        return table
    table.add_column("")
    for i in range(len(rows)):
        table.add_column(Text("\n".join(values[i] for _, values in heads)), justify="right")
    for at, name in enumerate(names):
        table.add_row(Text(name), *(Text(line[at]) for line in cells))
    return table


def means(run: Run, found: Sequence[Outcome]) -> list[Mean]:
    """The means of the metrics."""
    from certframe.summary import summarise
    certifiers = {one.certifier for one in found}
    return [m for m in summarise(run.table()) if m.certifier in certifiers]


def as_json(run: Run, found: Sequence[Outcome], metrics: Sequence[Mean], report: Path | None) -> str:
    """The outcome for scripts."""
    from certframe.report import text
    rows: list[dict[str, Any]] = [{
        "attributor": m.attributor, "cell": m.cell, "sigma": m.sigma, "certifier": m.certifier, "metric": m.metric,
        "mean": m.mean, "standard_error": None if math.isnan(m.standard_error) else m.standard_error,
        "images": m.images} for m in metrics]
    headlines = []
    for one in found:
        for heading, columns in one.tables().items():
            for name, (unit, values) in columns.items():
                there = [value for value in values if not math.isnan(value)]
                mean, error = text.mean_error(there) if there else (None, None)
                headlines.append({"attributor": run.config.attributor[one.cell.attributor].name, "cell": one.cell.key,
                                  "sigma": one.sigma, "certifier": one.certifier, "heading": heading, "name": name,
                                  "unit": unit, "mean": mean, "standard_error": error, "images": len(there)})
    return json.dumps({"run": str(run.path), "report": str(report) if report else None, "failures": run.failures(),
                       "metrics": rows, "headlines": headlines}, indent=2)


def failed_gates(found: Sequence[Mean], gates: Sequence[tuple[str, float]]) -> list[str]:
    """One line for each gate that is not met by each method and noise level.

    ``certified-rate`` is the mean of ``certified.K`` over all K.

    Raises:
        UsageError: nothing of that name was measured.
    """
    lines = []
    for name, bound in gates:
        chosen = [m for m in found
                  if m.metric == name or (name == "certified-rate" and m.metric.startswith("certified."))]
        if not chosen:
            known = ", ".join(sorted({m.metric for m in found}))
            raise UsageError(f"--fail-under: nothing called '{name}' was measured; there are certified-rate, {known}")
        for key in dict.fromkeys((m.attributor, m.sigma, m.certifier) for m in chosen):
            values = [m.mean for m in chosen if (m.attributor, m.sigma, m.certifier) == key]
            value = sum(values) / len(values)
            if value < bound:
                lines.append(f"{name} of {key[0]} at σ = {key[1]:g} is {value:.4g}, below {bound:g}")
    return lines


def conclude(run: Run, certifiers: Sequence[str], *, json_wanted: bool, report: Path | None,
             gates: Sequence[tuple[str, float]], quiet: bool = False) -> None:
    """Print the outcome and exit with 3 for a gate that is not met, 1 when images failed."""
    found = outcomes(run, certifiers)
    metrics = means(run, found)
    if json_wanted:
        typer.echo(as_json(run, found, metrics, report))
    elif not quiet:
        show_tables(found)
        typer.echo(f"\nrun     {run.path}")
        if report:
            typer.echo(f"report  {report}")
    below = failed_gates(metrics, gates)
    for line in below:
        typer.secho(f"gate not met: {line}", err=True, fg="red")
    if below:
        raise typer.Exit(GATE_NOT_MET)
    failures = run.failures()
    if failures:
        typer.secho(f"{len(failures)} of the images could not be used; the others are done", err=True, fg="yellow")
        raise typer.Exit(1)
