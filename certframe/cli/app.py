"""The application object and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from certframe.cli import certify, compare, describe, listing, plan, plugin, report, run, verify

app = typer.Typer(
    name="certframe", no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Certified explanations: which pixels of an image *provably* drive a classifier's decision, and how far the "
         "proof reaches.\n\nStart with `certframe run`: it explains three photographs and writes an HTML report.")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version
        typer.echo(f"certframe {version('certframe')}")
        raise typer.Exit()


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                help="Show the version and exit.")] = False) -> None:
    """Options of the program itself."""


app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("certify")(certify.certify)
app.command("verify")(verify.verify)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("list")(listing.list_names)
app.command("describe")(describe.describe)
app.command("plugins")(listing.plugins)
app.add_typer(plugin.app, name="plugin")
