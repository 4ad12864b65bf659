"""RISE against a slow loop, mask by mask, and the promises that its options make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from certframe_rise.rise import Rise, _Masks, _windows
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import certframe
from certframe.testing import check_plugin, fixtures


def explain(model: certframe.Model, inputs: Tensor, *, copies: range | None = None, targets: Tensor | None = None,
            **options: Any) -> Tensor:
    targets = torch.arange(len(inputs)) % len(model.classes) if targets is None else targets
    rng = fixtures.rng(range(len(inputs)) if copies is None else copies)
    result = Rise(Rise.Options(**options)).attribute(model, inputs, targets, rng=rng)
    assert result.logits is None
    return result.maps


def mask_by_mask(model: certframe.Model, inputs: Tensor, *, masks: int, cells: int, p: float, fresh: bool,
                 layer: str = "input") -> Tensor:
    """The definition: enlarge one grid, cut one window out, run the model on one image, add in float64."""
    rng = fixtures.rng(range(len(inputs)))
    stream = rng if fresh else rng.shared
    split = model.at(layer)
    activation, *around = split.body(inputs)
    height, width = split.as_map(activation).shape[2:]
    high, wide = math.ceil(height / cells), math.ceil(width / cells)
    grids = stream.uniform(masks, cells, cells) < p
    down, right = stream.integers(high, masks), stream.integers(wide, masks)
    maps = torch.zeros(len(inputs), height, width, dtype=torch.float64)
    for b, i in itertools.product(range(len(inputs)), range(masks)):
        row = b if fresh else 0
        size = ((cells + 1) * high, (cells + 1) * wide)
        large = functional.interpolate(grids[row, i][None, None].float(), size=size, mode="bilinear")[0, 0]
        top, left = int(down[row, i]), int(right[row, i])
        mask = large[top:top + height, left:left + width]
        masked = activation[b:b + 1].clone()
        split.as_map(masked)[:] *= mask
        logits = split.head(masked, *(value[b:b + 1] for value in around))
        score = logits.double().softmax(1)[0, b % len(model.classes)]
        maps[b] += score * mask / (masks * p)
    return maps.float()


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("size", [(3, 16, 16), (1, 13, 22)])
def test_it_is_the_weighted_mean_of_masks(fresh: bool, size: tuple[int, int, int]) -> None:
    model = fixtures.tiny_model(size)
    inputs = fixtures.noisy_images(model, 4)
    expected = mask_by_mask(model, inputs, masks=7, cells=4, p=0.4, fresh=fresh)
    assert expected.std() > 0.01
    for batch in (1, 3, 7, 15, 100):
        found = explain(model, inputs, masks=7, cells=4, p=0.4, fresh=fresh, batch=batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    """Patches and a class token that are mixed once, with a way around; the class token is read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(17, 17)
        self.read = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        x = x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.read(x[:, 0])
        return 5 * logits


@pytest.mark.parametrize(("model", "layer", "first"), [
    (fixtures.tiny_model(), "final", "conv1"), (fixtures.tiny_model(), "relu1", "conv1"),
    (certframe.TorchModel(Tokens(), (3, 16, 16)), "norm", "network.patches")])
