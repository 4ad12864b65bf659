"""Markdown tables, and pages of the documentation with parts that a command writes.

A part stands between ``<!-- made: name -->`` and ``<!-- /made -->``; what is outside is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(page: str, parts: Mapping[str, str]) -> str:
    """The page with its made parts replaced.

    Raises:
        KeyError: the page has no place for one of the parts.
    """
    for name, text in parts.items():
        place = re.compile(rf"(<!-- made: {re.escape(name)} -->\n).*?(<!-- /made -->)", re.DOTALL)
        if not place.search(page):
            raise KeyError(f"no place for '{name}'")
        page = place.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)  # type: ignore[misc]
    return page


def publish(path: Path, parts: Mapping[str, str], *, docs: bool) -> None:
    """Print the parts, and write them into the page."""
    for name, text in parts.items():
        print(f"\n## {name}\n\n{text}")
    if docs:
        path.write_text(fill(path.read_text(encoding="utf-8"), parts), encoding="utf-8")
