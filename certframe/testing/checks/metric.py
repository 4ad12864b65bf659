"""What is demanded of a metric."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from certframe.protocols import ABSTAIN, Explanation, Metric
from certframe.testing import fixtures
from certframe.testing.emulated_device import emulated_device
from certframe.testing.kit import NotApplicable, Subject, check, require
from certframe.testing.unchanged import unchanged_module, unchanged_process, unchanged_tensors

_NAME = re.compile(r"[a-z][a-z0-9_-]*(\.[A-Za-z0-9_.+-]+)*")


def _explanation(subject: Subject, metric: Metric, *, seed: int = 0) -> Explanation:
    """What the metric requires, or `NotApplicable`."""
    model = subject.model()
    bare = fixtures.explanation(model if "model" in metric.requires else None, seed=seed)
    wanted = set(metric.requires) - bare.carries
    if not wanted:
        return bare
    example = getattr(subject.cls, "conformance_extras", None)
    if example is None:
        raise NotApplicable(f"the metric requires {', '.join(sorted(wanted))}: give the class a classmethod "
                            "conformance_extras(explanation) that returns them for an explanation of the kit's")
    extras = dict(example(bare))
    require(wanted <= extras.keys(), f"conformance_extras lacks {', '.join(sorted(wanted - extras.keys()))}")
    return replace(bare, extras=extras)


def _blank(explanation: Explanation, label: int) -> Explanation:
    """The same, with one label everywhere and a constant map."""
    certificate = replace(explanation.certificate, labels=np.full_like(explanation.certificate.labels, label))
    return replace(explanation, certificate=certificate, map=explanation.map * 0)


def _require_values(values: Mapping[str, float], where: str) -> None:
    good = isinstance(values, Mapping) and len(values) > 0
    require(good, f"compute() returns {values!r}, not names and values, {where}")
    for name, value in values.items():
        require(isinstance(name, str) and bool(_NAME.fullmatch(name)),
                f"{name!r} is no metric's name: lower case, with '.' between a quantity and its level")
        require(isinstance(value, float) and math.isfinite(value), f"{name} is {value!r}, not a finite float, {where}")


@check("metric")
def requires_declared(subject: Subject) -> None:
    """`requires` is a set of names, known before any work: the run refuses a metric whose ingredients are missing."""
    found = subject.build().requires
    good = isinstance(found, frozenset) and all(isinstance(name, str) for name in found)
    require(good, f"requires is {found!r}, not a frozenset of names")


@check("metric")
def values(subject: Subject) -> None:
    """Every value is a finite float under a well-formed name: they become the columns of a table."""
    metric = subject.build()
    _require_values(metric.compute(_explanation(subject, metric)), "on an ordinary explanation")


@check("metric")
def empty_certificates(subject: Subject) -> None:
    """Values stay finite, and their names the same, when everything abstains, is important, or is unimportant."""
    metric = subject.build()
    ordinary = _explanation(subject, metric)
    names = set(metric.compute(ordinary))
    cases = {ABSTAIN: "every pixel abstains", 0: "every pixel is unimportant", 1: "every pixel is important"}
    for label, what in cases.items():
        found = metric.compute(_blank(ordinary, label))
        _require_values(found, f"when {what}")
        require(set(found) == names, f"other names when {what}: {sorted(set(found) ^ names)}")


@check("metric")
def pure(subject: Subject) -> None:
    """The same explanation gives the same values, whatever was computed before, and global state is left alone."""
    metric = subject.build()
    explanation = _explanation(subject, metric)
    with unchanged_process("compute()"):
        first = dict(metric.compute(explanation))
    metric.compute(_explanation(subject, metric, seed=1))
    require(dict(metric.compute(explanation)) == first, "computing again gives other values")
    require(dict(subject.build().compute(explanation)) == first, "another instance gives other values")


@check("metric")
def explanation_unchanged(subject: Subject) -> None:
    """Image, map, counts, labels and the model are left as they were: the next metric and the store need them."""
    metric = subject.build()
    explanation = _explanation(subject, metric)
    labels, segments = explanation.certificate.labels.copy(), explanation.tally.segments.copy()
    extras = dict(explanation.extras)
    module = (explanation.model or subject.model()).module
    tensors = {"image": explanation.image, "map": explanation.map}
    with unchanged_module(module, "compute()"), unchanged_tensors("compute()", **tensors):
        metric.compute(explanation)
    require(np.array_equal(labels, explanation.certificate.labels), "compute() changes the labels")
    require(np.array_equal(segments, explanation.tally.segments), "compute() changes the counts")
    require(extras.keys() == explanation.extras.keys(), "compute() changes the extras")


@check("metric")
def device(subject: Subject) -> None:
    """A metric that runs the model does so where the model is; explanations are on the CPU on every run."""
    metric = subject.build()
    if "model" not in metric.requires:
        raise NotApplicable("the metric does not use the model")
    explanation = _explanation(subject, metric)
    expected = metric.compute(explanation)
    model = subject.model()
    with emulated_device() as emulated:
        model.module.to(emulated.device)
        found = subject.build().compute(replace(explanation, model=model))
    _require_values(found, "with the model on another device")
    for name, value in expected.items():
        require(math.isclose(found[name], value, rel_tol=1e-3, abs_tol=1e-5),
                f"{name} is {found[name]:.6g} with the model on another device, {value:.6g} on the CPU")
