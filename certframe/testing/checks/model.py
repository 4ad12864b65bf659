"""What is demanded of a model. Few forward passes are made, so that large models are checked in seconds."""

from __future__ import annotations

import torch
from PIL import Image as pillow
from torch import Tensor

from certframe.errors import UsageError
from certframe.protocols import Model, Split
from certframe.testing import fixtures
from certframe.testing.checks.comparing import DEVICE_TOLERANCE, require_close
from certframe.testing.emulated_device import emulated_device
from certframe.testing.kit import Subject, check, require
from certframe.testing.unchanged import unchanged_module, unchanged_process, unchanged_tensors

_SIZES = ((37, 23), (1, 1), (300, 200))
_MODES = ("RGB", "L", "RGBA")


def _model(subject: Subject) -> Model:
    model: Model = subject.instance
    return model


@torch.no_grad()
def _logits(model: Model, images: Tensor) -> Tensor:
    found: Tensor = model.module(images)
    return found


@check("model")
def input_size(subject: Subject) -> None:
    """`input_size` is three positive whole numbers, channels, height, width."""
    size = _model(subject).input_size
    good = isinstance(size, tuple) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)
    require(good, f"input_size is {size!r}, not (C, H, W)")


@check("model")
def logits(subject: Subject) -> None:
    """Pixels (B,C,H,W), also noisy ones outside [0, 1], give finite float32 logits, one per name in `classes`."""
    model = _model(subject)
    found = _logits(model, fixtures.noisy_images(model, 2))
    require(isinstance(found, Tensor) and found.dtype == torch.float32,
            f"the module returns {getattr(found, 'dtype', type(found).__name__)}, not float32 logits")
    require(found.shape == (2, len(model.classes)),
            f"2 images give logits of shape {tuple(found.shape)}, and there are {len(model.classes)} classes")
    require(bool(torch.isfinite(found).all()), "NaN or infinite logits on noisy images")


@check("model")
def class_names(subject: Subject) -> None:
    """`classes` has a non-empty name for every class: they are what people read."""
    classes = _model(subject).classes
    require(len(classes) >= 2, f"{len(classes)} classes: there is nothing to tell apart")
    nameless = [i for i, name in enumerate(classes) if not (isinstance(name, str) and name.strip())]
    require(not nameless, f"no name for class {nameless[:5]}")


@check("model")
def evaluation_mode(subject: Subject) -> None:
    """Every submodule is in eval mode: dropout and batch statistics would couple the noisy copies."""
    training = [name or "the module" for name, sub in _model(subject).module.named_modules() if sub.training]
    require(not training, f"in training mode: {', '.join(training[:5])}")


@check("model")
def frozen(subject: Subject) -> None:
    """No parameter requires a gradient: explaining must not fill `.grad`, nor pay for it."""
    live = [name for name, p in _model(subject).module.named_parameters() if p.requires_grad]
    require(not live, f"requires_grad is set on {', '.join(live[:5])}: call module.requires_grad_(False)")


@check("model")
def repeatable(subject: Subject) -> None:
    """The same input gives the same logits, bit for bit, and leaves input, weights, buffers and global state alone."""
    model = _model(subject)
    images = fixtures.noisy_images(model, 2)
    with unchanged_module(model.module, "a forward pass"), unchanged_process("a forward pass"), \
            unchanged_tensors("a forward pass", inputs=images):
        first = _logits(model, images)
        again = _logits(model, images)
    require(torch.equal(first, again), "a second pass over the same input gives other logits")


@check("model")
def batch_of_one(subject: Subject) -> None:
    """A batch gives what its images give one by one: noisy copies must not meet in the model."""
    model = _model(subject)
    images = fixtures.noisy_images(model, 2)
    images[0] = images[0] * 0.2  # a dark one beside a bright one, so that statistics over the batch would show
    together = _logits(model, images)
    for row in range(2):
        require_close(_logits(model, images[row:row + 1])[0], together[row], "an image alone and in a batch differ")


@check("model")
def differentiable(subject: Subject) -> None:
    """Logits have a gradient with respect to the pixels, finite and not zero: most attributions need it."""
    model = _model(subject)
    images = fixtures.noisy_images(model, 1).requires_grad_()
    with torch.enable_grad():
        found = model.module(images)
        require(found.requires_grad, "the logits have no gradient with respect to the pixels")
        gradient, = torch.autograd.grad((found * torch.linspace(-1, 1, found.shape[1])).sum(), images)
    require(bool(torch.isfinite(gradient).all()), "the gradient is NaN or infinite")
    require(bool((gradient != 0).any()), "the gradient is zero everywhere")


