"""Linear functionals of an activation: what bound propagation hands back from layer to layer.

A row is one functional. `Dense` rows have a coefficient for every neuron. `Patches` are the rows of a whole feature
map, one for each channel and place, that see a small window each; all windows have one size and move with the place.
Both carry a leading axis of items M (images, or images with perturbation sets of their own), of length 1 while the
coefficients are the same for all items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

AT_ONCE = 2**21
"""Coefficients that are computed at once, about: more than that would leave the processor's caches."""


@dataclass(frozen=True)
class Dense:
    """Rows with a coefficient for every neuron.

    Attributes:
        a: (M or 1, R, *shape).
    """

    a: Tensor

    @property
    def images(self) -> Tensor:
        """All rows as one batch of activations."""
        return self.a.flatten(0, 1)

    def like(self, images: Tensor) -> Dense:
        """Rows from what `images` was turned into."""
        return Dense(images.reshape(*self.a.shape[:2], *images.shape[1:]))

    def with_a(self, a: Tensor) -> Dense:
        """The same rows with other coefficients."""
        return Dense(a)

    def negated(self) -> Dense:
        """Minus these functionals."""
        return Dense(-self.a)

    def halved(self) -> Dense:
        """Half of these functionals."""
        return Dense(self.a / 2)

    def clamped(self, *, low: float | None = None, high: float | None = None) -> Dense:
        """Functionals with coefficients within this range."""
        return Dense(self.a.clamp(low, high))

    def seen(self, values: Tensor) -> Tensor:
        """(M or 1, *shape) → the same values, laid out to be multiplied with `a`."""
        return values.unsqueeze(1)

    def placed(self, values: Tensor) -> Tensor:
        """(M or 1, …), a value for every row → the same values, laid out to be multiplied with `a`."""
        return values.reshape(len(values), -1, *(1,) * (self.a.ndim - 2))

    def times(self, values: Tensor) -> Dense:
        """Every functional times a number; (M or 1, …), a value for every row."""
        return Dense(self.a * self.placed(values))

    def add(self, other: Rows) -> Dense:
        """The sum of two functionals of the same activation."""
        return Dense(self.a + other.dense().a)

    def inside(self) -> Dense:
        """Without coefficients of places that do not exist: there are none."""
        return self

    def dense(self) -> Dense:
        """Itself."""
        return self

    def compact(self) -> Dense:
        """Itself."""
        return self

    def dot(self, values: Tensor) -> Tensor:
        """(M or 1, *shape) → (M, R), the functionals' values."""
        flat = self.a.flatten(2)
        if len(values) == 1:
            return flat @ values.flatten()
        if len(flat) == 1:
            return values.flatten(1) @ flat[0].T
        return (flat @ values.flatten(1).unsqueeze(2)).squeeze(2)

    def against(self, coefficients: Tensor, sets: Tensor) -> Tensor:
        """Σ coefficients · set for every row and set.

        Args:
            coefficients: (M or 1, R, *shape), made of `a` number by number.
            sets: (M or 1, Q, *shape), where the first axis of an activation with three may have length 1.

        Returns:
            (M or 1, Q, R).
        """
        if sets.ndim > 3 and sets.shape[2] == 1:
            coefficients = coefficients.sum(2, keepdim=True)
        flat, by = coefficients.flatten(2), sets.flatten(2)
        if len(by) == 1 and len(flat) > 1 and by.shape[1] > 1:
            return (flat.flatten(0, 1) @ by[0].T).view(*flat.shape[:2], -1).mT
        if len(by) > 1 and len(flat) == 1:
            return (by.flatten(0, 1) @ flat[0].T).view(*by.shape[:2], -1)
        return by @ flat.mT

    def largest(self, coefficients: Tensor, sets: Tensor) -> Tensor:
        """As `against`, with the maximum of the products (never below 0) in place of their sum."""
        if sets.ndim > 3 and sets.shape[2] == 1:
            coefficients = coefficients.amax(2, keepdim=True)
        flat, by = coefficients.flatten(2), sets.flatten(2)
        columns = [(flat * by[:, q:q + 1]).amax(2) for q in range(by.shape[1])]
        return torch.stack(torch.broadcast_tensors(*columns), 1).clamp(min=0)


