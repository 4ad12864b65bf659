"""Each check of data sets catches the mistake that it is there for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

from certframe import protocols
from certframe.protocols import Sample
from certframe.testing import run_checks


class Good:
    """Five grey squares."""

    class Options(protocols.Options):
        """None."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options
        self.pictures = [Image.new("RGB", (8, 8), (40 * i,) * 3) for i in range(5)]

    def __len__(self):
        return len(self.pictures)

    def name(self, index):
        return f"{self.pictures[index].getpixel((0, 0))[0]}"

    def load(self, index):
        return Sample(self.name(index), self.pictures[index].copy(), index % 3)


class GoodTensors(Good):
    """The same as tensors."""

    def load(self, index):
        return Sample(self.name(index), torch.full((3, 8, 8), index / 5.0))


@pytest.mark.parametrize("cls", [Good, GoodTensors])
def test_a_sound_data_set_passes(cls):
    report = run_checks("dataset", cls)
    assert report.ok, str(report)
    assert not report.skipped, str(report)


def but(**attributes):
    """A data set like `Good`, but …"""
    return type("But", (Good,), {"__doc__": "But.", **attributes})


def sample(**fields):
    """A data set whose samples have other fields; functions are given the right value."""
    def load(self, index):
        found = Good.load(self, index)
        return replace(found, **{k: v(getattr(found, k)) if callable(v) else v for k, v in fields.items()})
    return but(load=load)


class Empty(Good):
    """No picture."""

    def __init__(self, options=None):
        super().__init__(options)
        self.pictures = []


class Shuffled(Good):
    """In another order every time."""

    def __init__(self, options=None):
        super().__init__(options)
        random.Random(id(self)).shuffle(self.pictures)
        self.pictures.insert(0, Image.new("RGB", (8, 8), (id(self) % 251,) * 3))


class Augmented(Good):
    """Flips a coin."""

    def load(self, index):
        found = super().load(index)
        found.image.putpixel((0, 0), (random.randrange(256), 0, 0))
        return found


class QuietlyAugmented(Good):
    """Flips a coin of its own."""

    coin = random.Random(0)

    def load(self, index):
        found = super().load(index)
        found.image.putpixel((0, 0), (self.coin.randrange(256), 0, 0))
        return found


class Cached(Good):
    """Hands out the pictures that it holds."""

    def load(self, index):
        return Sample(self.name(index), self.pictures[index])


class CachedTensors(Good):
    """Hands out the tensors that it holds."""

    def __init__(self, options=None):
        super().__init__(options)
        self.tensors = [torch.full((3, 8, 8), i / 5 + 0.1) for i in range(5)]

    def load(self, index):
        return Sample(self.name(index), self.tensors[index])


BROKEN = [
    ("length", Empty, "there is no image"),
    ("names", but(name=lambda self, index: "picture"), "several images are called 'picture'"),
    ("names", but(name=lambda self, index: ""), "'' is no name"),
    ("names", but(name=lambda self, index: index), "0 is no name"),
    ("samples", but(load=lambda self, index: self.pictures[index]), "not certframe.Sample"),
    ("samples", sample(name="other"), "is called 'other'"),
    ("samples", sample(image=lambda image: image.tobytes()), "neither a PIL image nor a tensor"),
    ("samples", sample(image=lambda image: torch.full((3, 8, 8), 2.0)), "not in [0, 1]"),
    ("samples", sample(image=lambda image: torch.zeros(8, 8)), "not float32 (C,H,W)"),
    ("samples", sample(image=lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8)), "not float32 (C,H,W)"),
    ("samples", sample(label="cat"), "'cat', neither a class index nor None"),
    ("samples", sample(label=-1), "-1, neither"),
    ("samples", sample(extras=None), "not a mapping"),
    ("repeatable", Augmented, "python's global random state"),
    ("repeatable", QuietlyAugmented, "another order"),
    ("repeatable", Shuffled, "another instance"),
    ("copies", Cached, "comes back changed"),
    ("copies", CachedTensors, "comes back changed"),
    ("out-of-range", but(name=lambda self, index: f"{index}"), "name(5) of 5 images returns"),
    ("out-of-range", but(load=lambda self, index: Good.load(self, index % 5)), "load(5) of 5 images returns"),
]


@pytest.mark.parametrize(("name", "cls", "said"), BROKEN, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BROKEN)])
def test_a_mistake_is_caught(ask, name, cls, said):
    found = ask("dataset", name, cls)
    assert found.outcome == "failed", found
    assert said in found.message


def test_every_check_has_a_mistake_that_it_catches(own_checks):
    assert own_checks("dataset") == {name for name, _, _ in BROKEN}
