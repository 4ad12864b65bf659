"""reference/cli.md: every command, argument, option, default and exit code, from the Typer application."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import md

from certframe.cli.app import walk
from certframe.cli.outcome import GATE_NOT_MET
from certframe.errors import CertframeError, UsageError

_WORDS = {int: "integer", float: "number", str: "text", Path: "path"}
EXIT_CODES = (
    (0, "done"),
    (CertframeError.exit_code, "the work failed or images could not be used (what was finished is kept), or `plugin "
                               "check`, `verify` or `audit` found something wrong"),
    (UsageError.exit_code, "wrong use: a name, an option, a file or a value; nothing has been written"),
    (GATE_NOT_MET, "a gate of `--fail-under` was not met"),
    (130, "stopped by the user (Ctrl-C or SIGTERM); the same command resumes the run"),
)


def commands(distributions: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Every command of these distributions, subcommands included: full name, command object and whose it is."""
    for name, command, entry in walk():
        owner = entry.distribution if entry else "certframe"
        if owner in distributions:
            yield name, command, owner


def page(distributions: Sequence[str]) -> str:
    """The whole page."""
    parts = [md.NOTICE, "# Command line\n\n",
             "`certframe COMMAND --help` (or `-h`) prints what is below; `python -m certframe` is the same program. "
             "Completion of commands, options and plugin names is installed with `certframe --install-completion`.\n\n",
             "## Exit codes\n\n", md.table(("code", "meaning"), [(str(c), text) for c, text in EXIT_CODES])]
    found = list(commands(distributions))
    top = [(name, command) for name, command, _ in found if name.count(" ") == 1]
    parts += [_section(name, command, owner, top if name == "certframe" else _children(name, command))
              for name, command, owner in found]
    return "".join(parts)


def _children(name: str, command: Any) -> list[tuple[str, Any]]:
    return [(f"{name} {child}", sub) for child, sub in getattr(command, "commands", {}).items()]


def _section(name: str, command: Any, owner: str, children: Sequence[tuple[str, Any]]) -> str:
    parts = [f"\n## `{name}`\n\n```text\n{usage(name, command, bool(children))}\n```\n\n"]
    if owner != "certframe":
        parts.append(f"Comes with the package `{owner}`.\n\n")
    parts += [inspect.cleandoc(command.help or ""), "\n"]
    rows = [(f"[`{child}`](#{_anchor(child)})", _first_line(sub.help)) for child, sub in children]
    parts.append(_titled("Commands", md.table(("command", ""), rows)))
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    rows = [(md.code(p.name.upper()), "needed" if p.required else default(p), p.help or "") for p in arguments]
    parts.append(_titled("Arguments", md.table(("argument", "default", "meaning"), rows)))
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    for panel in dict.fromkeys(p.rich_help_panel for p in options):
        here = [p for p in options if p.rich_help_panel == panel]
        chosen = [(_names(p), kind(command, p), default(p), p.help or "") for p in here]
        parts.append(_titled(panel or "Options", md.table(("option", "value", "default", "meaning"), chosen)))
    return "".join(parts)


def usage(name: str, command: Any, group: bool) -> str:
    """The usage line."""
    words = [name]
    if any(p.param_type_name == "option" for p in command.params):
        words.append("[OPTIONS]")
    words += [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in command.params
              if p.param_type_name == "argument"]
    return " ".join([*words, "COMMAND …"] if group else words)


def default(parameter: Any) -> str:
    """The default as the help shows it; empty when there is none."""
    shown, value = parameter.show_default, parameter.default
    if isinstance(shown, str):
        return md.code(shown)
    if value is None or value is False or value == () or not shown or callable(value):
        return ""
    if value is True:
        return md.code(parameter.opts[0]) if parameter.secondary_opts else ""
    return md.code(str(value))


def kind(command: Any, parameter: Any) -> str:
    """What a value of the option looks like, from the type of the function's parameter."""
    if parameter.metavar:
        word = md.code(parameter.metavar)
    else:
        annotation = typing.get_type_hints(inspect.unwrap(command.callback)).get(parameter.name, bool) \
            if command.callback else bool
        word = _word(annotation)
    return f"{word}, may be repeated" if parameter.multiple else word


def _word(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType):
        return _word(next(a for a in typing.get_args(annotation) if a is not type(None)))
    if typing.get_origin(annotation) is list:
        return _word(typing.get_args(annotation)[0])
    return _WORDS.get(annotation, "")


def _names(parameter: Any) -> str:
    return ", ".join(md.code(name) for name in (*parameter.opts, *parameter.secondary_opts))


def _titled(title: str, content: str) -> str:
    return f"\n**{title}**\n\n{content}" if content else ""


def _anchor(title: str) -> str:
    return title.replace(" ", "-")


def _first_line(text: str | None) -> str:
    return inspect.cleandoc(text or "").split("\n\n")[0].replace("\n", " ")
