"""Each check that is made of every kind catches the mistake that it is there for."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_serializer

from certframe import protocols
from certframe.protocols import KINDS
from certframe.testing import checks_for, run_checks


class Good:
    """A metric with options, one of which has no default."""

    class Options(protocols.Options):
        """Options."""

        scale: float = Field(description="factor")
        offset: int = Field(0, description="summand")

    argument: ClassVar[str] = "scale"
    requires: frozenset[str] = frozenset()

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def conformance_options(cls, directory):
        return {"scale": 2.0}

    def compute(self, explanation):
        return {"value": self.options.scale + self.options.offset}


def test_a_sound_class_passes():
    report = run_checks("metric", Good)
    assert report.ok, str(report)


def options(**body):
    """A class with other options; annotations in ``types``."""
    types = body.pop("types", {})
    model = type("Options", (body.pop("base", protocols.Options),), {"__annotations__": types, **body})
    return but(Options=model, argument=None, conformance_options=classmethod(lambda cls, directory: {}))


def but(**attributes):
    """A class like `Good`, but …"""
    return type("But", (Good,), {"__doc__": "But.", **attributes})


class Forgetful(protocols.Options):
    """Options that are stored without their unit."""

    length: float = Field(2.0, description="a length")

    @field_serializer("length")
    def _store(self, value: float) -> str:
        return f"{value} m"


class Doubling(protocols.Options):
    """Options that are another value when they are read back."""

    length: float = Field(2.0, description="a length")

    @field_serializer("length")
    def _store(self, value: float) -> float:
        return value + 1


class Lenient(BaseModel):
    """Options that ignore what they do not know."""

    model_config = ConfigDict(extra="ignore")


class Mute(BaseModel):
    """Options that refuse the unknown without naming it."""

    model_config = ConfigDict(extra="allow")

    def model_post_init(self, context):
        if self.model_extra:
            raise ValueError("something is wrong")


class NeedsFiles(Good):
    """Refuses its own example."""

    @classmethod
    def conformance_options(cls, directory):
        return {"scale": "large"}


class NoRequires:
    """Lacks what it requires."""

    class Options(protocols.Options):
        """None."""

    def __init__(self, options):
        self.options = options

    def compute(self, explanation):
        return {"value": 1.0}


class FlagsOnInstance:
    """An attributor whose capabilities are known only when it is constructed."""

    class Options(protocols.Options):
        """None."""

    def __init__(self, options):
        self.needs_gradients, self.deterministic = True, True

    def attribute(self, model, inputs, targets, *, rng):
        raise AssertionError("not called")


class WithoutOptions(Good):
    """Has none."""

    Options = None  # type: ignore[assignment]


BROKEN = [
    ("options-class", "metric", WithoutOptions, "no Options"),
    ("options-class", "metric", but(Options={"scale": 1.0}), "no Options"),
    ("docstring", "metric", type("Bare", (Good,), {}), "no docstring of its own"),
    ("docstring", "metric", but(__doc__="  \n "), "no docstring of its own"),
    ("unknown-option", "metric", options(base=Lenient), "accepts an unknown key"),
    ("unknown-option", "metric", options(base=Mute), "does not name it"),
    ("options-described", "metric", options(types={"scale": float}, scale=1.0), "no description for scale"),
    ("options-stored", "metric", options(base=Forgetful), "length cannot be read back from JSON"),
    ("options-stored", "metric", options(base=Doubling), "read back from JSON differ"),
    ("options-stored", "metric", options(types={"scale": object}, scale=Field(object(), description="any")), "raised"),
    ("argument-option", "metric", but(argument="factor"), "argument = 'factor' is not an option"),
    ("execution-option", "metric", but(execution=frozenset({"scale", "chunk"})), "execution names 'chunk'"),
    ("constructs", "metric", but(conformance_options=None), "scale: Field required"),
    ("constructs", "metric", NeedsFiles, "scale: Input should be a valid number"),
    ("constructs", "metric", but(__init__=lambda self: None), "raised TypeError"),
    ("members", "metric", NoRequires, "lacks requires of certframe.Metric"),
    ("members", "metric", but(compute=None), "compute is not a method"),
    ("members", "attributor", FlagsOnInstance, "needs_gradients, deterministic must be set on the class"),
]


@pytest.mark.parametrize(("name", "kind", "cls", "said"), BROKEN,
                         ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)])
def test_a_mistake_is_caught(ask, name, kind, cls, said):
    if cls.__dict__.get("conformance_options", True) is None:
        cls.conformance_options = classmethod(lambda c, directory: {})
    found = ask(kind, name, cls)
    assert found.outcome == "failed", found
    assert said in found.message


@pytest.mark.parametrize("kind", KINDS)
def test_every_common_check_is_made_of_every_kind_and_catches_a_mistake(kind):
    common = {c.name for c in checks_for(kind) if c.function.__module__.endswith(".common")}
    assert common == {name for name, *_ in BROKEN}


def test_a_class_that_cannot_be_constructed_fails_once_and_says_what_to_do():
    report = run_checks("metric", NeedsFiles)
    assert [r.check for r in report.failures] == ["constructs"]
    assert {r.message for r in report.skipped} == {
        "there are no valid options to store: see the check 'constructs'", "the class cannot be constructed"}
    assert "conformance_options(directory)" in report.failures[0].message
