"""Each check of attributors catches the mistake that it is there for."""

from __future__ import annotations

import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

from certframe import protocols
from certframe.errors import UsageError
from certframe.protocols import Attribution
from certframe.testing import fixtures, run_checks


class Good:
    """Absolute gradient."""

    class Options(protocols.Options):
        """None."""

    needs_gradients: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def attribute(self, model, inputs, targets, *, rng):
        maps, logits = gradient(model, inputs, targets)
        return Attribution(maps, logits)


def gradient(model, inputs, targets):
    x = inputs.detach().requires_grad_()
    logits = model.module(x)
    found, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), x)
    return found.abs().sum(1), logits.detach()


class GoodBlackBox(Good):
    """Drop of the logit when the upper half is removed, spread over it; forward passes only."""

    needs_gradients = False

    def attribute(self, model, inputs, targets, *, rng):
        logits = model.module(inputs).detach()
        mask = torch.ones(inputs.shape[-2:], device=inputs.device)
        mask[: inputs.shape[-2] // 2] = 0
        drop = (logits - model.module(inputs * mask).detach()).gather(1, targets[:, None])
        return Attribution(drop[:, :, None] * (1 - mask), logits)


class GoodRandom(Good):
    """Gradient at one noisy point."""

    deterministic = False

    def attribute(self, model, inputs, targets, *, rng):
        noisy = inputs + 0.1 * rng.normal(*inputs.shape[1:])
        return Attribution(gradient(model, noisy, targets)[0])


class Chunked(GoodRandom):
    """Says that its batch size and a switch change nothing."""

    class Options(protocols.Options):
        """Sizes."""

        chunk: int = Field(2, ge=1, le=4, description="a batch size")
        fast: bool = Field(False, description="a switch")
        name: str = Field("x", description="never tried")

    execution = frozenset({"chunk", "fast", "name"})

    def attribute(self, model, inputs, targets, *, rng):
        noise = 0.1 * rng.normal(*inputs.shape[1:])
        pieces = zip((inputs + noise).split(self.options.chunk), targets.split(self.options.chunk), strict=True)
        return Attribution(torch.cat([gradient(model, *piece)[0] for piece in pieces]))


@pytest.mark.parametrize("cls", [Good, GoodBlackBox, GoodRandom, Chunked])
def test_a_sound_attributor_passes(cls):
    report = run_checks("attributor", cls)
    assert report.ok, str(report)
    assert len(report.skipped) <= 6, str(report)


def test_a_sound_method_that_looks_at_the_clean_image_passes():
    report = run_checks("attributor", Anchored)
    assert report.ok, str(report)
    assert "anchor" not in {result.check for result in report.skipped}


def changed(change):
    """An attributor that does what `Good` does and then something to its result."""
    class Changed(Good):
        """Changed."""

        def attribute(self, model, inputs, targets, *, rng):
            return change(super().attribute(model, inputs, targets, rng=rng), model, inputs, targets, rng)
    return Changed


def maps(change):
    return changed(lambda r, model, inputs, targets, rng: Attribution(change(r.maps), r.logits))


def meanwhile(action):
    """An attributor that also does something to the model, inputs or the process."""
    def change(result, model, inputs, targets, rng):
        action(model, inputs)
        return result
    return changed(change)


def before(action):
    class Before(Good):
        """Changes something before it explains."""

        def attribute(self, model, inputs, targets, *, rng):
            action(model, inputs)
            return super().attribute(model, inputs, targets, rng=rng)
    return Before


class BatchNormalised(Good):
    """Divides by the largest score of the batch."""

    def attribute(self, model, inputs, targets, *, rng):
        maps, _ = gradient(model, inputs, targets)
        return Attribution(maps / maps.max())


class OneTargetForAll(Good):
    """Explains the first image's class everywhere."""

    def attribute(self, model, inputs, targets, *, rng):
        return Attribution(gradient(model, inputs, targets[:1].expand_as(targets).contiguous())[0])


class SharedDraws(Good):
    """Draws noise for the batch instead of for each copy."""

    deterministic = False

    def attribute(self, model, inputs, targets, *, rng):
        noise = rng.normal(*inputs.shape[1:]).mean(0, keepdim=True)
        return Attribution(gradient(model, inputs + noise, targets)[0])


class RefusesMixedClasses(Good):
    """Explains one class at a time."""

    def attribute(self, model, inputs, targets, *, rng):
        if bool((targets != targets[0]).any()):
            raise ValueError("one class at a time")
        return super().attribute(model, inputs, targets, rng=rng)


class Counting(Good):
    """Remembers how often it was called."""

    calls = 0

    def attribute(self, model, inputs, targets, *, rng):
        self.calls += 1
        return Attribution(gradient(model, inputs, targets)[0] * self.calls)


class SecretlyRandom(Good):
    """Adds noise although it says that it is deterministic."""

    def attribute(self, model, inputs, targets, *, rng):
        maps, _ = gradient(model, inputs, targets)
        return Attribution(maps + rng.uniform(*maps.shape[1:]))


class SaysRandom(Good):
    """Says that it is random and is not."""

    deterministic = False


class Unsure(Good):
    """Says neither."""

    deterministic = None  # type: ignore[assignment]


class ChunkMatters(Chunked):
    """Normalises each chunk."""

    def attribute(self, model, inputs, targets, *, rng):
        return Attribution(super().attribute(model, inputs, targets, rng=rng).maps * self.options.chunk)


class SwitchMatters(Chunked):
    """Is fast by leaving things out."""

    def attribute(self, model, inputs, targets, *, rng):
        result = super().attribute(model, inputs, targets, rng=rng)
        return Attribution(result.maps.round(decimals=1)) if self.options.fast else result


class ReadsMemory(Good):
    """Takes the storage to be in the order of the axes."""

    def attribute(self, model, inputs, targets, *, rng):
        flat = torch.as_strided(inputs, (len(inputs), inputs[0].numel()), (inputs[0].numel(), 1))
        return super().attribute(model, flat.reshape(inputs.shape), targets, rng=rng)


class ClampsInputs(Good):
    """Clamps in place."""

    def attribute(self, model, inputs, targets, *, rng):
        return super().attribute(model, inputs.clamp_(0, 1), targets, rng=rng)


class TracksInputs(Good):
    """Sets requires_grad on what it was given."""

    def attribute(self, model, inputs, targets, *, rng):
        inputs.requires_grad_()
        return super().attribute(model, inputs, targets, rng=rng)


class Backwards(Good):
    """Fills .grad of inputs and parameters by backward()."""

    def attribute(self, model, inputs, targets, *, rng):
        for parameter in model.module.parameters():
            parameter.requires_grad_()
        x = inputs.detach().requires_grad_()
        model.module(x).gather(1, targets[:, None]).sum().backward()
        for parameter in model.module.parameters():
            parameter.requires_grad_(False)
        return Attribution(x.grad.abs().sum(1))


class HookOnlyRemovedOnSuccess(Good):
    """Removes its forward hook unless the model fails."""

    def attribute(self, model, inputs, targets, *, rng):
        handle = model.module.get_submodule("relu1").register_forward_hook(lambda *_: None)
        result = super().attribute(model, inputs, targets, rng=rng)
        handle.remove()
        return result


class BackwardHookOnlyRemovedOnSuccess(Good):
    """Removes its hook after a failing forward pass, but not after a failing backward pass."""

    def attribute(self, model, inputs, targets, *, rng):
        handle = model.module.get_submodule("pool").register_full_backward_hook(lambda *_: None)
        try:
            x = inputs.detach().requires_grad_()
            score = model.module(x).gather(1, targets[:, None]).sum()
        except Exception:
            handle.remove()
            raise
        found, = torch.autograd.grad(score, x)
        handle.remove()
        return Attribution(found.abs().sum(1))


class HidesFailures(Good):
    """Returns zeros when anything goes wrong."""

    def attribute(self, model, inputs, targets, *, rng):
        try:
            return super().attribute(model, inputs, targets, rng=rng)
        except Exception:
            return Attribution(inputs.sum(1) * 0)


class SpoiltByFailure(Good):
    """Gives half the scores ever after a failure."""

    factor = 1.0

    def attribute(self, model, inputs, targets, *, rng):
        self.factor /= 2
        result = super().attribute(model, inputs, targets, rng=rng)
        self.factor *= 2
        return Attribution(result.maps * self.factor)


class KeepsGraph(Good):
    """Does not detach."""

    def attribute(self, model, inputs, targets, *, rng):
        x = inputs.detach().requires_grad_()
        logits = model.module(x)
        found, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), x, create_graph=True)
        return Attribution(found.abs().sum(1))


