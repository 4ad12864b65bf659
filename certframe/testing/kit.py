"""Running named checks against a plugin class.

A check is a small function that takes a `Subject` (the class, its options, something to feed it with) and returns when
the class keeps its contract, raises `Violation` when it does not, or `NotApplicable` with the reason when the question
does not arise. The checks of a kind live in `certframe.testing.checks`.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from certframe.errors import UsageError
from certframe.protocols import KINDS, Model
from certframe.testing.emulated_device import EmulationUnavailable

__all__ = ["Check", "ConformanceError", "NotApplicable", "Report", "Result", "Subject", "Violation", "check",
           "check_plugin", "checks_for", "require", "run_checks"]

_KINDS = (*KINDS, "command")
"""What there are checks for."""
Outcome = Literal["passed", "failed", "skipped"]


class Violation(AssertionError):
    """The class breaks its contract; the message says how."""


class NotApplicable(Exception):
    """The check has nothing to say about this class; the message is the reason."""


class ConformanceError(AssertionError):
    """A class failed checks; the message lists all of them."""


def require(condition: bool, message: str) -> None:
    """Raise `Violation` with the message unless the condition holds."""
    if not condition:
        raise Violation(message)


class Subject:
    """A plugin class, or a command, under test.

    Args:
        kind: a plugin kind, or "command".
        cls: the class; for a command the function or ``typer.Typer``.
        options: what to construct it with; by default its ``conformance_options(directory)``, else its defaults.
        model: builds the model that attributors and metrics are tried on; by default the class's
            ``conformance_model()``, else `fixtures.tiny_model`.
        directory: an empty folder that the class may fill with the files its options need; by default a temporary one.
    """

    def __init__(self, kind: str, cls: Any, *, options: Mapping[str, Any] | None = None,
                 model: Callable[[], Model] | None = None, directory: Path | None = None) -> None:
        if kind not in _KINDS:
            raise UsageError(f"unknown plugin kind {kind!r}: it is one of {', '.join(_KINDS)}")
        self.kind, self.cls = kind, cls
        self._given, self._directory = options, directory
        self._model: Callable[[], Model] | None = model or getattr(cls, "conformance_model", None)
        self._remove: weakref.finalize[..., Subject] | None = None

    @functools.cached_property
    def options(self) -> Mapping[str, Any]:
        """The options that the class is constructed with."""
        if self._given is not None:
            return dict(self._given)
        example = getattr(self.cls, "conformance_options", None)
        return dict(example(self.directory)) if example is not None else {}

    @functools.cached_property
    def directory(self) -> Path:
        """The folder for files that the options need."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="certframe-check-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory

    def close(self) -> None:
        """Remove the temporary folder, if there is one."""
        if self._remove is not None:
            self._remove()

    def build(self, **changes: Any) -> Any:
        """A new instance, with some options changed."""
        return self.cls(self.cls.Options.model_validate({**self.options, **changes}))

    @functools.cached_property
    def instance(self) -> Any:
        """One instance that all checks may share, for classes that are expensive to construct."""
        return self.build()

    @property
    def has_own_model(self) -> bool:
        """Whether the caller or the class chose the model to try the class on."""
        return self._model is not None

    def model(self) -> Model:
        """A new model to try an attributor or a metric on."""
        if self._model is not None:
            return self._model()
        from certframe.testing.fixtures import tiny_model

        return tiny_model()


@dataclass(frozen=True)
class Check:
    """One demand on the classes of a kind.

    Attributes:
        kind: the plugin kind.
        name: lower case with dashes.
        demand: what it demands and why.
        function: raises `Violation`, or `NotApplicable` with a reason.
        static: it only looks at the class, so it makes sense even when the class cannot be constructed.
    """

    kind: str
    name: str
    demand: str
    function: Callable[[Subject], None] = field(repr=False)
    static: bool = False

    def run(self, subject: Subject) -> Result:
        """Ask the question; never raises."""
        try:
            self.function(subject)
        except (NotApplicable, EmulationUnavailable) as reason:
            return self._result("skipped", str(reason))
        except Violation as violation:
            return self._result("failed", str(violation), violation)
        except Exception as error:
            return self._result("failed", f"raised {type(error).__name__}: {error}", error)
        return self._result("passed")

    def skip(self, reason: str) -> Result:
        """The result when the check is not run."""
        return self._result("skipped", reason)

    def _result(self, outcome: Outcome, message: str = "", error: Exception | None = None) -> Result:
        return Result(self.name, self.demand, outcome, " ".join(message.split()), error)


