"""What bound propagation knows about each kind of layer.

An operation computes forward (`evaluate`), forward on intervals (`interval`), takes functions of the picture from its
inputs to its output (`push`), and hands functionals of its output back to its inputs (`pull`). The affine ones do so
exactly, with their weights W or with |W|. The others, rectifiers and maxima, are enclosed between two linear functions
(`Lines`) that hold on an interval.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from certframe_eva.rows import Dense, Patches, Rows

Part = Literal["all", "absolute"]
Pair = tuple[int, int]


class Window(NamedTuple):
    """What a place of a feature map sees of the map before, as in a convolution."""

    kernel: Pair
    stride: Pair
    dilation: Pair


ITSELF = Window((1, 1), (1, 1), (1, 1))


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
        """Functionals a of the output → functionals aᵀW of the input; or with |W| in place of W."""
        raise NotImplementedError

    def push(self, rows: Rows, part: Part = "all") -> Rows:
        """Functionals of the picture, one for each number of the input → W times them; or |W| times them."""
        raise NotImplementedError

    def offset(self) -> Tensor | None:
        """b, (*shape), or None when there is none."""
        return None

    @property
    def window(self) -> Window | None:
        """Of a map whose places look at windows."""
        return None


def parts_of(weight: Tensor) -> dict[str, Tensor]:
    """W and |W|."""
    return {"all": weight, "absolute": weight.abs()}


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
        """aᵀW or aᵀ|W| for every functional a."""
        return Dense(rows.dense().a @ self._signed[part])

    def push(self, rows: Rows, part: Part = "all") -> Rows:
        """W or |W| times the functionals of the input."""
        a = rows.dense().a
        return Dense((self._signed[part] @ a.flatten(2)).unflatten(2, a.shape[2:]))

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

    @property
    def window(self) -> Window:
        """Kernel, stride and dilation."""
        return Window(pair(self.weight.shape[2:]), self.stride, self.dilation)

    def pull(self, rows: Rows, part: Part = "all") -> Rows:
        """aᵀW or aᵀ|W| for every functional a."""
        weight = self._signed[part]
        if isinstance(rows, Patches):
            rows = rows.inside()
            small = transposed(rows.images, weight, self.stride, self.groups, self.dilation)
            step, origin = rows.step, rows.origin
            return replace(rows, a=rows.like(small), step=(step[0] * self.stride[0], step[1] * self.stride[1]),
                           origin=tuple(o * s - p for o, s, p in zip(origin, self.stride, self.padding, strict=True)),
                           shape=self.source, exact=False)
        full = transposed(rows.images, weight, self.stride, self.groups, self.dilation)
        return rows.like(_without_padding(full, self.padding, self.source))

    def push(self, rows: Rows, part: Part = "all") -> Rows:
        """W or |W| times the functionals of the input."""
        weight = self._signed[part].unflatten(0, (self.groups, -1))  # (groups, out, in, kh, kw)
        taps = [(y * self.dilation[0], x * self.dilation[1], weight[..., y, x])
                for y in range(weight.shape[-2]) for x in range(weight.shape[-1])]

        def gather(seen: Tensor, tap: Tensor) -> Tensor:
            by_group = seen.flatten(2).unflatten(1, (self.groups, -1))
            return (tap @ by_group).flatten(1, 2).unflatten(2, seen.shape[2:])
        return moved(rows, self.source, self.shape, self.stride, self.padding, [tap[:2] for tap in taps],
                     lambda k, seen: gather(seen, taps[k][2]))

    def offset(self) -> Tensor | None:
        """The constant b."""
        return None if self.bias is None else self.bias[:, None, None].expand(self.shape)


def transposed(images: Tensor, weight: Tensor, stride: Pair, groups: int, dilation: Pair) -> Tensor:
    """The transpose of a convolution without padding: (B,O,h,w) → (B,C,…).

    In float64 on a CPU torch goes image by image, which is slow for many small ones; there it is one matrix product,
    whose parts are added up where they belong.
    """
    _, channels, *kernel = weight.shape
    if weight.dtype != torch.float64 or weight.device.type != "cpu" or groups > 1 or channels < 8:
        return functional.conv_transpose2d(images, weight, None, stride, 0, 0, groups, dilation)
    count, _, h, w = images.shape
    product = images.permute(0, 2, 3, 1).flatten(0, 2) @ weight.permute(0, 2, 3, 1).flatten(1)
    product = product.view(count, h, w, *kernel, channels)
    sides = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip((h, w), stride, dilation, kernel, strict=True)]
    total = images.new_zeros(count, *sides, channels)
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            top, left = y * dilation[0], x * dilation[1]
            total[:, top:top + (h - 1) * stride[0] + 1:stride[0],
                  left:left + (w - 1) * stride[1] + 1:stride[1]] += product[:, :, :, y, x]
    return total.permute(0, 3, 1, 2)


def moved(rows: Rows, source: tuple[int, int, int], shape: tuple[int, ...], stride: Pair, padding: Pair,
          taps: Sequence[Pair], weigh: Callable[[int, Tensor], Tensor]) -> Rows:
    """Functionals of the picture for every place of a map → those for every place of a map that looks through windows.

    Args:
        rows: one for every number of the map that is looked at, of shape `source`.
        source: its channels, height and width.
        shape: of the map that looks.
        stride: how its windows move.
        padding: places without a value around `source`.
        taps: where a window has its numbers, counted from its corner.
        weigh: the number of a tap and what the places see there, (M, C, h, w, …) → what it adds to them, (M, O, h, w,
            …).
    """
    if isinstance(rows, Dense):
        a, step = rows.a.unflatten(1, source), (0, 0)
    else:
        a, step = rows.everywhere(rows.a), rows.step
    behind = a.shape[4:]
    if padding != (0, 0):
        a = functional.pad(a, (*(0, 0) * len(behind), padding[1], padding[1], padding[0], padding[0]))
    (h, w), (tall, wide) = shape[1:], (max(t[axis] for t in taps) * step[axis] for axis in (0, 1))
    total: Tensor | None = None
    for k, (y, x) in enumerate(taps):
        seen = a[:, :, y:y + (h - 1) * stride[0] + 1:stride[0], x:x + (w - 1) * stride[1] + 1:stride[1]]
        more = weigh(k, seen)
        if total is None:
            total = more.new_zeros(*more.shape[:-2], more.shape[-2] + tall, more.shape[-1] + wide) if (
                tall or wide) else torch.zeros_like(more)
        if tall or wide:
            top, left = y * step[0], x * step[1]
            total[..., top:top + more.shape[-2], left:left + more.shape[-1]] += more
        else:
            total += more
    assert total is not None
    if isinstance(rows, Dense):
        return Dense(total.flatten(1, 3))
    origin = (rows.origin[0] - padding[0] * step[0], rows.origin[1] - padding[1] * step[1])
    return replace(rows, a=total, grid=(h, w), step=(step[0] * stride[0], step[1] * stride[1]), origin=origin,
                   exact=False)


def _without_padding(full: Tensor, padding: Pair, source: tuple[int, int, int]) -> Tensor:
    """(…, H + 2·padding or less, …) → (…, H, W): nothing that belongs to the padding, 0 where nothing has come."""
    (top, left), (_, height, width) = padding, source
    cut = full[..., top:top + height, left:left + width]
    return functional.pad(cut, (0, width - cut.shape[-1], 0, height - cut.shape[-2]))


@dataclass(frozen=True)
class Scale(Affine):
    """x ↦ s x + t, number by number; `scale` and `shift` have the shape of the value or broadcast to it."""

    scale: Tensor
    shift: Tensor

    @property
    def window(self) -> Window:
        """Every place sees itself."""
        return ITSELF

    def evaluate(self, *values: Tensor) -> Tensor:
        """(B, …) → (B, *shape)."""
        return values[0] * self.scale + self.shift

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of every output over a box."""
        return around(self.evaluate, lambda r: r * self.scale.abs(), low, high)

    def pull(self, rows: Rows, part: Part = "all") -> Rows:
        """aᵀW or aᵀ|W| for every functional a."""
        scale = parts_of(self.scale)[part]
        if isinstance(rows, Patches):
            if scale.ndim == 3 and scale.shape[1:] == (1, 1):
                return replace(rows, a=rows.a * scale)
            return rows.with_a(rows.a * rows.seen(scale.expand(self.shape)[None]))
        return rows.with_a(rows.a * scale)

    def push(self, rows: Rows, part: Part = "all") -> Rows:
        """W or |W| times the functionals of the input."""
        return rows.times(parts_of(self.scale)[part].expand(self.shape)[None])

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
        """aᵀW or aᵀ|W| for every functional a."""
        rows = rows.dense()
        if self.reshape:
            return rows.like(rows.images.reshape(-1, *self.source))
        with torch.enable_grad():
            start = rows.a.new_zeros(len(rows.images), *self.source, requires_grad=True)
            back, = torch.autograd.grad(self.apply(start), start, rows.images, create_graph=rows.a.requires_grad)
        return rows.like(back)

    def push(self, rows: Rows, part: Part = "all") -> Rows:
        """W or |W| times the functionals of the input."""
        rows = rows.dense()
        if self.reshape:
            return rows
        a = rows.a
        found = self.apply(a.flatten(2).transpose(1, 2).flatten(0, 1).unflatten(1, self.source))
        return Dense(found.flatten(1).unflatten(0, (len(a), -1)).transpose(1, 2).unflatten(2, a.shape[2:]))


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

    lower_slope · x ≤ operation(x) ≤ upper_slope · x + upper_shift; slopes are not negative. Tensors are (M, *shape),
    and (M, R, *shape) for lower slopes that each row has for itself.
    """

    upper_slope: Tensor
    upper_shift: Tensor
    lower_slope: Tensor


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
    def window(self) -> Window:
        """Kernel, stride and dilation."""
        return Window(self.kernel, self.stride, self.dilation)

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
        return Dense(_without_padding(total, self.padding, self.source))

    def weighted(self, values: Tensor, slopes: Tensor) -> Tensor:
        """Σ slopes · values over every window: (M or 1, C, H, W) → (M, C, h, w)."""
        return (self._gather(values, 0.0) * slopes).sum(-1)

    def push(self, rows: Rows, slopes: Tensor) -> Rows:
        """Σ slopes · functionals over every window; slopes as in `lines`, (M, C, h, w, taps)."""
        def weigh(k: int, seen: Tensor) -> Tensor:
            slope = slopes[..., k]
            return seen * slope.view(*slope.shape, *(1,) * (seen.ndim - 4))
        return moved(rows, self.source, self.shape, self.stride, self.padding, self.taps, weigh)


def pair(value: int | Sequence[int]) -> Pair:
    """A number for both axes, or one for each."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)
