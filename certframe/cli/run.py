"""``certframe run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certframe.cli import options
from certframe.errors import UsageError

if TYPE_CHECKING:
    from certframe.config import RunConfig

_CARRY = "How it is carried out"
_CERTIFY = "What is certified"
_EXPLAIN = "What is explained"


def run(
    experiment: Annotated[Path | None, typer.Argument(help="TOML file that describes the run; options given here win "
                                                           "over it.", show_default=False)] = None,
    model: options.Model = None,
    data: options.Data = None,
    attributor: options.Attributors = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many images.",
                                              rich_help_panel=_EXPLAIN)] = None,
    k: Annotated[list[float] | None, typer.Option(
        "-k", help="Percent of the pixels that count as important; may be repeated. Short for -o sparsifier.k=…",
        show_default="50, 25, 5", rich_help_panel=_CERTIFY)] = None,
    sigma: Annotated[list[float] | None, typer.Option(
        help="Standard deviation of the noise in pixel units; several make a sweep.", show_default="0.15",
        rich_help_panel=_CERTIFY)] = None,
    samples: Annotated[int | None, typer.Option("--samples", "-n", help="Noisy copies of each image.",
                                                show_default="100", rich_help_panel=_CERTIFY)] = None,
    tau: options.Tau = None,
    alpha: options.Alpha = None,
    resolution: Annotated[str | None, typer.Option(
        help="input: certify the pixels of maps upsampled to the image; native: the cells of feature maps.",
        show_default="input", rich_help_panel=_CERTIFY)] = None,
    option: options.PluginOptions = None,
    sparsifier: options.Sparsifier = None,
    certifier: options.Certifiers = None,
    metric: options.Metrics = None,
    fail_under: options.FailUnder = None,
    out: Annotated[Path | None, typer.Option(
        help="Run directory; an unfinished run of the same configuration there is resumed.",
        show_default="runs/<name of the run>", rich_help_panel=_CARRY)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness.", show_default="0",
                                             rich_help_panel=_CARRY)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … or auto.", show_default="auto",
                                               rich_help_panel=_CARRY)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Noisy copies in one pass; changes no result.",
                                                   show_default="32", rich_help_panel=_CARRY)] = None,
    autocast: Annotated[str | None, typer.Option(help="off, bfloat16 or float16.", show_default="off",
                                                 rich_help_panel=_CARRY)] = None,
    channels_last: Annotated[bool | None, typer.Option(
        "--channels-last/--no-channels-last", help="Channels-last memory layout.", show_default="no",
        rich_help_panel=_CARRY)] = None,
    compile_model: Annotated[bool | None, typer.Option(
        "--compile/--no-compile", help="torch.compile the model.", show_default="no", rich_help_panel=_CARRY)] = None,
    executor: options.Executor = None,
    allocator: Annotated[bool, typer.Option(
        "--tune-allocator/--no-tune-allocator", rich_help_panel=_CARRY,
        help="On a CPU, keep freed memory in the process, for faster model passes.")] = True,
    write_report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.",
                                               rich_help_panel=_CARRY)] = True,
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")] = False,
) -> None:
    """Explain images, certify the explanations, write a run directory and a report.

    Started again with the same settings, it resumes what was interrupted and repeats nothing.

    Examples:
    `certframe run` explains the bundled photographs with the bundled model.

    `certframe run --data photos/ --attributor rise --attributor grad-cam -k 50 -k 25 -k 5 --sigma 0.15 --samples 1000`

    `certframe run experiment.toml -o certifier.tau=0.8 --fail-under certified-rate=0.3`
    """
    from certframe.cli import outcome
    from certframe.config import read_file, resolve

    gates = outcome.parse_gates(fail_under)
    settings: dict[str, Any] = {
        "model": model, "dataset": data, "attributor": attributor, "sparsifier": sparsifier, "certifier": certifier,
        "metric": metric, "executor": executor, "sigma": sigma, "samples": samples, "seed": seed, "limit": limit,
        "resolution": resolution, "autocast": autocast, "batch_size": batch_size, "device": device,
        "channels_last": channels_last, "compile": compile_model,
    }
    settings = {name: value for name, value in settings.items() if value not in (None, [])}
    config = resolve(read_file(experiment) if experiment else None, options.overrides(option, tau, alpha, k),
                     settings=settings, source=str(experiment) if experiment else "the command line")
    _carry_out(config, out or default_directory(config), allocator=allocator, write_report=write_report,
               as_json=as_json, quiet=quiet, gates=gates)


def default_directory(config: RunConfig) -> Path:
    """``runs/<model>-<data>-<methods>-<hash>``: the same settings lead to the same directory."""
    methods = "+".join(dict.fromkeys(c.name for c in config.attributor))
    return Path("runs") / f"{config.model.name}-{config.dataset.name}-{methods[:60]}-{config.digest[:8]}"


def _carry_out(config: RunConfig, out: Path, *, allocator: bool, write_report: bool, as_json: bool, quiet: bool,
               gates: list[tuple[str, float]]) -> None:
    from certframe.cli import outcome
    from certframe.cli.allocator import tune_allocator
    from certframe.cli.progress import Terminal, interruptible
    from certframe.device import resolve_device
    from certframe.pipeline import execute
    from certframe.report.of_run import write_report as write
    from certframe.worker import component_key

    if allocator and resolve_device(config.device).type == "cpu":
        tune_allocator()
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
