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
from certframe.protocols import Certificate, Explanation, Schedule
from certframe.report.page import Panel
from certframe.tally import Tally

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def make_tally(counts: np.ndarray, n: int, sigma: float = 0.15) -> Tally:
    first = np.minimum(counts, 10)
    return Tally(segments=np.stack([first, counts - first]), copies=((0, n),), cuts=(10,), sigma=sigma, nested=True,
                 levels=tuple(str(k) for k in (50, 25, 5)[: len(counts)]),
                 identity={"attributor": "certframe/grad-cam {}", "sparsifier": 'certframe/top-k {"k": [50, 25, 5]}'})


def make_panel(name: str = "coffee", *, method: str = "grad-cam", sigma: float = 0.15, n: int = 100, seed: int = 0,
               shape: tuple[int, int] = (12, 16), levels: int = 3, channels: int = 3,
               counts: np.ndarray | None = None, **options: Any) -> Panel:
    """A panel with real certificates; by default nearly unanimous, nearly nested counts."""
    rng = np.random.default_rng(seed)
    if counts is None:
        votes = rng.binomial(n, rng.beta(0.15, 0.15, size=shape))
        counts = np.stack([np.maximum(votes - level * rng.integers(0, n // 3, shape), 0) for level in range(levels)])
    tally = make_tally(counts, n, sigma)
    certifier = Pixel(Pixel.Options(**options))
    explanation = Explanation(
        name=name, image=torch.from_numpy(rng.random((channels, 24, 32), dtype=np.float32)), target=3,
        target_name="espresso", confidence=0.873, map=torch.from_numpy(rng.random(shape, dtype=np.float32)),
        tally=tally, certificate=certifier.certify(tally))
    return Panel(method, sigma, explanation, certifier, rates(explanation.certificate))


def rates(certificate: Certificate) -> dict[str, float]:
    result = {}
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
