"""The gallery has every attribution method of this repository, with a picture."""

from __future__ import annotations

import re

import gallery
import generate
import pytest

PAGE = (generate.ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
NAMES = [entry.name for entry in gallery.methods()]


def test_there_are_methods_of_several_distributions():
    assert len({entry.distribution for entry in gallery.methods()}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_picture_or_a_reason(name):
    section = PAGE.split(f"\n### `{name}`\n")[1].split("\n### ")[0].split("<!--")[0]
    picture = re.search(r"\]\((images/gallery/[^)]+)\)", section)
    assert picture or gallery.NOT in section, f"run: python scripts/docs/gallery.py --only {name}"
    assert picture is None or (generate.ROOT / "docs" / picture[1]).is_file()


def test_the_page_has_no_other_methods_and_is_not_too_large():
    assert re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE) == NAMES
    files = list(gallery.PICTURES.glob("*.png"))
    assert {file.stem for file in files} <= {*NAMES, "photographs"}
    assert sum(file.stat().st_size for file in files) < 2.5 * 2**20
