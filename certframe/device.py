"""Where the work is done, and identities of models."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from certframe.errors import UsageError, one_line

_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
              "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
              "backend out of memory")
"""What torch says in a plain RuntimeError when memory is used up."""


def resolve_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1``, … or ``auto`` (the first accelerator, else the CPU) → a device that is there.

    Raises:
        UsageError: torch does not know the name, or this machine has no such device; lists what it has.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise UsageError("device 'meta' holds no values: use cpu or an accelerator")
        if device.type != "cpu":
            torch.empty(0, device=device)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"device {name!r} is not there ({_first_sentence(error)}): this machine has "
                         f"{', '.join(available_devices())}; use --device auto to take the best of them") from error
    return device


def _first_sentence(error: Exception) -> str:
    return one_line(error).split(". ")[0].split(" (")[0]


def available_devices() -> list[str]:
    """The names of the devices of this machine."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that something did not fit into memory, here or on an accelerator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers.

    Also of buffers that a state dict leaves out: a model's normalisation may be one.
    """
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters(remove_duplicate=False)),
               **dict(module.named_buffers(remove_duplicate=False))}
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        # Flat first: 1×1 weights in channels-last layout count as contiguous and still have a last stride above 1.
        flat = array.reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if array.dim() else repr(array.item()).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Autocast to bfloat16 or float16 on the device; nothing for "off"."""
    if precision == "off":
        yield
    else:
        with torch.autocast(device.type, dtype=getattr(torch, precision)):
            yield


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """No autocast on the device, for what would mean little in half precision: differences, sums, bounds."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def weights_state(module: nn.Module) -> tuple[Any, ...]:
    """Something that is different when weights have been replaced, changed or moved; read without waiting for them.

    For what an instance keeps of a model: unlike `weights_hash` it costs nothing, and holds in this process only.
    """
    return tuple((id(tensor), -1 if tensor.is_inference() else tensor._version, tensor.device, tensor.dtype)
                 for tensor in (*module.parameters(), *module.buffers()))
