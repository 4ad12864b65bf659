"""Markdown from texts and rows."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

NOTICE = "<!-- Made by scripts/docs/generate.py from the code. Do not edit: change the code and run it again. -->\n\n"
"""First line of every generated page."""
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Example|Examples|Note):$")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, or nothing when there are no rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Inline code, or nothing for an empty text."""
    return f"`{text}`" if text else ""


def docstring(text: str) -> str:
    """A docstring with Google sections as Markdown: sections become bold words with lists below."""
    lines = inspect.cleandoc(text).splitlines()
    result: list[str] = []
    inside = False
    for line in lines:
        if _SECTION.match(line):
            inside = True
            result += ["", f"**{line.removesuffix(':')}**", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            result.append(f"- {line.strip()}")
        elif inside and line.strip():
            result.append(f"  {line.strip()}" if line.startswith(" ") else line)
            inside = inside and line.startswith(" ")
        else:
            result.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(result)).strip() + "\n"
