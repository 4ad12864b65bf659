"""AutoPGD: projected gradient ascent that halves its step when it no longer gains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from certframe_boundary.search.balls import Norm, column, confined, direction, drawn, into_ball, pixel_range
from certframe_boundary.search.closest import Adversarial, Closest, Function, Loss, ascent

_MOMENTUM, _GAINING = 0.75, 0.75


def auto_pgd(function: Function, images: Tensor, labels: Tensor, budget: Tensor | float, *, norm: Norm = "l2",
             steps: int = 100, loss: Loss = "ce", seed: int | None = None,
             bounds: tuple[float, float] = (0.0, 1.0)) -> Adversarial:
    """Look for an image within the budget that is not given the label, by AutoPGD; the closest on the way counts.

    Steps have momentum 0.75 and begin with twice the budget. At checkpoints, in shrinking intervals, a row whose loss
    rose in less than 3/4 of the steps since the last one, or whose best loss has not changed since while its step has
    not been halved either, goes on from its best image with half the step. Makes steps + 1 forward passes and as many
    backward.

    F. Croce, M. Hein. Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks.
    ICML 2020, algorithm 1.

    Args:
        function: pixels → logits, a model's `module`.
        images: (N,C,H,W).
        labels: (N,) int64, the class to be lost.
        budget: the largest norm of the change, in pixel units; one for all, or (N,).
        norm: 'l2' or 'linf'.
        steps: number of steps.
        loss: what is maximised: 'ce', 'margin' or 'dlr'.
        seed: of a random start in the ball; None starts at the image.
        bounds: least and largest value of a pixel.

    Raises:
        UsageError: the model has one class only, or its logits no gradient.
    """
    budget = torch.as_tensor(budget, dtype=images.dtype, device=images.device).expand(len(images))
    images, box = images.detach(), pixel_range(images.detach(), bounds)
    best = Closest(images, labels, norm)

    def into(z: Tensor) -> Tensor:
        return confined(images + into_ball(z - images, budget, norm), box)

    z = images if seed is None else into(images + drawn(images, budget, norm, seed))
    logits, value, gradient = ascent(function, z, labels, loss)
    best.note(z, logits)
    before, top = z, (z, value, gradient)  # the image before z, and the one of the largest loss so far
    size = 2 * budget
    gains, halved, mark = torch.zeros_like(value), torch.ones_like(value, dtype=torch.bool), value
    marks = checkpoints(steps)
    since = 0
    for step in range(1, steps + 1):
        ahead = into(z + column(size) * direction(gradient, norm))
        share = 1.0 if step == 1 else _MOMENTUM
        moved = into(z + share * (ahead - z) + (1 - share) * (z - before))
        before, old = z, value
        z = moved
        logits, value, gradient = ascent(function, z, labels, loss)
        best.note(z, logits)
        gains = gains + (value > old)
        better = value > top[1]
        top = (torch.where(column(better), z, top[0]), torch.where(better, value, top[1]),
               torch.where(column(better), gradient, top[2]))
        if step in marks:
            slow = gains < _GAINING * (step - since)
            stalled = ~halved & (mark >= top[1])
            halved, mark, since, gains = slow | stalled, top[1], step, torch.zeros_like(gains)
            size = torch.where(halved, size / 2, size)
            z, value, gradient = (torch.where(column(halved), top[0], z), torch.where(halved, top[1], value),
                                  torch.where(column(halved), top[2], gradient))
            before = torch.where(column(halved), top[0], before)
    return best.result(z, logits.argmax(1))


def checkpoints(steps: int) -> set[int]:
    """The steps after which the step size is looked at: ⌈p_j · steps⌉, p = 0.22, then + max(last − 0.03, 0.06)."""
    marks, at, interval = set(), 0.22, 0.22
    while at < 1 + 1e-9:
        marks.add(math.ceil(at * steps - 1e-9))
        interval = max(interval - 0.03, 0.06)
        at += interval
    return marks
