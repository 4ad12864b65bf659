"""The attributor's promises: the kit's, what it keeps between calls, warnings, layers, the plugin's registration."""

from __future__ import annotations

import gc
import importlib.metadata
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import certframe_zennit
import pytest
import torch
from certframe_zennit import lrp
from certframe_zennit.composites import Name
from certframe_zennit.lrp import Lrp
from certframe_zennit.network import Network
from pydantic import ValidationError
from torch import Tensor, nn

import certframe
from certframe.testing import check_plugin, fixtures


def explain(method: Lrp, model: certframe.Model, inputs: Tensor) -> Tensor:
    targets = torch.arange(len(inputs)) % len(model.classes)
    return method.attribute(model, inputs, targets, rng=fixtures.rng(range(len(inputs)))).maps


@pytest.mark.filterwarnings("ignore:.*does not conserve")  # αβ on a network this small
@pytest.mark.parametrize("composite", get_args(Name))
@pytest.mark.parametrize("layer", ["input", "final"])
def test_the_contract(composite: str, layer: str) -> None:
    check_plugin("attributor", Lrp, options={"composite": composite, "layer": layer})


@pytest.mark.parametrize("wrong", [{"composite": "epsilon"}, {"box": "image"}, {"epsilon": -1}, {"gamma": -0.1}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Lrp.Options(**wrong)


def test_autocast_changes_nothing() -> None:
    model = fixtures.tiny_model()
    inputs = fixtures.noisy_images(model, 2)
    expected = explain(Lrp(), model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(explain(Lrp(), model, inputs), expected)


def test_under_no_grad_it_works_too() -> None:
    model = fixtures.tiny_model()
    inputs = fixtures.noisy_images(model, 2)
    with torch.no_grad():
        found = explain(Lrp(), model, inputs)
    assert torch.equal(found, explain(Lrp(), model, inputs))


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a model is followed."""
    count: list[int] = []

    class Counted(Network):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            count.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(lrp, "Network", Counted)
    return count


def test_a_model_is_followed_once(builds: list[int]) -> None:
    method, model, other = Lrp(), fixtures.tiny_model(), fixtures.tiny_model(seed=1)
    for count in (3, 1, 5):
        explain(method, model, fixtures.noisy_images(model, count))
    assert len(builds) == 1
    explain(method, other, fixtures.noisy_images(other, 2))
    explain(method, model, fixtures.noisy_images(model, 2))
    assert len(builds) == 2


def test_a_model_whose_weights_change_is_followed_again(builds: list[int]) -> None:
    method, model, other = Lrp(), fixtures.tiny_model(), fixtures.tiny_model(seed=1)
    inputs = fixtures.noisy_images(model, 2)
    first = explain(method, model, inputs)
    model.module.load_state_dict(other.module.state_dict())
    second = explain(method, model, inputs)
    assert len(builds) == 2
    assert torch.equal(second, explain(Lrp(), other, inputs))
    assert not torch.equal(first, second)
    builds.clear()
    model.module.to(torch.float64)
    assert explain(method, model, inputs.double()).dtype == torch.float32
    assert len(builds) == 1


def test_nothing_keeps_a_model_alive() -> None:
    method, model = Lrp(), fixtures.tiny_model()
    explain(method, model, fixtures.noisy_images(model, 2))
    assert len(method._networks) == 1
    del model
    gc.collect()
    assert len(method._networks) == 0


def test_no_hook_is_ever_on_the_model_and_nothing_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a hook")

    model = fixtures.tiny_model()
    inputs = fixtures.noisy_images(model, 2)
    for name in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        monkeypatch.setattr(nn.Module, name, refuse)
    explain(Lrp(), model, inputs)


def test_weights_are_shared_with_the_model_unless_a_norm_is_folded_into_them() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 4)).eval()
    model, method = certframe.TorchModel(network, (3, 16, 16)), Lrp()
    explain(method, model, torch.rand(1, 3, 16, 16))
    (kept,) = [built._assigned.after for _, built in method._networks.values()]
    pointers = {tensor.data_ptr() for tensor in kept._constants.values()}
    assert network[3].weight.data_ptr() in pointers


# -- warnings ---------------------------------------------------------------------------------------------------------


class Losing(nn.Module):
    """A layer without a positive weight and without an activation behind it: z⁺ finds no contribution to its output."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.conv2.weight.data.abs_().neg_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.conv1(x).relu()).mean((2, 3)))


def test_a_composite_that_cannot_conserve_is_warned_of_once() -> None:
    model, method = certframe.TorchModel(Losing().eval(), (3, 8, 8)), Lrp()
    inputs = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"epsilon-plus-box does not conserve .* is 0\.00 of the logit") as all_:
        explain(method, model, inputs)
    assert len(all_) == 1
    assert "\n" not in str(all_[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.isfinite(explain(method, model, inputs)).all()
        explain(Lrp(Lrp.Options(composite="epsilon-gamma-box")), model, inputs)


def test_a_network_that_is_nothing_without_its_biases_is_not_warned_of() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)).eval()
    network[3].weight.data.zero_()
    found = explain(Lrp(), certframe.TorchModel(network, (3, 8, 8)), torch.rand(2, 3, 8, 8))
    assert (found == 0).all()


# -- layers -----------------------------------------------------------------------------------------------------------


def test_layers_that_do_not_exist_or_are_no_maps_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)).eval()
    model, inputs = certframe.TorchModel(network, (3, 8, 8)), torch.rand(2, 3, 8, 8)
    with pytest.raises(certframe.UsageError, match="unknown layer"):
        explain(Lrp(Lrp.Options(layer="9")), model, inputs)
    with pytest.raises(certframe.UsageError, match="is not a map"):
        explain(Lrp(Lrp.Options(layer="2")), model, inputs)


# -- the plugin -------------------------------------------------------------------------------------------------------


def test_the_hook_module_registers_lrp() -> None:
    registry = certframe.Registry(external=False)
    registry.add(certframe_zennit, name="zennit", distribution="certframe-zennit")
    assert registry.broken == []
    assert registry.find("attributor", "lrp").load() is Lrp


def test_the_hook_module_imports_nothing_heavy() -> None:
    code = "import sys, certframe_zennit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_entry_point() -> None:
    points = [p for p in importlib.metadata.entry_points(group="certframe") if p.value == "certframe_zennit"]
    if not points:
        pytest.skip("certframe-zennit is on the path, but not installed")
    assert points[0].name == "zennit"
    assert points[0].dist is not None
    assert points[0].dist.name == "certframe-zennit"


def test_the_readme_lists_the_options_and_composites() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for name, field in Lrp.Options.model_fields.items():
        shown = f"{field.default:g}" if isinstance(field.default, float) else f"`{field.default}`"
        assert f"| `{name}` | {shown.replace('e-06', 'e-6')} |" in text
    for name in get_args(Name):
        assert f"| `{name}` |" in text
