"""An attacked explanation as a picture: image and map, before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

HEIGHT, GAP, LINE = 224, 8, 16


def before_and_after(path: Path, images: tuple[Tensor, Tensor], maps: tuple[Tensor, Tensor], k: float,
                     caption: str) -> None:
    """Write a PNG: image, map, attacked image, map of it, and its top K with those that have stayed.

    Args:
        path: the file.
        images: before and after, (C,H,W) in [0, 1].
        maps: their importance, (h,w).
        k: percent of the pixels in the top.
        caption: a line below.
    """
    (image, moved), (before, after) = images, maps
    panels = [("image", _pixels(image)), ("map", _heat(before)), ("attacked image", _pixels(moved)),
              ("map", _heat(after)), (f"top {k:g} %: blue stays, red is lost", _kept(before, after, k))]
    sized = [(name, picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT),
                                   Image.Resampling.NEAREST)) for name, picture in panels]
    width = sum(picture.width for _, picture in sized) + GAP * (len(sized) + 1)
    sheet = Image.new("RGB", (width, HEIGHT + 2 * LINE + 3 * GAP), "white")
    draw, left = ImageDraw.Draw(sheet), GAP
    for name, picture in sized:
        sheet.paste(picture, (left, GAP + LINE))
        draw.text((left, GAP), name, fill="black")
        left += picture.width + GAP
    draw.text((GAP, HEIGHT + LINE + 2 * GAP), caption, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _pixels(image: Tensor) -> Image.Image:
    array = (image.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8)
    if array.shape[0] in (1, 3):
        return Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)).convert("RGB")
    return Image.fromarray(array.mean(axis=0).astype(np.uint8)).convert("RGB")


def _heat(scores: Tensor) -> Image.Image:
    """White for 0 and less, dark red for the hundredth of largest scores."""
    values = scores.float().cpu().numpy()
    scale = max(float(np.quantile(values, 0.99)), 1e-30)
    share = np.clip(values / scale, 0, 1)[..., None]
    colour = 255 - share * (255 - np.array([125, 0, 20]))
    return Image.fromarray(colour.round().astype(np.uint8))


def _kept(before: Tensor, after: Tensor, k: float) -> Image.Image:
    from certframe_boundary.explanation_attack import top
    first, second = (top(scores.reshape(1, -1), k)[0].view(scores.shape).cpu().numpy() for scores in (before, after))
    colour = np.full((*first.shape, 3), 255, np.uint8)
    colour[second] = (225, 225, 220)
    colour[first] = (200, 60, 40)
    colour[first & second] = (0, 90, 170)
    return Image.fromarray(colour)
