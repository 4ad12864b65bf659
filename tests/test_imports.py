from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "scipy", "numpy", "pyarrow", "PIL", "matplotlib", "skimage", "timm", "zennit")


def imported_by(program: str) -> set[str]:
    """The modules that a fresh interpreter has imported after a program."""
    done = subprocess.run([sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"], check=True,
                          capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(("program", "forbidden"), [
    ("import certframe", HEAVY),
    ("import certframe; certframe.hookimpl, certframe.UsageError, certframe.suggest", HEAVY),
    ("import certframe.registry", HEAVY),
    ("from certframe.registry import Registry\nr = Registry()\n[r.entries(k) for k in ('model', 'attributor')]\n"
     "r.find('attributor', 'gradient')", HEAVY),
    ("import certframe.protocols", ("torch",)),
    ("import certframe.config", ("torch",)),
    ("import certframe.cli", ("torch",)),
    ("import certframe.errors, certframe.hookspecs, certframe.builtins", HEAVY),
    ("import certframe.statistics.binomial, certframe.statistics.corrections", ("torch",)),
])
def test_light_modules_import_nothing_heavy(program: str, forbidden: tuple[str, ...]) -> None:
    loaded = imported_by(program)
    assert "certframe" in loaded
    assert loaded & set(forbidden) == set()


def test_this_test_can_fail() -> None:
    assert "torch" in imported_by("import certframe.noise")


def test_the_import_contracts_hold() -> None:
    """The kernel imports no built-in, the statistics no torch, and no built-in another kind's."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_plugins_import_the_public_interface_only() -> None:
    """From certframe itself or certframe.testing, never from a module of the kernel, and no plugin from another."""
    wrong = []
    for path in sorted((ROOT / "plugins").glob("*/src/**/*.py")):
        own = path.relative_to(ROOT / "plugins").parts[2]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                     [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for name in names:
                top = name.split(".")[0]
                if top.startswith("certframe") and top != own and name not in ("certframe", "certframe.testing"):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
    assert wrong == []


def test_every_module_of_the_kernel_is_under_the_contract() -> None:
    """A new file directly in certframe/ does not slip through."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    kernel = set(content["tool"]["importlinter"]["contracts"][0]["source_modules"])
    modules = {f"certframe.{p.stem}" for p in (ROOT / "certframe").glob("*.py") if not p.stem.startswith("__")}
    assert modules - kernel == set()
