"""Sets of perturbations, and the largest value of a linear functional on them.

Every item (an image) has Q sets, which share everything but the variables that are held fixed: the ball B and the
balls B_u with δ_u = 0, for instance. What a functional can reach on all of them is one matrix product for p = ∞ and
p = 2.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import certframe
from certframe_eva.rows import Rows

NORMS = (1.0, 2.0, math.inf)
_TRIES = (1.0, 0.97, 0.92, 0.85, 0.7, 0.5)
"""Multipliers of sets with fixed variables that are tried, as parts of the one for the whole ball."""


@dataclass(frozen=True)
class Region:
    """Perturbations δ of M items, Q sets for each; 0 is in all of them.

    A set is {δ : ‖δ‖_p ≤ ε, low ≤ δ ≤ high, δ = 0 where `free` is 0}. For boxes p is ∞ and ε too.

    Attributes:
        centre: (M, *shape), what the perturbations are added to.
        p: 1, 2 or ∞.
        eps: ε.
        low: (M or 1, Q or 1, *shape), ≤ 0; the axis of the channels may have length 1.
        high: likewise, ≥ 0.
        free: (M or 1, Q, *shape), 1 or 0; the axis of the channels may have length 1.
        clipped: whether `low` and `high` cut something off the ball.
    """

    centre: Tensor
    p: float
    eps: float
    low: Tensor
    high: Tensor
    free: Tensor
    clipped: bool = False

    @classmethod
    def ball(cls, centre: Tensor, eps: float, p: float, *, sign: int = 0, fixed: Tensor | None = None,
             clip: bool = False) -> Region:
        """‖δ‖_p ≤ ε around every item.

        Args:
            centre: (M, *shape), usually (M,C,H,W) in pixel units.
            eps: radius, above 0, in the same units.
            p: 1, 2 or infinity.
            sign: 1 for δ ≥ 0 only, −1 for δ ≤ 0 only, 0 for both.
            fixed: (Q, H, W) or (Q, *shape) bool: where set q has δ = 0; by default there is one set, the ball.
            clip: stay within [0, 1] as far as the item does: x + δ ∈ [min(x, 0), max(x, 1)].

        Raises:
            UsageError: a value out of range.
        """
        if p not in NORMS:
            raise certframe.UsageError(f"p={p:g}: perturbations are bounded in the 1-, 2- or inf-norm")
        if not (eps > 0 and math.isfinite(eps)):
            raise certframe.UsageError(f"eps={eps:g}: give a radius above 0, in pixel units")
        if sign not in (-1, 0, 1):
            raise certframe.UsageError(f"sign={sign}: give 1 for δ ≥ 0, -1 for δ ≤ 0, or 0 for both")
        shape = centre.shape[1:]
        ones = centre.new_ones((1, 1, *_narrow(shape)))
        low, high = -eps * ones * (sign <= 0), eps * ones * (sign >= 0)
        if clip:
            zero = torch.zeros((), dtype=centre.dtype, device=centre.device)
            low = torch.maximum(low, torch.minimum(-centre, zero).unsqueeze(1))
            high = torch.minimum(high, torch.maximum(1 - centre, zero).unsqueeze(1))
        free = ones if fixed is None else 1 - _masks(fixed, shape).to(centre)
        return cls(centre.detach(), float(p), float(eps), low, high, free, clip)

    @classmethod
    def box(cls, low: Tensor, high: Tensor) -> Region:
        """All values between two arrays; (M, *shape), or (M, Q, *shape) when `low` and `high` have an axis more.

        The two have the shape (M, Q, *shape); the centre is the mean over the sets of the middle.
        """
        centre = (low + high).mean(1) / 2
        # A centre outside of a set would break 0 ∈ set; the functionals' values are the same wherever the centre is.
        return cls(centre, math.inf, math.inf, low - centre[:, None], high - centre[:, None],
                   low.new_ones((1, low.shape[1], *_narrow(low.shape[2:]))))

    @property
    def items(self) -> int:
        """M."""
        return len(self.centre)

    @property
    def sets(self) -> int:
        """Q."""
        return max(self.free.shape[1], self.low.shape[1])

    def some(self, sets: slice | Tensor) -> Region:
        """Only these sets."""
        def cut(t: Tensor) -> Tensor:
            return t[:, sets] if t.shape[1] > 1 else t
        return replace(self, low=cut(self.low), high=cut(self.high), free=cut(self.free))

    def of_items(self, items: slice) -> Region:
        """Only these items."""
        def cut(t: Tensor) -> Tensor:
            return t[items] if len(t) > 1 else t
        return replace(self, centre=self.centre[items], low=cut(self.low), high=cut(self.high), free=cut(self.free))

    def apart(self) -> Region:
        """Every set as an item of its own: M·Q items of one set, those of an item next to each other."""
        count, sets = self.items, self.sets

        def flat(t: Tensor) -> Tensor:
            return t.expand(count, sets, *t.shape[2:]).flatten(0, 1).unsqueeze(1)
        return replace(self, centre=self.centre.repeat_interleave(sets, 0), low=flat(self.low), high=flat(self.high),
                       free=flat(self.free))

    @functools.cached_property
    def hull(self) -> Region:
        """One set for each item that contains all of its sets."""
        if self.sets == 1:
            return self
        return replace(self, low=self.low.amin(1, keepdim=True), high=self.high.amax(1, keepdim=True),
                       free=self.free.amax(1, keepdim=True))

    @functools.cached_property
    def with_hull(self) -> Region:
        """The sets, and the hull as the last one."""
        if self.sets == 1:
            return self

        def join(t: Tensor, last: Tensor) -> Tensor:
            return t if t.shape[1] == 1 else torch.cat([t, last.expand(len(t), *last.shape[1:])], 1)
        hull = self.hull
        return replace(self, low=join(self.low, hull.low), high=join(self.high, hull.high),
                       free=join(self.free, hull.free))

    @functools.cached_property
    def _bounded(self) -> tuple[Tensor, Tensor]:
        """`low` and `high` where free, else 0: (M or 1, Q, *shape)."""
        return self.low * self.free, self.high * self.free

    def interval(self) -> tuple[Tensor, Tensor]:
        """The smallest box that contains centre + δ, (M, Q, *shape)."""
        low, high = self._bounded
        middle = self.centre.unsqueeze(1)
        return (middle + low).expand(self.items, self.sets, *middle.shape[2:]), (
            middle + high).expand(self.items, self.sets, *middle.shape[2:])

    def reach(self, rows: Rows) -> Tensor:
        """Upper bounds of max a·δ over every set, exact but for rounding unless `clipped`: (M or 1, Q, R).

        With clipping the maximum is bounded by Lagrange duality: for any λ ≥ 0,
        max{a·δ : ‖δ‖₂ ≤ ε, δ in a box} ≤ λε²/2 + Σ max over the box of (aᵢδᵢ − λδᵢ²/2), and for the 1-norm
        ≤ λε + Σ max over the box of (aᵢδᵢ − λ|δᵢ|). λ solves the problem of the hull; for the other sets a few
        smaller ones are tried. Plain bounds from the ball alone and from the box alone are intersected.
        """
        if self.p == math.inf:
            return self._reach_box(rows)
        a = rows.a
        if not self.clipped:
            a = self._one_sided(a)
            if self.p == 1:
                return self.eps * rows.largest(a.abs(), self.free)
            return self.eps * rows.against(a * a, self.free).sqrt()
        return self._reach_clipped(rows)

    def _one_sided(self, a: Tensor) -> Tensor:
        if not bool(self.low.any()):
            return a.clamp(min=0)
        if not bool(self.high.any()):
            return a.clamp(max=0)
        return a

    def _reach_box(self, rows: Rows) -> Tensor:
        low, high = self._bounded
        if not self.clipped and self.eps < math.inf and bool((low == -high).all()):
            return rows.against(rows.a.abs(), high)
        return rows.against(rows.a.clamp(min=0), high) + rows.against(rows.a.clamp(max=0), low)

    def _reach_clipped(self, rows: Rows) -> Tensor:
        low, high = rows.seen(self.low[:, 0]), rows.seen(self.high[:, 0])
        capacity = torch.where(rows.a > 0, high, -low)
        size = torch.where(capacity > 0, rows.a.abs(), torch.zeros_like(capacity))
        box = rows.against(size * capacity, self.free)
        if self.p == 1:
            best = torch.minimum(box, self.eps * rows.largest(size, self.free))
        else:
            best = torch.minimum(box, self.eps * rows.against(size * size, self.free).sqrt())
        hull = self.hull.free
        first = self._multiplier(rows, size, capacity, hull)
        for part in _TRIES if self.sets > 1 else _TRIES[:1]:
            level = first * part
            spread = rows.placed(level)
            if self.p == 1:
                terms, price = (size - spread).clamp(min=0) * capacity, self.eps * level
            else:
                free = size <= spread * capacity
                inner = size * size / (2 * spread)
                terms = torch.where(free, inner, size * capacity - spread * capacity * capacity / 2)
                price = level * self.eps**2 / 2
            best = torch.minimum(best, rows.against(terms, self.free) + price)
        return best

    def _multiplier(self, rows: Rows, size: Tensor, capacity: Tensor, free: Tensor) -> Tensor:
        """λ > 0 for the hull: (M, 1, R)."""
        tiny = torch.finfo(size.dtype).tiny ** 0.5
        if self.p == 1:
            level = rows.largest(size, free)
            low = torch.zeros_like(level)
            for _ in range(12):  # the sum of the capacities above λ falls with λ; find where it is ε
                middle = (low + level) / 2
                used = rows.against(torch.where(size > rows.placed(middle), capacity, torch.zeros_like(capacity)), free)
                low, level = torch.where(used > self.eps, middle, low), torch.where(used > self.eps, level, middle)
            return level
        level = rows.against(size * size, free).sqrt() / self.eps
        for _ in range(6):  # λ² = Σ a² / (ε² − Σ capacity²), over what is free of its cap and what is not; λ falls
            capped = size > rows.placed(level) * capacity
            zero = torch.zeros_like(size)
            rest = self.eps**2 - rows.against(torch.where(capped, capacity * capacity, zero), free)
            inside = rows.against(torch.where(capped, zero, size * size), free)
            update = (inside / rest.clamp(min=tiny)).sqrt()
            level = torch.where(rest > 0, torch.minimum(level, update), level)
        return level.clamp(min=tiny)


def _narrow(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """The shape with one channel, when it has channels."""
    return (1, *shape[1:]) if len(shape) == 3 else tuple(shape)


def _masks(fixed: Tensor, shape: torch.Size) -> Tensor:
    """(1, Q, *shape) with one channel where all channels agree."""
    if fixed.shape[1:] == shape:
        return fixed[None]
    if len(shape) == 3 and fixed.shape[1:] == shape[1:]:
        return fixed[None, :, None]
    raise certframe.UsageError(f"fixed has shape {tuple(fixed.shape)} for inputs of shape {tuple(shape)}: give "
                               "(sets, H, W) or (sets, C, H, W)")
