"""Two affine functions of the picture around every neuron, propagated from layer to layer.

The functions of a value are kept as their middle and half of their difference, since W⁺u + W⁻l and W⁺l + W⁻u are
W (u + l) / 2 ± |W| (u − l) / 2. Where windows are small the functions of a feature map see small parts of the picture
only, so that this costs far less than handing back the rows of every neuron. It gives the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certframe_eva.network import Network
from certframe_eva.operations import ITSELF, Affine, Lines, Maximum, Operation, Rectifier, Sum
from certframe_eva.regions import Region
from certframe_eva.rows import Dense, Patches, Rows


@dataclass(frozen=True)
class Enclosure:
    """A function below and one above every neuron of a value: (middle ∓ spread) · x + shift.

    Attributes:
        middle: a row for every neuron.
        spread: likewise; None while the functions are the same but for their shift.
        low: (M or 1, *shape), the shift of the function below.
        high: of the one above.
    """

    middle: Rows
    spread: Rows | None
    low: Tensor
    high: Tensor

    def side(self, sign: int) -> Rows:
        """The rows of the functions above (1) or below (−1)."""
        if self.spread is None:
            return self.middle
        return self.middle.add(self.spread if sign > 0 else self.spread.negated())

    def interval(self, region: Region) -> tuple[Tensor, Tensor]:
        """What the functions reach on every set: (M, Q, *shape) each."""
        found = []
        for sign, shift in ((-1, self.low), (1, self.high)):
            rows = self.side(sign)
            value = (rows.dot(region.centre) + shift.flatten(1)).unsqueeze(1)
            reach = region.reach(rows if sign > 0 else rows.negated())
            found.append((value + sign * reach).expand(region.items, region.sets, -1).unflatten(2, shift.shape[1:]))
        return found[0], found[1]


def picture(shape: tuple[int, ...], like: Tensor) -> Enclosure:
    """The picture itself."""
    one, zero = torch.eye(shape[0], dtype=like.dtype, device=like.device), like.new_zeros(1, *shape)
    if len(shape) != 3:
        one = torch.eye(math.prod(shape), dtype=like.dtype, device=like.device)
        return Enclosure(Dense(one.view(1, -1, *shape)), None, zero, zero)
    rows = Patches(one.view(1, shape[0], 1, 1, shape[0], 1, 1), shape[1:], (1, 1), (0, 0), (shape[0], *shape[1:]))
    return Enclosure(rows, None, zero, zero)


def through(op: Operation, inputs: Sequence[Enclosure], lines: Lines | None) -> Enclosure:
    """What encloses the output of an operation, from what encloses its inputs; `lines` of rectifiers and maxima."""
    if isinstance(op, Sum):
        return _sum(op, inputs)
    here = inputs[0]
    if isinstance(op, Affine):
        spread = None if here.spread is None else op.push(here.spread, "absolute")
        return _compact(Enclosure(op.push(here.middle), spread, *op.interval(here.low, here.high)))
    assert lines is not None
    above, below = here.side(1), here.side(-1)
    if isinstance(op, Maximum):
        above, below = op.push(above, lines.upper_slope), op.push(below, lines.lower_slope)
        low, high = op.weighted(here.low, lines.lower_slope), op.weighted(here.high, lines.upper_slope)
    else:
        assert isinstance(op, Rectifier)
        above, below = above.times(lines.upper_slope), below.times(lines.lower_slope)
        low, high = here.low * lines.lower_slope, here.high * lines.upper_slope
    half = above.add(below.negated())
    return _compact(Enclosure(above.add(below).halved(), half.halved(), low, high + lines.upper_shift))


def _sum(op: Sum, inputs: Sequence[Enclosure]) -> Enclosure:
    signed = [one if sign > 0 else Enclosure(one.middle.negated(), one.spread, -one.high, -one.low)
              for one, sign in zip(inputs, op.signs, strict=True)]
    total = signed[0]
    for one in signed[1:]:
        spread = one.spread if total.spread is None else (
            total.spread if one.spread is None else total.spread.add(one.spread))
        total = Enclosure(total.middle.add(one.middle), spread, total.low + one.low, total.high + one.high)
    return _compact(total)


def _compact(found: Enclosure) -> Enclosure:
    """Dense rows when windows have become larger than the picture."""
    return replace(found, middle=found.middle.compact(), spread=None if found.spread is None else
                   found.spread.compact())


class Forward:
    """The enclosures of a network's values, made when they are asked for and dropped when nothing reads them any more.

    Args:
        network: the classifier.
        like: a tensor of the type and device to compute with.
    """

    def __init__(self, network: Network, like: Tensor) -> None:
        self._network = network
        self._last = {i: k + 1 for k, op in enumerate(network.operations) for i in op.inputs}
        self._found = {0: picture(network.input_shape, like)}

    def of(self, value: int, lines: Mapping[int, Lines]) -> Enclosure:
        """The functions around a value; values have to be asked for in order.

        Args:
            value: its number.
            lines: of the rectifiers and maxima before it.
        """
        for k in range(max(self._found) + 1, value + 1):
            op = self._network.operations[k - 1]
            self._found[k] = through(op, [self._found[i] for i in op.inputs], lines.get(k))
            for i in op.inputs:
                if self._last[i] == k:
                    del self._found[i]
        return self._found[value]


def coefficients(network: Network) -> int:
    """The most coefficients that the functions of one value have, for one image."""
    most, windows = 1, [_Window((1, 1), (1, 1)) if len(network.input_shape) == 3 else None]
    size = math.prod(network.input_shape)
    for op in network.operations:
        before = [windows[i] for i in op.inputs]
        window = before[0] if len(set(before)) == 1 else None
        window = None if window is None else window.through(op)
        windows.append(window)
        here = size if window is None else min(size, network.input_shape[0] * math.prod(window.sides))
        most = max(most, 2 * math.prod(op.shape) * here)
    return most


@dataclass(frozen=True)
class _Window:
    """The part of the picture that a neuron of a feature map sees, and how it moves from one place to the next."""

    sides: tuple[int, int]
    step: tuple[int, int]

    def through(self, op: Operation) -> _Window | None:
        """What a neuron of the operation's output sees; None where rows become dense."""
        window = op.window if isinstance(op, Affine | Maximum) else ITSELF
        if window is None:
            return None
        first, second = (w + (k - 1) * d * s for w, k, d, s in zip(self.sides, window.kernel, window.dilation,
                                                                  self.step, strict=True))
        return _Window((first, second), (self.step[0] * window.stride[0], self.step[1] * window.stride[1]))
