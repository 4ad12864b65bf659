"""Any torch module as a model: left alone, normalised, cropped, cut, and checked."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from networks import ChannelsLast, Opaque, Residual, Transformer, Wrong, settled
from PIL import Image
from torch import Tensor, nn

from certframe.errors import UsageError
from certframe.protocols import Model
from certframe.torch_model import TorchModel, as_map, check

SIZE = (3, 16, 16)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
X = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> TorchModel:
    return TorchModel(settled(Residual()), SIZE, tuple("abcde"), mean=MEAN, std=STD)


# -- the network


def test_is_a_model_with_its_normalisation_inside(model: TorchModel) -> None:
    assert isinstance(model, Model)
    by_hand = (X - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(model.module(X), settled(Residual())(by_hand))


def test_mean_and_std_are_optional_together_and_alone() -> None:
    network = settled(Residual())
    torch.testing.assert_close(TorchModel(network, SIZE).module(X), network(X))
    torch.testing.assert_close(TorchModel(network, SIZE, mean=MEAN).module(X),
                               network(X - torch.tensor(MEAN).view(3, 1, 1)))
    torch.testing.assert_close(TorchModel(network, SIZE, std=STD).module(X),
                               network(X / torch.tensor(STD).view(3, 1, 1)))


def test_the_given_network_stays_as_it_is() -> None:
    network = Residual().train()
    state = copy.deepcopy(network.state_dict())
    model = TorchModel(network, SIZE)
    model.at("final")
    model.module.to(torch.float64)
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in network.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_the_copy_is_frozen_in_eval_mode_and_shares_memory() -> None:
    network = Residual().train()
    network.add_module("tied", network.fc)
    model = TorchModel(network, SIZE)
    assert not any(module.training for module in model.module.modules())
    assert not any(p.requires_grad for p in model.module.parameters())
    pointers = [p.data_ptr() for p in network.parameters()]
    assert [p.data_ptr() for p in model.network.parameters()] == pointers
    assert model.network.get_submodule("tied") is model.network.get_submodule("fc")


def test_logits_are_counted_when_classes_are_omitted() -> None:
    assert TorchModel(settled(Residual()), SIZE).classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(("changes", "message"), [
    ({"input_size": (3, 16)}, "input_size=(3, 16): give three positive whole numbers"),
    ({"input_size": (3, 0, 16)}, "input_size=(3, 0, 16): give three positive"),
    ({"input_size": (3, 8.5, 16)}, "input_size=(3, 8.5, 16): give three positive"),
    ({"mean": (0.5,)}, "mean=(0.5,): give one finite number for each of the 3 channels"),
    ({"std": (1, 1, float("nan"))}, "std=(1, 1, nan): give one finite number"),
    ({"std": (1, 1, 0)}, "std=(1, 1, 0): every value must be above 0"),
    ({"interpolation": "spline"}, "interpolation 'spline': choose one of nearest, bilinear, bicubic, lanczos"),
    ({"crop_pct": 0}, "crop_pct=0: give the part"),
    ({"crop_pct": 1.5}, "crop_pct=1.5: give the part"),
])
def test_wrong_arguments_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"input_size": SIZE, "classes": tuple("abcde"), **changes}
    with pytest.raises(UsageError) as caught:
        TorchModel(settled(Residual()), **arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    network = settled(Residual())
    network.held = (lambda: (yield))()  # type: ignore[assignment]  # a generator
    with pytest.raises(UsageError, match="cannot be copied"):
        TorchModel(network, SIZE)


# -- check


def pooled(act: Any) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Wrong(act))


@pytest.mark.parametrize(("network", "message"), [
    (nn.Identity(), "the model returns shape (2, 3, 16, 16) for 2 images of 3×16×16, not (images, classes)"),
    (pooled(lambda x: x.mean()), "the model returns shape () for 2 images"),
    (pooled(lambda x: x[:1]), "the model returns shape (1, 3) for 2 images"),
    (pooled(lambda x: (x, x)), "the model returns a tuple, not a tensor of logits"),
    (pooled(lambda x: {"logits": x}), "the model returns a dict, not a tensor of logits"),
    (pooled(lambda x: x * float("nan")), "the model returns 6 NaN or infinite logits of 6"),
    (pooled(lambda x: torch.cat([x[:, 1:], x[:, :1] / 0], 1)), "the model returns 2 NaN or infinite logits of 6"),
    (nn.Sequential(nn.Conv2d(5, 4, 3)), "the model fails on an input of 3×16×16 (channels, height, width): Runtime"),
    (nn.Sequential(Wrong(lambda x: x.mul_(2)), pooled(lambda x: x)), "the model changes its input in place"),
    (pooled(lambda x: x[:, :2]), "the model returns 2 logits but has 3 class names"),
])
def test_check_says_what_is_wrong(network: nn.Module, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(TorchModel(network, SIZE, tuple("abc")))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_check_accepts_a_classifier_and_uses_no_global_randomness(model: TorchModel) -> None:
    state = torch.get_rng_state()
    check(model)
    model.at("final")
    assert torch.equal(torch.get_rng_state(), state)


# -- pictures


def ramp(width: int, height: int, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:height, :width]
    channels = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def identity(size: tuple[int, int, int], **options: Any) -> TorchModel:
    return TorchModel(nn.Identity(), size, ("a",), **options)


def test_preprocess_resizes_and_crops_as_torchvision_does() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    for width, height in ((300, 200), (200, 301), (64, 64), (37, 500), (40, 41)):
        for crop_pct, interpolation in ((0.875, "bicubic"), (0.95, "bilinear"), (1.0, "lanczos")):
            model = identity((3, 64, 64), crop_pct=crop_pct, interpolation=interpolation)
            found = model.preprocess(ramp(width, height))
            reference = transforms.Compose([
                transforms.Resize(int(64 / crop_pct), transforms.InterpolationMode(interpolation)),
                transforms.CenterCrop(64), transforms.ToTensor()])
            assert torch.equal(found, reference(ramp(width, height))), (width, height, crop_pct)


def test_preprocess_covers_an_oblong_input() -> None:
    found = identity((3, 20, 60), crop_pct=0.5, interpolation="bilinear").preprocess(ramp(400, 400))
    assert found.shape == (3, 20, 60)
    # The picture becomes 120×120; the window of 20×60 is in its centre: half of the width, a sixth of the height.
    assert abs(float(found[0, 10, 0]) - 0.25) < 0.02
    assert abs(float(found[0, 10, -1]) - 0.75) < 0.02
    assert abs(float(found[1, 0, 30]) - 50 / 120) < 0.02
    assert abs(float(found[1, -1, 30]) - 70 / 120) < 0.02


def test_a_picture_of_the_right_size_is_only_scaled() -> None:
    found = identity((3, 12, 16), crop_pct=1.0).preprocess(ramp(16, 12))
    assert torch.equal(found, torch.from_numpy(np.asarray(ramp(16, 12)).copy()).permute(2, 0, 1) / 255)
    assert found.is_contiguous()


@pytest.mark.parametrize(("mode", "size"), [("L", SIZE), ("CMYK", SIZE), ("P", SIZE), ("RGB", (1, 16, 16))])
def test_other_modes_are_converted(mode: str, size: tuple[int, int, int]) -> None:
    found = identity(size).preprocess(ramp(40, 30, mode))
    assert (found.shape, found.dtype) == (size, torch.float32)
    assert 0 <= float(found.min()) < float(found.max()) <= 1


def test_preprocess_refuses_four_channels() -> None:
    with pytest.raises(UsageError, match="a picture cannot be made into 4 channels"):
        identity((4, 16, 16)).preprocess(ramp(16, 16))


# -- layers


def test_input_is_the_model_itself(model: TorchModel) -> None:
    split = model.at("input")
    assert split.body(X)[0] is X
    assert split.as_map(X) is X
    assert torch.equal(split.head(X), model.module(X))


@pytest.mark.parametrize(("network", "layer", "shape", "carried"), [
    (Residual(), "stage2", (8, 4, 4), 0),
    (Opaque(), "stage2", (8, 4, 4), 1),
    (ChannelsLast(), "norm", (7, 4, 4), 0),
    (Transformer(), "blocks.1.norm1", (12, 4, 4), 1),
    (Transformer(pool="mean"), "norm", (12, 4, 4), 0),
    (nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(980, 4)), "1", (5, 14, 14), 0),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None)
def test_final_is_the_last_spatial_map(network: nn.Module, layer: str, shape: tuple[int, ...], carried: int) -> None:
    model = TorchModel(settled(network), SIZE, mean=MEAN, std=STD)
    split, named = model.at("final"), model.at(layer)
    values = split.body(X)
    assert len(values) == 1 + carried
    assert split.as_map(values[0]).shape == (2, *shape)
    torch.testing.assert_close(split.head(*values), model.module(X))
    assert torch.equal(values[0], named.body(X)[0])


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_patches_reach_the_logits_from_final_and_no_later(pool: str) -> None:
    model = TorchModel(settled(Transformer(pool)), SIZE)

    def reach(layer: str) -> bool:
        split = model.at(layer)
        activation, *carried = split.body(X)
        activation = activation.detach().requires_grad_()
        gradient, = torch.autograd.grad(split.head(activation, *carried)[:, 1].sum(), activation)
        return bool(split.as_map(gradient).abs().sum(1).all())

    assert reach("final")
    assert reach("norm") == (pool == "mean")


def test_layers_are_named_as_in_the_network(model: TorchModel) -> None:
    assert model.layers[:3] == ["input", "final", "stem"]
    assert "stage2.1.conv2" in model.layers
    for layer in ("stem", "stage2.1.conv2"):
        split = model.at(layer)
        torch.testing.assert_close(split.head(*split.body(X)), model.module(X))


def test_cuts_are_kept(model: TorchModel) -> None:
    assert model.at("stage1") is model.at("stage1")
    assert model.at("final") is model.at("final")


def test_an_unknown_layer_is_refused_with_the_way_to_see_them(model: TorchModel) -> None:
    with pytest.raises(UsageError, match=r"unknown layer 'stage3'; did you mean 'stage\d' or 'stage\d'.*model\.layers"):
        model.at("stage3")


def test_final_is_refused_when_nothing_is_spatial() -> None:
    model = TorchModel(settled(nn.Sequential(nn.Flatten(), nn.Linear(768, 4))), SIZE)
    with pytest.raises(UsageError, match="no spatial feature map to call 'final'"):
        model.at("final")


def test_a_vector_is_not_a_map(model: TorchModel) -> None:
    split = model.at("fc")
    with pytest.raises(UsageError, match=r"an activation of shape \(5,\) is not a map"):
        split.as_map(split.body(X)[0])


@pytest.mark.parametrize(("shape", "input_size", "grid", "first"), [
    ((2, 7, 4, 4), SIZE, (4, 4), 0), ((2, 4, 4, 7), SIZE, (4, 4), 0), ((2, 4, 4, 4), SIZE, (4, 4), 0),
    ((2, 7, 4, 6), (3, 32, 48), (4, 6), 0), ((2, 4, 6, 7), (3, 32, 48), (4, 6), 0),
    ((2, 16, 7), SIZE, (4, 4), 0), ((2, 17, 7), SIZE, (4, 4), 1), ((2, 21, 7), SIZE, (4, 4), 5),
    ((2, 25, 7), (3, 32, 48), (4, 6), 1),
])
def test_the_layout_of_an_activation(shape: tuple[int, ...], input_size: tuple[int, int, int], grid: tuple[int, int],
                                     first: int) -> None:
    activation = torch.rand(shape)
    found = as_map(activation, input_size)
    assert found.shape[2:] == grid
    if activation.ndim == 3:
        expected: Tensor = activation[:, first + grid[1] + 2]  # row 1, column 2
        assert torch.equal(found[:, :, 1, 2], expected)
    else:
        cell = activation[:, :, 1, 2] if shape[2:] == grid else activation[:, 1, 2]
        assert torch.equal(found[:, :, 1, 2], cell)
