"""Explanations with synthetic counts, real certificates, and a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from certframe.certifiers.pixel import Pixel
from certframe.config import resolve_component
from certframe.protocols import Certificate, Certifier, Explanation, Schedule
from certframe.report.page import Panel
from certframe.statistics.sequential import geometric_looks
from certframe.tally import REAL_UNIT, Tally

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def make_tally(counts: np.ndarray, n: int, sigma: float = 0.15, right: int | None = None, **changes: Any) -> Tally:
    """Counts of `n` copies with a pilot of 10, of which `right` were predicted to be the target, class 3 of 5."""
    first = np.minimum(counts, 10)
    right = n if right is None else right
    votes = np.zeros((2, 5), np.int64)
    votes[0, 3], votes[1, 3], votes[1, 0] = min(10, right), max(0, right - 10), n - right
    tally = Tally(
        segments=np.stack([first, counts - first]), copies=((0, n),), cuts=(10,), sigma=sigma, nested=True, votes=votes,
        levels=tuple(str(k) for k in (50, 25, 5)[: len(counts)]),
        identity={"attributor": "grad-cam", "sparsifier": 'certframe/top-k {"k": [50, 25, 5]}', "target": 3,
                  "target_name": "espresso"})
    return replace(tally, **changes)


def nested_counts(rng: np.random.Generator, n: int, shape: tuple[int, int], levels: int) -> np.ndarray:
    """(L,h,w), nearly unanimous, falling with the level."""
    counts = [rng.binomial(n, rng.beta(0.15, 0.15, size=shape))]
    for _ in range(levels - 1):
        counts.append(np.maximum(counts[-1] - rng.integers(0, n // 3, shape), 0))
    return np.stack(counts)


def looked_tally(planned: int, stop: int, *, seed: int = 0, shape: tuple[int, int] = (12, 16), levels: int = 3,
                 cross: bool = False) -> Tally:
    """What an adaptive run keeps that was to draw `planned` copies and stopped at the look `stop`.

    With `cross` the first pixel is unanimous in the first copies and unanimous the other way in all later ones.
    """
    rng = np.random.default_rng(seed)
    looks = geometric_looks(planned)
    shares = np.sort(rng.beta(0.3, 0.3, size=(levels, *shape)), axis=0)[::-1]
    steps = np.diff([0, *(n for n in looks if n <= stop)])
    segments = np.zeros((len(looks), levels, *shape), np.int64)
    segments[: len(steps)] = rng.binomial(steps[:, None, None, None], shares)
    if cross:
        segments[0, :, 0, 0], segments[1:, :, 0, 0] = steps[0], 0
    votes = np.zeros((len(looks), 5), np.int64)
    votes[: len(steps), 3] = steps
    base = make_tally(np.zeros((levels, *shape), np.int64), stop)
    return replace(base, segments=segments, cuts=looks[:-1], planned=planned, votes=votes)


def make_panel(name: str = "coffee", *, method: str = "grad-cam", sigma: float = 0.15, n: int = 100, seed: int = 0,
               shape: tuple[int, int] = (12, 16), levels: int = 3, channels: int = 3,
               counts: np.ndarray | None = None, certifier: Certifier | None = None, tally: Tally | None = None,
               proof: str = "", **options: Any) -> Panel:
    """A panel with a real certificate; by default nearly unanimous, nested counts and the certifier `pixel`."""
    rng = np.random.default_rng(seed)
    if tally is None:
        tally = make_tally(nested_counts(rng, n, shape, levels) if counts is None else counts, n, sigma)
    certifier = certifier or Pixel(Pixel.Options(**options))
    explanation = Explanation(
        name=name, image=torch.from_numpy(rng.random((channels, 24, 32), dtype=np.float32)), target=3,
        target_name="espresso", confidence=0.873,
        map=torch.from_numpy(rng.random(tally.segments.shape[2:], dtype=np.float32)),
        tally=tally, certificate=certifier.certify(tally))
    return Panel(method, sigma, explanation, certifier, rates(explanation.certificate), proof)


def make(kind: str, **options: Any) -> Certifier:
    """A certifier by name."""
    return resolve_component("certifier", {"name": kind, **options}).build()


def thresholds_tally(n: int = 100, *, seed: int = 0, shape: tuple[int, int] = (12, 16)) -> Tally:
    """Counts of the thresholds 0.1, 0.2, …, 0.9."""
    rng = np.random.default_rng(seed)
    scores = rng.random(shape) + 0.05 * rng.normal(size=(n, *shape))
    t = np.arange(1, 10) / 10
    counts = (scores[:, None] > t[:, None, None]).sum(axis=0)
    identity = {"attributor": "grad-cam", "sparsifier": 'certframe/threshold {"t": [0.1]}', "target": 3}
    return make_tally(counts, n, levels=tuple(f"{v:g}" for v in t), identity=identity)


def real_tally(n: int = 2000, *, seed: int = 0, shape: tuple[int, int] = (12, 16)) -> Tally:
    """Sums of one real-valued level in [0, 1]."""
    rng = np.random.default_rng(seed)
    sums = np.rint(np.sort(rng.random(shape[0] * shape[1])).reshape(1, *shape) * n * REAL_UNIT).astype(np.int64)
    return make_tally(sums, n, levels=("scaled",), unit=REAL_UNIT,
                      identity={"attributor": "smoothgrad", "sparsifier": "certframe/scaled {}", "target": 3})


def rates(certificate: Certificate) -> dict[str, float]:
    """What `certified-rate` measures; nothing where labels are not the claim."""
    result: dict[str, float] = {}
    if not certificate.about_labels:
        return result
    for level, labels in zip(certificate.levels, certificate.labels, strict=True):
        result[f"certified1.{level}"] = float((labels == 1).mean())
        result[f"certified0.{level}"] = float((labels == 0).mean())
    return result


class Fixed:
    """A certifier without evidence: it gives back the certificate it was made with."""

    cuts = ()

    def __init__(self, certificate: Certificate) -> None:
        self.certificate = replace(certificate, certifier="fixed")

    def certify(self, tally: Tally) -> Certificate:
        return self.certificate

    def min_samples(self, pixels: int, levels: int) -> int:
        return 1

    def looks(self, samples: int) -> Schedule | None:
        return None


@pytest.fixture
def panel() -> Callable[..., Panel]:
    return make_panel


def of_kind(kind: str, name: str = "coffee", *, seed: int = 0, **changes: Any) -> Panel:
    """A panel with a certificate of a kind: a certifier's name, or one of those below."""
    looked = looked_tally(544, 384, seed=seed)
    changes = {"proof": kind, **changes}
    if kind == "adaptive":
        return make_panel(name, seed=seed, certifier=make("adaptive"), tally=looked, **changes)
    if kind == "class+adaptive":
        return make_panel(name, seed=seed, certifier=make("class", joint="adaptive"), tally=looked, **changes)
    if kind == "class+radius":
        return make_panel(name, seed=seed, certifier=make("class", joint="radius"), **changes)
    if kind == "quantile":
        return make_panel(name, seed=seed, certifier=make(kind), tally=thresholds_tally(seed=seed), **changes)
    if kind == "real overlap":
        return make_panel(name, seed=seed, certifier=make("top-k-overlap", k=[5, 20]), tally=real_tally(seed=seed),
                          **changes)
    if kind == "real rank":
        return make_panel(name, seed=seed, certifier=make("certified-rank"), tally=real_tally(seed=seed), **changes)
    return make_panel(name, seed=seed, certifier=make(kind), **changes)


@pytest.fixture
def certifier() -> Callable[..., Certifier]:
    return make


@pytest.fixture
def tally() -> Callable[..., Tally]:
    def of_a_hundred(**changes: Any) -> Tally:
        return make_tally(nested_counts(np.random.default_rng(0), 100, (12, 16), 3), 100, **changes)
    return of_a_hundred


@pytest.fixture
def adaptive_tally() -> Callable[..., Tally]:
    return looked_tally


@pytest.fixture
def every() -> Callable[..., Panel]:
    return of_kind


@pytest.fixture
def fixed_panel() -> Callable[..., Panel]:
    def make(**options: Any) -> Panel:
        base = make_panel(**options)
        certifier = Fixed(base.explanation.certificate)
        explanation = replace(base.explanation, certificate=certifier.certificate)
        return replace(base, explanation=explanation, certifier=certifier)
    return make


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, found on the path or by the environment variable CHROMIUM."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium on the path: set CHROMIUM to its executable")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()
