"""What bound propagation knows about each kind of layer.

An operation computes forward (`evaluate`), forward on intervals (`interval`), and hands functionals of its output back
to its inputs. The affine ones do that exactly (`pull`, `constant`), in full or with the positive or the negative part
of their weights only. The others, rectifiers and maxima, are enclosed between two linear functions (`Lines`) that hold
on an interval.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from certframe_eva.rows import Dense, Patches, Rows

Part = Literal["all", "positive", "negative"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Operation:
    """A layer.

    Attributes:
        inputs: the numbers of the values it reads.
        shape: of its output, for one image.
        label: what it is called in messages.
    """

    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    label: str

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        raise NotImplementedError


class Affine(Operation):
    """x ↦ W x + b, for one input."""

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The exact range of every output over a box."""
        raise NotImplementedError

    def pull(self, rows: Rows, part: Part = "all") -> Rows:
        """Functionals a of the output → functionals aᵀW of the input; or with W⁺ or W⁻ in place of W."""
        raise NotImplementedError

    def offset(self) -> Tensor | None:
        """b, (*shape), or None when there is none."""
        return None


def parts_of(weight: Tensor) -> dict[str, Tensor]:
    """The weights, their positive and negative part, and |W|."""
    return {"all": weight, "positive": weight.clamp(min=0), "negative": weight.clamp(max=0), "absolute": weight.abs()}


def around(apply: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor], low: Tensor,
           high: Tensor) -> tuple[Tensor, Tensor]:
    """The range of an affine map over a box, from its value at the centre and |W| times the radius."""
    middle, radius = apply((low + high) / 2), spread((high - low) / 2)
    return middle - radius, middle + radius


@dataclass(frozen=True)
class Linear(Affine):
    """A dense layer on a vector; `weight` (out, in), `bias` (out) or None."""

    weight: Tensor
    bias: Tensor | None

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        return functional.linear(values[0], self.weight, self.bias)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of every output over a box."""
        return around(self.evaluate, lambda r: functional.linear(r, self._signed["absolute"]), low, high)

    @functools.cached_property
    def _signed(self) -> dict[str, Tensor]:
        return parts_of(self.weight)

    def pull(self, rows: Rows, part: Part = "all") -> Rows:
        """aᵀW, aᵀW⁺ or aᵀW⁻ for every functional a."""
        return Dense(rows.dense().a @ self._signed[part])

    def offset(self) -> Tensor | None:
        """The constant b."""
        return self.bias


@dataclass(frozen=True)
class Convolution(Affine):
    """A two-dimensional convolution with zero padding."""

    weight: Tensor
    bias: Tensor | None
    source: tuple[int, int, int]
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        return functional.conv2d(values[0], self.weight, self.bias, self.stride, self.padding, self.dilation,
                                 self.groups)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of every output over a box."""
        return around(self.evaluate, lambda r: functional.conv2d(r, self._signed["absolute"], None, self.stride,
                                                                 self.padding, self.dilation, self.groups), low, high)

    @functools.cached_property
    def _signed(self) -> dict[str, Tensor]:
        return parts_of(self.weight)

    def pull(self, rows: Rows, part: Part = "all") -> Rows:
        """aᵀW, aᵀW⁺ or aᵀW⁻ for every functional a."""
        weight = self._signed[part]
        if isinstance(rows, Patches):
            rows = rows.inside()
            small = functional.conv_transpose2d(rows.images, weight, None, self.stride, 0, 0, self.groups,
                                                self.dilation)
            step, origin = rows.step, rows.origin
            return replace(rows, a=rows.like(small), step=(step[0] * self.stride[0], step[1] * self.stride[1]),
                           origin=tuple(o * s - p for o, s, p in zip(origin, self.stride, self.padding, strict=True)),
                           shape=self.source, exact=False)
        # What the strides leave over at the far edge has no part in the output.
        reach = [(o - 1) * s - 2 * p + d * (k - 1) + 1 for o, s, p, d, k in zip(
            self.shape[1:], self.stride, self.padding, self.dilation, weight.shape[2:], strict=True)]
        left_over = (self.source[1] - reach[0], self.source[2] - reach[1])
        return rows.like(functional.conv_transpose2d(rows.images, weight, None, self.stride, self.padding, left_over,
                                                     self.groups, self.dilation))

    def offset(self) -> Tensor | None:
        """The constant b."""
        return None if self.bias is None else self.bias[:, None, None].expand(self.shape)


