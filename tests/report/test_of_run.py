"""From a real run on the digits to its report."""

from __future__ import annotations

import re

import pytest

import certframe
from certframe.config import Component, resolve_component
from certframe.recertify import recertify
from certframe.report import text
from certframe.report.of_run import certify_command_of, command_of, write_report
from certframe.worker import cells_of, component_key


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Adaptive, so that images stop at different looks."""
    return certframe.run(
        tmp_path_factory.mktemp("runs") / "digits", model="digits", dataset="digits", attributor=["gradient"], limit=3,
        samples=272, certifier=["adaptive"], device="cpu", options={"sparsifier.k": [50, 10]})


def test_the_report_says_what_the_ledger_says(run):
    html = write_report(run).read_text(encoding="utf-8")
    stops = {(row["name"], row["samples"], row["stopped"]) for row in run.table().to_pylist()}
    assert len(stops) == 3
    for name, samples, stopped in stops:
        assert f">{name}</h2>" in html
        assert re.search(rf"<strong>{samples} of at most 272 copies</strong>: {re.escape(stopped)} ", html)
    for level in ("50", "10"):
        shares = [row["value"] for row in run.table().to_pylist() if row["metric"] == f"certified.{level}"]
        assert f'data-level="top {level} %" data-what="certified">{text.percent_error(shares)}<' in html


def test_certified_again_it_still_says_why_it_stopped(run):
    component = resolve_component("certifier", "class", ["certifier.joint=adaptive", "certifier.tau=0.8"])
    recertify(run, component)
    path = write_report(run, component)
    assert path.name == f"report-{component_key(component)}.html"
    html = path.read_text(encoding="utf-8")
    reasons = {(row["image"], row["certifier"]): row["stopped"] for row in run.table().to_pylist()}
    for image in run.image_keys():
        assert reasons[image, component_key(component)] == reasons[image, component_key(run.config.certifier[0])]
        assert reasons[image, component_key(component)] in html
    certificate = run.certificate(run.image_keys()[0], cells_of(run.config)[0].key, component_key(component))
    verdict = "class certified" if certificate.arrays["class"][2] else "class not certified"
    assert f'<strong class="verdict">{verdict}</strong>' in html
    assert certify_command_of(run, component) in html


def test_the_command_names_everything_that_is_not_the_default(run):
    assert command_of(run.config) == (
        "certframe run --model digits --data digits --attributor gradient --certifier adaptive --sigma 0.15 "
        "--samples 272 --limit 3 -o 'sparsifier.top-k.k=[50.0, 10.0]'")


def test_no_command_for_two_plugins_of_one_name(run):
    twice = [Component(kind="certifier", name="pixel", options={"tau": tau}, distribution="certframe", version="1")
             for tau in (0.7, 0.8)]
    assert command_of(run.config.model_copy(update={"certifier": twice})) == ""
