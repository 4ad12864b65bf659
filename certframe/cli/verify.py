"""``certframe verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from certframe.cli import options

if TYPE_CHECKING:
    from certframe.checking import Check
    from certframe.verification import Verification

SHOWN = 5
"""So many lines are printed of each kind of finding; all are in the JSON."""
MARKS = {"agrees": ("✓", "green"), "differs": ("✗", "red"), "not checked": ("–", "yellow")}


def verify(
    run: options.RunDirectory,
    share: Annotated[float, typer.Option(help="Share of the noisy copies that are drawn and explained again, chosen at "
                                              "random; 0 to 1.")] = 0.1,
    model: Annotated[bool, typer.Option("--model/--no-model", help="Leave out all that needs the model.")] = True,
    seed: Annotated[int | None, typer.Option(help="Seed of the choice.", show_default="a new one each time")] = None,
    tolerance: Annotated[float | None, typer.Option(
        help="Share of the redrawn counts that may differ, for other hardware.",
        show_default="0 on the type of machine that made the run, 0.001 on another")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … or auto.",
                                               show_default="as the run says")] = None,
    as_json: options.Json = False,
) -> None:
    """Check a run: is everything in it what it was, and does it follow from the images and the model?

    Hashes find files that were changed. Certificates are computed again from the tallies and metrics from the
    certificates. The model explains a random share of the noisy copies again, and the counts have to be the same. Exit
    code 0: all that could be checked agrees, 1: something differs.

    Examples:
    `certframe verify runs/demo`

    `certframe verify runs/demo --share 1` draws every copy again.

    `certframe verify runs/demo --no-model --json`
    """
    import json
    import secrets

    from certframe.store import load_run
    from certframe.verification import verify as check

    stored = load_run(run)
    if model:
        options.tune(stored.config.model_copy(update={"device": device or stored.config.device}), allocator=True)
    with _Progress(shown=not as_json) as progress:
        found = check(stored, share=share, model=model, tolerance=tolerance, device=device, listener=progress,
                      seed=secrets.randbelow(2**31) if seed is None else seed)
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=2))
    else:
        _conclude(found)
    if not found.ok:
        raise typer.Exit(1)


def as_dict(found: Verification) -> dict[str, Any]:
    """The outcome for scripts."""
    return {"run": str(found.path), "ok": found.ok, "complete": found.complete, "seed": found.seed,
            "checks": [{"name": c.name, "state": c.state, "text": c.text, "findings": list(c.findings),
                        "unchecked": list(c.unchecked), "notes": list(c.notes)} for c in found.checks]}


def _conclude(found: Verification) -> None:
    wrong = sum(len(check.findings) for check in found.checks)
    if wrong:
        typer.secho(f"\n{wrong} {'thing differs' if wrong == 1 else 'things differ'}", fg="red", bold=True)
    else:
        rest = "" if found.complete else "; not everything could be checked"
        typer.secho(f"\nall that was checked agrees{rest}", fg="green", bold=True)


class _Progress:
    """A listener (`certframe.checking.Listener`): a line for every check, and a bar for the one under way."""

    def __init__(self, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        self._shown, self._console = shown, Console(highlight=False, soft_wrap=True)
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                             TimeRemainingColumn(compact=True), console=self._console, transient=True,
                             disable=not (shown and self._console.is_terminal))
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> _Progress:
        self._bar.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.__exit__(None, None, None)

    def begin(self, what: str, total: int) -> None:
        """Show the bar."""
        self._bar.reset(self._task, total=total, description=what, visible=total > 0)

    def advance(self, steps: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, steps)

    def done(self, check: Check) -> None:
        """Print the check, with what it found."""
        if not self._shown:
            return
        self._bar.update(self._task, visible=False)
        mark, colour = MARKS[check.state]
        self._console.print(f"[{colour}]{mark}[/] [bold]{check.name:<12}[/] {_escaped(check.text)}")
        for lines, style in ((check.findings, "red"), (check.unchecked, "yellow"), (check.notes, "dim")):
            for line in lines[:SHOWN]:
                self._console.print(f"{'':<15}[{style}]{_escaped(line)}[/]")
            if len(lines) > SHOWN:
                self._console.print(f"{'':<15}[{style}]and {len(lines) - SHOWN:,} more, all in --json[/]")


def _escaped(text: str) -> str:
    from rich.markup import escape
    return escape(text)
