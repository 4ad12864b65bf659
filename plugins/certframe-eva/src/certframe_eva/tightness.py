"""Tightness: the adversarial overlap by several bound methods, on the same ball."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field

import certframe
from certframe_eva.attributors import Method
from certframe_eva.network import Network
from certframe_eva.overlap import overlap
from certframe_eva.regions import Region


def _several(value: Any) -> Any:
    """Let text with commas stand for a sequence."""
    return value.split(",") if isinstance(value, str) else value


class Tightness:
    """The adversarial overlap max_{c'≠c} f̄_{c'} − f̲_c over x + B by each bound method; the smaller, the tighter.

    ``tightness.METHOD`` for every method, in units of the logits. It says something of the bounds, the model and the
    image, and nothing of the map; all methods bound the same quantity from above, so that they can be compared. A
    combination is never looser than its parts. It takes no evaluations of the model, but a bound for each method.

    Source: Fel et al., "Don't Lie to Me!", CVPR 2023.
    """

    class Options(certframe.Options):
        """Options of `tightness`."""

        eps: float = Field(0.5, gt=0, description="Radius ε of the ball B, in pixel units.")
        p: Literal[1, 2, "inf"] = Field(2, description="Norm of the ball: 1, 2 or inf.")
        methods: Annotated[tuple[Method, ...], BeforeValidator(_several)] = Field(
            ("ibp", "forward", "backward", "ibp+forward", "ibp+forward+backward"), min_length=1,
            description="Bound methods: some of ibp, forward and backward, joined by +.")
        margin: Literal["separate", "joint"] = Field(
            "separate", description="Bound the two logits separately, as published, or their difference (joint), which "
                                    "is tighter.")
        clip: bool = Field(False, description="Perturbed pixels stay in [0, 1], which is tighter.")

    requires = frozenset({"model"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Cheap methods, for the conformance kit."""
        return {"methods": ("ibp", "backward")}

    def compute(self, explanation: certframe.Explanation) -> Mapping[str, float]:
        """The overlap by each method.

        Raises:
            UsageError: the model has a layer that cannot be bounded.
        """
        o, model = self.options, explanation.model
        assert model is not None
        first = next(itertools.chain(model.module.parameters(), model.module.buffers()), torch.empty(0))
        image = explanation.image.to(first)[None]
        network = Network.of(model.module, torch.cat([image, 0.5 * image.flip(-1) + 0.1]),
                             leaf_modules=getattr(model, "leaf_modules", ()),
                             leaf_functions=getattr(model, "leaf_functions", ()))
        region = Region.ball(image, o.eps, float(o.p), clip=o.clip)
        target = torch.tensor([explanation.target], device=image.device)
        with torch.no_grad():
            return {f"tightness.{method}": float(overlap(network, region, target, method, margin=o.margin))
                    for method in o.methods}
