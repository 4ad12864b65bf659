"""Pictures with boxes around the object of their class."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

from PIL import Image
from pydantic import Field

from certframe import protocols
from certframe.datasets.synsets import SYNSET, synset_index
from certframe.errors import UsageError, one_line
from certframe.images import IMAGE_SUFFIXES, read_image
from certframe.protocols import Sample

COLUMNS = ("path", "label", "left", "top", "right", "bottom")
"""The columns of a CSV, a row for every box."""
_FOUND = ("boxes.json", "boxes.csv", "annotations.json", "Annotations", "annotations")
_HELP = ("give a folder of Pascal-VOC XML files, a COCO JSON, a JSON of file → boxes_xyxy, or a CSV with the columns "
         + ",".join(COLUMNS))
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Item:
    """A picture and a class, with the class's boxes: left, top, right, bottom in pixels of a picture of `size`."""

    file: str
    boxes: tuple[Box, ...]
    label: int | None = None
    class_name: str | None = None
    size: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        return str(self.label) if self.label is not None else self.class_name or ""


class Boxes:
    """Pictures with boxes around the objects of their class, in one of four formats.

    - *Pascal-VOC XML*, as ImageNet ships it: a folder with a file for every picture, of the same name.
    - *COCO JSON*: ``images``, ``annotations`` with ``bbox`` [left, top, width, height], ``categories``. Crowds are left
      out.
    - *A JSON of file →* ``boxes_xyxy`` [[left, top, right, bottom], …] and ``class_index`` or ``class_name``; with
      ``width`` and ``height`` where they are those of another size of the picture.
    - *A CSV* with the columns ``path``, ``label``, ``left``, ``top``, ``right``, ``bottom`` and a row for every box.

    A picture with objects of several classes is an image for each of them. A box is given by its edges: pixel 0 reaches
    from 0 to 1. (Pascal VOC's own files count pixels from 1, so their boxes lie up to a pixel off.) A class is an
    index, a name that the model's classes may have, or, with `synsets`, an ImageNet synset such as n01440764.

    ``extras["boxes"]`` are in pixels of the picture; the run turns them into pixels of the model's input. A picture of
    another size than its boxes are for is accepted when it has the same proportions.
    """

    class Options(protocols.Options):
        """Options of `boxes`."""

        path: Path = Field(description="Folder with the pictures (and subfolders); may be written as 'boxes:PATH'.")
        annotations: Path | None = Field(
            None, description="The boxes: a folder of XML files, a JSON or a CSV. When left out: boxes.json, "
                              "boxes.csv, annotations.json or the folder Annotations in `path`.")
        synsets: Path | None = Field(
            None, description="A file that lists ImageNet's synsets in the order of the class indices, one a line; for "
                              "boxes whose class is a synset.")

    argument: ClassVar[str] = "path"

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Two pictures and three boxes, for the conformance kit."""
        for name in ("one.png", "two.png"):
            Image.new("RGB", (12, 8), "grey").save(directory / name)
        (directory / "boxes.csv").write_text("path,label,left,top,right,bottom\none.png,1,0,0,4,4\n"
                                             "one.png,2,5,1,9,8\ntwo.png,1,2,2,11,7\n", encoding="utf-8")
        return {"path": str(directory)}

    def __init__(self, options: Options) -> None:
        """Read the boxes, but no picture.

        Raises:
            UsageError: something is missing, or a box is not one; names the file and the entry.
        """
        self.options = options
        root = options.path.expanduser()
        if not root.is_dir():
            raise UsageError(f"there is no folder '{root}': give the folder with the pictures")
        items = list(_read(root, (options.annotations or _look_in(root)).expanduser()))
        if options.synsets is not None:
            order = synset_index(options.synsets.expanduser())
            items = [_with_index(item, order, options.synsets) for item in items]
        elif bad := next((i for i in items if i.class_name and SYNSET.fullmatch(i.class_name)), None):
            raise UsageError(f"the class of '{bad.file}' is the synset {bad.class_name}: say with dataset.synsets=FILE "
                             "which class index that is (LOC_synset_mapping.txt of ImageNet, for instance)")
        if not items:
            raise UsageError(f"there is no box for any picture in '{root}': {_HELP}")
        self._root = root
        often: dict[str, int] = {}
        for item in items:
            often[item.file] = often.get(item.file, 0) + 1
        self._items = {item.file if often[item.file] == 1 else f"{item.file}#{item.kind}": item for item in items}
        self._names = sorted(self._items)

    def __len__(self) -> int:
        """The number of pictures, each counted once for every class."""
        return len(self._names)

    def name(self, index: int) -> str:
        """The picture's path relative to the folder, with ``#class`` when it has several classes."""
        return self._names[index]

    def load(self, index: int) -> Sample:
        """Read a picture.

        Raises:
            UsageError: it is missing or broken, or its boxes are for a picture of other proportions.
        """
        name = self._names[index]
        item = self._items[name]
        picture = read_image(self._root / item.file)
        extras: dict[str, Any] = {"boxes": _scaled(item, picture.size)}
        if item.label is None and item.class_name:
            extras["class_name"] = item.class_name
        return Sample(name, picture, item.label, extras)


