"""Read weights from a file without running anything in it, and put them into a network or say why they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from certframe import UsageError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file, or in one that `torch.save` wrote (read with ``weights_only=True``).

    A training checkpoint is searched for its state dict, and ``module.`` (DistributedDataParallel) is taken off.

    Raises:
        UsageError: the file is not there, cannot be read, or holds something other than named tensors.
    """
    if not path.is_file():
        raise UsageError(f"weights '{path}': there is no such file; check the path")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split()).split(". ")[0][:160]
        raise UsageError(f"weights '{path}' cannot be read ({type(error).__name__}: {reason}): give a safetensors "
                         "file, or a state dict that torch.save wrote and that holds tensors only") from error
    key = next((k for k in _WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(k), Mapping)), None)
    state = found[key] if key else found
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"weights '{path}' hold no state dict: save model.state_dict()")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def put_weights(network: nn.Module, state: Mapping[str, Tensor], source: str, architecture: str) -> None:
    """Load a state dict that fits exactly (counters of batches seen may be missing).

    Raises:
        UsageError: a tensor is missing, unknown or of another shape; names the first few of each.
    """
    own = network.state_dict()
    wrong = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
             for name in own if name in state and state[name].shape != own[name].shape]
    lacking = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    faults = [f"{what} {_few(names)}" for what, names in
              (("missing", lacking), ("unknown", unknown), ("of another shape", wrong)) if names]
    if faults:
        raise UsageError(f"weights '{source}' do not fit {architecture}: {'; '.join(faults)}; give the architecture "
                         "they were trained with")
    network.load_state_dict(state, strict=False)


def _few(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more
