"""The plugin announces itself, and imports nothing heavy for it."""

from __future__ import annotations

import subprocess
import sys

import certframe_captum

import certframe


def test_it_registers() -> None:
    registry = certframe.Registry(external=False)
    registry.add(certframe_captum, name="captum", distribution="certframe-captum")
    assert registry.broken == []
    assert registry.find("attributor", "shapley-sampling").load().__name__ == "ShapleySampling"


def test_the_hook_module_imports_neither_torch_nor_captum() -> None:
    code = "import sys, certframe_captum; sys.exit('torch' in sys.modules or 'captum' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
