"""``certframe plugin new`` and ``certframe plugin check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from certframe.cli.options import Json, complete_any
from certframe.errors import UsageError, suggest
from certframe.registry import REGISTERED, default_registry

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Write and check plugins.")


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the new implementation: lower-case letters, digits and -.",
                                        show_default=False)],
    kind: Annotated[str, typer.Option("--kind", help=f"One of {', '.join(REGISTERED)}.",
                                      autocompletion=lambda: list(REGISTERED))] = "attributor",
    directory: Annotated[Path, typer.Option("--directory", help="Where the new distribution's folder goes.")] = Path(),
) -> None:
    """Write a plugin distribution that installs, is found and passes its tests as it stands.

    Example: `certframe plugin new edge-energy --kind attributor`, then `pip install -e certframe-edge-energy` and
    `certframe plugin check edge-energy`
    """
    from certframe.scaffold import create
    for path in create(kind, name, directory):
        typer.echo(path)


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="A plugin's name, or a distribution with all it registers.",
                                        autocompletion=complete_any, show_default=False)],
    as_json: Json = False,
) -> None:
    """Run the conformance checks over a plugin; exit code 1 when one fails.

    Example: `certframe plugin check rise`
    """
    from certframe.testing import run_checks
    registry = default_registry()
    entries = [e for kind in REGISTERED for e in registry.entries(kind)
               if name in (e.name, e.qualified, e.distribution)]
    if not entries:
        broken = [b for b in registry.broken if name in (b.name, b.distribution)]
        if broken:
            raise UsageError(f"plugin '{name}' is broken: {broken[0].reason}")
        known = {word for kind in REGISTERED for e in registry.entries(kind) for word in (e.name, e.distribution)}
        raise UsageError(f"nothing is called '{name}'{suggest(name, known) or ';'} see 'certframe plugins'")
    rows = [{"kind": e.kind, "name": e.name, "check": r.check, "outcome": r.outcome, "message": r.message}
            for e in entries for r in run_checks(e.kind, e.load())]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            colour = {"passed": "green", "failed": "red", "skipped": "yellow"}[row["outcome"]]
            typer.secho(f"{row['outcome']:<8}", fg=colour, nl=False)
            message = f": {row['message']}" if row["message"] else ""
            typer.echo(f"{row['kind']} {row['name']}: {row['check']}{message}")
    failed = sum(row["outcome"] == "failed" for row in rows)
    if failed:
        typer.secho(f"{failed} of {len(rows)} checks failed", err=True, fg="red")
        raise typer.Exit(1)
