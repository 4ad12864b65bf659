"""What a place of work does: it holds the model and turns tasks into tallies.

An executor builds one `Worker` per place from the run's configuration; tasks and results travel, models do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from certframe.config import Component, RunConfig
from certframe.device import resolve_device, weights_hash
from certframe.errors import CertframeError, PluginError, UsageError, one_line
from certframe.files import sha256
from certframe.registry import Registry
from certframe.sampling import Cell, Sampler, Subject, warn

if TYPE_CHECKING:
    from torch import Tensor

    from certframe.protocols import Certifier, Explanation, Metric, Model, Sample
    from certframe.tally import Tally


@dataclass(frozen=True)
class CellSpec:
    """One column of a run: an attributor at a noise level, by position in the configuration."""

    key: str
    attributor: int
    sigma: float


def component_key(component: Component) -> str:
    """The plugin's name and six digits of its owner's and options' hash: fit for a file, the same in every run."""
    return f"{component.name}-{sha256(component.fingerprint.encode())[:6]}"


def cells_of(config: RunConfig) -> list[CellSpec]:
    """The attributors × noise levels of a run, in its order."""
    return [CellSpec(f"{component_key(component)}-s{_short(sigma)}", i, sigma)
            for sigma in config.sigma for i, component in enumerate(config.attributor)]


