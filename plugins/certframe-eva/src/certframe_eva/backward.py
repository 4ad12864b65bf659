"""Handing functionals of a value back to the picture, through the lines that enclose rectifiers and maxima.

For ``backward`` (CROWN) all coefficients are handed back together, so that they cancel where they can. For ``forward``
those that meet upper functions are kept apart from those that meet lower ones: that gives the affine functions that
`certframe_eva.forward` propagates, and is cheaper where few functionals are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certframe_eva.network import Network
from certframe_eva.operations import ITSELF, Affine, Lines, Maximum, Operation, Sum, Window
from certframe_eva.regions import Region
from certframe_eva.rows import AT_ONCE, Dense, Patches, Rows


@dataclass(frozen=True)
class Handed:
    """Functionals on their way back.

    Attributes:
        rows: the coefficients; with `split` those that are ≥ 0 and meet upper functions.
        split: positive and negative coefficients are handed back separately.
        negative: with `split`, the coefficients that are ≤ 0 and meet lower functions; None when there are none.
    """

    rows: Rows
    split: bool
    negative: Rows | None = None

    def joined(self) -> Rows:
        """The coefficients together."""
        return self.rows if self.negative is None else self.rows.add(self.negative)

    def parted(self) -> tuple[Rows, Rows]:
        """Coefficients of upper functions and of lower functions."""
        if self.negative is not None:
            return self.rows, self.negative
        return self.rows.clamped(low=0), self.rows.clamped(high=0)

    def add(self, other: Handed) -> Handed:
        """The sum."""
        if self.negative is None and other.negative is None:
            return replace(self, rows=self.rows.add(other.rows))
        first, second = self.parted(), other.parted()
        return replace(self, rows=first[0].add(second[0]), negative=first[1].add(second[1]))


def hand_back(network: Network, value: int, handed: Handed, lines: Mapping[int, Lines], stop: frozenset[int]) -> tuple[
        dict[int, Handed], Tensor]:
    """Hand functionals of a value back to the input, or to the values in `stop`.

    Returns:
        What has arrived where, and the constant (M or 1, R).
    """
    waiting = {value: handed}
    constant: Tensor = torch.zeros((), dtype=handed.rows.a.dtype, device=handed.rows.a.device)
    for k in range(value, 0, -1):
        if k not in waiting or k in stop:
            continue
        here, op = waiting.pop(k), network.operations[k - 1]
        if k in network.affine:
            here = replace(here, rows=here.joined(), negative=None, split=False)
        here = replace(here, rows=here.rows.compact(), negative=None if here.negative is None else
                       here.negative.compact())
        shares, more = _through(op, here, lines.get(k))
        constant = constant + more
        for source, share in zip(op.inputs, shares, strict=True):
            waiting[source] = waiting[source].add(share) if source in waiting else share
    if constant.ndim == 0:
        constant = constant.expand(1, 1)
    return waiting, constant


def _through(op: Operation, here: Handed, lines: Lines | None) -> tuple[list[Handed], Tensor | float]:
    """Hand functionals back through one operation: what its inputs get, and the constant."""
    if isinstance(op, Sum):
        return [here if sign > 0 else _negated(here) for sign in op.signs], 0.0
    if isinstance(op, Affine):
        offset = op.offset()
        constant: Tensor | float = 0.0 if offset is None else here.joined().dot(offset[None])
        if not here.split:
            return [replace(here, rows=op.pull(here.rows))], constant
        upper, lower = here.parted()
        # uW⁺ + lW⁻ and uW⁻ + lW⁺ are (u + l) W / 2 ± (u − l) |W| / 2.
        middle, spread = op.pull(upper.add(lower)), op.pull(upper.add(lower.negated()), "absolute")
        above, below = middle.add(spread), middle.add(spread.negated())
        return [replace(here, rows=above.halved(), negative=below.halved())], constant
    assert lines is not None
    upper, lower = here.parted()
    constant = upper.dot(lines.upper_shift)
    if isinstance(op, Maximum):
        if not here.split:
            return [replace(here, rows=op.back(upper, upper, lower, lines))], constant
        nothing = upper.with_a(torch.zeros_like(upper.a))
        return [replace(here, rows=op.back(upper, upper, nothing, lines),
                        negative=op.back(lower, nothing, lower, lines))], constant
    above = upper.a * upper.seen(lines.upper_slope)
    slope = lines.lower_slope
    below = lower.a * (slope if slope.ndim == lower.a.ndim else lower.seen(slope))
    if not here.split:
        return [replace(here, rows=upper.with_a(above + below))], constant
    return [replace(here, rows=upper.with_a(above), negative=lower.with_a(below))], constant


def _negated(here: Handed) -> Handed:
    if not here.split:
        return replace(here, rows=here.rows.negated())
    upper, lower = here.parted()
    return replace(here, rows=lower.negated(), negative=upper.negated())


def reach(network: Network, region: Region, value: int, rows: Rows, lines: Mapping[int, Lines], part: str) -> Tensor:
    """Upper bounds of functionals of a value on every set, (M or 1, Q, R)."""
    handed = Handed(rows, part == "forward")
    inputs, constant = hand_back(network, value, handed, lines, frozenset())
    if 0 not in inputs:
        return constant.unsqueeze(1).expand(-1, region.sets, -1)
    at_input = inputs[0].joined()
    return region.reach(at_input) + (at_input.dot(region.centre) + constant).unsqueeze(1)


def ranges(network: Network, region: Region, value: int, lines: Mapping[int, Lines]) -> tuple[Tensor, Tensor]:
    """The interval of every neuron of a value by CROWN, (M, Q, *shape): it and its negative are handed back."""
    shape = network.shape(value)
    count = shape[0]
    one = torch.eye(count, dtype=region.centre.dtype, device=region.centre.device)
    lows, highs = [], []
    at_once = max(1, AT_ONCE // (2 * region.items * _coefficients(network, value)))
    for some in one.split(at_once):
        both = torch.cat([some, -some])
        rows: Rows = Dense(both[None])
        if len(shape) == 3:
            rows = Patches(both.view(1, len(both), 1, 1, count, 1, 1), shape[1:], (1, 1), (0, 0), shape)
        found = reach(network, region, value, rows, lines, "backward")
        found = found.expand(region.items, region.sets, -1).unflatten(2, (2, len(some), *shape[1:]))
        highs.append(found[:, :, 0])
        lows.append(-found[:, :, 1])
    return torch.cat(lows, 2), torch.cat(highs, 2)


def _coefficients(network: Network, value: int) -> int:
    """The most coefficients that the rows of one channel have on their way back to the input."""
    shape = network.shape(value)
    places, most = math.prod(shape[1:]), 1
    windows: dict[int, tuple[int, int] | None] = {value: (1, 1) if len(shape) == 3 else None}
    for k in range(value, -1, -1):
        if k not in windows:
            continue
        here, window = network.shape(k), windows[k]
        most = max(most, math.prod(here) if window is None else here[0] * min(math.prod(window), math.prod(here[1:])))
        if k:
            op = network.operations[k - 1]
            sees = op.window if isinstance(op, Affine | Maximum) else ITSELF
            before = None if sees is None or window is None else _widened(sees, window)
            for i in op.inputs:
                windows[i] = _wider(windows[i], before) if i in windows else before
    return places * most


def _widened(window: Window, sides: tuple[int, int]) -> tuple[int, int]:
    first, second = ((n - 1) * s + d * (k - 1) + 1
                     for n, s, d, k in zip(sides, window.stride, window.dilation, window.kernel, strict=True))
    return first, second


def _wider(first: tuple[int, int] | None, second: tuple[int, int] | None) -> tuple[int, int] | None:
    if first is None or second is None:
        return None
    return max(first[0], second[0]), max(first[1], second[1])
