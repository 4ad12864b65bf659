"""``certframe certify``."""

from __future__ import annotations

from typing import Annotated

import typer

from certframe.cli import options


def certify(
    run: options.RunDirectory,
    certifier: Annotated[str, typer.Option("--certifier", "-c", help="How counts become a proof.")] = "pixel",
    tau: options.Tau = None,
    alpha: options.Alpha = None,
    option: options.PluginOptions = None,
    write_report: Annotated[bool, typer.Option("--report/--no-report",
                                               help="Write report-<certifier>.html into the run.")] = True,
    fail_under: options.FailUnder = None,
    as_json: options.Json = False,
) -> None:
    """Certify the stored counts of a run again: other radii, confidences or certifiers. No model is needed.

    Each certificate holds with its own confidence; choosing the best of several after looking is not covered by any.

    Examples:
    `certframe certify runs/demo --tau 0.9`

    `certframe certify runs/demo -o certifier.correction=paper --json`
    """
    from certframe.cli import outcome
    from certframe.config import resolve_component
    from certframe.recertify import recertify
    from certframe.report.of_run import write_report as write
    from certframe.store import load_run

    gates = outcome.parse_gates(fail_under)
    stored = load_run(run)
    component = resolve_component("certifier", certifier, options.overrides(option, tau, alpha))
    key = recertify(stored, component)
    report = write(stored, component) if write_report else None
    outcome.conclude(stored, [key], json_wanted=as_json, report=report, gates=gates)
