"""What searches have in common: the loss and its gradient, and the closest image of another class so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

import certframe
from certframe_boundary.search.balls import Norm, column, size

Function = Callable[[Tensor], Tensor]
"""Pixels (N,C,H,W) → logits (N, classes), rows apart from each other: a model's `module`."""
Loss = Literal["margin", "ce", "dlr"]
_CLOSER = 1 - 1e-5
"""Of images equally far, as on the sphere of a budget, the first counts, and not the one that rounding favours."""


@dataclass(frozen=True)
class Adversarial:
    """What a search found, a row for each image.

    Attributes:
        images: (N,C,H,W): the closest image found that is not given the class; where `success` is False none was
            found, and it is the last one that was tried.
        success: (N,) bool, whether another class has a larger logit there.
        distance: (N,) of the images' type, the norm of the change, in pixel units; also where the search failed.
        classes: (N,) int64, the class of the largest logit there.
    """

    images: Tensor
    success: Tensor
    distance: Tensor
    classes: Tensor


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{c'≠c} f_{c'} − f_c, (N,): positive when the class has lost."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], float("-inf")).amax(1) - own


def refuse_one_class(logits: Tensor) -> None:
    """Without another class there is no boundary.

    Raises:
        UsageError: the model has one class only.
    """
    if logits.shape[1] < 2:
        raise certframe.UsageError("the model has one class only, so there is no decision boundary to look for: take "
                                   "a model with two classes or more")


def losses(logits: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """What a search maximises, (N,): the margin, the cross-entropy, or the difference of logits ratio.

    The last is margin / (f_(1) − f_(3)), f_(i) the i-th largest logit; with two classes, the margin itself. Source:
    F. Croce, M. Hein. Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks. ICML 2020.
    """
    if loss == "ce":
        return functional.cross_entropy(logits, labels, reduction="none")
    lead = margin(logits, labels)
    if loss == "margin" or logits.shape[1] < 3:
        return lead
    top = logits.topk(3, dim=1).values
    return lead / (top[:, 0] - top[:, 2]).clamp(min=1e-12)


def gradient_of(values: Tensor, z: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of the values' sum with respect to the pixels z.

    Raises:
        UsageError: there is none.
    """
    gradient = None
    if values.requires_grad:
        gradient, = torch.autograd.grad(values.sum(), z, allow_unused=True, retain_graph=keep)
    if gradient is None:
        raise certframe.UsageError("the model's logits have no gradient with respect to the picture, so its decision "
                                   "boundary cannot be looked for: they do not depend on it, or there is a no_grad, a "
                                   "detach or a step function on the way")
    return gradient


def ascent(function: Function, z: Tensor, labels: Tensor, loss: Loss,
           goals: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, losses (N,) and the gradient of the losses at z; all detached.

    Args:
        function: pixels → logits.
        z: (N,C,H,W).
        labels: (N,) int64.
        loss: what is maximised.
        goals: (N,) int64; a class c' takes f_{c'} − f_c in the place of the loss, −1 leaves it.

    Raises:
        UsageError: the logits have no gradient with respect to the pixels, or there is one class only.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        logits = function(z)
        refuse_one_class(logits)
        values = losses(logits, labels, loss)
        if goals is not None:
            lead = logits.gather(1, goals.clamp(min=0)[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]
            values = torch.where(goals < 0, values, lead)
        gradient = gradient_of(values, z)
    return logits.detach(), values.detach(), gradient


class Closest:
    """The closest image of another class so far, for every row; nothing waits for the device."""

    def __init__(self, images: Tensor, labels: Tensor, norm: Norm) -> None:
        self.start, self.labels, self.norm = images, labels, norm
        self.images, self.classes = images, labels
        self.distance = images.new_full((len(images),), float("inf"))

    @property
    def success(self) -> Tensor:
        """(N,) bool, where there is one."""
        return self.distance.isfinite()

    def note(self, z: Tensor, logits: Tensor) -> Tensor:
        """Keep the rows of z that have another class and are closer; returns which have another class, (N,) bool."""
        lost = margin(logits, self.labels) > 0
        distance = size(z - self.start, self.norm)
        self.keep(z, lost & (distance < self.distance * _CLOSER), distance, logits.argmax(1))
        return lost

    def keep(self, z: Tensor, rows: Tensor, distance: Tensor, classes: Tensor) -> None:
        """Replace some rows, (N,) bool."""
        self.distance = torch.where(rows, distance, self.distance)
        self.images = torch.where(column(rows), z, self.images)
        self.classes = torch.where(rows, classes, self.classes)

    def merge(self, other: Adversarial) -> None:
        """Keep what is closer in the result of another search."""
        closer = other.success & (other.distance < self.distance * _CLOSER)
        self.keep(other.images, closer, other.distance, other.classes)

    def result(self, last: Tensor, last_classes: Tensor) -> Adversarial:
        """The best rows, and the last image tried where there is none."""
        success = self.success
        images = torch.where(column(success), self.images, last)
        return Adversarial(images, success, size(images - self.start, self.norm),
                           torch.where(success, self.classes, last_classes))
