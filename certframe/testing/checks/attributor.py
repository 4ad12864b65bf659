"""What is demanded of an attributor, tried on a small model with noisy images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from certframe.errors import UsageError
from certframe.noise import CopyRng
from certframe.protocols import Attribution, Attributor, Model
from certframe.testing import fixtures
from certframe.testing.awkward_models import BlackBox, Fuse
from certframe.testing.checks.comparing import DEVICE_TOLERANCE, require_close
from certframe.testing.emulated_device import emulated_device
from certframe.testing.kit import NotApplicable, Subject, check, require
from certframe.testing.unchanged import (
    require_steady_memory,
    unchanged_module,
    unchanged_process,
    unchanged_tensors,
)

_BATCH = 3
_WHO = "attribute()"


def _targets(model: Model, count: int, device: torch.device | str = "cpu") -> Tensor:
    return torch.arange(count, device=device) % len(model.classes)


def _explain(attributor: Attributor, model: Model, inputs: Tensor, *, targets: Tensor | None = None,
             copies: Sequence[int] | None = None, seed: int = 0) -> Attribution:
    count = len(inputs)
    targets = _targets(model, count, inputs.device) if targets is None else targets
    rng = fixtures.rng(copies or range(count), seed=seed, device=inputs.device)
    return attributor.attribute(model, inputs, targets, rng=rng)


def _batch(subject: Subject, count: int = _BATCH) -> tuple[Model, Tensor]:
    model = subject.model()
    return model, fixtures.noisy_images(model, count)


@check("attributor")
def maps_shape(subject: Subject) -> None:
    """Maps are a float32 tensor (B,h,w), no finer than the image: the kernel sparsifies and counts them as they are."""
    model, inputs = _batch(subject)
    result = _explain(subject.build(), model, inputs)
    require(isinstance(result, Attribution), f"attribute() returns {type(result).__name__}, not certframe.Attribution")
    maps = result.maps
    require(isinstance(maps, Tensor) and maps.dtype == torch.float32,
            f"maps are {getattr(maps, 'dtype', type(maps).__name__)}, not torch.float32")
    _require_map_shape(maps, inputs)


def _require_map_shape(maps: Tensor, inputs: Tensor) -> None:
    batch, _, height, width = inputs.shape
    require(maps.dim() == 3 and maps.shape[0] == batch,
            f"maps of {batch} images have shape {tuple(maps.shape)}, not ({batch}, h, w)")
    h, w = maps.shape[1:]
    require(1 <= h <= height and 1 <= w <= width, f"maps of {height}×{width} images are {h}×{w}: finer than the image")
    transposed = (h - w) * (height - width) < 0
    require(not transposed, f"maps of {height}×{width} images are {h}×{w}: height and width are exchanged")


@check("attributor")
def finite(subject: Subject) -> None:
    """Scores are finite, on noisy images outside [0, 1] and on constant ones: one NaN ends a run."""
    model, inputs = _batch(subject)
    for name, images in (("noisy images", inputs), ("black images", inputs * 0), ("white images", inputs * 0 + 1)):
        maps = _explain(subject.build(), model, images).maps
        bad = int((~torch.isfinite(maps)).sum())
        require(bad == 0, f"{bad} NaN or infinite scores on {name}")


@check("attributor")
def logits(subject: Subject) -> None:
    """Logits, when given, are the model's own on the unmodified inputs: they are counted as the class votes."""
    model, inputs = _batch(subject)
    found = _explain(subject.build(), model, inputs).logits
    if found is None:
        raise NotApplicable("the attributor returns no logits")
    require_close(found, model.module(inputs), "logits differ from model.module(inputs)")


@check("attributor")
def single_image(subject: Subject) -> None:
    """A batch of one works: the clean image, and the last copies of a run, come alone."""
    model, inputs = _batch(subject, 1)
    _require_map_shape(_explain(subject.build(), model, inputs).maps, inputs)


@check("attributor")
def every_class(subject: Subject) -> None:
    """Every class can be explained, also unlikely ones and different ones within a batch."""
    model = subject.model()
    classes = min(len(model.classes), 16)
    inputs = fixtures.noisy_images(model, 1).expand(classes, -1, -1, -1).contiguous()
    maps = _explain(subject.build(), model, inputs, targets=torch.arange(classes)).maps
    _require_map_shape(maps, inputs)
    require(bool(torch.isfinite(maps).all()), "NaN or infinite scores for some class")
    last = len(model.classes) - 1
    _explain(subject.build(), model, inputs[:1], targets=torch.tensor([last]))


