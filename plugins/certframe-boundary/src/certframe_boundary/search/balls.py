"""Changes of images in two norms, and the range of pixel values that they may not leave.

Everything is for a batch: N images (N,C,H,W) in pixel units, and one norm, radius or budget (N,) for each.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["l2", "linf"]
TINY = 1e-30  # below any gradient that means something


def column(values: Tensor) -> Tensor:
    """(N,) → (N,1,1,1)."""
    return values[:, None, None, None]


def size(change: Tensor, norm: Norm) -> Tensor:
    """The norm of every row, (N,)."""
    flat = change.flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The change of norm 1 along which a function of this gradient rises most; 0 where the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    return gradient / column(size(gradient, norm).clamp(min=TINY))


def into_ball(change: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """The change, projected to the ball of the radius (N,)."""
    if norm == "linf":
        return torch.minimum(torch.maximum(change, -column(radius)), column(radius))
    return change * column((radius / size(change, norm).clamp(min=TINY)).clamp(max=1.0))


def pixel_range(images: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The least and largest value of every pixel: the bounds, or where it is when it is outside already.

    Noisy copies leave [0, 1]; a change may lead a pixel back, but no farther out.
    """
    return images.clamp(max=bounds[0]), images.clamp(min=bounds[1])


def confined(z: Tensor, box: tuple[Tensor, Tensor]) -> Tensor:
    """The images, with every pixel in its range."""
    return torch.minimum(torch.maximum(z, box[0]), box[1])


def free(gradient: Tensor, z: Tensor, box: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient without the pixels that are at the end of their range and would be led outside."""
    stuck = ((z <= box[0]) & (gradient < 0)) | ((z >= box[1]) & (gradient > 0))
    return gradient.masked_fill(stuck, 0)


def drawn(images: Tensor, radius: Tensor, norm: Norm, seed: int) -> Tensor:
    """A random change, uniform in the ball; the same for every row up to its radius, whatever the batch."""
    generator = torch.Generator().manual_seed(seed)
    shape = images.shape[1:]
    if norm == "linf":
        unit = torch.rand(shape, generator=generator) * 2 - 1
    else:
        normal = torch.randn(shape, generator=generator)
        unit = normal / normal.norm() * torch.rand((), generator=generator) ** (1 / normal.numel())
    return unit.to(images) * column(radius)
