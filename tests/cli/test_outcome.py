"""What is printed at the end is what the report says."""

from __future__ import annotations

import json
import re

import pytest

from certframe.cli import outcome
from certframe.report.of_run import write_report
from certframe.store import load_run
from certframe.worker import component_key

from .conftest import SMALL


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_table_has_the_figures_of_the_report(certframe):
    found = certframe(*SMALL, "--certifier", "pixel", "--certifier", "radius", "--certifier", "certified-rank", "--out",
                      "run")
    assert found.code == 0
    page = text_of(load_run("run").path.joinpath("report.html").read_text(encoding="utf-8"))
    numbers = re.findall(r"[\d.]+ ± [\d.]+(?: %)?", found.out)
    assert len(numbers) == 2 * 3 + 3 + 3
    for number in numbers:
        assert number in page
    assert [line.split()[2] for line in found.out.splitlines() if line.startswith("gradient")] == \
        ["pixel", "radius", "radius", "certified-rank"]
    for expected in ("certified pixels", "average certified radius", "best certified rank", "top 25 %"):
        assert expected in found.out


def test_halves_are_rounded_as_in_the_report():
    row = outcome.Outcome(cell=None, method="a", certifier="pixel-1", proof="pixel", shares={"top 5 %": [0.0625]})
    assert row.shares
    assert outcome._quantity(("share", [0.0625])) == "6.3 %"


@pytest.mark.parametrize("words", [
    ("--certifier", "top-k-overlap"), ("--certifier", "certified-rank", "--sparsifier", "scaled"),
    ("--certifier", "quantile", "--sparsifier", "threshold", "-o", "sparsifier.t=0.05,0.1,0.2")])
def test_claims_that_are_not_about_labels_have_their_own_numbers(certframe, words):
    found = certframe(*SMALL, *words, "--json", "--out", "run")
    assert found.code == 0
    result = json.loads(found.out)
    assert [row["metric"] for row in result["metrics"]] == ["confidence"]
    assert result["headlines"]
    assert all(row["images"] == 2 and row["mean"] >= 0 for row in result["headlines"] if row["mean"] is not None)
    assert any(row["mean"] is not None for row in result["headlines"])
    printed = certframe("certify", "run", *words[:2], "--no-report")
    assert "certified pixels" not in printed.out
    assert result["headlines"][0]["heading"].lower() in printed.out.lower()


def test_a_gate_on_labels_is_not_met_by_a_claim_without_them(certframe):
    found = certframe(*SMALL, "--certifier", "top-k-overlap", "--fail-under", "certified-rate=0.5", "--out", "run")
    assert found.code == 2
    assert "nothing called 'certified-rate' was measured" in found.err


def test_many_levels_are_rows(certframe):
    levels = ",".join(str(k) for k in range(10, 90, 10))
    found = certframe(*SMALL, "-o", f"sparsifier.k={levels}", "--out", "run")
    lines = [line for line in found.out.splitlines() if line.startswith("top ")]
    assert len(lines) == 8
    run = load_run("run")
    key = component_key(run.config.certifier[0])
    (one,) = outcome.outcomes(run, [key])
    assert lines[0].split()[:3] == ["top", "80", "%"]
    assert write_report(run).exists()
    assert list(one.shares) == [f"top {k} %" for k in range(80, 0, -10)]
