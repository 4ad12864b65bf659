"""Commands that plugins bring."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Annotated

import pytest
import typer

from certframe import UsageError, hookimpl
from certframe.registry import Registry, default_registry

MODULE = "made_up_commands"


def greet(name: Annotated[str, typer.Argument(help="whom")],
          loud: Annotated[bool, typer.Option("--loud", help="shout")] = False) -> None:
    """Say hello.

    And say it well.
    """
    if name == "nobody":
        raise UsageError("nobody cannot be greeted: name somebody")
    typer.echo(f"hello {name}{'!' if loud else ''}")


group = typer.Typer(help="Several ways to part.")


@group.command("now")
def now() -> None:
    """Part at once."""
    typer.echo("bye")


@group.command("later")
def later() -> None:
    """Part another time."""


@pytest.fixture
def install(monkeypatch):
    """``install(distribution, **names)``: commands by target, as if a distribution were installed."""
    registry = Registry(external=False)
    module = ModuleType(MODULE)
    module.greet, module.group, module.number = greet, group, 7
    monkeypatch.setitem(sys.modules, MODULE, module)
    for place in ("app", "listing", "describe", "plugin"):
        importlib.import_module(f"certframe.cli.{place}")
        monkeypatch.setattr(sys.modules[f"certframe.cli.{place}"], "default_registry", lambda: registry)

    def add(distribution, **names):
        def certframe_commands(register):
            for name, target in names.items():
                register(name.replace("_", "-"), target, f"summary of {name}")
        registry.add(SimpleNamespace(certframe_commands=hookimpl(certframe_commands)), name=distribution,
                     distribution=distribution, version="2.0")
        return registry

    return add


def test_a_command_is_listed_with_its_owner_and_runs(certframe, install):
    install("hello-dist", greet=f"{MODULE}:greet", part=f"{MODULE}:group")
    text = certframe("--help").out
    assert "From hello-dist 2.0" in text
    assert "summary of greet" in text
    assert "greet summary of greet [hello-dist 2.0]" in " ".join(certframe("list", "commands").out.split())
    assert "command greet" in certframe("plugins").out
    assert certframe("greet", "Ann", "--loud").out == "hello Ann!\n"
    assert certframe("part", "now").out == "bye\n"
    assert "Say hello." in certframe("greet", "--help").out
    described = certframe("describe", "greet").out
    assert "And say it well." in described
    assert "certframe greet --help" in described


def test_mistakes_are_as_those_of_other_commands(certframe, install):
    install("hello-dist", greet=f"{MODULE}:greet")
    refused = certframe("greet", "nobody")
    assert (refused.code, refused.error_lines) == (2, ["error: nobody cannot be greeted: name somebody"])
    wrong = certframe("greet", "Ann", "--quietly")
    assert wrong.code == 2
    assert "Traceback" not in wrong.err


def test_nothing_is_imported_for_the_list(certframe, install):
    install("hello-dist", later="no_such_module_anywhere:command")
    assert "summary of later" in certframe("--help").out
    assert certframe("list", "commands").code == 0
    asked = certframe("later")
    assert asked.code == 2
    assert "command 'later' of hello-dist 2.0 cannot be imported" in asked.error_lines[0]


def test_two_plugins_with_one_name(certframe, install):
    install("a-dist", greet=f"{MODULE}:greet")
    install("b-dist", greet=f"{MODULE}:group")
    refused = certframe("greet", "Ann")
    assert refused.code == 2
    assert "two plugins register the command 'greet': pick one of a-dist/greet, b-dist/greet" in refused.error_lines[0]
    assert certframe("a-dist/greet", "Ann").out == "hello Ann\n"
    assert "a-dist/greet" in certframe("--help").out
    assert "two plugins register the command greet" in certframe("plugins").out


def test_a_built_in_command_is_not_replaced_quietly(certframe, install):
    install("bold-dist", list=f"{MODULE}:greet")
    refused = certframe("list")
    assert refused.code == 2
    assert "certframe/list" in refused.error_lines[0]
    assert "bold-dist/list" in refused.error_lines[0]
    assert certframe("certframe/list", "models").code == 0


def test_a_target_that_is_no_command(certframe, install):
    install("odd-dist", seven=f"{MODULE}:number")
    assert "is neither a function nor a typer.Typer" in certframe("seven").error_lines[0]


def test_a_broken_plugin_is_named_by_the_list(certframe, install):
    install("bad-dist", Bad="no-colon")
    listed = certframe("list", "commands")
    assert listed.code == 0
    assert "what bad-dist registers is not listed, it is broken" in listed.err


@pytest.mark.parametrize("name", ["attack", "audit", "train-robust"])
def test_a_command_that_is_not_installed_says_what_to_install(certframe, install, name):
    install("other-dist", greet=f"{MODULE}:greet")
    asked = certframe(name, "runs/x")
    assert asked.code == 2
    assert "pip install certframe-boundary" in asked.error_lines[0]


def test_the_name_of_a_command_is_not_taken_for_another_kind():
    with pytest.raises(UsageError, match="it is a command, not an attributor"):
        default_registry().find("attributor", "verify")


def test_help_imports_no_torch():
    code = ("import sys\nfrom certframe.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
