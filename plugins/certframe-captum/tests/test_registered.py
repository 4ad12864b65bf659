"""The plugin announces itself, and imports nothing heavy for it."""

from __future__ import annotations

import subprocess
import sys

import certframe_captum
import pytest

import certframe


@pytest.mark.parametrize(("name", "cls"), [("shapley-sampling", "ShapleySampling"), ("kernel-shap", "KernelShap")])
def test_it_registers(name: str, cls: str) -> None:
    registry = certframe.Registry(external=False)
    registry.add(certframe_captum, name="captum", distribution="certframe-captum")
    assert registry.broken == []
    assert registry.find("attributor", name).load().__name__ == cls


def test_the_hook_module_imports_neither_torch_nor_captum() -> None:
    code = "import sys, certframe_captum; sys.exit('torch' in sys.modules or 'captum' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
