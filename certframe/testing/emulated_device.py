"""An accelerator for machines that have none: real values, working backward passes, and no mixing with the CPU.

    with emulated_device() as device:
        module.to(device)
        module(images.to(device))      # computed on the CPU, but mixing in a CPU tensor raises DeviceMixError

The emulated tensors say that they are on torch's ``meta`` device, which every torch has and on which ordinary code
never computes; each carries a CPU tensor with its values. While the context is open, allocating on that device gives
such a tensor, and an operation between one of them and a CPU tensor is refused as a GPU would refuse it. What a GPU
allows is allowed: CPU scalars, CPU indices, copies across, `.item()`. Nothing outlives the context but the tensors
themselves; move a module back with ``module.to("cpu")``.

This leans on torch's tensor-subclass machinery, which torch does not promise to keep. Where it is missing or behaves
otherwise, `emulated_device` raises `EmulationUnavailable`, and the checks that need it are skipped with that reason.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["DeviceMixError", "EmulatedDevice", "EmulationUnavailable", "emulated_device"]

_NAME = "meta"
_DATA: Any = Tensor.data


class DeviceMixError(RuntimeError):
    """An operation got tensors of two devices, as it would not on a real accelerator."""


class EmulationUnavailable(RuntimeError):
    """This torch, or this operation, cannot be emulated; the message says why."""


class EmulatedDevice:
    """What `emulated_device` yields: use it wherever a device is asked for.

    Attributes:
        device: the `torch.device`.
        host_syncs: names of the operations so far that made the host wait for the device (``item``, a copy to the
            CPU, a result whose shape depends on the values).
    """

    def __init__(self) -> None:
        self.device = torch.device(_NAME)
        self.host_syncs: list[str] = []


try:
    from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
    from torch.utils._pytree import tree_leaves, tree_map

    _MISSING = "" if hasattr(Tensor, "_make_wrapper_subclass") else "torch.Tensor._make_wrapper_subclass is missing"
except ImportError as error:  # pragma: no cover - only on a torch without these interfaces
    TorchDispatchMode = object  # type: ignore[assignment,misc]
    _MISSING = f"this torch lacks an interface: {error}"


class _Emulated(Tensor):
    """A tensor on the emulated device; `raw` holds its values on the CPU."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: Tensor) -> _Emulated:
        made: _Emulated = Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device(_NAME))
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
            cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(op, args, kwargs or {}, _Mode.current)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"emulated({self.raw!r})"


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation, also those without a tensor argument (allocations)."""

    current: ClassVar[_Mode | None] = None

    def __init__(self, state: EmulatedDevice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state = state

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(op, args, kwargs or {}, self)


class _FromData(TorchFunctionMode):
    """Lets ``torch.tensor(data, device=…)`` keep its data, which torch drops for the meta device."""

    _MAKERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DATA.__set__ and isinstance(args[0], _Emulated) and isinstance(args[1], _Emulated):
            args[0].raw = args[1].raw
        if func is Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
            func, args = torch.tensor, args[1:]
        device = kwargs.get("device")
        has_values = bool(args) and isinstance(args[0], _Emulated)
        if func not in self._MAKERS or has_values or device is None or torch.device(device).type != _NAME:
            return func(*args, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        return func(*args, **{**kwargs, "device": "cpu"}).to(device).requires_grad_(requires_grad)


@functools.cache
def _special() -> dict[str, frozenset[Any]]:
    aten = torch.ops.aten
    return {
        # May have arguments on two devices.
        "crossing": frozenset({aten._to_copy.default, aten.copy_.default}),
        # Take CPU index tensors for a tensor on the device.
        "indexing": frozenset({aten.index.Tensor, aten.index_put.default, aten.index_put_.default}),
        # The host needs the values to go on.
        "syncing": frozenset({aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default,
                              aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default,
                              aten.unique_dim.default, aten.bincount.default}),
    }


def _execute(op: Any, args: Any, kwargs: dict[str, Any], mode: _Mode | None) -> Any:
    if op is torch.ops.aten._has_compatible_shallow_copy_type.default:
        return False  # a parameter that changes its device is replaced, not overwritten
    if mode is not None and op._can_decompose():
        # Under inference_mode torch hands over composite operations whole; look at their parts.
        with mode:
            result = op.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    emulated = [t for t in tensors if isinstance(t, _Emulated)]
    if any(t.device.type == _NAME and not isinstance(t, _Emulated) for t in tensors):
        raise EmulationUnavailable(f"{op} got a tensor without values, made in a way that the emulation cannot see")
    _refuse_mixing(op, args, tensors, emulated)
    on_device, kwargs = _result_device(op, args, kwargs, bool(emulated))
    if mode is not None and emulated:
        _note_sync(op, args, on_device, mode.state)
    known = {id(t.raw): t for t in emulated}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        if torch.is_inference_mode_enabled():  # where torch refuses views of ordinary tensors made by a subclass
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        return _compute(op, args, kwargs, known, on_device)


def _compute(op: Any, args: Any, kwargs: dict[str, Any], known: dict[int, _Emulated], on_device: bool) -> Any:
    raw = op(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    if torch.Tag.inplace_view in op.tags:
        with torch._C._DisableTorchDispatch():
            op(*args, **kwargs)  # the wrapper's own shape and strides follow

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, _Emulated):
            return value
        if id(value) in known:  # in place, or out=…
            return known[id(value)]
        return _Emulated(value) if on_device else value

    return tree_map(wrap, raw)


def _unwrap(value: Any) -> Any:
    return value.raw if isinstance(value, _Emulated) else value


def _refuse_mixing(op: Any, args: Any, tensors: list[Tensor], emulated: list[_Emulated]) -> None:
    special = _special()
    if not emulated or op in special["crossing"]:
        return
    indices = {id(t) for t in args[1] if t is not None} if (
        op in special["indexing"] and isinstance(args[0], _Emulated)) else set()
    alien = [t for t in tensors if not isinstance(t, _Emulated) and t.dim() > 0 and id(t) not in indices]
    if alien:
        raise DeviceMixError(f"expected all tensors on one device, but {op} got one on the emulated device and one of "
                             f"shape {tuple(alien[0].shape)} on the {alien[0].device.type}")


def _result_device(op: Any, args: Any, kwargs: dict[str, Any], any_emulated: bool) -> tuple[bool, dict[str, Any]]:
    """Whether the result belongs on the emulated device, and the arguments for computing it on the CPU."""
    if op is torch.ops.aten.copy_.default:
        return isinstance(args[0], _Emulated), kwargs
    device = kwargs.get("device")
    if device is None:
        return any_emulated, kwargs
    generator = kwargs.get("generator")
    on_device = torch.device(device).type == _NAME
    if on_device and generator is not None:
        raise DeviceMixError(f"{op} on the emulated device got a generator of the {generator.device.type}")
    return on_device, {**kwargs, "device": "cpu"}


def _note_sync(op: Any, args: Any, on_device: bool, state: EmulatedDevice) -> None:
    special = _special()
    by_mask = op in special["indexing"] and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    if op in special["syncing"] or by_mask or (op in special["crossing"] and not on_device):
        state.host_syncs.append(str(op))


@contextlib.contextmanager
def emulated_device() -> Iterator[EmulatedDevice]:
    """Open the emulated accelerator for this thread.

    Raises:
        EmulationUnavailable: the torch at hand does not offer what this needs.
    """
    reason = unavailable()
    if reason:
        raise EmulationUnavailable(reason)
    with _opened() as state:
        yield state


@contextlib.contextmanager
def _opened() -> Iterator[EmulatedDevice]:
    if _Mode.current is not None:
        raise EmulationUnavailable("an emulated device is already open")
    state = EmulatedDevice()
    mode = _Mode(state)
    _Mode.current = mode
    try:
        with _FromData(), _autocast_by_the_cpu(), mode:
            yield state
    finally:
        _Mode.current = None


@contextlib.contextmanager
def _autocast_by_the_cpu() -> Iterator[None]:
    """Let ``torch.autocast(inputs.device.type)`` work: torch knows no autocast for the device that is borrowed."""
    original = torch.autocast.__init__

    def initialise(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == _NAME else device_type, *args, **kwargs)

    torch.autocast.__init__ = initialise  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__init__ = original  # type: ignore[method-assign]


@functools.cache
def unavailable() -> str:
    """Why the device cannot be emulated with the torch at hand; empty when it can. Tried once on a small example."""
    if _MISSING:
        return _MISSING
    failures: list[str] = []

    def attempt(name: str, action: Callable[[], bool]) -> None:
        try:
            good = action()
        except Exception as error:
            failures.append(f"{name} raises {type(error).__name__}: {' '.join(str(error).split())}")
        else:
            if not good:
                failures.append(f"{name} gives a wrong result")

    attempt("a small network on the emulated device", _values_and_gradients_agree)
    attempt("mixing devices", _mixing_is_refused)
    return f"torch {torch.__version__}: {'; '.join(failures)}" if failures else ""


def _values_and_gradients_agree() -> bool:
    layer = torch.nn.Conv2d(1, 2, 3)
    image = torch.linspace(0, 1, 25).reshape(1, 1, 5, 5)
    expected, = torch.autograd.grad(layer(leaf := image.clone().requires_grad_()).square().sum(), leaf)
    with torch.enable_grad(), _opened() as state:
        layer.to(state.device)
        leaf = image.to(state.device).requires_grad_()
        found, = torch.autograd.grad(layer(leaf).square().sum(), leaf)
        back = found.cpu()
    return found.device == state.device and torch.allclose(back, expected, rtol=1e-4)


def _mixing_is_refused() -> bool:
    with _opened() as state:
        try:
            torch.zeros(3, device=state.device) + torch.zeros(3)
        except DeviceMixError:
            return True
    return False
