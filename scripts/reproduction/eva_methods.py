"""The attribution methods of the EVA reproduction with the settings of [EVA], and what every image is measured by.

One measurement is a dictionary of named numbers, stored as a line of JSON. A line carries the fingerprint of everything
that it depends on, so that results of other settings or weights are never mixed in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from eva_nets import SIZES, model_of
from eva_nets import images as stored_images
from torch import Tensor

import certframe
from certframe.noise import CopyRng, image_hash

SEED = 0
Line = dict[str, Any]


@dataclass(frozen=True)
class Plugin:
    """A registered attributor or metric with its options."""

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """An instance."""
        chosen = certframe.default_registry().find(self.kind, self.name).load()
        return chosen(chosen.Options(**self.options))

    @property
    def key(self) -> str:
        """Name and options, as text."""
        return f"{self.name} {json.dumps(dict(self.options), sort_keys=True)}"


EVA_METHOD = {"mnist": "ibp+forward+backward", "cifar10": "ibp+forward"}
EPSILON = 0.5


def eva(images: str, **others: Any) -> Plugin:
    """EVA with the paper's settings for a data set, and what is given in their place."""
    options = {"grid": 12, "eps": EPSILON, "p": 2, "method": EVA_METHOD[images], "margin": "separate"}
    return Plugin("attributor", "eva", options | others)


def variants(images: str) -> dict[str, Plugin]:
    """EVA with other settings than in the main table."""
    every: dict[str, dict[str, Any]] = {"EVA, p = ∞": {"p": "inf"}, "EVA, joint": {"margin": "joint"},
                                        "EVA, ibp": {"method": "ibp"}, "EVA, 7×7": {"grid": 7}}
    if images == "mnist":
        every |= {"EVA, ε = 0.1": {"eps": 0.1}, "EVA, pixels": {"grid": 28}}
    else:
        every |= {"EVA, backward": {"method": "backward"}, "EVA, backward, ε = 0.1": {"method": "backward", "eps": 0.1}}
    return {label: eva(images, **options) for label, options in every.items()}


def methods(images: str) -> dict[str, Plugin]:
    """Label → attributor, in the order of the paper's tables; settings of [EVA] where it has any."""
    _, height, _ = SIZES[images]
    patch = math.ceil(height / 7)
    convolutional = {"Grad-CAM": ("grad-cam", {"layer": "5"}), "Grad-CAM++": ("grad-cam++", {"layer": "5"})}
    greedy = {"grid": 12, "add": 10.0, "samples": 100}  # in each of ten steps, so 1000 in all
    every: dict[str, tuple[str, dict[str, Any]]] = {
        "Saliency": ("gradient", {}), "GradInput": ("input-x-gradient", {}),
        "SmoothGrad": ("smoothgrad", {"samples": 100, "noise": 0.2}),
        "VarGrad": ("vargrad", {"samples": 100, "noise": 0.2}),
        "IG": ("integrated-gradients", {"steps": 100}),
        "Occlusion": ("occlusion", {"patch": patch, "stride": patch, "baseline": 0.0}),
        **(convolutional if images == "cifar10" else {}),
        "RISE": ("rise", {"masks": 6000, "cells": 7, "p": 0.5, "batch": 250}),
        "Greedy-AS": ("greedy-as", greedy),
    }
    found = {label: Plugin("attributor", *what) for label, what in every.items()}
    return found | {"EVA": eva(images), "Random": Plugin("attributor", "random")}


METRICS: dict[str, Plugin] = {
    "deletion": Plugin("metric", "deletion", {"batch": 256}),
    "insertion": Plugin("metric", "insertion", {"batch": 256}),
    "mu-fidelity": Plugin("metric", "mu-fidelity", {"batch": 256}),
    "robustness-sr": Plugin("metric", "robustness-sr", {"norm": "linf", "trials": 6, "steps": 8}),
}


OTHER_METRICS: dict[str, Plugin] = {
    "Deletion to black ↓": Plugin("metric", "deletion", {"baseline": 0.0, "batch": 256}),
    "Insertion on black ↑": Plugin("metric", "insertion", {"baseline": 0.0, "batch": 256}),
    "µFidelity, black ↑": Plugin("metric", "mu-fidelity", {"baseline": 0.0, "batch": 256}),
    "µFidelity, 12×12 cells ↑": Plugin("metric", "mu-fidelity", {"cells": 12, "batch": 256}),
    "µFidelity, softmax ↑": Plugin("metric", "mu-fidelity", {"score": "softmax", "batch": 256}),
}
"""The same metrics with other settings, for some methods."""


class Lines:
    """Results as lines of JSON in a file: appended one by one, so that what is there survives a stop.

    Args:
        path: the file; made when the first line is added.
        key: fingerprint of what the results depend on; lines with another one are not seen.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def __iter__(self) -> Iterator[Line]:
        """The lines with this key; one that was cut off is left out."""
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if line.get("key") == self.key:
                yield line

    def by_image(self) -> dict[int, Line]:
        """Image → line."""
        return {line["image"]: line for line in self}

    def add(self, image: int, values: Mapping[str, Any]) -> None:
        """Append one; begins a new line, in case the last one was cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"key": self.key, "image": image, **values}) + "\n")


