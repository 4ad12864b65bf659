"""Was anything changed that should not have been? Snapshots of modules, tensors and the process."""

from __future__ import annotations

import contextlib
import gc
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from certframe.testing.kit import Violation, require

_RESIDUE = {"_is_full_backward_hook"}
"""What torch itself leaves on a module when a hook is removed again."""
_PLAIN = (bool, int, float, str, bytes, type(None), tuple, torch.device, torch.dtype, torch.Size)


def _same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality of two tensors of one device, NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return bool(torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True))


class ModuleState:
    """A snapshot of a module: every submodule's parameters, buffers, mode, hooks and attributes.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._submodules = dict(module.named_modules(remove_duplicate=False))
        self._attributes = {path: self._read(sub) for path, sub in self._submodules.items()}
        self._tensors = {(path, name): (tensor, tensor.detach().clone(), tensor.requires_grad,
                                        len(tensor._backward_hooks or ()))
                         for path, sub in self._submodules.items() for name, tensor in _tensors(sub).items()}

    @staticmethod
    def _read(sub: nn.Module) -> dict[str, Any]:
        """Attribute → value or, for hooks, the list of them. Keeping the objects keeps their ids from being reused."""
        state: dict[str, Any] = {}
        for name, value in vars(sub).items():
            if name in _RESIDUE:
                continue
            if name in ("_parameters", "_buffers", "_modules") or isinstance(value, Mapping | set | list):
                state[name] = list(value.items()) if isinstance(value, Mapping) else list(value)
            else:
                state[name] = value
        return state

    def differences(self) -> list[str]:
        """One clause per thing that changed, such as ``left a forward hook on 'relu1'``."""
        found: list[str] = []
        submodules = dict(self._module.named_modules(remove_duplicate=False))
        for path in {**self._submodules, **submodules}:
            before, after = self._submodules.get(path), submodules.get(path)
            if before is not after or before is None:
                found.append(f"replaced, added or removed the submodule '{path}'")
            else:
                found += self._attribute_differences(path, before)
        for (path, name), (tensor, copy, requires_grad, hooks) in self._tensors.items():
            found += _tensor_differences(f"{path}.{name}".lstrip("."), tensor, copy, requires_grad, hooks)
        return list(dict.fromkeys(found))

    def _attribute_differences(self, path: str, sub: nn.Module) -> list[str]:
        before, after = self._attributes[path], self._read(sub)
        where = f"'{path}'" if path else "the module"
        found = [f"{'set' if name in after else 'removed'} the attribute '{name}' of {where}"
                 for name in sorted(before.keys() ^ after.keys())]
        for name in before.keys() & after.keys():
            old, new = before[name], after[name]
            if _identical(old, new):
                continue
            if name == "training":
                found.append(f"switched {where} to {'training' if new else 'evaluation'} mode")
            elif name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                found.append(f"left or removed a hook on {where} ({name.strip('_')})")
            elif name in ("_parameters", "_buffers", "_modules"):
                changed = [k for (k, v), (_, w) in zip(old, new, strict=False) if v is not w] or "some"
                found.append(f"replaced {name.strip('_')} of {where}: {changed}")
            else:
                found.append(f"changed the attribute '{name}' of {where}")
        return found


def _tensors(sub: nn.Module) -> dict[str, Tensor]:
    return {**{k: v for k, v in sub._parameters.items() if v is not None},
            **{k: v for k, v in sub._buffers.items() if v is not None}}


def _identical(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_identical(a, b) for a, b in zip(old, new, strict=True))
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(_identical(a, b) for a, b in zip(old, new, strict=True))
    if isinstance(old, _PLAIN):
        return type(old) is type(new) and bool(old == new)
    return old is new


def _tensor_differences(name: str, tensor: Tensor, copy: Tensor, requires_grad: bool, hooks: int) -> list[str]:
    found = []
    if not _same(tensor.detach(), copy):
        found.append(f"changed the values of '{name}'")
    if tensor.requires_grad != requires_grad:
        found.append(f"set requires_grad of '{name}' to {tensor.requires_grad}")
    if tensor.is_leaf and tensor.grad is not None:
        found.append(f"left a gradient in '{name}'.grad")
    if len(tensor._backward_hooks or ()) != hooks:
        found.append(f"left or removed a hook on the tensor '{name}'")
    return found


@contextlib.contextmanager
def unchanged_module(module: nn.Module, who: str) -> Iterator[None]:
    """Require that the block leaves the module as it was, also when it ends in an exception (which goes on)."""
    state = ModuleState(module)
    try:
        yield
    finally:
        differences = state.differences()
        if differences:
            raise Violation(f"{who} " + "; ".join(differences[:4]) + ("; …" if len(differences) > 4 else ""))


@contextlib.contextmanager
def unchanged_tensors(who: str, **tensors: Tensor) -> Iterator[None]:
    """Require that the block leaves values, requires_grad, .grad and hooks of the tensors as they were."""
    before = {name: (tensor, tensor.detach().clone(), tensor.requires_grad, len(tensor._backward_hooks or ()))
              for name, tensor in tensors.items()}
    yield
    for name, state in before.items():
        for difference in _tensor_differences(name, *state):
            raise Violation(f"{who} {difference}")


def _torch_functions() -> dict[str, Any]:
    """What libraries like to patch: the forward of torch's layers and the functional interface."""
    layers = {f"torch.nn.{name}.forward": value.forward for name, value in vars(nn).items()
              if isinstance(value, type) and issubclass(value, nn.Module)}
    functions = {f"torch.nn.functional.{k}": v for k, v in vars(nn.functional).items() if callable(v)}
    return {**layers, **functions, "torch.nn.Module.__call__": nn.Module.__call__}


