from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import toys
from pydantic import ValidationError

import certframe
from certframe import protocols
from certframe.certifiers.pixel import Pixel
from certframe.executors.local import Local
from certframe.metrics.certified_rate import CertifiedRate
from certframe.noise import CopyRng
from certframe.registry import HOOKS
from certframe.sparsifiers.threshold import Threshold
from certframe.sparsifiers.top_k import TopK

PROTOCOLS = {"model": protocols.Model, "attributor": protocols.Attributor, "sparsifier": protocols.Sparsifier,
             "certifier": protocols.Certifier, "metric": protocols.Metric, "dataset": protocols.Dataset,
             "executor": protocols.Executor}


def test_the_kinds_are_the_seven_hooks() -> None:
    assert protocols.KINDS == tuple(PROTOCOLS) == tuple(HOOKS)
    assert len(protocols.KINDS) == 7


@pytest.mark.parametrize(("kind", "cls"), [
    ("model", toys.Toy), ("dataset", toys.Toys), ("attributor", toys.Weighted), ("sparsifier", toys.Above),
    ("sparsifier", toys.Soft), ("sparsifier", TopK), ("sparsifier", Threshold), ("certifier", Pixel),
    ("certifier", toys.Early), ("metric", toys.Needy), ("metric", CertifiedRate), ("executor", toys.Threads),
    ("executor", Local),
])
def test_nothing_has_to_be_inherited(kind: str, cls: type[Any]) -> None:
    assert isinstance(cls(), PROTOCOLS[kind])
    assert cls.__mro__ == (cls, object)
    others = {name for name, protocol in PROTOCOLS.items() if isinstance(cls(), protocol)}
    assert others == {kind}


@pytest.mark.parametrize("protocol", PROTOCOLS.values())
def test_what_lacks_a_method_is_not_one(protocol: Any) -> None:
    assert not isinstance(object(), protocol)
    assert protocol.__doc__


def test_the_random_streams_of_the_kernel_fit_their_protocol() -> None:
    rng: protocols.Rng = CopyRng(0, "a" * 64, "m", [0, 1])
    for name in ("normal", "uniform", "integers", "shared", "device"):
        assert hasattr(rng, name)


def test_options_are_immutable_and_forbid_unknown_keys() -> None:
    class Some(protocols.Options):
        size: int = 3

    options = Some(size=4)
    with pytest.raises(ValidationError):
        options.size = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Some(sizes=5)  # type: ignore[call-arg]
    assert Some().model_dump() == {"size": 3}


@pytest.mark.parametrize("cls", [protocols.Attribution, protocols.Certificate, protocols.Explanation, protocols.Sample,
                                 protocols.Schedule, protocols.Split])
def test_values_are_frozen_and_described(cls: type[Any]) -> None:
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")


def test_every_field_of_a_certificate_is_described() -> None:
    described = protocols.Certificate.__doc__ or ""
    for field in dataclasses.fields(protocols.Certificate):
        assert field.name in described, field.name


def test_attributions_have_logits_only_when_they_were_computed() -> None:
    assert protocols.Attribution(torch.zeros(1, 2, 2)).logits is None


def test_labels_fit_one_byte() -> None:
    assert sorted((protocols.ABSTAIN, 0, 1)) == [-1, 0, 1]
    assert np.array(protocols.ABSTAIN, dtype=np.int8) == -1


def test_the_public_names_are_there() -> None:
    assert set(protocols.__all__) - set(certframe.__all__) == {"KINDS"}
    for name in certframe.__all__:
        assert getattr(certframe, name) is not None, name
        assert name in dir(certframe)
    with pytest.raises(AttributeError, match="no attribute 'certifi'"):
        certframe.certifi  # noqa: B018