def _short(number: float) -> str:
    """The shortest text that is this number and no other."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


@dataclass(frozen=True)
class Prepare:
    """Task: read an image, fix its target, explain it without noise.

    Attributes:
        tolerant: a method that fails has an empty map and a reason, unless all do.
    """

    index: int
    tolerant: bool = False


@dataclass(frozen=True)
class Count:
    """Task: count the copies start, …, stop − 1 of an image for some cells."""

    index: int
    cells: tuple[str, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Measure:
    """Task: compute the run's metrics on an explanation.

    Attributes:
        tolerant: a metric that fails is left out, with a reason.
    """

    explanation: Explanation
    tolerant: bool = False


@dataclass(frozen=True)
class Measured:
    """Result of `Measure`: numbers by name, and why metrics failed, by name."""

    values: Mapping[str, float]
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """Result of `Prepare`.

    Attributes:
        image: (C,H,W) float32 in [0, 1] on the CPU.
        key: content hash of the image.
        maps: clean attribution (h,w) float32 on the CPU for each attributor of the run; (0,0) where one failed.
        weights: hash of the model's weights.
        failures: why attributors failed, by their place in the run.
    """

    index: int
    name: str
    image: Tensor
    key: str
    label: int | None
    target: int
    target_name: str
    confidence: float
    extras: Mapping[str, Any]
    maps: Sequence[Tensor]
    weights: str
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Counted:
    """Result of `Count`.

    Attributes:
        tallies: by the key of the cell.
        notes: lines that the user should read.
    """

    tallies: Mapping[str, Tally]
    notes: Sequence[str] = ()


class Worker:
    """Holds the model, the data set and the plugins of a run, and does its tasks."""

    def __init__(self, config: RunConfig, registry: Registry | None = None) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.model = load_model(config, self.device, registry)
        self.weights = weights_hash(self.model.module)
        self.dataset = config.dataset.build(registry)
        self.metrics = [component.build(registry) for component in config.metric]
        self.cells = build_cells(config, registry)
        self._notes: list[str] = []
        self.sampler = build_sampler(config, self.model, self.weights, registry, notify=self._notes.append)
        self._last: tuple[int, Subject] | None = None
        self._of_map: tuple[tuple[str, int] | None, dict[tuple[int, str], Mapping[str, float]]] = (None, {})

    def __call__(self, task: Prepare | Count | Measure) -> Any:
        """Do one task.

        Raises:
            UsageError: the image, the model or a method cannot be used as asked.
            CertframeError: a plugin failed in an unforeseen way; names it.
        """
        if isinstance(task, Prepare):
            return self.prepare(task.index, tolerant=task.tolerant)
        if isinstance(task, Count):
            return self.count(task)
        return self.measure(task.explanation, tolerant=task.tolerant)

    def prepare(self, index: int, *, tolerant: bool = False) -> Prepared:
        """Read an image, fix its target and explain it without noise by every attributor.

        Raises:
            CertframeError: an attributor fails; with `tolerant`, all do.
        """
        sample = self.dataset.load(index)
        image = to_pixels(self.model, sample)
        target, confidence = choose_target(self.model, sample, image.to(self.device))
        subject = self._subject(index, sample, image, target)
        firsts = {spec.attributor: spec.key for spec in reversed(cells_of(self.config))}
        maps: list[Tensor] = []
        failures: dict[int, CertframeError] = {}
        for i in range(len(self.config.attributor)):
            try:
                maps.append(self._guard(self.cells[firsts[i]], lambda cell: self.sampler.clean(subject, cell)))
            except CertframeError as error:
                if not tolerant:
                    raise
                maps.append(torch.zeros(0, 0))
                failures[i] = error
        if len(failures) == len(maps):
            raise failures[0]
        return Prepared(index, sample.name, image, subject.key, sample.label, target, subject.target_name, confidence,
                        extras_of(self.model, sample), maps, self.weights,
                        {i: str(error) for i, error in failures.items()})

    def count(self, task: Count) -> Counted:
        """Tallies of the copies start, …, stop − 1, by cell."""
        if self._last is None or self._last[0] != task.index:
            sample = self.dataset.load(task.index)
            image = to_pixels(self.model, sample)
            self._subject(task.index, sample, image, choose_target(self.model, sample, image.to(self.device))[0])
        assert self._last is not None
        subject = self._last[1]
        cells = [self.cells[key] for key in task.cells]
        tallies: dict[str, Tally] = self._guard(cells, lambda c: self.sampler.sample(subject, c, task.start, task.stop))
        notes = tuple(self._notes)
        self._notes.clear()
        return Counted(tallies, notes)

    def measure(self, explanation: Explanation, *, tolerant: bool = False) -> Measured:
        """All metrics of the run that the explanation has the ingredients for.

        Raises:
            CertframeError: a metric fails, and not `tolerant`.
        """
        values: dict[str, float] = {}
        failures: dict[str, str] = {}
        for number, (metric, component) in enumerate(zip(self.metrics, self.config.metric, strict=True)):
            if metric.requires <= {"model", *explanation.carries}:
                try:
                    values |= guard(component, lambda: self._values(number, metric, explanation))  # noqa: B023
                except CertframeError as error:
                    if not tolerant:
                        raise
                    failures[component.name] = str(error)
        return Measured(values, failures)

    def _values(self, number: int, metric: Metric, explanation: Explanation) -> Mapping[str, float]:
        """What a metric says; computed once for an image and map when it depends on nothing else."""
        subject = replace(explanation, model=self.model) if "model" in metric.requires else explanation
        if not getattr(metric, "of_map", False):
            return dict(metric.compute(subject))
        image = (explanation.name, explanation.target)
        if self._of_map[0] != image:
            self._of_map = (image, {})
        key = (number, sha256(explanation.map.numpy().tobytes()))
        if key not in self._of_map[1]:
            self._of_map[1][key] = dict(metric.compute(subject))
        return self._of_map[1][key]

    def _subject(self, index: int, sample: Sample, image: Tensor, target: int) -> Subject:
        memory = torch.channels_last if self.config.channels_last else torch.contiguous_format
        on_device = image.to(self.device)[None].contiguous(memory_format=memory)[0]
        subject = Subject.of(sample.name, on_device, target, str(self.model.classes[target]))
        self._last = (index, subject)
        return subject

    def _guard(self, cells: Any, work: Any) -> Any:
        components = [self.config.attributor[spec.attributor] for spec in cells_of(self.config)
                      if spec.key in {c.key for c in (cells if isinstance(cells, list) else [cells])}]
        return guard(components[0], lambda: work(cells), components)


def build_cells(config: RunConfig, registry: Registry | None = None) -> dict[str, Cell]:
    """The cells of a run with their attributors, one instance for all noise levels."""
    attributors = [component.build(registry) for component in config.attributor]
    return {spec.key: Cell(spec.key, config.attributor[spec.attributor].name, attributors[spec.attributor],
                           config.attributor[spec.attributor].fingerprint, spec.sigma)
            for spec in cells_of(config)}


def build_sampler(config: RunConfig, model: Model, weights: str, registry: Registry | None = None, *,
                  notify: Callable[[str], None] = warn) -> Sampler:
    """The sampler of a run for a model whose weights have that hash; for `notify` see `Sampler`."""
    certifiers = [component.build(registry) for component in config.certifier]
    return Sampler(
        model, config.sparsifier.build(registry), seed=config.seed, batch_size=config.batch_size,
        cuts=cuts_of(certifiers, config.samples), planned=config.samples, upsample=config.resolution == "input",
        precision=config.autocast, channels_last=config.channels_last, notify=notify,
        identity={"weights": weights, "model": config.model.fingerprint, "sparsifier": config.sparsifier.fingerprint})


def cuts_of(certifiers: Sequence[Certifier], samples: int) -> list[int]:
    """Where the counts have to be kept apart for these certifiers: their cuts and their looks."""
    schedules = [s for certifier in certifiers if (s := certifier.looks(samples)) is not None]
    cuts = {cut for certifier in certifiers for cut in certifier.cuts} | {n for s in schedules for n in s.looks}
    return sorted(cut for cut in cuts if cut < samples)


def guard(component: Component, work: Any, among: Sequence[Component] = ()) -> Any:
    """Call a plugin; an exception that is not ours becomes one line that names the plugin and its owner."""
    try:
        return work()
    except CertframeError:
        raise
    except Exception as error:
        names = " or ".join(f"'{c.name}' ({c.distribution} {c.version})" for c in among or [component])
        raise PluginError(f"{component.kind} {names} failed: {one_line(error)}") from error


def load_model(config: RunConfig, device: torch.device, registry: Registry | None = None) -> Model:
    """Build the model, move it to the device, set memory layout and compilation."""
    model: Model = config.model.build(registry)
    model.module.to(device)
    if config.channels_last:
        model.module.to(memory_format=torch.channels_last)
    if config.compile:
        model.module.compile()
    return model


def to_pixels(model: Model, sample: Sample) -> Tensor:
    """The sample as the model takes it: (C,H,W) float32 in [0, 1] on the CPU.

    Raises:
        UsageError: a tensor of the wrong shape or with values outside [0, 1].
    """
    if not isinstance(sample.image, torch.Tensor):
        return model.preprocess(sample.image)
    image = sample.image.detach().to("cpu", torch.float32)
    if tuple(image.shape) != tuple(model.input_size):
        raise UsageError(f"image '{sample.name}' has shape {tuple(image.shape)} and the model takes "
                         f"{tuple(model.input_size)}: resize it, or give a picture instead of a tensor")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):
        raise UsageError(f"image '{sample.name}' has values from {low:.4g} to {high:.4g}: pixels must be in [0, 1], "
                         "without the model's normalisation")
    return image


def extras_of(model: Model, sample: Sample) -> dict[str, Any]:
    """What the data set knows about the image, with boxes in pixels of the model's input.

    Boxes of a picture are cut off at the edges of what the model sees; those that it does not see at all are left out,
    and so is ``"boxes"`` when none is left. A tensor goes to the model as it is, and its boxes do.

    Raises:
        UsageError: the model does not say which part of a picture it sees.
    """
    extras = dict(sample.extras)
    if "boxes" not in extras or isinstance(sample.image, torch.Tensor):
        return extras
    window = getattr(model, "window", None)
    if window is None:
        raise UsageError(f"image '{sample.name}' has boxes and this model does not say which part of a picture it "
                         "sees: give its class a method window(width, height), or explain images without boxes")
    left, top, right, bottom = window(*sample.image.size)
    _, height, width = model.input_size
    across, down = width / (right - left), height / (bottom - top)
    moved = [[_clamped((x0 - left) * across, width), _clamped((y0 - top) * down, height),
              _clamped((x1 - left) * across, width), _clamped((y1 - top) * down, height)]
             for x0, y0, x1, y1 in extras.pop("boxes")]
    if seen := [box for box in moved if box[0] < box[2] and box[1] < box[3]]:
        extras["boxes"] = seen
    return extras


def _clamped(value: float, most: int) -> float:
    return min(max(value, 0.0), float(most))


@torch.no_grad()
def choose_target(model: Model, sample: Sample, image: Tensor) -> tuple[int, float]:
    """The class to explain (the given label, else the clean prediction) and its softmax confidence.

    Raises:
        UsageError: the label is not a class of the model, or the model returns NaN.
    """
    label = resolve_label(model, sample)
    logits = model.module(image[None])[0].float()
    if not bool(torch.isfinite(logits).all()):
        raise UsageError(f"the model returns NaN or infinite logits for image '{sample.name}': check its weights")
    target = int(logits.argmax()) if label is None else label
    return target, float(logits.softmax(dim=0)[target])


def resolve_label(model: Model, sample: Sample) -> int | None:
    """The label as a class index: given as an index, or as a class name in the sample's extras."""
    count, name = len(model.classes), sample.extras.get("class_name")
    if sample.label is not None:
        if not 0 <= sample.label < count:
            raise UsageError(f"image '{sample.name}' has label {sample.label}, and the model has {count} classes "
                             f"(0 to {count - 1}): correct the label, or leave it out to explain the prediction")
        return sample.label
    if name is None:
        return None
    matches = [i for i, c in enumerate(model.classes) if c.lower() == str(name).lower()]
    return matches[0] if len(matches) == 1 else None
