"""Options that several commands share, and the completion of names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from certframe.config import RunConfig

_EXPLAIN, _CERTIFY, _CARRY = "What is explained", "What is certified", "How it is carried out"


def _complete(kind: str) -> Callable[[str], list[tuple[str, str]]]:
    def complete(incomplete: str) -> list[tuple[str, str]]:
        from certframe.registry import default_registry
        return [(entry.name, entry.summary) for entry in default_registry().entries(kind)
                if entry.name.startswith(incomplete)]
    return complete


def complete_any(incomplete: str) -> list[tuple[str, str]]:
    """Completion of a name of any kind."""
    from certframe.registry import REGISTERED
    return [pair for kind in REGISTERED for pair in _complete(kind)(incomplete)]


Experiment = Annotated[Path | None, typer.Argument(
    help="TOML file that describes a run or a study; options given here win over it.", show_default=False)]
Attributors = Annotated[list[str] | None, typer.Option(
    "--attributor", "-a", help="Attribution method; several make a sweep over the same noise.", show_default="grad-cam",
    autocompletion=_complete("attributor"), rich_help_panel=_EXPLAIN)]
Model = Annotated[str | None, typer.Option(
    "--model", "-m", help="Image classifier.", show_default="lite0", autocompletion=_complete("model"),
    rich_help_panel=_EXPLAIN)]
Data = Annotated[str | None, typer.Option(
    "--data", "-d", help="Data set, or a path to a picture, a folder or a CSV.", show_default="photos",
    autocompletion=_complete("dataset"), rich_help_panel=_EXPLAIN)]
Limit = Annotated[int | None, typer.Option(help="Use only the first so many images.", rich_help_panel=_EXPLAIN)]
K = Annotated[list[float] | None, typer.Option(
    "-k", help="Percent of the pixels that count as important; may be repeated. Short for -o sparsifier.k=…",
    show_default="50, 25, 5", rich_help_panel=_CERTIFY)]
Sigma = Annotated[list[float] | None, typer.Option(
    help="Standard deviation of the noise in pixel units; several make a sweep.", show_default="0.15",
    rich_help_panel=_CERTIFY)]
Samples = Annotated[int | None, typer.Option("--samples", "-n", help="Noisy copies of each image.", show_default="100",
                                             rich_help_panel=_CERTIFY)]
Resolution = Annotated[str | None, typer.Option(
    help="input: certify the pixels of maps upsampled to the image; native: the cells of feature maps.",
    show_default="input", rich_help_panel=_CERTIFY)]
Sparsifier = Annotated[str | None, typer.Option(
    "--sparsifier", help="What is counted.", show_default="top-k", autocompletion=_complete("sparsifier"),
    rich_help_panel=_CERTIFY)]
Certifiers = Annotated[list[str] | None, typer.Option(
    "--certifier", "-c", help="How counts become a proof; may be repeated.", show_default="pixel",
    autocompletion=_complete("certifier"), rich_help_panel=_CERTIFY)]
Metrics = Annotated[list[str] | None, typer.Option(
    "--metric", help="What is measured; may be repeated.", show_default="certified-rate",
    autocompletion=_complete("metric"), rich_help_panel=_CERTIFY)]
Executor = Annotated[str | None, typer.Option(
    "--executor", help="Where the work is done.", show_default="local", autocompletion=_complete("executor"),
    rich_help_panel=_CARRY)]
Out = Annotated[Path | None, typer.Option(
    help="Run directory; an unfinished run of the same configuration there is resumed.",
    show_default="runs/<name of the run>", rich_help_panel=_CARRY)]
Seed = Annotated[int | None, typer.Option(help="Seed of all randomness.", show_default="0", rich_help_panel=_CARRY)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … or auto.", show_default="auto",
                                            rich_help_panel=_CARRY)]
BatchSize = Annotated[int | None, typer.Option(help="Noisy copies in one pass; changes no result.", show_default="32",
                                               rich_help_panel=_CARRY)]
Autocast = Annotated[str | None, typer.Option(help="off, bfloat16 or float16.", show_default="off",
                                              rich_help_panel=_CARRY)]
ChannelsLast = Annotated[bool | None, typer.Option(
    "--channels-last/--no-channels-last", help="Channels-last memory layout.", show_default="no",
    rich_help_panel=_CARRY)]
Compile = Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile the model.",
                                              show_default="no", rich_help_panel=_CARRY)]
Allocator = Annotated[bool, typer.Option("--tune-allocator/--no-tune-allocator", rich_help_panel=_CARRY,
                                         help="On a CPU, keep freed memory in the process, for faster model passes.")]
Tau = Annotated[float | None, typer.Option(
    "--tau", help="Probability that a label has to exceed, in [0.5, 1); the radius is σΦ⁻¹(τ). "
                  "Short for -o certifier.tau=…", show_default="0.75", rich_help_panel=_CERTIFY)]
Alpha = Annotated[float | None, typer.Option(
    "--alpha", help="Probability of any wrong claim. Short for -o certifier.alpha=…", show_default="0.001",
    rich_help_panel=_CERTIFY)]
PluginOptions = Annotated[list[str] | None, typer.Option(
    "--option", "-o", metavar="KIND.OPTION=VALUE", rich_help_panel=_CERTIFY,
    help="Option of a plugin, such as attributor.layer=final or attributor.rise.masks=2000; see 'certframe describe'.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
FailUnder = Annotated[list[str] | None, typer.Option(
    "--fail-under", metavar="METRIC=VALUE", rich_help_panel=_CERTIFY,
    help="Exit with code 3 when a mean is below the value: certified-rate=0.3, or one such as certified.25=0.1.")]
RunDirectory = Annotated[Path, typer.Argument(help="Directory that 'certframe run' wrote.", show_default=False)]


def overrides(given: list[str] | None, tau: float | None, alpha: float | None,
              k: list[float] | None = None) -> list[str]:
    """The ``-o`` texts with the short forms spelt out; an explicit ``-o`` comes later and wins."""
    short = [f"certifier.tau={tau}"] if tau is not None else []
    short += [f"certifier.alpha={alpha}"] if alpha is not None else []
    short += [f"sparsifier.k={k}"] if k else []
    return [*short, *(given or [])]


def configuration(experiment: Path | None, overriding: list[str], **settings: Any) -> RunConfig:
    """The run that a file and the command line describe; options that were not given leave the file's word."""
    from certframe.config import read_file, resolve
    given = {name: value for name, value in settings.items() if value not in (None, [])}
    return resolve(read_file(experiment) if experiment else None, overriding, settings=given,
                   source=str(experiment) if experiment else "the command line")


def default_directory(config: RunConfig) -> Path:
    """``runs/<model>-<data>-<methods>-<hash>``: the same settings lead to the same directory."""
    methods = "+".join(dict.fromkeys(c.name for c in config.attributor))
    return Path("runs") / f"{config.model.name}-{config.dataset.name}-{methods[:60]}-{config.digest[:8]}"


def tune(config: RunConfig, *, allocator: bool) -> None:
    """Tune the allocator when that was not switched off and the work is done on a CPU."""
    from certframe.cli.allocator import tune_allocator
    from certframe.device import resolve_device
    if allocator and resolve_device(config.device).type == "cpu":
        tune_allocator()
