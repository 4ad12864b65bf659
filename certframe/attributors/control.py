"""A control that knows nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from certframe import protocols
from certframe.attributors.layers import activation_of, layer_option
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng


class Random:
    """Independent uniform scores for every pixel and copy: what a method has to beat.

    No pixel is ever certified important. At a small K every pixel is certified *un*important, rightly: it is rarely
    among the top. So compare methods by what they certify important, and at the same layer: its size matters.
    """

    class Options(protocols.Options):
        """Options of `random`."""

        layer: str = layer_option()

    needs_gradients: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    family: ClassVar[str] = "control"

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.passes = 0 if self.options.layer == "input" else 1

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps in [0, 1), as large as the layer's; at the input the model is not run."""
        split = model.at(self.options.layer)
        return Attribution(rng.uniform(*split.as_map(activation_of(split, inputs)[0]).shape[-2:]))
