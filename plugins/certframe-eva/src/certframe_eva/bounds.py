"""Verified bounds: what the logits of a network can be while its input is perturbed.

Three ways to bound, and their intersections:

* ``ibp``: intervals, propagated from layer to layer.
* ``forward``: two affine functions of the input for every neuron, propagated forward (`certframe_eva.forward`).
* ``backward``: CROWN; the coefficients of functionals are handed back to the input (`certframe_eva.backward`).

Rectifiers and maxima are replaced by linear functions that enclose them on an interval. Every neuron's interval is the
tightest that the method has.

H. Zhang, T.-W. Weng, P.-Y. Chen, C.-J. Hsieh, L. Daniel. Efficient neural network robustness certification with general
activation functions. NeurIPS 2018. K. Xu et al. Automatic perturbation analysis for scalable certified robustness and
beyond. NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

import certframe
from certframe_eva.backward import Handed, hand_back, ranges, reach
from certframe_eva.forward import Forward, coefficients
from certframe_eva.network import Network
from certframe_eva.operations import Affine, Lines, Maximum, Operation, Rectifier, Sum
from certframe_eva.regions import Region
from certframe_eva.rows import AT_ONCE, Dense

PARTS = ("ibp", "forward", "backward")
Relaxation = Literal["shared", "own"]
Intervals = Mapping[int, tuple[Tensor, Tensor]]
_FUNCTIONS = 2**25
"""Coefficients of the functions of one value that may exist at once, about: 256 MB in float64."""


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
        chunk: how many sets of perturbations have coefficients at the same time at most; changes no result.
        steps: projected gradient steps on the lower lines of unstable rectifiers (α-CROWN), for `backward` and the
            last pass only.

    Returns:
        (M, Q, R).

    Raises:
        UsageError: the method does not exist.
    """
    parts = parts_of_method(method)
    per_item = rows.expand(region.items, *rows.shape[-2:]) if rows.ndim == 2 else rows
    if relaxation == "own":
        region, per_item, sets = region.apart(), per_item.repeat_interleave(region.sets, 0), region.sets
    else:
        sets = 1
    at_once = max(1, chunk // region.sets)
    if "forward" in parts:
        at_once = min(at_once, max(1, _FUNCTIONS // coefficients(network)))
    found = []
    with torch.no_grad():
        for first in range(0, region.items, at_once):
            items = slice(first, first + at_once)
            found.append(_upper(network, region.of_items(items), per_item[items], parts, chunk, steps))
    joined = torch.cat(found)
    return joined if sets == 1 else joined.view(-1, sets, joined.shape[-1])


def logit_bounds(network: Network, region: Region, method: str = "ibp+forward+backward", *,
                 relaxation: Relaxation = "shared", chunk: int = 256, steps: int = 0) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of the logits, (M, Q, classes) each; arguments as of `upper_bounds`."""
    one = torch.eye(network.classes, dtype=region.centre.dtype, device=region.centre.device)
    found = upper_bounds(network, region, torch.cat([one, -one]), method, relaxation=relaxation, chunk=chunk,
                         steps=steps)
    upper, negative = found.chunk(2, dim=2)
    return -negative, upper


def _upper(network: Network, region: Region, rows: Tensor, parts: tuple[str, ...], chunk: int, steps: int) -> Tensor:
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
    edge, functions = _edge(network), Forward(network, region.centre)
    for value in range(len(network.operations) + 1):
        op = network.operations[value - 1] if value else None
        if value in network.affine:
            if value in edge and ("ibp" in parts or value in network.unsettled):
                boxes[value] = settled[value] = ranges(network, sets, value, lines)
        else:
            assert op is not None
            # The range of what a rectifier or a maximum computes follows from that of its input, without loss.
            bent = isinstance(op, Rectifier | Maximum)
            found = [_interval(op, [boxes[i] for i in op.inputs])] if bent or "ibp" in parts else []
            if value in network.unsettled:
                if "forward" in parts and not bent:
                    found.append(functions.of(value, lines).interval(sets))
                if "backward" in parts and not bent:
                    found.append(ranges(network, sets, value, lines))
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
    at_once = max(1, AT_ONCE // math.prod(inputs[0][0].shape[2:]))
    lows, highs = (t.flatten(0, 1).split(at_once) for t in inputs[0])
    found = zip(*(op.interval(low, high) for low, high in zip(lows, highs, strict=True)), strict=True)
    low, high = (torch.cat(side).unflatten(0, inputs[0][0].shape[:2]) for side in found)
    return low, high


# -- functionals of the logits --------------------------------------------------------------------------------------


def _last(network: Network, region: Region, rows: Tensor, intervals: Intervals, parts: tuple[str, ...], chunk: int,
          steps: int) -> Tensor:
    """Bounds of functionals of the logits, (M, Q, R), from the intervals of all neurons."""
    widest = max(math.prod(network.shape(value)) for value in range(len(network.operations) + 1))
    found = []
    for part in parts:
        if part == "ibp":
            found.append(_last_by_intervals(network, region, rows, intervals))
            continue
        if region.sets > 1:
            lines = _all_lines(network, {v: (low[:, -1], high[:, -1]) for v, (low, high) in intervals.items()})
            found.append(reach(network, region, network.output, Dense(rows), lines, part))
        apart = region.apart()
        each = {v: tuple(t[:, :region.sets].flatten(0, 1) for t in intervals[v]) for v in network.unsettled}
        per_set = rows.repeat_interleave(region.sets, 0)
        at_once = min(chunk, max(1, AT_ONCE // (rows.shape[1] * widest)))
        pieces = []
        for first in range(0, apart.items, at_once):
            some = slice(first, first + at_once)
            lines = _all_lines(network, {v: (low[some], high[some]) for v, (low, high) in each.items()})
            where = apart.of_items(some)
            piece = reach(network, where, network.output, Dense(per_set[some]), lines, part)
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


def _last_by_intervals(network: Network, region: Region, rows: Tensor, intervals: Intervals) -> Tensor:
    """Functionals are handed back through the affine layers at the end, then meet intervals: (M, Q, R)."""
    stop = frozenset(k + 1 for k, op in enumerate(network.operations) if isinstance(op, Rectifier | Maximum))
    arrived, constant = hand_back(network, network.output, Handed(Dense(rows), False), {}, stop)
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
            found = reach(network, region, network.output, Dense(rows), changed, "backward")
            gradients = torch.autograd.grad(found.sum(), list(varied.values()), allow_unused=True)
        best = torch.minimum(best, found.detach())
        for (k, op), gradient in zip(free.items(), gradients, strict=True):
            if gradient is not None and isinstance(op, Rectifier):
                moved = (slopes[k] - rate * gradient.sign() * unstable[k]).clamp(op.leak, 1.0)
                slopes[k] = torch.where(unstable[k], moved, slopes[k])
        rate *= 0.8
    return best
