"""Shapley values with captum for certframe: announces one attributor. Imports nothing heavy."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_attributors(register: Register) -> None:
    """One estimate."""
    register("shapley-sampling", "certframe_captum.shapley:ShapleySampling",
             "Shapley values of picture cells, from random orders")
