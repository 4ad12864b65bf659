"""A plan in words: the rows of a table and the lines below it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certframe.planning import Claim, Plan

COLUMNS = ("method", "σ", "certifier", "votes needed", "radius", "largest radius", "needs n ≥")
"""The columns of the table; the first three are names."""


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """A row per noise level and certifier; methods about which the same can be said share one."""
    groups: dict[Claim, list[str]] = {}
    for claim in plan.claims:
        groups.setdefault(replace(claim, attributor=""), []).append(claim.attributor)
    count = len(plan.config.attributor)
    return [_row(claim, ["all methods"] if count > 1 and len(names) == count else names)
            for claim, names in groups.items()]


def _row(claim: Claim, names: list[str]) -> tuple[str, ...]:
    most, least = ("", "") if claim.exact else ("≤ ", "≥ ")
    votes = "–" if claim.votes is None else f"{most}{claim.votes} of {claim.voters}"
    largest = "–" if claim.largest_radius is None else f"{least}{claim.largest_radius:.4g}"
    return (", ".join(names), f"{claim.sigma:g}", claim.certifier, votes, f"{claim.radius:.4g}", largest,
            f"{most}{claim.min_samples:,}")


def facts(plan: Plan) -> list[tuple[str, str]]:
    """Name and text of everything that is no column."""
    c, h, w = plan.input_size
    left = "" if not plan.resumes else f", {plan.done} of them done"
    lines = [("images", f"{plan.images:,} of {plan.config.dataset.name}, {c}×{h}×{w} each{left}")]
    lines += [("looks", _looks([claim for claim in plan.claims if claim.certifier == name]))
              for name in dict.fromkeys(claim.certifier for claim in plan.claims if claim.looks)]
    if plan.stops:
        agree, split = plan.stops
        early = f"at {agree} copies of an image if all agree, at {split} if they agree nowhere" if agree != split else \
            f"at {agree} copies of an image if all agree, and if they agree nowhere"
        lines.append(("stops", f"{early}; at {plan.config.samples} at the latest"))
    lines += [("" if i else "work", text) for i, text in enumerate(_work(plan))]
    return [*lines, ("space", _space(plan)), *_run(plan), ("time", _time(plan)), *_notes(plan)]


def _looks(claims: list[Claim]) -> str:
    """When one adaptive certifier looks, over all methods and noise levels."""
    looks, firsts = claims[0].looks, {claim.first_look for claim in claims if claim.first_look is not None}
    shown = ", ".join(map(str, looks[:4])) + (f", …, {looks[-1]}" if len(looks) > 4 else "")
    votes = {claim.first_votes for claim in claims if claim.first_votes is not None}
    enough = f", with {_between(min(votes), max(votes))} votes" if votes else ""
    first = f"the first that can certify is {_between(min(firsts), max(firsts))}{enough}" if firsts else \
        "none of them can certify anything"
    return f"{claims[0].certifier} looks after {shown} copies; {first}"


def _work(plan: Plan) -> list[str]:
    """A line for all methods with the same costs, and a sum."""
    known: dict[tuple[int, int, int | None], list[str]] = {}
    for cost in plan.costs:
        known.setdefault((cost.fewest, cost.most, cost.passes), []).append(cost.attributor)
    if not any(cost.most for cost in plan.costs):
        return ["nothing is left to do"]
    lines = [_explained(names, *numbers) for numbers, names in known.items()]
    if plan.evaluations and (len(plan.costs) > 1 or plan.costs[0].passes != 1):
        lines.append(f"{_between(*plan.evaluations)} passes of the model in all")
    return lines


def _explained(names: list[str], fewest: int, most: int, passes: int | None) -> str:
    each = "each of " if len(names) > 1 else ""
    cost = "" if passes is None else f" ({passes:,} {'pass' if passes == 1 else 'passes'} of the model each)"
    return f"{_between(fewest, most)} noisy copies for {each}{', '.join(names)}{cost}"


def _between(least: int, most: int) -> str:
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _space(plan: Plan) -> str:
    return (f"{size(plan.memory)} of memory for the counts of an image, at most {size(plan.disk)} on disk "
            f"({size(plan.free)} free)")


def _run(plan: Plan) -> list[tuple[str, str]]:
    if plan.out is None:
        return []
    if not plan.resumes:
        state = "new"
    elif plan.done == plan.images:
        state = "finished"
    else:
        more = f", and {plan.counted:,} copies of others counted" if plan.counted else ""
        state = f"goes on: {plan.done} of {plan.images} images are done{more}"
    return [("run", f"{plan.out} ({state})")]


def _time(plan: Plan) -> str:
    probe, seconds = plan.probe, plan.seconds
    if probe is None or seconds is None:
        return "not measured; --probe times a few batches" if any(cost.most for cost in plan.costs) else "none"
    least, most = seconds
    span = duration(most) if most < 1.1 * least else f"{duration(least)} to {duration(most)}"
    each = ", ".join(f"{duration(m.seconds)} by {m.attributor} ({m.copies} at a time)" for m in probe.methods)
    memory = [f"{size(probe.memory)} of memory"] if probe.memory else []
    memory += [f"{size(probe.device_memory)} on the device"] if probe.device_memory else []
    return f"about {span} on {probe.device}; a copy takes {each}; " + ", ".join(memory)


def _notes(plan: Plan) -> list[tuple[str, str]]:
    if all(claim.exact for claim in plan.claims):
        return []
    return [("note", "feature maps at resolution native are smaller than the image, how small shows after a pass of "
                     "the model: --probe makes one, and then less is needed than is said here")]


def plain(plan: Plan) -> str:
    """The plan as text with aligned columns."""
    table = [COLUMNS, *rows(plan)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) if i else cell.ljust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in table]
    return "\n".join([*lines, "", *(f"{name:<7} {text}" for name, text in facts(plan))])


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan for scripts: JSON values only."""
    return {
        "model": plan.config.model.name, "dataset": plan.config.dataset.name, "images": plan.images,
        "input_size": list(plan.input_size), "samples": plan.config.samples, "digest": plan.config.digest,
        "claims": [asdict(claim) for claim in plan.claims], "costs": [asdict(cost) for cost in plan.costs],
        "stops": plan.stops, "evaluations": plan.evaluations, "memory_bytes": plan.memory, "disk_bytes": plan.disk,
        "free_bytes": plan.free, "out": None if plan.out is None else str(plan.out), "resumes": plan.resumes,
        "done": plan.done, "counted": plan.counted, "probe": None if plan.probe is None else asdict(plan.probe),
        "seconds": plan.seconds,
    }


def duration(seconds: float) -> str:
    """``"0.8 ms"``, ``"12 s"``, ``"3 min 20 s"``, ``"5 h 10 min"``, ``"2 d 4 h"``."""
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small = ((60, "min"), (1, "s")) if whole < 3600 else ((3600, "h"), (60, "min")) if whole < 86400 else (
        (86400, "d"), (3600, "h"))
    rest = whole % large[0] // small[0]
    return f"{whole // large[0]} {large[1]}" + (f" {rest} {small[1]}" if rest else "")


def size(count: float) -> str:
    """``"310 kB"``, ``"4.2 MB"``, ``"1.3 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
