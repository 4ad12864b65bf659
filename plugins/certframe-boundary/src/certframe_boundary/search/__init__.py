"""Looking for the nearest decision boundary of an image classifier."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import certframe
from certframe_boundary.search.balls import Norm, column
from certframe_boundary.search.closest import Adversarial, Closest, Function
from certframe_boundary.search.minimum_norm import minimum_norm

__all__ = ["Adversarial", "SearchOptions", "nearest"]


class SearchOptions(certframe.Options):
    """How the nearest point of another class is looked for."""

    norm: Norm = Field("l2", description="What 'nearest' means: 'l2' or 'linf', in pixel units.")
    steps: int = Field(40, ge=1, description="Steps of the search; each costs a forward and a backward pass.")
    halvings: int = Field(8, ge=0, description="Halvings of the way from the image to the point found, which end at "
                                               "the boundary; a forward pass each.")
    bounds: tuple[float, float] = Field((0.0, 1.0), description="Least and largest value of a pixel. A pixel that is "
                                                                "outside already, as in noisy copies, goes no farther.")
    chunk: int = Field(32, ge=1, description="Largest number of images in one pass; changes no result.")


def nearest(function: Function, images: Tensor, labels: Tensor, options: SearchOptions) -> Adversarial:
    """The nearest points of another class that the search finds, pulled back to the boundary.

    Args:
        function: pixels → logits, a model's `module`.
        images: (N,C,H,W) in pixel units.
        labels: (N,) int64. An image that has another class already is its own nearest point, at distance 0.
        options: norm and effort.

    Raises:
        UsageError: the model has one class only, or its logits no gradient.
    """
    parts = [_nearest(function, x, c, options)
             for x, c in zip(torch.split(images, options.chunk), torch.split(labels, options.chunk), strict=True)]
    return Adversarial(*(torch.cat([getattr(part, name) for part in parts])
                         for name in ("images", "success", "distance", "classes")))


def _nearest(function: Function, images: Tensor, labels: Tensor, o: SearchOptions) -> Adversarial:
    """`nearest` for the rows of one pass."""
    found = minimum_norm(function, images, labels, norm=o.norm, steps=o.steps, bounds=o.bounds)
    return pulled_back(function, images.detach(), labels, found, o.norm, o.halvings)


@torch.no_grad()
def pulled_back(function: Function, images: Tensor, labels: Tensor, found: Adversarial, norm: Norm,
                halvings: int) -> Adversarial:
    """Halve the way from the image to every point found, keeping the half at whose end the class is another."""
    best = Closest(images, labels, norm)
    best.merge(found)
    way = found.images - images
    near, far = torch.zeros_like(found.distance), torch.ones_like(found.distance)
    for _ in range(halvings):
        middle = (near + far) / 2
        z = images + column(middle) * way
        lost = best.note(z, function(z))
        near, far = torch.where(lost, near, middle), torch.where(lost, middle, far)
    return best.result(found.images, found.classes)
