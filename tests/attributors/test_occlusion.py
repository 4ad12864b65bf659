"""Occlusion against covering one patch at a time."""

from __future__ import annotations

import pytest
import torch
from networks import Residual, Transformer, settled
from torch import nn

from certframe.attributors.occlusion import Occlusion, positions
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

SIZE = (3, 16, 16)
X = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(4))
TARGETS = torch.tensor([0, 1, 1])
RNG = CopyRng(0, "0" * 64, "test", range(3), "cpu")


@pytest.mark.parametrize(("size", "patch", "stride", "expected"), [
    (224, 16, 8, range(0, 209, 8)), (7, 5, 2, range(0, 3, 2)), (7, 3, 3, range(0, 7, 3)), (4, 4, 1, range(1)),
    (5, 2, 2, range(0, 5, 2)),
])
def test_patches_cover_the_whole_side(size: int, patch: int, stride: int, expected: range) -> None:
    found = positions(size, patch, stride)
    assert list(found) == list(expected)
    assert found[-1] + patch >= size


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize(("kind", "layer", "patch", "stride"), [
    (Residual, "input", 5, 3), (Residual, "final", None, None), (Residual, "stage1.0.bn2", 2, 1),
    (Transformer, "final", 2, 1), (Transformer, "input", None, None),
])
def test_one_patch_at_a_time(kind: type[nn.Module], layer: str, patch: int | None, stride: int | None,
                             chunk: int) -> None:
    model = TorchModel(settled(kind()), SIZE)
    split = model.at(layer)
    activation, *carried = split.body(X)
    height, width = split.as_map(activation).shape[2:]
    side = patch or min(16 if layer == "input" else 5, round(2 * min(height, width) / 3))
    step = stride or max(1, side // 2)
    expected, logits = torch.zeros(3, height, width), model.module(X)
    for b, target in enumerate(TARGETS):
        for y in positions(height, side, step):
            for x in positions(width, side, step):
                covered = activation[b:b + 1].clone()
                split.as_map(covered)[:, :, y:y + side, x:x + side] = 0.25
                fall = logits[b, target] - split.head(covered, *(c[b:b + 1] for c in carried))[0, target]
                expected[b, y:y + side, x:x + side] += fall
    options = Occlusion.Options(layer=layer, patch=patch, stride=stride, baseline=0.25, chunk=chunk)
    found = Occlusion(options).attribute(model, X, TARGETS, rng=RNG)
    torch.testing.assert_close(found.maps, expected.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.logits, logits)


def test_published_defaults() -> None:
    assert (positions(224, 16, 8), positions(7, 5, 2)) == (range(0, 209, 8), range(0, 3, 2))
