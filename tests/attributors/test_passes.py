"""How often the parts of a network run, and with how many rows: bodies once, heads in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Residual, settled

from certframe.attributors.ablation import AblationCam, ScoreCam
from certframe.attributors.cam import Cam, GradCam, GradCamPlusPlus, LayerCam
from certframe.attributors.gradient import Gradient, InputXGradient, SmoothGrad
from certframe.attributors.guided import GuidedBackprop
from certframe.attributors.occlusion import Occlusion
from certframe.attributors.path import IntegratedGradients
from certframe.noise import CopyRng
from certframe.torch_model import TorchModel

SIZE = (3, 16, 16)
X = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(4))
TARGETS = torch.tensor([0, 1, 2])
RNG = CopyRng(0, "0" * 64, "test", range(3), "cpu")


class Counter:
    """Rows in every pass of the first and of the last layer."""

    def __init__(self) -> None:
        self.model = TorchModel(settled(Residual()), SIZE)
        self.model.at("final"), self.model.at("stage1")
        self.first: list[int] = []
        self.last: list[int] = []
        for layer, seen in (("stem", self.first), ("fc", self.last)):
            self.model.network.get_submodule(layer).register_forward_hook(
                lambda _module, given, _out, seen=seen: seen.append(len(given[0])))

    def run(self, method: Any, **options: Any) -> tuple[list[int], list[int]]:
        self.first.clear(), self.last.clear()
        method(method.Options(**options)).attribute(self.model, X, TARGETS, rng=RNG)
        return list(self.first), list(self.last)


@pytest.fixture(scope="module")
def counter() -> Counter:
    return Counter()


@pytest.mark.parametrize("layer", ["final", "stage1"])
@pytest.mark.parametrize("method", [Cam, GradCam, GradCamPlusPlus, LayerCam, Gradient, InputXGradient, GuidedBackprop])
def test_one_pass_of_the_body_and_one_of_the_head(counter: Counter, method: Any, layer: str) -> None:
    assert counter.run(method, layer=layer) == ([3], [3])


def test_ablation_runs_the_head_for_every_map_in_chunks(counter: Counter) -> None:
    first, last = counter.run(AblationCam, chunk=10)  # 8 feature maps
    assert first == [3]
    assert last == [3, 10, 10, 4]


def test_occlusion_of_a_layer_runs_the_head_for_every_patch_in_chunks(counter: Counter) -> None:
    first, last = counter.run(Occlusion, layer="stage1", patch=4, stride=4, chunk=5)  # 2 × 2 patches
    assert first == [3]
    assert last == [3, 5, 5, 2]
    assert counter.run(Occlusion, patch=8, stride=8, chunk=5) == ([3, 5, 5, 2], [3, 5, 5, 2])


def test_integrated_gradients_take_several_steps_in_one_pass(counter: Counter) -> None:
    assert counter.run(IntegratedGradients, steps=10, chunk=12)[1] == [12, 12, 6]
    first, last = counter.run(IntegratedGradients, layer="final", steps=10, chunk=12)
    assert first == [1, 3], "the image at which the path begins, and the copies"
    assert last == [12, 12, 6]


def test_methods_that_change_the_pixels_run_all_of_it_in_chunks(counter: Counter) -> None:
    first, last = counter.run(SmoothGrad, layer="final", samples=4, chunk=6)
    assert first == last == [6, 6]
    first, last = counter.run(ScoreCam, layer="final", chunk=10)
    assert first == last == [3, 10, 10, 4]
