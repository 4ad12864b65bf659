"""Transformers: attention weights and the scale of layer norms are constants, and relevance is conserved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from certframe_zennit.lrp import Lrp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import certframe

Array = NDArray[np.float64]
TINY = 1e-9


def explain(model: certframe.Model, images: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return Lrp(Lrp.Options(**options)).attribute(model, images, targets, rng=None).maps


def images(size: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, size, size, generator=generator) + 0.2 * torch.randn(
        count, 3, size, size, generator=generator)


# -- a tiny attention model, and the same written out in numpy --------------------------------------------------------


class Tiny(nn.Module):
    """4×4 patches of 2×2 pixels, a class token, one block with two heads, written without torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.cls, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.act, self.fc2 = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        q, k, v = self.qkv(self.norm1(x)).view(len(x), 17, 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(len(x), 17, 8))
        x = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return self.head(self.norm3(x)[:, 0])


def tiny() -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Tiny()
        for norm in (made.norm1, made.norm2, made.norm3):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return made.eval().requires_grad_(False)


def shared(contributions: Array, constant: Array | float, relevance: Array) -> Array:
    total = contributions.sum(1) + constant
    return (contributions * (relevance / (total + np.where(total >= 0, TINY, -TINY)))[:, None]).sum(0)


def arrays(layer: nn.Module) -> tuple[Array, Array]:
    return layer.weight.double().numpy(), layer.bias.double().numpy()


def dense(layer: nn.Linear, x: Array, relevance: Array) -> Array:
    """ε-rule, token by token."""
    weight, bias = arrays(layer)
    return np.stack([shared(weight * token, bias, r) for token, r in zip(x, relevance, strict=True)])


def normed(layer: nn.LayerNorm, x: Array) -> Array:
    weight, bias = arrays(layer)
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + layer.eps) * weight + bias


def norm_rule(layer: nn.LayerNorm, x: Array, relevance: Array) -> Array:
    """The norm as a matrix whose scale is a constant: centring, scaling, weighting."""
    weight, bias = arrays(layer)
    size = x.shape[1]
    found = []
    for token, r in zip(x, relevance, strict=True):
        matrix = (weight / np.sqrt(token.var() + layer.eps))[:, None] * (np.eye(size) - 1 / size)
        found.append(shared(matrix * token, bias, r))
    return np.stack(found)


def by_hand(net: Tiny, image: Tensor, target: int) -> dict[str, Array]:
    pixels = image.double().numpy()
    weight, bias = arrays(net.patches)
    patches = pixels.reshape(3, 4, 2, 4, 2).transpose(1, 3, 0, 2, 4).reshape(16, 12)
    embedded = patches @ weight.reshape(8, 12).T + bias
    tokens = np.concatenate([net.cls.double().numpy()[0], embedded])
    x0 = tokens + net.position.double().numpy()[0]
    n1 = normed(net.norm1, x0)
    w, b = arrays(net.qkv)
    q, k, v = (n1 @ w.T + b).reshape(17, 3, 2, 4).transpose(1, 2, 0, 3)
    weights = np.exp(q @ k.transpose(0, 2, 1) / 2)
    weights /= weights.sum(2, keepdims=True)
    mixed = (weights @ v).transpose(1, 0, 2).reshape(17, 8)
    attended = mixed @ arrays(net.out)[0].T + arrays(net.out)[1]
    x1 = x0 + attended
    hidden = torch.from_numpy(normed(net.norm2, x1) @ arrays(net.fc1)[0].T + arrays(net.fc1)[1])
    active = functional.gelu(hidden).numpy()
    after = active @ arrays(net.fc2)[0].T + arrays(net.fc2)[1]
    x2 = x1 + after
    n3 = normed(net.norm3, x2)
    logits = n3[:1] @ arrays(net.head)[0].T + arrays(net.head)[1]

    r3 = np.zeros((17, 8))
    r3[:1] = dense(net.head, n3[:1], np.where(np.arange(4) == target, logits, 0))
    r2 = norm_rule(net.norm3, x2, r3)
    r_after, r1 = after / x2 * r2, x1 / x2 * r2
    r_mlp = dense(net.fc1, normed(net.norm2, x1), dense(net.fc2, active, r_after))
    r1 = r1 + norm_rule(net.norm2, x1, r_mlp)
    r_mixed = dense(net.out, mixed, attended / x1 * r1).reshape(17, 2, 4)
    r_v = np.zeros((17, 2, 4))
    for head in range(2):
        for channel in range(4):
            column = v[head, :, channel]
            r_v[:, head, channel] = shared(weights[head] * column, 0, r_mixed[:, head, channel])
    value = nn.Linear(8, 8)
    value.weight.data, value.bias.data = net.qkv.weight[16:], net.qkv.bias[16:]
    value.requires_grad_(False)
    r_n1 = dense(value, n1, r_v.reshape(17, 8))
    r0 = x0 / x1 * r1 + norm_rule(net.norm1, x0, r_n1)
    r_embedded = (tokens / x0 * r0)[1:]
    low, high = (end.reshape(3, 4, 2, 4, 2).transpose(1, 3, 0, 2, 4).reshape(16, 12)
                 for end in (pixels.clip(max=0), pixels.clip(min=1)))
    flat = weight.reshape(8, 12)
    r_patches = np.stack([
        shared(flat * x - np.maximum(flat, 0) * lo - np.minimum(flat, 0) * hi, 0, r)
        for x, lo, hi, r in zip(patches, low, high, r_embedded, strict=True)])
    return {"input": r_patches.reshape(4, 4, 3, 2, 2).transpose(2, 0, 3, 1, 4).reshape(3, 8, 8).sum(0),
            "patches": r_embedded.sum(1).reshape(4, 4), "norm1": r_n1[1:].sum(1).reshape(4, 4)}


