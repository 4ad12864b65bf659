"""The model `digits` reads digits it has not seen, also noisy ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from certframe.datasets.digits import HELD_OUT, DigitImages
from certframe.models.digits import WEIGHTS, Digits
from certframe.torch_model import check

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_digits.py"


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor]:
    dataset = DigitImages(DigitImages.Options(count=HELD_OUT))
    samples = [dataset.load(i) for i in range(len(dataset))]
    return torch.stack([s.image for s in samples]), torch.tensor([s.label for s in samples])  # type: ignore[misc]


def test_the_weights_are_small_and_the_model_is_sound() -> None:
    model = Digits()
    check(model)
    assert WEIGHTS.stat().st_size < 60_000
    assert model.classes == tuple("0123456789")
    assert (model.input_size, model.at("final").body(torch.zeros(2, 1, 8, 8))[0].shape) == ((1, 8, 8), (2, 32, 4, 4))


@pytest.mark.parametrize(("sigma", "least"), [(0.0, 0.975), (0.15, 0.96), (0.25, 0.91)])
def test_it_reads_digits_it_has_not_seen(held_out: tuple[Tensor, Tensor], sigma: float, least: float) -> None:
    images, labels = held_out
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    answers = Digits().module(images + sigma * noise).argmax(1)
    assert float((answers == labels).float().mean()) > least


def test_it_reads_pictures(held_out: tuple[Tensor, Tensor]) -> None:
    images, labels = held_out
    model = Digits()
    pixels = (images[:40, 0] * 255).round().to(torch.uint8).numpy()
    pictures = [Image.fromarray(array) for array in pixels]
    enlarged = [picture.resize((64, 64)).convert("RGB") for picture in pictures]
    for given, tolerance in ((pictures, 1 / 255), (enlarged, 0.1)):
        found = torch.stack([model.preprocess(picture) for picture in given])
        assert float((found - images[:40]).abs().mean()) < tolerance
        assert float((model.module(found).argmax(1) == labels[:40]).float().mean()) > 0.9


def test_the_held_out_digits_are_those_the_script_sets_aside() -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    seen, _, unseen, labels = script.split()
    dataset = DigitImages(DigitImages.Options(count=HELD_OUT))
    stored = torch.stack([dataset.load(i).image for i in range(HELD_OUT)])[:, 0]  # type: ignore[misc]
    assert torch.equal(stored, unseen.float() / 16)
    assert [dataset.load(i).label for i in range(HELD_OUT)] == labels.tolist()
    rows = {tuple(row) for row in np.asarray(seen).reshape(len(seen), -1)}
    assert not any(tuple(row) in rows for row in np.asarray(unseen).reshape(HELD_OUT, -1))