class KeepsLogitsGraph(Good):
    """Detaches the maps only."""

    def attribute(self, model, inputs, targets, *, rng):
        return Attribution(gradient(model, inputs, targets)[0], model.module(inputs.detach().requires_grad_()))


class KeepsMaps(Good):
    """Keeps every map."""

    def __init__(self, options=None):
        super().__init__(options)
        self.kept = []

    def attribute(self, model, inputs, targets, *, rng):
        result = super().attribute(model, inputs, targets, rng=rng)
        self.kept.append(self.what(result.maps))
        return result

    @staticmethod
    def what(maps):
        return maps


class KeepsArrays(KeepsMaps):
    """Keeps every map as a numpy array."""

    @staticmethod
    def what(maps):
        return maps.numpy().copy()


class FirstModelForEver(Good):
    """Caches the first model it sees."""

    def __init__(self, options=None):
        super().__init__(options)
        self.model = None

    def attribute(self, model, inputs, targets, *, rng):
        self.model = self.model or model
        return super().attribute(self.model, inputs, targets, rng=rng)


def _patch_relu(model, inputs):
    original = nn.ReLU.forward
    nn.ReLU.forward = lambda self, x: original(self, x)  # type: ignore[method-assign]


class UndeclaredGradients(Good):
    """Uses gradients and says that it does not."""

    needs_gradients = False


