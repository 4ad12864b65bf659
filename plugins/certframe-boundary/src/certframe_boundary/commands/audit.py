"""``certframe audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import certframe
from certframe_boundary.commands.common import Json, Quiet, Stop, as_text, options_of, progress, write_json

if TYPE_CHECKING:
    from rich.progress import Progress

ALWAYS = ("method", "claims", "attack", "tested", "differing", "violated")
"""Columns that are printed also when they are the same in every row."""


def audit(
    run: Annotated[Path, typer.Argument(help="Directory that 'certframe run' wrote.", show_default=False)],
    fraction: Annotated[float, typer.Option(help="Part of the certified radius within which is attacked.")] = 0.9,
    samples: Annotated[int | None, typer.Option("--samples", "-n", help="Fresh noisy copies of each attacked image.",
                                                show_default="as many as in the run")] = None,
    alpha: Annotated[float, typer.Option(
        help="Probability of any significant violation at all, were the certificates sound; corrected for the number "
             "of comparisons.")] = 0.01,
    limit: Annotated[int | None, typer.Option(help="Audit the first so many images only.", show_default="all")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the attack on the explanation.")] = 20,
    restarts: Annotated[int, typer.Option(help="Starts of it.")] = 3,
    copies: Annotated[int, typer.Option(help="Noisy copies over which the attacked map is smoothed.")] = 8,
    beta: Annotated[float, typer.Option(help="Sharpness of the softplus copy that is attacked.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of attacks and fresh noise; another one than the run's.")] =
        20260101,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … or auto.",
                                               show_default="as the run says")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack certified images within their radius, count again with fresh noise, and test every claim.

    For every certified image: an attack on the explanation (of a softplus copy; random points of the sphere where the
    method has no gradients) and PGD on the class. Fresh noisy copies of the attacked images then say whether certified
    pixels, ranks, overlaps and classes hold, at a level that is corrected for all comparisons (Bonferroni). None should
    be violated. Exit code 0: none is, 1: some are. The result goes to audit/audit.json in the run, and `certframe
    report` shows it. Ctrl-C keeps what is done; the same command goes on.

    Examples:
    `certframe audit runs/demo`

    `certframe audit runs/demo --fraction 0.99 --samples 2000 --limit 5 --json`
    """
    from certframe_boundary.audit import AuditOptions, Auditor, as_dict, section

    stored = certframe.load_run(run)
    options = options_of(AuditOptions, fraction=fraction, samples=samples, alpha=alpha, limit=limit, steps=steps,
                         restarts=restarts, copies=copies, beta=beta, seed=seed)
    auditor = Auditor(stored, options, device)
    stop = Stop()
    with stop.watched(), progress(quiet=quiet or as_json) as bar:
        found = auditor.carry_out(run / "audit" / "parts", _Heard(bar, stop))
    if found is None:
        typer.echo(f"stopped; the same command resumes it ({run})", err=True)
        raise typer.Exit(130)
    result = as_dict(found, options, run)
    write_json(run / "audit" / "audit.json", result)
    shown = section(found, options)
    stored.save_section("audit", shown)
    if as_json:
        typer.echo(as_text(result), nl=False)
    else:
        _show(shown)
        for line in found.notes:
            typer.echo(f"note: {line}", err=True)
        typer.echo(f"\nresult  {run / 'audit' / 'audit.json'}\nreport  certframe report {run}")
    if found.violated:
        raise typer.Exit(1)


def _show(shown: certframe.Section) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    first = shown.tables[0]
    shown_columns = [i for i, name in enumerate(first.columns)
                     if name in ALWAYS or len({row[i] for row in first.rows}) > 1]
    for i in shown_columns:
        table.add_column(first.columns[i], justify="left" if i == 0 else "right")
    for row in first.rows:
        table.add_row(*("–" if row[i] is None else f"{row[i]:.4g}" if isinstance(row[i], float) else str(row[i])
                        for i in shown_columns))
    console.print(table)
    console.print(f"\n{shown.verdict}", style={"good": "bold green", "bad": "bold red"}.get(shown.state, "bold"))


class _Heard:
    """Shows a bar."""

    def __init__(self, bar: Progress, stop: Stop) -> None:
        self.bar, self.stop = bar, stop
        self.task = bar.add_task("attacking", total=None)

    def begin(self, total: int, done: int) -> None:
        self.bar.update(self.task, total=total, completed=done)

    def advance(self, name: str) -> None:
        self.bar.update(self.task, advance=1, description=name)

    def stopped(self) -> bool:
        return self.stop.wished
