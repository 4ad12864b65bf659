"""The plugin announces itself as certframe expects."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import certframe_boundary
import pytest

import certframe


def test_the_hook_module_is_sound() -> None:
    registry = certframe.Registry(external=False)
    registry.add(certframe_boundary, name="boundary", distribution="certframe-boundary")
    assert registry.broken == []


def test_the_hook_module_imports_nothing_heavy() -> None:
    code = "import sys, certframe_boundary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_entry_point() -> None:
    points = [p for p in importlib.metadata.entry_points(group="certframe") if p.value == "certframe_boundary"]
    if not points:
        pytest.skip("certframe-boundary is on the path, but not installed")
    assert points[0].name == "boundary"
    assert points[0].dist is not None
    assert points[0].dist.name == "certframe-boundary"
