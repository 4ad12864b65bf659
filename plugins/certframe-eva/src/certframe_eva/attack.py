"""The closest adversarial example that changes only some of the pixels, found by projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import certframe

Norm = Literal["l2", "linf"]
TINY = 1e-30  # below any gradient that means something


class AttackOptions(certframe.Options):
    """How the closest adversarial example is looked for; `evaluations` is what that costs."""

    norm: Norm = Field("linf", description="Norm of a change: 'l2' or 'linf', in pixel units.")
    trials: int = Field(10, ge=1, description="Budgets of the binary search; each is a run of projected gradient "
                                              "descent.")
    steps: int = Field(10, ge=1, description="Steps of each run; each costs a forward and a backward pass.")
    halvings: int = Field(8, ge=0, description="Halvings of the way back to the image from the example found, a "
                                               "forward pass each.")
    chunk: int = Field(256, ge=1, description="Largest number of images in one pass; changes no result.")

    @property
    def evaluations(self) -> int:
        """Forward passes for each image and mask; `trials` · `steps` of them are followed by a backward pass."""
        return self.trials * (self.steps + 1) + self.halvings


@dataclass(frozen=True)
class Nearest:
    """The closest adversarial examples that were found.

    Attributes:
        distance: (N,) float32, infinite where none was found, 0 where the image itself is not given its class.
        example: (N,C,H,W), the image where none was found.
    """

    distance: Tensor
    example: Tensor


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """max_{c'≠c} f_{c'} − f_c, (N,): positive when the class has lost."""
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], float("-inf"))
    return others.amax(1) - own[:, 0]


def size(change: Tensor, norm: Norm) -> Tensor:
    """The norm of every row of (N,C,H,W), (N,)."""
    return change.flatten(1).norm(dim=1) if norm == "l2" else change.flatten(1).abs().amax(1)


def reach(images: Tensor, masks: Tensor, norm: Norm) -> Tensor:
    """The norm of the largest change within the mask and the pixel range, (N,)."""
    low, high = _box(images)
    return size(torch.maximum(images - low, high - images) * masks, norm)


def nearest(module: nn.Module, images: Tensor, classes: Tensor, masks: Tensor, options: AttackOptions) -> Nearest:
    """Look for the closest change, within the mask, with which the class is no longer the highest logit.

    Budgets are searched from the largest change that the pixel range allows: half of the smallest distance so far
    while the search fails without a success, else half way between the largest budget that failed and that distance. A
    run maximises max_{c'≠c} f_{c'} − f_c in a ball of the budget's radius; it goes on from the best example, pulled
    into the ball, so that the runs build on one another. Every adversarial example on the way counts, not only the
    last. At the end the segment from the image to the best example is halved. What is found is an upper bound of the
    true distance; `options.evaluations` forward passes for each row are made, whatever happens.

    Args:
        module: pixels (N,C,H,W) → logits (N, classes).
        images: (N,C,H,W). Changed pixels stay in [0, 1]; one that is outside already stays between there and [0, 1].
        classes: (N,) int64.
        masks: (N,1,H,W) bool, the pixels that may change; all channels of a pixel do.
        options: norm and effort.
    """
    parts = [_search(module, x, c, m, options) for x, c, m in zip(
        images.split(options.chunk), classes.split(options.chunk), masks.split(options.chunk), strict=True)]
    return Nearest(torch.cat([part.distance for part in parts]), torch.cat([part.example for part in parts]))


def _search(module: nn.Module, images: Tensor, classes: Tensor, masks: Tensor, o: AttackOptions) -> Nearest:
    """`nearest` for the rows of one pass."""
    found = _Found(images, o.norm)
    failed = torch.zeros_like(found.distance)
    budget = reach(images, masks, o.norm)
    for _ in range(o.trials):
        _descend(module, images, classes, masks, budget, found, o)
        success = found.distance <= budget
        known = found.distance.isfinite()
        failed = torch.where(known & ~success, torch.maximum(failed, budget), failed)
        budget = torch.where(known, (failed + found.distance) / 2, budget / 2)
    with torch.no_grad():
        near, far = torch.zeros_like(budget), torch.ones_like(budget)
        end = found.example
        for _ in range(o.halvings):
            middle = (near + far) / 2
            z = images + _column(middle) * (end - images)
            lost = found.note(z, margin(module(z), classes))
            near, far = torch.where(lost, near, middle), torch.where(lost, middle, far)
    return Nearest(found.distance, found.example)


class _Found:
    """The best examples so far."""

    def __init__(self, images: Tensor, norm: Norm) -> None:
        self.images, self.norm = images, norm
        self.distance = torch.full_like(images[:, 0, 0, 0], float("inf"), dtype=torch.float32)
        self.example = images

    def note(self, z: Tensor, margins: Tensor) -> Tensor:
        """Keep the rows that are adversarial and closer than before; returns which are adversarial, (N,) bool."""
        lost = margins > 0
        distance = size(z - self.images, self.norm).float()
        closer = lost & (distance < self.distance)
        self.distance = torch.where(closer, distance, self.distance)
        self.example = torch.where(_column(closer), z, self.example)
        return lost


def _descend(module: nn.Module, images: Tensor, classes: Tensor, masks: Tensor, budget: Tensor, found: _Found,
             o: AttackOptions) -> None:
    """One run within the budget (N,), from the best example pulled into the ball; notes what it finds."""
    low, high = _box(images)
    pull = (budget / found.distance).clamp(max=1.0)  # 0 when there is no example yet
    z = images + _column(pull) * (found.example - images)
    rate = _column(2.5 * budget / o.steps)
    for step in range(o.steps + 1):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            margins = margin(module(z), classes)
            gradient = torch.autograd.grad(margins.sum(), z)[0] if step < o.steps else None
        with torch.no_grad():
            z = z.detach()
            found.note(z, margins.detach())
            if gradient is None:
                return
            # A pixel at the end of its range is left out when the gradient leads it outside: it would waste the step.
            stuck = ((z <= low) & (gradient < 0)) | ((z >= high) & (gradient > 0))
            gradient = torch.where(stuck | ~masks, 0, gradient)
            z = images + _into_ball(z + rate * _direction(gradient, o.norm) - images, budget, o.norm)
            z = torch.where(masks, torch.minimum(torch.maximum(z, low), high), images)


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest direction of norm 1."""
    if norm == "linf":
        return gradient.sign()
    return gradient / _column(size(gradient, norm).clamp(min=TINY))


def _into_ball(change: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """The change, projected to the ball of the radius (N,)."""
    if norm == "linf":
        return torch.minimum(torch.maximum(change, -_column(radius)), _column(radius))
    return change * _column((radius / size(change, norm).clamp(min=TINY)).clamp(max=1.0))


def _box(images: Tensor) -> tuple[Tensor, Tensor]:
    """The range of every pixel: [0, 1], and up to where the pixel is when that is outside."""
    return images.clamp(max=0.0), images.clamp(min=1.0)


def _column(values: Tensor) -> Tensor:
    """(N,) → (N,1,1,1)."""
    return values[:, None, None, None]
