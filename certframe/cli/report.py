"""``certframe report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from certframe.cli import options


def report(
    run: options.RunDirectory,
    out: Annotated[Path | None, typer.Option(help="The HTML file.", show_default="<run>/report.html")] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the HTML report of a run again, also of one that is not finished.

    Example: `certframe report runs/demo --open`
    """
    from certframe.report.of_run import write_report
    from certframe.store import load_run

    path = write_report(load_run(run), path=out)
    typer.echo(path)
    if open_it:
        typer.launch(str(path))