@dataclass(frozen=True)
class Patches:
    """Rows of a feature map: one for each of O functionals at each place of a grid.

    Attributes:
        a: (M or 1, O, h or 1, w or 1, C, kh, kw): coefficients within the window, 1 while all places have the same.
        grid: h, w.
        step: how far the window moves, down and right, from one place to the next.
        origin: where the window of the first place begins, counted from the corner of the activation.
        shape: C, H, W of the activation. Windows may reach beyond it.
        exact: no coefficient belongs to a place beyond the activation.
    """

    a: Tensor
    grid: tuple[int, int]
    step: tuple[int, int]
    origin: tuple[int, int]
    shape: tuple[int, int, int]
    exact: bool = False

    @property
    def window(self) -> tuple[int, int]:
        """kh, kw."""
        return self.a.shape[-2], self.a.shape[-1]

    @property
    def images(self) -> Tensor:
        """All windows as one batch of small activations."""
        return self.a.flatten(0, 3)

    def like(self, images: Tensor) -> Tensor:
        """The batch of windows in the layout of `a`."""
        return images.reshape(*self.a.shape[:4], *images.shape[1:])

    def with_a(self, a: Tensor) -> Patches:
        """The same windows with other coefficients, which the caller vouches for beyond the activation."""
        return replace(self, a=a, exact=True)

    def negated(self) -> Patches:
        """Minus these functionals."""
        return replace(self, a=-self.a)

    def halved(self) -> Patches:
        """Half of these functionals."""
        return replace(self, a=self.a / 2)

    def clamped(self, *, low: float | None = None, high: float | None = None) -> Patches:
        """Functionals with coefficients within this range, which contains 0."""
        return replace(self, a=self.a.clamp(low, high))

    def placed(self, values: Tensor) -> Tensor:
        """As `Dense.placed`; rows are O·h·w."""
        return values.reshape(len(values), -1, *self.grid, 1, 1, 1)

    def times(self, values: Tensor) -> Patches:
        """As `Dense.times`."""
        return replace(self, a=self.a * self.placed(values))

    def windows(self, values: Tensor) -> Tensor:
        """(M, c, H, W) → (M, h, w, c, kh, kw): what each window sees; 0 beyond the activation. A view."""
        (h, w), (down, right), (top, left), (kh, kw) = self.grid, self.step, self.origin, self.window
        height, width = values.shape[-2:]
        bottom, end = (h - 1) * down + top + kh, (w - 1) * right + left + kw
        if min(top, left) < 0 or bottom > height or end > width:
            margins = (max(-left, 0), max(end - width, 0), max(-top, 0), max(bottom - height, 0))
            values = functional.pad(values, margins)
        values = values.contiguous()
        m, c, y, x = values.stride()
        start = values.storage_offset() + max(top, 0) * y + max(left, 0) * x
        return values.as_strided((len(values), h, w, values.shape[1], kh, kw),
                                 (m, down * y, right * x, c, y, x), start)

    def seen(self, values: Tensor) -> Tensor:
        """(M or 1, C, H, W) → the values in each window, laid out to be multiplied with `a`."""
        return self.windows(values).unsqueeze(1)

    def inside(self) -> Patches:
        """Without the coefficients of places beyond the activation, where a layer sees padding."""
        (h, w), (down, right), (top, left), (kh, kw) = self.grid, self.step, self.origin, self.window
        _, height, width = self.shape
        within = top >= 0 and left >= 0 and (h - 1) * down + top + kh <= height and (
            (w - 1) * right + left + kw <= width)
        if self.exact or within:
            return self
        return self.with_a(self.a * self.seen(self.a.new_ones(1, 1, height, width)))

    def add(self, other: Rows) -> Rows:
        """The sum of two functionals of the same activation, on windows that hold both."""
        if isinstance(other, Dense) or other.step != self.step:
            return self.dense().add(other)
        ends = [[o + k for o, k in zip(p.origin, p.window, strict=True)] for p in (self, other)]
        top, left = (min(a, b) for a, b in zip(self.origin, other.origin, strict=True))
        bottom, right = (max(a, b) for a, b in zip(*ends, strict=True))
        padded = [functional.pad(p.a, (p.origin[1] - left, right - end[1], p.origin[0] - top, bottom - end[0]))
                  for p, end in zip((self, other), ends, strict=True)]
        return replace(self, a=padded[0] + padded[1], origin=(top, left), exact=self.exact and other.exact)

    def compact(self) -> Rows:
        """Dense rows when windows have become as large as the activation."""
        return self.dense() if self.window[0] * self.window[1] >= self.shape[1] * self.shape[2] else self

    def dense(self) -> Dense:
        """The same rows, O outermost, then the places."""
        (h, w), (down, right), (top, left), (kh, kw) = self.grid, self.step, self.origin, self.window
        channels, height, width = self.shape
        a = self.a.expand(-1, -1, h, w, -1, -1, -1)
        above, before = max(-top, 0), max(-left, 0)
        tall = max((h - 1) * down + top + kh, height) + above
        wide = max((w - 1) * right + left + kw, width) + before
        canvas = a.new_zeros(len(a), a.shape[1], h, w, channels, tall, wide)
        m, o, i, j, c, y, x = canvas.stride()
        view = canvas.as_strided(a.shape, (m, o, i + down * y, j + right * x, c, y, x),
                                 (top + above) * y + (left + before) * x)
        view.copy_(a)
        return Dense(canvas[..., above:above + height, before:before + width].flatten(1, 3))

    def dot(self, values: Tensor) -> Tensor:
        """(M or 1, C, H, W) → (M, O·h·w), the functionals' values."""
        seen = self.windows(values)
        return torch.einsum("moyxckl,myxckl->moyx", *_same_items(self.everywhere(self.a), seen)).flatten(1)

    def everywhere(self, a: Tensor) -> Tensor:
        """Coefficients for each place, also while all places have the same; a view."""
        return a.expand(-1, -1, *self.grid, -1, -1, -1)

    def against(self, coefficients: Tensor, sets: Tensor) -> Tensor:
        """As `Dense.against`; rows are O·h·w."""
        if sets.shape[2] == 1:
            coefficients = coefficients.sum(4, keepdim=True)
        left = self.everywhere(coefficients).permute(0, 2, 3, 1, 4, 5, 6).flatten(4)  # (M, h, w, O, K)
        by = self.windows(sets.flatten(0, 1)).unflatten(0, sets.shape[:2]).permute(0, 2, 3, 1, 4, 5, 6).flatten(4)
        left, by = _same_items(left, by)
        found = by @ left.mT  # (M, h, w, Q, O)
        return found.permute(0, 3, 4, 1, 2).flatten(2)

    def largest(self, coefficients: Tensor, sets: Tensor) -> Tensor:
        """As `Dense.largest`; rows are O·h·w."""
        if sets.shape[2] == 1:
            coefficients = coefficients.amax(4, keepdim=True)
        left, columns = self.everywhere(coefficients), []
        for q in range(sets.shape[1]):
            columns.append((left * self.seen(sets[:, q])).amax((4, 5, 6)).flatten(1))
        return torch.stack(columns, 1).clamp(min=0)


Rows = Dense | Patches


def _same_items(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    items = max(len(first), len(second))
    return first.expand(items, *first.shape[1:]), second.expand(items, *second.shape[1:])
