from __future__ import annotations

import math
import statistics

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certframe.store import LEDGER
from certframe.summary import summarise


def row(image: str, metric: str, value: float, **changes: object) -> dict[str, object]:
    return {"image": image, "name": image, "cell": "cam-s0.1", "attributor": "cam", "sigma": 0.1, "certifier": "pixel",
            "samples": 10, "stopped": "all samples", "metric": metric, "value": value, "tally_sha256": "",
            "certificate_sha256": "", **changes}


def table(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=LEDGER)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_mean_and_standard_error(values: list[float]) -> None:
    found, = summarise(table(*(row(f"{i}", "rate", value) for i, value in enumerate(values))))
    assert found.mean == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-9)
    assert found.standard_error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), rel=1e-6, abs=1e-6)
    assert found.images == len(values)
    assert (found.cell, found.attributor, found.sigma, found.certifier, found.metric) == (
        "cam-s0.1", "cam", 0.1, "pixel", "rate")


def test_one_image_has_a_mean_but_no_standard_error() -> None:
    found, = summarise(table(row("a", "rate", 0.25)))
    assert found.mean == 0.25
    assert math.isnan(found.standard_error)


def test_groups_are_kept_apart_in_their_first_order() -> None:
    rows = [row(image, metric, value, cell=cell, sigma=sigma, certifier=certifier)
            for image in ("a", "b") for value, (metric, cell, sigma, certifier) in enumerate([
                ("z", "cam-s0.1", 0.1, "pixel"), ("a", "cam-s0.1", 0.1, "pixel"), ("z", "cam-s0.2", 0.2, "pixel"),
                ("z", "cam-s0.1", 0.1, "early")])]
    found = summarise(table(*rows))
    assert [(m.metric, m.sigma, m.certifier) for m in found] == [
        ("z", 0.1, "pixel"), ("a", 0.1, "pixel"), ("z", 0.2, "pixel"), ("z", 0.1, "early")]
    assert [m.mean for m in found] == [0, 1, 2, 3]
    assert {m.images for m in found} == {2}
    assert {m.standard_error for m in found} == {0.0}


def test_nothing_done_is_an_empty_summary() -> None:
    assert summarise(LEDGER.empty_table()) == []
