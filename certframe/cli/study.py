"""What ``certframe run`` and ``certframe plan`` do with the file of a study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from certframe.cli import options
from certframe.errors import UsageError

if TYPE_CHECKING:
    from certframe.config import RunConfig
    from certframe.planning import Plan
    from certframe.study import Study

_MOST_LINES = 20
"""More failures of a run than this are only counted."""


def is_study(path: Path) -> bool:
    """Whether the file describes a study."""
    from certframe import study
    from certframe.config import read_file

    return study.is_study(read_file(path))


def carry_out(path: Path, overriding: list[str], settings: Mapping[str, Any], out: Path | None, *, allocator: bool,
              retry: bool, quiet: bool, as_json: bool) -> None:
    """Do what is not done yet, list what failed, and exit with 1 if anything did."""
    from certframe.cli.progress import Terminal, interruptible
    from certframe.pipeline import execute
    from certframe.study import StudyListener, execute_study

    study, out = _read(path, overriding, settings), out or _default(path)
    options.tune(study.runs[0].config, allocator=allocator)
    if retry:
        _forget_failures(study, out)
    quiet = quiet or as_json

    class Heard(StudyListener):
        def run(self, number: int, total: int, folder: str) -> None:
            if not quiet:
                typer.echo(f"run {number} of {total}: {folder}", err=True)

        def failed(self, folder: str, reason: str) -> None:
            typer.secho(f"{folder} failed: {reason}", err=True, fg="red")

    def one(config: RunConfig, place: Path) -> None:
        with Terminal(quiet=quiet) as terminal:
            execute(config, place, listener=terminal, keep_going=True)

    try:
        with interruptible():
            execute_study(study, out, one, Heard())
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command resumes it ({out})", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror or error}") from error
    _conclude(study, out, quiet=quiet, as_json=as_json)


def plans(path: Path, overriding: list[str], settings: Mapping[str, Any], out: Path | None, *, allocator: bool,
          probe: bool) -> Iterator[tuple[str, Plan]]:
    """Folder and plan of every run of the study.

    Raises:
        UsageError: a run cannot certify anything.
    """
    from certframe.planning import plan_run

    study, out = _read(path, overriding, settings), out or _default(path)
    options.tune(study.runs[0].config, allocator=allocator)
    for run in study.runs:
        try:
            yield run.folder, plan_run(run.config, out / run.folder, probe=probe)
        except UsageError as error:
            raise UsageError(f"{run.folder}: {error}") from error


def _read(path: Path, overriding: list[str], settings: Mapping[str, Any]) -> Study:
    from certframe.study import read_study

    return read_study(path, overriding, settings={name: value for name, value in settings.items()
                                                  if value not in (None, [])})


def _default(path: Path) -> Path:
    return Path("runs") / path.stem


def _forget_failures(study: Study, out: Path) -> None:
    from certframe.store import load_run

    for run in study.runs:
        if (out / run.folder / "run.json").exists():
            load_run(out / run.folder).clear_failures()


@dataclass(frozen=True)
class _State:
    """How far a run of a study is: `failed` says why it could not be made."""

    run: str
    images: int
    failed: str | None
    failures: list[dict[str, Any]]


def _states(study: Study, out: Path) -> list[_State]:
    from certframe.store import load_run

    found = []
    for run in study.runs:
        place = out / run.folder
        stored = load_run(place) if (place / "run.json").exists() else None
        complete = sum(stored.is_done(key) for key in stored.image_keys()) if stored else 0
        found.append(_State(run.folder, complete, study.failures.get(run.folder), stored.failures() if stored else []))
    return found


def _conclude(study: Study, out: Path, *, quiet: bool, as_json: bool) -> None:
    """The runs, and everything that failed."""
    states = _states(study, out)
    if as_json:
        typer.echo(json.dumps({"study": str(out), "runs": [asdict(state) for state in states]}, indent=2))
    elif not quiet:
        for state in states:
            typer.echo(f"{state.run}: {state.failed or f'{state.images} images complete'}")
        typer.echo(f"\nstudy    {out}\ncompare  certframe compare {out}")
    for state in states:
        if state.failures and not quiet:
            typer.secho(f"{state.run}: {len(state.failures)} failures", err=True, fg="yellow")
            for failure in state.failures[:_MOST_LINES]:
                part = f", {failure['part']}" if "part" in failure else ""
                typer.echo(f"  {failure['name']}{part}: {failure['reason']}", err=True)
            if len(state.failures) > _MOST_LINES:
                more = len(state.failures) - _MOST_LINES
                typer.echo(f"  … and {more} more in {out / state.run / 'failures'}", err=True)
    if any(state.failures or state.failed for state in states):
        typer.echo("what failed on an image is not tried again, unless with --retry", err=True)
        raise typer.Exit(1)
