"""Small classifiers with softplus units, the networks of robust training, and the file that one is stored in."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import certframe

Architecture = Literal["dense", "conv"]
HEADER = "certframe.trained"


def network(architecture: Architecture, size: tuple[int, int, int], classes: int, beta: float) -> nn.Sequential:
    """A classifier of images of the size C, H, W, with softplus units of the sharpness beta.

    'dense' has 128 and 64 units, 'conv' two convolutions with 16 and 32 channels, stride 2, and 100 dense units.
    """
    channels, height, width = size
    unit = nn.Softplus
    if architecture == "dense":
        layers = [("flatten", nn.Flatten()), ("fc1", nn.Linear(channels * height * width, 128)), ("act1", unit(beta)),
                  ("fc2", nn.Linear(128, 64)), ("act2", unit(beta)), ("fc3", nn.Linear(64, classes))]
    else:
        across = 32 * (height // 4) * (width // 4)
        layers = [("conv1", nn.Conv2d(channels, 16, 4, 2, 1)), ("act1", unit(beta)),
                  ("conv2", nn.Conv2d(16, 32, 4, 2, 1)), ("act2", unit(beta)), ("flatten", nn.Flatten()),
                  ("fc1", nn.Linear(across, 100)), ("act3", unit(beta)), ("fc2", nn.Linear(100, classes))]
    return nn.Sequential(OrderedDict(layers))


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a safetensors file with JSON in its header; it is complete or absent."""
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()},
                   metadata={HEADER: json.dumps(dict(header), sort_keys=True)})
    certframe.write_atomic(path, content)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write` has written.

    Raises:
        UsageError: there is no such file, or it is none of these.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (FileNotFoundError, IsADirectoryError):
        raise certframe.UsageError(f"there is no file {path}: give one that 'certframe train-robust' wrote") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise certframe.UsageError(f"{path} is not a network that 'certframe train-robust' wrote: "
                                   f"{' '.join(str(error).split())}") from error


class Trained(certframe.TorchModel):
    """A network of `certframe train-robust`, as ``trained:runs/robust/model.safetensors``.

    Its units are softplus, so its gradients can be attacked as they are.
    """

    class Options(certframe.Options):
        """Options of `trained`."""

        weights: Path = Field(description="the file model.safetensors that 'certframe train-robust' wrote")

    argument: ClassVar[str] = "weights"

    def __init__(self, options: Options) -> None:
        tensors, header = read(options.weights)
        size: Sequence[int] = header["size"]
        net = network(header["architecture"], (size[0], size[1], size[2]), len(header["classes"]), header["beta"])
        net.load_state_dict({name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")})
        super().__init__(net, (size[0], size[1], size[2]), header["classes"], crop_pct=1.0)

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """An untrained network."""
        path = directory / "model.safetensors"
        torch.manual_seed(0)
        net = network("conv", (1, 12, 12), 3, 20.0)
        write(path, {f"net.{k}": v for k, v in net.state_dict().items()},
              {"architecture": "conv", "size": [1, 12, 12], "classes": ["a", "b", "c"], "beta": 20.0})
        return {"weights": path}
