"""Integrated gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from certframe import protocols
from certframe.attributors.layers import activation_of, gradient_at, layer_option
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng, Split


class IntegratedGradients:
    """(x − x₀) ⊙ ∫₀¹ ∇f_c(x₀ + a(x − x₀)) da, summed over channels, by the trapezoidal rule; x₀ a constant image.

    The maps sum to f_c(x) − f_c(x₀), up to the error of the rule. At a feature map A the straight path leads from A₀,
    the activation of x₀, to A: Σ_k (A_k − A₀_k) ⊙ ∫₀¹ ∂f_c/∂A_k at A₀ + a(A − A₀) da. What goes around the layer (a
    shortcut, a class token's own stream) stays as it is at x, so the sum is f_c(x) less f_c with A₀ in the layer; where
    nothing goes around it, that is f_c(x) − f_c(x₀) again.

    M. Sundararajan, A. Taly, Q. Yan. Axiomatic attribution for deep networks. ICML 2017.
    """

    class Options(protocols.Options):
        """Options of `integrated-gradients`."""

        layer: str = layer_option()
        steps: int = Field(20, ge=2, description="Points of the trapezoidal rule, both ends included.")
        baseline: float = Field(0.0, description="Value of every pixel of the image x₀ at which the path begins.")
        chunk: int = Field(32, ge=1, description="Largest number of inputs in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "backpropagation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.passes = self.options.steps if self.options.layer == "input" else None  # further ones are of the head only

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,h,w) maps of either sign, and the logits; `steps` passes of the head and back, batched."""
        o, split = self.options, model.at(self.options.layer)
        start = activation_of(split, torch.full_like(inputs[:1], o.baseline))[0]
        maps, logits = zip(*(self._some(split, start, activation_of(split, rows), wanted) for rows, wanted in
                             zip(torch.split(inputs, o.chunk), torch.split(targets, o.chunk), strict=True)),
                           strict=True)
        return Attribution(torch.cat(maps), torch.cat(logits))

    def _some(self, split: Split, start: Tensor, values: tuple[Tensor, ...],
              targets: Tensor) -> tuple[Tensor, Tensor]:
        """The same for so few inputs that they fit into one pass; as many points of the path as fit go with them."""
        o, (end, *carried) = self.options, values
        together = max(1, o.chunk // len(end))
        difference, total = end - start, torch.zeros_like(end, dtype=torch.float32)
        for first in range(0, o.steps, together):
            points = range(first, min(first + together, o.steps))
            rows = torch.cat([start + difference * (point / (o.steps - 1)) for point in points])
            around = (part.repeat(len(points), *[1] * (part.ndim - 1)) for part in carried)
            gradient, logits = gradient_at(split, o.layer, (rows, *around), targets.repeat(len(points)))
            for point, part in zip(points, torch.split(gradient, len(end)), strict=True):
                total.add_(part, alpha=0.5 if point in (0, o.steps - 1) else 1.0)
        # The last rows of the last pass are the inputs themselves.
        return split.as_map(total.mul_(difference)).sum(1).div_(o.steps - 1), logits[-len(end):]