@pytest.mark.parametrize("layer", ["input", "patches", "norm1"])
def test_a_tiny_attention_model_written_by_hand(layer: str) -> None:
    net, x, targets = tiny(), images(8), torch.tensor([0, 3, 2])
    model = certframe.TorchModel(net, (3, 8, 8))
    found = explain(model, x, targets, layer=layer, epsilon=0).double().numpy()
    for image, target, one in zip(x, targets, found, strict=True):
        expected = by_hand(net, image, int(target))[layer]
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


# -- attention as torch, timm and torchvision write it ----------------------------------------------------------------


class WithTorchAttention(nn.Module):
    """`Tiny` with torch's own attention, in either way of writing it."""

    def __init__(self, tiny: Tiny, fused: bool) -> None:
        super().__init__()
        self.tiny, self.fused = tiny, fused
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.attention.in_proj_weight.data, self.attention.in_proj_bias.data = tiny.qkv.weight, tiny.qkv.bias
        self.attention.out_proj.load_state_dict(tiny.out.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        net = self.tiny
        x = net.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([net.cls.expand(x.shape[0], -1, -1), x], 1) + net.position
        n = net.norm1(x)
        if self.fused:
            q, k, v = net.qkv(n).view(x.shape[0], 17, 3, 2, 4).permute(2, 0, 3, 1, 4)
            x = x + net.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        else:
            x = x + self.attention(n, n, n, need_weights=False)[0]
        return net.head(net.norm3(x + net.fc2(functional.gelu(net.fc1(net.norm2(x)))))[:, 0])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layer", ["input", "tiny.norm1"])
def test_attention_of_torch_is_the_same(fused: bool, layer: str) -> None:
    net, x, targets = tiny(), images(8), torch.tensor([0, 3, 2])
    other = certframe.TorchModel(WithTorchAttention(net, fused).eval(), (3, 8, 8))
    expected = explain(certframe.TorchModel(net, (3, 8, 8)), x, targets, layer=layer.removeprefix("tiny."))
    found = explain(other, x, targets, layer=layer)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def frozen_attention(net: nn.Module, x: Tensor) -> Tensor:
    """A timm vision transformer from the tokens behind its embedding, with the constants detached: plain autograd."""
    def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + layer.eps).rsqrt().detach()
        return centred * scale * layer.weight + layer.bias

    for block in net.blocks:
        rows, tokens, width = x.shape
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(norm(block.norm1, x)).view(rows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (width // heads) ** 0.5).softmax(-1).detach()
        x = x + block.attn.proj((weights @ v).transpose(1, 2).reshape(rows, tokens, width))
        hidden = block.mlp.fc1(norm(block.norm2, x))
        x = x + block.mlp.fc2(hidden * (functional.gelu(hidden) / hidden).detach())
    return net.head(norm(net.norm, x)[:, 0])


@pytest.fixture(scope="module")
def vit() -> certframe.Model:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    classifier = pytest.importorskip("certframe_timm.classifier", reason="certframe-timm is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("vit_tiny_patch16_224", num_classes=6, depth=4,
                                    pretrained_cfg_overlay={"input_size": (3, 224, 224)})
        nn.init.normal_(network.head.weight, std=0.2)
    return classifier.TimmClassifier(network)


def test_timms_vision_transformer_against_autograd(vit: certframe.Model) -> None:
    net, x, targets = vit.network, images(224, 2), torch.tensor([5, 0])
    seen: list[Tensor] = []
    hook = net.blocks[0].register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    vit.module(x)
    hook.remove()
    tokens = seen[0].clone().requires_grad_()
    logits = frozen_attention(net, tokens)
    torch.testing.assert_close(logits, vit.module(x), rtol=1e-3, atol=1e-4)
    gradient, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), tokens)
    expected = (tokens * gradient)[:, 1:].sum(2).detach().view(2, 14, 14)
    found = explain(vit, x, targets, layer="norm_pre", epsilon=0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("layer", "size"), [("input", 224), ("final", 14), ("blocks.1", 14)])
def test_a_vision_transformer_has_maps_of_patches_and_of_pixels(vit: certframe.Model, layer: str, size: int) -> None:
    x, targets = images(224, 2), torch.tensor([5, 0])
    found = explain(vit, x, targets, layer=layer)
    assert found.shape == (2, size, size)
    assert (found.flatten(1).std(1) > 0).all()
    alone = torch.cat([explain(vit, x[i:i + 1], targets[i:i + 1], layer=layer) for i in range(2)])
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4 * float(found.abs().max()))