@dataclass(frozen=True)
class Scale(Affine):
    """x ↦ s x + t, number by number; `scale` and `shift` have the shape of the value or broadcast to it."""

    scale: Tensor
    shift: Tensor

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        return values[0] * self.scale + self.shift

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of every output over a box."""
        return around(self.evaluate, lambda r: r * self.scale.abs(), low, high)

    def pull(self, rows: Rows, part: Part = "all") -> Rows:
        """aᵀW, aᵀW⁺ or aᵀW⁻ for every functional a."""
        scale = parts_of(self.scale)[part]
        if isinstance(rows, Patches):
            if scale.ndim == 3 and scale.shape[1:] == (1, 1):
                return replace(rows, a=rows.a * scale)
            return rows.with_a(rows.a * rows.seen(scale.expand(self.shape)[None]))
        return rows.with_a(rows.a * scale)

    def offset(self) -> Tensor | None:
        """The constant b."""
        return self.shift.expand(self.shape)


@dataclass(frozen=True)
class Rearrangement(Affine):
    """A linear map without negative weights or constant: means, slices, zero padding, reshaping.

    Attributes:
        apply: (B, *source) → (B, *shape).
        source: the shape of the input for one image.
        reshape: it only reshapes.
    """

    apply: Callable[[Tensor], Tensor]
    source: tuple[int, ...]
    reshape: bool = False

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        return self.apply(values[0])

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of every output over a box."""
        return self.apply(low), self.apply(high)

    def pull(self, rows: Rows, part: Part = "all") -> Rows:
        """aᵀW, aᵀW⁺ or aᵀW⁻ for every functional a."""
        rows = rows.dense()
        if part == "negative":
            return Dense(rows.a.new_zeros(*rows.a.shape[:2], *self.source))
        if self.reshape:
            return rows.like(rows.images.reshape(-1, *self.source))
        with torch.enable_grad():
            start = rows.a.new_zeros(len(rows.images), *self.source, requires_grad=True)
            back, = torch.autograd.grad(self.apply(start), start, rows.images, create_graph=rows.a.requires_grad)
        return rows.like(back)


@dataclass(frozen=True)
class Sum(Operation):
    """The sum of values of one shape, minus those whose sign is −1."""

    signs: tuple[int, ...]

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        return functools.reduce(torch.add, (v if s > 0 else -v for v, s in zip(values, self.signs, strict=True)))


@dataclass(frozen=True)
class Lines:
    """Two linear functions that enclose an operation on a box, number by number.

    lower_slope · x + lower_shift ≤ operation(x) ≤ upper_slope · x + upper_shift; slopes are not negative. Tensors are
    (M, *shape), and (M, R, *shape) for lower slopes that each row has for itself.
    """

    upper_slope: Tensor
    upper_shift: Tensor
    lower_slope: Tensor
    lower_shift: Tensor | None = None


