"""Each check of models catches the mistake that it is there for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from certframe import protocols
from certframe.errors import UsageError
from certframe.protocols import Split
from certframe.testing import run_checks
from certframe.testing.fixtures import TinyModel


class Good(TinyModel):
    """The kit's own small model."""

    class Options(protocols.Options):
        """None."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__()
        self.after()

    def after(self):
        """Does something to the finished model."""


def test_a_sound_model_passes():
    report = run_checks("model", Good)
    assert report.ok, str(report)
    assert not report.skipped, str(report)


def after(change):
    """A model to which something is done after it is built."""
    return type("After", (Good,), {"__doc__": "After.", "after": change})


def wrapped(function):
    """A model whose module does something to the logits or the input."""
    class Wrap(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return function(self, x)

    def change(self):
        self.module = Wrap(self.module).eval()
    return after(change)


def preprocess(function):
    return type("Preprocess", (Good,), {"__doc__": "Preprocess.", "preprocess": function})


def at(function):
    """A model with another `at`, given the right one."""
    def change(self, layer):
        return function(self, layer, Good.at)
    return type("At", (Good,), {"__doc__": "At.", "at": change})


class HookOnCut(Good):
    """Leaves a hook when it is cut."""

    def at(self, layer):
        split = super().at(layer)
        self.module.get_submodule("relu1").register_forward_hook(lambda *_: None)
        return split


class InPlaceHead(Good):
    """Lets the head work on the activation that it is given."""

    def at(self, layer):
        if layer != "final":
            return super().at(layer)
        names = list(dict(self.module.named_children()))
        cut = names.index("norm2") + 1
        body, head = self.module[:cut], self.module[cut:]
        return Split(lambda x: (body(x),), head, lambda a: a)


class LooseTensor(Good):
    """Normalises with tensors that no buffer holds."""

    def after(self):
        outer = self.module

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rest = outer
                self.shift = [torch.tensor(0.1)[None]]

            def forward(self, x):
                return self.rest(x) + self.shift[0]

        self.inner, self.module = outer, Net().eval()

    def at(self, layer):
        net = self.module
        split = TinyModel.at(_with_module(self, self.inner), layer)
        return Split(split.body, lambda *a: split.head(*a) + net.shift[0], split.as_map)


def _with_module(model, module):
    other = object.__new__(TinyModel)
    other.input_size, other.classes, other.module = model.input_size, model.classes, module
    return other


class FrozenBody(Good):
    """Keeps a copy of the weights in its cuts, which stays where it was made."""

    def at(self, layer):
        split = super().at(layer)
        if layer != "final":
            return split
        weight, bias = self.module.classifier.weight.detach().clone(), self.module.classifier.bias.detach().clone()
        return Split(split.body, lambda a: a.mean((2, 3)) @ weight.T + bias, split.as_map)


class Stays(Good):
    """Moves its logits to the CPU."""

    def after(self):
        self.module.register_forward_hook(lambda _m, _i, out: out.cpu())


def _half(self, image):
    return Good.preprocess(self, image).half()


def _normalised(self, image):
    return ((Good.preprocess(self, image) - 0.45) / 0.25).clamp(0, 1)


def _jittered(self, image):
    return (Good.preprocess(self, image) + 1e-3 * torch.rand(1)).clamp(0, 1)


def _keeps_size(self, image):
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)


def _only_rgb(self, image):
    if image.mode != "RGB":
        raise ValueError(f"mode {image.mode}")
    return Good.preprocess(self, image)


def _draws_on_it(self, image):
    found = Good.preprocess(self, image)
    image.paste(0, (0, 0, 1, 1))
    return found


def _split(split, **changes):
    return Split(**{"body": split.body, "head": split.head, "as_map": split.as_map, **changes})


def _unfreeze(self):
    self.module.conv1.weight.requires_grad_()


BROKEN = [
    ("input-size", after(lambda self: setattr(self, "input_size", [3, 16, 16])), "not (C, H, W)"),
    ("input-size", after(lambda self: setattr(self, "input_size", (3, 16))), "not (C, H, W)"),
    ("logits", after(lambda self: setattr(self, "classes", ("a", "b"))), "there are 2 classes"),
    ("logits", wrapped(lambda self, x: self.inner(x).double()), "not float32"),
    ("logits", wrapped(lambda self, x: self.inner(x.sqrt())), "NaN or infinite logits"),
    ("logits", wrapped(lambda self, x: (self.inner(x),)), "tuple"),
    ("class-names", after(lambda self: setattr(self, "classes", ("a", "b", "", "d"))), "no name for class [2]"),
    ("class-names", after(lambda self: setattr(self, "classes", ("a",))), "nothing to tell apart"),
    ("evaluation-mode", after(lambda self: self.module.norm1.train()), "in training mode: norm1"),
    ("frozen", after(_unfreeze), "conv1.weight"),
    ("repeatable", wrapped(lambda self, x: self.inner(x) + 1e-3 * torch.rand(1)), "torch's global random state"),
    ("repeatable", after(lambda self: self.module.norm1.train()), "norm1.running_mean"),
    ("repeatable", wrapped(lambda self, x: self.inner(x.clamp_(0, 1))), "changed the values of 'inputs'"),
    ("batch-of-one", wrapped(lambda self, x: self.inner(x / x.amax())), "alone and in a batch"),
    ("differentiable", wrapped(lambda self, x: self.inner(x.detach())), "no gradient with respect to the pixels"),
    ("differentiable", wrapped(lambda self, x: self.inner(x.round())), "zero everywhere"),
    ("differentiable", wrapped(lambda self, x: self.inner(x) + 0 * (x * 0).abs().sqrt().sum()), "NaN or infinite"),
    ("preprocess", preprocess(_half), "not float32"),
    ("preprocess", preprocess(_keeps_size), "input_size is"),
    ("preprocess", preprocess(_only_rgb), "mode L"),
    ("preprocess", preprocess(lambda self, image: 255 * Good.preprocess(self, image)), "not in [0, 1]"),
    ("normalisation-inside", preprocess(_normalised), "must not normalise"),
    ("preprocess-pure", preprocess(_jittered), "differently the second time"),
    ("preprocess-pure", preprocess(_draws_on_it), "changes the picture"),
    ("at-input", at(lambda self, layer, right: right(self, "final" if layer == "input" else layer)), "not the pixels"),
    ("at-input", at(lambda self, layer, right: _split(right(self, layer), as_map=lambda a: a[:, :1])), "not the image"),
    ("at-final", at(lambda self, layer, right: _split(right(self, layer), head=lambda a: a.mean((2, 3))[:, :4])),
     "is not module(x)"),
    ("at-final", at(lambda self, layer, right: _split(right(self, layer), as_map=lambda a: a.flatten(1))), "(B,K,h,w)"),
    ("at-final", at(lambda self, layer, right: _split(s := right(self, layer), head=torch.no_grad()(s.head))),
     "require grad"),
    ("at-final", InPlaceHead, "changes the activation"),
    ("cutting-leaves-no-trace", HookOnCut, "hook on 'relu1'"),
    ("unknown-layer", at(lambda self, layer, right: right(self, "final")), "raises nothing"),
    ("unknown-layer", at(lambda self, layer, right: dict(self.module.named_modules())[layer]), "raised KeyError"),
    ("unknown-layer", at(lambda *_: (_ for _ in ()).throw(UsageError("no"))), "not one line that names it"),
    ("device", LooseTensor, "DeviceMixError"),
    ("device", FrozenBody, "DeviceMixError"),
    ("device", Stays, "on the cpu"),
]


@pytest.mark.parametrize(("name", "cls", "said"), BROKEN, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BROKEN)])
def test_a_mistake_is_caught(ask, name, cls, said):
    found = ask("model", name, cls)
    assert found.outcome == "failed", found
    assert said in found.message


def test_every_check_has_a_mistake_that_it_catches(own_checks):
    assert own_checks("model") == {name for name, _, _ in BROKEN}


def test_the_model_is_back_on_the_cpu_after_a_failed_device_check():
    from certframe.testing import Subject, checks_for
    subject = Subject("model", LooseTensor)
    check, = [c for c in checks_for("model") if c.name == "device"]
    assert check.run(subject).outcome == "failed"
    assert {p.device.type for p in subject.instance.module.parameters()} == {"cpu"}
