"""Pictures from files: one, a folder, class subfolders, or a CSV."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field

from certframe import protocols
from certframe.errors import UsageError
from certframe.images import IMAGE_SUFFIXES, read_image
from certframe.protocols import Sample

COLUMNS = ("path", "label")
"""The columns that a CSV needs."""
_INDEX = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class _Item:
    name: str
    file: Path
    label: int | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


class Folder:
    """A picture, a folder of pictures, class subfolders, or a CSV of path and label.

    - *A picture*: one image without a label.
    - *A folder of pictures*: all of them, without labels.
    - *A folder of subfolders*: each is a class, with the pictures in it and below it. When all their names are numbers,
      these are the labels. Otherwise the label is left open and the name is kept as ``extras["class_name"]``, for
      whoever knows the model's classes.
    - *A CSV* with the columns ``path`` (relative to the CSV) and ``label`` (a class index, or empty). Other columns are
      ignored. A path may come twice with different labels.

    Without a label, the model's own prediction is explained. Pictures are recognised by their ending, in sorted order;
    hidden files and folders are passed over. Names are paths relative to the folder.
    """

    class Options(protocols.Options):
        """Options of `folder`."""

        path: Path = Field(description="A picture, a folder, or a CSV file; may be written as 'folder:PATH'.")

    argument: ClassVar[str] = "path"
    """The option that ``folder:ARGUMENT`` sets."""

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """A folder with two classes of pictures, for the conformance kit."""
        for number, name in enumerate(("0/black.png", "0/grey.png", "1/white.png")):
            (directory / name).parent.mkdir(exist_ok=True)
            Image.new("L", (8, 8), 127 * number).save(directory / name)
        return {"path": str(directory)}

    def __init__(self, options: Options) -> None:
        """Find the pictures, without reading any.

        Raises:
            UsageError: there is nothing at the path, no picture, or a row of the CSV cannot be used.
        """
        self.options = options
        root = options.path.expanduser()
        try:
            self._items = list(_find(root))
        except OSError as error:
            raise UsageError(f"'{error.filename or root}' cannot be read: {error.strerror or error}; check its "
                             "permissions") from error
        if not self._items:
            raise UsageError(f"no picture in folder '{root}': put files there that end in {', '.join(IMAGE_SUFFIXES)}")

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._items)

    def name(self, index: int) -> str:
        """The picture's path relative to the folder."""
        return self._items[index].name

    def load(self, index: int) -> Sample:
        """Read a picture.

        Raises:
            UsageError: it is missing, broken or too large; names the file.
        """
        item = self._items[index]
        return Sample(item.name, read_image(item.file), item.label, item.extras)


def _find(root: Path) -> Iterator[_Item]:
    if root.is_dir():
        return _from_folder(root)
    if not root.exists():
        raise UsageError(f"there is no file or folder '{root}': check the path")
    if root.suffix.lower() == ".csv":
        return _from_csv(root)
    return iter([_Item(root.name, root)])


def _from_folder(root: Path) -> Iterator[_Item]:
    flat = sorted(entry.name for entry in root.iterdir() if _is_picture(entry))
    classes = {entry.name: found for entry in sorted(root.iterdir())
               if entry.is_dir() and not entry.name.startswith(".") and (found := _below(entry))}
    if flat and classes:
        raise UsageError(f"folder '{root}' has pictures ({flat[0]}, …) beside subfolders with pictures "
                         f"({next(iter(classes))}, …): give one of the subfolders, or move the pictures into one")
    numbered = all(_INDEX.fullmatch(name) for name in classes)
    for name in flat:
        yield _Item(name, root / name)
    for folder, names in sorted(classes.items(), key=lambda c: (int(c[0]) if numbered else 0, c[0])):
        for name in names:
            label, extras = (int(folder), {}) if numbered else (None, {"class_name": folder})
            yield _Item(f"{folder}/{name}", root / folder / name, label, extras)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _below(folder: Path) -> list[str]:
    """The pictures in a folder and its subfolders, as sorted relative paths with ``/``."""
    def complain(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=complain):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += filter(_is_picture, (Path(place) / name for name in files))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _from_csv(table: Path) -> Iterator[_Item]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(_rows(table, stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"'{table}' is not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise UsageError(f"'{table}' has no rows: list one picture a line under the header 'path,label'")
    often = Counter(path for _, path, _ in rows)
    lines: dict[str, int] = {}
    for line, path, label in rows:
        name = path if often[path] == 1 else f"{path}#{'' if label is None else label}"
        if name in lines:
            raise UsageError(f"'{table}' line {line}: '{path}' is listed with the same label in line {lines[name]}: "
                             "remove one of them")
        lines[name] = line
        yield _Item(name, table.parent / path, label)


def _rows(table: Path, stream: Iterator[str]) -> Iterator[tuple[int, str, int | None]]:
    """(line, path, label) of each row.

    Raises:
        UsageError: a column is missing, or a row names no existing file or has no usable label; names the line.
    """
    reader = csv.reader(stream, skipinitialspace=True)
    header = [cell.strip().lower() for cell in next(reader, [])]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UsageError(f"'{table}' has no column '{missing[0]}': its first line has to be a header such as "
                         f"'path,label' (it is '{','.join(header)[:60]}')")
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"'{table}' line {reader.line_num}"
        if len(cells) != len(header):
            raise UsageError(f"{where} has {len(cells)} cells, the header {len(header)}: quote a cell with commas in "
                             "it, and keep the comma before an empty one")
        row = {column: cells[header.index(column)].strip() for column in COLUMNS}
        if not row["path"] or not (table.parent / row["path"]).is_file():
            raise UsageError(f"{where}: there is no picture '{row['path']}'; paths are relative to the CSV")
        if row["label"] and not _INDEX.fullmatch(row["label"]):
            raise UsageError(f"{where}: label '{row['label']}' is not a class index: give a whole number from 0, or "
                             "leave it empty")
        yield reader.line_num, row["path"], int(row["label"]) if row["label"] else None
