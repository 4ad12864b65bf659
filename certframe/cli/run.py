"""``certframe run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certframe.cli import options
from certframe.errors import UsageError

if TYPE_CHECKING:
    from certframe.config import RunConfig


def run(
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
    write_report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.",
                                               rich_help_panel="How it is carried out")] = True,
    retry: Annotated[bool, typer.Option("--retry", help="Of a study: try again what failed before.",
                                        rich_help_panel="How it is carried out")] = False,
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")] = False,
) -> None:
    """Explain images, certify the explanations, write a run directory and a report.

    Started again with the same settings, it resumes what was interrupted and repeats nothing.

    A file with a table [study] describes a study: models × methods × layers × noise levels on one or more data sets. It
    becomes a directory of runs, in which what fails is recorded and the rest goes on.

    Examples:
    `certframe run` explains the bundled photographs with the bundled model.

    `certframe run --data photos/ --attributor rise --attributor grad-cam -k 50 -k 25 -k 5 --sigma 0.15 --samples 1000`

    `certframe run experiment.toml -o certifier.tau=0.8 --fail-under certified-rate=0.3`

    `certframe run study.toml --out runs/study`
    """
    from certframe.cli import outcome, study

    gates = outcome.parse_gates(fail_under)
    overriding = options.overrides(option, tau, alpha, k)
    settings = {
        "model": model, "dataset": data, "attributor": attributor, "sparsifier": sparsifier, "certifier": certifier,
        "metric": metric, "executor": executor, "sigma": sigma, "samples": samples, "seed": seed, "limit": limit,
        "resolution": resolution, "autocast": autocast, "batch_size": batch_size, "device": device,
        "channels_last": channels_last, "compile": compile_model}
    if experiment is not None and study.is_study(experiment):
        if gates:
            raise UsageError("--fail-under is for a single run: a study is compared with 'certframe compare'")
        study.carry_out(experiment, overriding, settings, out, allocator=allocator, retry=retry, quiet=quiet,
                        as_json=as_json)
        return
    config = options.configuration(experiment, overriding, **settings)
    _carry_out(config, out or options.default_directory(config), allocator=allocator, write_report=write_report,
               as_json=as_json, quiet=quiet, gates=gates)


def _carry_out(config: RunConfig, out: Path, *, allocator: bool, write_report: bool, as_json: bool, quiet: bool,
               gates: list[tuple[str, float]]) -> None:
    from certframe.cli import outcome
    from certframe.cli.progress import Terminal, interruptible
    from certframe.pipeline import execute
    from certframe.report.of_run import write_report as write
    from certframe.worker import component_key

    options.tune(config, allocator=allocator)
    try:
        with interruptible(), Terminal(quiet=quiet or as_json) as terminal:
            finished = execute(config, out, listener=terminal)
    except KeyboardInterrupt:
        kept = (out / "run.json").exists()
        typer.echo(f"stopped; {'the same command resumes it (' + str(out) + ')' if kept else 'nothing was written'}",
                   err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror or error}") from error
    report = write(finished) if write_report else None
    outcome.conclude(finished, [component_key(c) for c in config.certifier], json_wanted=as_json, report=report,
                     gates=gates, quiet=quiet)
