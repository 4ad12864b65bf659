"""What the metrics share: maps on the image's pixels, images with pixels replaced, the target's score, chance.

Nothing here draws from global state: every draw is keyed on a seed, the image's content and a purpose, as the noise is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch.nn import functional

from certframe.errors import UsageError
from certframe.noise import CopyRng, image_hash

if TYPE_CHECKING:
    from torch import Tensor

    from certframe.protocols import Model


def _number_or_name(value: object) -> object:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return value


Baseline = Annotated[
    Annotated[float, Field(ge=0.0, le=1.0)] | Literal["uniform"], BeforeValidator(_number_or_name),
    Field(description="What replaces a pixel: 'uniform', a draw from U(0, 1) for every pixel and channel, or a number "
                      "in [0, 1] (0 is black).")]
Score = Literal["softmax", "logit"]
Batch = Annotated[int, Field(ge=1, description="Largest number of images in one forward pass; changes no result.")]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Seed of the draws; they depend on it and on the image.")]


def map_on_pixels(attribution: Tensor, image: Tensor) -> Tensor:
    """A map (h,w) at the size of the image (C,H,W), (H,W) float32: enlarged bilinearly, as the kernel does.

    Raises:
        UsageError: the map has more rows or columns than the image: it is one with values for every channel.
    """
    size = _size(attribution.shape, image)
    if tuple(attribution.shape) == size:
        return attribution.float()
    single = attribution.float()[None, None]
    return functional.interpolate(single, size=size, mode="bilinear", align_corners=False)[0, 0]


def labels_on_pixels(labels: np.ndarray, image: Tensor) -> np.ndarray:
    """Labels (L,h,w) at the size of the image, (L,H,W): every pixel has the label of the cell its centre lies in.

    Raises:
        UsageError: as for `map_on_pixels`.
    """
    height, width = labels.shape[1:]
    size = _size((height, width), image)
    rows, columns = (_cell_of(side, cells) for side, cells in zip(size, (height, width), strict=True))
    return labels[:, rows[:, None], columns[None, :]]


def cells_on_pixels(cells: int, image: Tensor) -> np.ndarray:
    """(H,W) int64: the number of the cell, row by row, that each pixel's centre lies in, on a grid of cells × cells.

    Raises:
        UsageError: the image has fewer pixels than that along a side.
    """
    if cells > min(image.shape[-2:]):
        raise UsageError(f"a grid of {cells}×{cells} cells has no place on an image of {image.shape[-2]}×"
                         f"{image.shape[-1]} pixels: take fewer cells")
    rows, columns = (_cell_of(side, cells) for side in image.shape[-2:])
    grid: np.ndarray = rows[:, None] * cells + columns[None, :]
    return grid


def _cell_of(side: int, cells: int) -> np.ndarray:
    found: np.ndarray = (2 * np.arange(side) + 1) * cells // (2 * side)
    return found


def _size(shape: Sequence[int], image: Tensor) -> tuple[int, int]:
    height, width = image.shape[-2:]
    if shape[0] > height or shape[1] > width:
        raise UsageError(f"a map of {shape[0]}×{shape[1]} has no place on an image of {height}×{width}: metrics of "
                         "pixels need one value for each, so sum over the channels (channels=sum)")
    return height, width


class Draws:
    """Random numbers for a metric on an image: they depend on seed, image and purpose, and on nothing else."""

    def __init__(self, seed: int, image: Tensor) -> None:
        self._seed, self._key = seed, image_hash(image)

    def stream(self, purpose: str) -> CopyRng:
        """Draws of one row, on the CPU; the same purpose gives the same stream from its beginning."""
        return CopyRng(self._seed, self._key, f"metric {purpose}", [-1])

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """float32 draws from [0, 1): the first of the purpose's stream."""
        return self.stream(purpose).uniform(*shape)[0]


def baseline_image(image: Tensor, baseline: float | str, draws: Draws) -> Tensor:
    """(C,H,W): what pixels are replaced by."""
    if isinstance(baseline, str):
        return draws.uniform("baseline", *image.shape)
    return torch.full_like(image, baseline)


def positions(scores: Tensor, draws: Draws) -> Tensor:
    """(H,W) → (H,W) int64: 0 for the largest score, 1 for the next…; equal scores are in random order."""
    flat = scores.flatten().double().numpy()
    order = np.lexsort((draws.uniform("ties", flat.size).numpy(), -flat))
    result = np.empty(flat.size, dtype=np.int64)
    result[order] = np.arange(flat.size)
    return torch.from_numpy(result).view(scores.shape)


@torch.no_grad()
def scores(model: Model, batches: Iterable[Tensor], target: int, score: Score = "softmax") -> np.ndarray:
    """The target's score of every image, float64; batches are (B,C,H,W), on the CPU or the model's device.

    Raises:
        UsageError: one is NaN or infinite.
    """
    device = device_of(model)
    found = []
    for images in batches:
        logits = model.module(images.to(device)).double()
        found.append((logits.softmax(dim=1) if score == "softmax" else logits)[:, target])
    values: np.ndarray = torch.cat(found).cpu().numpy()
    if not np.isfinite(values).all():
        raise UsageError(f"the model returns {(~np.isfinite(values)).sum()} NaN or infinite scores for images with "
                         "pixels replaced: give another baseline, or check the model's weights")
    return values


def device_of(model: Model) -> torch.device:
    """Where the model's weights are; the CPU when it has none."""
    tensors = (*model.module.parameters(), *model.module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def replaced(image: Tensor, replacement: Tensor, masks: Tensor, batch: int) -> Iterator[Tensor]:
    """Batches of the image with the pixels of the masks (M,H,W) bool taken from the replacement, (B,C,H,W) each."""
    for start in range(0, len(masks), batch):
        yield torch.where(masks[start:start + batch, None], replacement, image)
