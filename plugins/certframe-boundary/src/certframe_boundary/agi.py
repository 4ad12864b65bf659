"""Adversarial gradient integration: what the class loses on the ways to other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

import certframe
from certframe_boundary.search.balls import confined, pixel_range
from certframe_boundary.search.closest import Function, gradient_of, refuse_one_class


class Agi:
    """Σ over other classes t of Σ_j −∂p_c/∂x_j ⊙ (x_{j+1} − x_j) on the way from x to t, summed over channels.

    The way is x_{j+1} = clip(x_j + s · sign ∂p_t/∂x_j), and ends where t is predicted or after `steps` steps; p are
    softmax scores. The t are the classes with the largest logits but c. It needs no baseline: every way ends at one of
    its own, beyond a boundary of the class. A way that does not arrive counts as far as it went. Every noisy copy is
    explained by itself, so a certificate is about the smoothed map as for any other method.

    D. Pan, X. Li, D. Zhu. Explaining deep neural network models with adversarial gradient integration. IJCAI 2021; the
    settings are those of Wang, Fredrikson, Datta, ICML 2022.
    """

    class Options(certframe.Options):
        """Options of `agi`."""

        classes: int = Field(15, ge=1, description="How many other classes; all there are when they are fewer.")
        steps: int = Field(20, ge=1, description="Largest number of steps towards a class.")
        step: float = Field(0.05, gt=0, allow_inf_nan=False, description="s, how much every pixel changes in a step, "
                                                                         "in pixel units.")
        bounds: tuple[float, float] = Field((0.0, 1.0), description="Least and largest value of a pixel. A pixel that "
                                                                    "is outside already goes no farther.")
        chunk: int = Field(32, ge=1, description="Largest number of images in one pass; changes no result.")

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    family: ClassVar[str] = "backpropagation"
    execution: ClassVar[frozenset[str]] = frozenset({"chunk"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Few steps."""
        return {"classes": 2, "steps": 3}

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """(B,h,w) maps of either sign, and the logits; at most classes · (steps + 1) + 1 passes, most also backward.

        Raises:
            UsageError: the model has one class only, or its logits no gradient.
        """
        inputs = inputs.detach()
        with certframe.full_precision(inputs.device):
            with torch.no_grad():
                logits = torch.cat([model.module(x) for x in torch.split(inputs, self.options.chunk)])
            refuse_one_class(logits)
            others = logits.scatter(1, targets[:, None], float("-inf"))
            goals = others.topk(min(self.options.classes, logits.shape[1] - 1), dim=1).indices
            maps = torch.zeros_like(inputs)
            for goal in goals.unbind(1):
                for rows in torch.split(torch.arange(len(inputs), device=inputs.device), self.options.chunk):
                    maps[rows] += self._way(model.module, inputs[rows], targets[rows], goal[rows])
        return certframe.Attribution(maps.sum(1).float(), logits.float())

    def _way(self, function: Function, images: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
        """What the class loses on the way of every row to its goal, (N,C,H,W)."""
        o, total = self.options, torch.zeros_like(images)
        rows, z, box = torch.arange(len(images), device=images.device), images, pixel_range(images, o.bounds)
        for _ in range(o.steps):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                scores = functional.log_softmax(function(z), dim=1)
                # The sign of ∂p_t is that of ∂ log p_t, which does not vanish where p_t is 0 in float32.
                towards = gradient_of(scores.gather(1, goals[rows, None]), z, keep=True).sign()
                loss = gradient_of(scores.gather(1, targets[rows, None]).exp(), z)
            under_way = scores.detach().argmax(1) != goals[rows]
            moved = confined(z.detach() + o.step * towards, (box[0][rows], box[1][rows]))
            part = -loss * (moved - z.detach())
            total[rows] += part * under_way[:, None, None, None]
            # Waiting for the device here saves most of the passes: few ways take all the steps.
            rows, z = rows[under_way], moved[under_way]
            if not len(rows):
                break
        return total
