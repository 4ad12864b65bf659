"""What is demanded of a data set. At most three images are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from certframe.protocols import Sample
from certframe.testing.kit import Subject, check, require
from certframe.testing.unchanged import unchanged_process


def _indices(dataset: Any) -> list[int]:
    size = len(dataset)
    return sorted({0, size // 2, size - 1}) if size else []


def _content(sample: Sample) -> Any:
    image = sample.image
    pixels = (image.mode, image.size, image.tobytes()) if isinstance(image, Image) else image.numpy().tobytes()
    return sample.name, pixels, sample.label


@check("dataset")
def length(subject: Subject) -> None:
    """``len`` is a number of images, at least one with the options of the check."""
    size = len(subject.instance)
    require(size > 0, "there is no image: give the class a classmethod conformance_options(directory) that has some")


@check("dataset")
def names(subject: Subject) -> None:
    """Every image has a name that no other has: results are stored and resumed under it."""
    dataset = subject.instance
    found = [dataset.name(i) for i in range(min(len(dataset), 10_000))]
    odd = [name for name in found if not isinstance(name, str) or not name.strip()]
    require(not odd, f"{odd[0]!r} is no name" if odd else "")
    twice = sorted({name for name in found if found.count(name) > 1}) if len(set(found)) < len(found) else []
    require(not twice, f"several images are called {', '.join(map(repr, twice[:3]))}")


@check("dataset")
def samples(subject: Subject) -> None:
    """`load` gives a `Sample` with the image's name, a picture or a tensor (C,H,W) in [0, 1], and a label or None."""
    dataset = subject.instance
    for index in _indices(dataset):
        found = dataset.load(index)
        require(isinstance(found, Sample), f"load({index}) returns {type(found).__name__}, not certframe.Sample")
        require(found.name == dataset.name(index),
                f"load({index}) is called {found.name!r}, name({index}) is {dataset.name(index)!r}")
        require(isinstance(found.image, Image | Tensor),
                f"the image of load({index}) is a {type(found.image).__name__}, neither a PIL image nor a tensor")
        if isinstance(found.image, Tensor):
            _require_pixels(found.image, index)
        label = found.label
        good = label is None or (isinstance(label, int) and not isinstance(label, bool) and label >= 0)
        require(good, f"the label of load({index}) is {label!r}, neither a class index nor None")
        require(isinstance(found.extras, Mapping), f"the extras of load({index}) are not a mapping")


def _require_pixels(image: Tensor, index: int) -> None:
    require(image.dim() == 3 and image.dtype == torch.float32 and image.device.type == "cpu",
            f"the tensor of load({index}) is {image.dtype} {tuple(image.shape)}, not float32 (C,H,W) on the CPU")
    low, high = float(image.min()), float(image.max())
    inside = low >= 0 and high <= 1
    require(inside, f"the tensor of load({index}) has values from {low:.3g} to {high:.3g}, not in [0, 1]")


@check("dataset")
def repeatable(subject: Subject) -> None:
    """The same index gives the same image, in any order, from any instance: runs are resumed, and shared out."""
    dataset = subject.instance
    indices = _indices(dataset)
    with unchanged_process("load()"):
        first = {i: _content(dataset.load(i)) for i in indices}
    again = {i: _content(dataset.load(i)) for i in reversed(indices)}
    require(first == again, "loading an image again, in another order, gives another image")
    other = subject.build()
    require(len(other) == len(dataset) and {i: _content(other.load(i)) for i in indices} == first,
            "another instance has other images")


@check("dataset")
def copies(subject: Subject) -> None:
    """Changing a loaded image does not change the data set: what is handed out is the caller's."""
    dataset = subject.instance
    before = _content(dataset.load(0))
    image = dataset.load(0).image
    if isinstance(image, Image):
        image.paste(image.point(lambda value: 255 - value))
    else:
        image.mul_(0.5)
    require(_content(dataset.load(0)) == before, "an image that the caller changed comes back changed")


@check("dataset")
def out_of_range(subject: Subject) -> None:
    """An index past the end raises IndexError, in `load` and `name`, as for every sequence."""
    dataset = subject.instance
    for method in ("name", "load"):
        try:
            found = getattr(dataset, method)(len(dataset))
        except IndexError:
            continue
        require(False, f"{method}({len(dataset)}) of {len(dataset)} images returns {found!r}")