class SwitchesGradientsOn(GoodBlackBox):
    """Says that it needs no gradients, and requires them of a model that has none."""

    def attribute(self, model, inputs, targets, *, rng):
        with torch.enable_grad():
            return Good.attribute(self, model, inputs, targets, rng=rng)


class CpuMask(Good):
    """Allocates a mask without saying where."""

    def attribute(self, model, inputs, targets, *, rng):
        result = super().attribute(model, inputs, targets, rng=rng)
        return Attribution(result.maps * torch.ones(inputs.shape[-2:]))


class CpuBuffer(Good):
    """Computes the baseline once, on the CPU."""

    baseline = torch.full((3, 1, 1), 0.5)

    def attribute(self, model, inputs, targets, *, rng):
        return super().attribute(model, inputs - self.baseline, targets, rng=rng)


def _running_mean(model, inputs):
    model.module.get_submodule("norm1").running_mean += 1e-3


def _not_in_place(model, inputs):
    model.module.get_submodule("relu1").inplace = False


def _decay(model, inputs):
    model.module.get_submodule("conv2").weight.data.mul_(0.999)


def _replace_layer(model, inputs):
    model.module.relu1 = nn.ReLU()


def _replace_forward(model, inputs):
    layer = model.module.get_submodule("relu2")
    layer.forward = lambda x, layer=layer: nn.functional.relu(x)


def _tensor_hook(model, inputs):
    parameter = model.module.get_submodule("conv1").weight
    parameter.requires_grad_().register_hook(lambda g: g)
    parameter.requires_grad_(False)


class IgnoresItsLayer(Good):
    """Has an option `layer`, and explains the input whatever it says."""

    class Options(protocols.Options):
        """A layer."""

        layer: str = Field("input", description="a layer")


class RowsMeetAtTheLayer(IgnoresItsLayer):
    """At a layer, activations less their mean over the batch."""

    def attribute(self, model, inputs, targets, *, rng):
        split = model.at(self.options.layer)
        activation = split.as_map(split.body(inputs)[0].detach())
        return Attribution((activation - activation.mean(0)).sum(1))


