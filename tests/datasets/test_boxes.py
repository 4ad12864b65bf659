"""Boxes in four formats, and what is refused; how they get to the model's pixels is in tests/test_worker.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from certframe.datasets.boxes import Boxes
from certframe.errors import UsageError

HEADER = "path,label,left,top,right,bottom\n"


def boxes(path: Path, **options: object) -> Boxes:
    return Boxes(Boxes.Options(path=path, **options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures of 20×10 and 10×20, one in a subfolder."""
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    Image.new("RGB", (10, 20)).save(tmp_path / "sub" / "b.png")
    return tmp_path


def content(dataset: Boxes) -> list[tuple[object, ...]]:
    found = [dataset.load(i) for i in range(len(dataset))]
    assert [s.name for s in found] == [dataset.name(i) for i in range(len(dataset))]
    return [(s.name, s.label, s.extras.get("class_name"), s.extras["boxes"]) for s in found]


def voc(objects: list[tuple[str, tuple[float, ...]]], size: tuple[int, int] | None = (20, 10)) -> str:
    parts = [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""]
    for name, (x0, y0, x1, y1) in objects:
        parts.append(f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
                     f"<ymax>{y1}</ymax></bndbox></object>")
    return f"<annotation><filename>a</filename>{''.join(parts)}</annotation>"


def test_csv(folder: Path) -> None:
    (folder / "boxes.csv").write_text(HEADER + "a.png,3,0,0,5,5\na.png,3,6,1,9.5,4\na.png,7,1,1,2,2\n"
                                               "sub/b.png,tench,0,0,10,20\n")
    assert content(boxes(folder)) == [
        ("a.png#3", 3, None, [[0, 0, 5, 5], [6, 1, 9.5, 4]]), ("a.png#7", 7, None, [[1, 1, 2, 2]]),
        ("sub/b.png", None, "tench", [[0, 0, 10, 20]])]


def test_voc(folder: Path) -> None:
    (folder / "Annotations" / "val").mkdir(parents=True)
    twice = voc([("n01440764", (1, 2, 5, 6)), ("n01440764", (7, 2, 9, 3))])
    (folder / "Annotations" / "val" / "a.xml").write_text(twice)
    (folder / "Annotations" / "val" / "b.xml").write_text(voc([("n02119789", (0, 0, 10, 20))], None))
    (folder / "Annotations" / "val" / "c.xml").write_text(voc([("n02119789", (0, 0, 10, 20))]))  # no such picture
    with pytest.raises(UsageError, match=r"synset n01440764: say with dataset\.synsets=FILE"):
        boxes(folder)
    (folder / "synsets.txt").write_text("n01440764\nn02119789\n")
    assert content(boxes(folder, synsets=folder / "synsets.txt")) == [
        ("a.png", 0, None, [[1, 2, 5, 6], [7, 2, 9, 3]]), ("sub/b.png", 1, None, [[0, 0, 10, 20]])]


def test_coco(folder: Path) -> None:
    (folder / "annotations.json").write_text(json.dumps({
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}, {"id": 8, "file_name": "sub/b.png"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]},
                        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 0},
                        {"image_id": 8, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
                        {"image_id": 8, "category_id": 1, "bbox": [2, 2, 5, 5]}]}))
    assert content(boxes(folder)) == [
        ("a.png#cat", None, "cat", [[0, 0, 5, 5]]), ("a.png#dog", None, "dog", [[1, 2, 4, 6]]),
        ("sub/b.png", None, "cat", [[2, 2, 7, 7]])]


def test_json_of_another_size_of_the_picture(folder: Path) -> None:
    """Boxes drawn on 40×20 are halved on 20×10."""
    notes = {"a.png": {"class_index": 4, "boxes_xyxy": [[0, 2, 40, 20]], "width": 40, "height": 20}}
    (folder / "boxes.json").write_text(json.dumps(notes))
    assert content(boxes(folder)) == [("a.png", 4, None, [[0, 1, 20, 10]])]
    notes["a.png"] |= {"width": 20, "height": 40}
    (folder / "boxes.json").write_text(json.dumps(notes))
    with pytest.raises(UsageError, match=r"'a.png' has 20×10 pixels and its boxes are for 20×40"):
        boxes(folder).load(0)


@pytest.mark.parametrize(("name", "text", "message"), [
    ("boxes.csv", "path,label,left\n", "no column 'top'"),
    ("boxes.csv", HEADER + "a.png,1,5,0,5,5\n", r"line 2: the box \[5.0, 0.0, 5.0, 5.0\] has no area"),
    ("boxes.csv", HEADER + "a.png,1,0,0,five,5\n", "line 2: .* is not a box of four numbers"),
    ("boxes.csv", HEADER + "a.png,1,0,0,5\n", "line 2: .* is not a box of four numbers"),
    ("boxes.csv", HEADER, "there is no box for any picture"),
    ("boxes.json", "{", "is not JSON"),
    ("boxes.json", "[]", "holds a list"),
    ("boxes.json", '{"a.png": {}}', "entry 'a.png' has no list boxes_xyxy"),
    ("boxes.json", '{"a.png": {"boxes_xyxy": [[0, 0, 1, 1]], "class_index": -1}}', "class_index -1"),
    ("boxes.json", '{"annotations": [{"bbox": [1]}], "images": [], "categories": []}', "is not a COCO file"),
])
def test_what_is_no_box_is_refused(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        boxes(folder)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no boxes in .*dataset\.annotations=PATH"):
        boxes(folder)
    with pytest.raises(UsageError, match="no folder"):
        boxes(folder / "absent")
    with pytest.raises(UsageError, match="no file or folder"):
        boxes(folder, annotations=folder / "absent.csv")
    with pytest.raises(UsageError, match="neither JSON nor CSV"):
        boxes(folder, annotations=folder / "a.png")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(UsageError, match="is not XML"):
        boxes(folder)
    (folder / "Annotations" / "a.xml").write_text(voc([("n01440764", (1, 2, 5, 6))]))
    (folder / "list.txt").write_text("n02119789\n")
    with pytest.raises(UsageError, match=r"'n01440764' of 'a.png' is not in"):
        boxes(folder, synsets=folder / "list.txt")


def test_real_boxes(data_dir: Path) -> None:
    dataset = boxes(data_dir / "boxed")
    assert len(dataset) == 120
    sample = dataset.load(0)
    width, height = sample.image.size
    assert all(0 <= x0 < x1 <= width + 1 and 0 <= y0 < y1 <= height + 1 for x0, y0, x1, y1 in sample.extras["boxes"])
