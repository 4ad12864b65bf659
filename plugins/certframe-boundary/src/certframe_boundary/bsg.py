"""Boundary SmoothGrad: the mean gradient over noise, where most of the noisy copies have lost the class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

import certframe
from certframe_boundary.gradients import logit_gradient
from certframe_boundary.search.balls import Norm, column, confined, direction, free, into_ball, pixel_range
from certframe_boundary.search.closest import ascent, margin


class Bsg:
    """Σ over channels of |mean of ∂f_c/∂x at x' + δ|, δ ~ N(0, s²I), x' an adversarial example of the smoothed model.

    x' is found by projected gradient ascent on the mean cross-entropy of the same m noisy inputs x + δ at which the
    gradient is taken, and is where less than a tenth of them keep the class; where that is never so, it is the last
    image tried. δ is drawn from the copy's own stream, so a certificate is about the smoothed map as for any other
    method, smoothed a second time. Takes up to steps · m passes forward and backward, for each noisy copy.

    Z. Wang, M. Fredrikson, A. Datta. Robust models are more interpretable because attributions look normal. ICML 2022;
    there m = 50 and 40 steps; the noise and the budget are choices of our own.
    """

    class Options(certframe.Options):
        """Options of `bsg`."""

        samples: int = Field(50, ge=1, description="m, the number of noisy inputs.")
        noise: float = Field(0.1, gt=0, description="s as a fraction of the range (max − min) of each input.")
        norm: Norm = Field("l2", description="Norm of the change: 'l2' or 'linf'.")
        budget: float = Field(5.0, gt=0, allow_inf_nan=False, description="Largest norm of the change, in pixel units.")
        steps: int = Field(40, ge=1, description="Steps of projected gradient ascent, each of 2.5 · budget / steps.")
        keep: float = Field(0.1, gt=0, le=1, description="The ascent ends when a smaller share of the noisy inputs "
                                                         "keep the class.")
        bounds: tuple[float, float] = Field((0.0, 1.0), description="Least and largest value of a pixel of x'. A pixel "
                                                                    "that is outside already goes no farther.")
        chunk: int = Field(32, ge=1, description="Noisy inputs in one pass, at least one of every image of a batch; "
                                            "changes no result.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    family: ClassVar[str] = "backpropagation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Little effort."""
        return {"samples": 3, "steps": 3}

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,h,w) maps, all ≥ 0.

        Raises:
            UsageError: the model has one class only, or its logits no gradient.
        """
        inputs = inputs.detach()
        spread = self.options.noise * (inputs.flatten(1).amax(1) - inputs.flatten(1).amin(1))
        draws = [column(spread) * rng.normal(*inputs.shape[1:]) for _ in range(self.options.samples)]
        with certframe.full_precision(inputs.device):
            points = self._smoothed_example(model, inputs, targets, draws)
            total = torch.zeros_like(inputs)
            for rows in self._together(draws, len(inputs)):
                gradient, _ = logit_gradient(model.module, _noisy(points, rows), targets.repeat(len(rows)))
                total += gradient.unflatten(0, (len(rows), len(inputs))).sum(0)
        return certframe.Attribution((total / len(draws)).abs().sum(1).float())

    def _smoothed_example(self, model: certframe.Model, inputs: Tensor, targets: Tensor,
                          draws: Sequence[Tensor]) -> Tensor:
        o, box = self.options, pixel_range(inputs, self.options.bounds)
        budget, z = inputs.new_full((len(inputs),), o.budget), inputs
        rate = 2.5 * o.budget / o.steps
        done = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        for _ in range(o.steps):
            total, kept = torch.zeros_like(z), z.new_zeros(len(z))
            for rows in self._together(draws, len(z)):
                classes = targets.repeat(len(rows))
                logits, _, gradient = ascent(model.module, _noisy(z, rows), classes, "ce")
                total += gradient.unflatten(0, (len(rows), len(z))).sum(0)
                kept += (margin(logits, classes) <= 0).unflatten(0, (len(rows), len(z))).sum(0)
            done |= kept < o.keep * len(draws)
            moved = z + rate * direction(free(total, z, box), o.norm)
            moved = confined(inputs + into_ball(moved - inputs, budget, o.norm), box)
            z = torch.where(column(done), z, moved)
            if bool(done.all()):  # waiting for the device is little beside the passes that this saves
                break
        return z

    def _together(self, draws: Sequence[Tensor], rows: int) -> list[Sequence[Tensor]]:
        """The draws in groups that fit into one pass of so many rows each."""
        size = max(1, self.options.chunk // rows)
        return [draws[first:first + size] for first in range(0, len(draws), size)]


def _noisy(images: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """All images with the first draw, then all with the second…"""
    return torch.cat([images + draw for draw in draws])
