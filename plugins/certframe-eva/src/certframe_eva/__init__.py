"""Verified perturbation analysis for certframe. Imports nothing heavy, as every hook module should."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_attributors(register: Register) -> None:
    """The attribution methods."""
    register("greedy-as", "certframe_eva.greedy:GreedyAS",
             summary="variables in the order in which they bring an adversarial example closer")


@hookimpl
def certframe_metrics(register: Register) -> None:
    """The metrics."""
    register("robustness-sr", "certframe_eva.robustness:RobustnessSr",
             summary="distance to an adversarial example that changes only the most important pixels")
