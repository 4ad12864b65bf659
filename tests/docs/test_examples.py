"""The examples in the documentation run as they stand.

The blocks with a file name on a page under docs/plugins are the files of a distribution. All of them are written out
and announced to Python as if they were installed; then, in one other process, their own tests run, and with them the
other Python blocks of each page, in order, in a folder with a picture and a run.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import xml.etree.ElementTree as ElementTree

import blocks
import pytest

from certframe.testing import checks_for

CONFTEST = '''
import pytest
import certframe
from certframe.cli.allocator import tune_allocator

tune_allocator()


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A run that pages may read."""
    place = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    certframe.run(place, model="digits", dataset="digits", attributor=["gradient", "grad-cam"], limit=2, samples=200)
    return place

@pytest.fixture
def workdir(demo, tmp_path, monkeypatch):
    """What a reader has: a picture, a run, a folder to write to."""
    photos = certframe.default_registry().find("dataset", "photos").load()()
    photos.load(0).image.save(tmp_path / "picture.png")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(demo)
    monkeypatch.chdir(tmp_path)
'''


def slug(page):
    return re.sub(r"\W+", "_", page.removesuffix(".md"))


def scripts(text):
    """The Python blocks of a page that are to be run, each with the number of the line above it."""
    return [(block.line, block.body) for block in blocks.blocks(text)
            if block.language == "python" and not block.title and not block.not_run]


def write_page(page, text, place):
    """Write a page's distribution, and its other blocks as a test; the folders to import from."""
    if scripts(text):
        (place / "tests").mkdir(parents=True, exist_ok=True)
        (place / "tests" / f"test_page_{slug(page)}.py").write_text(textwrap.dedent(f'''
            BLOCKS = {scripts(text)!r}

            def test_page(workdir):
                names = {{"__name__": "page"}}
                for line, body in BLOCKS:
                    exec(compile("\\n" * line + body, {page!r}, "exec"), names)
            '''))
    given = {name: body for name, body in blocks.files(text).items() if not name.startswith("plugins/")}
    if "pyproject.toml" not in given:
        return []
    blocks.write_files(text, place)
    project = tomllib.loads(given["pyproject.toml"])["project"]
    info = place / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{name} = {target}" for name, target in project["entry-points"]["certframe"].items())
    (info / "entry_points.txt").write_text(f"[certframe]\n{points}\n")
    return [place / "src"]


@pytest.fixture(scope="module")
def environment(pages, root, tmp_path_factory):
    """A folder with all pages written out, and the variables with which Python finds their distributions."""
    top = tmp_path_factory.mktemp("pages")
    (top / "conftest.py").write_text(CONFTEST)
    sources = [source for page, text in pages.items() for source in write_page(page, text, top / slug(page))]
    found = os.pathsep.join(map(str, [*sources, root]))
    return top, {**os.environ, "PYTHONPATH": found, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def outcomes(environment):
    """All tests of all pages, run once: (page, test) → message, None when it passed or had a reason to be skipped."""
    top, variables = environment
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib",
         "--rootdir", str(top), "-c", os.devnull, "--junitxml", str(top / "report.xml"), str(top)],
        cwd=top, env=variables, capture_output=True, text=True, check=False)
    assert (top / "report.xml").exists(), done.stdout + done.stderr
    result = {}
    for case in ElementTree.parse(top / "report.xml").iter("testcase"):
        bad = next((e for e in case if e.tag in ("failure", "error")), None)
        result[case.get("classname", ""), case.get("name", "")] = None if bad is None else bad.text
    return result


PLUGIN_PAGES = ["model", "attributor", "sparsifier", "certifier", "metric", "dataset", "executor", "command"]


@pytest.mark.parametrize("kind", PLUGIN_PAGES)
def test_the_plugin_of_a_page_passes_its_own_tests_and_the_conformance_kit(outcomes, kind):
    mine = {test: message for (module, test), message in outcomes.items()
            if module.startswith(f"docs_plugins_{kind}.tests.") and ".test_page_" not in module}
    conformance = [test for test in mine if test.startswith("test_conformance[")]
    assert len(conformance) == len(checks_for(kind))
    failed = [f"{test}: {message}" for test, message in mine.items() if message]
    assert not failed, "\n".join(failed)


def test_the_python_blocks_of_the_pages_run(outcomes, pages):
    ran = {module.split(".")[0]: message for (module, _), message in outcomes.items() if ".test_page_" in module}
    assert set(ran) == {slug(page) for page, text in pages.items() if scripts(text)}
    assert len(ran) >= 8
    failed = [f"{page}: {message}" for page, message in ran.items() if message]
    assert not failed, "\n".join(failed)


def test_every_plugin_of_a_page_is_found_and_sound(environment):
    top, variables = environment
    code = ("from certframe import default_registry as r; assert not r().broken, r().broken; "
            "print(*(p.distribution for p in r().plugins))")
    found = subprocess.run([sys.executable, "-c", code], cwd=top, env=variables, capture_output=True, text=True,
                           check=False)
    assert found.returncode == 0, found.stderr
    assert {"certframe-tiny", "certframe-squared-gradient", "certframe-above-mean", "certframe-hoeffding",
            "certframe-border", "certframe-npy", "certframe-threads", "certframe-ranking"} <= set(found.stdout.split())


def test_sessions_in_the_pages_give_what_they_show(pages):
    sessions = [(page, block) for page, text in pages.items() for block in blocks.blocks(text)
                if block.language == "pycon"]
    assert sessions
    for page, block in sessions:
        test = doctest.DocTestParser().get_doctest(block.body, {}, page, page, block.line)
        report: list[str] = []
        assert doctest.DocTestRunner().run(test, out=report.append).failed == 0, "".join(report)


def test_blocks_that_are_not_run_say_why(pages):
    for page, text in pages.items():
        for block in blocks.blocks(text):
            assert block.not_run is None or len(block.not_run.split()) >= 3, f"{page}:{block.line}"


def test_the_extractor_reads_titles_indentation_and_markers(tmp_path):
    text = textwrap.dedent('''
        1. Indented:

            ```python
            x = 1
            ```

        <!-- not run: it needs the network -->
        ```python
        y = 2
        ```

        ```python title="a/b.py"
        z = 3
        ```
        ''')
    found = list(blocks.blocks(text))
    assert [b.body for b in found] == ["x = 1\n", "y = 2\n", "z = 3\n"]
    assert [b.not_run for b in found] == [None, "it needs the network", None]
    assert blocks.write_files(text, tmp_path) == [tmp_path / "a" / "b.py"]
    assert (tmp_path / "a" / "b.py").read_text() == "z = 3\n"
