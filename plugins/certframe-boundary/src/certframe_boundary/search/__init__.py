"""Looking for the nearest decision boundary of an image classifier."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

import certframe
from certframe_boundary.search.balls import Norm, column
from certframe_boundary.search.closest import Adversarial, Closest, Function
from certframe_boundary.search.minimum_norm import minimum_norm
from certframe_boundary.search.published import published_search

__all__ = ["Adversarial", "SearchOptions", "nearest"]


class SearchOptions(certframe.Options):
    """How the nearest point of another class is looked for."""

    search: Literal["minimum-norm", "published"] = Field(
        "minimum-norm", description="'minimum-norm': one walk along the boundary; 'published': projected gradients at "
                                    "several budgets, Carlini and Wagner, AutoPGD, of which the closest counts; "
                                    "farther and many times slower.")
    norm: Norm = Field("l2", description="What 'nearest' means: 'l2' or 'linf', in pixel units.")
    steps: int = Field(20, ge=1, description="Steps of the walk, or of projected gradients at each budget; each costs "
                                             "a forward and a backward pass.")
    halvings: int = Field(8, ge=0, description="Halvings of the way from the image to the point found, which end at "
                                               "the boundary; a forward pass each.")
    rivals: int = Field(5, ge=1, description="Of how many classes the walk chooses the one that looks nearest; a "
                                             "backward pass each.")
    bounds: tuple[float, float] = Field((0.0, 1.0), description="Least and largest value of a pixel. A pixel that is "
                                                                "outside already, as in noisy copies, goes no farther.")
    chunk: int = Field(32, ge=1, description="Largest number of images in one pass; changes no result.")


def nearest(function: Function, images: Tensor, labels: Tensor, options: SearchOptions) -> Adversarial:
    """The nearest points of another class that the search finds, pulled back to the boundary.

    Computed in float32 (or the images' own type), also under autocast.

    Args:
        function: pixels → logits, a model's `module`.
        images: (N,C,H,W) in pixel units.
        labels: (N,) int64. An image that has another class already is its own nearest point, at distance 0.
        options: norm and effort.

    Raises:
        UsageError: the model has one class only, or its logits no gradient.
    """
    with certframe.full_precision(images.device):
        parts = [_nearest(function, x, c, options) for x, c in zip(
            torch.split(images.detach(), options.chunk), torch.split(labels, options.chunk), strict=True)]
    return Adversarial(*(torch.cat([getattr(part, name) for part in parts])
                         for name in ("images", "success", "distance", "classes")))


def _nearest(function: Function, images: Tensor, labels: Tensor, o: SearchOptions) -> Adversarial:
    """`nearest` for the rows of one pass."""
    if o.search == "published":
        found = published_search(function, images, labels, norm=o.norm, steps=o.steps, bounds=o.bounds)
    else:
        found = minimum_norm(function, images, labels, norm=o.norm, steps=o.steps, rivals=o.rivals, bounds=o.bounds)
    return pulled_back(function, images, labels, found, o.norm, o.halvings)


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
