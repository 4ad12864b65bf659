"""One hook per plugin kind, and one for commands.

A plugin is a module (or object) that implements any of these and is announced by an entry point of the group
``certframe``. Each hook receives a function ``register(name, target, summary="")`` and calls it once per
implementation; ``target`` is ``"package.module:Class"`` and is imported only when the name is asked for, so a plugin's
hook module should import nothing heavy.

    from certframe import hookimpl

    @hookimpl
    def certframe_attributors(register):
        register("rise", "certframe_rise.rise:Rise", summary="randomized input sampling")
"""

from __future__ import annotations

from typing import Protocol

import pluggy

PROJECT = "certframe"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """The function that a hook calls for each implementation."""

    def __call__(self, name: str, target: str, summary: str = "") -> None:
        """Announce ``name`` (lower case, digits, ``-``, ``+``), implemented by the class ``"package.module:Class"``.

        For a command the target is a function whose signature Typer understands, or a ``typer.Typer`` of subcommands.
        """
        ...


@hookspec
def certframe_models(register: Register) -> None:
    """Register image classifiers (protocol `certframe.Model`)."""


@hookspec
def certframe_attributors(register: Register) -> None:
    """Register attribution methods (protocol `certframe.Attributor`)."""


@hookspec
def certframe_sparsifiers(register: Register) -> None:
    """Register sparsifiers (protocol `certframe.Sparsifier`)."""


@hookspec
def certframe_certifiers(register: Register) -> None:
    """Register certifiers (protocol `certframe.Certifier`)."""


@hookspec
def certframe_metrics(register: Register) -> None:
    """Register metrics (protocol `certframe.Metric`)."""


@hookspec
def certframe_datasets(register: Register) -> None:
    """Register data sets (protocol `certframe.Dataset`)."""


@hookspec
def certframe_executors(register: Register) -> None:
    """Register executors (protocol `certframe.Executor`)."""


@hookspec
def certframe_commands(register: Register) -> None:
    """Register commands of the program ``certframe``: functions with Typer's annotations, or groups of them."""
