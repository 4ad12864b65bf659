"""The data set `digits`."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from certframe.datasets.digits import HELD_OUT, IMAGES, DigitImages
from certframe.protocols import Dataset


def test_is_a_data_set_of_twenty_digits() -> None:
    dataset = DigitImages()
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 20
    assert [dataset.name(i) for i in (0, 7, 19)] == ["digit-000", "digit-007", "digit-019"]
    assert IMAGES.stat().st_size < 30_000


def test_digits_are_tensors_in_the_unit_interval_with_labels() -> None:
    dataset = DigitImages(DigitImages.Options(count=HELD_OUT))
    for index in range(HELD_OUT):
        sample = dataset.load(index)
        assert isinstance(sample.image, torch.Tensor)
        assert (sample.image.shape, sample.image.dtype) == ((1, 8, 8), torch.float32)
        assert 0 <= float(sample.image.min()) < 0.5 < float(sample.image.max()) <= 1
        assert sample.name == dataset.name(index)
    counts = Counter(dataset.load(index).label for index in range(HELD_OUT))
    assert set(counts) == set(range(10))
    assert min(counts.values()) > 20


def test_a_longer_selection_begins_with_a_shorter_one() -> None:
    few, many = DigitImages(DigitImages.Options(count=3)), DigitImages(DigitImages.Options(count=30))
    for index in range(3):
        assert torch.equal(few.load(index).image, many.load(index).image)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1, HELD_OUT + 1])
def test_an_impossible_count_is_refused(count: int) -> None:
    with pytest.raises(ValidationError, match="count"):
        DigitImages.Options(count=count)


def test_an_index_outside_is_an_error() -> None:
    with pytest.raises(IndexError):
        DigitImages().load(20)
