"""However a network is written, a method gives the same map for it, or refuses it: never another one."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from disguises import SIZE, WAYS, Clamped, IgnoringResults, InPlace, Plain, ReusedInPlace, build
from torch import Tensor, nn

from certframe.errors import UsageError
from certframe.noise import CopyRng
from certframe.registry import Entry, default_registry
from certframe.torch_model import TorchModel

ENTRIES = default_registry().entries("attributor")
MODIFYING = ("guided-backprop", "deeplift", "lrp")
"""Methods that put something else in the place of an activation function's derivative."""
X = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(5)) * 0.3 + 0.5


def explain(entry: Entry, network: nn.Module) -> Tensor:
    model = TorchModel(network, SIZE, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    cls = entry.load()
    example = getattr(cls, "conformance_options", lambda _directory: {"masks": 20} if entry.name == "rise" else {})
    rng = CopyRng(0, "0" * 64, "test", range(3), "cpu")
    with torch.no_grad():
        targets = model.module(X).argmax(1)  # a class that is not the predicted one has no boundary around the image
    return cls(cls.Options.model_validate(example(Path()))).attribute(model, X, targets, rng=rng).maps


@functools.cache
def expected(entry: Entry, act: type[nn.Module]) -> Tensor:
    try:
        return explain(entry, build(Plain, act))
    except UsageError as refusal:
        pytest.skip(f"refused however it is written: {refusal}")


def same(entry: Entry, way: type[Plain], act: type[nn.Module]) -> None:
    wanted = expected(entry, act)
    assert float(wanted.abs().max()) > 0
    try:
        found = explain(entry, build(way, act))
    except UsageError as refusal:
        if entry.name in MODIFYING:
            raise
        pytest.skip(f"refused: {refusal}")  # a method may know fewer ways, as long as it says so
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_method_with_relu(entry: Entry, way: type[Plain]) -> None:
    same(entry, way, nn.ReLU)


@pytest.mark.parametrize("act", [nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU], ids=lambda act: act.__name__)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.name in MODIFYING], ids=lambda entry: entry.name)
def test_methods_that_modify_the_gradient_with_other_activations(entry: Entry, way: type[Plain],
                                                                 act: type[nn.Module]) -> None:
    if way is Clamped and act is not nn.ReLU6:
        pytest.skip("clamping makes a ReLU or a ReLU6, no other activation")
    if act is nn.GELU and way in (InPlace, ReusedInPlace, IgnoringResults):
        pytest.skip("torch has no GELU in place")
    same(entry, way, act)


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU], ids=lambda act: act.__name__)
@pytest.mark.parametrize("name", MODIFYING)
def test_none_of_them_is_the_plain_gradient_or_its_product_with_the_input(name: str, act: type[nn.Module]) -> None:
    entries = {entry.name: entry for entry in ENTRIES}
    if name not in entries:
        pytest.skip(f"{name} is not installed")
    wanted = expected(entries[name], act)
    for other in ("gradient", "input-x-gradient"):
        plain = expected(entries[other], act)
        together = torch.stack([wanted.flatten(), plain.flatten()])
        assert float(torch.corrcoef(together)[0, 1]) < 0.999
