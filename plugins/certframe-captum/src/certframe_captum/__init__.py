"""Shapley values with captum for certframe: announces two attributors. Imports nothing heavy."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_attributors(register: Register) -> None:
    """Two estimates of the same values."""
    register("shapley-sampling", "certframe_captum.shapley:ShapleySampling",
             "Shapley values of picture cells, from random orders")
    register("kernel-shap", "certframe_captum.shapley:KernelShap",
             "Shapley values of picture cells, by a weighted linear fit")
