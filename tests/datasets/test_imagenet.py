"""ImageNet's layouts in small: synset folders, flat files, the archive, and labels from four kinds of file."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from certframe.datasets.imagenet import GROUND_TRUTH, ImageNet
from certframe.datasets.synsets import synset_index
from certframe.errors import UsageError

SYNSETS = ("n01440764", "n01443537", "n02119789")


def imagenet(path: Path, **options: object) -> ImageNet:
    return ImageNet(ImageNet.Options(path=path, **options))


def shade(dataset: ImageNet, index: int) -> int:
    return int(np.asarray(dataset.load(index).image)[0, 0, 0])


def jpeg(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (red, red, red)).save(buffer, format="PNG")  # exact, whatever it is called
    return buffer.getvalue()


def flat(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(jpeg(number))
    return folder


def archive(path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        for number in (3, 1, 2):
            info = tarfile.TarInfo(f"ILSVRC2012_val_{number:08d}.JPEG")
            info.size = len(jpeg(number))
            file.addfile(info, io.BytesIO(jpeg(number)))
    return path


def mapping(folder: Path) -> None:
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{s} words, more words\n" for s in SYNSETS))


def devkit(folder: Path) -> Path:
    """ILSVRC's own numbers are not in the order of the synsets, and inner nodes of the tree have numbers too."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.array([((3), SYNSETS[0], 0), ((1), SYNSETS[1], 0), ((2), SYNSETS[2], 0), ((4), "n00000001", 3)],
                    dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    savemat(folder / "meta.mat", {"synsets": rows})
    (folder / GROUND_TRUTH).write_text("2\n3\n1\n")  # synsets 2, 0, 1
    return folder


def check(dataset: ImageNet, labels: list[int]) -> None:
    assert [dataset.load(i).label for i in range(len(dataset))] == labels
    assert [shade(dataset, i) for i in range(len(dataset))] == [1, 2, 3]
    assert dataset.name(0) == "ILSVRC2012_val_00000001.JPEG" == dataset.load(0).name


