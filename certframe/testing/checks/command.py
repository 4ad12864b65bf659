"""What is demanded of a command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer

from certframe.testing.kit import NotApplicable, Subject, check, require

_HELP = """
import importlib, sys, typer
try:
    target = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
except ModuleNotFoundError as error:
    sys.exit(4 if error.name and f"{sys.argv[1]}.".startswith(f"{error.name}.") else 1)
program = typer.Typer(add_completion=False)
program.add_typer(target) if isinstance(target, typer.Typer) else program.command()(target)
typer.main.get_command(program)
sys.exit(3 if "torch" in sys.modules else 0)
"""


def _commands(subject: Subject) -> Iterator[tuple[str, Any]]:
    """The command as Typer reads it, and its subcommands."""
    program = typer.Typer(add_completion=False)
    if isinstance(subject.cls, typer.Typer):
        program.add_typer(subject.cls, name="command")
    else:
        program.command("command")(subject.cls)
        program.callback()(lambda: None)
    waiting = [("the command", typer.main.get_command(program).commands["command"])]  # type: ignore[attr-defined]
    while waiting:
        name, command = waiting.pop()
        yield name, command
        waiting += [(f"the subcommand '{child}'", sub) for child, sub in getattr(command, "commands", {}).items()]


@check("command", static=True)
def is_a_command(subject: Subject) -> None:
    """It is a function whose parameters Typer can read from the command line, or a `typer.Typer` of such functions."""
    require(callable(subject.cls) and not isinstance(subject.cls, type),
            f"it is a {type(subject.cls).__name__}, neither a function nor a typer.Typer")
    require(bool(list(_commands(subject))), "Typer makes no command of it")


@check("command", static=True)
def says_what_it_does(subject: Subject) -> None:
    """The command, every subcommand, every argument and every option have a help text."""
    for name, command in _commands(subject):
        require(bool((command.help or "").strip()), f"{name} has no docstring for its help")
        for parameter in command.params:
            require(bool((getattr(parameter, "help", None) or "").strip()), f"{name}: {parameter.name} has no help")


@check("command", static=True)
def shows_its_help_fast(subject: Subject) -> None:
    """Its module does not import torch before the command is called: help and completion have to be quick."""
    module = getattr(subject.cls, "__module__", "")
    name = getattr(subject.cls, "__name__", "")
    found = sys.modules.get(module)
    if not name or getattr(found, name, None) is not subject.cls or not getattr(found, "__file__", None):
        raise NotApplicable("it is not a function of a module that can be imported by its name")
    done = subprocess.run([sys.executable, "-c", _HELP, module, name], capture_output=True, text=True, check=False)
    if done.returncode == 4:
        raise NotApplicable(f"{module} is not where another process would find it")
    require(done.returncode != 3, f"importing {module} imports torch: import it inside the function")
    require(done.returncode == 0, f"{module} cannot be imported by itself: {done.stderr.strip().splitlines()[-1:]}")
