"""Every family of methods on timm's vision transformer against the same network written out: matrices, loops, float64.

(`lrp` on transformers is compared in the same way in certframe-zennit's tests.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import settled
from torch import Tensor

from certframe.attributors.ablation import AblationCam
from certframe.attributors.cam import Cam, GradCam, GradCamPlusPlus, LayerCam
from certframe.attributors.deeplift import DeepLift
from certframe.attributors.gradient import Gradient, InputXGradient
from certframe.attributors.guided import GuidedBackprop
from certframe.attributors.occlusion import Occlusion
from certframe.attributors.path import IntegratedGradients

SIDE, PATCH, WIDTH, HEADS, CLASSES = 16, 4, 12, 3, 5
GRID = SIDE // PATCH
X = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.5
TARGETS = torch.tensor([1, 0, 3, 2])


@pytest.fixture(scope="module")
def model() -> Any:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    classifier = pytest.importorskip("certframe_timm.classifier", reason="certframe-timm is not installed")
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=HEADS,
        num_classes=CLASSES, pretrained_cfg_overlay={"input_size": (3, SIDE, SIDE)})
    return classifier.TimmClassifier(settled(network))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


class ByHand:
    """The network for one image at a time. `gelu` may be replaced."""

    def __init__(self, model: Any) -> None:
        self.w = {name: tensor.double() for name, tensor in model.network.state_dict().items()}
        normalise = model.module.get_submodule("normalise")
        self.mean, self.std = normalise.mean.double(), normalise.std.double()
        self.gelu: Callable[[Tensor], Tensor] = gelu

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        rows = []
        for row in x:
            centred = row - row.sum() / WIDTH
            rows.append(centred / torch.sqrt((centred * centred).sum() / WIDTH + 1e-6))
        return torch.stack(rows) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def embed(self, pixels: Tensor) -> Tensor:
        """(3,H,W) → tokens (17,12), the class token first."""
        x, weight = (pixels - self.mean) / self.std, self.w["patch_embed.proj.weight"].reshape(WIDTH, -1)
        tokens = [self.w["cls_token"][0, 0]]
        for i in range(GRID):
            for j in range(GRID):
                patch = x[:, PATCH * i:PATCH * (i + 1), PATCH * j:PATCH * (j + 1)].reshape(-1)
                tokens.append(weight @ patch + self.w["patch_embed.proj.bias"])
        return torch.stack(tokens) + self.w["pos_embed"][0]

    def attention(self, block: str, x: Tensor) -> Tensor:
        qkv, outputs, size = self.linear(f"{block}.attn.qkv", x), [], WIDTH // HEADS
        for head in range(HEADS):
            q, k, v = (qkv[:, part * WIDTH + head * size:part * WIDTH + (head + 1) * size] for part in range(3))
            scores = torch.exp(q @ k.T / math.sqrt(size))
            outputs.append((scores / scores.sum(1, keepdim=True)) @ v)
        return self.linear(f"{block}.attn.proj", torch.cat(outputs, 1))

    def mlp(self, block: str, x: Tensor) -> Tensor:
        return self.linear(f"{block}.mlp.fc2", self.gelu(self.linear(f"{block}.mlp.fc1", x)))

    def body(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the last attention after its norm, which is `final`, and the residual stream."""
        x = self.embed(pixels)
        x = x + self.attention("blocks.0", self.norm("blocks.0.norm1", x))
        x = x + self.mlp("blocks.0", self.norm("blocks.0.norm2", x))
        return self.norm("blocks.1.norm1", x), x

    def head(self, final: Tensor, stream: Tensor) -> Tensor:
        x = stream + self.attention("blocks.1", final)
        x = x + self.mlp("blocks.1", self.norm("blocks.1.norm2", x))
        return self.linear("head", self.norm("norm", x)[:1])[0]

    def logits(self, pixels: Tensor) -> Tensor:
        return self.head(*self.body(pixels))

    def input_gradient(self, pixels: Tensor, target: Tensor) -> Tensor:
        x = pixels.clone().requires_grad_()
        gradient, = torch.autograd.grad(self.logits(x)[target], x)
        return gradient

    def final(self, pixels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A and ∂f_c/∂A as (12,4,4) maps, without the class token."""
        tokens, stream = self.body(pixels)
        tokens = tokens.detach().requires_grad_()
        gradient, = torch.autograd.grad(self.head(tokens, stream.detach())[target], tokens)
        return as_map(tokens.detach()), as_map(gradient)


def as_map(tokens: Tensor) -> Tensor:
    maps = torch.zeros(WIDTH, GRID, GRID, dtype=tokens.dtype)
    for cell in range(GRID * GRID):
        maps[:, cell // GRID, cell % GRID] = tokens[1 + cell]
    return maps


def compare(model: Any, method: Any, expected: Callable[[Tensor, Tensor], Tensor]) -> None:
    found = method.attribute(model, X, TARGETS, rng=None).maps
    wanted = torch.stack([expected(x.double(), target).detach() for x, target in zip(X, TARGETS, strict=True)]).float()
    assert int((wanted.abs().amax((1, 2)) > 0).sum()) >= 2  # a relu may leave nothing of some
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_it_is_the_same_network(model: Any) -> None:
    hand = ByHand(model)
    expected = torch.stack([hand.logits(x.double()) for x in X]).float()
    torch.testing.assert_close(model.module(X), expected, rtol=1e-4, atol=1e-4)


def test_gradient_and_its_product_with_the_input(model: Any) -> None:
    hand = ByHand(model)
    compare(model, Gradient(), lambda x, c: hand.input_gradient(x, c).abs().sum(0))
    compare(model, InputXGradient(), lambda x, c: (x * hand.input_gradient(x, c)).sum(0))


def test_integrated_gradients(model: Any) -> None:
    hand = ByHand(model)

    def expected(x: Tensor, target: Tensor) -> Tensor:
        gradients = [hand.input_gradient(x * a / 4, target) for a in range(5)]
        return (x * (gradients[0] / 2 + sum(gradients[1:4]) + gradients[4] / 2) / 4).sum(0)

    compare(model, IntegratedGradients(IntegratedGradients.Options(steps=5)), expected)


class _GuidedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return gelu(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return torch.where(gradient > 0, gradient, 0.0) * (gelu(x) / x + x * density)


def test_guided_backprop(model: Any) -> None:
    hand = ByHand(model)
    hand.gelu = _GuidedGelu.apply
    compare(model, GuidedBackprop(), lambda x, c: hand.input_gradient(x, c).abs().sum(0))


def test_class_activation_maps(model: Any) -> None:
    hand = ByHand(model)

    def weighted(weights: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def expected(x: Tensor, target: Tensor) -> Tensor:
            a, g = hand.final(x, target)
            return (weights(a, g) * a).sum(0)
        return expected

    def plus(a: Tensor, g: Tensor) -> Tensor:
        alpha = g**2 / (2 * g**2 + (a * g**3).sum((1, 2), keepdim=True))
        return (alpha * g.clamp(min=0)).sum((1, 2), keepdim=True)

    compare(model, Cam(), weighted(lambda a, g: g.sum((1, 2), keepdim=True)))
    for method, weights in ((GradCam(), lambda a, g: g.mean((1, 2), keepdim=True)), (GradCamPlusPlus(), plus),
                            (LayerCam(), lambda a, g: g.clamp(min=0))):
        compare(model, method, lambda x, c, weights=weights: weighted(weights)(x, c).clamp(min=0))


def test_ablation_cam(model: Any) -> None:
    hand = ByHand(model)

    def expected(x: Tensor, target: Tensor) -> Tensor:
        tokens, stream = hand.body(x)
        score, total = hand.head(tokens, stream)[target], torch.zeros(GRID, GRID, dtype=torch.float64)
        for k in range(WIDTH):
            without = tokens.clone()
            without[1:, k] = 0  # the patches; the class token is no part of the map
            total += (score - hand.head(without, stream)[target]) / score * as_map(tokens)[k]
        return total.clamp(min=0)

    compare(model, AblationCam(), expected)


@pytest.mark.parametrize(("patch", "stride"), [(2, 1), (2, 2), (3, 1)])
def test_occlusion_of_tokens(model: Any, patch: int, stride: int) -> None:
    hand = ByHand(model)

    def expected(x: Tensor, target: Tensor) -> Tensor:
        tokens, stream = hand.body(x)
        score, total = hand.head(tokens, stream)[target], torch.zeros(GRID, GRID, dtype=torch.float64)
        for i in range(0, GRID - patch + 1, stride):
            for j in range(0, GRID - patch + 1, stride):
                covered = tokens.clone()
                for cell in range(GRID * GRID):
                    if i <= cell // GRID < i + patch and j <= cell % GRID < j + patch:
                        covered[1 + cell] = 0
                total[i:i + patch, j:j + patch] += score - hand.head(covered, stream)[target]
        return total

    compare(model, Occlusion(Occlusion.Options(layer="final", patch=patch, stride=stride)), expected)


def test_occlusion_of_pixels(model: Any) -> None:
    hand = ByHand(model)

    def expected(x: Tensor, target: Tensor) -> Tensor:
        score, total = hand.logits(x)[target], torch.zeros(SIDE, SIDE, dtype=torch.float64)
        for i in range(0, SIDE - 7, 4):
            for j in range(0, SIDE - 7, 4):
                covered = x.clone()
                covered[:, i:i + 8, j:j + 8] = 0
                total[i:i + 8, j:j + 8] += score - hand.logits(covered)[target]
        return total

    compare(model, Occlusion(Occlusion.Options(patch=8, stride=4)), expected)


class Push(ByHand):
    """What a change u of the pixels becomes, step by step, when every step is the secant between two images.

    Every value of `ByHand` is a pair here, of the image and of the reference, and goes together with the change.
    """

    def __init__(self, model: Any, x: Tensor, x0: Tensor) -> None:
        super().__init__(model)
        self.x, self.x0 = x, x0

    def multipliers(self, target: Tensor) -> Tensor:
        u = (self.x - self.x0).clone().requires_grad_()
        multipliers, = torch.autograd.grad(self.pushed(u)[target], u)  # the map u → pushed(u) is linear
        return multipliers

    def pushed(self, u: Tensor) -> Tensor:
        zero = self.embed(torch.zeros_like(u))
        x, x0, u = self.embed(self.x), self.embed(self.x0), self.embed(u) - zero
        for block in ("blocks.0", "blocks.1"):
            x, x0, u = (a + b for a, b in zip((x, x0, u), self._attend(block, *self._normed(
                f"{block}.norm1", x, x0, u)), strict=True))
            x, x0, u = (a + b for a, b in zip((x, x0, u), self._mixed(block, *self._normed(
                f"{block}.norm2", x, x0, u)), strict=True))
        return self._without_bias("head", self._normed("norm", x, x0, u)[2][:1])[0]

    def _without_bias(self, name: str, u: Tensor) -> Tensor:
        return u @ self.w[f"{name}.weight"].T

    def _linear(self, name: str, x: Tensor, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.linear(name, x), self.linear(name, x0), self._without_bias(name, u)

    def _normed(self, name: str, x: Tensor, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c, c0, uc = (t - t.mean(1, keepdim=True) for t in (x, x0, u))
        v, v0 = (t.square().mean(1, keepdim=True) + 1e-6 for t in (c, c0))
        r, r0 = v**-0.5, v0**-0.5
        same = v == v0  # the class token, before the first attention
        ur = torch.where(same, -0.5 * v**-1.5, (r - r0) / (v - v0)) * ((c + c0) * uc).mean(1, keepdim=True)
        pushed = (r + r0) / 2 * uc + (c + c0) / 2 * ur
        return self.norm(name, x), self.norm(name, x0), pushed * self.w[f"{name}.weight"]

    def _mixed(self, block: str, x: Tensor, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, h0, uh = self._linear(f"{block}.mlp.fc1", x, x0, u)
        slope = (gelu(h) - gelu(h0)) / torch.where(h == h0, 1.0, h - h0)
        return self._linear(f"{block}.mlp.fc2", gelu(h), gelu(h0), slope * uh)

    def _attend(self, block: str, x: Tensor, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size, pushed = WIDTH // HEADS, []
        parts = [t.reshape(-1, 3, HEADS, size) for t in self._linear(f"{block}.attn.qkv", x, x0, u)]
        for head in range(HEADS):
            (q, k, v), (q0, k0, v0), (uq, uk, uv) = (t[:, :, head].unbind(1) for t in parts)
            s, s0 = q @ k.T / math.sqrt(size), q0 @ k0.T / math.sqrt(size)
            us = ((q + q0) / 2 @ uk.T + uq @ (k + k0).T / 2) / math.sqrt(size)
            p, p0, up = self._softmax(s, s0, us)
            pushed.append((p + p0) / 2 @ uv + up @ (v + v0) / 2)
        return (self.attention(block, x), self.attention(block, x0),
                self._without_bias(f"{block}.attn.proj", torch.cat(pushed, 1)))

    def _softmax(self, s: Tensor, s0: Tensor, us: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Through exp, the sum, the logarithm, and exp again."""
        def slope(y: Tensor, y0: Tensor, a: Tensor, a0: Tensor, where_same: Tensor) -> Tensor:
            return torch.where(a == a0, where_same, (y - y0) / torch.where(a == a0, 1.0, a - a0))
        e, e0 = s.exp(), s0.exp()
        total, total0 = e.sum(1, keepdim=True), e0.sum(1, keepdim=True)
        ue = slope(e, e0, s, s0, e) * us
        ulog = slope(total.log(), total0.log(), total, total0, 1 / total) * ue.sum(1, keepdim=True)
        p, p0 = e / total, e0 / total0
        return p, p0, slope(p, p0, p.log(), p0.log(), p) * (us - ulog)


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_deeplift(model: Any, baseline: float) -> None:
    def expected(x: Tensor, target: Tensor) -> Tensor:
        reference = torch.full_like(x, baseline)
        contributions = (x - reference) * Push(model, x, reference).multipliers(target)
        hand = ByHand(model)
        rise = hand.logits(x)[target] - hand.logits(reference)[target]
        torch.testing.assert_close(contributions.sum(), rise)
        return contributions.sum(0)

    compare(model, DeepLift(DeepLift.Options(baseline=baseline)), expected)


def test_attention_that_is_not_fused_gives_the_same(model: Any) -> None:
    """timm calls torch's attention or writes the matrices out, by a switch."""
    written_out = copy.deepcopy(model.network)
    for block in written_out.blocks:
        block.attn.fused_attn = not block.attn.fused_attn
    other = type(model)(written_out)
    for method in (DeepLift(), GuidedBackprop(), InputXGradient(), GradCam(), Occlusion()):
        expected = method.attribute(model, X, TARGETS, rng=None).maps
        found = method.attribute(other, X, TARGETS, rng=None).maps
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
