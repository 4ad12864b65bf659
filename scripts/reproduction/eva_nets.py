"""The two networks of the EVA reproduction, and the images that they are trained and explained on.

Source: Fel et al., *Don't Lie to Me! Robust and Efficient Explainability with Verified Perturbation Analysis*,
CVPR 2023 [EVA]. The paper gives the widths (dense 256-128-64-32-10; convolutions 128-80-64, max pooling, dense 64-10),
not the sizes and strides of the convolutions: 3×3 with strides 2, 2 and 1 here.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import certframe

SETS = ("mnist", "cifar10")
SIZES: dict[str, tuple[int, int, int]] = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES: dict[str, tuple[str, ...]] = {"mnist": tuple("0123456789"), "cifar10": CIFAR_CLASSES}
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]  # of CIFAR-10's training images, per channel


def mnist_network() -> nn.Sequential:
    """The paper's dense network: 784-256-128-64-32-10, ReLU."""
    widths = (784, 256, 128, 64, 32)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def cifar10_network(*, training: bool = False) -> nn.Sequential:
    """The paper's convolutions 128-80-64, max pooling, dense 64-10, ReLU.

    With `training` batch normalisation stands behind every convolution, and dropout before the dense layers;
    `folded` takes both away again without changing what the network computes in eval mode.
    """
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 128, 2), (128, 80, 2), (80, 64, 1)):
        norm = [nn.BatchNorm2d(after)] if training else []
        layers += [nn.Conv2d(before, after, 3, stride, padding=1), *norm, nn.ReLU()]
    drop = [nn.Dropout(0.3)] if training else []
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), *drop, nn.Linear(1024, 64), nn.ReLU(),
                         nn.Linear(64, 10))


def folded(network: nn.Sequential) -> nn.Sequential:
    """The same function in eval mode, without batch normalisation (it goes into the convolutions) and dropout."""
    layers: list[nn.Module] = []
    for layer in network.eval():
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers.pop()
            assert isinstance(convolution, nn.Conv2d)
            layers.append(nn.utils.fuse_conv_bn_eval(convolution, layer))
        elif not isinstance(layer, nn.Dropout):
            layers.append(layer)
    return nn.Sequential(*layers)


def network_of(name: str) -> nn.Sequential:
    """The network of a data set, with the structure that its weights are stored for."""
    return mnist_network() if name == "mnist" else cifar10_network()


def model_of(name: str, weights: Path) -> certframe.TorchModel:
    """A trained network as a certframe model, with its normalisation inside."""
    network = network_of(name)
    network.load_state_dict(load_file(weights))
    scale = {"mean": MEAN, "std": STD} if name == "cifar10" else {}
    return certframe.TorchModel(network, SIZES[name], CLASSES[name], **scale)


def images(file: Path, part: str) -> tuple[Tensor, Tensor]:
    """``x_part`` and ``y_part`` of an .npz file: (N,C,H,W) float32 in [0, 1], and (N,) int64.

    The file has ``x_train``, ``y_train``, ``x_test``, ``y_test``: uint8 images N×28×28 or N×32×32×3, and labels.
    """
    with np.load(file) as stored:
        x, y = torch.from_numpy(stored[f"x_{part}"]), torch.from_numpy(stored[f"y_{part}"])
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return x.float().div(255).contiguous(), y.long()


def data_folder(parser: argparse.ArgumentParser, given: Path | None) -> Path:
    """The folder with mnist.npz and cifar10.npz: as given, else as CERTFRAME_TEST_DATA says."""
    folder = given or Path(os.environ.get("CERTFRAME_TEST_DATA", ""))
    if given is None and "CERTFRAME_TEST_DATA" not in os.environ:
        parser.error("name the folder that has mnist.npz and cifar10.npz: --data DIR")
    missing = [f"{name}.npz" for name in SETS if not (folder / f"{name}.npz").is_file()]
    if missing:
        parser.error(f"{folder} has no {' and no '.join(missing)}: give another folder with --data")
    return folder
