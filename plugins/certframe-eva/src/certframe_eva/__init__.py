"""Verified perturbation analysis for certframe. Imports nothing heavy, as every hook module should."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_attributors(register: Register) -> None:
    """The attribution methods."""
    register("eva", "certframe_eva.attributors:Eva",
             summary="cells whose perturbation brings other classes closest, by verified bounds on small networks")
    register("eva-targeted", "certframe_eva.attributors:EvaTargeted",
             summary="where brighter (+) and darker (−) pixels turn the image into another class, by verified bounds")
    register("eva-hybrid", "certframe_eva.attributors:EvaHybrid",
             summary="EVA for large networks: sampled up to a layer, propagated from there; not verified")
    register("greedy-as", "certframe_eva.greedy:GreedyAS",
             summary="variables in the order in which they bring an adversarial example closer")


@hookimpl
def certframe_metrics(register: Register) -> None:
    """The metrics."""
    register("robustness-sr", "certframe_eva.robustness:RobustnessSr",
             summary="distance to an adversarial example that changes only the most important pixels")
    register("tightness", "certframe_eva.tightness:Tightness",
             summary="how far other classes can come ahead in a ball, by each bound method")
