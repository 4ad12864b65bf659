"""The tally: what is left of thousands of noisy copies, and all that a certificate needs.

For every level and pixel it keeps how many copies had a 1 there (or, for levels in [0, 1], the sum). Counts are
integers, so tallies over disjoint copies merge by addition, exactly and in any order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from certframe.errors import CertframeError, UsageError
from certframe.files import write_atomic

FORMAT = 1
"""Version of the file format."""
REAL_UNIT = 2**30
"""Levels in [0, 1] are rounded to multiples of 1/REAL_UNIT and summed as integers, so that sums are exact.

The rounding is part of the certified function: its values stay in [0, 1] and every bound holds for it as it is.
"""

Interval = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts over the noisy copies of one image.

    Attributes:
        segments: (S,L,h,w) int64; segment s counts the copies between cut s−1 and cut s.
        cuts: S−1 increasing numbers of copies at which the counts are kept apart, for certifiers that select on the
            first copies or look before the end.
        copies: the copies that were counted, as sorted disjoint half-open intervals.
        levels: the sparsifier's level labels.
        planned: the number of copies that were to be drawn at most, fixed before the first; 0 when nobody said. What
            an adaptive certifier's looks are derived from.
        nested: the sparsifier's claim that level l contains level l+1.
        unit: 1 for 0/1 levels, `REAL_UNIT` for levels in [0, 1].
        sigma: standard deviation of the noise in pixel units.
        identity: everything that has to agree for two tallies to be about the same random variable: image, noise,
            target, model weights, attributor, sparsifier, resolution, arithmetic.
        votes: (S, classes) int64, the class predicted for each copy, or None when no logits were at hand.
    """

    segments: np.ndarray
    copies: tuple[Interval, ...]
    levels: tuple[str, ...]
    sigma: float
    cuts: tuple[int, ...] = ()
    planned: int = 0
    nested: bool = False
    unit: int = 1
    identity: Mapping[str, Any] = field(default_factory=dict)
    votes: np.ndarray | None = None

    @property
    def samples(self) -> int:
        """n, the number of noisy copies counted."""
        return sum(stop - start for start, stop in self.copies)

    @property
    def counts(self) -> np.ndarray:
        """(L,h,w) int64, over all copies."""
        return np.asarray(self.segments.sum(axis=0))

    @property
    def pixels(self) -> int:
        """h·w."""
        return int(np.prod(self.segments.shape[2:]))

    @property
    def mean(self) -> np.ndarray:
        """(L,h,w) float64 in [0, 1], the empirical smoothed map."""
        return self.counts / (self.samples * self.unit)

    @property
    def class_votes(self) -> np.ndarray | None:
        """(classes,) int64 over all copies."""
        return None if self.votes is None else np.asarray(self.votes.sum(axis=0))

    def upto(self, copies: int) -> np.ndarray:
        """(L,h,w) counts over the first so many copies.

        Raises:
            UsageError: the tally is not cut there, or does not cover those copies.
        """
        if copies == self.samples and self.copies == ((0, copies),):
            return self.counts
        if copies not in self.cuts:
            raise UsageError(f"this tally keeps no counts of its first {copies} copies (it is cut at "
                             f"{', '.join(map(str, self.cuts)) or 'no place'}): run again with the certifier that "
                             "needs them")
        if not self.copies or self.copies[0][0] > 0 or self.copies[0][1] < copies:
            raise UsageError(f"this tally does not cover all of its first {copies} copies")
        return np.asarray(self.segments[: self.cuts.index(copies) + 1].sum(axis=0))

    def merge(self, other: Tally) -> Tally:
        """The tally over the copies of both.

        Raises:
            CertframeError: they differ in something that has to agree, or share copies; the message names it.
        """
        _refuse_difference(self, other)
        return replace(
            self, segments=self.segments + other.segments, copies=_union(self.copies, other.copies),
            votes=None if self.votes is None or other.votes is None else self.votes + other.votes)

    def save(self, path: Path) -> None:
        """Write the tally to one file, atomically; the smallest integer type that holds the counts is used."""
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file's content: safetensors, with everything but the arrays as JSON in its header."""
        arrays = {"segments": _shrink(self.segments)}
        if self.votes is not None:
            arrays["votes"] = _shrink(self.votes)
        header = {
            "format": FORMAT, "copies": self.copies, "levels": self.levels, "sigma": self.sigma, "cuts": self.cuts,
            "planned": self.planned, "nested": self.nested, "unit": self.unit, "identity": dict(self.identity),
        }
        # One metadata key only: safetensors does not promise an order of several, and files have to be reproducible.
        return save(arrays, metadata={"certframe.tally": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> Tally:
        """Read a tally back.

        Raises:
            CertframeError: the file is missing, damaged, or of a newer format.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                header = json.loads((file.metadata() or {})["certframe.tally"])
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            tally = None if header["format"] > FORMAT else cls._from_parts(header, arrays)
        except FileNotFoundError:
            raise CertframeError(f"{path} is missing: run the same command again to make it") from None
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CertframeError(f"{path} is damaged ({' '.join(str(error).split())}): delete it and run the same "
                                 "command again") from error
        if tally is None:
            raise UsageError(f"{path} was written by a newer certframe (format {header['format']}, this one reads up "
                             f"to {FORMAT}): upgrade certframe")
        return tally

    @classmethod
    def _from_parts(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Tally:
        votes = arrays.get("votes")
        return cls(
            segments=arrays["segments"].astype(np.int64), votes=None if votes is None else votes.astype(np.int64),
            levels=tuple(header["levels"]), copies=tuple((a, b) for a, b in header["copies"]), sigma=header["sigma"],
            cuts=tuple(header["cuts"]), planned=header["planned"], nested=header["nested"], unit=header["unit"],
            identity=header["identity"])


def merge(tallies: Sequence[Tally]) -> Tally:
    """The tally over the copies of all of them; at least one.

    Raises:
        UsageError: there is none.
        CertframeError: two of them cannot be merged.
    """
    if not tallies:
        raise UsageError("no tally to merge: give at least one")
    result = tallies[0]
    for other in tallies[1:]:
        result = result.merge(other)
    return result


def _refuse_difference(a: Tally, b: Tally) -> None:
    mine, theirs = ({**t.identity, "sigma": t.sigma, "levels": t.levels, "cuts": t.cuts, "unit": t.unit,
                     "nested": t.nested, "planned": t.planned} for t in (a, b))
    differing = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    if differing:
        detail = "; ".join(f"{key} is {_short(mine.get(key))} in one and {_short(theirs.get(key))} in the other"
                           for key in differing)
        raise CertframeError(f"these tallies cannot be merged: {detail}")
    if a.segments.shape != b.segments.shape:
        raise CertframeError(f"these tallies cannot be merged: their shapes are {a.segments.shape} and "
                             f"{b.segments.shape}")
    for start, stop in a.copies:
        for other_start, other_stop in b.copies:
            low, high = max(start, other_start), min(stop, other_stop)
            if low < high:
                raise CertframeError(f"these tallies cannot be merged: both count the copies {low} to {high - 1}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-12:]}"


def _union(a: tuple[Interval, ...], b: tuple[Interval, ...]) -> tuple[Interval, ...]:
    merged: list[Interval] = []
    for start, stop in sorted((*a, *b)):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _shrink(array: np.ndarray) -> np.ndarray:
    """The smallest unsigned type that holds the counts; in C order, because safetensors writes memory as it lies."""
    top = int(array.max(initial=0))
    for dtype in (np.uint8, np.uint16, np.uint32):
        if top <= np.iinfo(dtype).max:
            return array.astype(dtype, order="C")
    return array.astype(np.uint64, order="C")