class Anchored(Good):
    """Gradient, times a weight that is read off the clean image."""

    held = "the weight of every pixel"

    def __init__(self, options=None):
        super().__init__(options)
        self.weight = 1.0

    def anchored(self, model, image, target):
        found = type(self)(self.options)
        found.weight = image.sum(0)
        return found

    def attribute(self, model, inputs, targets, *, rng):
        result = super().attribute(model, inputs, targets, rng=rng)
        return Attribution(result.maps * self.weight, result.logits)


class AnchorsItself(Anchored):
    """Changes the instance instead of making another."""

    def anchored(self, model, image, target):
        self.weight = image.sum(0)
        return self


class AnchorsOneForAll(Anchored):
    """The last image that was looked at counts for all."""

    weights: ClassVar[list] = []

    def anchored(self, model, image, target):
        self.weights.append(image.sum(0))
        found = type(self)(self.options)
        found.weight = None
        return found

    def attribute(self, model, inputs, targets, *, rng):
        result = super(Anchored, self).attribute(model, inputs, targets, rng=rng)
        return Attribution(result.maps * (1.0 if self.weight is not None else self.weights[-1]), result.logits)


class AnchorsAtRandom(Anchored):
    """What it holds is drawn."""

    def anchored(self, model, image, target):
        found = type(self)(self.options)
        found.weight = torch.rand(image.shape[1:])
        return found


class AnchoredRowsMeet(Anchored):
    """Anchored, it takes the mean over the batch away."""

    def attribute(self, model, inputs, targets, *, rng):
        result = super().attribute(model, inputs, targets, rng=rng)
        anchored = isinstance(self.weight, torch.Tensor)
        return Attribution(result.maps - result.maps.mean(0)) if anchored else result


class HoldsInSilence(Anchored):
    """Does not say what it holds."""

    held = ""


class Numbered(Good):
    """Its family is a number."""

    family = 3


