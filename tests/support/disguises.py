"""One small network written in the many ways in which networks are written: all compute the same.

A convolution, a residual block with batch norms, pooling, a dense layer; with an activation function of one's choice.
The last feature map is the output of ``features`` in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from networks import settled
from torch import Tensor, nn
from torch.nn import functional

SIZE = (3, 16, 16)


class Features(nn.Module):
    """Modules, each called once, none in place."""

    def __init__(self, act: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.act1, self.act2 = act(), act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(x + self.norm2(self.conv2(x)))


class Plain(nn.Module):
    """The network that the others are compared with."""

    features_class: type[Features] = Features
    in_place = False

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()

        def make() -> nn.Module:
            return act(inplace=True) if self.in_place else act()

        self.features = self.features_class(make)
        self.fc1, self.act, self.fc2 = nn.Linear(24, 10), make(), nn.Linear(10, 5)
        self.pool = nn.AvgPool2d(4)

    def activate(self, x: Tensor) -> Tensor:
        return self.act(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x)).flatten(1)
        return self.fc2(self.activate(self.fc1(x)))


class InPlace(Plain):
    """Activation modules that work in place."""

    in_place = True


class _Reused(Features):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        shortcut = x
        x = self.norm2(self.conv2(x))
        x += shortcut
        return self.act1(x)


class Reused(Plain):
    """One activation module for all places, and an in-place sum."""

    features_class = _Reused

    def activate(self, x: Tensor) -> Tensor:
        return self.features.act1(x)


class ReusedInPlace(Reused):
    """The same, in place: what timm's and torchvision's ResNets do."""

    in_place = True


_FUNCTIONS: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.ReLU: functional.relu, nn.ReLU6: functional.relu6, nn.GELU: functional.gelu, nn.SiLU: functional.silu,
    nn.Hardswish: functional.hardswish}


class _Functional(Features):
    def forward(self, x: Tensor) -> Tensor:
        f = _FUNCTIONS[type(self.act1)]
        x = functional.conv2d(x, self.conv1.weight, self.conv1.bias, stride=2, padding=1)
        x = f(_normed(self.norm1, x))
        return f(torch.add(x, _normed(self.norm2, functional.conv2d(x, self.conv2.weight, self.conv2.bias, padding=1))))


def _normed(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)


class Functional(Plain):
    """Functions called inside forward."""

    features_class = _Functional

    def activate(self, x: Tensor) -> Tensor:
        return _FUNCTIONS[type(self.act)](x)


class _IgnoringResults(Features):
    def forward(self, x: Tensor) -> Tensor:
        f = _FUNCTIONS[type(self.act1)]
        x = self.norm1(self.conv1(x))
        f(x, inplace=True)
        y = self.norm2(self.conv2(x)).add_(x)
        f(y, inplace=True)
        return y


class IgnoringResults(Plain):
    """Functions in place, whose results are not used."""

    features_class = _IgnoringResults


class _MadeInForward(Features):
    def forward(self, x: Tensor) -> Tensor:
        act = type(self.act1)
        x = act()(self.norm1(self.conv1(x)))
        return act()(x + self.norm2(self.conv2(x)))


class MadeInForward(Plain):
    """Activation modules made anew in every forward pass."""

    features_class = _MadeInForward

    def activate(self, x: Tensor) -> Tensor:
        return type(self.act)()(x)


class _Clamped(Features):
    def forward(self, x: Tensor) -> Tensor:
        high = 6.0 if isinstance(self.act1, nn.ReLU6) else None
        x = self.norm1(self.conv1(x)).clamp(0, high)
        x = x + self.norm2(self.conv2(x))
        return x.clamp_(min=0, max=high) if high else torch.clamp_min(x, 0)


class Clamped(Plain):
    """Rectifiers that are called clamp."""

    features_class = _Clamped


class NormAct(nn.BatchNorm2d):
    """Batch norm and activation in one module, as timm has them."""

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module) -> None:
        super().__init__(norm.num_features)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(_normed(self, x))


class _Fused(Features):
    def __init__(self, act: Callable[..., nn.Module]) -> None:
        super().__init__(act)
        self.norm1 = NormAct(self.norm1, act())
        self.act1 = nn.Identity()


class Fused(Plain):
    """`NormAct`."""

    features_class = _Fused


class WithDropout(Plain):
    """Dropout of every kind, which does nothing in eval mode."""

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__(act)
        self.drop, self.drop2d = nn.Dropout(0.5), nn.Dropout2d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(self.drop2d(x)))
        x = self.act(functional.dropout(self.fc1(x.flatten(1)), 0.5, self.training))
        return self.fc2(self.drop(x))


class InTrainMode(WithDropout):
    """The same, given in train mode, in which dropout is active and batch norms mix the pictures of a batch."""


WAYS = (InPlace, Reused, ReusedInPlace, Functional, IgnoringResults, MadeInForward, Clamped, Fused, WithDropout,
        InTrainMode)


def build(way: type[Plain], act: type[nn.Module]) -> nn.Module:
    """A network written that way, with the same weights as all others."""
    plain = settled(Plain(act)).state_dict()
    network = way(act)
    network.load_state_dict(plain)
    return network.train(way is InTrainMode)
