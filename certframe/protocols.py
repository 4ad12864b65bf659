"""The seven plugin kinds and the values that pass between them.

*image → noisy copies → attribution maps → sparsified levels → counts → certificates → metrics.*

A plugin class is constructed from its `Options` (a pydantic model that forbids unknown keys) and otherwise only has to
have the methods below; nothing needs to be inherited. `certframe.testing` checks a class against its contract.

Shapes: ``B`` copies in a batch, ``C×H×W`` an image, ``h×w`` a map, ``L`` levels of a sparsifier. Images are in pixel
units, [0, 1]; noisy copies are *not* clamped and leave that range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

    from certframe.tally import Tally

__all__ = [
    "ABSTAIN", "KINDS", "Attribution", "Attributor", "Certificate", "Certifier", "Dataset", "Executor", "Explanation",
    "Metric", "Model", "Options", "Rng", "Sample", "Schedule", "Sparsifier", "Split",
]

KINDS = ("model", "attributor", "sparsifier", "certifier", "metric", "dataset", "executor")
"""The plugin kinds, in the order in which a run uses them."""

ABSTAIN = -1
"""The label of a pixel about which nothing is certified; 1 is "important", 0 is "not important"."""


class Options(BaseModel):
    """Base class of every plugin's options: immutable, and an unknown key is an error.

    Describe each field (``Field(…, description=…)``): `certframe describe` and the documentation are made from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rng(Protocol):
    """Replayable randomness for an attributor: one independent stream per copy of the batch.

    Row ``b`` of every draw depends only on the run's seed, the image, the method and the index of the copy, never on
    the batch the copy happens to be in. That is what makes a batch of n give what n batches of one give.
    """

    @property
    def device(self) -> torch.device:
        """Where the draws are."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 draws of shape ``(B, *shape)``."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Float32 draws from [0, 1) of shape ``(B, *shape)``."""
        ...

    def integers(self, high: int, *shape: int) -> Tensor:
        """int64 draws from {0, …, high − 1} of shape ``(B, *shape)``."""
        ...

    @property
    def shared(self) -> Rng:
        """A stream of one row that is the same for all copies and images of a run (fixed masks, for instance)."""
        ...


@dataclass(frozen=True)
class Split:
    """A model cut at a layer: ``module(x) == head(*body(x))``.

    Attributes:
        body: pixels (B,C,H,W) → ``(activation, *carried)``: the activation of the layer, and whatever else the rest of
            the network needs from before the cut (a residual stream, for instance), usually nothing.
        head: ``(activation, *carried)`` → logits (B, classes).
        as_map: activation → (B,K,h,w), a view of it as K feature maps. For a transformer the class token is dropped
            and the tokens are laid out on the patch grid.
    """

    body: Callable[[Tensor], tuple[Tensor, ...]]
    head: Callable[..., Tensor]
    as_map: Callable[[Tensor], Tensor]