@check("model")
def preprocess(subject: Subject) -> None:
    """Pictures of any size, in colour, grey or with transparency, become (C,H,W) float32 in [0, 1] on the CPU."""
    model = _model(subject)
    for mode in _MODES:
        for width, height in _SIZES:
            picture = pillow.linear_gradient("L").resize((width, height)).convert(mode)
            found = model.preprocess(picture)
            what = f"a {mode} picture of {width}×{height}"
            require(isinstance(found, Tensor) and found.dtype == torch.float32 and found.device.type == "cpu",
                    f"{what} becomes {getattr(found, 'dtype', type(found).__name__)}, not float32 on the CPU")
            require(tuple(found.shape) == tuple(model.input_size),
                    f"{what} becomes {tuple(found.shape)}, input_size is {tuple(model.input_size)}")
            low, high = float(found.min()), float(found.max())
            require(low >= 0 and high <= 1, f"{what} has values from {low:.3g} to {high:.3g}, not in [0, 1]")


@check("model")
def normalisation_inside(subject: Subject) -> None:
    """`preprocess` leaves grey grey: normalisation belongs in the module, so that σ and R are in pixel units."""
    model = _model(subject)
    _, height, width = model.input_size
    for grey in (51, 153):
        found = model.preprocess(pillow.new("RGB", (width, height), (grey, grey, grey)))
        off = float((found - grey / 255).abs().max())
        became = f"a picture of grey {grey / 255:.2f} becomes {float(found.mean()):.3f}"
        require(off <= 2 / 255, f"{became}: preprocess must not normalise")


@check("model")
def preprocess_pure(subject: Subject) -> None:
    """Preprocessing is repeatable and leaves the picture as it was: there is no random crop or flip."""
    model = _model(subject)
    picture = pillow.linear_gradient("L").resize((61, 47)).convert("RGB")
    before = picture.tobytes()
    first, again = model.preprocess(picture), model.preprocess(picture)
    require(torch.equal(first, again), "the same picture is preprocessed differently the second time")
    require(picture.tobytes() == before, "preprocess changes the picture")


def _require_exact(model: Model, layer: str, split: Split, images: Tensor) -> None:
    expected = _logits(model, images)
    with torch.no_grad():
        activation, *carried = split.body(images)
        kept = activation.clone()
        require_close(split.head(activation, *carried), expected, f"head(*body(x)) at '{layer}' is not module(x)")
        require(torch.equal(activation, kept), f"the head at '{layer}' changes the activation that it is given")
        maps = split.as_map(activation)
    require(maps.dim() == 4 and len(maps) == len(images),
            f"as_map at '{layer}' gives {tuple(maps.shape)}, not (B,K,h,w)")


@check("model")
def at_input(subject: Subject) -> None:
    """The cut at "input" hands the pixels on: the activation is x, a map of C channels, and the head is the module."""
    model = _model(subject)
    images = fixtures.noisy_images(model, 2)
    split = model.at("input")
    _require_exact(model, "input", split, images)
    require(torch.equal(split.body(images)[0], images), "the activation at 'input' is not the pixels")
    require(split.as_map(images).shape == images.shape, "as_map at 'input' is not the image")


@check("model")
def at_final(subject: Subject) -> None:
    """The cut at "final" is exact, gives a map, and gradients flow through its head: activation maps rest on it."""
    model = _model(subject)
    images = fixtures.noisy_images(model, 2)
    split = model.at("final")
    _require_exact(model, "final", split, images)
    with torch.no_grad():
        activation, *carried = split.body(images)
    activation = activation.clone().requires_grad_()
    with torch.enable_grad():
        gradient, = torch.autograd.grad(split.head(activation, *carried).square().sum(), activation)
    flows = bool(torch.isfinite(gradient).all() and (gradient != 0).any())
    require(flows, "no gradient flows through the head at 'final'")


@check("model")
def cutting_leaves_no_trace(subject: Subject) -> None:
    """Cutting and running the halves leave the module as it was, without a hook."""
    model = _model(subject)
    images = fixtures.noisy_images(model, 1)
    with unchanged_module(model.module, "at('final')"), torch.no_grad():
        split = model.at("final")
        split.head(*split.body(images))


@check("model")
def unknown_layer(subject: Subject) -> None:
    """A layer that does not exist is refused with a `UsageError` of one line that names it."""
    try:
        _model(subject).at("no.such.layer")
    except UsageError as error:
        good = "no.such.layer" in str(error) and "\n" not in str(error)
        require(good, f"the message is not one line that names it: {error}")
        return
    require(False, "at('no.such.layer') raises nothing")


@check("model")
def device(subject: Subject) -> None:
    """The module and its cuts follow ``module.to(device)``: nothing they need stays behind on the CPU."""
    model = _model(subject)
    images = fixtures.noisy_images(model, 1)
    expected, before = _logits(model, images), model.at("final")
    with emulated_device() as emulated:
        model.module.to(emulated.device)
        try:
            moved = images.to(emulated.device)
            found = _logits(model, moved)
            require(found.device == emulated.device, f"logits are on the {found.device.type}, the inputs elsewhere")
            require_close(found, expected, "on another device the logits differ", tolerance=DEVICE_TOLERANCE)
            for when, split in (("before", before), ("after", model.at("final"))):
                with torch.no_grad():
                    through = split.head(*split.body(moved))
                require_close(through, expected, f"cut {when} the move, the halves differ", tolerance=DEVICE_TOLERANCE)
        finally:
            model.module.to("cpu")
    require_close(_logits(model, images), expected, "back on the CPU the logits differ")
