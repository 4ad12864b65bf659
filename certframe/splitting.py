"""Cut a module at one of its submodules into a body and a head: ``module(x) == head(*body(x))``.

The cut is made in the graph that `torch.fx` traces. The head holds exactly what depends on the activation; every other
value that it needs (a residual stream, for instance) is carried from the body. A module that cannot be traced is cut
with a forward hook instead: the head then runs the whole module on the carried input and puts the activation in its
place, which is as exact and only slower. Both halves hold the module itself, so they follow it to another device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from certframe.errors import UsageError, suggest

_ROOT = "network"


def split_module(module: nn.Module, path: str, example: Tensor, *, leaf_modules: Sequence[type[nn.Module]] = (),
                 leaf_functions: Sequence[Callable[..., Any]] = ()) -> tuple[nn.Module, nn.Module]:
    """Cut `module` at the output of its submodule `path`.

    When the submodule is called more than once in a forward pass, the cut is at its last call. The halves are checked
    on the example: ``head(*body(example))`` must give what ``module(example)`` gives.

    Args:
        module: takes one tensor and returns one; in eval mode.
        path: name of a submodule as in ``module.named_modules()``.
        example: an input (B, …) with B ≥ 2, on the module's device; two dry runs are made with it.
        leaf_modules: classes that `torch.fx` must not trace into.
        leaf_functions: functions that `torch.fx` must not trace into.

    Returns:
        body: x → ``(activation, *carried)``.
        head: ``(activation, *carried)`` → what the module returns. It leaves its arguments unchanged.

    Raises:
        UsageError: there is no such submodule, it is not called, does not return one tensor with the batch first, or
            the output does not depend on it.
    """
    find_submodule(module, path)
    with torch.no_grad():
        outputs = record_outputs(module, example, only=path)
        expected = outputs.pop()[1]
        calls = [output for name, output in outputs if name == path]
        _check_activation(path, calls, len(example))
        halves = _traced_halves(module, path, example, tuple(leaf_modules), tuple(leaf_functions))
        if halves is None or not _agrees(halves, example, expected):
            halves = _HookedBody(module, path, len(calls)), _HookedHead(module, path, len(calls))
            if not _agrees(halves, example, expected):
                raise UsageError(f"cannot cut the model at '{path}': its output changes from one call to the next; "
                                 "take another layer or 'input'")
    return halves


def find_submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule of that name.

    Raises:
        UsageError: there is none; the message gives the closest names.
    """
    names = dict(module.named_modules(remove_duplicate=False))
    names.pop("", None)
    if path not in names:
        raise UsageError(f"unknown layer '{path}'{suggest(path, names)}; a layer is 'input', 'final' or one of "
                         f"{len(names)} names such as '{_shallow(names)}' (all of them: model.layers)")
    return module.get_submodule(path)


def record_outputs(module: nn.Module, example: Tensor, only: str | None = None) -> list[tuple[str, Any]]:
    """Run the module and return ``(path, output)`` of its submodules in the order in which they finish.

    The last entry is ``("", output)`` of the module itself. No hook is left on it, whatever happens.

    Args:
        module: takes the example.
        example: the input.
        only: the submodule to record; None for all.
    """
    outputs: list[tuple[str, Any]] = []
    handles = []
    try:
        for name, child in module.named_modules(remove_duplicate=False):
            if name and only in (None, name):
                handles.append(child.register_forward_hook(functools.partial(_record, outputs, name)))
        outputs.append(("", module(example)))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _record(outputs: list[tuple[str, Any]], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    outputs.append((name, output))


def _shallow(names: dict[str, nn.Module]) -> str:
    return min(reversed(list(names)), key=lambda name: name.count("."))


def _check_activation(path: str, calls: list[Any], batch: int) -> None:
    if not calls:
        raise UsageError(f"cannot cut the model at '{path}': the forward pass does not call it as a module; take the "
                         "module that contains it")
    activation = calls[-1]
    if not isinstance(activation, Tensor):
        raise UsageError(f"cannot cut the model at '{path}': it returns a {type(activation).__name__}, not one tensor; "
                         "take a layer inside or after it")
    if activation.ndim < 2 or len(activation) != batch:
        raise UsageError(f"cannot cut the model at '{path}': its output {tuple(activation.shape)} for {batch} images "
                         "does not have one row per image; take a layer outside it")


def _agrees(halves: tuple[nn.Module, nn.Module], example: Tensor, expected: Any) -> bool:
    body, head = halves
    values = body(example)
    if any(len(value) != len(example) for value in values):
        return False
    found = head(*values)
    return torch.is_tensor(found) and found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


# -- by graph -----------------------------------------------------------------------------------------------------


class _Rooted(nn.Module):
    """Holds the module under one name, so that everything a graph refers to is reached through the module itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.add_module(_ROOT, module)

    def forward(self, x: Tensor) -> Any:
        return self.get_submodule(_ROOT)(x)


class _Tracer(fx.Tracer):
    """Traces, and remembers what each module returned at its last call."""

    proxy_buffer_attributes = True

    def __init__(self, leaf_modules: tuple[type[nn.Module], ...],
                 leaf_functions: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=leaf_functions)
        self._leaf_modules = leaf_modules
        self.returned: dict[int, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaf_modules) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...],
                    kwargs: dict[str, Any]) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        self.returned[id(m)] = result
        return result


class _Kinds(fx.Interpreter):
    """Notes which nodes of a graph are tensors, and which are or contain one."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.tensors: set[fx.Node] = set()
        self.holders: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.tensors.add(n)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            self.holders.add(n)
        return value


def _traced_halves(module: nn.Module, path: str, example: Tensor, leaf_modules: tuple[type[nn.Module], ...],
                   leaf_functions: tuple[Callable[..., Any], ...]) -> tuple[nn.Module, nn.Module] | None:
    """The halves by graph surgery, or None when the module cannot be traced faithfully."""
    root = _Rooted(module)
    tracer = _Tracer(leaf_modules, leaf_functions)
    try:
        graph = tracer.trace(root)
    except Exception:  # data-dependent control flow and much else; there is the other way
        return None
    if any(n.op == "get_attr" and not str(n.target).startswith(_ROOT + ".") for n in graph.nodes):
        return None  # a tensor made during the trace became a constant, with its device and the size of this batch
    kinds = _Kinds(root, graph)
    try:
        kinds.run(example)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError):
        return None  # the trace took another way than the module does; errors of other kinds are not the graph's
    cut = getattr(tracer.returned.get(id(module.get_submodule(path))), "node", None)
    if not isinstance(cut, fx.Node):
        return None
    return _cut_graph(module, graph, cut, kinds, path)


