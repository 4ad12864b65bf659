"""``certframe list`` and ``certframe plugins``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from certframe.cli.options import Json
from certframe.errors import UsageError, suggest
from certframe.registry import REGISTERED, default_registry


def _kinds(incomplete: str) -> list[str]:
    return [f"{kind}s" for kind in REGISTERED if kind.startswith(incomplete)]


def list_names(
    kind: Annotated[str | None, typer.Argument(
        help="models, attributors, sparsifiers, certifiers, metrics, datasets, executors or commands; all when"
             " left out.",
        autocompletion=_kinds, show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List what is installed: one name a line, with its summary and owner.

    Examples: `certframe list`, `certframe list attributors`, `certframe list models --json`
    """
    kinds = [_kind(kind)] if kind else list(REGISTERED)
    registry = default_registry()
    entries = [entry for k in kinds for entry in registry.entries(k)]
    if as_json:
        typer.echo(json.dumps([{"kind": e.kind, "name": e.name, "summary": e.summary, "distribution": e.distribution,
                                "version": e.version} for e in entries], indent=2))
        return
    width = max((len(e.name) for e in entries), default=0)
    for k in kinds:
        if not kind:
            typer.secho(f"{k}s", bold=True)
        for entry in registry.entries(k):
            indent = "" if kind else "  "
            typer.echo(f"{indent}{entry.name:<{width}}  {entry.summary}  [{entry.distribution} {entry.version}]")
    for bad in registry.broken:
        typer.secho(f"note: what {bad.distribution} registers is not listed, it is broken: {bad.reason}", err=True)


def _kind(word: str) -> str:
    singular = word.removesuffix("s")
    if singular not in REGISTERED:
        plurals = [f"{kind}s" for kind in REGISTERED]
        raise UsageError(f"{word!r} is not a plugin kind{suggest(word, plurals) or ': ' + ', '.join(plurals)}")
    return singular


def plugins(as_json: Json = False) -> None:
    """Show the installed plugin distributions, what they bring, and which are broken and why."""
    registry = default_registry()
    found = [{"plugin": p.name, "distribution": p.distribution, "version": p.version,
              "provides": [f"{e.kind} {e.name}" for k in REGISTERED for e in registry.entries(k)
                           if e.distribution == p.distribution]} for p in registry.plugins]
    broken = [{"plugin": b.name, "distribution": b.distribution, "version": b.version, "reason": b.reason}
              for b in registry.broken]
    twice = [f"{kind} {name}" for kind in REGISTERED for name in _twice([e.name for e in registry.entries(kind)])]
    if as_json:
        typer.echo(json.dumps({"plugins": found, "broken": broken, "names_with_two_owners": twice}, indent=2))
        return
    for row in found:
        typer.secho(f"{row['distribution']} {row['version']}", bold=True)
        typer.echo(f"  {', '.join(row['provides']) or 'nothing'}")
    for bad in broken:
        typer.secho(f"{bad['distribution']} {bad['version']}: broken", fg="red", bold=True)
        typer.echo(f"  {bad['reason']}")
    for name in twice:
        typer.secho(f"two plugins register the {name}: ask for it as distribution/name", fg="yellow")


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
