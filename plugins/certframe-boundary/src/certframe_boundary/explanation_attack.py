"""Attacks on explanations: a small change of the image that moves the map elsewhere and leaves the class.

A. Levine, S. Singla, S. Feizi. Certifiably robust interpretation in deep learning. 2019, appendix C, Algorithm 1 [LEV].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

import certframe
from certframe_boundary.search.balls import Norm, column, confined, direction, into_ball, pixel_range, size

MapOf = Callable[[Tensor, Tensor], Iterable[Tensor]]
"""Images (R,C,H,W) and, for each, the image (R,) it is a change of → maps (R,N), differentiable, whose mean is the map.

They come one at a time, so that no more than one of their graphs is in memory.
"""
ClassOf = Callable[[Tensor], Tensor]
"""Images (R,C,H,W) → classes (R,)."""
_HALVINGS = 12
"""A step that changes the class is made shorter so often, down to a 4000th, and then left out."""


class AttackOptions(certframe.Options):
    """How an explanation is attacked; the defaults are those of [LEV]."""

    norm: Norm = Field("l2", description="Norm of the change: 'l2' or 'linf', in pixel units.")
    rho: float = Field(0.1, ge=0.0, allow_inf_nan=False, description="Largest norm of the change, in pixel units.")
    k: float = Field(20.0, gt=0.0, lt=100.0, description="Percent of the pixels that the attack drives out of the top.")
    steps: int = Field(20, ge=1, description="P, accepted steps of each restart.")
    tries: int = Field(100, ge=1, description="Q, starts drawn at most for an image, to find some with its class.")
    restarts: int = Field(5, ge=1, description="T, starts from which the attack sets out.")
    seed: int = Field(0, ge=0, description="Seed of the starts, and of the noise of smoothed maps.")
    chunk: int = Field(64, ge=1, description="Largest number of images in one pass; changes no result.")


@dataclass(frozen=True)
class Attacked:
    """What an attack found, a row for each of B images.

    Attributes:
        images: (B,C,H,W), within the ball and in [0, 1], of the same class; where `found` is False the image itself.
        found: (B,) bool, whether there was a start of the same class.
        distance: (B,) the norm of the change, in pixel units.
        starts: (B,) how many starts of the same class were found, at most `restarts`.
        objective: (B,) D, minus the sum of the map at `images` over the top pixels before the attack.
        before: (B,) D at the image itself.
    """

    images: Tensor
    found: Tensor
    distance: Tensor
    starts: Tensor
    objective: Tensor
    before: Tensor


def top(maps: Tensor, k: float) -> Tensor:
    """(B,N) → (B,N) bool, the max(1, round(N·k/100)) largest of each row."""
    order = maps.topk(max(1, round(maps.shape[1] * k / 100)), dim=1).indices
    return torch.zeros_like(maps, dtype=torch.bool).scatter_(1, order, True)


def overlap(maps: Tensor, others: Tensor, k: float) -> Tensor:
    """R(x, x̃, K), (B,): the share of the top k percent of one map that is in the top k percent of the other."""
    ours = top(maps, k)
    return (ours & top(others, k)).sum(1) / ours.sum(1)


@torch.no_grad()
def mean_map(map_of: MapOf, images: Tensor, chunk: int, owners: Tensor | None = None) -> Tensor:
    """The map itself, (R,N), without a gradient; of the images themselves when no owners are given."""
    owners = torch.arange(len(images), device=images.device) if owners is None else owners
    found = []
    for part in zip(torch.split(images, chunk), torch.split(owners, chunk), strict=True):
        total, count = torch.zeros(()), 0
        for maps in map_of(*part):
            total, count = total.to(maps.device) + maps.detach(), count + 1
        found.append(total / count)
    return torch.cat(found)


def attack(map_of: MapOf, class_of: ClassOf, images: Tensor, options: AttackOptions) -> Attacked:
    """Maximise D(z) = −Σ_{i ∈ top K of h(x)} h_i(z) over the ball around x, where the class of z is that of x.

    Algorithm 1 of [LEV], all images and restarts at once. From starts on the sphere, of the class of x, steps
    x ← x + α∇D, projected to the ball and to [0, 1], with α = ρ/‖∇D(x₀)‖ at first and α·p/(p+1) after the p-th step; a
    step that changes the class is halved until it does not. For linf the step is along the sign of the gradient, ρ long
    at first. The best iterate of all restarts is returned, starts included. With ρ = 0 that is the image.

    Args:
        map_of: the maps; larger is more important.
        class_of: the classes; usually of the model itself, where `map_of` is of a smooth copy.
        images: (B,C,H,W) in [0, 1].
        options: norm, radius and effort.

    Raises:
        UsageError: the maps have no gradient with respect to the images.
    """
    o, images = options, images.detach()
    search = _Search(map_of, class_of, images, options)
    starts, owners = search.starts()
    best = images.clone()
    with torch.no_grad():
        before = search.value(images, torch.arange(len(images), device=images.device))
    if o.rho == 0:
        every = torch.ones(len(images), dtype=torch.bool, device=images.device)
        return Attacked(best, every, torch.zeros_like(before), every.long() * o.restarts, before, before)
    objective = torch.full_like(before, -torch.inf)
    if len(starts):
        places, values = search.climb(starts, owners)
        order = values.argsort(descending=True)
        order = order[owners[order].argsort(stable=True)]  # image by image, the largest D first
        firsts = order[torch.diff(owners[order], prepend=owners.new_tensor([-1])) != 0]
        best[owners[firsts]], objective[owners[firsts]] = places[firsts], values[firsts]
    found = torch.bincount(owners, minlength=len(images))
    objective = torch.where(found > 0, objective, before)
    return Attacked(best, found > 0, size(best - images, o.norm), found, objective, before)


class _Search:
    """One attack: what does not change while it lasts."""

    def __init__(self, map_of: MapOf, class_of: ClassOf, images: Tensor, options: AttackOptions) -> None:
        self.map_of, self.class_of, self.images, self.options = map_of, class_of, images, options
        self.box = pixel_range(images, (0.0, 1.0))
        with torch.no_grad():
            self.classes = class_of(images)
            self.top = top(mean_map(map_of, images, options.chunk), options.k)

    def value(self, z: Tensor, owners: Tensor) -> Tensor:
        """D, (R,)."""
        maps = mean_map(self.map_of, z, self.options.chunk, owners)
        return -(maps * self.top[owners]).sum(1)

    def rise(self, z: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """D and its gradient."""
        chunk = self.options.chunk
        parts = [self._rise(*part) for part in zip(torch.split(z, chunk), torch.split(owners, chunk), strict=True)]
        values, gradients = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(gradients)

    def _rise(self, z: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """`rise` of the rows of one pass; D is linear in the map, so its parts are differentiated one by one."""
        total, slope, count = z.new_zeros(len(z)), torch.zeros_like(z), 0
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            for maps in self.map_of(z, owners):
                values = -(maps * self.top[owners]).sum(1)
                gradient = None
                if values.requires_grad:
                    gradient, = torch.autograd.grad(values.sum(), z, allow_unused=True)
                if gradient is None:
                    raise certframe.UsageError(
                        "the map has no gradient with respect to the picture, so it cannot be attacked by gradients: "
                        "take a differentiable method such as gradient or grad-cam")
                total, slope, count = total + values.detach(), slope + gradient, count + 1
        return total / count, slope / count

    def into_range(self, z: Tensor, owners: Tensor) -> Tensor:
        """Projected to the ball around the row's image, then to the range of the pixels."""
        origin = self.images[owners]
        radius = z.new_full((len(z),), self.options.rho)
        return confined(origin + into_ball(z - origin, radius, self.options.norm),
                        (self.box[0][owners], self.box[1][owners]))

    def keeps(self, z: Tensor, owners: Tensor) -> Tensor:
        """(R,) bool: the class is that of the image."""
        with torch.no_grad():
            return self.class_of(z) == self.classes[owners]

    def starts(self) -> tuple[Tensor, Tensor]:
        """Up to T starts of the right class for each image, from Q tries at most: images (R,C,H,W) and owners (R,)."""
        o, shape = self.options, self.images.shape
        generators = [torch.Generator().manual_seed(o.seed * 1_000_003 + row) for row in range(shape[0])]
        lacking, done = [o.restarts] * shape[0], 0
        places, owners = [], []
        while done < o.tries and any(lacking):
            draws = min(max(o.restarts, 2 * done), o.tries - done)  # more and more, for images that are hard
            wanted = [row for row, count in enumerate(lacking) if count]
            done += draws
            for some in torch.split(torch.tensor(wanted), max(1, 4 * o.chunk // draws)):
                z, rows = self._draw([generators[row] for row in some.tolist()], some.to(self.images.device), draws)
                kept = self.keeps(z, rows).view(len(some), draws)
                for index, row in enumerate(some.tolist()):
                    good = torch.nonzero(kept[index])[:lacking[row], 0].tolist()
                    places += [z[index * draws + number] for number in good]
                    owners += [row] * len(good)
                    lacking[row] -= len(good)
        found = torch.tensor(owners, dtype=torch.int64, device=self.images.device)
        return (torch.stack(places) if places else self.images[:0]), found

    def _draw(self, generators: Sequence[torch.Generator], rows: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """So many points on the sphere around each image, brought into the range of the pixels, and their images."""
        o, shape = self.options, self.images.shape[1:]
        noise = torch.cat([torch.randn((draws, *shape), generator=generator) for generator in generators])
        noise = noise.to(self.images)
        if o.norm == "linf":
            noise = torch.erf(noise / 2**0.5)  # uniform in [−1, 1]
        owners = rows.repeat_interleave(draws)
        unit = noise / column(size(noise, o.norm).clamp(min=1e-30))
        return self.into_range(self.images[owners] + o.rho * unit, owners), owners

    def climb(self, z: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """From each start P steps; the iterate of largest D of each, and that D."""
        o = self.options
        values, gradient = self.rise(z, owners)
        best, largest = z, values
        length = torch.full_like(values, o.rho)
        if o.norm == "l2":
            length = length / size(gradient, "l2").clamp(min=1e-30)
        for step in range(1, o.steps + 1):
            way = direction(gradient, "linf") if o.norm == "linf" else gradient
            z, length = self.advance(z, owners, way, length)
            values, gradient = self.rise(z, owners)
            better = values > largest
            best, largest = torch.where(column(better), z, best), torch.where(better, values, largest)
            length = length * step / (step + 1)
        return best, largest

    def advance(self, z: Tensor, owners: Tensor, way: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """One step of each row, halved until the class is kept; a row stays where that does not help."""
        ahead, length = z.clone(), length.clone()
        waiting = torch.arange(len(z), device=z.device)
        for _ in range(_HALVINGS):
            there = self.into_range(z[waiting] + column(length[waiting]) * way[waiting], owners[waiting])
            kept = self.keeps(there, owners[waiting])
            ahead[waiting[kept]] = there[kept]
            waiting = waiting[~kept]
            if not len(waiting):
                break
            length[waiting] /= 2
        return ahead, length
