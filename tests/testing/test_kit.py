"""Running checks: reports, exceptions, pytest tests, options and folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import Field

from certframe import protocols
from certframe.errors import UsageError
from certframe.protocols import KINDS, Sample
from certframe.testing import (
    ConformanceError,
    NotApplicable,
    Subject,
    Violation,
    check_plugin,
    checks_for,
    run_checks,
)
from certframe.testing.emulated_device import EmulationUnavailable
from certframe.testing.kit import Check


class Ones:
    """A metric that is always one."""

    class Options(protocols.Options):
        """Options."""

        value: float = Field(1.0, description="the one")

    requires: frozenset[str] = frozenset()

    def __init__(self, options: Options) -> None:
        self.options = options

    def compute(self, explanation):
        return {"one": self.options.value}


class Nothing(Ones):
    """A metric of nothing."""

    def compute(self, explanation):
        return {}


@pytest.mark.parametrize("kind", KINDS)
def test_checks_have_names_and_say_what_they_demand_in_one_sentence(kind):
    checks = checks_for(kind)
    assert len({c.name for c in checks}) == len(checks) > 10
    for check in checks:
        assert check.name.replace("-", "").isalnum()
        assert check.demand.endswith(".")
        assert len(check.demand.split()) > 5
        assert "\n" not in check.demand


def test_an_unknown_kind_is_refused_in_one_line():
    for call in (lambda: checks_for("metrics"), lambda: run_checks("metrics", Ones)):
        with pytest.raises(UsageError, match="unknown plugin kind 'metrics': it is one of model, attributor"):
            call()


def test_a_report_lists_failures_and_skipped_checks_with_their_reasons():
    report = run_checks("metric", Nothing, plugin="nothing")
    assert not report.ok
    assert [r.check for r in report.failures] == ["values", "empty-certificates"]
    assert [r.check for r in report.skipped] == ["device"]
    assert [r.check for r in report] == [c.name for c in checks_for("metric")]
    lines = str(report).splitlines()
    assert lines[0] == f"metric nothing: {len(report.results) - 3} passed, 2 failed, 1 skipped"
    assert lines[1].startswith("  failed values: compute() returns {}")
    assert lines[1].endswith("they become the columns of a table.]")
    assert lines[3] == "  skipped device: the metric does not use the model"
    assert json.dumps([(r.check, r.outcome, r.message) for r in report])


def test_check_plugin_raises_with_all_failures():
    with pytest.raises(ConformanceError, match=r"(?s)failed values.*failed empty-certificates"):
        check_plugin("metric", Nothing)
    assert check_plugin("metric", Ones).ok


def test_the_name_of_a_report_is_by_default_the_class():
    assert run_checks("metric", Ones).plugin.endswith("Ones")


@pytest.mark.parametrize(("raised", "outcome", "message"), [
    (None, "passed", ""),
    (Violation("two\n  lines"), "failed", "two lines"),
    (NotApplicable("no reason\nto"), "skipped", "no reason to"),
    (EmulationUnavailable("this torch lacks it"), "skipped", "this torch lacks it"),
    (KeyError("key"), "failed", "raised KeyError: 'key'"),
    (AssertionError("from inside the plugin"), "failed", "raised AssertionError: from inside the plugin"),
])
def test_what_a_check_raises_decides_its_outcome(raised, outcome, message):
    def function(subject):
        if raised is not None:
            raise raised

    result = Check("metric", "name", "It demands.", function).run(Subject("metric", Ones))
    assert (result.outcome, result.message) == (outcome, message)
    assert result.error is (raised if outcome == "failed" else None)


def test_given_options_win_over_the_example_and_both_over_the_defaults():
    class Example(Ones):
        """Has an example."""

        @classmethod
        def conformance_options(cls, directory):
            return {"value": 2.0}

    assert Subject("metric", Ones).build().options.value == 1.0
    assert Subject("metric", Example).build().options.value == 2.0
    assert Subject("metric", Example, options={"value": 3.0}).build().options.value == 3.0
    assert Subject("metric", Example).build(value=4.0).options.value == 4.0


def test_the_folder_for_options_exists_is_empty_and_is_removed():
    seen = []

    class Filed:
        """One picture from a file."""

        class Options(protocols.Options):
            """Options."""

            file: Path = Field(description="the picture")

        def __init__(self, options):
            self.options = options

        @classmethod
        def conformance_options(cls, directory):
            from PIL import Image
            assert not list(directory.iterdir())
            seen.append(directory)
            Image.new("RGB", (8, 8)).save(directory / "black.png")
            return {"file": directory / "black.png"}

        def __len__(self):
            return 1

        def name(self, index):
            return ["black"][index]

        def load(self, index):
            from PIL import Image
            return Sample(self.name(index), Image.open(self.options.file).convert("RGB"))

    assert check_plugin("dataset", Filed).ok
    assert len(seen) == 1
    assert not seen[0].exists()


TEST_FILE = """
from certframe.testing import conformance_tests
from plugin import {cls}
test_conformance = conformance_tests("metric", {cls}, options={{"value": 0.5}})
"""


@pytest.mark.parametrize(("cls", "failed"), [("Ones", 0), ("Nothing", 2)])
def test_one_line_gives_one_pytest_test_for_each_check(tmp_path, cls, failed):
    import subprocess
    import sys

    source = Path(__file__).read_text(encoding="utf-8")
    head = source[: source.index("@pytest.mark.parametrize")]
    (tmp_path / "plugin.py").write_text(head)
    (tmp_path / "test_plugin.py").write_text(TEST_FILE.format(cls=cls))
    root = str(Path(__file__).resolve().parents[2])
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-rs", "-v", "."], cwd=tmp_path,
        capture_output=True, text=True, check=False, env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"})
    number = len(checks_for("metric"))
    tail = found.stdout.strip().splitlines()[-1]
    assert f"{number - 1 - failed} passed, 1 skipped" in tail, found.stdout + found.stderr
    assert (f"{failed} failed" in tail) == bool(failed)
    assert "test_conformance[batch" not in found.stdout
    assert "test_conformance[values] " in found.stdout
    assert "the metric does not use the model" in found.stdout
    if failed:
        assert "ConformanceError: compute() returns {}" in found.stdout