def _process_state() -> dict[str, Any]:
    hooks = {name: list(value) for name, value in vars(torch_module).items()
             if name.startswith("_global_") and isinstance(value, Mapping)}
    return {
        "torch's global random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's global random state": repr(np.random.get_state()),  # noqa: NPY002 - the legacy state is the global one
        "python's global random state": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the number of threads": torch.get_num_threads(),
        "numpy's error handling": np.geterr(),
        "global module hooks": hooks,
    }


@contextlib.contextmanager
def unchanged_process(who: str) -> Iterator[None]:
    """Require that the block leaves random states, grad mode, defaults and torch's own functions as they were."""
    state, functions = _process_state(), _torch_functions()
    yield
    after = _process_state()
    changed = [name for name, value in state.items() if after[name] != value]
    patched = [name for name, value in _torch_functions().items() if functions.get(name) is not value]
    require(not changed, f"{who} changes {', '.join(changed)}")
    require(not patched, f"{who} patches {', '.join(patched[:3])}")


@contextlib.contextmanager
def _nothing_but_new_objects() -> Iterator[None]:
    """Hide all objects that exist from the garbage collector: looking through a large heap takes seconds."""
    hidden = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not hidden:
            gc.unfreeze()


def _live_tensors() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if issubclass(type(thing), Tensor))


@dataclass(frozen=True)
class _Memory:
    """Tensors, bytes of numpy arrays, and bytes that Python holds."""

    tensors: int
    arrays: int
    python: int

    @classmethod
    def now(cls) -> _Memory:
        tensors = _live_tensors()
        numpy_only = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
        arrays = tracemalloc.take_snapshot().filter_traces([numpy_only]).traces
        return cls(tensors, sum(trace.size for trace in arrays), tracemalloc.get_traced_memory()[0])


_ARRAY_BYTES, _PYTHON_BYTES = 16, 4096
"""Growth in a call that is let pass; the interpreter's own caches take kilobytes before they have settled."""


def require_steady_memory(action: Callable[[int], Any], who: str, *, calls: int = 4) -> None:
    """Call ``action(0)``, ``action(1)``, … and require that nothing is left behind by each call.

    The first calls may fill caches. Then neither the number of tensors nor the memory of numpy arrays and Python
    objects may grow over each of two rows of calls; a single growth is let pass.
    """
    with _nothing_but_new_objects(), _traced():
        for i in range(3):
            action(i)
        states = [_Memory.now()]
        for row in range(2):
            for i in range(calls):
                action(3 + row * calls + i)
            states.append(_Memory.now())
    tensors = min(b.tensors - a.tensors for a, b in pairwise(states)) // calls
    arrays = min(b.arrays - a.arrays for a, b in pairwise(states)) // calls
    python = min(b.python - a.python for a, b in pairwise(states)) // calls
    require(tensors < 1, f"{who} leaves {tensors} more tensors behind with every call")
    require(arrays < _ARRAY_BYTES, f"{who} holds {arrays} more bytes of arrays after every call")
    require(python < _PYTHON_BYTES, f"{who} holds {python} more bytes after every call")


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Count the memory that Python and numpy take; leaves a tracing that is already under way to its owner."""
    mine = not tracemalloc.is_tracing()
    if mine:
        tracemalloc.start()
    try:
        yield
    finally:
        if mine:
            tracemalloc.stop()
