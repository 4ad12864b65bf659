from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from certframe.certifiers.pixel import Pixel
from certframe.metrics.certified_rate import CertifiedRate
from certframe.protocols import ABSTAIN, Explanation
from certframe.tally import Tally


def explanation(labels: np.ndarray) -> Explanation:
    levels = tuple(f"{level}" for level in range(len(labels)))
    tally = Tally(np.zeros((1, *labels.shape), np.int64), ((0, 50),), levels, 0.1)
    certificate = replace(Pixel().certify(tally), labels=labels)
    return Explanation("x", torch.zeros(1, 2, 2), 0, "zero", 0.5, torch.zeros(labels.shape[1:]), tally, certificate)


@given(arrays.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
                     elements=st.sampled_from([0, 1, ABSTAIN])))
def test_shares_are_counted_pixel_by_pixel(labels: np.ndarray) -> None:
    found = CertifiedRate().compute(explanation(labels))
    assert len(found) == 4 * len(labels)
    for name, level in enumerate(labels):
        flat = level.ravel().tolist()
        assert found[f"certified1.{name}"] == pytest.approx(flat.count(1) / len(flat))
        assert found[f"certified0.{name}"] == pytest.approx(flat.count(0) / len(flat))
        assert found[f"abstain.{name}"] == pytest.approx(flat.count(ABSTAIN) / len(flat))
        assert found[f"certified.{name}"] + found[f"abstain.{name}"] == pytest.approx(1)


def test_known_shares() -> None:
    found = CertifiedRate().compute(explanation(np.array([[[1, 0], [0, ABSTAIN]]], np.int8)))
    assert found == {"certified1.0": 0.25, "certified0.0": 0.5, "abstain.0": 0.25, "certified.0": 0.75}
    assert all(type(value) is float for value in found.values())
    assert CertifiedRate.requires == {"labels"}
