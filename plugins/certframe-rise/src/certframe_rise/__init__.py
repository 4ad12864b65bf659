"""RISE for certframe: announces the attributor `rise`. Imports nothing heavy, as every hook module should."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_attributors(register: Register) -> None:
    """One attributor."""
    register("rise", "certframe_rise.rise:Rise", summary="randomized input sampling: mean of masks, weighted by score")
