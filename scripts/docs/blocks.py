"""The fenced code blocks of Markdown pages: read by the tests, and written to files for whoever wants to try a page.

    python scripts/docs/blocks.py docs/plugins/attributor.md my-plugin

writes the blocks of a page that have a file name (``title="…"``) into the folder ``my-plugin``.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$",
                    re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: the word after the fence, may be empty.
        title: the file name above it, or None.
        body: the text, without the fence's indentation.
        line: the line of the fence in its page, from 1.
        not_run: the reason, where the comment ``<!-- not run: reason -->`` stands before the block.
    """

    language: str
    title: str | None
    body: str
    line: int
    not_run: str | None


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    for match in _FENCE.finditer(text):
        title, marker = _TITLE.search(match["rest"]), _NOT_RUN.search(text[:match.start()])
        body = textwrap.dedent(match["body"]) if match["indent"] else match["body"]
        yield Block(match["language"], title and title[1], body, text[:match.start()].count("\n") + 1,
                    marker and marker[1])


def files(text: str) -> dict[str, str]:
    """The blocks that have a file name: name → content."""
    return {block.title: block.body for block in blocks(text) if block.title}


def write_files(text: str, folder: Path) -> list[Path]:
    """Write the blocks that have a file name below a folder; returns the paths."""
    written = []
    for name, body in files(text).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
        written.append(path)
    return written


def main() -> None:
    """Write the files of a page."""
    parser = argparse.ArgumentParser(description="Write the files of a documentation page into a folder.")
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    for path in write_files(given.page.read_text(encoding="utf-8"), given.folder):
        print(path)


if __name__ == "__main__":
    main()
