"""Options that several commands share, and the completion of names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def _complete(kind: str) -> Callable[[str], list[tuple[str, str]]]:
    def complete(incomplete: str) -> list[tuple[str, str]]:
        from certframe.registry import default_registry
        return [(entry.name, entry.summary) for entry in default_registry().entries(kind)
                if entry.name.startswith(incomplete)]
    return complete


def complete_any(incomplete: str) -> list[tuple[str, str]]:
    """Completion of a name of any kind."""
    from certframe.registry import HOOKS
    return [pair for kind in HOOKS for pair in _complete(kind)(incomplete)]


Attributors = Annotated[list[str] | None, typer.Option(
    "--attributor", "-a", help="Attribution method; several make a sweep over the same noise.", show_default="grad-cam",
    autocompletion=_complete("attributor"), rich_help_panel="What is explained")]
Model = Annotated[str | None, typer.Option(
    "--model", "-m", help="Image classifier.", show_default="lite0", autocompletion=_complete("model"),
    rich_help_panel="What is explained")]
Data = Annotated[str | None, typer.Option(
    "--data", "-d", help="Data set, or a path to a picture, a folder or a CSV.", show_default="photos",
    autocompletion=_complete("dataset"), rich_help_panel="What is explained")]
Sparsifier = Annotated[str | None, typer.Option(
    "--sparsifier", help="What is counted.", show_default="top-k", autocompletion=_complete("sparsifier"),
    rich_help_panel="What is certified")]
Certifiers = Annotated[list[str] | None, typer.Option(
    "--certifier", "-c", help="How counts become a proof; may be repeated.", show_default="pixel",
    autocompletion=_complete("certifier"), rich_help_panel="What is certified")]
Metrics = Annotated[list[str] | None, typer.Option(
    "--metric", help="What is measured; may be repeated.", show_default="certified-rate",
    autocompletion=_complete("metric"), rich_help_panel="What is certified")]
Executor = Annotated[str | None, typer.Option(
    "--executor", help="Where the work is done.", show_default="local", autocompletion=_complete("executor"),
    rich_help_panel="How it is carried out")]
Tau = Annotated[float | None, typer.Option(
    "--tau", help="Probability that a label has to exceed, in [0.5, 1); the radius is σΦ⁻¹(τ). "
                  "Short for -o certifier.tau=…", show_default="0.75", rich_help_panel="What is certified")]
Alpha = Annotated[float | None, typer.Option(
    "--alpha", help="Probability of any wrong claim. Short for -o certifier.alpha=…", show_default="0.001",
    rich_help_panel="What is certified")]
PluginOptions = Annotated[list[str] | None, typer.Option(
    "--option", "-o", metavar="KIND.OPTION=VALUE", rich_help_panel="What is certified",
    help="Option of a plugin, such as attributor.layer=final or attributor.rise.masks=2000; see 'certframe describe'.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
FailUnder = Annotated[list[str] | None, typer.Option(
    "--fail-under", metavar="METRIC=VALUE", rich_help_panel="What is certified",
    help="Exit with code 3 when a mean is below the value: certified-rate=0.3, or one such as certified.25=0.1.")]
RunDirectory = Annotated[Path, typer.Argument(help="Directory that 'certframe run' wrote.", show_default=False)]


def overrides(given: list[str] | None, tau: float | None, alpha: float | None,
              k: list[float] | None = None) -> list[str]:
    """The ``-o`` texts with the short forms spelt out; an explicit ``-o`` comes later and wins."""
    short = [f"certifier.tau={tau}"] if tau is not None else []
    short += [f"certifier.alpha={alpha}"] if alpha is not None else []
    short += [f"sparsifier.k={k}"] if k else []
    return [*short, *(given or [])]
