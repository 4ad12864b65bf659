"""Image → tally: the one hot loop, and the only place that runs a model n times.

Nothing in the loop waits for the device: counts, votes and the check for NaN stay there until the copies are done.
Memory does not depend on n: no noisy copy and no map outlives its batch. A batch that does not fit into memory is
halved, for the method that needs so much and from then on; the noise of a copy is its own, so it stays the same.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from certframe.device import autocast, out_of_memory
from certframe.errors import UsageError
from certframe.noise import STREAM, CopyRng, GaussianNoise, image_hash
from certframe.sharing import SharedModel
from certframe.tally import REAL_UNIT, Tally

if TYPE_CHECKING:
    from torch import Tensor

    from certframe.protocols import Attribution, Attributor, Model, Sparsifier


@dataclass(frozen=True)
class Subject:
    """An image and the class to explain, fixed before any noise is drawn.

    Attributes:
        name: for messages.
        image: (C,H,W) float32 in [0, 1] on the model's device.
        target: class index, with its name.
        key: content hash of the image.
        anchor: (C,H,W), the image at which methods look first that do, where it is another than `image`.
    """

    name: str
    image: Tensor
    target: int
    target_name: str
    key: str
    anchor: Tensor | None = None

    @classmethod
    def of(cls, name: str, image: Tensor, target: int, target_name: str, anchor: Tensor | None = None) -> Subject:
        """Hash the image and bundle it with its target."""
        return cls(name, image, target, target_name, image_hash(image), anchor)


@dataclass(frozen=True)
class Cell:
    """One attributor at one noise level: one tally per image.

    Attributes:
        key: a name that is unique in the run and fit for a file.
        label: the attributor's name, for people.
        fingerprint: the attributor's identity: owner, name and options.
    """

    key: str
    label: str
    attributor: Attributor
    fingerprint: str
    sigma: float


@dataclass
class _Counter:
    """The growing counts of one cell, on the device."""

    segments: Tensor | None = None
    votes: Tensor | None = None
    flags: list[Tensor] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """The copies that each of the flags is about."""

    def add(self, levels: Tensor, logits: Tensor | None, pieces: Sequence[tuple[int, slice]], segments: int) -> None:
        if self.segments is None:
            self.segments = torch.zeros((segments, *levels.shape[1:]), dtype=torch.int64, device=levels.device)
            if logits is not None:
                self.votes = torch.zeros((segments, logits.shape[1]), dtype=torch.int64, device=levels.device)
        for segment, rows in pieces:
            for level in range(levels.shape[1]):
                # One level at a time as bytes: fifty times faster on a CPU than a sum over a boolean 4-D tensor.
                self.segments[segment, level] += _sum_copies(levels[rows, level])
            if self.votes is not None and logits is not None:
                winners = logits[rows].argmax(dim=1)
                self.votes[segment].scatter_add_(0, winners, torch.ones_like(winners))


def _sum_copies(level: Tensor) -> Tensor:
    """(B,h,w) bool or float in [0, 1] → (h,w) integer sums, in units of 1 or 1/REAL_UNIT."""
    if level.dtype == torch.bool:
        return level.view(torch.uint8).sum(dim=0, dtype=torch.int32)
    return (level.to(torch.float64) * REAL_UNIT).round().to(torch.int64).sum(dim=0)


@dataclass(frozen=True)
class _Levels:
    """What is counted of some copies."""

    levels: Tensor
    logits: Tensor | None
    extremes: Tensor


def warn(message: str) -> None:
    """Say it as a Python warning."""
    warnings.warn(message, UserWarning, stacklevel=2)


class Sampler:
    """Draws noisy copies, explains them and counts.

    Args:
        model: its module is already on the device where the work is done.
        sparsifier: turns maps into levels.
        seed: seed of the noise and of randomised attributors.
        batch_size: noisy copies in one pass.
        cuts: numbers of copies at which counts are kept apart.
        planned: the number of copies that the run may draw at most.
        upsample: interpolate maps bilinearly to the image's size before sparsifying, unless they are as large already.
        precision: "off", "bfloat16" or "float16".
        channels_last: memory layout of the inputs.
        identity: further entries of the tallies' identity (weights, sparsifier, …).
        notify: called with one line when batches are made smaller because they do not fit into memory.
    """

    def __init__(self, model: Model, sparsifier: Sparsifier, *, seed: int = 0, batch_size: int = 32,
                 cuts: Sequence[int] = (), planned: int = 0, upsample: bool = False, precision: str = "off",
                 channels_last: bool = False, identity: Mapping[str, Any] | None = None,
                 notify: Callable[[str], None] = warn) -> None:
        self.model, self.sparsifier = model, sparsifier
        self.seed, self.batch_size, self.cuts = seed, batch_size, tuple(sorted(set(cuts)))
        self.planned, self.upsample, self.precision = planned, upsample, precision
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._identity = dict(identity or {})
        self._notify, self._shared = notify, SharedModel(model)
        self._fits: dict[str, int] = {}
        """How many copies a method takes at once, by its fingerprint, where that is less than a batch."""
        self._anchored: tuple[Subject | None, list[tuple[Attributor, Attributor]]] = (None, [])
        """Methods, and what they have made of themselves for the image."""

    def clean(self, subject: Subject, cell: Cell) -> Tensor:
        """(h,w) float32 on the CPU: the attribution of the clean image, at the resolution that is certified.

        Raises:
            UsageError: it has NaN or infinite values.
        """
        try:
            attribution = self._attribute(subject, cell, subject.image[None], _targets(subject, 1), [-1])
        except Exception as error:
            if out_of_memory(error):
                raise self._too_large(subject, cell) from error
            raise
        maps = self._resize(attribution.maps, subject.image)
        self._refuse_bad(subject, cell, maps, attribution.logits, "")
        return maps[0].float().cpu()

    def sample(self, subject: Subject, cells: Sequence[Cell], start: int, stop: int) -> dict[str, Tally]:
        """Count the copies start, …, stop − 1 of one image for several cells; every copy's noise is drawn once.

        Raises:
            UsageError: an attribution, or the model's output, is NaN or infinite, or not even one copy fits into
                memory.
        """
        if start >= stop:
            raise UsageError(f"no copies between {start} and {stop}: ask for at least one")
        noise = GaussianNoise(self.seed, subject.key)
        counters = {cell.key: _Counter() for cell in cells}
        for low, high in _ranges(start, stop, self.batch_size):
            unit = noise.draw(low, high, subject.image.shape, subject.image.device)
            for sigma in dict.fromkeys(cell.sigma for cell in cells):
                noisy = torch.add(subject.image, unit, alpha=sigma).contiguous(memory_format=self._format)
                targets = _targets(subject, len(noisy))
                with self._shared.batch(noisy, targets):
                    for cell in cells:
                        if cell.sigma == sigma:
                            self._count(counters[cell.key], subject, cell, noisy, targets, low)
        for cell in cells:
            self._check(counters[cell.key], subject, cell)
        return {cell.key: self._tally(counters[cell.key], subject, cell, start, stop) for cell in cells}

    def _count(self, counter: _Counter, subject: Subject, cell: Cell, noisy: Tensor, targets: Tensor,
               low: int) -> None:
        """Count the copies low, low + 1, …, all at once or in as many parts as memory asks for."""
        a, high = low, low + len(noisy)
        while a < high:
            a, b = _ranges(a, high, self._fits.get(cell.fingerprint, self.batch_size))[0]
            part = slice(a - low, b - low)
            found = self._levels(subject, cell, noisy[part], targets[part], range(a, b))
            if found is None:  # tried again outside the exception, whose traceback holds on to the tensors
                self._shared.forget()
                self._halve(subject, cell, b - a)
                continue
            # Counting comes after all that needs much memory: nothing is ever added twice.
            counter.flags.append(found.extremes)
            counter.ranges.append((a, b))
            counter.add(found.levels, found.logits, self._pieces(a, b), len(self.cuts) + 1)
            a = b

    def _levels(self, subject: Subject, cell: Cell, noisy: Tensor, targets: Tensor, copies: range) -> _Levels | None:
        """Explain and sparsify; None when that does not fit into memory."""
        try:
            attribution = self._attribute(subject, cell, noisy, targets, copies)
            with torch.no_grad():
                maps = self._resize(attribution.maps, noisy)
                return _Levels(self.sparsifier.sparsify(maps), attribution.logits,
                               _extremes(maps, attribution.logits))
        except Exception as error:
            if out_of_memory(error):
                return None
            raise

    def _halve(self, subject: Subject, cell: Cell, copies: int) -> None:
        """Half as many copies for this method from now on; the listener hears of it."""
        if copies == 1:
            raise self._too_large(subject, cell)
        half = self._fits[cell.fingerprint] = copies // 2
        self._notify(f"attributor '{cell.label}': {copies} noisy copies at once do not fit into memory; it goes on "
                     f"with {half} (begin with --batch-size {half} to save the attempt)")

    def _too_large(self, subject: Subject, cell: Cell) -> UsageError:
        own = sorted(getattr(type(cell.attributor), "execution", ()))
        values = {name: getattr(getattr(cell.attributor, "options", None), name, None) for name in own}
        smaller = " or ".join(f"-o attributor.{cell.label}.{name}={max(1, value // 2)}" for name, value in
                              values.items() if isinstance(value, int) and value > 1)
        return UsageError(f"attributor '{cell.label}' does not fit into memory on image '{subject.name}', not even one "
                          f"copy at a time: {f'try {smaller}, or ' if smaller else ''}take a smaller model, another "
                          "method or another device")

    def _pieces(self, low: int, high: int) -> list[tuple[int, slice]]:
        """Which rows of the batch low…high belong to which segment."""
        edges = pairwise([0, *self.cuts, 2**62])
        return [(s, slice(max(a, low) - low, min(b, high) - low))
                for s, (a, b) in enumerate(edges) if max(a, low) < min(b, high)]

    def _attribute(self, subject: Subject, cell: Cell, inputs: Tensor, targets: Tensor,
                   copies: Sequence[int]) -> Attribution:
        rng = CopyRng(self.seed, subject.key, cell.fingerprint, copies, inputs.device)
        with torch.enable_grad(), autocast(inputs.device, self.precision):
            return self._method(subject, cell).attribute(self._shared, inputs, targets, rng=rng)

    def _method(self, subject: Subject, cell: Cell) -> Attributor:
        """The cell's attributor, or what it has made of itself after a look at the clean image."""
        if self._anchored[0] is not subject:
            self._anchored = (subject, [])
        for method, found in self._anchored[1]:
            if method is cell.attributor:
                return found
        image = subject.image if subject.anchor is None else subject.anchor
        found = anchored(cell.attributor, self._shared, image, subject.target)
        self._anchored[1].append((cell.attributor, found))
        return found

    def _resize(self, maps: Tensor, image: Tensor) -> Tensor:
        return at_resolution(maps.detach().to(torch.float32), image, upsample=self.upsample)

    def _check(self, counter: _Counter, subject: Subject, cell: Cell) -> None:
        """The only look at the device: were all maps finite? If not, explain the first bad batch again and count."""
        finite = torch.isfinite(torch.stack(counter.flags)).all(dim=1).cpu().numpy()
        for low, high in [counter.ranges[int(i)] for i in np.flatnonzero(~finite)]:
            unit = GaussianNoise(self.seed, subject.key).draw(low, high, subject.image.shape, subject.image.device)
            noisy = torch.add(subject.image, unit, alpha=cell.sigma).contiguous(memory_format=self._format)
            attribution = self._attribute(subject, cell, noisy, _targets(subject, len(noisy)), range(low, high))
            self._refuse_bad(subject, cell, self._resize(attribution.maps, noisy), attribution.logits,
                             f" in the noisy copies {low} to {high - 1}")
            raise UsageError(f"attributor '{cell.label}' gave NaN or infinite scores on image '{subject.name}' in the "
                             f"copies {low} to {high - 1}, but not when they were repeated: it is not reproducible")

    def _refuse_bad(self, subject: Subject, cell: Cell, maps: Tensor, logits: Tensor | None, where: str) -> None:
        if logits is not None and not bool(torch.isfinite(logits).all()):
            raise UsageError(f"the model returns NaN or infinite logits for image '{subject.name}'{where}: check its "
                             "weights, or switch autocast off")
        bad = int((~torch.isfinite(maps)).sum())
        if bad:
            raise UsageError(f"attributor '{cell.label}' gives {bad} NaN or infinite scores on image "
                             f"'{subject.name}'{where}: another method, or options that keep it finite, will do")

    def _tally(self, counter: _Counter, subject: Subject, cell: Cell, start: int, stop: int) -> Tally:
        assert counter.segments is not None
        identity = {
            **self._identity, "image": subject.key, "noise": f"gaussian seed={self.seed} {STREAM}",
            "target": subject.target, "target_name": subject.target_name, "attributor": cell.label,
            "attributor_options": cell.fingerprint, "precision": self.precision,
            "resolution": "input" if self.upsample else "native",
        }
        if (method := self._method(subject, cell)) is not cell.attributor:
            identity["held"] = method.held  # type: ignore[attr-defined]  # an anchored method says what it holds
        return Tally(
            segments=counter.segments.cpu().numpy(), copies=((start, stop),), levels=tuple(self.sparsifier.levels),
            sigma=cell.sigma, cuts=self.cuts, planned=self.planned, nested=self.sparsifier.nested,
            unit=1 if self.sparsifier.binary else REAL_UNIT, identity=identity,
            votes=None if counter.votes is None else counter.votes.cpu().numpy())