@check("attributor")
def wide_image(subject: Subject) -> None:
    """Height and width are not confused: a wide image gives a map that is not taller than wide."""
    if subject.has_own_model:
        raise NotApplicable("tried on a model of a fixed input size")
    wide = fixtures.tiny_model(input_size=(3, 12, 20))
    images = fixtures.noisy_images(wide, 2)
    _require_map_shape(_explain(subject.build(), wide, images).maps, images)


@check("attributor")
def batch_of_one(subject: Subject) -> None:
    """A batch of n gives what n batches of one give, so that a run does not depend on its batch size."""
    model, inputs = _batch(subject)
    targets, attributor = _targets(model, len(inputs)), subject.build()
    together = _explain(attributor, model, inputs, copies=[5, 6, 7])
    for row in range(len(inputs)):
        alone = _explain(attributor, model, inputs[row:row + 1], targets=targets[row:row + 1], copies=[5 + row])
        require_close(together.maps[row], alone.maps[0], f"row {row} of a batch differs from the same image by itself")


@check("attributor")
def layers(subject: Subject) -> None:
    """With an option `layer`, maps have the layer's size, or that of `map_size`, and a batch is its rows."""
    if "layer" not in subject.cls.Options.model_fields:
        raise NotApplicable("the class has no option `layer`")
    model, inputs = _batch(subject)
    targets = _targets(model, len(inputs))
    for layer in ("input", "final"):
        try:
            attributor = subject.build(layer=layer)
        except ValidationError:
            continue
        split, where = model.at(layer), f"at layer {layer}"
        with torch.no_grad():
            size = tuple(split.as_map(split.body(inputs)[0]).shape[2:])
        tell = getattr(attributor, "map_size", None)
        told = tell(model.input_size) if tell else None
        try:
            together = _explain(attributor, model, inputs, copies=[5, 6, 7]).maps
        except UsageError:
            continue
        found = tuple(together.shape[1:])
        if told is None:
            require(found == size, f"{where} maps have shape {found}, and the layer has {size}")
        for row in range(len(inputs)):
            alone = _explain(attributor, model, inputs[row:row + 1], targets=targets[row:row + 1], copies=[5 + row])
            require_close(together[row], alone.maps[0], f"{where} row {row} of a batch differs from the same image by "
                                                        "itself")


@check("attributor")
def anchor(subject: Subject) -> None:
    """A method that looks at the clean image first says what it holds fixed, and does not depend on when it looked."""
    model, inputs = _batch(subject)
    image = fixtures.noisy_images(model, 1, seed=7)[0].clamp(0, 1)
    if getattr(subject.cls, "anchored", None) is None or subject.build().anchored(model, image, 0) is None:
        raise NotApplicable("the attributor does not look at the clean image first")
    attributor = subject.build()
    before = _explain(attributor, model, inputs).maps
    with unchanged_module(model.module, "anchored()"), unchanged_tensors("anchored()", image=image):
        found = attributor.anchored(model, image, 0)
    held = getattr(found, "held", None)
    require(isinstance(held, str) and bool(held), "what anchored() returns does not say what it holds, in `held`")
    require_close(_explain(attributor, model, inputs).maps, before, "after anchored() the instance gives other maps")
    targets = torch.zeros(len(inputs), dtype=torch.int64)
    together = _explain(found, model, inputs, targets=targets).maps
    _require_map_shape(together, inputs)
    again = _explain(subject.build().anchored(model, image, 0), model, inputs, targets=targets).maps
    require(torch.equal(together, again), "anchored at the same image a new instance gives other maps")
    for row in range(len(inputs)):
        alone = _explain(found, model, inputs[row:row + 1], targets=targets[:1], copies=[row]).maps
        require_close(together[row], alone[0], f"anchored, row {row} of a batch differs from the same image by itself")
    _explain(attributor.anchored(model, 1 - image, 0), model, inputs, targets=targets)
    require_close(_explain(found, model, inputs, targets=targets).maps, together,
                  "anchored at another image meanwhile, the method gives other maps")


@check("attributor")
def family(subject: Subject) -> None:
    """`family`, when given, is a word: comparisons draw the methods of a family in one panel."""
    told = getattr(subject.cls, "family", None)
    if told is None:
        raise NotApplicable("the class names no family")
    require(isinstance(told, str) and bool(told.strip()), f"family is {told!r}, not a word such as 'perturbation'")