_CHECKS: dict[str, dict[str, Check]] = {kind: {} for kind in _KINDS}


def check(*kinds: str, static: bool = False) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function as a check of the kinds: its name and docstring become the check's name and demand."""
    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        demand = " ".join((function.__doc__ or "").split())
        name = function.__name__.replace("_", "-")
        for kind in kinds:
            _CHECKS[kind][name] = Check(kind, name, demand, function, static)
        return function
    return register


def checks_for(kind: str) -> list[Check]:
    """All checks of a plugin kind, the general ones first.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in _KINDS:
        raise UsageError(f"unknown plugin kind {kind!r}: it is one of {', '.join(_KINDS)}")
    if kind != "command":
        importlib.import_module("certframe.testing.checks.common")
    importlib.import_module(f"certframe.testing.checks.{kind}")
    return list(_CHECKS[kind].values())


@dataclass(frozen=True)
class Result:
    """What came of one check.

    Attributes:
        check: its name.
        demand: what it demands and why.
        outcome: "passed", "failed" or "skipped".
        message: why it failed or was skipped, in one line.
        error: the exception behind a failure.
    """

    check: str
    demand: str
    outcome: Outcome
    message: str = ""
    error: Exception | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Report:
    """What came of all checks of one class; iterating gives the results."""

    kind: str
    plugin: str
    results: Sequence[Result]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    @property
    def failures(self) -> list[Result]:
        """The failed checks."""
        return [r for r in self.results if r.outcome == "failed"]

    @property
    def skipped(self) -> list[Result]:
        """The checks that did not apply, each with its reason."""
        return [r for r in self.results if r.outcome == "skipped"]

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.failures

    def __str__(self) -> str:
        passed = len(self.results) - len(self.failures) - len(self.skipped)
        counts = f"{passed} passed, {len(self.failures)} failed, {len(self.skipped)} skipped"
        lines = [f"{self.kind} {self.plugin}: {counts}"]
        lines += [f"  failed {r.check}: {r.message} [{r.demand}]" for r in self.failures]
        lines += [f"  skipped {r.check}: {r.message}" for r in self.skipped]
        return "\n".join(lines)


def run_on(subject: Subject, plugin: str, checks: Sequence[Check] | None = None) -> Report:
    """Run checks (by default all of the kind) on a subject."""
    checks = checks_for(subject.kind) if checks is None else checks
    first = [c for c in checks if c.name == "constructs"]
    results = {c.name: c.run(subject) for c in first}
    broken = any(r.outcome == "failed" for r in results.values())
    for c in checks:
        if c.name not in results:
            results[c.name] = c.skip("the class cannot be constructed") if broken and not c.static else c.run(subject)
    return Report(subject.kind, plugin, [results[c.name] for c in checks])


def run_checks(kind: str, cls: Any, *, options: Mapping[str, Any] | None = None,
               model: Callable[[], Model] | None = None, plugin: str | None = None) -> Report:
    """Run all checks of a kind on a class.

    Args:
        kind: "model", "attributor", "sparsifier", "certifier", "metric", "dataset", "executor" or "command".
        cls: the class; for a command the function or ``typer.Typer``.
        options: what to construct it with; by default what its classmethod ``conformance_options(directory)`` returns,
            where it has one, else its defaults. Give options that make it quick.
        model: builds the model that attributors and metrics are tried on; by default what the class's classmethod
            ``conformance_model()`` returns, where it has one, else a tiny convolutional net.
        plugin: the name to report; by default the class's.

    Raises:
        UsageError: there is no such kind.
    """
    subject = Subject(kind, cls, options=options, model=model)
    try:
        known = cls if hasattr(cls, "__qualname__") else type(cls)
        return run_on(subject, plugin or f"{known.__module__}.{known.__qualname__}")
    finally:
        subject.close()


def check_plugin(kind: str, cls: Any, *, options: Mapping[str, Any] | None = None,
                 model: Callable[[], Model] | None = None) -> Report:
    """`run_checks`, raising when one fails.

    Raises:
        ConformanceError: lists every failed check.
    """
    report = run_checks(kind, cls, options=options, model=model)
    if not report.ok:
        raise ConformanceError(str(report))
    return report