BROKEN = [
    ("family", Numbered, "family is 3, not a word"),
    ("anchor", AnchorsItself, "after anchored() the instance gives other maps"),
    ("anchor", AnchorsOneForAll, "anchored at another image meanwhile"),
    ("anchor", AnchorsAtRandom, "anchored at the same image a new instance gives other maps"),
    ("anchor", AnchoredRowsMeet, "anchored, row 0 of a batch differs"),
    ("anchor", HoldsInSilence, "does not say what it holds"),
    ("layers", IgnoresItsLayer, "at layer final maps have shape (16, 16), and the layer has (8, 8)"),
    ("layers", RowsMeetAtTheLayer, "at layer input row 0 of a batch differs from the same image by itself"),
    ("maps-shape", maps(lambda m: m[:, None]), "not (3, h, w)"),
    ("maps-shape", maps(lambda m: m.double()), "not torch.float32"),
    ("maps-shape", maps(lambda m: m.repeat_interleave(2, 1)), "finer than the image"),
    ("maps-shape", changed(lambda r, *_: r.maps), "not certframe.Attribution"),
    ("finite", changed(lambda r, model, inputs, *_: Attribution(r.maps / inputs.abs().amax())), "black images"),
    ("finite", maps(lambda m: m / 0.0), "NaN or infinite"),
    ("logits", changed(lambda r, model, x, *_: Attribution(r.maps, model.module(x.clamp(0, 1)))), "differ from"),
    ("logits", changed(lambda r, *_: Attribution(r.maps, r.logits.softmax(1))), "differ from"),
    ("logits", changed(lambda r, *_: Attribution(r.maps, r.logits[:, :1])), "shape"),
    ("single-image", maps(lambda m: m.squeeze()), "not (1, h, w)"),
    ("every-class", RefusesMixedClasses, "one class at a time"),
    ("wide-image", maps(lambda m: m.transpose(1, 2)), "finer than the image"),
    ("wide-image", maps(lambda m: m[:, ::2, ::2].transpose(1, 2)), "exchanged"),
    ("batch-of-one", BatchNormalised, "of a batch differs from"),
    ("batch-of-one", OneTargetForAll, "row 1"),
    ("batch-of-one", SharedDraws, "row 0"),
    ("replayable", maps(lambda m: m + torch.rand_like(m)), "second call"),
    ("replayable", Counting, "second call"),
    ("deterministic-flag", SecretlyRandom, "deterministic is True, but"),
    ("deterministic-flag", SaysRandom, "nothing is drawn"),
    ("deterministic-flag", Unsure, "not True or False"),
    ("execution-changes-nothing", ChunkMatters, "with chunk=1 the maps differ"),
    ("execution-changes-nothing", SwitchMatters, "with fast=True the maps differ"),
    ("memory-layout", ReadsMemory, "channels-last"),
    ("memory-layout", before(lambda model, x: x.view(len(x), -1)), "view"),
    ("inputs-unchanged", ClampsInputs, "changed the values of 'inputs'"),
    ("inputs-unchanged", TracksInputs, "requires_grad of 'inputs'"),
    ("model-unchanged", meanwhile(lambda model, _: model.module.train()), "training mode"),
    ("model-unchanged", meanwhile(lambda model, _: model.module.relu1.register_forward_hook(print)), "hook on 'relu1'"),
    ("model-unchanged", meanwhile(lambda model, _: model.module.register_full_backward_hook(print)), "on the module"),
    ("model-unchanged", meanwhile(lambda model, _: model.module.requires_grad_()), "requires_grad of 'conv1.weight'"),
    ("model-unchanged", meanwhile(_not_in_place), "'inplace' of 'relu1'"),
    ("model-unchanged", meanwhile(_decay), "values of 'conv2.weight'"),
    ("model-unchanged", meanwhile(_running_mean), "values of 'norm1.running_mean'"),
    ("model-unchanged", meanwhile(_replace_layer), "the submodule 'relu1'"),
    ("model-unchanged", meanwhile(_replace_forward), "set the attribute 'forward' of 'relu2'"),
    ("model-unchanged", meanwhile(_tensor_hook), "hook on the tensor 'conv1.weight'"),
    ("model-unchanged", Backwards, "left a gradient in 'conv1.weight'.grad"),
    ("restored-after-forward-error", HookOnlyRemovedOnSuccess, "hook on 'relu1'"),
    ("restored-after-forward-error", HidesFailures, "hides an exception"),
    ("restored-after-forward-error", SpoiltByFailure, "other maps than a new one"),
    ("restored-after-backward-error", BackwardHookOnlyRemovedOnSuccess, "hook on 'pool'"),
    ("restored-after-backward-error", HidesFailures, "hides an exception"),
    ("no-graph", KeepsGraph, "maps carry an autograd graph"),
    ("no-graph", KeepsLogitsGraph, "logits carry an autograd graph"),
    ("steady-memory", KeepsMaps, "1 more tensors behind with every call"),
    ("steady-memory", KeepsArrays, "more bytes of arrays after every call"),
    ("another-model", FirstModelForEver, "the maps of another"),
    ("process-unchanged", meanwhile(lambda *_: torch.manual_seed(0)), "torch's global random state"),
    ("process-unchanged", meanwhile(lambda *_: torch.rand(1)), "torch's global random state"),
    ("process-unchanged", meanwhile(lambda *_: np.random.rand()), "numpy's global random state"),  # noqa: NPY002
    ("process-unchanged", meanwhile(lambda *_: random.random()), "python's global random state"),
    ("process-unchanged", meanwhile(lambda *_: np.seterr(all="ignore")), "numpy's error handling"),
    ("process-unchanged", meanwhile(lambda *_: torch.set_grad_enabled(False)), "grad mode"),
    ("process-unchanged", meanwhile(_patch_relu), "patches torch.nn.ReLU.forward"),
    ("no-gradients-needed", UndeclaredGradients, "on a model without derivatives it raises"),
    ("no-gradients-needed", SwitchesGradientsOn, "on a model without derivatives it raises"),
    ("device", CpuMask, "DeviceMixError"),
    ("device", CpuBuffer, "DeviceMixError"),
    ("device", maps(lambda m: m.cpu()), "maps are on the cpu"),
    ("device", changed(lambda r, *_: Attribution(r.maps, r.logits.cpu())), "logits are on the cpu"),
    ("device", maps(lambda m: torch.from_numpy(m.numpy().copy())), "numpy"),
    ("device", maps(lambda m: m * 2 if m.device.type == "cpu" else m), "on another device the maps differ"),
]


