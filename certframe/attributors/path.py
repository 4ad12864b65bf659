"""Integrated gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from certframe import protocols
from certframe.attributors.gradient import input_gradient
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng


class IntegratedGradients:
    """(x − x₀) ⊙ ∫₀¹ ∇f_c(x₀ + a(x − x₀)) da, summed over channels, by the trapezoidal rule; x₀ a constant image.

    The maps sum to f_c(x) − f_c(x₀), up to the error of the rule.

    M. Sundararajan, A. Taly, Q. Yan. Axiomatic attribution for deep networks. ICML 2017.
    """

    class Options(protocols.Options):
        """Options of `integrated-gradients`."""

        steps: int = Field(20, ge=2, description="Points of the trapezoidal rule, both ends included.")
        baseline: float = Field(0.0, description="Value of every pixel of the image x₀ at which the path begins.")
        chunk: int = Field(32, ge=1, description="Largest number of inputs in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.passes = self.options.steps

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,H,W) maps of either sign, and the logits; `steps` forward and backward passes, batched."""
        o, x = self.options, inputs.detach()
        maps, logits = zip(*(self._some(model, rows, wanted) for rows, wanted in
                             zip(torch.split(x, o.chunk), torch.split(targets, o.chunk), strict=True)), strict=True)
        return Attribution(torch.cat(maps), torch.cat(logits))

    def _some(self, model: Model, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The same for so few inputs that they fit into one pass; as many points of the path as fit go with them."""
        o, together = self.options, max(1, self.options.chunk // len(x))
        difference, total = x - o.baseline, torch.zeros_like(x, dtype=torch.float32)
        for first in range(0, o.steps, together):
            points = range(first, min(first + together, o.steps))
            rows = torch.cat([o.baseline + difference * (point / (o.steps - 1)) for point in points])
            gradient, logits = input_gradient(model.module, rows, targets.repeat(len(points)))
            for point, part in zip(points, torch.split(gradient, len(x)), strict=True):
                total.add_(part, alpha=0.5 if point in (0, o.steps - 1) else 1.0)
        # The last rows of the last pass are the inputs themselves.
        return total.mul_(difference).sum(1).div_(o.steps - 1), logits[-len(x):]
