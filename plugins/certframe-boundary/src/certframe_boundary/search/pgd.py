"""Projected gradient ascent within a budget."""

from __future__ import annotations

import torch
from torch import Tensor

from certframe_boundary.search.balls import (
    Norm,
    column,
    confined,
    direction,
    drawn,
    free,
    into_ball,
    pixel_range,
)
from certframe_boundary.search.closest import Adversarial, Closest, Function, Loss, ascent


def pgd(function: Function, images: Tensor, labels: Tensor, budget: Tensor | float, *, norm: Norm = "l2",
        steps: int = 40, loss: Loss = "ce", rate: float = 2.5, seed: int | None = None,
        bounds: tuple[float, float] = (0.0, 1.0)) -> Adversarial:
    """Look for an image within the budget that is not given the label; the closest on the way counts, not the last.

    Every step is of the steepest direction (the sign of the gradient for linf), as long as rate · budget / steps, then
    back into the ball and the range of the pixels. Makes steps + 1 forward passes, and `steps` backward. What is found
    for an image does not depend on the others of the batch.

    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu. Towards deep learning models resistant to adversarial
    attacks. ICLR 2018.

    Args:
        function: pixels → logits, a model's `module`.
        images: (N,C,H,W). They may lie outside of the bounds, as noisy copies do; see `pixel_range`.
        labels: (N,) int64, the class to be lost.
        budget: the largest norm of the change, in pixel units; one for all, or (N,). 0 allows no change.
        norm: 'l2' or 'linf'.
        steps: number of steps.
        loss: what is maximised: 'ce' (cross-entropy), 'margin' or 'dlr'; see `losses`.
        rate: a step's length, in parts of budget / steps.
        seed: of a random start in the ball; None starts at the image.
        bounds: least and largest value of a pixel.

    Raises:
        UsageError: the model has one class only, or its logits no gradient.
    """
    budget = torch.as_tensor(budget, dtype=images.dtype, device=images.device).expand(len(images))
    images, box = images.detach(), pixel_range(images.detach(), bounds)
    best = Closest(images, labels, norm)
    z = images if seed is None else confined(images + drawn(images, budget, norm, seed), box)
    step = column(rate * budget / steps)
    for _ in range(steps):
        logits, _, gradient = ascent(function, z, labels, loss)
        best.note(z, logits)
        z = z + step * direction(free(gradient, z, box), norm)
        z = confined(images + into_ball(z - images, budget, norm), box)
    with torch.no_grad():
        logits = function(z)
    best.note(z, logits)
    return best.result(z, logits.argmax(1))
