"""Small networks with the habits of large ones: in-place activations, residual sums, class tokens, channels last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def settled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode and reproducible weights, batch norms with statistics other than 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


class Block(nn.Module):
    """A residual block as timm writes it: one ReLU module called twice, in place, and an in-place sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.act(x)


class Residual(nn.Module):
    """Two residual stages, global pooling, 5 logits; final is ``stage2``."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.stage1 = nn.Sequential(Block(6), Block(6))
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.stage2 = nn.Sequential(Block(8), Block(8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


class Opaque(Residual):
    """The same with a branch on a value, which no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) < 1e9 else super().forward(x * 0)


class Attention(nn.Module):
    """A pre-norm attention block that takes sizes from its input, as they do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(images, tokens, 3, width).unbind(2)
        x = x + torch.softmax(q @ k.transpose(1, 2) / width**0.5, -1) @ v
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A vision transformer that reads its class token (or, with ``pool="mean"``, the mean of the patches)."""

    def __init__(self, pool: str = "token", size: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.pool = pool
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.cls = nn.Parameter(torch.zeros(1, 1, 12))
        self.register_buffer("position", torch.zeros(1, 1 + size[0] * size[1] // 16, 12))
        self.blocks = nn.Sequential(Attention(12), Attention(12))
        self.norm = nn.LayerNorm(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = self.norm(self.blocks(x))
        logits: Tensor = self.fc(x[:, 0] if self.pool == "token" else x[:, 1:].mean(1))
        return logits


class ChannelsLast(nn.Module):
    """Features in the layout (B,h,w,K), as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 4, stride=4)
        self.norm = nn.LayerNorm(7)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        logits: Tensor = self.fc(x.mean((1, 2)))
        return logits


class Wrong(nn.Module):
    """Returns whatever a function makes of the pooled input (B, 3)."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Any:
        return self.act(x)


def by_hook(network: nn.Module, layer: nn.Module, x: Tensor, call: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    """Activation at a layer, logits, and the gradient of the sum of logit 1 with respect to the activation.

    The plain way to do it: a forward hook that swaps a copy with a gradient in.
    """
    seen: list[Tensor] = []

    def swap(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        fresh = output.detach().clone().requires_grad_()
        seen.append(fresh)
        return fresh.clone()

    handle = layer.register_forward_hook(swap)
    try:
        logits = network(x)
    finally:
        handle.remove()
    gradient, = torch.autograd.grad(logits[:, 1].sum(), seen[call])
    return seen[call].detach(), logits.detach(), gradient
