"""Verified bounds: what the logits of a network can be while its input is perturbed.

Three ways to bound, and their intersections:

* ``ibp``: intervals, propagated from layer to layer.
* ``forward``: two affine functions of the input for every neuron, propagated forward. They are computed from the other
  end, by handing positive and negative coefficients back separately, which gives the same functions.
* ``backward``: CROWN; coefficients are handed back together, so that they cancel where they can.

Rectifiers and maxima are replaced by linear functions that enclose them on an interval. Every neuron's interval is the
tightest that the method has.

H. Zhang, T.-W. Weng, P.-Y. Chen, C.-J. Hsieh, L. Daniel. Efficient neural network robustness certification with general
activation functions. NeurIPS 2018. K. Xu et al. Automatic perturbation analysis for scalable certified robustness and
beyond. NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

import certframe
from certframe_eva.network import Network
from certframe_eva.operations import Affine, Lines, Maximum, Operation, Rearrangement, Rectifier, Sum
from certframe_eva.regions import Region
from certframe_eva.rows import Dense, Patches, Rows

PARTS = ("ibp", "forward", "backward")
Relaxation = Literal["shared", "own"]
Intervals = Mapping[int, tuple[Tensor, Tensor]]
_ELEMENTS = 2**25
"""Coefficients that may exist at once, about: 128 MB in float32."""


def parts_of_method(method: str) -> tuple[str, ...]:
    """The parts that a method intersects.

    Raises:
        UsageError: it is not made of `PARTS`, each at most once, joined by ``+``.
    """
    parts = tuple(method.split("+"))
    if not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
        raise certframe.UsageError(f"bound method '{method}': join some of {', '.join(PARTS)} by +, such as "
                                   "ibp+forward+backward")
    return tuple(part for part in PARTS if part in parts)


def upper_bounds(network: Network, region: Region, rows: Tensor, method: str = "ibp+forward+backward", *,
                 relaxation: Relaxation = "shared", chunk: int = 256, steps: int = 0) -> Tensor:
    """What linear functionals of the logits can at most be, on every set of every item.

    A combination is the intersection of its parts, and of what they give when each uses the intervals of all, so that
    it is never looser than a part. The bounds hold in exact arithmetic; rounding is that of the region's type.

    Args:
        network: from `Network.of`, with weights of the region's type and device.
        region: M items with Q sets of perturbations.
        rows: (R, classes) or (M, R, classes): each functional's coefficients.
        method: ``ibp``, ``forward``, ``backward``, or several joined by ``+``.
        relaxation: ``own``: every set has its own enclosing lines in all layers, as if it were bounded alone.
            ``shared``: intervals inside the network are made with lines that hold on all sets of an item, which costs
            little more than one set; the logits still have lines of each set's own intervals, and a set's bound is
            never above that of a set that contains it all.
        chunk: how many sets of perturbations have coefficients at the same time; changes no result.
        steps: projected gradient steps on the lower lines of unstable rectifiers (α-CROWN), for `backward` and the
            last pass only.

    Returns:
        (M, Q, R).

    Raises:
        UsageError: the method does not exist.
    """
    parts = parts_of_method(method)
    per_item = rows.expand(region.items, *rows.shape[-2:]) if rows.ndim == 2 else rows
    at_once = max(1, chunk // region.sets)
    found = []
    with torch.no_grad():
        for first in range(0, region.items, at_once):
            items = slice(first, first + at_once)
            found.append(_upper(network, region.of_items(items), per_item[items], parts, relaxation, chunk, steps))
    return torch.cat(found)


def logit_bounds(network: Network, region: Region, method: str = "ibp+forward+backward", *,
                 relaxation: Relaxation = "shared", chunk: int = 256, steps: int = 0) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of the logits, (M, Q, classes) each; arguments as of `upper_bounds`."""
    one = torch.eye(network.classes, dtype=region.centre.dtype, device=region.centre.device)
    found = upper_bounds(network, region, torch.cat([one, -one]), method, relaxation=relaxation, chunk=chunk,
                         steps=steps)
    upper, negative = found.chunk(2, dim=2)
    return -negative, upper


