from __future__ import annotations

import pytest
import torch
from torch import nn

from certframe.device import autocast, available_devices, resolve_device, weights_hash
from certframe.errors import UsageError


def test_devices_that_are_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert "cpu" in available_devices()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert resolve_device("auto") == (accelerator or torch.device("cpu"))


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cuda:99", "mps", "xpu", "gpu", "cuda:x", "", "cpu:one", "meta"])
def test_devices_that_are_not_there_are_one_line(name: str) -> None:
    if name in available_devices() or (name == "cuda" and torch.cuda.is_available()):
        pytest.skip("this machine has the device")
    with pytest.raises(UsageError) as caught:
        resolve_device(name)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(name) in text
    assert "cpu" in text
    assert caught.value.exit_code == 2


class Net(nn.Module):
    def __init__(self, *, value: float = 1.0, name: str = "weight", shape: tuple[int, ...] = (2, 3),
                 dtype: torch.dtype = torch.float32, mean: float = 0.5, count: int = 0) -> None:
        super().__init__()
        weight = torch.arange(6.0).reshape(shape)
        weight.view(-1)[0] = value
        self.register_parameter(name, nn.Parameter(weight.to(dtype)))
        self.register_buffer("mean", torch.tensor([mean]))
        self.register_buffer("std", torch.tensor([mean]), persistent=False)
        self.register_buffer("count", torch.tensor(count))


def test_the_hash_knows_values_names_types_and_shapes() -> None:
    reference = weights_hash(Net())
    assert weights_hash(Net()) == reference
    others = [Net(value=1.0000001), Net(name="weights"), Net(shape=(3, 2)), Net(shape=(6,)), Net(dtype=torch.float64),
              Net(dtype=torch.bfloat16), Net(mean=0.4), Net(count=1)]
    assert len({reference, *map(weights_hash, others)}) == len(others) + 1


def test_the_hash_knows_buffers_that_are_not_saved() -> None:
    """A model's normalisation may well be one."""
    one, other = Net(), Net()
    other.std.fill_(0.9)
    assert weights_hash(one) != weights_hash(other)


def test_the_hash_does_not_know_layout_mode_or_gradients() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    reference = weights_hash(net)
    assert weights_hash(net.train().requires_grad_(False)) == reference
    assert weights_hash(net.to(memory_format=torch.channels_last)) == reference
    assert weights_hash(nn.Sequential(nn.Identity())) == weights_hash(nn.Identity())
    assert weights_hash(nn.Identity()) != reference


def test_shared_weights_and_odd_types_can_be_hashed() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    net.register_buffer("mask", torch.tensor([True, False]))
    net.register_buffer("empty", torch.empty(0))
    net.register_buffer("view", torch.arange(12.0).reshape(3, 4).T)
    before = weights_hash(net)
    net.get_buffer("mask").logical_not_()
    assert weights_hash(net) != before


def test_autocast() -> None:
    product = torch.ones(2, 2)
    with autocast(torch.device("cpu"), "off"):
        assert (product @ product).dtype == torch.float32
    for precision in ("bfloat16", "float16"):
        with autocast(torch.device("cpu"), precision):
            assert (product @ product).dtype == getattr(torch, precision)
    assert (product @ product).dtype == torch.float32


def test_the_memory_layout_changes_no_hash() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    before = weights_hash(network)
    assert weights_hash(network.to(memory_format=torch.channels_last)) == before
