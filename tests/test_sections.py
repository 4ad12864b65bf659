"""Sections of the report: data in, page out, nothing executed."""

from __future__ import annotations

import pytest

import certframe
from certframe import Section, SectionTable
from certframe.errors import CertframeError, UsageError
from certframe.report.of_run import write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return certframe.run(tmp_path_factory.mktemp("sections") / "run", model="digits", dataset="digits",
                         attributor="gradient", limit=1, samples=70, device="cpu")


SECTION = Section("Inspection <b>now</b>", "All is well.", "good", ("One & two.",),
                  (SectionTable("Numbers", ("method", "tested", "share"),
                                (('gradient', 1234, 0.5), ('rise', None, 2.0))),))


def test_a_section_comes_back_as_it_was_stored(run):
    run.save_section("inspection", SECTION)
    assert run.sections() == {"inspection": SECTION}


def test_the_report_shows_it_escaped(run):
    run.save_section("inspection", SECTION)
    html = write_report(run).read_text()
    assert "Inspection &lt;b&gt;now&lt;/b&gt;" in html
    assert 'class="verdict good">All is well.' in html
    assert "One &amp; two." in html
    assert "1,234" in html
    assert "–" in html


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "-a"])
def test_a_name_that_is_no_file_is_refused(run, name):
    with pytest.raises(UsageError, match="section name"):
        run.save_section(name, SECTION)


def test_a_damaged_file_is_named(run, tmp_path):
    path = run.save_section("bad", SECTION)
    path.write_text("{}")
    with pytest.raises(CertframeError, match="is damaged"):
        run.sections()
    path.unlink()


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        SectionTable("t", ("a", "b"), (("x",),))
