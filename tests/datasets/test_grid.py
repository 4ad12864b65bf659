"""Grids: what may be in one, that they are drawn once, and that every cell is explained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from certframe.datasets.digits import DigitImages
from certframe.datasets.grid import MANIFEST, Grid, Picture, confident, draw
from certframe.errors import UsageError
from certframe.models.digits import Digits

POOL = [Picture(i, f"p{i}", i % 5, f"c{i % 5}", 1.0) for i in range(15)]


def grids(store: Path, **options: object) -> Grid:
    given = {"source": "digits", "models": ["digits"], "size": 16, "count": 3, **options}
    return Grid(Grid.Options(store=store, **given))


def test_pictures_are_those_that_every_model_is_sure_of() -> None:
    source, model = DigitImages(), Digits()
    scores = torch.stack([model.module(source.load(i).image[None])[0].softmax(0) for i in range(len(source))])
    for least in (0.5, 0.9, 0.99, 0.9999):
        expected = [i for i in range(len(source)) if float(scores[i, source.load(i).label]) >= least]
        assert [p.index for p in confident(source, [model], least, batch=7)] == expected
    backwards = Digits()
    backwards.module.register_forward_hook(lambda module, inputs, logits: -logits)
    assert confident(source, [model, backwards], 0.9) == []


def test_a_grid_has_different_classes_and_a_picture_comes_again_when_the_others_are_used() -> None:
    found = draw(POOL, 4, 12, seed=0)
    for grid in found:
        assert len({p.label for p in grid}) == 4
    often = np.bincount([p.index for grid in found for p in grid], minlength=15)
    assert often.sum() == 48
    assert often.min() >= 2
    assert often.max() <= 4
    assert draw(POOL, 4, 12, seed=0) == found
    assert draw(POOL, 4, 12, seed=1) != found
    assert draw(POOL, 4, 5, seed=0) == found[:5]


def test_cells_hold_their_pictures_and_are_items_of_their_own(tmp_path: Path) -> None:
    dataset, source = grids(tmp_path / "g"), DigitImages()
    assert len(dataset) == 12
    assert [dataset.name(i) for i in (0, 1, 11)] == ["grid-0000-cell-0", "grid-0000-cell-1", "grid-0002-cell-3"]
    by_name = {source.name(i): source.load(i) for i in range(len(source))}
    for index in range(len(dataset)):
        sample = dataset.load(index)
        grid = sample.extras["grid"]
        picture = by_name[grid["source"]]
        assert (grid["n"], grid["cell"], sample.label) == (2, index % 4, picture.label)
        row, column = divmod(grid["cell"], 2)
        cell = sample.image[:, 8 * row:8 * row + 8, 8 * column:8 * column + 8]
        assert torch.equal((cell * 255).round(), (picture.image * 255).round())
        assert torch.equal(sample.image, dataset.load(index - index % 4).image)  # the whole grid, whichever the cell
    assert sorted({dataset.load(i).label for i in range(4)}) == sorted(dataset.load(i).label for i in range(4))
    with pytest.raises(IndexError):
        dataset.load(12)


def test_some_cells_of_every_grid_are_explained_when_asked_for(tmp_path: Path) -> None:
    every, few, one = (grids(tmp_path / "g", count=12, cells=cells) for cells in (None, 2, 1))
    assert (len(every), len(few), len(one)) == (48, 24, 12)
    names = [every.name(i) for i in range(48)]
    for dataset, cells in ((few, 2), (one, 1)):
        drawn = [dataset.name(i) for i in range(len(dataset))]
        assert [name[:9] for name in drawn] == [f"grid-{i // cells:04d}" for i in range(len(dataset))]
        assert drawn == sorted(set(drawn))
        for i in (0, 7, len(dataset) - 1):
            whole = every.load(names.index(drawn[i]))
            assert (dataset.load(i).label, dataset.load(i).extras) == (whole.label, whole.extras)
    assert len({one.name(i)[-1] for i in range(12)}) > 1, "the same cell in every grid"
    with pytest.raises(UsageError, match="cells=5: a grid of n=2 has 4"):
        grids(tmp_path / "g", cells=5)


def test_pictures_are_cropped_to_a_square(tmp_path: Path) -> None:
    for label in range(2):
        (tmp_path / "pictures" / f"{label}").mkdir(parents=True)
        picture = Image.effect_noise((60, 40), 50).convert("RGB")
        picture.save(tmp_path / "pictures" / f"{label}" / "x.png")
    dataset = grids(tmp_path / "g", source=str(tmp_path / "pictures"), n=1, count=1, confidence=0.0)
    sample = dataset.load(0)
    with Image.open(tmp_path / "pictures" / sample.extras["grid"]["source"]) as picture:
        expected = np.asarray(ImageOps.fit(picture, (16, 16), Image.Resampling.BICUBIC), np.float32)
    assert sample.image.shape == (3, 16, 16)
    assert np.array_equal((sample.image * 255).round().permute(1, 2, 0).numpy(), expected)


def test_grids_are_made_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = grids(tmp_path / "g")
    files = {p.name: p.read_bytes() for p in (tmp_path / "g").iterdir()}
    assert set(files) == {MANIFEST, "grid-0000.png", "grid-0001.png", "grid-0002.png"}
    monkeypatch.setattr("certframe.datasets.grid.make_grids", None)  # would fail
    again = Grid(Grid.Options(store=tmp_path / "g", size=16, count=3))
    assert [again.name(i) for i in range(12)] == [first.name(i) for i in range(12)]
    assert torch.equal(again.load(5).image, first.load(5).image)
    assert {p.name: p.read_bytes() for p in (tmp_path / "g").iterdir()} == files
    for option, value, made in (("seed", 1, 0), ("count", 2, 3), ("confidence", 0.5, 0.99), ("n", 1, 2),
                                ("source", "photos", "digits")):
        with pytest.raises(UsageError, match=f"made with {option}={made}, not {value}"):
            grids(tmp_path / "g", **{option: value})


def test_what_is_needed_and_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no grids in .* yet: name .* dataset\.source=.*dataset\.models"):
        Grid(Grid.Options(store=tmp_path / "g"))
    with pytest.raises(UsageError, match="size=17 is not a multiple of n=2"):
        grids(tmp_path / "g", size=17)
    with pytest.raises(UsageError, match=r"needs pictures of 16 classes, and .* pictures of .* classes of 'digits'"):
        grids(tmp_path / "g", n=4)
    with pytest.raises(UsageError, match="has no label"):
        grids(tmp_path / "g", source="photos")
    assert not (tmp_path / "g").exists()
    grids(tmp_path / "g")
    (tmp_path / "g" / "grid-0001.png").unlink()
    dataset = grids(tmp_path / "g")
    dataset.load(0)
    with pytest.raises(UsageError, match=r"grid-0001\.png' cannot be read"):
        dataset.load(4)
    (tmp_path / "g" / MANIFEST).write_text(json.dumps({"format": 1}))
    with pytest.raises(UsageError, match=r"grids\.json' is damaged"):
        grids(tmp_path / "g")
