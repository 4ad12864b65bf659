"""The nearest decision boundary for certframe. Imports nothing heavy, as every hook module should."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_attributors(register: Register) -> None:
    """The attribution methods."""
    register("bsm", "certframe_boundary.attributors:Bsm",
             summary="gradient of the class at the nearest point of the decision boundary")