@runtime_checkable
class Model(Protocol):
    """A differentiable image classifier on pixels."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """C, H, W."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """One name per logit."""
        ...

    @property
    def module(self) -> nn.Module:
        """(B,C,H,W) in pixel units → logits (B, classes). In eval mode, frozen, with its normalisation inside."""
        ...

    def preprocess(self, image: Image) -> Tensor:
        """A picture of any size → (C,H,W) float32 in [0, 1] on the CPU, resized and cropped as the model expects."""
        ...

    # A model may also have ``window(width, height)``, the left, top, right and bottom of the part of a picture that
    # `preprocess` keeps, in pixels of the picture; the run then knows where the boxes of a data set are.

    def at(self, layer: str) -> Split:
        """Cut the model at ``"input"``, ``"final"`` (the last spatial feature map) or a module path.

        Raises:
            UsageError: the layer does not exist, or the model cannot be cut there; the message lists what can.
        """
        ...


@dataclass(frozen=True)
class Attribution:
    """What an attributor returns for a batch.

    Attributes:
        maps: (B,h,w) float32; larger is more important once the sparsifier has applied its ranking. At the resolution
            of the layer: the kernel upsamples when asked to.
        logits: (B, classes) of the unmodified inputs when the method computed them anyway, else None. They become the
            class votes of the tally.
    """

    maps: Tensor
    logits: Tensor | None = None


@runtime_checkable
class Attributor(Protocol):
    """Says how important each pixel (or each cell of a feature map) of an image is for a class.

    Row b of the result may depend only on row b of the inputs, targets and rng. A class may name options that change
    no result (a batch size of its own) in ``execution = frozenset({…})``. An instance may cache what belongs
    to a model, must leave the model as it found it (also after an exception), and is used from one thread.
    """

    Options: ClassVar[type[BaseModel]]
    needs_gradients: ClassVar[bool]
    """False when only forward passes are used, so that a black-box model will do."""
    deterministic: ClassVar[bool]
    """True when the maps do not depend on `rng`."""
    # It may say its ``family``, by which comparisons are drawn: "backpropagation", "activation", "perturbation",
    # "control" (scores that say nothing), or one of its own.
    # An attributor may also have ``passes``, the number of forward passes of the whole model that it makes for one
    # input, and ``map_size((C, H, W))``, the h and w of its maps; `certframe plan` then knows them. Either may be None
    # where it depends on the model.
    # One that looks at the clean image first has ``anchored(model, image, target)``: for an image (C,H,W) and its class
    # it returns the attributor that explains this image and all its noisy copies, with ``held``, a noun phrase for what
    # it has learnt from the image and holds fixed; or None when its options ask for no such look. What is certified is
    # then the map with that held fixed, and the certificate's statement says so.

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """Explain the class ``targets[b]`` on ``inputs[b]``, (B,C,H,W) in pixel units, not clamped; targets (B,) int64.

        Everything is on the device of `inputs`. Called with autograd enabled. A method may carry the graph of inputs
        that require a gradient through to its maps; it is then *differentiable*, and its explanations can be attacked.

        Raises:
            UsageError: the method cannot be applied to this model; in one line, saying why.
        """
        ...


@runtime_checkable
class Sparsifier(Protocol):
    """Turns a map into one or more levels of [0, 1]-valued importance: what is counted, and so what is certified."""

    Options: ClassVar[type[BaseModel]]
    @property
    def levels(self) -> Sequence[str]:
        """A label per level, e.g. ``("50", "25", "5")`` for three values of K."""
        ...

    @property
    def nested(self) -> bool:
        """True when every level contains the next: 1 at level l+1 implies 1 at level l, in every copy."""
        ...

    @property
    def binary(self) -> bool:
        """True when the levels are 0/1 (returned as bool), False when they are float in [0, 1]."""
        ...

    def sparsify(self, maps: Tensor) -> Tensor:
        """(B,h,w) finite float32 → (B,L,h,w), bool when `binary`, else float32 in [0, 1]. Pure; no host sync."""
        ...


@dataclass(frozen=True)
class Schedule:
    """When an adaptive certifier looks at the counts, and what it has decided so far.

    Attributes:
        looks: increasing numbers of copies after which the certifier is asked.
        done: tally → (stop?, one line that says why). Called with the counts up to a look.
    """

    looks: Sequence[int]
    done: Callable[[Tally], tuple[bool, str]]


@dataclass(frozen=True)
class Certificate:
    """What is proven about one explanation; one schema for all certifiers.

    Attributes:
        certifier: name of the certifier, with `options`, its resolved options.
        subject: what the claim is about: ``"pixel-label"``, ``"band"``, ``"rank"``, ``"overlap"``, ``"class"``,
            ``"value"``.
        norm: the norm of the ball, ``"l2"``.
        radius: in pixel units; for claims with a radius per pixel see `arrays`.
        confidence: 1 − α, over the sampling of the noise; 1.0 for a deterministic proof.
        family: the number of claims that hold together with that confidence.
        function: ``"smoothed"`` or ``"base"``: whose behaviour is certified.
        method: ``"statistical"`` or ``"deterministic"``.
        samples: the number of noisy copies used, 0 for a deterministic proof.
        sigma: standard deviation of the noise in pixel units.
        levels: the label of each level.
        labels: int8 (L,h,w): 1 certified important, 0 certified unimportant, `ABSTAIN` undecided.
        arrays: further named arrays (bounds, radii, vote thresholds…).
        statement: one sentence that states the claim in full.
        warnings: what a reader has to know before trusting the claim.
    """

    certifier: str
    options: Mapping[str, Any]
    subject: str
    norm: str
    radius: float
    confidence: float
    family: int
    function: Literal["smoothed", "base"]
    method: Literal["statistical", "deterministic"]
    samples: int
    sigma: float
    levels: Sequence[str]
    labels: np.ndarray
    statement: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def about_labels(self) -> bool:
        """Whether the labels are the claim; for ranks, overlaps and values they are filled in or say less."""
        return self.subject not in ("rank", "overlap", "value") and bool(self.labels.size)


@runtime_checkable
class Certifier(Protocol):
    """Turns counts into a proof: a pure function of a tally."""

    Options: ClassVar[type[BaseModel]]
    @property
    def cuts(self) -> Sequence[int]:
        """Numbers of copies at which the tally has to be split (a selection sample, looks), usually empty."""
        ...

    def certify(self, tally: Tally) -> Certificate:
        """The certificate for these counts.

        Raises:
            UsageError: the tally is not of the right kind (real-valued instead of binary, lacks a cut, …).
        """
        ...

    def min_samples(self, pixels: int, levels: int) -> int:
        """The number of copies below which nothing at all can be certified for a map of so many pixels."""
        ...

    def looks(self, samples: int) -> Schedule | None:
        """When to look, for adaptive certifiers, in a run of at most so many copies; None for a fixed number."""
        ...

    # A certifier of pixel labels may also have ``evidence(tally)`` and ``vote_thresholds(tally, tau)``; the report
    # then offers a slider for τ (see certframe.certifiers.pixel).


@dataclass(frozen=True)
class Explanation:
    """One image, explained and certified: what a metric, the report and a notebook see.

    Attributes:
        name: the image's name in its data set.
        image: (C,H,W) float32 in [0, 1].
        target: the explained class, with `target_name`; `label` is the given label, None when the class was predicted.
        confidence: softmax confidence of the target on the clean image.
        map: (h,w) float32, the attribution of the clean image at the resolution that is certified.
        tally, certificate: the counts and the proof.
        model: the model, for metrics whose `requires` has ``"model"``; None otherwise.
        extras: what the data set knows about the image (boxes, grid cells…).
    """

    name: str
    image: Tensor
    target: int
    target_name: str
    confidence: float
    map: Tensor
    tally: Tally
    certificate: Certificate
    label: int | None = None
    model: Model | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def carries(self) -> frozenset[str]:
        """What it has of what a metric may require: ``"labels"`` when they are the claim, ``"model"``, the extras."""
        own = {"labels": self.certificate.about_labels, "model": self.model is not None}
        return frozenset({*self.extras, *(name for name, there in own.items() if there)})


@runtime_checkable
class Metric(Protocol):
    """Named numbers that say how good an explanation or its certificate is."""

    Options: ClassVar[type[BaseModel]]
    @property
    def requires(self) -> frozenset[str]:
        """What the explanation must carry (`Explanation.carries`), else the metric is left out.

        ``"labels"`` for what counts certified pixels, ``"model"``, and keys of `extras` such as ``"boxes"``.
        """
        ...

    def compute(self, explanation: Explanation) -> Mapping[str, float]:
        """One value per name; names are lower case with ``.`` between a quantity and its level (``certified.50``)."""
        ...

    # A metric may also have ``of_map = True``: its values depend on image, target, extras, model and clean map only. A
    # run then computes them once for all noise levels and certifiers.


@dataclass(frozen=True)
class Sample:
    """One item of a data set: a picture, or a tensor (C,H,W) in [0, 1] that needs no preprocessing.

    ``extras["boxes"]``, a list of [left, top, right, bottom], are in pixels of `image`, pixel 0 reaching from 0 to 1;
    an explanation has them in pixels of the model's input.
    """

    name: str
    image: Image | Tensor
    label: int | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Dataset(Protocol):
    """A sequence of pictures with names and, perhaps, labels."""

    Options: ClassVar[type[BaseModel]]

    def __len__(self) -> int:
        """The number of images."""
        ...

    def name(self, index: int) -> str:
        """A short name, unique in the data set, without reading the image."""
        ...

    def load(self, index: int) -> Sample:
        """Read one image.

        Raises:
            UsageError: the image cannot be read or used; the message names it.
        """
        ...




@runtime_checkable
class Executor(Protocol):
    """Runs tasks somewhere: in this process, in others, on other machines.

    `start` is given a picklable factory; each place of work calls it once and then calls the worker for every task it
    receives. Tasks and results are picklable. Tallies of different tasks are added up by the caller, so tasks may run
    in any order and on any place.
    """

    Options: ClassVar[type[BaseModel]]
    @property
    def slots(self) -> int:
        """How many tasks are worth having under way at once."""
        ...

    def start(self, factory: Callable[[], Callable[[Any], Any]]) -> None:
        """Get ready to run tasks with the worker that `factory()` returns."""
        ...

    def submit(self, task: Any) -> Future[Any]:
        """Begin one task; the future carries the worker's result or exception."""
        ...

    def close(self) -> None:
        """Stop the work and free what was taken; called also after an error. Calling it twice is harmless."""
        ...
