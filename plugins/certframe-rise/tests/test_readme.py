"""The README is a tutorial: what it quotes is what the files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from certframe_rise.rise import Rise

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
QUOTES = re.findall(r"^```(?:python|toml)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("quote", QUOTES)
def test_quotes_are_verbatim(quote: str) -> None:
    files = [ROOT / "pyproject.toml", *ROOT.glob("src/**/*.py"), *ROOT.glob("tests/test_rise.py")]
    assert any(quote in path.read_text(encoding="utf-8") for path in files)


def test_the_table_of_options_is_complete() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", TEXT, re.MULTILINE))
    assert rows == {name: str(field.default).lower() for name, field in Rise.Options.model_fields.items()}