@dataclass(frozen=True)
class Rectifier(Operation):
    """x ↦ max(x, a x), 0 ≤ a ≤ 1: ReLU for a = 0, else a leaky one."""

    leak: float

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        return functional.leaky_relu(values[0], self.leak) if self.leak else functional.relu(values[0])

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of every output over a box."""
        return self.evaluate(low), self.evaluate(high)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """The chord above, and below the line x or a x that leaves the smaller area."""
        off = torch.full_like(low, self.leak)
        unstable = (low < 0) & (high > 0)
        width = torch.where(unstable, high - low, torch.ones_like(low))
        below = torch.where(high > -low, torch.ones_like(low), off)
        slope = torch.where(unstable, (high - self.leak * low) / width, below)
        shift = torch.where(unstable, (1 - slope) * high, torch.zeros_like(low))
        return Lines(slope, shift, below)


@dataclass(frozen=True)
class Maximum(Operation):
    """Max pooling.

    Above, max(x) ≤ τ + s (x₁ − l₁), where x₁ is the input with the largest upper bound h₁, τ the larger of the largest
    lower bound and the second largest upper bound, and s = (h₁ − τ) / (h₁ − l₁). Proof: where x₁ is the maximum,
    x₁ − τ − s (x₁ − l₁) grows with x₁ and is (h₁ − τ) − s (h₁ − l₁) = 0 at h₁; elsewhere the maximum is at most
    the second largest upper bound, so at most τ. An input that is certainly the largest is passed on as it is. Below,
    max(x) ≥ xⱼ for any j; j has the largest midpoint of its interval.
    """

    source: tuple[int, int, int]
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        return functional.max_pool2d(values[0], self.kernel, self.stride, self.padding, self.dilation)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of every output over a box."""
        return self.evaluate(low), self.evaluate(high)

    @property
    def taps(self) -> list[Pair]:
        """Where the inputs of a window are, counted from its corner."""
        return [(y * self.dilation[0], x * self.dilation[1])
                for y in range(self.kernel[0]) for x in range(self.kernel[1])]

    def _gather(self, values: Tensor, missing: float) -> Tensor:
        """(M, C, H, W) → (M, C, h, w, taps)."""
        padded = functional.pad(values, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]),
                                value=missing)
        (h, w), (down, right) = self.shape[1:], self.stride
        return torch.stack([padded[..., y:y + (h - 1) * down + 1:down, x:x + (w - 1) * right + 1:right]
                            for y, x in self.taps], -1)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Slopes (M, C, h, w, taps) and shifts (M, C, h, w)."""
        far = 2 * float(torch.finfo(low.dtype).max) ** 0.25  # beyond any activation, and can be subtracted
        low, high = self._gather(low, -far), self._gather(high, -far)
        most = high.topk(min(2, high.shape[-1]), dim=-1)
        first, top = most.indices[..., :1], most.values[..., :1]
        level = torch.maximum(low.amax(-1, keepdim=True), most.values[..., 1:2]) if high.shape[-1] > 1 else low
        bottom = low.gather(-1, first)
        width = top - bottom
        slope = torch.where(width > 0, (top - level) / torch.where(width > 0, width, torch.ones_like(width)),
                            torch.zeros_like(width))
        shift = (level - slope * bottom).squeeze(-1)
        nothing = torch.zeros_like(low)
        chosen = (low + high).argmax(-1, keepdim=True)
        return Lines(nothing.scatter(-1, first, slope), shift, nothing.scatter(-1, chosen, 1.0))

    def back(self, rows: Rows, upper: Rows, lower: Rows, lines: Lines) -> Rows:
        """Hand rows back: `upper` holds the coefficients that multiply the upper line, `lower` the others."""
        (down, right), (kh, kw) = self.stride, upper.a.shape[-2:]
        tall = (kh - 1) * down + (self.kernel[0] - 1) * self.dilation[0] + 1
        wide = (kw - 1) * right + (self.kernel[1] - 1) * self.dilation[1] + 1
        total: Tensor | None = None
        for tap, (y, x) in enumerate(self.taps):
            small = (upper.a * rows.seen(lines.upper_slope[..., tap])
                     + lower.a * rows.seen(lines.lower_slope[..., tap]))
            if total is None:
                total = small.new_zeros(*small.shape[:-2], tall, wide)
            total[..., y:y + (kh - 1) * down + 1:down, x:x + (kw - 1) * right + 1:right] += small
        assert total is not None
        if isinstance(rows, Patches):
            return replace(rows, a=total, step=(rows.step[0] * down, rows.step[1] * right),
                           origin=tuple(o * s - p for o, s, p in zip(rows.origin, self.stride, self.padding,
                                                                     strict=True)),
                           shape=self.source, exact=True)
        (top, left), (_, height, width) = self.padding, self.source
        cut = total[..., top:top + height, left:left + width]
        return Dense(functional.pad(cut, (0, width - cut.shape[-1], 0, height - cut.shape[-2])))


def pair(value: int | Sequence[int]) -> Pair:
    """A number for both axes, or one for each."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)