@check("attributor")
def replayable(subject: Subject) -> None:
    """The same inputs and the same rng give the same maps, bit for bit: all randomness comes from `rng`."""
    model, inputs = _batch(subject)
    attributor = subject.build()
    first = _explain(attributor, model, inputs).maps.clone()
    again = _explain(attributor, model, inputs).maps
    fresh = _explain(subject.build(), model, inputs).maps
    require(torch.equal(first, again), "a second call with the same inputs and rng gives other maps")
    require(torch.equal(first, fresh), "a new instance gives other maps for the same inputs and rng")


class _CountingRng(CopyRng):
    """Counts draws, its own and those of its shared streams, in `draws`."""

    def __init__(self, draws: list[int], image: str, copies: Sequence[int]) -> None:
        super().__init__(0, image, "conformance", copies)
        self.draws = draws

    def _raw(self, size: int) -> Any:
        self.draws.append(size)
        return super()._raw(size)

    @property
    def shared(self) -> CopyRng:
        return _CountingRng(self.draws, "shared", [-1])


@check("attributor")
def deterministic_flag(subject: Subject) -> None:
    """`deterministic` tells the truth: True exactly when the maps do not depend on `rng`."""
    model, inputs = _batch(subject)
    attributor = subject.build()
    flag = subject.cls.deterministic
    require(isinstance(flag, bool), f"deterministic is {flag!r}, not True or False")
    if flag:
        first, second = (_explain(attributor, model, inputs, seed=seed).maps for seed in (0, 1))
        require(torch.equal(first, second), "deterministic is True, but another rng gives other maps")
    else:
        rng = _CountingRng([], "0" * 64, range(len(inputs)))
        attributor.attribute(model, inputs, _targets(model, len(inputs)), rng=rng)
        require(bool(rng.draws), "deterministic is False, but nothing is drawn from rng")


def _other_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    return [1, 2 * value + 1] if isinstance(value, int) else []


@check("attributor")
def execution_changes_nothing(subject: Subject) -> None:
    """Options named in `execution` change no result: runs that differ in them alone are taken to be the same run."""
    names = sorted(getattr(subject.cls, "execution", ()))
    if not names:
        raise NotApplicable("the class names no options in `execution`")
    model, inputs = _batch(subject)
    expected = _explain(subject.build(), model, inputs).maps
    current = subject.cls.Options.model_validate(subject.options)
    for name in names:
        for value in _other_values(getattr(current, name)):
            try:
                changed = subject.build(**{name: value})
            except ValidationError:
                continue
            require_close(_explain(changed, model, inputs).maps, expected, f"with {name}={value} the maps differ")


@check("attributor")
def memory_layout(subject: Subject) -> None:
    """Channels-last inputs give the same maps: a run may choose that layout for speed."""
    model, inputs = _batch(subject)
    expected = _explain(subject.build(), model, inputs).maps
    found = _explain(subject.build(), model, inputs.contiguous(memory_format=torch.channels_last)).maps
    require_close(found, expected, "channels-last inputs give other maps")


@check("attributor")
def inputs_unchanged(subject: Subject) -> None:
    """Inputs and targets are left as they were: the same noisy copies are given to the next attributor."""
    model, inputs = _batch(subject)
    targets = _targets(model, len(inputs))
    with unchanged_tensors(_WHO, inputs=inputs, targets=targets):
        _explain(subject.build(), model, inputs, targets=targets)


@check("attributor")
def model_unchanged(subject: Subject) -> None:
    """The model is left as it was: weights, buffers, modes, requires_grad, .grad, attributes and hooks."""
    model, inputs = _batch(subject)
    with unchanged_module(model.module, _WHO):
        _explain(subject.build(), model, inputs)


def _require_recovery(subject: Subject, *, backward: bool) -> None:
    # In the middle of the model; or at its end, for methods that look at the last layers only.
    for share in (0.5, 0.8, 0.99):
        if _recovers(subject, backward=backward, share=share, at_pass=1):
            _recovers(subject, backward=backward, share=share, at_pass=2)
            return
    raise NotApplicable(f"no {'backward' if backward else 'forward'} pass goes through the model's layers")


def _recovers(subject: Subject, *, backward: bool, share: float, at_pass: int) -> bool:
    """Whether the model failed at all; a `Violation` when it was not left as it should be."""
    model, inputs = _batch(subject)
    attributor = subject.build()
    model.at("final")  # cutting may take passes of its own, which are not the attributor's
    layers = [m for m in model.module.modules() if not list(m.children())]
    fuse = Fuse(layers[int(share * len(layers))], backward=backward, at_pass=at_pass)
    came_through = False
    with unchanged_module(model.module, "after the model raised an exception, attribute() has"):
        try:
            _explain(attributor, model, inputs)
        except Exception:
            came_through = True
    if not fuse.fired:
        return False
    require(came_through, "attribute() hides an exception that the model raised")
    fuse.remove()
    require_close(_explain(attributor, model, inputs).maps, _explain(subject.build(), model, inputs).maps,
                   "after an exception in the model the instance gives other maps than a new one")
    return True


