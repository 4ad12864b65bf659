"""Each check of metrics catches the mistake that it is there for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from certframe import protocols
from certframe.testing import run_checks


class Good:
    """Share of the map's mass on certified important pixels, of the first level."""

    class Options(protocols.Options):
        """None."""

    requires: frozenset[str] = frozenset()

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def compute(self, explanation) -> Mapping[str, float]:
        mass = explanation.map.abs()
        inside = torch.from_numpy(explanation.certificate.labels[0] == 1)
        total = float(mass.sum())
        return {"mass": float(mass[inside].sum()) / total if total else 0.0}


class GoodWithModel(Good):
    """Confidence without the certified pixels."""

    requires = frozenset({"model"})

    def compute(self, explanation):
        model = explanation.model
        keep = torch.from_numpy(explanation.certificate.labels[0] != 1)
        device = next(model.module.parameters()).device
        with torch.no_grad():
            logits = model.module((explanation.image * keep)[None].to(device))
        return {"confidence": float(logits.softmax(1)[0, explanation.target])}


class GoodWithBoxes(Good):
    """Number of boxes."""

    requires = frozenset({"boxes"})

    @classmethod
    def conformance_extras(cls, explanation):
        return {"boxes": [(0, 0, 4, 4)]}

    def compute(self, explanation):
        return {"boxes": float(len(explanation.extras["boxes"]))}


@pytest.mark.parametrize("cls", [Good, GoodWithModel, GoodWithBoxes])
def test_a_sound_metric_passes(cls):
    report = run_checks("metric", cls)
    assert report.ok, str(report)
    assert [r.check for r in report.skipped] == ([] if cls is GoodWithModel else ["device"])


def computing(function, **attributes):
    """A metric with another `compute`."""
    return type("Computing", (Good,), {"__doc__": "Computing.", "compute": function, **attributes})


def _counting(self, explanation):
    self.calls = getattr(self, "calls", 0) + 1
    return {"calls": float(self.calls)}


def _per_label(self, explanation):
    return {f"share.{v}": 1.0 for v in np.unique(explanation.certificate.labels).tolist() if v >= 0} | {"n": 1.0}


def _mean_of_certified(self, explanation):
    inside = torch.from_numpy(explanation.certificate.labels[0] == 1)
    return {"mean": float(explanation.map[inside].mean())}


def _normalises_in_place(self, explanation):
    return {"max": float(explanation.map.div_(explanation.map.abs().max() + 1).max())}


def _spoils_labels(self, explanation):
    labels = explanation.certificate.labels
    labels[labels == -1] = 0
    return {"zeros": float((labels == 0).mean())}


def _spoils_counts(self, explanation):
    explanation.tally.segments[:] = 0
    return {"zero": 0.0}


def _trains(self, explanation):
    explanation.model.module.train()
    return {"zero": 0.0}


def _adds_extras(self, explanation):
    explanation.extras["seen"] = True
    return {"zero": 0.0}


def _seeds(self, explanation):
    torch.manual_seed(0)
    return {"zero": 0.0}


def _image_stays(self, explanation):
    with torch.no_grad():
        return {"logit": float(explanation.model.module(explanation.image[None])[0, 0])}


def _differs_by_device(self, explanation):
    return {"on": float(next(explanation.model.module.parameters()).device.type == "cpu")}


BROKEN = [
    ("requires-declared", computing(Good.compute, requires={"model"}), "not a frozenset"),
    ("requires-declared", computing(Good.compute, requires=frozenset({1})), "not a frozenset of names"),
    ("values", computing(lambda self, e: {}), "not names and values"),
    ("values", computing(lambda self, e: 0.5), "not names and values"),
    ("values", computing(lambda self, e: {"Mass Share": 0.5}), "no metric's name"),
    ("values", computing(lambda self, e: {"mass": 1}), "not a finite float"),
    ("values", computing(lambda self, e: {"mass": float("nan")}), "not a finite float"),
    ("values", computing(lambda self, e: {"mass": torch.tensor(0.5)}), "not a finite float"),
    ("values", computing(Good.compute, requires=frozenset({"boxes"}), conformance_extras=classmethod(lambda c, e: {})),
     "conformance_extras lacks boxes"),
    ("empty-certificates", computing(_mean_of_certified), "when every pixel abstains"),
    ("empty-certificates", computing(_per_label), "other names when every pixel abstains"),
    ("pure", computing(_counting), "computing again"),
    ("pure", computing(_seeds), "torch's global random state"),
    ("explanation-unchanged", computing(_normalises_in_place), "changed the values of 'map'"),
    ("explanation-unchanged", computing(_spoils_labels), "changes the labels"),
    ("explanation-unchanged", computing(_spoils_counts), "changes the counts"),
    ("explanation-unchanged", computing(_trains, requires=frozenset({"model"})), "training mode"),
    ("explanation-unchanged", computing(_adds_extras), "changes the extras"),
    ("device", computing(_image_stays, requires=frozenset({"model"})), "DeviceMixError"),
    ("device", computing(_differs_by_device, requires=frozenset({"model"})), "on the CPU"),
]


@pytest.mark.parametrize(("name", "cls", "said"), BROKEN, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BROKEN)])
def test_a_mistake_is_caught(ask, name, cls, said):
    found = ask("metric", name, cls)
    assert found.outcome == "failed", found
    assert said in found.message


def test_every_check_has_a_mistake_that_it_catches(own_checks):
    assert own_checks("metric") == {name for name, _, _ in BROKEN}


def test_a_metric_that_needs_extras_says_how_to_give_them(ask):
    found = ask("metric", "values", computing(Good.compute, requires=frozenset({"boxes"})))
    assert found.outcome == "skipped"
    assert "the metric requires boxes" in found.message
    assert "conformance_extras(explanation)" in found.message
