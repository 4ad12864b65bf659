"""A run, or the plan of one, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certframe.config import RunConfig, read_file, resolve
from certframe.pipeline import execute
from certframe.planning import Plan, plan_run
from certframe.registry import Registry
from certframe.store import Run


def run(out: str | Path, experiment: str | Path | Mapping[str, Any] | None = None, *,
        options: Mapping[str, Any] | None = None, registry: Registry | None = None, **settings: Any) -> Run:
    """Carry out a run, or resume it, and return its directory opened for reading.

    Args:
        out: the run directory.
        experiment: a TOML file, or its content as a mapping; settings and options given here win over it.
        options: ``{"certifier.tau": 0.8, "attributor.rise.masks": 2000}``.
        registry: where names are looked up.
        settings: ``model``, ``dataset``, ``attributor``, ``sigma``, ``samples``, ``limit``, ``device``, …; the settings
            of an experiment file.

    Raises:
        UsageError: something asked for is wrong; nothing has been written.
        CertframeError: the work failed; what was finished is kept.

    Examples:
        >>> import certframe
        >>> result = certframe.run("runs/digits", model="digits", dataset="digits", attributor="gradient", limit=2,
        ...                        options={"sparsifier.k": 25})        # doctest: +SKIP
        >>> result.table().num_rows                                     # doctest: +SKIP
        10
    """
    return execute(_configuration(experiment, options, registry, settings), Path(out), registry=registry)


def plan(experiment: str | Path | Mapping[str, Any] | None = None, *, out: str | Path | None = None,
         probe: bool = False, options: Mapping[str, Any] | None = None, registry: Registry | None = None,
         **settings: Any) -> Plan:
    """Say what a run can certify and what it will cost, before it starts.

    Args:
        experiment: a TOML file, or its content as a mapping; settings and options given here win over it.
        out: the run directory, when it is to be seen what is already there.
        probe: time a few batches of every method on the first image; without it the model is built but not run.
        options: as for `run`.
        registry: where names are looked up.
        settings: as for `run`.

    Returns:
        The plan; its text is what `certframe plan` prints.

    Raises:
        UsageError: the run would be refused; says why, as the run would.

    Examples:
        >>> import certframe
        >>> planned = certframe.plan(model="digits", dataset="digits", attributor="gradient", samples=200)
        >>> planned.claims[0].votes, planned.claims[0].min_samples
        (175, 39)
    """
    return plan_run(_configuration(experiment, options, registry, settings), None if out is None else Path(out),
                    probe=probe, registry=registry)


def _configuration(experiment: str | Path | Mapping[str, Any] | None, options: Mapping[str, Any] | None,
                   registry: Registry | None, settings: Mapping[str, Any]) -> RunConfig:
    request = experiment if isinstance(experiment, Mapping) or experiment is None else read_file(Path(experiment))
    texts = [f"{key}={_toml(value)}" for key, value in (options or {}).items()]
    return resolve(request, texts, settings=settings, registry=registry,
                   source=str(experiment) if isinstance(experiment, str | Path) else "the settings")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else repr(value) if isinstance(value, str) else str(value)
