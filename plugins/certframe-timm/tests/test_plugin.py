"""The plugin announces itself as certframe expects."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import certframe_timm.plugin
import pytest

import certframe


def test_the_hook_module_registers_both_models() -> None:
    registry = certframe.Registry(external=False)
    registry.add(certframe_timm.plugin, name="timm", distribution="certframe-timm")
    assert registry.broken == []
    assert registry.find("model", "timm").load().__name__ == "Timm"
    assert registry.find("model", "lite0").load().__name__ == "Lite0"


def test_the_hook_module_imports_nothing_heavy() -> None:
    code = "import sys, certframe_timm.plugin; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_entry_point() -> None:
    points = [p for p in importlib.metadata.entry_points(group="certframe") if p.value == "certframe_timm.plugin"]
    if not points:
        pytest.skip("certframe-timm is on the path, but not installed")
    assert points[0].name == "timm"
    assert points[0].dist is not None
    assert points[0].dist.name == "certframe-timm"
