"""A new distribution installs, is found, passes the conformance kit and its own tests, as it stands, for every kind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

import certframe
from certframe.errors import CertframeError, UsageError
from certframe.registry import REGISTERED
from certframe.scaffold import create
from certframe.testing import checks_for

CHECK_ALL = """
import json, sys
import certframe
from certframe.testing import run_checks
registry = certframe.default_registry()
found = {}
for kind in sys.argv[1:]:
    entry = registry.find(kind, f"my-{kind}")
    report = run_checks(kind, entry.load())
    found[kind] = {"owner": entry.distribution, "version": entry.version, "summary": entry.summary,
                   "failed": [f"{r.check}: {r.message}" for r in report.failures], "number": len(report.results)}
print(json.dumps({"found": found, "broken": [b.reason for b in registry.broken]}))
"""


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """One new distribution of every kind, installed by pip into an environment of its own, without network."""
    place = tmp_path_factory.mktemp("new")
    files = {kind: create(kind, f"my-{kind}", place / "src") for kind in REGISTERED}
    environment = place / "environment"
    venv.create(environment)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    # pip, the build backend, torch and certframe itself are those of this environment: its site folders are added,
    # with the .pth files in them, and the folder that certframe is imported from.
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(environment)}))
    roots = [*dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")),
             str(Path(certframe.__file__).resolve().parents[1])]
    lines = [f"import site; site.addsitedir({root!r})" for root in roots]
    (packages / "host.pth").write_text("\n".join(lines), encoding="utf-8")
    folders = [str(paths[0].parent) for paths in files.values()]
    run([python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", *folders])
    return SimpleNamespace(python=python, files=files, place=place, packages=packages)


def run(command, **settings):
    """Run a command; its output, or a failure that shows it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "PYTEST"))}
    found = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                           env={**clean, "OMP_NUM_THREADS": "1"}, **settings)
    assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
    return found.stdout


def test_pip_installs_what_was_written(new):
    for kind, paths in new.files.items():
        package = new.packages / f"certframe_my_{kind}"
        written = {path.name: path.read_bytes() for path in paths if "src" in path.relative_to(new.place / "src").parts}
        installed = {path.name: path.read_bytes() for path in package.iterdir() if path.is_file()}
        assert installed == written
        assert set(installed) == {"__init__.py", "py.typed", f"{kind}.py"}


def test_each_is_found_by_its_entry_point_and_passes_the_conformance_kit(new):
    answer = json.loads(run([new.python, "-c", CHECK_ALL, *REGISTERED], cwd=new.place))
    assert answer["broken"] == []
    for kind in REGISTERED:
        found = answer["found"][kind]
        assert found["failed"] == []
        assert found["number"] == len(checks_for(kind))
        assert (found["owner"], found["version"]) == (f"certframe-my-{kind}", "0.1.0")
        assert found["summary"].strip()


def test_each_passes_its_own_tests_against_the_installed_package(new):
    folders = [paths[0].parent / "tests" for paths in new.files.values()]
    output = run([new.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--import-mode=importlib",
                  "--rootdir", new.place, "-c", new.files["model"][0], *folders], cwd=new.place)
    passed = int(re.search(r"(\d+) passed", output)[1])
    conformance = sum(len(checks_for(kind)) for kind in REGISTERED)
    assert passed > 0.9 * conformance
    assert "failed" not in output


def test_the_command_line_checks_a_new_distribution_by_its_name(new):
    output = run([new.python, "-m", "certframe", "plugin", "check", "certframe-my-metric", "--json"], cwd=new.place)
    rows = json.loads(output)
    assert {row["name"] for row in rows} == {"my-metric"}
    assert {row["outcome"] for row in rows} == {"passed", "skipped"}


def test_the_hook_modules_import_nothing_heavy(new):
    names = [f"certframe_my_{kind}" for kind in REGISTERED]
    heavy = ("torch", "numpy", "scipy", "PIL")
    run([new.python, "-c", f"import sys, {', '.join(names)}; sys.exit(any(m in sys.modules for m in {heavy!r}))"])


