"""The application object: its commands are those that certframe and the plugins register.

A command is imported when it is called or its own help is shown. ``certframe --help`` shows the summaries that came
with the names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from certframe.registry import Entry, default_registry

HELP_NAMES = ["-h", "--help"]


class Commands(TyperGroup):
    """The registered commands; a name with two owners is listed, and called, as ``distribution/name``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, certframe's own first."""
        return default_registry().names("command")

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What the help and the completion show of a command, without importing it; None when there is none."""
        entry = next((e for e in default_registry().entries("command") if cmd_name in (e.name, e.qualified)), None)
        if entry is None:
            return None
        panel = None if entry.distribution == "certframe" else f"From {entry.distribution} {entry.version}"
        return TyperCommand(cmd_name, help=entry.summary, rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the command that the words begin with.

        Raises:
            UsageError: there is no such command, two plugins register it, or it cannot be imported.
        """
        if ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            return None, None, args  # a word that is being completed
        return args[0], command_of(default_registry().find("command", args[0])), args[1:]


def command_of(entry: Entry) -> Any:
    """Import a command and let Typer read it.

    Raises:
        UsageError: it cannot be imported, or is not a command.
    """
    target = entry.load()
    program = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False,
                          context_settings={"help_option_names": HELP_NAMES})
    if isinstance(target, typer.Typer):
        program.add_typer(target, name=entry.name)
    else:
        program.command(entry.name)(target)
        program.callback()(_nothing)  # or Typer takes the one command for the program
    return typer.main.get_command(program).commands[entry.name]  # type: ignore[attr-defined]


def _nothing() -> None:
    pass


def walk() -> Iterator[tuple[str, Any, Entry | None]]:
    """The program and every command, subcommands included: full name, command and who registers it."""
    program = typer.main.get_command(app)
    yield "certframe", program, None
    for entry in default_registry().entries("command"):
        for name, command in _below(f"certframe {entry.name}", command_of(entry)):
            yield name, command, entry


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, sub in getattr(command, "commands", {}).items():
        yield from _below(f"{name} {child}", sub)


app = typer.Typer(
    name="certframe", cls=Commands, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP_NAMES},
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
