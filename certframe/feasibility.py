"""Can anything be certified at all? Certifiers are asked about counts that could come out.

Nothing here knows a certifier by name: it is asked about copies that all agree, copies that agree nowhere, and a single
pixel with so many votes. So a stranger's certifier is judged like our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from certframe.config import RunConfig
from certframe.errors import UsageError
from certframe.protocols import Certifier, Sparsifier
from certframe.registry import Registry
from certframe.tally import REAL_UNIT, Tally
from certframe.worker import cuts_of, guard


@dataclass(frozen=True)
class Imagined:
    """Counts that a run could come to.

    Attributes:
        config: the run.
        sparsifier: its sparsifier.
        cuts: where its tallies are cut.
        shape: h, w of the map.
        sigma: the noise level.
        attributor: the method's name.
        classes: number of classes that are voted for, 0 for a method that computes no logits.
    """

    config: RunConfig
    sparsifier: Sparsifier
    cuts: tuple[int, ...]
    shape: tuple[int, int]
    sigma: float
    attributor: str
    classes: int = 2

    def tally(self, first: int, others: int, copies: int | None = None) -> Tally:
        """`first` votes of so many copies for the first pixel and `others` for all others, at every level, evenly."""
        n = self.config.samples if copies is None else copies
        unit = 1 if self.sparsifier.binary else REAL_UNIT
        segments = np.empty((len(self.cuts) + 1, len(self.sparsifier.levels), *self.shape), dtype=np.int64)
        edges = [min(cut, n) for cut in (0, *self.cuts, n)]
        votes = np.zeros((len(segments), max(self.classes, 1)), dtype=np.int64)
        for s, (low, high) in enumerate(pairwise(edges)):
            segments[s] = unit * (others * high // n - others * low // n)
            segments[s, :, 0, 0] = unit * (first * high // n - first * low // n)
            votes[s, 0] = high - low
        identity = {"target": 0, "target_name": "the target", "attributor": self.attributor,
                    "sparsifier": self.config.sparsifier.fingerprint}
        return Tally(segments, ((0, n),), tuple(self.sparsifier.levels), self.sigma, cuts=self.cuts,
                     planned=self.config.samples, nested=self.sparsifier.nested, unit=unit, identity=identity,
                     votes=votes if self.classes else None)

    def agreed(self, copies: int | None = None) -> Tally:
        """All copies agree everywhere."""
        n = self.config.samples if copies is None else copies
        return self.tally(n, n, n)

    def split(self, copies: int | None = None) -> Tally:
        """Half of the copies say one thing, half the other, everywhere."""
        n = self.config.samples if copies is None else copies
        return self.tally(n // 2, n // 2, n)


def require_samples(config: RunConfig, certifiers: Sequence[Certifier], pixels: int, levels: int, what: str) -> None:
    """Refuse a run whose certificates would all abstain.

    Raises:
        UsageError: fewer copies than a certifier needs for a single claim about a map of so many pixels.
    """
    for certifier, component in zip(certifiers, config.certifier, strict=True):
        needed = certifier.min_samples(pixels, levels)
        if config.samples < needed:
            raise UsageError(f"setting samples: {config.samples} samples cannot certify anything: certifier "
                             f"'{component.name}' needs at least {needed} for {what} (use --samples {needed} or more, "
                             "or a smaller tau or larger alpha)")


def require_fit(config: RunConfig, certifiers: Sequence[Certifier], sparsifier: Sparsifier) -> None:
    """Refuse certifiers that cannot do anything with the sparsifier's levels, by asking them about a small map.

    Raises:
        UsageError: what the certifier says.
    """
    imagined = Imagined(config, sparsifier, tuple(cuts_of(certifiers, config.samples)), (4, 4), config.sigma[0], "any")
    for certifier, component in zip(certifiers, config.certifier, strict=True):
        guard(component, lambda: certifier.certify(imagined.agreed()))  # noqa: B023


def proof_of(config: RunConfig, registry: Registry | None = None) -> tuple[list[Certifier], Sparsifier]:
    """The certifiers and the sparsifier of a run, which fit together and can certify something.

    Raises:
        UsageError: they do not, or nothing could be certified with so few copies.
    """
    certifiers: list[Certifier] = [c.build(registry) for c in config.certifier]
    sparsifier: Sparsifier = config.sparsifier.build(registry)
    require_samples(config, certifiers, 1, len(sparsifier.levels), "one pixel")
    require_fit(config, certifiers, sparsifier)
    return certifiers, sparsifier


def votes_needed(certifier: Certifier, one: Imagined, copies: int) -> tuple[int | None, int]:
    """How many votes certify that a pixel is important while no other is certified, of how many; None when none do.

    A certifier with ``evidence`` says itself how many copies have a vote and how many of them a pixel has.
    """
    def certified(votes: int) -> bool:
        return bool((certifier.certify(one.tally(votes, copies // 2, copies)).labels[:, 0, 0] == 1).any())
    evidence = getattr(certifier, "evidence", None) if copies == one.config.samples else None
    voters = int(evidence(one.agreed())[1].max()) if evidence else copies
    if not certified(copies):
        return None, voters
    low, high = copies // 2, copies
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certified(middle) else (middle, high)
    return int(evidence(one.tally(high, copies // 2, copies))[1][0, 0, 0]) if evidence else high, voters
