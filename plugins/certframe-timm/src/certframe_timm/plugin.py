"""What this distribution registers; imports neither timm nor torch."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_models(register: Register) -> None:
    """Image classifiers."""
    register("timm", "certframe_timm.models:Timm", "any timm classifier: timm:resnet18.a1_in1k")
    register("lite0", "certframe_timm.models:Lite0", "EfficientNet-Lite0 on ImageNet, weights installed with it")