def anchored(attributor: Attributor, model: Model, image: Tensor, target: int) -> Attributor:
    """What explains an image (C,H,W) and its noisy copies: the attributor, unless it looks at the image first."""
    look = getattr(attributor, "anchored", None)
    found: Attributor | None = None if look is None else look(model, image, target)
    return attributor if found is None else found


def _targets(subject: Subject, count: int) -> Tensor:
    return torch.full((count,), subject.target, dtype=torch.int64, device=subject.image.device)


def at_resolution(maps: Tensor, image: Tensor, *, upsample: bool) -> Tensor:
    """(B,h,w) maps as they are certified: enlarged to the image's size, bilinearly, or as they are."""
    size = tuple(image.shape[-2:])
    # Maps are enlarged, never reduced: one with a value for every channel has more rows than the image.
    if not upsample or (maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]):
        return maps
    enlarged = functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    # A weighted mean lies between the extremes, but not when it is rounded: that would rank pixels of a constant map.
    return enlarged.clamp(maps.detach().amin((1, 2), keepdim=True), maps.detach().amax((1, 2), keepdim=True))


def _ranges(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Ranges up to multiples of a size: a copy is in the same batch wherever the whole range begins.

    The last digits of a network's output may depend on the batch, and counts with them.
    """
    edges = [start, *range(start - start % size + size, stop, size), stop]
    return list(itertools.pairwise(edges))


def _extremes(maps: Tensor, logits: Tensor | None) -> Tensor:
    """A few numbers that are finite exactly when all maps (and logits) are; NaN survives minimum and maximum."""
    found = list(torch.aminmax(maps))
    found += list(torch.aminmax(logits.detach().float())) if logits is not None else []
    return torch.stack(found)
