"""Images with labels, to train and to test with, from whatever a data set gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import certframe
from certframe_boundary.training import Images

HELD_OUT = 0.2
"""Share of the images that are tested with, where a data set has no test split."""


def load(reference: str, *, limit: int | None, size: int, seed: int) -> tuple[Images, Images]:
    """Images to train with, and images to test with.

    A data set with an option ``split`` gives both; of another, every fifth image of a random order is held out.

    Args:
        reference: a data set, as in ``certframe run --data``.
        limit: train on the first so many images only, of the random order where one is made.
        size: width and height that pictures are resized to.
        seed: of the random order.

    Raises:
        UsageError: there is no such data set, images without labels or of different sizes, or fewer than two classes.
    """
    if limit is not None and limit < 2:
        raise certframe.UsageError(f"--limit {limit}: train on 2 images at least")
    dataset = certframe.build("dataset", reference)
    if "split" in type(dataset).Options.model_fields:
        train = _read(certframe.build("dataset", reference, ["dataset.split=train"]), limit, size)
        test = _read(certframe.build("dataset", reference, ["dataset.split=test"]), None, size)
    else:
        everything = _read(dataset, None, size)
        order = torch.randperm(len(everything[0]), generator=torch.Generator().manual_seed(seed))
        held = max(1, round(HELD_OUT * len(order)))
        parts = order[held:][:limit], order[:held]
        train, test = ((everything[0][part], [everything[1][i] for i in part.tolist()]) for part in parts)
    names = sorted({*train[1], *test[1]})
    if all(name.isdigit() for name in names):
        names.sort(key=int)
    if len(names) < 2:
        raise certframe.UsageError(f"data set '{reference}' has only the class '{names[0]}': two classes are needed to "
                                   "train a classifier")
    place = {name: i for i, name in enumerate(names)}
    first, second = (Images(x, torch.tensor([place[name] for name in labels]), names) for x, labels in (train, test))
    return first, second


def _read(dataset: Any, limit: int | None, size: int) -> tuple[Tensor, Sequence[str]]:
    """(N,C,H,W) float32 in [0, 1] and the names of the classes."""
    images, labels = [], []
    for index in range(min(len(dataset), limit or len(dataset))):
        sample = dataset.load(index)
        label = sample.extras.get("class_name", sample.label)
        if label is None:
            raise certframe.UsageError(f"image '{sample.name}' has no label: give a folder of subfolders, one for each "
                                       "class, or a data set with labels")
        images.append(sample.image if isinstance(sample.image, Tensor) else _pixels(sample.image, size))
        labels.append(str(label))
    if len(images) < 2:
        raise certframe.UsageError(f"there are only {len(images)} images: two at least are needed, and more to learn "
                                   "from")
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise certframe.UsageError(f"the images have different sizes ({', '.join(map(str, sorted(shapes)[:2]))}): give "
                                   "pictures, which are resized")
    return torch.stack(images).float(), labels


def _pixels(picture: Any, size: int) -> Tensor:
    """A picture as (3,size,size) in [0, 1]."""
    pixels = np.asarray(picture.convert("RGB").resize((size, size)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
