"""Where the boxes of a picture are on the model's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from certframe.errors import UsageError
from certframe.protocols import Sample
from certframe.testing.fixtures import tiny_model
from certframe.torch_model import TorchModel
from certframe.worker import extras_of


def identity(size: tuple[int, int, int], **options: object) -> TorchModel:
    return TorchModel(nn.Flatten(), size, **options)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("crop_pct", "size", "picture"), [
    (1.0, (3, 32, 32), (64, 64)), (0.875, (3, 32, 32), (100, 60)), (0.875, (3, 32, 32), (47, 91)),
    (0.5, (3, 20, 60), (300, 200)), (0.9, (3, 40, 24), (50, 50)), (0.875, (3, 64, 64), (30, 20))])
def test_a_box_lands_where_its_pixels_land(interpolation: str, crop_pct: float, size: tuple[int, int, int],
                                           picture: tuple[int, int]) -> None:
    """A white rectangle on black goes through the model's own preprocessing: half-white edges are the moved box's."""
    model = identity(size, crop_pct=crop_pct, interpolation=interpolation)
    width, height = picture
    box = [round(0.3 * width), round(0.35 * height), round(0.65 * width), round(0.7 * height)]
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1]:box[3], box[0]:box[2]] = 255
    image = Image.fromarray(pixels)
    (x0, y0, x1, y1), = extras_of(model, Sample("x", image, extras={"boxes": [box]}))["boxes"]
    seen = model.preprocess(image)[0]
    # Along the middle row and column of the moved box, the sum of the light is its width and height.
    row, column = seen[int((y0 + y1) / 2)], seen[:, int((x0 + x1) / 2)]
    tolerance = 1.0 if interpolation == "nearest" else 0.35
    assert float(row.sum()) == pytest.approx(x1 - x0, abs=tolerance)
    assert float(column.sum()) == pytest.approx(y1 - y0, abs=tolerance)
    centre = [(float((line * (torch.arange(len(line)) + 0.5)).sum() / line.sum())) for line in (row, column)]
    assert centre == pytest.approx([(x0 + x1) / 2, (y0 + y1) / 2], abs=tolerance)


def test_the_window_of_known_sizes() -> None:
    # 400×200 is resized to 80×40 for a crop of 32 at 0.8, whose corner is at (24, 4): five pixels for each.
    assert identity((3, 32, 32), crop_pct=0.8).window(400, 200) == (120, 20, 280, 180)
    assert identity((3, 32, 32), crop_pct=1.0).window(32, 32) == (0, 0, 32, 32)


def test_boxes_are_cut_off_at_the_edge_and_left_out_beyond_it() -> None:
    model = identity((3, 32, 32), crop_pct=0.8)
    sample = Sample("x", Image.new("RGB", (400, 200)), extras={"boxes": [[0, 0, 400, 200], [0, 0, 100, 200],
                                                                         [130, 30, 135, 40]], "other": 1})
    assert extras_of(model, sample) == {"boxes": [[0, 0, 32, 32], [2, 2, 3, 4]], "other": 1}
    assert sample.extras["boxes"][0] == [0, 0, 400, 200]
    nothing = Sample("x", Image.new("RGB", (400, 200)), extras={"boxes": [[0, 0, 100, 200]]})
    assert extras_of(model, nothing) == {}


def test_boxes_of_tensors_stay_and_models_without_a_window_are_refused() -> None:
    boxes = {"boxes": [[1, 1, 2, 2]]}
    assert extras_of(tiny_model(), Sample("x", torch.zeros(3, 16, 16), extras=boxes)) == boxes
    with pytest.raises(UsageError, match=r"'x' has boxes .* method window\(width, height\)"):
        extras_of(tiny_model(), Sample("x", Image.new("RGB", (20, 20)), extras=boxes))
    assert extras_of(tiny_model(), Sample("x", Image.new("RGB", (20, 20)), extras={"a": 1})) == {"a": 1}