@pytest.mark.parametrize("packed", [False, True])
def test_flat_or_packed_images_with_every_kind_of_labels(tmp_path: Path, packed: bool) -> None:
    place = tmp_path / "val"
    place.mkdir()
    images = archive(place / "ILSVRC2012_img_val.tar") if packed else flat(place)
    home = place if not packed else tmp_path

    (home / "val.txt").write_text("".join(f"ILSVRC2012_val_{i:08d}.JPEG {label}\n" for i, label in
                                          ((1, 65), (2, 970), (3, 230))))
    check(imagenet(images), [65, 970, 230])
    (home / "val.txt").unlink()

    (home / "labels.json").write_text(json.dumps({"ILSVRC2012_val_00000001.JPEG": 5, "ILSVRC2012_val_00000002.JPEG":
                                                  {"class_index": 6}, "ILSVRC2012_val_00000003": 7}))
    check(imagenet(images), [5, 6, 7])
    (home / "labels.json").unlink()

    (home / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(
        f"ILSVRC2012_val_{i:08d},{s} 1 2 3 4 {s} 5 6 7 8 \n" for i, s in ((1, SYNSETS[1]), (3, SYNSETS[0]),
                                                                         (2, SYNSETS[2]))))
    mapping(home)
    check(imagenet(images), [1, 2, 0])
    (home / "LOC_val_solution.csv").unlink()

    kit = devkit(tmp_path / "elsewhere" / "data")
    check(imagenet(images, labels=kit / GROUND_TRUTH), [2, 0, 1])
    check(imagenet(images, labels=tmp_path / "elsewhere"), [2, 0, 1])
    with tarfile.open(home / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as file:
        file.add(kit, "ILSVRC2012_devkit_t12/data")
    check(imagenet(images), [2, 0, 1])


def test_kaggle_keeps_its_labels_four_folders_above(tmp_path: Path) -> None:
    images = flat(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    mapping(tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(
        f"ILSVRC2012_val_{i:08d},{SYNSETS[i - 1]} 1 2 3 4\n" for i in (1, 2, 3)))
    check(imagenet(images), [0, 1, 2])


def test_synset_folders(tmp_path: Path) -> None:
    for synset, number in zip(SYNSETS, (1, 2, 3), strict=True):
        (tmp_path / "val" / synset).mkdir(parents=True)
        (tmp_path / "val" / synset / "a.JPEG").write_bytes(jpeg(number))
    with pytest.raises(UsageError, match=r"has 3 of ImageNet's 1000 synsets.*LOC_synset_mapping"):
        imagenet(tmp_path / "val")
    mapping(tmp_path)
    dataset = imagenet(tmp_path / "val")
    assert [dataset.name(i) for i in range(3)] == [f"{s}/a.JPEG" for s in SYNSETS]
    assert [dataset.load(i).label for i in range(3)] == [0, 1, 2]
    (tmp_path / "other.txt").write_text(f"{SYNSETS[0]}\n")
    with pytest.raises(UsageError, match=f"{SYNSETS[1]} .* is not in the list"):
        imagenet(tmp_path / "val", synsets=tmp_path / "other.txt")


def test_all_thousand_folders_need_no_list(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"n{number:08d}").mkdir()
    (tmp_path / "n00000007" / "x.png").write_bytes(jpeg(1))
    (tmp_path / "n00000999" / "x.png").write_bytes(jpeg(2))
    dataset = imagenet(tmp_path)
    assert [(dataset.name(i), dataset.load(i).label) for i in range(2)] == [("n00000007/x.png", 7),
                                                                            ("n00000999/x.png", 999)]


def test_what_is_missing_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"download ILSVRC2012_img_val.tar"):
        imagenet(tmp_path / "absent")
    with pytest.raises(UsageError, match="no picture in"):
        imagenet(tmp_path)
    flat(tmp_path)
    with pytest.raises(UsageError, match=r"no labels for the images.*ILSVRC2012_devkit_t12.tar.gz"):
        imagenet(tmp_path)
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 65\n")
    with pytest.raises(UsageError, match=r"'ILSVRC2012_val_00000002.JPEG' has no label"):
        imagenet(tmp_path)
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG sixty\n")
    with pytest.raises(UsageError, match=r"line 1: .* is not a file and a class index"):
        imagenet(tmp_path)
    (tmp_path / GROUND_TRUTH).write_text("1\n")
    with pytest.raises(UsageError, match=r"meta\.mat' cannot be read"):
        imagenet(tmp_path)
    (tmp_path / "meta.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="is damaged"):
        imagenet(tmp_path)
    (tmp_path / "broken.tar").write_bytes(b"x" * 600)
    with pytest.raises(UsageError, match="not an uncompressed tar archive"):
        imagenet(tmp_path / "broken.tar")


def test_a_broken_image_in_an_archive_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("one.JPEG")
        info.size = 5
        file.addfile(info, io.BytesIO(b"wrong"))
    (tmp_path / "val.txt").write_text("one.JPEG 1\n")
    with pytest.raises(UsageError, match=r"picture 'a\.tar/one\.JPEG' is not a picture"):
        imagenet(tmp_path / "a.tar").load(0)


def test_lists_of_synsets(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("n01440764 tench\n\nn01443537\n")
    assert synset_index(file) == {"n01440764": 0, "n01443537": 1}
    for content, message in (("tench\n", "line 1: 'tench'"), ("n01440764\nn01440764\n", "line 2"), ("\n", "no synset")):
        file.write_text(content)
        with pytest.raises(UsageError, match=message):
            synset_index(file)
    with pytest.raises(UsageError, match="cannot be read"):
        synset_index(tmp_path / "absent")


def test_real_photographs(data_dir: Path) -> None:
    dataset = imagenet(data_dir / "imagenet_dev")
    assert len(dataset) == 120
    assert dataset.load(0).label == 0
