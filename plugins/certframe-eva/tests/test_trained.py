"""Trained networks: no sampled or attacked output leaves the bounds, at radii where many neurons are unstable."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from certframe_eva.bounds import upper_bounds
from certframe_eva.grid import cells
from certframe_eva.network import Network
from certframe_eva.overlap import overlap
from certframe_eva.regions import Region
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import certframe


class Dense(nn.Module):
    """mnist_fc_3layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 128), nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))
        return logits


class Basic(nn.Module):
    """A basic block of ResNet-20, whose shortcut picks every second pixel and pads channels."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.more = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return functional.relu(y + x)


class ResNet20(nn.Module):
    """resnet20_cifar10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Basic(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Basic(16, 32, 2), Basic(32, 32, 1), Basic(32, 32, 1))
        self.layer3 = nn.Sequential(Basic(32, 64, 2), Basic(64, 64, 1), Basic(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(functional.avg_pool2d(x, x.size(3)).view(x.size(0), -1))
        return logits


def small_convolutional() -> nn.Module:
    """cifar_cnn_a_mix."""
    return nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10))


def robust_convolutional() -> nn.Module:
    """mnist_a_adv and kw_mnist."""
    return nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))


CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CASES = {
    "mnist_fc_3layer": (Dense, {}, [("ibp+forward+backward", 2, 0.5), ("backward", math.inf, 0.02), ("ibp", 1, 1.0)]),
    "mnist_a_adv": (robust_convolutional, {}, [("forward", 2, 0.3), ("backward", math.inf, 0.1)]),
    "kw_mnist": (robust_convolutional, {}, [("ibp+forward", 2, 0.2)]),
    "cifar_cnn_a_mix": (small_convolutional, CIFAR, [("ibp+backward", 2, 0.3), ("backward", math.inf, 0.005)]),
    "resnet20_cifar10": (ResNet20, IMAGENET, [("ibp", 2, 0.01)]),
}


def pictures(folder: Path, name: str, count: int = 2) -> tuple[Tensor, Tensor]:
    data = np.load(folder / ("mnist.npz" if "mnist" in name else "cifar10.npz"))
    x = torch.from_numpy(data["x_test"][:count]).double() / 255
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return x.contiguous(), torch.from_numpy(data["y_test"][:count].astype(np.int64))


def highest(module: nn.Module, region: Region, masks: Tensor, rows: Tensor) -> Tensor:
    """(M, Q, R): what ten steps of projected gradient ascent find for every functional on every set."""
    found = torch.empty(region.items, region.sets, rows.shape[1], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for q in range(region.sets):
        for r in range(rows.shape[1]):
            delta = torch.randn(region.centre.shape, generator=generator, dtype=torch.float64) * 0.1 * region.eps
            best = torch.full((region.items,), -math.inf, dtype=torch.float64)
            for _ in range(10):
                delta = delta * ~masks[q]
                norm = delta.flatten(1).norm(p=region.p, dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
                delta = (delta * (region.eps / norm).clamp(max=1)).requires_grad_()
                value = (module(region.centre + delta) * rows[:, r]).sum(1)
                best = torch.maximum(best, value.detach())
                gradient, = torch.autograd.grad(value.sum(), delta)
                if region.p == 1:  # the steepest direction within the 1-norm is one pixel
                    size = gradient.abs().flatten(1)
                    gradient = (gradient.flatten(1) * (size == size.amax(1, keepdim=True))).view_as(gradient)
                gradient = gradient.sign() if region.p == math.inf else gradient / gradient.flatten(1).norm(
                    dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
                delta = delta.detach() + 0.3 * region.eps * gradient
            found[:, q, r] = best
    return found


@pytest.mark.parametrize("name", CASES)
def test_attacks_stay_within_the_bounds(data_dir: Path, name: str) -> None:
    build, normal, cases = CASES[name]
    network = build()
    weights: dict[str, Any] = load_file(data_dir / "weights" / f"{name}.safetensors")
    network.load_state_dict(weights)
    x, labels = pictures(data_dir, name)
    model = certframe.TorchModel(network.double().eval(), tuple(x.shape[1:]), mean=normal.get("mean"),  # type: ignore
                                 std=normal.get("std"))
    assert int((model.module(x).argmax(1) == labels).sum()) >= 1, "the weights are not those of this network"
    graph = Network.of(model.module, x[:2])
    one = torch.eye(10, dtype=torch.float64)
    rows = torch.stack([one[(labels + 1) % 10] - one[labels], -one[labels]], 1)
    masks = cells(2, *x.shape[2:])[:3]
    for method, p, eps in cases:
        region = Region.ball(x, eps, p, fixed=masks)
        found = upper_bounds(graph, region, rows, method)
        attacked = highest(model.module, region, masks, rows)
        assert bool((attacked <= found + 1e-9).all()), (method, p)
        separate, joint = (overlap(graph, region, labels, method, margin=margin) for margin in ("separate", "joint"))
        assert bool((joint <= separate).all())
        clean = torch.einsum("mrc,mc->mr", rows, model.module(x))[:, None]
        assert bool((found - clean > attacked - clean).all())
