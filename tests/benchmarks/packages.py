"""How existing packages compute what certframe's attributors compute: as their documentation shows it, for a batch.

Each function takes a certframe model and the options of the method, and returns what explains a batch for one class:
``(B,C,H,W), class → (B,h,w)``. The models are frozen, which spares the packages the gradients of the weights.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Explain = Callable[[Tensor, int], Tensor]
FINAL = "network.bn2"
"""Where lite0's last feature map is, as a module path."""


def captum_gradient(model: Any) -> Explain:
    from captum.attr import Saliency
    method = Saliency(model.module)
    return lambda x, c: method.attribute(x.detach().requires_grad_(), target=c).sum(1)


def captum_input_x_gradient(model: Any) -> Explain:
    from captum.attr import InputXGradient
    method = InputXGradient(model.module)
    return lambda x, c: method.attribute(x.detach().requires_grad_(), target=c).sum(1)


def captum_integrated_gradients(model: Any, steps: int) -> Explain:
    from captum.attr import IntegratedGradients
    method = IntegratedGradients(model.module)
    return lambda x, c: method.attribute(x, 0.0, target=c, n_steps=steps, method="riemann_trapezoid",
                                         internal_batch_size=32).sum(1)


def captum_guided_backprop(model: Any) -> Explain:
    from captum.attr import GuidedBackprop
    method = GuidedBackprop(_not_in_place(model.module))
    return lambda x, c: method.attribute(x.detach().requires_grad_(), target=c).abs().sum(1)


def _not_in_place(module: nn.Module) -> nn.Module:
    """captum's hooks cannot be on rectifiers in place."""
    for part in module.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
    return module


def _captum_noise(model: Any, kind: str, samples: int) -> Explain:
    from captum.attr import NoiseTunnel, Saliency
    method = NoiseTunnel(Saliency(model.module))

    def explain(x: Tensor, c: int) -> Tensor:
        spread = 0.2 * float(x.max() - x.min())
        return method.attribute(x, nt_type=kind, nt_samples=samples, nt_samples_batch_size=1, stdevs=spread, target=c,
                                abs=False).abs().sum(1)
    return explain


def captum_smoothgrad(model: Any, samples: int) -> Explain:
    return _captum_noise(model, "smoothgrad", samples)


def captum_vargrad(model: Any, samples: int) -> Explain:
    return _captum_noise(model, "vargrad", samples)


def captum_deeplift(model: Any) -> Explain:
    from captum.attr import DeepLift
    method = DeepLift(_not_in_place(model.module))
    return lambda x, c: method.attribute(x, 0.0, target=c).sum(1)


def captum_occlusion(model: Any, patch: int, stride: int) -> Explain:
    from captum.attr import Occlusion
    method = Occlusion(model.module)

    def explain(x: Tensor, c: int) -> Tensor:
        with torch.no_grad():
            return method.attribute(x, (3, patch, patch), (3, stride, stride), 0.0, target=c)[:, 0]
    return explain


def captum_grad_cam(model: Any) -> Explain:
    from captum.attr import LayerGradCam
    method = LayerGradCam(model.module, model.module.get_submodule(FINAL))
    return lambda x, c: method.attribute(x.detach().requires_grad_(), c, relu_attributions=True)[:, 0]


def zennit_lrp(model: Any) -> Explain:
    from zennit import attribution, canonizers, composites, rules, types

    normalise = model.module.get_submodule("normalise")
    low, high = ((bound - normalise.mean[None]) / normalise.std[None] for bound in (0.0, 1.0))
    used = composites.SpecialFirstLayerMapComposite(
        [*composites.layer_map_base(), (types.Convolution, rules.ZPlus()), (nn.Linear, rules.Epsilon())],
        [(types.Convolution, rules.ZBox(low, high))], canonizers=[canonizers.SequentialMergeBatchNorm()])

    def explain(x: Tensor, c: int) -> Tensor:
        chosen = nn.functional.one_hot(torch.full((len(x),), c), len(model.classes)).float()
        with attribution.Gradient(model.network, used) as attributor:
            return attributor(normalise(x).detach().requires_grad_(), chosen)[1].sum(1)
    return explain


def _torchcam(model: Any, name: str, layer: str, **options: Any) -> Explain:
    from torchcam import methods

    def explain(x: Tensor, c: int) -> Tensor:
        with getattr(methods, name)(model.module, target_layer=layer, **options) as extractor:
            scores = model.module(x.detach().requires_grad_(name not in ("CAM", "ScoreCAM")))
            return extractor(c, scores, normalized=False)[0].detach()
    return explain


def torchcam_cam(model: Any) -> Explain:
    return _torchcam(model, "CAM", FINAL, fc_layer="network.classifier")


def torchcam_grad_cam(model: Any) -> Explain:
    return _torchcam(model, "GradCAM", FINAL)


def torchcam_grad_cam_plus_plus(model: Any) -> Explain:
    return _torchcam(model, "GradCAMpp", FINAL)


def torchcam_layer_cam(model: Any) -> Explain:
    return _torchcam(model, "LayerCAM", FINAL)


def torchcam_score_cam(model: Any, layer: str) -> Explain:
    return _torchcam(model, "ScoreCAM", f"network.{layer}")


def _grad_cam_package(model: Any, name: str, path: str) -> Explain:
    package = pytest.importorskip("pytorch_grad_cam", reason="the package grad-cam is not installed")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def explain(x: Tensor, c: int) -> Tensor:
        layer = model.module.get_submodule(path)
        with contextlib.redirect_stderr(io.StringIO()):  # it shows a progress bar
            method = getattr(package, name)(model.module, [layer])
            method.batch_size = 32
            return torch.from_numpy(method(x, [ClassifierOutputTarget(c)] * len(x)))
    return explain


def grad_cam_ablation_cam(model: Any) -> Explain:
    return _grad_cam_package(model, "AblationCAM", FINAL)


def grad_cam_score_cam(model: Any, layer: str) -> Explain:
    return _grad_cam_package(model, "ScoreCAM", f"network.{layer}")


def plain_rise(model: Any, masks: int) -> Explain:
    """No package has it: as the method's authors published it, one set of masks for all copies, 32 in a pass."""
    grids = (torch.rand(masks, 1, 6, 6) < 0.1).float()
    large = nn.functional.interpolate(grids, size=(7 * 38, 7 * 38), mode="bilinear")
    shifts = torch.randint(38, (masks, 2))
    kept = torch.stack([mask[:, y:y + 224, x:x + 224] for mask, (y, x) in zip(large, shifts.tolist(), strict=True)])

    def one(x: Tensor, c: int) -> Tensor:
        scores = torch.cat([model.module(x * some).softmax(1)[:, c] for some in torch.split(kept, 32)])
        return (scores @ kept.flatten(1)).view(x.shape[-2:]) / (masks * 0.1)

    def explain(x: Tensor, c: int) -> Tensor:
        with torch.no_grad():
            return torch.stack([one(image, c) for image in x])
    return explain
