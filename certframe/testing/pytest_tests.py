"""The checks as pytest tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from certframe.protocols import Model
from certframe.testing.kit import Check, ConformanceError, Result, Subject, checks_for

__all__ = ["conformance_tests", "settle"]


def conformance_tests(kind: str, cls: Any, *, options: Mapping[str, Any] | None = None,
                      model: Callable[[], Model] | None = None) -> Callable[..., None]:
    """One pytest test for each check of the kind.

        from certframe.testing import conformance_tests
        from certframe_edges.edges import Edges

        test_conformance = conformance_tests("attributor", Edges, options={"radius": 2})

    Args:
        kind: "model", "attributor", "sparsifier", "certifier", "metric", "dataset", "executor" or "command".
        cls: the plugin class; for a command the function or ``typer.Typer``.
        options: what to construct it with, as in `run_checks`.
        model: builds the model that attributors and metrics are tried on, as in `run_checks`.

    Returns:
        A parametrised test function; assign it to a name that pytest collects.
    """
    import pytest

    checks = checks_for(kind)
    subjects: list[Subject] = []

    @pytest.mark.parametrize("check", checks, ids=[c.name for c in checks])
    def test_conformance(check: Check, tmp_path_factory: pytest.TempPathFactory) -> None:
        if not subjects:
            directory = tmp_path_factory.mktemp(f"{kind}-options")
            subjects.append(Subject(kind, cls, options=options, model=model, directory=directory))
        settle(check.run(subjects[0]))

    return test_conformance


def settle(result: Result) -> None:
    """Pass, fail or skip the running pytest test as a check did.

    Raises:
        ConformanceError: the check failed.
    """
    import pytest

    if result.outcome == "skipped":
        pytest.skip(result.message)
    if result.outcome == "failed":
        raise ConformanceError(f"{result.message} [{result.demand}]") from result.error
