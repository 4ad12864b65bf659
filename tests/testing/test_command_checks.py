"""The checks of commands find what they are for."""

from __future__ import annotations

import sys
from typing import Annotated

import pytest
import typer

from certframe.testing import run_checks


def sound(name: Annotated[str, typer.Argument(help="whom")] = "you") -> None:
    """Say hello."""


def mute(name: str = "you") -> None:
    """Say hello."""


def without_docstring() -> None: ...


def outcome(command, check):
    return next(r.outcome for r in run_checks("command", command) if r.check == check)


def test_a_sound_command_passes():
    assert [r.check for r in run_checks("command", sound)] == ["is-a-command", "says-what-it-does",
                                                               "shows-its-help-fast"]
    assert outcome(sound, "is-a-command") == outcome(sound, "says-what-it-does") == "passed"


@pytest.mark.parametrize("command", [mute, without_docstring])
def test_missing_help_fails(command):
    assert outcome(command, "says-what-it-does") == "failed"


@pytest.mark.parametrize("command", [7, dict])
def test_what_is_no_command_fails(command):
    assert outcome(command, "is-a-command") == "failed"


def test_importing_torch_for_the_help_fails(tmp_path, monkeypatch):
    (tmp_path / "heavy_command.py").write_text('import torch\n\n\ndef heavy() -> None:\n    """Be heavy."""\n')
    (tmp_path / "light_command.py").write_text('def light() -> None:\n    """Be light."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import heavy_command
    import light_command
    try:
        assert outcome(heavy_command.heavy, "shows-its-help-fast") == "failed"
        assert outcome(light_command.light, "shows-its-help-fast") == "passed"
    finally:
        del sys.modules["heavy_command"], sys.modules["light_command"]


def test_a_group_passes_with_its_subcommands():
    group = typer.Typer(help="Two.")
    group.command("a")(sound)
    group.command("b")(mute)
    assert outcome(group, "says-what-it-does") == "failed"
