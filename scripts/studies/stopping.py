"""Stopping rules applied to counts that are already there: each sees, look by look, the counts so far and no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from certframe.certifiers.pixel import Pixel
from certframe.protocols import ABSTAIN
from certframe.statistics.sequential import certified_steps, chances, geometric_looks, ladder, steps_of_counts
from certframe.tally import Tally

TAU, ALPHA = 0.75, 0.001


@dataclass(frozen=True)
class Rule:
    """When to look, how the error is spent, when to stop.

    Attributes:
        looks: numbers of copies at which the counts are looked at, the planned end last.
        calibrated: spend the error by the exact crossing probability; else by the union bound over looks.
        step_down: lower the bounds as pixels are certified.
        futility: stop when at most this share of the pixels can still be hoped for.
        predict: count each uncertified pixel with its probability of reaching the last bound, as `adaptive` does; else
            count those that have as many votes as the last bound asks for, pro rata.
        enough: stop also when the certified area is at least this share of the area that is expected at the end; 1 for
            never. Only with `predict`.
    """

    looks: tuple[int, ...] = geometric_looks(1000)
    calibrated: bool = True
    step_down: bool = True
    futility: float = 0.01
    predict: bool = True
    enough: float = 0.96


@dataclass(frozen=True)
class Outcome:
    """Where a rule stops an image: copies used, certified share of all pixels and levels, share to come, and why."""

    samples: int
    area: float
    to_come: float
    reason: str


def walk(tally: Tally, rule: Rule) -> Iterator[tuple[int, float, float]]:
    """Number of copies, certified share and share to come at each look; see `replay` for the tally."""
    tests, bounds = ladder(rule.looks, TAU, ALPHA, tally.pixels, calibrated=rule.calibrated, step_down=rule.step_down)
    codes = np.full(tally.segments.shape[1:], 2 * len(tests), dtype=np.int16)
    for j, n in enumerate(rule.looks):
        counts = tally.upto(n)
        codes = np.minimum(codes, steps_of_counts(counts, n, bounds[:, j]))
        steps = [certified_steps(level, tests) for level in codes]
        certified = [level < 2 * step for level, step in zip(codes, steps, strict=True)]
        hopes = [_hope(count[~sure], n, int(bounds[step - 1 if rule.predict else 0, -1]), rule.looks[-1], rule.predict)
                 for count, sure, step in zip(counts, certified, steps, strict=True)]
        yield n, float(np.mean(certified)), sum(hopes) / codes.size


def replay(tally: Tally, rule: Rule) -> Outcome:
    """What the rule would have done with 0/1 levels that are cut at its looks, with as many copies as its last look."""
    n, area, to_come = 0, 0.0, 1.0
    for n, area, to_come in walk(tally, rule):
        if n < rule.looks[-1] and rule.predict and area > 0 and area >= rule.enough * (area + to_come):
            return Outcome(n, area, to_come, "enough")
        if n < rule.looks[-1] and to_come <= rule.futility:
            return Outcome(n, area, to_come, "little to come")
    return Outcome(n, area, to_come, "last look")


def _hope(counts: np.ndarray, samples: int, bound: int, end: int, predict: bool) -> float:
    """The number of uncertified pixels that can be hoped for."""
    every = np.arange(samples + 1)
    votes = np.maximum(every, samples - every)
    value = chances(samples, bound, end)[votes] if predict else votes * end >= bound * samples
    return float(np.bincount(counts, minlength=samples + 1) @ value)


def fixed(tally: Tally, samples: int, pilot: int = 10) -> Tally:
    """The first copies as a run with that fixed number of them would have counted them."""
    first, whole = tally.upto(pilot), tally.upto(samples)
    return replace(tally, segments=np.stack([first, whole - first]), cuts=(pilot,), copies=((0, samples),),
                   planned=samples, votes=None)


def fixed_area(tally: Tally, samples: int, **options: object) -> float:
    """The certified share of all pixels and levels with a fixed number of copies, by `pixel`."""
    certifier = Pixel(Pixel.Options.model_validate({"tau": TAU, "alpha": ALPHA, **options}))
    return float((certifier.certify(fixed(tally, samples)).labels != ABSTAIN).mean())


def share(part: float, whole: float) -> float:
    """The ratio, 1 of 0 to 0: nothing was lost of nothing."""
    return part / whole if whole else 1.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (NaN for fewer than two values)."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return float(np.mean(values)), error