@pytest.mark.parametrize(("name", "cls", "said"), BROKEN, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BROKEN)])
def test_a_mistake_is_caught(ask, name, cls, said):
    result = ask("attributor", name, cls)
    assert result.outcome == "failed", result
    assert said in result.message


def test_every_check_has_a_mistake_that_it_catches(own_checks):
    assert own_checks("attributor") == {name for name, _, _ in BROKEN}


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_hooks_left_after_an_error_in_the_second_pass_are_caught(ask, which):
    class Twice(Good):
        """Explains twice; the hook of the second pass stays when it fails."""

        def attribute(self, model, inputs, targets, *, rng):
            super().attribute(model, inputs, targets, rng=rng)
            handle = model.module.get_submodule("relu1").register_forward_hook(lambda *_: None)
            result = super().attribute(model, inputs, targets, rng=rng)
            handle.remove()
            return result

    assert "hook on 'relu1'" in ask("attributor", f"restored-after-{which}-error", Twice).message


def test_a_method_that_only_uses_the_last_layers_is_made_to_fail_there(ask):
    class Head(Good):
        """Gradient at the final layer; leaves a hook when the backward pass fails."""

        def attribute(self, model, inputs, targets, *, rng):
            split = model.at("final")
            with torch.no_grad():
                activation, = split.body(inputs)
            activation = activation.clone().requires_grad_()
            handle = model.module.get_submodule("classifier").register_full_backward_hook(lambda *_: None)
            try:
                score = split.head(activation).gather(1, targets[:, None]).sum()
            except Exception:
                handle.remove()
                raise
            found, = torch.autograd.grad(score, activation)
            handle.remove()
            return Attribution(found.sum(1))

    assert "hook on 'classifier'" in ask("attributor", "restored-after-backward-error", Head).message


def test_checks_that_do_not_apply_say_why(ask):
    class NoLogits(Good):
        """Returns maps only."""

        def attribute(self, model, inputs, targets, *, rng):
            return Attribution(gradient(model, inputs, targets)[0])

    class NoModel(Good):
        """Ignores the model."""

        def attribute(self, model, inputs, targets, *, rng):
            return Attribution(inputs.abs().sum(1))

    assert ask("attributor", "logits", NoLogits).message == "the attributor returns no logits"
    assert "names no options" in ask("attributor", "execution-changes-nothing", Good).message
    for name in ("restored-after-forward-error", "restored-after-backward-error"):
        result = ask("attributor", name, NoModel)
        assert result.outcome == "skipped"
        assert "pass goes through the model's layers" in result.message
    result = ask("attributor", "wide-image", Good, model=fixtures.tiny_model)
    assert (result.outcome, result.message) == ("skipped", "tried on a model of a fixed input size")


def test_a_method_for_some_models_brings_one(ask):
    class GreyOnly(Good):
        """Explains grey images."""

        def attribute(self, model, inputs, targets, *, rng):
            if inputs.shape[1] != 1:
                raise UsageError("grey images only")
            return super().attribute(model, inputs, targets, rng=rng)

    class GreyWithModel(GreyOnly):
        """Explains grey images, and has some to be tried on."""

        @classmethod
        def conformance_model(cls):
            return fixtures.tiny_model(input_size=(1, 16, 16))

    assert ask("attributor", "finite", GreyOnly).message == "raised UsageError: grey images only"
    report = run_checks("attributor", GreyWithModel)
    assert report.ok, str(report)
    assert run_checks("attributor", GreyOnly, model=GreyWithModel.conformance_model).ok


def test_a_cache_that_stays_when_the_model_is_disturbed_is_caught_on_a_given_model_too(ask):
    given = {"model": lambda: fixtures.tiny_model(input_size=(1, 12, 12), classes=3)}
    assert ask("attributor", "another-model", Good, **given).outcome == "passed"
    assert ask("attributor", "another-model", FirstModelForEver, **given).outcome == "failed"
