"""ImageNet's validation images in the layouts that people have them in; nothing has to be unpacked by hand."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from certframe import protocols
from certframe.datasets.synsets import SYNSET, synset_index
from certframe.errors import UsageError, one_line
from certframe.images import IMAGE_SUFFIXES, decode_image, read_image
from certframe.protocols import Sample

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT = "ILSVRC2012_devkit_t12"
_LABELS = (GROUND_TRUTH, f"data/{GROUND_TRUTH}", f"{_DEVKIT}/data/{GROUND_TRUTH}", f"{_DEVKIT}.tar.gz",
           "LOC_val_solution.csv", "val.txt", "labels.json")
_SYNSETS = ("LOC_synset_mapping.txt", "synsets.txt", "synset_words.txt")
_HELP = (f"download {_DEVKIT}.tar.gz from https://image-net.org (or LOC_val_solution.csv from Kaggle) and put it "
         "beside the images, or say where it is with dataset.labels=PATH")


@dataclass(frozen=True)
class _Item:
    name: str
    read: Callable[[], Image.Image]


class ImageNet:
    """ImageNet's validation images with their labels, in the usual layouts.

    The images are a folder with a subfolder for every synset, a folder with ``ILSVRC2012_val_00000001.JPEG`` and so on
    (or images of other names), or the archive ``ILSVRC2012_img_val.tar`` as it is downloaded. Subfolders are labels.
    Otherwise labels are looked for beside the images and in the folders above:

    - the devkit, as ``ILSVRC2012_devkit_t12.tar.gz``, as a folder, or as ``ILSVRC2012_validation_ground_truth.txt``
      with ``meta.mat`` beside it;
    - ``LOC_val_solution.csv`` with ``LOC_synset_mapping.txt`` beside it, as Kaggle has them;
    - ``val.txt`` with lines of file and class index;
    - ``labels.json`` with file → class index, or → {"class_index": …}.

    A class index is the place of the synset among all synsets in sorted order, as models have it.

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015.
    """

    class Options(protocols.Options):
        """Options of `imagenet`."""

        path: Path = Field(description="Folder or ILSVRC2012_img_val.tar; may be written as 'imagenet:PATH'.")
        labels: Path | None = Field(None, description="The labels, when they are not found beside the images.")
        synsets: Path | None = Field(
            None, description="A file that lists the synsets in the order of the class indices, one a line, such as "
                              "LOC_synset_mapping.txt; looked for beside the images when left out.")

    argument: ClassVar[str] = "path"

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Two pictures and their labels, for the conformance kit."""
        for number in (1, 2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(directory / f"ILSVRC2012_val_{number:08d}.JPEG")
        (directory / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 65\nILSVRC2012_val_00000002.JPEG 970\n")
        return {"path": str(directory)}

    def __init__(self, options: Options) -> None:
        """Find images and labels, without reading an image.

        Raises:
            UsageError: something is missing; says what to download and where to put it.
        """
        self.options = options
        path = options.path.expanduser()
        folders = _synset_folders(path) if path.is_dir() else []
        if folders:
            order = self._order(path) or _all_of(folders, path)
            self._items, labels = _from_folders(path, folders), {}
            for item in self._items:
                labels[item.name] = _place(order, item.name.split("/")[0], path)
        else:
            self._items = _from_tar(path) if path.is_file() else _from_flat(path)
            labels = self._labels(path)
        self._labelled = [_label_of(item.name, labels) for item in self._items]

    def __len__(self) -> int:
        """The number of images."""
        return len(self._items)

    def name(self, index: int) -> str:
        """The file's name, with its synset's folder when it is in one."""
        return self._items[index].name

    def load(self, index: int) -> Sample:
        """Read an image.

        Raises:
            UsageError: it is missing or broken; names the file.
        """
        item = self._items[index]
        return Sample(item.name, item.read(), self._labelled[index])

    def _order(self, path: Path) -> dict[str, int] | None:
        """The order of the synsets, where a file gives it."""
        given = self.options.synsets
        found = given.expanduser() if given is not None else _beside(path, _SYNSETS)
        return synset_index(found) if found is not None else None

    def _labels(self, path: Path) -> dict[str, int]:
        given = self.options.labels
        found = given.expanduser() if given is not None else _beside(path, _LABELS)
        if found is None:
            raise UsageError(f"there are no labels for the images in '{path}': {_HELP}")
        if found.is_dir():
            found = next((p for p in (found / name for name in _LABELS) if p.exists()), found / GROUND_TRUTH)
        if not found.is_file():
            raise UsageError(f"there is no file '{found}': {_HELP}")
        if found.name.endswith((".tar.gz", ".tgz", ".tar")):
            return _from_devkit(found)
        if found.name == GROUND_TRUTH:
            return _ground_truth(found, _read_bytes(found), _read_bytes(found.with_name("meta.mat")))
        if found.suffix.lower() == ".csv":
            return _from_solution(found, self._order(found))
        return _from_json(found) if found.suffix.lower() == ".json" else _from_lines(found)


# -- images ---------------------------------------------------------------------------------------------------------


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not Path(name).name.startswith(".")


def _synset_folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and SYNSET.fullmatch(p.name))


def _from_folders(root: Path, folders: Sequence[str]) -> list[_Item]:
    return [_in_folder(root, f"{folder}/{file.name}") for folder in folders
            for file in sorted((root / folder).iterdir()) if _is_picture(file.name)]


def _from_flat(root: Path) -> list[_Item]:
    if not root.is_dir():
        raise UsageError(f"there is no file or folder '{root}': download ILSVRC2012_img_val.tar from "
                         "https://image-net.org and give its path")
    items = [_in_folder(root, name) for name in sorted(p.name for p in root.iterdir() if _is_picture(p.name))]
    if not items:
        raise UsageError(f"there is no picture in '{root}': put ImageNet's validation images there, or give the path "
                         "of ILSVRC2012_img_val.tar")
    return items


def _in_folder(root: Path, name: str) -> _Item:
    return _Item(name, lambda: read_image(root / name))


def _from_tar(path: Path) -> list[_Item]:
    """The pictures of an archive, read from their place in it when they are needed."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [(Path(m.name).name, m.offset_data, m.size) for m in archive
                       if m.isfile() and _is_picture(m.name)]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"'{path}' is not an uncompressed tar archive, or cut off ({one_line(error)}): download "
                         "ILSVRC2012_img_val.tar again, or give a folder") from error
    if not members:
        raise UsageError(f"there is no picture in the archive '{path}': give ILSVRC2012_img_val.tar")
    return [_in_tar(path, *member) for member in sorted(members)]


def _in_tar(path: Path, name: str, offset: int, size: int) -> _Item:
    def read() -> Image.Image:
        with path.open("rb") as file:
            file.seek(offset)
            return decode_image(file.read(size), f"{path.name}/{name}")
    return _Item(name, read)


# -- labels ---------------------------------------------------------------------------------------------------------


def _beside(path: Path, names: Sequence[str]) -> Path | None:
    """The first of the names beside the images, or up to four folders above: Kaggle's are four below its labels."""
    places = [path, *path.absolute().parents[:4]]
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def _label_of(name: str, labels: Mapping[str, int]) -> int:
    """By file name, with or without ending.

    Raises:
        UsageError: there is no label.
    """
    for key in (name, Path(name).stem):
        if key in labels:
            return labels[key]
    raise UsageError(f"image '{name}' has no label: {_HELP}")


def _all_of(folders: Sequence[str], path: Path) -> dict[str, int]:
    if len(folders) != 1000:
        raise UsageError(f"'{path}' has {len(folders)} of ImageNet's 1000 synsets, so their class indices are not "
                         "known: put LOC_synset_mapping.txt beside the folder, or say where it is with "
                         "dataset.synsets=PATH")
    return {name: index for index, name in enumerate(folders)}


def _place(order: Mapping[str, int], synset: str, where: Path) -> int:
    if synset not in order:
        raise UsageError(f"the synset {synset} of '{where}' is not in the list of synsets: give the list that it is in "
                         "with dataset.synsets=PATH")
    return order[synset]


def _from_devkit(path: Path) -> dict[str, int]:
    """Labels from the devkit's archive."""
    wanted: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name in (GROUND_TRUTH, "meta.mat"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    wanted[Path(member.name).name] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"'{path}' is not an archive, or cut off ({one_line(error)}): download it again") from error
    if len(wanted) < 2:
        raise UsageError(f"'{path}' lacks {GROUND_TRUTH} or meta.mat: download {_DEVKIT}.tar.gz from "
                         "https://image-net.org")
    return _ground_truth(path, wanted[GROUND_TRUTH], wanted["meta.mat"])


def _ground_truth(path: Path, truth: bytes, meta: bytes) -> dict[str, int]:
    """Line i of the ground truth is the ILSVRC2012_ID of image i; meta.mat says which synset that is."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True,  # type: ignore[arg-type]
                          variable_names=["synsets"])["synsets"]
        named = {int(i): str(wnid) for i, wnid, children in zip(synsets["ILSVRC2012_ID"], synsets["WNID"],
                                                               synsets["num_children"], strict=True) if children == 0}
        place = {wnid: index for index, wnid in enumerate(sorted(named.values()))}
        numbers = np.array(truth.decode().split(), dtype=np.int64)
        return {f"ILSVRC2012_val_{i:08d}": place[named[int(n)]] for i, n in enumerate(numbers, 1)}
    except Exception as error:  # scipy raises whatever a broken file leads to
        raise UsageError(f"'{path}' is damaged ({type(error).__name__}: {one_line(error)}): download {_DEVKIT}.tar.gz "
                         "again") from error


def _from_solution(path: Path, order: Mapping[str, int] | None) -> dict[str, int]:
    """Kaggle's table: ImageId, and the synset with its boxes."""
    found: dict[str, str] = {}
    for line, row in enumerate(_csv(path), 2):
        words = (row.get("PredictionString") or "").split()
        if not row.get("ImageId") or not words or not SYNSET.fullmatch(words[0]):
            raise UsageError(f"'{path}' line {line} is not an ImageId and a synset with its boxes: download "
                             "LOC_val_solution.csv again")
        found[str(row["ImageId"])] = words[0]
    order = order or _all_of(sorted(set(found.values())), path)
    return {image: _place(order, synset, path) for image, synset in found.items()}


def _csv(path: Path) -> Iterator[dict[str, str | None]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from csv.DictReader(stream)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UsageError(f"'{path}' is not a CSV file in UTF-8: {error}") from error


def _from_lines(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, line in enumerate(_read_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdigit():
            raise UsageError(f"'{path}' line {number}: '{line[:40]}' is not a file and a class index")
        found[Path(words[0]).name] = int(words[1])
    return found


def _from_json(path: Path) -> dict[str, int]:
    try:
        content = json.loads(_read_bytes(path))
        return {str(name): int(entry["class_index"] if isinstance(entry, dict) else entry)
                for name, entry in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"'{path}' is not a JSON of file → class index, or of file → {{\"class_index\": …}}: "
                         f"{one_line(error)}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read ({error.strerror}): {_HELP}") from error


