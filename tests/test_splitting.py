"""Cuts are exact at every layer, whether traced or hooked, and leave the module alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import Attention, Opaque, Residual, Transformer, by_hook, settled
from torch import Tensor, nn

from certframe.errors import UsageError
from certframe.splitting import split_module

X = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def paths(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_modules() if name]


def is_traced(head: nn.Module) -> bool:
    return isinstance(head, torch.fx.GraphModule)


NETWORKS: dict[str, Any] = {"residual": Residual, "opaque": Opaque, "transformer": Transformer}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_is_cut_exactly(kind: str) -> None:
    network = settled(NETWORKS[kind]())
    expected = network(X)
    for path in paths(network):
        body, head = split_module(network, path, X[:2])
        assert is_traced(head) == (kind != "opaque"), path
        torch.testing.assert_close(head(*body(X)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
def test_activations_and_gradients_are_those_a_hook_sees(kind: str) -> None:
    network = settled(NETWORKS[kind]())
    for path in paths(network):
        body, head = split_module(network, path, X[:2])
        activation, *carried = body(X)
        activation = activation.detach().requires_grad_()
        gradient, = torch.autograd.grad(head(activation, *carried)[:, 1].sum(), activation)
        hooked, _, hooked_gradient = by_hook(network, network.get_submodule(path), X)
        torch.testing.assert_close(activation.detach(), hooked)
        torch.testing.assert_close(gradient, hooked_gradient, msg=path)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_head_leaves_its_arguments_alone(kind: str) -> None:
    network = settled(NETWORKS[kind]())
    for path in paths(network):
        body, head = split_module(network, path, X[:2])
        values = body(X)
        before = [value.detach().clone() for value in values]
        head(*values)
        assert all(torch.equal(value, kept) for value, kept in zip(values, before, strict=True)), path


@pytest.mark.parametrize("path", ["stage1.0.conv1", "stage1.0.bn2", "stage1"])
def test_a_cut_inside_a_block_carries_the_residual_stream_and_one_after_it_nothing(path: str) -> None:
    body, _ = split_module(settled(Residual()), path, X[:2])
    assert len(body(X)) == (1 if path == "stage1" else 2)


def test_the_head_works_for_another_batch_than_the_body() -> None:
    # Methods repeat activations: a size that the trace took from the body's batch must not stick.
    network = settled(Transformer())
    for path in ("blocks.0", "blocks.1.qkv", "blocks.1.norm2", "patches"):
        body, head = split_module(network, path, X[:2])
        repeated = [value.repeat_interleave(4, 0) for value in body(X)]
        torch.testing.assert_close(head(*repeated), network(X).repeat_interleave(4, 0), rtol=1e-6, atol=1e-6)


def test_a_module_that_is_called_twice_is_cut_at_its_last_call() -> None:
    for network in (settled(Residual()), settled(Opaque())):
        body, _ = split_module(network, "stage2.1.act", X[:2])
        whole, _ = split_module(network, "stage2.1", X[:2])
        torch.testing.assert_close(body(X)[0], whole(X)[0])


def test_the_halves_follow_the_weights_and_buffers_of_the_module() -> None:
    network = settled(Transformer())
    body, head = split_module(network, "blocks.0", X[:2])
    network.to(torch.float64)  # replaces every buffer, as a move to another device does
    torch.testing.assert_close(head(*body(X.double())), network(X.double()))


@pytest.mark.parametrize("kind", NETWORKS)
def test_nothing_is_left_on_the_module(kind: str) -> None:
    network = settled(NETWORKS[kind]())
    state, children = copy.deepcopy(network.state_dict()), paths(network)
    body, head = split_module(network, children[0], X[:2])
    values = body(X)
    head(*values)
    with pytest.raises(RuntimeError):
        head(values[0][:, :-1], *values[1:])
    with pytest.raises(RuntimeError):
        body(X[:, :1])
    assert not any(module._forward_hooks for module in network.modules())
    assert paths(network) == children
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


class Baked(nn.Module):
    """Makes a tensor for the batch in a way that a trace turns into a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.conv(x) * torch.tensor([self.scale])).mean((2, 3))
        return logits


def test_a_constant_made_on_the_way_stays_adjustable() -> None:
    network = settled(Baked())
    body, head = split_module(network, "conv", X[:2])
    network.scale = 3.0
    torch.testing.assert_close(head(*body(X)), network(X))
    assert not is_traced(head)


def test_leaf_modules_and_functions_are_not_traced_into() -> None:
    network = settled(Transformer())
    _, head = split_module(network, "patches", X[:2], leaf_modules=[Attention])
    called = [str(node.target) for node in head.graph.nodes if node.op == "call_module"]  # type: ignore[union-attr]
    assert called == ["network.blocks.0", "network.blocks.1", "network.norm", "network.fc"]
    # A layer inside a leaf can still be cut at.
    body, head = split_module(network, "blocks.0.qkv", X[:2], leaf_modules=[Attention])
    assert not is_traced(head)
    torch.testing.assert_close(head(*body(X)), network(X))


class Odd(nn.Module):
    """Submodules with each of the habits that make a cut impossible."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.unused = nn.Conv2d(3, 4, 3)
        self.aside = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveMaxPool2d(1, return_indices=True)
        self.windows = nn.Flatten(0, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        features = self.conv(x)
        rows = self.windows(features).reshape(features.shape)
        logits: Tensor = self.fc(self.pool(rows)[0].flatten(1))
        return logits


@pytest.mark.parametrize(("path", "message"), [
    ("unused", "cannot cut the model at 'unused': the forward pass does not call it"),
    ("pool", "cannot cut the model at 'pool': it returns a tuple, not one tensor"),
    ("windows", "cannot cut the model at 'windows': its output (8, 14, 14) for 2 images does not have one row"),
    ("aside", "cannot cut the model at 'aside': the logits do not depend on it"),
    ("cnov", "unknown layer 'cnov'; did you mean 'conv'"),
    ("", "unknown layer ''"),
])
def test_a_cut_that_cannot_be_made_is_refused_in_one_line(path: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_module(settled(Odd()), path, X[:2])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_network_that_is_not_a_function_is_refused() -> None:
    class Restless(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(1)

    with pytest.raises(UsageError, match="its output changes from one call to the next"):
        split_module(settled(Restless()), "stage1", X[:2])


def test_an_exception_of_the_network_comes_through() -> None:
    class Broken(Exception):
        pass

    def fail(_module: nn.Module, _inputs: Any) -> None:
        raise Broken

    network = settled(Residual())
    network.get_submodule("fc").register_forward_pre_hook(fail)
    with pytest.raises(Broken):
        split_module(network, "stage1", X[:2])
