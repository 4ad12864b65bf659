"""Broken plugins may change the process; nothing of it may reach the next test."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from certframe.testing import Result, Subject, checks_for


@pytest.fixture(autouse=True)
def _restored_process() -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    errors, forward, threads = np.geterr(), nn.ReLU.forward, torch.get_num_threads()
    torch.set_num_threads(1)  # for so small a model more are slower, and far slower on a busy machine
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    np.seterr(**errors)
    nn.ReLU.forward = forward  # type: ignore[method-assign]
    torch.set_grad_enabled(True)


@pytest.fixture
def ask():
    """``ask(kind, check, cls)``: the result of one check on a class."""
    def run(kind: str, name: str, cls: type, **subject: object) -> Result:
        check, = [c for c in checks_for(kind) if c.name == name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a broken plugin may also be a noisy one
            return check.run(Subject(kind, cls, **subject))
    return run


@pytest.fixture
def own_checks():
    """``own_checks(kind)``: the names of the checks that this kind has beyond those of all kinds."""
    return lambda kind: {c.name for c in checks_for(kind) if c.function.__module__.endswith(f".{kind}")}
