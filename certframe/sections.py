"""What a plugin adds to the report of a run: a heading, text and tables, as data and never as HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Cell = str | int | float | None


@dataclass(frozen=True)
class SectionTable:
    """A table of a section.

    Attributes:
        caption: what it shows.
        columns: the heads.
        rows: text and numbers, a row as long as `columns`; None for what there is not.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table '{self.caption}': every row needs {len(self.columns)} cells")


@dataclass(frozen=True)
class Section:
    """A section of the report of a run; `Run.save_section` stores it.

    Attributes:
        title: the heading.
        verdict: one sentence that says what came of it.
        state: whether the verdict is "good", "bad", or neither.
        text: paragraphs.
        tables: the tables.
    """

    title: str
    verdict: str = ""
    state: Literal["good", "bad", ""] = ""
    text: Sequence[str] = ()
    tables: Sequence[SectionTable] = ()

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, sort_keys=True) + "\n"

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Section:
        """From what `to_json` wrote.

        Raises:
            ValueError, TypeError: it is something else.
        """
        tables = tuple(SectionTable(table["caption"], tuple(table["columns"]), tuple(map(tuple, table["rows"])))
                       for table in content["tables"])
        return cls(**{**content, "tables": tables, "text": tuple(content["text"])})