def _look_in(root: Path) -> Path:
    found = next((root / name for name in _FOUND if (root / name).exists()), None)
    if found is None:
        raise UsageError(f"there are no boxes in '{root}' ({', '.join(_FOUND)}): say where they are with "
                         f"dataset.annotations=PATH; {_HELP}")
    return found


def _read(root: Path, source: Path) -> Iterator[_Item]:
    if source.is_dir():
        return _from_xml(root, source)
    if not source.is_file():
        raise UsageError(f"there is no file or folder '{source}': {_HELP}")
    if source.suffix.lower() == ".csv":
        return _from_csv(source)
    if source.suffix.lower() != ".json":
        raise UsageError(f"'{source}' is neither JSON nor CSV: {_HELP}")
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"'{source}' is not JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"'{source}' holds a {type(content).__name__}: {_HELP}")
    return _from_coco(source, content) if "annotations" in content else _from_json(source, content)


def _box(where: str, values: Sequence[Any]) -> Box:
    """Four numbers, left < right and top < bottom.

    Raises:
        UsageError: they are not; `where` names the entry.
    """
    try:
        left, top, right, bottom = (float(v) for v in values)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: {values!r} is not a box of four numbers") from None
    if not (left < right and top < bottom):
        raise UsageError(f"{where}: the box {[left, top, right, bottom]} has no area: its edges are left, top, right, "
                         "bottom")
    return left, top, right, bottom