def test_at_a_feature_map_masks_multiply_its_channels(model: certframe.Model, layer: str, first: str) -> None:
    inputs, seen = fixtures.noisy_images(model, 3), list[int]()
    expected = mask_by_mask(model, inputs, masks=7, cells=3, p=0.4, fresh=True, layer=layer)
    assert expected.std() > 0.01
    layer_before = model.module.get_submodule(first)
    handle = layer_before.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    for batch in (1, 5, 100):
        found = explain(model, inputs, masks=7, cells=3, p=0.4, layer=layer, batch=batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert seen == [3] * 3, "the body has to run once"


@pytest.mark.parametrize("fresh", [True, False])
def test_copies_do_not_depend_on_their_batch(fresh: bool) -> None:
    model = fixtures.tiny_model()
    inputs = fixtures.noisy_images(model, 6)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    options: dict[str, Any] = {"masks": 9, "batch": 20, "fresh": fresh, "p": 0.4}
    together = explain(model, inputs, targets=targets, copies=range(6), **options)
    for split in ((1, 5), (4, 2)):
        starts = (0, split[0])
        parts = [explain(model, inputs[a:a + n], targets=targets[a:a + n], copies=range(a, a + n), **options)
                 for a, n in zip(starts, split, strict=True)]
        torch.testing.assert_close(torch.cat(parts), together, rtol=1e-4, atol=1e-5)


def test_fresh_masks_differ_between_copies_and_fixed_ones_do_not() -> None:
    model = fixtures.tiny_model()
    same = fixtures.noisy_images(model, 1).expand(3, -1, -1, -1)
    targets = torch.zeros(3, dtype=torch.int64)
    fresh = explain(model, same, targets=targets, masks=20, p=0.4)
    fixed = explain(model, same, targets=targets, masks=20, p=0.4, fresh=False)
    assert (fresh[0] - fresh[1]).abs().max() > 0.01
    assert (fresh[1] - fresh[2]).abs().max() > 0.01
    torch.testing.assert_close(fixed[0], fixed[1], rtol=1e-4, atol=1e-5)
    another_copy = explain(model, same[:1], targets=targets[:1], copies=range(70, 71), masks=20, p=0.4, fresh=False)
    torch.testing.assert_close(fixed[:1], another_copy, rtol=1e-4, atol=1e-5)


class Recorder:
    """A model that notes the size of every pass; it may have one class, whose probability is then always 1."""

    def __init__(self, model: certframe.Model) -> None:
        self.input_size, self.classes = model.input_size, model.classes
        self.passes: list[int] = []
        self.module = nn.Sequential(model.module)
        self.module.register_forward_pre_hook(lambda _module, given: self.passes.append(len(given[0])))

    preprocess = None

    def at(self, layer: str) -> certframe.Split:
        return certframe.Split(lambda x: (x,), self.module, lambda x: x)


@pytest.mark.parametrize(("masks", "batch", "copies", "passes"), [
    (10, 4, 2, [3, 3, 4] * 2), (10, 10, 3, [10] * 3), (10, 29, 3, [10, 20]), (10, 30, 3, [30]), (1, 4, 5, [2, 3]),
    (1, 1, 2, [1, 1]), (5, 1000, 2, [10])])
def test_no_pass_is_larger_than_asked_for(masks: int, batch: int, copies: int, passes: list[int]) -> None:
    recorder = Recorder(fixtures.tiny_model())
    explain(recorder, fixtures.noisy_images(recorder, copies), masks=masks, batch=batch)
    assert recorder.passes == passes


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation outside the model makes, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("fresh", [True, False])
def test_memory_is_bounded_by_the_batch(fresh: bool) -> None:
    model = fixtures.tiny_model((3, 32, 32))
    inputs = fixtures.noisy_images(model, 2)
    sizes = []
    for masks in (32, 96):
        with Largest() as largest:
            explain(model, inputs, masks=masks, batch=16, fresh=fresh)
        sizes.append(largest.elements)
    # The tiny model's first layer makes 6 channels of the 3 of the masked images.
    assert sizes[0] == sizes[1] == 16 * 6 * 32 * 32


@pytest.mark.parametrize(("cells", "height", "width"), [(6, 24, 24), (3, 10, 17), (1, 5, 5), (7, 5, 9)])
def test_masks_cover_every_pixel_equally(cells: int, height: int, width: int) -> None:
    options = Rise.Options(masks=4000, cells=cells, p=0.3)
    masks = _Masks(options, height, width, fixtures.rng([0]))(slice(0, 1), slice(0, 4000))
    assert masks.shape == (1, 4000, height, width)
    assert masks.min() >= 0
    assert masks.max() <= 1
    deviation = (masks.mean(dim=(0, 1)) - 0.3).abs().max()
    assert deviation < 5 * math.sqrt(0.3 * 0.7 / 4000)


def test_what_cells_give_to_a_pixel_adds_up_to_one() -> None:
    windows = _windows(6, 224, torch.device("cpu"))
    assert windows.shape == (38, 224, 6)
    torch.testing.assert_close(windows.sum(dim=2), torch.ones(38, 224))
    assert (windows.amax(dim=1) > 0).sum(dim=1).min() >= 5


def test_a_certain_model_gives_a_flat_map() -> None:
    model = fixtures.tiny_model(classes=1)
    flat = explain(model, fixtures.noisy_images(model, 1), masks=4000, p=0.5, batch=500)
    assert (flat - 1).abs().max() < 0.1


def test_it_finds_the_pixels_that_matter() -> None:
    model = fixtures.tiny_model((1, 24, 24), classes=2)
    model.module = Corner()
    maps = explain(model, torch.ones(2, 1, 24, 24), targets=torch.tensor([1, 1]), masks=400, p=0.5, cells=4)
    corner, rest = maps[:, :8, :8].mean(), maps[:, 12:].mean()
    assert corner > 1.1 * rest


class Corner(nn.Module):
    """Sees the upper left corner only."""

    def forward(self, x: Tensor) -> Tensor:
        seen = x[:, :, :8, :8].mean(dim=(1, 2, 3))
        return torch.stack([0 * seen, 8 * seen - 4], dim=1)


def test_channels_last_inputs_stay_channels_last() -> None:
    seen = []
    recorder = Recorder(fixtures.tiny_model())
    recorder.module.register_forward_pre_hook(
        lambda _module, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last)))
    inputs = fixtures.noisy_images(recorder, 3).contiguous(memory_format=torch.channels_last)
    explain(recorder, inputs, masks=5, batch=3)
    assert seen == [True] * 6


def test_masks_and_sums_keep_their_precision_under_autocast() -> None:
    model = fixtures.tiny_model(classes=1)
    inputs = fixtures.noisy_images(model, 2)
    expected = explain(model, inputs, masks=40, p=0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explain(model, inputs, masks=40, p=0.4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"masks": 0}, {"cells": 0}, {"p": 0.0}, {"p": 1.0}, {"batch": 0}, {"mask": 5}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rise.Options(**options)


@pytest.mark.parametrize("options", [{"masks": 24, "batch": 7}, {"masks": 6, "batch": 64, "fresh": False}])
def test_the_contract(options: dict[str, Any]) -> None:
    check_plugin("attributor", Rise, options=options)