@check("attributor")
def restored_after_forward_error(subject: Subject) -> None:
    """When the model raises in mid-forward, the exception comes through and the model is left as it was."""
    _require_recovery(subject, backward=False)


@check("attributor")
def restored_after_backward_error(subject: Subject) -> None:
    """When the backward pass raises, the exception comes through and the model is left as it was."""
    if not subject.cls.needs_gradients:
        raise NotApplicable("the attributor declares that it needs no gradients")
    _require_recovery(subject, backward=True)


@check("attributor")
def no_graph(subject: Subject) -> None:
    """Maps and logits carry no autograd graph: it would keep the activations of every batch alive."""
    model, inputs = _batch(subject)
    result = _explain(subject.build(), model, inputs)
    for name, tensor in (("maps", result.maps), ("logits", result.logits)):
        if tensor is not None:
            require(not tensor.requires_grad, f"{name} carry an autograd graph: detach them")


@check("attributor")
def steady_memory(subject: Subject) -> None:
    """Memory does not grow over calls: a run makes thousands of them on one instance."""
    model = subject.model()
    batches = [fixtures.noisy_images(model, _BATCH, seed=i) for i in range(11)]
    attributor = subject.build()

    def call(i: int) -> None:
        _explain(attributor, model, batches[i].clone(), copies=range(i * _BATCH, (i + 1) * _BATCH))

    require_steady_memory(call, _WHO)


@check("attributor")
def another_model(subject: Subject) -> None:
    """What an instance caches belongs to the model: another model gets its own maps, and the first one its again."""
    model, inputs = _batch(subject)
    other = subject.model()
    _disturb(other.module)
    attributor = subject.build()
    first = _explain(attributor, model, inputs).maps
    require_close(_explain(attributor, other, inputs).maps, _explain(subject.build(), other, inputs).maps,
                   "after explaining one model, the maps of another differ from a new instance's")
    require_close(_explain(attributor, model, inputs).maps, first, "back at the first model, the maps differ")


@torch.no_grad()
def _disturb(module: nn.Module) -> None:
    """Make another model of it: every weight by up to a third larger or smaller."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.mul_(1 + (torch.rand(parameter.shape, generator=generator) - 0.5) / 1.5)


@check("attributor")
def process_unchanged(subject: Subject) -> None:
    """Global state is left alone: random generators, grad mode, defaults, torch's own classes and functions."""
    model, inputs = _batch(subject)
    attributor = subject.build()
    with unchanged_process(_WHO):
        _explain(attributor, model, inputs)


@check("attributor")
def no_gradients_needed(subject: Subject) -> None:
    """`needs_gradients` is honest: when False, a model without derivatives will do, also under inference mode."""
    flag = subject.cls.needs_gradients
    require(isinstance(flag, bool), f"needs_gradients is {flag!r}, not True or False")
    if flag:
        raise NotApplicable("the attributor declares that it needs gradients")
    model, inputs = _batch(subject)
    expected = _explain(subject.build(), model, inputs).maps
    box = BlackBox(subject.model())
    settings: list[tuple[str, Callable[[], contextlib.AbstractContextManager[Any]]]] = [
        ("on a model without derivatives", contextlib.nullcontext), ("under no_grad", torch.no_grad),
        ("under inference_mode", torch.inference_mode)]
    for where, context in settings:
        with context():
            try:
                found = _explain(subject.build(), box, inputs).maps
            except RuntimeError as error:
                require(False, f"needs_gradients is False, but {where} it raises {error}")
        require_close(found.clone(), expected, f"needs_gradients is False, but {where} the maps differ")


@check("attributor")
def device(subject: Subject) -> None:
    """Everything is on the device of the inputs: no CPU tensor is mixed in, and the maps stay there."""
    model, inputs = _batch(subject)
    expected = _explain(subject.build(), model, inputs)
    moved = subject.model()
    with emulated_device() as emulated:
        where = emulated.device
        moved.module.to(where)
        result = _explain(subject.build(), moved, inputs.to(where))
        for name, found in (("maps", result.maps), ("logits", result.logits)):
            if found is not None:
                require(found.device == where, f"{name} are on the {found.device.type}, the inputs on another device")
        require_close(result.maps, expected.maps, "on another device the maps differ", tolerance=DEVICE_TOLERANCE)
