"""The four layouts of a folder of pictures, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from certframe.datasets.folder import Folder
from certframe.errors import UsageError
from certframe.images import IMAGE_SUFFIXES


def put(root: Path, *names: str) -> None:
    """Small pictures whose shade is their place in the list."""
    for shade, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), shade).save(root / name)


def folder(path: Path | str) -> Folder:
    return Folder(Folder.Options(path=path))


def names(dataset: Folder) -> list[str]:
    return [dataset.name(i) for i in range(len(dataset))]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    (root / "list.csv").write_text(text, encoding=encoding)
    return root / "list.csv"


def test_a_single_picture(tmp_path: Path) -> None:
    put(tmp_path, "one.png", "other.png")
    dataset = folder(tmp_path / "one.png")
    sample = dataset.load(0)
    assert names(dataset) == ["one.png"] == [sample.name]
    assert sample.label is None
    assert sample.image.size == (4, 4)
    assert not sample.extras


def test_a_flat_folder(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.PNG", "c.webp", "a.jpg", ".hidden.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    dataset = folder(tmp_path)
    assert names(dataset) == ["a.PNG", "a.jpg", "b.png", "c.webp"]
    assert [dataset.load(i).label for i in range(4)] == [None] * 4
    assert dataset.load(2).image.getpixel((0, 0)) == 0
    assert dataset.load(0).image.getpixel((0, 0)) == 1


def test_class_subfolders_with_names(tmp_path: Path) -> None:
    put(tmp_path, "tabby/2.png", "tabby/1.png", "espresso/deep/er/1.png", ".thumbs/1.png", "tabby/.cache/3.png",
        "7/1.png")
    dataset = folder(tmp_path)
    assert names(dataset) == ["7/1.png", "espresso/deep/er/1.png", "tabby/1.png", "tabby/2.png"]
    samples = [dataset.load(i) for i in range(4)]
    assert [sample.label for sample in samples] == [None] * 4
    assert [sample.extras["class_name"] for sample in samples] == ["7", "espresso", "tabby", "tabby"]


def test_class_subfolders_with_numbers(tmp_path: Path) -> None:
    put(tmp_path, "10/a.png", "9/a.png", "009/a.png", "9/b.png")
    (tmp_path / "docs").mkdir()
    dataset = folder(tmp_path)
    assert names(dataset) == ["009/a.png", "9/a.png", "9/b.png", "10/a.png"]
    assert [dataset.load(i).label for i in range(4)] == [9, 9, 9, 10]
    assert not dataset.load(0).extras


def test_a_csv(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "sub/a.png", "with, comma.png")
    path = table(tmp_path, 'Label , note, path\n3,x,b.png\n,,sub/a.png\n\n0, "y, z" ,"with, comma.png"\n', "utf-8-sig")
    dataset = folder(path)
    assert names(dataset) == ["b.png", "sub/a.png", "with, comma.png"]
    assert [dataset.load(i).label for i in range(3)] == [3, None, 0]
    assert dataset.load(1).image.getpixel((0, 0)) == 1


def test_a_csv_may_explain_a_picture_for_several_classes(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    dataset = folder(table(tmp_path, "path,label\na.png,3\nb.png,3\na.png,5\na.png,\n"))
    assert names(dataset) == ["a.png#3", "b.png", "a.png#5", "a.png#"]
    assert [dataset.load(i).label for i in range(4)] == [3, 3, 5, None]


def test_absolute_paths_in_a_csv(tmp_path: Path) -> None:
    put(tmp_path, "pictures/a.png")
    (tmp_path / "lists").mkdir()
    rows = f"path,label\n{tmp_path}/pictures/a.png,1\n../pictures/a.png,1\n"
    assert len(folder(table(tmp_path / "lists", rows))) == 2


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "a.png").write_bytes(b"broken")
    dataset = folder(tmp_path)
    assert dataset.load(1).name == "b.png"
    assert "a.png" in refusal(lambda: dataset.load(0))


def test_names_are_unique_and_options_survive_json(tmp_path: Path) -> None:
    put(tmp_path, "x/a.png", "y/a.png")
    options = Folder.Options.model_validate(Folder.Options(path=tmp_path).model_dump(mode="json"))
    dataset = Folder(options)
    assert len(set(names(dataset))) == len(dataset) == 2
    assert Folder.argument in Folder.Options.model_fields


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert names(folder("~")) == ["a.png"]


def test_nothing_there(tmp_path: Path) -> None:
    assert "nowhere" in refusal(lambda: folder(tmp_path / "nowhere"))
    text = refusal(lambda: folder(tmp_path))
    assert "no picture" in text
    assert all(suffix in text for suffix in IMAGE_SUFFIXES)
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "readme.txt").write_text("")
    assert "no picture" in refusal(lambda: folder(tmp_path))


def test_pictures_beside_classes(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "class/b.png")
    assert "a.png" in (text := refusal(lambda: folder(tmp_path)))
    assert "class" in text


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert "Permission denied" in (text := refusal(lambda: folder(tmp_path)))
    assert str(tmp_path) in text


@pytest.mark.parametrize(("text", "words"), [
    ("", "no column 'path'"), ("a.png,3\n", "no column 'path'"), ("path;label\na.png;3\n", "path;label"),
    ("path\na.png\n", "no column 'label'"), ("path,label\n", "no rows"), ("path,label\n\n", "no rows"),
    ("path,label\na.png,3\nb.png,3\n", "line 3: there is no picture 'b.png'"), ("path,label\n,3\n", "line 2"),
    ("path,label\na.png,cat\n", "line 2: label 'cat'"), ("path,label\na.png,-1\n", "label '-1'"),
    ("path,label\na.png,1.0\n", "label '1.0'"), ("path,label\na.png,²\n", "label '²'"),
    (f"path,label\na.png,{'9' * 5000}\n", "class index"),
    ("path,label\na.png\n", "line 2 has 1 cells"), ("path,label\na.png,3,4\n", "line 2 has 3 cells"),
    ("path,label\na.png,3\na.png,4\na.png,3\n", "line 4: 'a.png' is listed with the same label in line 2")])
def test_a_bad_csv(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path, "a.png")
    message = refusal(lambda: folder(table(tmp_path, text)))
    assert words in message
    assert "list.csv" in message


def test_a_csv_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00\x81")
    assert "UTF-8" in refusal(lambda: folder(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("path,label\n" + "x" * 200_000 + ",1\n")
    assert "list.csv" in refusal(lambda: folder(tmp_path / "list.csv"))


def test_the_path_is_needed() -> None:
    with pytest.raises(ValidationError):
        Folder.Options()
