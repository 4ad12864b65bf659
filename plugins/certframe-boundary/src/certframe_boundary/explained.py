"""The maps that an attack looks at: of one image, smoothed over noise, or sparsified and smoothed.

All are differentiable functions of the image when the attribution method is. Noise is fixed: it is drawn once for each
image, so that the attacked function does not change from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

import certframe
from certframe_boundary.explanation_attack import ClassOf, MapOf

Variant = Literal["plain", "smoothed", "sparsified"]
Ranking = Literal["magnitude", "signed", "positive"]


def ranked(maps: Tensor, ranking: Ranking) -> Tensor:
    """(B,…) → (B,N), larger is more important."""
    flat = maps.flatten(1)
    return flat.abs() if ranking == "magnitude" else flat.clamp(min=0) if ranking == "positive" else flat


def relaxed(maps: Tensor, tau: float, gamma: float = 0.0) -> Tensor:
    """The sparsified map of [LEV, 2.5], (B,N) → (B,N) in [0, 1], with a gradient where it is between 0 and 1.

    1 for the γN largest, 0 below the τN-th largest, in between linear: g / g_[γN] (γ = 0 divides by the maximum).
    """
    count = maps.shape[1]
    order = maps.sort(dim=1, descending=True).values
    lowest = order[:, _pixels(tau, count) - 1, None].detach()
    highest = order[:, _pixels(gamma, count) - 1, None].clamp(min=1e-30)
    return torch.where(maps >= lowest, maps / highest, torch.zeros_like(maps)).clamp(0, 1)


def _pixels(share: float, count: int) -> int:
    """⌈share · N⌉, at least 1, as the sparsifiers count."""
    return max(1, math.ceil(Fraction(repr(share)) * count))


class Explained:
    """Maps of one attribution method, in one of three variants, over the images of an attack.

    Args:
        model: the model, or a smooth copy (`softplus.Softened`).
        attributor: the method.
        targets: (B,) int64, the class that is explained for each image.
        ranking: how a map becomes importance.
        variant: 'plain', 'smoothed' (mean over fixed noise) or 'sparsified' (mean of the sparsified maps).
        sigma: standard deviation of the noise in pixel units.
        samples: number of noisy copies.
        tau: share of the pixels that the sparsified map keeps.
        gamma: share of the pixels that it sets to 1.
        seed: of the noise.
    """

    def __init__(self, model: certframe.Model, attributor: certframe.Attributor, targets: Tensor, *,
                 ranking: Ranking = "magnitude", variant: Variant = "plain", sigma: float = 0.15, samples: int = 16,
                 tau: float = 0.2, gamma: float = 0.0, seed: int = 0) -> None:
        self.model, self.attributor, self.targets = model, attributor, targets
        self.ranking, self.variant, self.tau, self.gamma = ranking, variant, tau, gamma
        self.noise: Tensor | None = None
        if variant != "plain":
            generator = torch.Generator().manual_seed(seed)
            self.noise = sigma * torch.randn((samples, *model.input_size), generator=generator)

    def maps(self, z: Tensor, targets: Tensor) -> Tensor:
        """(R,h,w) maps of the method itself; with a graph when z has one and the method is differentiable.

        A randomised method draws the same for all rows and calls.
        """
        rng = certframe.CopyRng(0, "", "attack", [0] * len(z), z.device)
        with torch.enable_grad():
            return self.attributor.attribute(self.model, z, targets, rng=rng).maps

    def __call__(self, z: Tensor, owners: Tensor) -> Iterator[Tensor]:
        """The maps (R,N) whose mean is attacked: one, or one for each noisy copy."""
        targets = self.targets[owners]
        for noise in (None,) if self.noise is None else self.noise.to(z):
            found = ranked(self.maps(z if noise is None else z + noise, targets), self.ranking)
            yield relaxed(found, self.tau, self.gamma) if self.variant == "sparsified" else found


def class_of(model: certframe.Model, chunk: int = 256) -> ClassOf:
    """The predicted classes, without a gradient."""
    @torch.no_grad()
    def predict(z: Tensor) -> Tensor:
        return torch.cat([model.module(part).argmax(1) for part in torch.split(z, chunk)])
    return predict


def differentiable(map_of: MapOf, image: Tensor) -> bool:
    """Whether the map of one image (C,H,W) has a gradient with respect to it."""
    z = image[None].detach().clone().requires_grad_()
    with torch.enable_grad():
        found = next(iter(map_of(z, torch.zeros(1, dtype=torch.int64, device=image.device))))
        if not found.requires_grad:
            return False
        gradient, = torch.autograd.grad(found.sum(), z, allow_unused=True)
    return gradient is not None
