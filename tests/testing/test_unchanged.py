"""Snapshots see what changed, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from certframe.testing import Violation, fixtures
from certframe.testing.unchanged import (
    ModuleState,
    require_steady_memory,
    unchanged_module,
    unchanged_process,
    unchanged_tensors,
)


@pytest.fixture
def module():
    return fixtures.tiny_model().module


def test_using_a_module_changes_nothing(module):
    state = ModuleState(module)
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    module(x).sum().backward()
    handle = module.get_submodule("conv1").register_full_backward_hook(lambda *_: None)
    handle.remove()
    assert state.differences() == []


def test_nan_parameters_are_equal_to_themselves(module):
    with torch.no_grad():
        module.get_submodule("conv1").weight[0] = float("nan")
    state = ModuleState(module)
    assert state.differences() == []
    with torch.no_grad():
        module.get_submodule("conv1").weight[1] = float("nan")
    assert state.differences() == ["changed the values of 'conv1.weight'"]


def test_a_parameter_replaced_by_an_equal_one_is_seen(module):
    state = ModuleState(module)
    layer = module.get_submodule("conv1")
    layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
    assert state.differences() == ["replaced parameters of 'conv1': ['weight']"]


def test_added_and_removed_submodules_and_attributes_are_seen(module):
    state = ModuleState(module)
    module.add_module("extra", nn.Identity())
    module.get_submodule("pool").note = 1
    del module.get_submodule("relu1").inplace
    found = state.differences()
    assert "replaced, added or removed the submodule 'extra'" in found
    assert "set the attribute 'note' of 'pool'" in found
    assert "removed the attribute 'inplace' of 'relu1'" in found


def test_the_exception_goes_on_when_nothing_was_changed(module):
    with pytest.raises(KeyError), unchanged_module(module, "it"):
        raise KeyError("mine")


def test_a_change_is_reported_in_place_of_the_exception_and_keeps_it_as_its_context(module):
    def change_and_fail():
        with unchanged_module(module, "it"):
            module.get_submodule("norm1").train()
            raise KeyError("mine")

    with pytest.raises(Violation, match="it switched 'norm1' to training mode") as caught:
        change_and_fail()
    assert isinstance(caught.value.__context__, KeyError)


def test_many_changes_are_cut_short(module):
    with pytest.raises(Violation, match=r"; …$"), unchanged_module(module, "it"):
        module.train()


def test_tensors_and_process_pass_when_left_alone():
    x = torch.rand(3, requires_grad=True)
    with unchanged_tensors("it", x=x), unchanged_process("it"):
        (x * 2).sum()
        torch.rand(2, generator=torch.Generator().manual_seed(0))
        np.random.default_rng(0).random()
        with torch.no_grad():
            pass


def test_a_cache_that_fills_is_no_leak():
    cache = {}
    require_steady_memory(lambda i: cache.setdefault(min(i, 2), torch.rand(1000)), "it")


def test_a_leak_into_a_cycle_is_seen_only_when_it_cannot_be_collected():
    def cycle(i):
        thing = [torch.rand(10)]
        thing.append(thing)

    require_steady_memory(cycle, "it")
    kept = []
    with pytest.raises(Violation, match="it leaves 1 more tensors behind"):
        require_steady_memory(lambda i: kept.append(torch.rand(10)), "it")
    arrays = []
    with pytest.raises(Violation, match="more bytes of arrays after every call"):
        require_steady_memory(lambda i: arrays.append(np.zeros(8)), "it")
    texts = []
    with pytest.raises(Violation, match="more bytes after every call"):
        require_steady_memory(lambda i: texts.append(bytearray(20_000)), "it")
