"""The default search: towards the class whose boundary looks nearest, then a walk along the boundary."""

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
from certframe_boundary.search.closest import Adversarial, Closest, Function, ascent, gradient_of, refuse_one_class

_DUAL = {"l2": 2.0, "linf": 1.0}
_BEYOND = 1.01
"""The first steps go a little past where a linear model would change its class."""


def minimum_norm(function: Function, images: Tensor, labels: Tensor, *, norm: Norm = "l2", steps: int = 40,
                 rivals: int = 5, bounds: tuple[float, float] = (0.0, 1.0)) -> Adversarial:
    """The closest image that is not given the label, by a budget ε that follows the success of every step.

    It sets out for the class, among those with the largest logits, that were nearest if the model were linear. A step
    goes along the steepest direction of the margin, then into the ball of radius ε and the range of the pixels. Until
    the class has changed once, ε is where the margin, taken as linear, would be 0; from then on it is a part γ below
    the smallest distance so far after a step that has changed the class, and grows by γ after one that has not. γ, and
    the length of a step in parts of ε, fall along a cosine. Nothing is random, and no length is fixed in pixel units.
    Makes steps + 1 forward passes, and steps + rivals − 1 backward.

    After J. Rony, L. G. Hafemann, L. S. Oliveira, I. Ben Ayed, R. Sabourin, E. Granger. Decoupling direction and norm
    for efficient gradient-based L2 adversarial attacks and defenses (DDN), CVPR 2019; M. Pintor, F. Roli, W. Brendel,
    B. Biggio. Fast minimum-norm adversarial attacks through adaptive norm constraints (FMN), NeurIPS 2021; and for the
    choice of the class S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard. DeepFool, CVPR 2016.

    Args:
        function: pixels → logits, a model's `module`.
        images: (N,C,H,W). They may lie outside of the bounds, as noisy copies do; see `pixel_range`.
        labels: (N,) int64, the class to be lost.
        norm: 'l2' or 'linf'.
        steps: number of steps.
        rivals: how many classes are compared at first; a backward pass each.
        bounds: least and largest value of a pixel.

    Raises:
        UsageError: the model has one class only, or its logits no gradient.
    """
    images, box = images.detach(), pixel_range(images.detach(), bounds)
    best = Closest(images, labels, norm)
    goals, epsilon, z = _set_out(function, images, best, box, rivals)
    for step in range(1, steps):
        fade = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        gamma, length = 0.01 + 0.09 * fade, 0.02 + 0.98 * fade
        logits, margins, gradient = ascent(function, z, labels, "margin", torch.where(best.success, -1, goals))
        lost = best.note(z, logits)
        gradient = free(gradient, z, box)
        guess = size(z - images, norm) - _BEYOND * margins / _slope(gradient, norm)
        grown = torch.where(best.success, epsilon * (1 + gamma), guess)
        epsilon = torch.where(lost, torch.minimum(epsilon, best.distance) * (1 - gamma), grown)
        z = _stepped(images, z, column(length * epsilon) * direction(gradient, norm), epsilon, norm, box)
    with torch.no_grad():
        logits = function(z)
    best.note(z, logits)
    return best.result(z, logits.argmax(1))


def _set_out(function: Function, images: Tensor, best: Closest, box: tuple[Tensor, Tensor],
             rivals: int) -> tuple[Tensor, Tensor, Tensor]:
    """The class that looks nearest, (N,); how far it looks, (N,); and the image after a step towards it."""
    labels, norm = best.labels, best.norm
    with torch.enable_grad():
        z = images.clone().requires_grad_()
        logits = function(z)
        refuse_one_class(logits)
        best.note(images, logits.detach())
        others = logits.detach().scatter(1, labels[:, None], float("-inf"))
        classes = others.topk(min(rivals, logits.shape[1] - 1), dim=1).indices
        margins = (logits.gather(1, classes) - logits.gather(1, labels[:, None])).unbind(1)
        gradients = [gradient_of(m, z, keep=True) for m in margins]
    steps = [free(gradient, images, box) for gradient in gradients]
    far = torch.stack([-_BEYOND * m.detach() / _slope(g, norm) for m, g in zip(margins, steps, strict=True)])
    epsilon, chosen = far.clamp(min=0).min(0)
    towards = torch.stack([direction(step, norm) for step in steps])[chosen, torch.arange(len(images))]
    goals = classes.gather(1, chosen[:, None])[:, 0]
    return goals, epsilon, _stepped(images, images, column(epsilon) * towards, epsilon, norm, box)


def _stepped(images: Tensor, z: Tensor, step: Tensor, epsilon: Tensor, norm: Norm,
             box: tuple[Tensor, Tensor]) -> Tensor:
    """A step, then into the ball of radius ε around the images and the range of the pixels."""
    return confined(images + into_ball(z + step - images, epsilon, norm), box)


def _slope(gradient: Tensor, norm: Norm) -> Tensor:
    """How fast the margin rises along the steepest direction, (N,): the dual norm of its gradient."""
    return gradient.flatten(1).norm(p=_DUAL[norm], dim=1).clamp(min=TINY)
