"""Fixtures for all tests: small in-process plugins, configurations made of them, reference data."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = Path(__file__).resolve().parent / "support"
# Plugins are named by import path, also in subprocesses: the toys have to be importable.
sys.path.insert(0, str(SUPPORT))

torch.set_num_threads(1)  # tests are small, and a busy machine makes waiting threads expensive
settings.register_profile("certframe", deadline=None, derandomize=True, database=None)
settings.load_profile("certframe")


def _given(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT.parent / "shared" / default)
    if not path.exists():
        pytest.skip(f"needs reference material that is not part of the repository: set {variable}")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real images, weights and data sets for tests."""
    return _given("CERTFRAME_TEST_DATA", "data")


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Test vectors of the statistics, computed to 50 digits."""
    path = _given("CERTFRAME_TEST_VECTORS", "vectors/statistics.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def registry() -> Any:
    """The built-ins and the toys."""
    import toys
    return toys.registry()


@pytest.fixture
def configure(registry: Any) -> Callable[..., Any]:
    """A configuration of toys: ``configure(samples=…, options=[…])``."""
    import toys
    return lambda **settings: toys.configure(registry, **settings)


@pytest.fixture(autouse=True)
def _no_observers() -> Any:
    """Observers of one test do not see the next."""
    yield
    if "toys" in sys.modules:
        sys.modules["toys"].OBSERVERS.clear()
