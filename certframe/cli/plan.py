"""``certframe plan``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from certframe.cli import options

if TYPE_CHECKING:
    from rich.status import Status

    from certframe.planning import Plan

_IGNORED = "Accepted, so that a run's command can be planned as it is."


def plan(
    experiment: options.Experiment = None,
    model: options.Model = None,
    data: options.Data = None,
    attributor: options.Attributors = None,
    limit: options.Limit = None,
    k: options.K = None,
    sigma: options.Sigma = None,
    samples: options.Samples = None,
    tau: options.Tau = None,
    alpha: options.Alpha = None,
    resolution: options.Resolution = None,
    option: options.PluginOptions = None,
    sparsifier: options.Sparsifier = None,
    certifier: options.Certifiers = None,
    metric: options.Metrics = None,
    fail_under: options.FailUnder = None,
    out: options.Out = None,
    seed: options.Seed = None,
    device: options.Device = None,
    batch_size: options.BatchSize = None,
    autocast: options.Autocast = None,
    channels_last: options.ChannelsLast = None,
    compile_model: options.Compile = None,
    executor: options.Executor = None,
    allocator: options.Allocator = True,
    write_report: Annotated[bool, typer.Option("--report/--no-report", help=_IGNORED,
                                               rich_help_panel="How it is carried out")] = True,
    retry: Annotated[bool, typer.Option("--retry", help=_IGNORED, rich_help_panel="How it is carried out")] = False,
    probe: Annotated[bool, typer.Option(
        "--probe", help="Run the model for some seconds per method: how long will it take, how large are the maps?")] =
        False,
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=_IGNORED)] = False,
) -> None:
    """Say what a run can certify and what it will cost, before it starts. Takes the options of `run`.

    For every method, noise level and certifier: the votes that a pixel needs, the radius, the largest radius that so
    many samples can reach, the samples under which everything abstains. Then model evaluations, memory, disk space, and
    what the run directory already has. A run that cannot certify anything is refused, with exit code 2.

    Examples:
    `certframe plan --samples 1000 --sigma 0.15 --sigma 0.25`

    `certframe plan experiment.toml --probe`

    `certframe plan study.toml` plans every run of a study.
    """
    import json

    from certframe.cli import outcome, study
    from certframe.plan_text import as_dict
    from certframe.planning import plan_run

    outcome.parse_gates(fail_under)
    overriding = options.overrides(option, tau, alpha, k)
    settings = {
        "model": model, "dataset": data, "attributor": attributor, "sparsifier": sparsifier, "certifier": certifier,
        "metric": metric, "executor": executor, "sigma": sigma, "samples": samples, "seed": seed, "limit": limit,
        "resolution": resolution, "autocast": autocast, "batch_size": batch_size, "device": device,
        "channels_last": channels_last, "compile": compile_model}
    waiting = _waiting(shown=probe and not as_json and not quiet)
    if experiment is not None and study.is_study(experiment):
        with waiting:
            planned = list(study.plans(experiment, overriding, settings, out, allocator=allocator, probe=probe))
        if as_json:
            typer.echo(json.dumps({folder: as_dict(one) for folder, one in planned}, indent=2))
            return
        for folder, one in planned:
            typer.secho(f"\n{folder}\n", bold=True)
            _show(one)
        return
    config = options.configuration(experiment, overriding, **settings)
    options.tune(config, allocator=allocator)
    with waiting:
        whole = plan_run(config, out or options.default_directory(config), probe=probe)
    typer.echo(json.dumps(as_dict(whole), indent=2)) if as_json else _show(whole)


def _waiting(*, shown: bool) -> Status | contextlib.nullcontext[None]:
    if not shown:
        return contextlib.nullcontext()
    from rich.console import Console
    return Console(stderr=True).status("timing a few batches")


def _show(planned: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from certframe.plan_text import COLUMNS, facts, rows

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index in (0, 2) else "right")
    for row in rows(planned):
        table.add_row(*row)
    console.print(table)
    console.print()
    below = Table(box=None, show_header=False, pad_edge=False)
    below.add_column(style="bold", no_wrap=True)
    below.add_column(overflow="fold")
    for name, text in facts(planned):
        below.add_row(name, text)
    console.print(below)
