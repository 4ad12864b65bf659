"""The default search: one walk along the boundary that closes in on the nearest point of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from certframe_boundary.search.balls import (
    TINY,
    Norm,
    column,
    confined,
    direction,
    free,
    into_ball,
    pixel_range,
    size,
)
from certframe_boundary.search.closest import Adversarial, Closest, Function, ascent

_DUAL = {"l2": 2.0, "linf": 1.0}


def minimum_norm(function: Function, images: Tensor, labels: Tensor, *, norm: Norm = "l2", steps: int = 50,
                 bounds: tuple[float, float] = (0.0, 1.0)) -> Adversarial:
    """The closest image that is not given the label, by a budget ε that follows the success of every step.

    A step goes along the steepest direction of the margin, then into the ball of radius ε and the range of the pixels.
    Until the class has changed once, ε is where the margin, taken as linear, would be 0; then it shrinks by a part γ
    below the smallest distance so far wherever the class has changed, and grows by γ where it has not. γ and the
    length of the steps, in parts of ε, fall along a cosine. Nothing is random, and no length is fixed in pixel units.
    Makes steps + 1 forward passes, and `steps` backward.

    After J. Rony, L. G. Hafemann, L. S. Oliveira, I. Ben Ayed, R. Sabourin, E. Granger. Decoupling direction and norm
    for efficient gradient-based L2 adversarial attacks and defenses (DDN), CVPR 2019; and M. Pintor, F. Roli, W.
    Brendel, B. Biggio. Fast minimum-norm adversarial attacks through adaptive norm constraints (FMN), NeurIPS 2021.

    Args:
        function: pixels → logits, a model's `module`.
        images: (N,C,H,W). They may lie outside of the bounds, as noisy copies do; see `pixel_range`.
        labels: (N,) int64, the class to be lost.
        norm: 'l2' or 'linf'.
        steps: number of steps.
        bounds: least and largest value of a pixel.

    Raises:
        UsageError: the model has one class only, or its logits no gradient.
    """
    images, box = images.detach(), pixel_range(images.detach(), bounds)
    best = Closest(images, labels, norm)
    z, epsilon = images, images.new_zeros(len(images))
    for step in range(steps):
        fade = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        gamma, length = 0.01 + 0.09 * fade, 0.02 + 0.98 * fade
        logits, margins, gradient = ascent(function, z, labels, "margin")
        lost = best.note(z, logits)
        gradient = free(gradient, z, box)
        slope = gradient.flatten(1).norm(p=_DUAL[norm], dim=1).clamp(min=TINY)
        guess = size(z - images, norm) - 1.01 * margins / slope
        grown = torch.where(best.success, epsilon * (1 + gamma), guess)
        epsilon = torch.where(lost, torch.minimum(epsilon, best.distance) * (1 - gamma), grown)
        z = z + column(length * epsilon) * direction(gradient, norm)
        z = confined(images + into_ball(z - images, epsilon, norm), box)
    with torch.no_grad():
        logits = function(z)
    best.note(z, logits)
    return best.result(z, logits.argmax(1))
