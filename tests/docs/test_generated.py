"""The pages that are made from the code are what the code makes now."""

from __future__ import annotations

import subprocess
import sys

import generate
import md
import pages_cli
import pytest


def test_generated_pages_are_up_to_date():
    assert generate.stale() == [], "run 'python scripts/docs/generate.py'"


def test_a_stale_page_is_found_and_left_alone(monkeypatch, tmp_path, capsys):
    page = tmp_path / "docs/reference/cli.md"
    page.parent.mkdir(parents=True)
    page.write_text("old")
    monkeypatch.setattr(generate, "render", lambda: {"docs/reference/cli.md": "new"})
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert "cli.md is stale" in capsys.readouterr().err
    assert page.read_text() == "old"
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert generate.stale() == []


def test_the_generator_runs_as_a_script(root):
    found = subprocess.run([sys.executable, str(root / "scripts/docs/generate.py"), "--check"], cwd="/",
                           capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_a_missing_plugin_is_named():
    import pages_options
    with pytest.raises(SystemExit, match="certframe-not-there"):
        pages_options.page(["certframe", "certframe-not-there"])


def test_tables_escape_pipes_and_fold_lines():
    assert md.table(("a", "b"), [("x | y", "two\nlines")]).splitlines()[2] == "| x \\| y | two lines |"
    assert md.table(("a",), []) == ""


def test_docstring_sections_become_lists():
    text = md.docstring("""Do it.

    Args:
        first: one thing
            that goes on.
        second: another.

    Raises:
        ValueError: never.
    """)
    assert text.splitlines() == [
        "Do it.", "", "**Args**", "", "- first: one thing", "  that goes on.", "- second: another.", "",
        "**Raises**", "", "- ValueError: never."]


def test_exit_codes_are_those_of_the_program():
    from certframe.cli import main
    documented = {code for code, _ in pages_cli.EXIT_CODES}
    with pytest.raises(SystemExit) as wrong:
        main(["describe", "surely-nothing-is-called-this"])
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert {done.value.code, wrong.value.code} <= documented
    assert [code for code, _ in pages_cli.EXIT_CODES] == [0, 1, 2, 3, 130]