def _cut_graph(module: nn.Module, graph: fx.Graph, cut: fx.Node, kinds: _Kinds,
               path: str) -> tuple[nn.Module, nn.Module]:
    after = _descendants(graph, cut)
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    if output not in after:
        raise UsageError(f"cannot cut the model at '{path}': the logits do not depend on it; take another layer")
    again, carried = _needs_of_head(graph, after, cut, kinds)
    nodes = list(graph.nodes)
    last = max(nodes.index(n) for n in (cut, *carried))
    before = [n for n in nodes[:last + 1] if n not in after or n is cut]
    body = _subgraph([], before, returns=(cut, *carried))
    inside = [n for n in nodes if (n in after and n is not cut and n.op != "output") or n in again]
    head = _subgraph([cut, *carried], inside, returns=output.args[0])
    return _graph_module(module, body, "Body"), _graph_module(module, head, "Head")


def _descendants(graph: fx.Graph, cut: fx.Node) -> set[fx.Node]:
    found = {cut}
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _needs_of_head(graph: fx.Graph, after: set[fx.Node], cut: fx.Node,
                   kinds: _Kinds) -> tuple[set[fx.Node], list[fx.Node]]:
    """What the head needs from before the cut: nodes that it computes again, and tensors that are carried.

    Carried are tensors that depend on the values of the input. Sizes, parameters and what is made of them alone are
    computed again, so that the head works for any batch, also one that was repeated.
    """
    data: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (node in kinds.holders and any(i in data for i in node.all_input_nodes)):
            data.add(node)
    again: set[fx.Node] = set()
    carried: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if (node in after and node is not cut) or node in again:
            for source in node.all_input_nodes:
                if source not in after:
                    (carried if source in data and source in kinds.tensors else again).add(source)
    return again, [n for n in graph.nodes if n in carried]


def _subgraph(placeholders: Sequence[fx.Node], nodes: Sequence[fx.Node], returns: Any) -> fx.Graph:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs = [graph.placeholder(node.name) for node in placeholders]
    for node, value in zip(placeholders, inputs, strict=True):
        # The rest of a network may well work in place (ReLU does); the caller's tensors are not its to change.
        copies[node] = graph.call_method("clone", (value,))
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.map_arg(returns, copies.__getitem__))
    return graph


def _graph_module(module: nn.Module, graph: fx.Graph, name: str) -> nn.Module:
    found = fx.GraphModule(_Rooted(module), graph, class_name=name)
    # GraphModule copies references to what the graph uses; buffers would then stay behind when the module moves.
    found.add_module(_ROOT, module)
    return found


# -- by hook ------------------------------------------------------------------------------------------------------


class _Reached(Exception):
    """Carries the activation out of a forward pass that has come far enough."""

    def __init__(self, activation: Tensor) -> None:
        self.activation = activation


@contextmanager
def _at_call(module: nn.Module, call: int, act: Callable[[Any], Any]) -> Iterator[None]:
    """Have ``act(output)`` called, and its result used instead, at the given call of a module."""
    count = 0

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        return act(output) if count == call else None

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _HookedBody(nn.Module):
    def __init__(self, module: nn.Module, path: str, call: int) -> None:
        super().__init__()
        self.add_module(_ROOT, module)
        self.path, self.call = path, call

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        module = self.get_submodule(_ROOT)

        def leave(output: Tensor) -> None:
            raise _Reached(output)

        try:
            with _at_call(module.get_submodule(self.path), self.call, leave):
                module(x)
        except _Reached as reached:
            return reached.activation, x
        raise RuntimeError(f"layer '{self.path}' was not called")


class _HookedHead(nn.Module):
    def __init__(self, module: nn.Module, path: str, call: int) -> None:
        super().__init__()
        self.add_module(_ROOT, module)
        self.path, self.call = path, call

    def forward(self, activation: Tensor, x: Tensor) -> Any:
        module = self.get_submodule(_ROOT)
        with _at_call(module.get_submodule(self.path), self.call, lambda _output: activation.clone()):
            return module(x)
