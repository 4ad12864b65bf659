"""What a run can certify and what it will cost, before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certframe.config import Component, RunConfig, distinct
from certframe.device import resolve_device
from certframe.errors import UsageError
from certframe.feasibility import Imagined, proof_of, require_samples, votes_needed
from certframe.plan_text import plain, size
from certframe.protocols import ABSTAIN, Certificate, Certifier, Dataset, Model
from certframe.registry import Registry
from certframe.store import Run, certificate_bytes, image_key
from certframe.tally import Tally
from certframe.worker import cells_of, cuts_of

if TYPE_CHECKING:
    from certframe.probing import Probe

LEDGER_BYTES = 6_000
"""About the size of a part of the ledger."""


@dataclass(frozen=True)
class Claim:
    """What a certifier can prove from the counts of one method at one noise level.

    Attributes:
        attributor, certifier: names, with their options where a name alone is not enough.
        sigma: standard deviation of the noise, in pixel units.
        pixels: N, the pixels of the map; when not `exact`, the most that it can have, and then `votes` and
            `min_samples` are at most, `largest_radius` is at least, what is given.
        votes: votes of `voters` copies that certify a pixel while no other is certified; None when the certifier labels
            no pixels.
        radius: of the certificate in the best case, in pixel units.
        largest_radius: with the largest τ at which anything could be certified, or of a pixel whose radius the counts
            decide; None when neither is so.
        min_samples: under so many copies everything abstains.
        looks: of an adaptive certifier; empty for a fixed number of copies.
        first_look: after how many copies something can be certified for the first time, with `first_votes`.
    """

    attributor: str
    certifier: str
    sigma: float
    pixels: int
    exact: bool
    votes: int | None
    voters: int
    radius: float
    largest_radius: float | None
    min_samples: int
    looks: tuple[int, ...] = ()
    first_look: int | None = None
    first_votes: int | None = None


@dataclass(frozen=True)
class Cost:
    """The work of one method.

    Attributes:
        fewest, most: noisy copies to be explained, over all images and noise levels; they differ for adaptive runs.
        passes: forward passes of the model for one copy, when the method says so (attribute ``passes``).
    """

    attributor: str
    fewest: int
    most: int
    passes: int | None


@dataclass(frozen=True)
class Plan:
    """A run that has not begun.

    Attributes:
        config: the run.
        images: how many images it has, of which `done` are finished in `out`, where `counted` further noisy copies of
            unfinished ones are stored.
        input_size: C, H, W of the model.
        claims: for every noise level, attributor and certifier.
        costs: what is left to do, for every attributor.
        stops: for a run of adaptive certifiers only: after how many copies it stops when all of them agree, and when
            they agree nowhere.
        memory: bytes of the counts of one image while they are made.
        disk: bytes of the run directory without its report, at most.
        free: bytes that are free there.
        out: the run directory; None when none was given. `resumes` says whether a run is there that will go on.
        probe: measured times, when they were asked for.
    """

    config: RunConfig
    images: int
    input_size: tuple[int, int, int]
    claims: tuple[Claim, ...]
    costs: tuple[Cost, ...]
    stops: tuple[int, int] | None
    memory: int
    disk: int
    free: int
    out: Path | None = None
    resumes: bool = False
    done: int = 0
    counted: int = 0
    probe: Probe | None = None

    def __repr__(self) -> str:
        """What `certframe plan` prints."""
        return plain(self)

    @property
    def evaluations(self) -> tuple[int, int] | None:
        """Fewest and most passes of the model over noisy copies; None when a method does not say what it needs."""
        known = [(c.fewest * c.passes, c.most * c.passes) for c in self.costs if c.passes is not None]
        return (sum(f for f, _ in known), sum(m for _, m in known)) if len(known) == len(self.costs) else None

    @property
    def seconds(self) -> tuple[float, float] | None:
        """How long the run will take at least and at most in one place of work; None without a probe."""
        if self.probe is None:
            return None
        speed = {method.attributor: method.seconds for method in self.probe.methods}
        once = (self.images - self.done) * self.probe.prepare
        # The noise of a copy is drawn once for all methods and noise levels.
        shared = self.probe.noise / len(self.config.sigma)
        least = shared * max(c.fewest for c in self.costs) + sum(speed[c.attributor] * c.fewest for c in self.costs)
        most = shared * max(c.most for c in self.costs) + sum(speed[c.attributor] * c.most for c in self.costs)
        return once + least, once + most


def plan_run(config: RunConfig, out: Path | None = None, *, probe: bool = False,
             registry: Registry | None = None) -> Plan:
    """Say what a run can certify and what it will cost. Builds the model; runs it only for `probe`.

    Args:
        config: the run.
        out: its directory, which may hold an unfinished run.
        probe: time a few batches of every method on the first image.
        registry: where plugins are looked up.

    Raises:
        UsageError: the run would be refused; says why, as the run would.
    """
    return _Planner(config, out, registry).plan(probe=probe)


class _Planner:
    """Asks every plugin what it can tell about the run."""

    def __init__(self, config: RunConfig, out: Path | None, registry: Registry | None) -> None:
        self.config, self.out, self.registry = config, out, registry
        resolve_device(config.device)
        self.certifiers, self.sparsifier = proof_of(config, registry)
        self.dataset: Dataset = config.dataset.build(registry)
        if len(self.dataset) == 0:
            raise UsageError(f"data set '{config.dataset.name}' has no images: give one that has")
        self.run = Run.find(out, config) if out is not None else None
        self.cuts = tuple(cuts_of(self.certifiers, config.samples))
        self.methods = distinct(config.attributor)

    def plan(self, *, probe: bool) -> Plan:
        """Put everything together; with a probe, shapes and votes are what the methods really give."""
        model: Model = self.config.model.build(self.registry)
        channels, height, width = model.input_size
        shapes, exact = self._shapes((channels, height, width))
        classes, prober = [len(model.classes)] * len(shapes), None
        state = self._state()
        if probe:
            from certframe.probing import Prober
            prober = Prober(self.config, self.registry, state.left or range(state.images))
            shapes, exact = prober.shapes, [True] * len(shapes)
            classes = [n if voted else 0 for n, voted in zip(classes, prober.voted, strict=True)]
        self._require(shapes, exact)
        imagined = {cell.key: Imagined(self.config, self.sparsifier, self.cuts, shapes[cell.attributor], cell.sigma,
                                       self.methods[cell.attributor], classes[cell.attributor])
                    for cell in cells_of(self.config)}
        stops = self._stops(next(iter(imagined.values())))
        disk, free = state.images * self._disk(imagined, channels * height * width, shapes), _free(self.out)
        if disk > free:
            raise UsageError(f"the run needs up to {size(disk)} and {size(free)} are free: make room, give another "
                             "place with --out, or use fewer images with --limit")
        return Plan(
            config=self.config, images=state.images, input_size=(channels, height, width),
            claims=tuple(self._claims(imagined, exact)), costs=tuple(self._costs(state, stops)), stops=stops,
            memory=sum(i.agreed().segments.nbytes for i in imagined.values()),
            disk=disk, free=free, out=self.out, resumes=self.run is not None, done=state.images - len(state.left),
            counted=sum(state.counted.values()), probe=prober.measure() if prober else None)

    def _shapes(self, input_size: tuple[int, int, int]) -> tuple[list[tuple[int, int]], list[bool]]:
        """h, w of every method's maps as they are certified, and whether that is exact; at most the image's otherwise.

        Upsampled maps have the image's size. Others, and larger ones, are known when the method has a ``map_size``.
        """
        shapes, exact = [], []
        for component in self.config.attributor:
            tell = getattr(component.build(self.registry), "map_size", None)
            told = tell(input_size) if tell else None
            h, w = told or input_size[1:]
            enlarged = self.config.resolution == "input"
            shapes.append(input_size[1:] if enlarged and (h < input_size[1] or w < input_size[2]) else (h, w))
            exact.append(enlarged or told is not None)
        return shapes, exact

    def _require(self, shapes: Sequence[tuple[int, int]], exact: Sequence[bool]) -> None:
        for component, (h, w), known in zip(self.config.attributor, shapes, exact, strict=True):
            if known:
                require_samples(self.config, self.certifiers, h * w, len(self.sparsifier.levels),
                                f"the {h}×{w} map of {component.name}")

    # -- what is left to do -------------------------------------------------------------------------------------------

    def _state(self) -> _State:
        """What an earlier attempt has left in the run directory."""
        images = min(len(self.dataset), self.config.limit or len(self.dataset))
        keys = {index: image_key(index, self.dataset.name(index)) for index in range(images)}
        run = self.run
        if run is None:
            return _State(images, list(keys), {})
        left = [index for index, key in keys.items() if not run.is_done(key)]
        counted = {(index, cell.key): tally.samples for index in left for cell in cells_of(self.config)
                   if (tally := run.partial(keys[index], cell.key)) is not None}
        return _State(images, left, counted)

    def _stops(self, imagined: Imagined) -> tuple[int, int] | None:
        """After how many copies the run stops when all agree, and when they agree nowhere; None for fixed numbers."""
        schedules = [certifier.looks(self.config.samples) for certifier in self.certifiers]
        if any(schedule is None for schedule in schedules):
            return None

        def stop(counts: Callable[[int], Tally]) -> int:
            for look in sorted({n for s in schedules if s for n in s.looks if n < self.config.samples}):
                if all(s and look in s.looks and s.done(counts(look))[0] for s in schedules):
                    return look
            return self.config.samples
        return stop(imagined.agreed), stop(imagined.split)

    def _costs(self, state: _State, stops: tuple[int, int] | None) -> Iterator[Cost]:
        least = min(stops) if stops else self.config.samples
        for index, (name, component) in enumerate(zip(self.methods, self.config.attributor, strict=True)):
            counted = [state.counted.get((image, cell.key), 0) for image in state.left
                       for cell in cells_of(self.config) if cell.attributor == index]
            passes = getattr(component.build(self.registry), "passes", None)
            yield Cost(name, sum(max(least - n, 0) for n in counted), sum(self.config.samples - n for n in counted),
                       int(passes) if passes is not None else None)

    def _disk(self, imagined: dict[str, Imagined], values: int, shapes: Sequence[tuple[int, int]]) -> int:
        """Bytes that the run directory needs for one image, at most."""
        total = 4 * values + sum(4 * h * w for h, w in shapes)
        for one in imagined.values():
            tally = one.agreed()
            total += len(tally.to_bytes())
            total += sum(len(certificate_bytes(c.certify(tally))) + LEDGER_BYTES for c in self.certifiers)
        return total

    # -- what can be certified ----------------------------------------------------------------------------------------

    def _claims(self, imagined: dict[str, Imagined], exact: Sequence[bool]) -> Iterator[Claim]:
        names = distinct(self.config.certifier)
        known: dict[Any, Claim] = {}
        for cell in cells_of(self.config):
            one = imagined[cell.key]
            for certifier, component, name in zip(self.certifiers, self.config.certifier, names, strict=True):
                key = (one.shape, one.classes, one.sigma, name)
                if key not in known:
                    known[key] = self._claim(one, certifier, component, name)
                yield replace(known[key], attributor=one.attributor, exact=exact[cell.attributor])

    def _claim(self, one: Imagined, certifier: Certifier, component: Component, name: str) -> Claim:
        pixels, levels, samples = one.shape[0] * one.shape[1], len(self.sparsifier.levels), self.config.samples
        best = certifier.certify(one.agreed())
        schedule = certifier.looks(samples)
        looks = tuple(schedule.looks) if schedule else ()
        first = next((n for n in looks if _labels_something(certifier.certify(one.agreed(n)))), None)
        votes, voters = votes_needed(certifier, one, samples)
        return Claim(
            attributor=one.attributor, certifier=name, sigma=one.sigma, pixels=pixels, exact=True, votes=votes,
            voters=voters, radius=best.radius, min_samples=certifier.min_samples(pixels, levels), looks=looks,
            largest_radius=self._largest_radius(one, component, best, levels),
            first_look=first, first_votes=votes_needed(certifier, one, first)[0] if first else None)

    def _largest_radius(self, one: Imagined, component: Component, best: Certificate, levels: int) -> float | None:
        """The radius at the largest τ for which the certifier asks for no more copies than there are."""
        if not _labels_something(best):
            return None
        if "tau" not in component.options:
            own = best.arrays.get("radius")  # a radius for every pixel, which the counts decide
            return None if own is None else float(np.nanmax(own))
        pixels = one.shape[0] * one.shape[1]

        def suffices(tau: float) -> bool:
            changed = component.model_copy(update={"options": {**component.options, "tau": tau}})
            needed: int = changed.build(self.registry).min_samples(pixels, levels)
            return needed <= self.config.samples
        tau = _bisect(suffices, float(component.options["tau"]), 1.0)
        changed = component.model_copy(update={"options": {**component.options, "tau": tau}})
        certificate: Certificate = changed.build(self.registry).certify(one.agreed())
        return certificate.radius


@dataclass(frozen=True)
class _State:
    """How far a run is.

    Attributes:
        images: how many there are.
        left: indices of those that are not done.
        counted: copies that are stored of those, by index and cell.
    """

    images: int
    left: list[int]
    counted: dict[tuple[int, str], int]


def _labels_something(certificate: Certificate) -> bool:
    return bool((certificate.labels != ABSTAIN).any())


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value at which it holds, to 1e-4; it holds at `low` and not at `high`."""
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _free(out: Path | None) -> int:
    place = (out or Path()).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
