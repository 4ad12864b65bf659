"""Layer-wise relevance propagation for certframe: announces the attributor `lrp`. Imports nothing heavy."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_attributors(register: Register) -> None:
    """One attributor."""
    register("lrp", "certframe_zennit.lrp:Lrp", "layer-wise relevance propagation, with zennit's composites")
