"""The plugin announces itself as certframe expects."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import certframe_rise
import pytest

import certframe


def test_the_hook_module_registers_rise() -> None:
    registry = certframe.Registry(external=False)
    registry.add(certframe_rise, name="rise", distribution="certframe-rise")
    assert registry.broken == []
    assert registry.find("attributor", "rise").load().__name__ == "Rise"


def test_the_hook_module_imports_nothing_heavy() -> None:
    code = "import sys, certframe_rise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_entry_point() -> None:
    points = [p for p in importlib.metadata.entry_points(group="certframe") if p.value == "certframe_rise"]
    if not points:
        pytest.skip("certframe-rise is on the path, but not installed")
    assert points[0].name == "rise"
    assert points[0].dist is not None
    assert points[0].dist.name == "certframe-rise"
