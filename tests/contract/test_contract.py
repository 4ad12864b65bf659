"""Everything that is registered keeps its contract: built-ins and installed plugins alike, never a typed-out list."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from certframe.protocols import KINDS
from certframe.registry import Entry, default_registry
from certframe.testing import Check, Subject, checks_for, settle

ENTRIES = [entry for kind in KINDS for entry in default_registry().entries(kind)]


def _name(entry: Entry) -> str:
    return entry.name if entry.distribution == "certframe" else entry.qualified


@functools.cache
def _subject(entry: Entry, directory: Path) -> Subject:
    return Subject(entry.kind, entry.load(), directory=directory)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """``folder(entry)``: the folder for files that its options need."""
    return functools.cache(lambda entry: tmp_path_factory.mktemp(f"{entry.kind}-{entry.name}".replace("+", "-")))


@pytest.fixture(autouse=True)
def _one_thread():
    """For models as small as the kit's more threads are slower, and far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("entry", "check"), [
    pytest.param(entry, check, id=f"{entry.kind}-{_name(entry)}-{check.name}")
    for entry in ENTRIES for check in checks_for(entry.kind)])
def test_registered(entry: Entry, check: Check, folder) -> None:
    settle(check.run(_subject(entry, folder(entry))))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}-{_name(entry)}")
def test_summary(entry: Entry) -> None:
    """`certframe list` has something to say about it."""
    assert entry.summary.strip()
    assert "\n" not in entry.summary


def test_every_kind_has_an_implementation_here() -> None:
    assert {entry.kind for entry in ENTRIES} == set(KINDS)


def test_no_plugin_is_broken() -> None:
    assert default_registry().broken == []


@pytest.mark.parametrize("check", [c for c in checks_for("attributor") if c.function.__module__.endswith("attributor")],
                         ids=lambda c: c.name)
@pytest.mark.parametrize("entry", default_registry().entries("attributor"), ids=_name)
def test_attributors_on_the_trained_digits(entry: Entry, check: Check) -> None:
    """The kit's model has random weights; this one has learnt something, and is cut by tracing."""
    digits = default_registry().find("model", "digits").load()
    subject = Subject("attributor", entry.load(), model=lambda: digits(digits.Options()))
    settle(check.run(subject))


COMMANDS = default_registry().entries("command")


@pytest.mark.parametrize(("entry", "check"), [
    pytest.param(entry, check, id=f"{entry.qualified}-{check.name}")
    for entry in COMMANDS for check in checks_for("command")])
def test_registered_command(entry: Entry, check: Check) -> None:
    settle(check.run(Subject("command", entry.load())))
    assert entry.summary.strip()
