"""Layer-wise relevance propagation of 32 noisy copies, against zennit's own attributor and against a plain gradient.

Medians of alternate runs in one process, 224×224, two threads, the same tuned allocator for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measure import medians, peak_memory, settle
from torch import nn

from certframe.config import component

_COPIES = 32
_MEAN, _STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def _model(name: str) -> Any:
    if name == "lite0":
        return component("model", "lite0").build()
    import timm
    from certframe_timm.classifier import TimmClassifier
    torch.manual_seed(0)
    return TimmClassifier(timm.create_model(name))


def _copies() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_COPIES, 3, 224, 224, generator=generator)
    return torch.rand(1, 3, 224, 224, generator=generator) + 0.15 * noise, torch.full((_COPIES,), 5)


def _ours(model: Any, composite: str) -> Callable[[], Any]:
    from certframe_zennit.lrp import Lrp
    method, (x, targets) = Lrp(Lrp.Options(composite=composite)), _copies()
    return lambda: method.attribute(model, x, targets, rng=None)


def _gradient(model: Any) -> Callable[[], Any]:
    x, _ = _copies()

    def run() -> Any:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(model.module(leaf)[:, 5].sum(), leaf)
    return run


def _zennit(model: Any, composite: str) -> Callable[[], Any]:
    """As its documentation shows it: the attributor as a context for the batch, with the canonizer for batch norms."""
    from zennit import attribution, canonizers, composites, rules, types

    low, high = (0 - _MEAN) / _STD, (1 - _MEAN) / _STD
    merge = [canonizers.SequentialMergeBatchNorm()]
    plus_box = composites.SpecialFirstLayerMapComposite(
        [*composites.layer_map_base(), (types.Convolution, rules.ZPlus()), (nn.Linear, rules.Epsilon())],
        [(types.Convolution, rules.ZBox(low, high))], canonizers=merge)
    used = {"epsilon-plus-box": lambda: plus_box,
            "epsilon-plus-flat": lambda: composites.EpsilonPlusFlat(canonizers=merge),
            "epsilon-gamma-box": lambda: composites.EpsilonGammaBox(low=low, high=high, canonizers=merge),
            "epsilon-alpha2-beta1": lambda: composites.EpsilonAlpha2Beta1(canonizers=merge),
            "epsilon-alpha2-beta1-flat": lambda: composites.EpsilonAlpha2Beta1Flat(canonizers=merge),
            "excitation-backprop": lambda: composites.ExcitationBackprop(canonizers=merge)}[composite]()
    x, targets = _copies()
    chosen = nn.functional.one_hot(targets, 1000).float()

    def run() -> Any:
        with attribution.Gradient(model.network, used) as attributor:
            return attributor(((x - _MEAN) / _STD).requires_grad_(), chosen)
    return run


@pytest.mark.filterwarnings("ignore:.*does not conserve")
@pytest.mark.parametrize("composite", ["epsilon-plus-box", "epsilon-plus-flat", "epsilon-gamma-box",
                                       "epsilon-alpha2-beta1", "epsilon-alpha2-beta1-flat", "excitation-backprop"])
@pytest.mark.parametrize("name", ["lite0", "resnet18"])
def bench_lrp(benchmark, name, composite):
    """32 noisy copies: lrp, zennit, gradient."""
    pytest.importorskip("zennit", reason="zennit is not installed")
    settle(threads=2)
    model = _model(name)
    ours = _ours(model, composite)
    took = medians({"ours": ours, "zennit": _zennit(model, composite), "gradient": _gradient(model)})
    ratios = {"of_zennit": took["ours"] / took["zennit"], "of_gradient": took["ours"] / took["gradient"],
              "zennit_of_gradient": took["zennit"] / took["gradient"]}
    benchmark.extra_info.update({**took, **ratios})
    print(f"\n{name} {composite}: {took['ours']:.2f} s, {ratios['of_gradient']:.2f} × a gradient; zennit "
          f"{ratios['zennit_of_gradient']:.2f} ×; ratio {ratios['of_zennit']:.3f}")
    benchmark.pedantic(ours, rounds=1)


def bench_lrp_on_a_transformer(benchmark):
    """32 noisy copies of a small vision transformer, which zennit has no rules for: lrp against a gradient."""
    settle(threads=2)
    model = _model("vit_tiny_patch16_224")
    ours = _ours(model, "epsilon-plus-box")
    took = medians({"ours": ours, "gradient": _gradient(model)})
    ratio = took["ours"] / took["gradient"]
    benchmark.extra_info.update({**took, "of_gradient": ratio})
    print(f"\nvit_tiny epsilon-plus-box: {took['ours']:.2f} s, {ratio:.2f} × a gradient")
    benchmark.pedantic(ours, rounds=1)


@pytest.mark.parametrize("name", ["lite0", "resnet18"])
def bench_lrp_memory(benchmark, name):
    """Peak memory of the same batch on top of the model, in fresh processes, in MB."""
    pytest.importorskip("zennit", reason="zennit is not installed")
    works = {"ours": "b._ours(model, 'epsilon-plus-box')", "zennit": "b._zennit(model, 'epsilon-plus-box')",
             "gradient": "b._gradient(model)"}

    def peak(who: str) -> float:
        found = peak_memory(f"import bench_lrp as b\nmodel = b._model({name!r})\nwork = {works[who]}", "work()")
        return found["peak"] - found["base"]

    took = {who: peak(who) for who in works}
    benchmark.extra_info.update({f"{who}_MB": value for who, value in took.items()})
    print(f"\n{name}, peak memory of 32 copies: " + ", ".join(f"{who} {value:.0f} MB" for who, value in took.items()))
    benchmark.pedantic(lambda: None, rounds=1)