def _upper(network: Network, region: Region, rows: Tensor, parts: tuple[str, ...], relaxation: Relaxation,
           chunk: int, steps: int) -> Tensor:
    if relaxation == "own" and region.sets > 1:
        apart, rows = region.apart(), rows.repeat_interleave(region.sets, 0)
        found = [_upper(network, apart.of_items(slice(k, k + chunk)), rows[k:k + chunk], parts, relaxation, chunk,
                        steps) for k in range(0, apart.items, chunk)]
        return torch.cat(found).view(region.items, region.sets, -1)
    runs = [_settle(network, region, (part,), {}) for part in parts]
    best = _least(_last(network, region, rows, run, (part,), chunk, 0 if parts[1:] else steps)
                  for part, run in zip(parts, runs, strict=True))
    if len(parts) > 1:
        known: dict[int, tuple[Tensor, Tensor]] = {}
        for run in runs:
            known = {v: _intersect(known[v], both) if v in known else both for v, both in run.items()}
        joint = _settle(network, region, parts, known)
        best = torch.minimum(best, _last(network, region, rows, joint, parts, chunk, steps))
    return best


def _least(values: Iterator[Tensor]) -> Tensor:
    best = next(values)
    for value in values:
        best = torch.minimum(best, value)
    return best


def _intersect(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(first[0], second[0]), torch.minimum(first[1], second[1])
    # Both are true but for rounding, which may cross them over where an interval is a point.
    return torch.minimum(low, high), torch.maximum(low, high)


# -- intervals of all neurons -------------------------------------------------------------------------------------


def _settle(network: Network, region: Region, parts: tuple[str, ...], known: Intervals) -> dict[
        int, tuple[Tensor, Tensor]]:
    """Intervals, (M, Q, *shape), of the values that rectifiers and maxima read, for every set and the hull.

    With ``ibp`` also of the values that those compute. The hull's are the last; a region with one set is its own hull.
    """
    sets = region.with_hull
    settled: dict[int, tuple[Tensor, Tensor]] = {}
    boxes: dict[int, tuple[Tensor, Tensor]] = {}
    lines: dict[int, Lines] = {}
    edge = _edge(network)
    for value in range(len(network.operations) + 1):
        op = network.operations[value - 1] if value else None
        if value in network.affine:
            if value in edge and ("ibp" in parts or value in network.unsettled):
                boxes[value] = settled[value] = _range(network, sets, value, lines, "backward")
        else:
            assert op is not None
            # The range of what a rectifier or a maximum computes follows from that of its input, without loss.
            bent = isinstance(op, Rectifier | Maximum)
            found = [_interval(op, [boxes[i] for i in op.inputs])] if bent or "ibp" in parts else []
            if value in network.unsettled:
                found += [_range(network, sets, value, lines, part) for part in parts if part != "ibp" and not bent]
                found += [known[value]] if value in known else []
                for other in found[1:]:
                    found[0] = _intersect(found[0], other)
            if found:
                boxes[value] = settled[value] = found[0]
        if value in settled and value in network.unsettled:
            lines |= _lines(network, value, *(t[:, -1] for t in settled[value]))
    return settled


def _edge(network: Network) -> frozenset[int]:
    """The affine values that something reads which is not affine."""
    return frozenset(i for k, op in enumerate(network.operations) if k + 1 not in network.affine
                     for i in op.inputs if i in network.affine)


def _lines(network: Network, value: int, low: Tensor, high: Tensor) -> dict[int, Lines]:
    """The enclosing lines of the operations that read a value, by the number of what they compute."""
    return {k + 1: op.lines(low, high) for k, op in enumerate(network.operations)
            if isinstance(op, Rectifier | Maximum) and value in op.inputs}


def _interval(op: Operation, inputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Interval arithmetic, (M, Q, *shape)."""
    if isinstance(op, Sum):
        lows = [low if sign > 0 else -high for (low, high), sign in zip(inputs, op.signs, strict=True)]
        highs = [high if sign > 0 else -low for (low, high), sign in zip(inputs, op.signs, strict=True)]
        return sum(lows[1:], lows[0]), sum(highs[1:], highs[0])
    assert isinstance(op, Affine | Rectifier | Maximum)
    low, high = inputs[0]
    found = op.interval(low.flatten(0, 1), high.flatten(0, 1))
    return found[0].unflatten(0, low.shape[:2]), found[1].unflatten(0, low.shape[:2])


def _range(network: Network, region: Region, value: int, lines: Mapping[int, Lines], part: str) -> tuple[
        Tensor, Tensor]:
    """The interval of every neuron of a value by handing back itself and its negative."""
    shape = network.shape(value)
    count = shape[0]
    one = torch.eye(count, dtype=region.centre.dtype, device=region.centre.device)
    lows, highs = [], []
    at_once = max(1, _ELEMENTS // (2 * region.items * _coefficients(network, value)))
    for some in one.split(at_once):
        both = torch.cat([some, -some])
        rows: Rows = Dense(both[None])
        if len(shape) == 3:
            rows = Patches(both.view(1, len(both), 1, 1, count, 1, 1), shape[1:], (1, 1), (0, 0), shape)
        found = _reach(network, region, value, rows, lines, part)
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
            before = None if isinstance(op, Rearrangement) or window is None else _widened(op, window)
            for i in op.inputs:
                windows[i] = _wider(windows[i], before) if i in windows else before
    return places * most


def _widened(op: Operation, window: tuple[int, int]) -> tuple[int, int]:
    if isinstance(op, Maximum):
        kernel: tuple[int, ...] = op.kernel
    elif hasattr(op, "dilation"):
        kernel = tuple(op.weight.shape[2:])
    else:
        return window
    first, second = ((w - 1) * s + d * (k - 1) + 1
                     for w, s, d, k in zip(window, op.stride, op.dilation, kernel, strict=True))  # type: ignore
    return first, second


def _wider(first: tuple[int, int] | None, second: tuple[int, int] | None) -> tuple[int, int] | None:
    if first is None or second is None:
        return None
    return max(first[0], second[0]), max(first[1], second[1])


# -- handing back -------------------------------------------------------------------------------------------------


def _last(network: Network, region: Region, rows: Tensor, intervals: Intervals, parts: tuple[str, ...], chunk: int,
          steps: int) -> Tensor:
    """Bounds of functionals of the logits, (M, Q, R), from the intervals of all neurons."""
    found = []
    for part in parts:
        if part == "ibp":
            found.append(_last_by_intervals(network, region, rows, intervals))
            continue
        if region.sets > 1:
            lines = _all_lines(network, {v: (low[:, -1], high[:, -1]) for v, (low, high) in intervals.items()})
            found.append(_reach(network, region, network.output, Dense(rows), lines, part))
        apart = region.apart()
        each = {v: tuple(t[:, :region.sets].flatten(0, 1) for t in intervals[v]) for v in network.unsettled}
        per_set = rows.repeat_interleave(region.sets, 0)
        pieces = []
        for first in range(0, apart.items, chunk):
            some = slice(first, first + chunk)
            lines = _all_lines(network, {v: (low[some], high[some]) for v, (low, high) in each.items()})
            where = apart.of_items(some)
            piece = _reach(network, where, network.output, Dense(per_set[some]), lines, part)
            if part == "backward" and steps:
                piece = _optimised(network, where, per_set[some], lines, steps, piece)
            pieces.append(piece[:, 0])
        found.append(torch.cat(pieces).view(region.items, region.sets, -1))
    return _least(iter(found))


def _all_lines(network: Network, intervals: Intervals) -> dict[int, Lines]:
    lines: dict[int, Lines] = {}
    for value in network.unsettled:
        lines |= _lines(network, value, *intervals[value])
    return lines


def _reach(network: Network, region: Region, value: int, rows: Rows, lines: Mapping[int, Lines], part: str) -> Tensor:
    """Upper bounds of functionals of a value on every set, (M or 1, Q, R)."""
    handed = _Handed(rows, part == "forward")
    inputs, constant = _back(network, value, handed, lines, frozenset())
    if 0 not in inputs:
        return constant.unsqueeze(1).expand(-1, region.sets, -1)
    at_input = inputs[0].joined()
    return region.reach(at_input) + (at_input.dot(region.centre) + constant).unsqueeze(1)


@dataclass(frozen=True)
class _Handed:
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
        return (self.rows.with_a(self.rows.a.clamp(min=0)), self.rows.with_a(self.rows.a.clamp(max=0)))

    def add(self, other: _Handed) -> _Handed:
        """The sum."""
        if self.negative is None and other.negative is None:
            return replace(self, rows=self.rows.add(other.rows))
        first, second = self.parted(), other.parted()
        return replace(self, rows=first[0].add(second[0]), negative=first[1].add(second[1]))


def _back(network: Network, value: int, handed: _Handed, lines: Mapping[int, Lines], stop: frozenset[int]) -> tuple[
        dict[int, _Handed], Tensor]:
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
        here = replace(here, rows=_compact(here.rows), negative=None if here.negative is None else _compact(
            here.negative))
        shares, more = _through(op, here, lines.get(k))
        constant = constant + more
        for source, share in zip(op.inputs, shares, strict=True):
            waiting[source] = waiting[source].add(share) if source in waiting else share
    if constant.ndim == 0:
        constant = constant.expand(1, 1)
    return waiting, constant


def _compact(rows: Rows) -> Rows:
    """Dense rows when windows have become larger than the activation."""
    if isinstance(rows, Patches) and rows.window[0] * rows.window[1] >= rows.shape[1] * rows.shape[2]:
        return rows.dense()
    return rows


def _through(op: Operation, here: _Handed, lines: Lines | None) -> tuple[list[_Handed], Tensor | float]:
    """Hand functionals back through one operation: what its inputs get, and the constant."""
    if isinstance(op, Sum):
        return [here if sign > 0 else _negated(here) for sign in op.signs], 0.0
    if isinstance(op, Affine):
        offset = op.offset()
        constant: Tensor | float = 0.0 if offset is None else here.joined().dot(offset[None])
        if not here.split:
            return [replace(here, rows=op.pull(here.rows))], constant
        upper, lower = here.parted()
        above = op.pull(upper, "positive").add(op.pull(lower, "negative"))
        below = op.pull(upper, "negative").add(op.pull(lower, "positive"))
        return [replace(here, rows=above, negative=below)], constant
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


def _negated(here: _Handed) -> _Handed:
    if not here.split:
        return replace(here, rows=here.rows.with_a(-here.rows.a))
    upper, lower = here.parted()
    return replace(here, rows=lower.with_a(-lower.a), negative=upper.with_a(-upper.a))


def _last_by_intervals(network: Network, region: Region, rows: Tensor, intervals: Intervals) -> Tensor:
    """Functionals are handed back through the affine layers at the end, then meet intervals: (M, Q, R)."""
    stop = frozenset(k + 1 for k, op in enumerate(network.operations) if isinstance(op, Rectifier | Maximum))
    arrived, constant = _back(network, network.output, _Handed(Dense(rows), False), {}, stop)
    total = constant.unsqueeze(1).expand(region.items, region.sets, -1)
    for value, handed in arrived.items():
        here = handed.rows.dense()
        if value == 0:
            total = total + region.reach(here) + here.dot(region.centre).unsqueeze(1)
        else:
            low, high = (t[:, :region.sets] for t in intervals[value])
            total = total + here.against(here.a.clamp(min=0), high) + here.against(here.a.clamp(max=0), low)
    return total


def _optimised(network: Network, region: Region, rows: Tensor, lines: dict[int, Lines], steps: int,
               start: Tensor) -> Tensor:
    """α-CROWN: projected gradient steps on the lower slopes, which may be anything from a leaky slope to 1.

    Every row of every item has slopes of its own. Each step's bound holds, so the least of all is returned.
    """
    free = {k: network.operations[k - 1] for k in lines if isinstance(network.operations[k - 1], Rectifier)}
    slopes = {k: lines[k].lower_slope.unsqueeze(1).repeat(1, rows.shape[1], *(1,) * (lines[k].lower_slope.ndim - 1))
              for k in free}
    unstable = {k: ((lines[k].upper_slope > op.leak) & (lines[k].upper_slope < 1)).unsqueeze(1)
                for k, op in free.items() if isinstance(op, Rectifier)}
    best, rate = start, 0.25
    for _ in range(steps):
        with torch.enable_grad():
            varied = {k: s.detach().requires_grad_() for k, s in slopes.items()}
            changed = {k: replace(line, lower_slope=varied[k]) if k in varied else line for k, line in lines.items()}
            found = _reach(network, region, network.output, Dense(rows), changed, "backward")
            gradients = torch.autograd.grad(found.sum(), list(varied.values()), allow_unused=True)
        best = torch.minimum(best, found.detach())
        for (k, op), gradient in zip(free.items(), gradients, strict=True):
            if gradient is not None and isinstance(op, Rectifier):
                moved = (slopes[k] - rate * gradient.sign() * unstable[k]).clamp(op.leak, 1.0)
                slopes[k] = torch.where(unstable[k], moved, slopes[k])
        rate *= 0.8
    return best