def _from_xml(root: Path, folder: Path) -> Iterator[_Item]:
    """Pascal VOC: <size>, and <object> with <name> and <bndbox>."""
    pictures = {p.stem: p.relative_to(root).as_posix() for p in sorted(root.rglob("*"))
                if p.suffix.lower() in IMAGE_SUFFIXES}
    for file in sorted(folder.rglob("*.xml")):
        if file.stem not in pictures:
            continue
        where = f"'{file}'"
        try:
            tree = ElementTree.fromstring(file.read_bytes())
        except (ElementTree.ParseError, OSError) as error:
            raise UsageError(f"{where} is not XML: {one_line(error)}") from error
        size = tuple(int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        found: dict[str, list[Box]] = {}
        for thing in tree.iter("object"):
            edges = [thing.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
            found.setdefault((thing.findtext("name") or "").strip(), []).append(_box(where, edges))
        for name, boxes in found.items():
            yield _Item(pictures[file.stem], tuple(boxes), class_name=name or None,
                        size=(size[0], size[1]) if all(size) else None)


def _from_coco(source: Path, content: Mapping[str, Any]) -> Iterator[_Item]:
    try:
        pictures = {image["id"]: image for image in content["images"]}
        categories = {c["id"]: str(c["name"]) for c in content["categories"]}
        found: dict[tuple[Any, Any], list[Box]] = {}
        for number, note in enumerate(content["annotations"]):
            if note.get("iscrowd"):
                continue
            left, top, width, height = note["bbox"]
            box = _box(f"'{source}' annotation {number}", (left, top, left + width, top + height))
            found.setdefault((note["image_id"], note["category_id"]), []).append(box)
        for (image, category), boxes in found.items():
            picture = pictures[image]
            size = (int(picture["width"]), int(picture["height"])) if {"width", "height"} <= picture.keys() else None
            yield _Item(str(picture["file_name"]), tuple(boxes), class_name=categories[category], size=size)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"'{source}' is not a COCO file of boxes ({type(error).__name__}: {one_line(error)}): it "
                         "needs images, categories, and annotations with image_id, category_id and bbox") from error


def _from_json(source: Path, content: Mapping[str, Any]) -> Iterator[_Item]:
    for file, entry in content.items():
        where = f"'{source}' entry '{file}'"
        if not isinstance(entry, dict) or not isinstance(entry.get("boxes_xyxy"), list):
            raise UsageError(f"{where} has no list boxes_xyxy: {_HELP}")
        boxes = tuple(_box(where, box if isinstance(box, list) else [box]) for box in entry["boxes_xyxy"])
        size = (int(entry["width"]), int(entry["height"])) if {"width", "height"} <= entry.keys() else None
        if boxes:
            yield _Item(file, boxes, _index(where, entry.get("class_index")), entry.get("class_name"), size)


def _from_csv(source: Path) -> Iterator[_Item]:
    found: dict[tuple[str, str], list[Box]] = {}
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
                raise UsageError(f"'{source}' has no column '{missing[0]}': its first line has to be a header such as "
                                 f"'{','.join(COLUMNS)}'")
            for row in reader:
                where = f"'{source}' line {reader.line_num}"
                if not row["path"]:
                    raise UsageError(f"{where} names no picture")
                key = (row["path"].strip(), (row["label"] or "").strip())
                found.setdefault(key, []).append(_box(where, [row[edge] for edge in COLUMNS[2:]]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"'{source}' is not a CSV file in UTF-8: {error}") from error
    for (path, label), boxes in found.items():
        if label.isdigit():
            yield _Item(path, tuple(boxes), label=int(label))
        else:
            yield _Item(path, tuple(boxes), class_name=label or None)


def _index(where: str, value: Any) -> int | None:
    if value is None or (isinstance(value, int) and value >= 0):
        return value
    raise UsageError(f"{where}: class_index {value!r} is not a whole number from 0")


def _with_index(item: _Item, order: Mapping[str, int], source: Path) -> _Item:
    if item.label is not None or item.class_name is None:
        return item
    if item.class_name not in order:
        raise UsageError(f"the class '{item.class_name}' of '{item.file}' is not in '{source}': give the list that "
                         "these boxes belong to")
    return replace(item, label=order[item.class_name])


def _scaled(item: _Item, size: tuple[int, int]) -> list[list[float]]:
    """The boxes in pixels of a picture of this width and height."""
    if item.size is None or item.size == size:
        return [list(box) for box in item.boxes]
    (width, height), (across, down) = size, (size[0] / item.size[0], size[1] / item.size[1])
    # A picture that was scaled down has its sides rounded to whole pixels, by up to half a pixel each.
    if abs(width - item.size[0] * down) > 1 and abs(height - item.size[1] * across) > 1:
        raise UsageError(f"picture '{item.file}' has {width}×{height} pixels and its boxes are for {item.size[0]}×"
                         f"{item.size[1]}: give the picture that they were drawn on, or one of the same proportions")
    return [[left * across, top * down, right * across, bottom * down] for left, top, right, bottom in item.boxes]
