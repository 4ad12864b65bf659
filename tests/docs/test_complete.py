"""Nothing that a user or plugin author can use is missing from the documentation, and nothing there is made up."""

from __future__ import annotations

import inspect
import re

import generate
import pytest

import certframe
import certframe.testing
from certframe import hookspecs
from certframe.cli.app import walk
from certframe.config import Request
from certframe.registry import HOOKS, REGISTERED, default_registry

HOOK_NAMES = [name for name, value in vars(hookspecs).items() if hasattr(value, "certframe_spec")]
ENTRIES = [entry for kind in HOOKS for entry in default_registry().entries(kind)
           if entry.distribution in generate.first_party()]


def test_the_list_of_hooks_is_not_empty():
    assert sorted(HOOK_NAMES) == sorted(REGISTERED.values())


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_every_hook_is_documented_with_an_example(pages, hook):
    page = pages["docs/reference/hooks.md"]
    section = page.split(f"## `{hook}(register)`")[1].split("\n## ")[0]
    assert f"def {hook}(register" in section
    assert inspect.getdoc(getattr(hookspecs, hook)) in section
    kind = hook.removeprefix("certframe_").removesuffix("s")
    assert f"def {hook}(register" in pages[f"docs/plugins/{kind}.md"]


COMMANDS = [(name, command) for name, command, entry in walk()
            if entry is None or entry.distribution in generate.first_party()]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_command_and_option_is_documented(pages, name, command):
    section = pages["docs/reference/cli.md"].split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    first_line = inspect.cleandoc(command.help).splitlines()[0]
    assert first_line in section
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.opts} has no help"
        shown = [f"`{parameter.name.upper()}`"] if parameter.param_type_name == "argument" else \
            [f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts)]
        row = next(line for line in section.splitlines() if line.startswith("| ") and shown[0] in line)
        assert all(option in row for option in shown)
        assert " ".join(parameter.help.split()) in row.replace("\\|", "|")


@pytest.mark.parametrize("entry", [e for e in default_registry().entries("command")
                                   if e.distribution in generate.first_party()], ids=lambda e: e.name)
def test_every_command_of_a_plugin_is_documented_with_its_owner(pages, entry):
    assert entry.summary.endswith((".", "?"))
    if entry.distribution != "certframe":
        section = pages["docs/reference/cli.md"].split(f"\n## `certframe {entry.name}`\n")[1].split("\n## ")[0]
        assert f"Comes with the package `{entry.distribution}`." in section
        assert f"`{entry.name}`" in pages["README.md"], "list it in the README's table"


def test_no_command_is_documented_that_does_not_exist(pages):
    documented = set(re.findall(r"^## `(certframe[^`]*)`$", pages["docs/reference/cli.md"], re.MULTILINE))
    assert documented == {name for name, _ in COMMANDS}


def _documented(page):
    return set(re.findall(r"^::: (\S+)$", page, re.MULTILINE)) | set(re.findall(r"`(certframe\.hookimpl)`", page))


def test_every_public_name_is_in_the_api(pages):
    public = {f"certframe.{name}" for name in certframe.__all__}
    public |= {f"certframe.testing.{name}" for name in certframe.testing.__all__}
    assert _documented(pages["docs/reference/api.md"]) == public


@pytest.mark.parametrize("name", certframe.__all__)
def test_every_public_name_has_a_docstring(name):
    value = getattr(certframe, name)
    if callable(value) and name != "hookimpl":
        assert inspect.getdoc(value)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.kind}-{e.name}")
def test_every_first_party_plugin_is_documented(pages, entry):
    options = pages["docs/reference/options.md"].split(f"\n## {entry.kind.capitalize()}s\n")[1].split("\n## ")[0]
    section = options.split(f"\n### `{entry.name}` ")[1].split("\n### ")[0]
    assert entry.summary in section
    for name, field in entry.load().Options.model_fields.items():
        row = next(line for line in section.splitlines() if line.startswith(f"| `{entry.kind}.{name}` |"))
        assert " ".join(field.description.split()) in row.replace("\\|", "|")
    assert f"`{entry.name}`" in pages["docs/methods.md"], "list it in docs/methods.md"
    assert re.search(rf"`{re.escape(entry.name)}[:`]", pages["README.md"]), "list it in the README's table"


def test_no_plugin_is_documented_that_does_not_exist(pages):
    documented = re.findall(r"^### `([^`]+)` \{#(\w+)-", pages["docs/reference/options.md"], re.MULTILINE)
    assert sorted(documented) == sorted((e.name, e.kind) for e in ENTRIES)


@pytest.mark.parametrize("name", [name for name in Request.model_fields if name != "options"])
def test_every_setting_is_documented(pages, name):
    section = pages["docs/reference/options.md"].split("## Settings of a run")[1].split("\n## ")[0]
    row = next(line for line in section.splitlines() if line.startswith(f"| `{name}` |"))
    assert Request.model_fields[name].description in row


def test_run_directory_page_names_every_place_and_column(pages):
    from certframe import store
    page = pages["docs/run-directory.md"]
    for line in inspect.getdoc(store).splitlines():
        if line.startswith("    "):
            assert line.split()[0].split("/")[0] in page
    assert all(f"`{column}`" in page for column in store.LEDGER.names)
    assert f"`format` ({store.FORMAT})" in page
    from certframe.config import EXECUTION
    assert all(f"`{setting}`" in page for setting in EXECUTION)