def test_what_is_written_is_clean(new, tmp_path):
    pytest.importorskip("ruff", reason="ruff is not installed")
    root = Path(__file__).resolve().parents[2]
    run([sys.executable, "-m", "ruff", "check", "--no-cache", "--config", root / "pyproject.toml", "--extend-ignore",
         "D103", new.place / "src"])


def test_metadata_say_what_it_is_and_needs(new):
    for kind, paths in new.files.items():
        project = tomllib.loads(paths[0].read_text(encoding="utf-8"))["project"]
        assert project["name"] == f"certframe-my-{kind}"
        assert project["entry-points"]["certframe"] == {f"my-{kind}": f"certframe_my_{kind}"}
        assert re.fullmatch(r"certframe(>=\d+\.\d+)?", project["dependencies"][0])
        source = (paths[0].parent / "src" / f"certframe_my_{kind}" / f"{kind}.py").read_text(encoding="utf-8")
        imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)) - sys.stdlib_module_names
        assert imported == {{"pillow": "PIL"}.get(d, d) for d in project["dependencies"][1:]} | {"certframe"}


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "", "Edge", "edge_energy", "edge energy", "-edge", "edge-", "edge--energy", "3d", "édge", "a/b", "../up", "edge\n",
])
def test_names_that_make_no_distribution_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="use lower-case letters, digits and single dashes") as caught:
        create("metric", name, tmp_path)
    assert f"'{name}'" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "said"), [
    ("certframe-edge", "leave 'certframe-' out"), ("certframe", "leave 'certframe-' out"),
    ("none", "None cannot be the name of a class"), ("true", "True cannot be the name of a class"),
    ("gradient", "the attributor 'gradient' is registered by certframe already"),
])
def test_names_that_would_not_work_are_refused(tmp_path, name, said):
    with pytest.raises(UsageError, match=said) as caught:
        create("attributor", name, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_name_of_another_kind_is_free(tmp_path):
    assert create("metric", "gradient", tmp_path)


def test_an_unknown_kind_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(UsageError, match="unknown plugin kind 'attributors'; did you mean 'attributor'"):
        create("attributors", "edge", tmp_path)
    with pytest.raises(UsageError, match="unknown plugin kind 'xyz'; it is one of model, attributor"):
        create("xyz", "edge", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_nothing_is_overwritten(tmp_path, make):
    taken = tmp_path / "certframe-edge"
    make(taken)
    with pytest.raises(UsageError, match="certframe-edge' exists already"):
        create("metric", "edge", tmp_path)
    assert list(tmp_path.iterdir()) == [taken]


def test_the_directory_is_made_and_the_files_are_returned(tmp_path):
    files = create("metric", "edge-energy", tmp_path / "deep" / "down")
    root = tmp_path / "deep" / "down" / "certframe-edge-energy"
    assert files[0] == root / "pyproject.toml"
    assert sorted(files) == sorted(path for path in root.rglob("*") if path.is_file())
    assert {p.relative_to(root).as_posix() for p in files} == {
        "pyproject.toml", "README.md", "src/certframe_edge_energy/__init__.py", "src/certframe_edge_energy/py.typed",
        "src/certframe_edge_energy/metric.py", "tests/test_certframe_edge_energy.py"}
    assert root.stat().st_mode & 0o777 == 0o755
    assert "class EdgeEnergy:" in (root / "src/certframe_edge_energy/metric.py").read_text(encoding="utf-8")


def test_a_failure_to_write_leaves_nothing_and_is_one_line(tmp_path, monkeypatch):
    def full(self, *args, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CertframeError, match=r"no space left while writing .*certframe-edge"):
        create("metric", "edge", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_a_file_is_one_line(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CertframeError, match=r"cannot write .*certframe-edge"):
        create("metric", "edge", file)


@pytest.mark.parametrize("kind", REGISTERED)
@pytest.mark.parametrize("name", ["tensor", "options", "lambda", "x2"])
def test_names_that_look_like_something_else_compile(tmp_path, kind, name):
    for path in create(kind, name, tmp_path):
        if path.suffix == ".py":
            compile(path.read_text(encoding="utf-8"), path, "exec")