def fingerprint(*parts: str) -> str:
    """A short hash of texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Subject:
    """An image of the test set, and the class that is explained."""

    index: int
    image: Tensor
    target: int


def subjects(model: certframe.Model, x: Tensor, y: Tensor, wanted: int) -> list[Subject]:
    """Test images in a fixed random order that the network gets right; a larger study contains a smaller one."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED)).tolist()
    with torch.no_grad():
        right = torch.cat([model.module(part) for part in x.split(500)]).argmax(1) == y
    return [Subject(i, x[i], int(y[i])) for i in order if right[i]][:wanted]


def explain(model: certframe.Model, subject: Subject, plugin: Plugin) -> dict[str, Any]:
    """The map of one image and the seconds of CPU that it took, as a line."""
    attributor = plugin.build()
    rng = CopyRng(SEED, image_hash(subject.image), plugin.key, [-1])
    begun = time.process_time()
    found = attributor.attribute(model, subject.image[None], torch.tensor([subject.target]), rng=rng).maps[0]
    seconds = time.process_time() - begun
    return {"seconds": seconds, "shape": list(found.shape),
            "map": base64.b64encode(found.float().numpy().tobytes()).decode()}


def stored_map(line: Line) -> Tensor:
    """The (h,w) float32 map of a line."""
    values = np.frombuffer(base64.b64decode(line["map"]), dtype=np.float32)
    return torch.from_numpy(values.reshape(line["shape"]).copy())


def measure(model: certframe.Model, subject: Subject, attribution: Tensor, metric: Plugin) -> dict[str, float]:
    """What a metric says of a map."""
    what = certframe.Explanation(name=str(subject.index), image=subject.image, target=subject.target,
                                 target_name=str(model.classes[subject.target]), confidence=0.0, map=attribution,
                                 tally=cast("Any", None), certificate=cast("Any", None), model=model)
    return dict(metric.build().compute(what))


def pending(lines: Lines, chosen: Sequence[Subject]) -> list[Subject]:
    """The images without a result."""
    done = lines.by_image()
    return [subject for subject in chosen if subject.index not in done]


@dataclass(frozen=True)
class Bench:
    """A trained network with its test images, and where the results are.

    Attributes:
        images: ``mnist`` or ``cifar10``.
        model: the trained network.
        subjects: what is explained.
        weights: hash of the network's weights.
        out: the folder of all results.
    """

    images: str
    model: certframe.Model
    subjects: Sequence[Subject]
    weights: str
    out: Path

    def lines(self, label: str, what: str, *plugins: Plugin) -> Lines:
        """The results of a method, of one kind, made with these plugins."""
        name = "".join(c if c.isalnum() or c == "+" else "-" for c in label.lower())
        key = fingerprint(self.weights, *(plugin.key for plugin in plugins))
        return Lines(self.out / self.images / name / f"{what}.jsonl", key)

    def maps(self, label: str, plugin: Plugin) -> Lines:
        """The maps of a method."""
        return self.lines(label, "map", plugin)

    def values(self, label: str, plugin: Plugin, metric: Plugin) -> Lines:
        """What a metric says of them."""
        return self.lines(label, metric.name, plugin, metric)

    def run(self, label: str, plugin: Plugin, metrics: Mapping[str, Plugin], say: Callable[[str], None]) -> None:
        """Explain and measure every image that has no result yet; tells how far it is about every ten seconds."""
        maps = self.maps(label, plugin)
        kept = maps.by_image()
        values = {name: self.values(label, plugin, metric) for name, metric in metrics.items()}
        done = {name: lines.by_image() for name, lines in values.items()}
        told = time.monotonic()
        for count, subject in enumerate(self.subjects, 1):
            if subject.index not in kept:
                kept[subject.index] = explain(self.model, subject, plugin)
                maps.add(subject.index, kept[subject.index])
            for name, metric in metrics.items():
                if subject.index not in done[name]:
                    found = measure(self.model, subject, stored_map(kept[subject.index]), metric)
                    values[name].add(subject.index, found)
            if time.monotonic() - told > 10 or count == len(self.subjects):
                told = time.monotonic()
                say(f"{self.images}, {label}: {count} of {len(self.subjects)} images")


def bench(images: str, file: Path, weights: Path, wanted: int, out: Path) -> Bench:
    """Network and images of a data set.

    Args:
        images: ``mnist`` or ``cifar10``.
        file: the .npz file of the images.
        weights: the trained weights.
        wanted: number of images.
        out: the folder of all results.
    """
    model = model_of(images, weights)
    chosen = subjects(model, *stored_images(file, "test"), wanted)
    return Bench(images, model, chosen, hashlib.sha256(weights.read_bytes()).hexdigest(), out)
