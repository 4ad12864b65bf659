"""What a command prints at its end: a table of means, JSON, and the gates of --fail-under."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from certframe.errors import UsageError

if TYPE_CHECKING:
    from certframe.store import Run
    from certframe.summary import Mean

GATE_NOT_MET = 3


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


def means(run: Run, certifiers: Sequence[str]) -> list[Mean]:
    """The means of a run for some certifiers."""
    from certframe.summary import summarise
    return [m for m in summarise(run.table()) if m.certifier in certifiers]


def show_table(found: Sequence[Mean]) -> None:
    """Certified rates per method and noise level, mean ± standard error over the images."""
    from rich.console import Console
    from rich.table import Table
    metrics = [m for m in dict.fromkeys(m.metric for m in found) if m.startswith("certified.")]
    several = len({m.certifier for m in found}) > 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("method")
    table.add_column("σ", justify="right")
    if several:
        table.add_column("certifier")
    for metric in metrics:
        table.add_column(f"certified, K = {metric.removeprefix('certified.')} %", justify="right")
    for key in dict.fromkeys((m.cell, m.certifier) for m in found):
        rows = {m.metric: m for m in found if (m.cell, m.certifier) == key}
        first = next(iter(rows.values()))
        cells = [_percent(rows[metric]) if metric in rows else "" for metric in metrics]
        table.add_row(first.attributor, f"{first.sigma:g}", *([first.certifier] if several else []), *cells)
    Console().print(table)


def _percent(mean: Mean) -> str:
    error = "" if math.isnan(mean.standard_error) else f" ± {100 * mean.standard_error:.1f}"
    return f"{100 * mean.mean:.1f}{error} %"


def as_json(run: Run, found: Sequence[Mean], report: Path | None) -> str:
    """The outcome for scripts."""
    rows: list[dict[str, Any]] = [{
        "attributor": m.attributor, "cell": m.cell, "sigma": m.sigma, "certifier": m.certifier, "metric": m.metric,
        "mean": m.mean, "standard_error": None if math.isnan(m.standard_error) else m.standard_error,
        "images": m.images} for m in found]
    return json.dumps({"run": str(run.path), "report": str(report) if report else None, "failures": run.failures(),
                       "metrics": rows}, indent=2)


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
    found = means(run, certifiers)
    if json_wanted:
        typer.echo(as_json(run, found, report))
    elif not quiet:
        show_table(found)
        typer.echo(f"\nrun     {run.path}")
        if report:
            typer.echo(f"report  {report}")
    below = failed_gates(found, gates)
    for line in below:
        typer.secho(f"gate not met: {line}", err=True, fg="red")
    if below:
        raise typer.Exit(GATE_NOT_MET)
    failures = run.failures()
    if failures:
        typer.secho(f"{len(failures)} of the images could not be used; the others are done", err=True, fg="yellow")
        raise typer.Exit(1)
