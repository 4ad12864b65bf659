"""Fixtures of this plugin's tests; those that are marked slow run when asked for: ``pytest -m slow plugins/…``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

HERE = Path(__file__).parent

sys.path.insert(0, str(HERE))  # small_networks
torch.set_num_threads(1)
settings.register_profile("certframe-boundary", deadline=None, derandomize=True, database=None)
settings.load_profile("certframe-boundary")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with trained networks and pictures; the same as for the tests of certframe."""
    path = Path(os.environ.get("CERTFRAME_TEST_DATA") or HERE.parents[3] / "shared" / "data")
    if not path.exists():
        pytest.skip("needs reference material that is not part of the repository: set CERTFRAME_TEST_DATA")
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("markexpr"):
        return
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes long: ask for it with -m slow"))
