"""``certframe plan`` as a user meets it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from certframe import load_run
from certframe.cli.plan import plan
from certframe.cli.run import run

from .conftest import SMALL

PLAN = ("plan", *SMALL[1:])


def test_it_takes_every_option_of_run():
    ours, theirs = inspect.signature(plan).parameters, inspect.signature(run).parameters
    assert set(theirs) <= set(ours)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
        if name not in ("write_report", "retry", "quiet"):
            assert ours[name].annotation == parameter.annotation, name


def test_it_says_what_can_be_certified_and_what_it_costs_and_writes_nothing(certframe, tmp_path):
    outcome = certframe(*PLAN, "--samples", "100", "--sigma", "0.15", "--sigma", "0.25")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["method", "σ", "certifier", "votes", "needed", "radius", "largest", "radius", "needs",
                                "n", "≥"]
    assert lines[1].split() == ["gradient", "0.15", "pixel", "92", "of", "100", "0.1012", "0.1882", "39"]
    assert lines[2].split() == ["gradient", "0.25", "pixel", "92", "of", "100", "0.1686", "0.3137", "39"]
    for words in ("2 of digits, 1×8×8 each", "400 noisy copies for gradient (1 pass of the model each)", "on disk",
                  "runs/digits-digits-gradient-", "(new)", "--probe"):
        assert words in outcome.out, words
    assert len(lines) <= 24
    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_the_one_that_run_takes(certframe):
    there = json.loads(certframe(*PLAN, "--json").out)["out"]
    assert certframe(*SMALL, "--no-report").code == 0
    assert str(next(Path("runs").iterdir())) == there
    finished = certframe(*PLAN)
    assert "2 of them done" in finished.out
    assert f"{there} (finished)" in finished.out
    assert "nothing is left to do" in finished.out


def test_json_has_the_same_facts(certframe):
    outcome = certframe(*PLAN, "--certifier", "adaptive", "--samples", "500", "--out", "r", "--json", "--probe")
    values = json.loads(outcome.out)
    assert outcome.err == ""
    assert values["claims"][0]["looks"] == [96, 136, 192, 272, 384, 500]
    assert values["claims"][0]["first_look"] == 96
    assert values["stops"] == [96, 96]
    assert values["evaluations"] == [192, 1000]
    assert values["seconds"][0] < values["seconds"][1]
    assert values["probe"]["methods"][0]["votes"] is True
    assert values["out"] == "r"


def test_an_experiment_file_and_options_that_win_over_it(certframe, tmp_path):
    (tmp_path / "e.toml").write_text("model = 'digits'\ndataset = 'digits'\nattributor = 'gradient'\nsamples = 80\n")
    values = json.loads(certframe("plan", "e.toml", "--tau", "0.7", "--limit", "1", "--json").out)
    assert (values["samples"], values["images"]) == (80, 1)
    assert values["claims"][0]["radius"] == pytest.approx(0.15 * 0.5244, rel=1e-3)


@pytest.mark.parametrize(("words", "expected"), [
    (("--samples", "38"), ("38 samples", "at least 39", "8×8 map of gradient", "--samples 39")),
    (("--sparsifier", "scaled"), ("'pixel'", "real-valued", "top-k")),
    (("--attributor", "gradiant"), ("unknown attributor 'gradiant'", "'gradient'")),
    (("--fail-under", "beauty"), ("METRIC=VALUE",)),
    (("--device", "cuda:7"), ("'cuda:7'",)),
    (("no.toml",), ("no.toml",)),
])
def test_what_run_refuses_is_refused_in_its_words(certframe, tmp_path, words, expected):
    planned, carried_out = certframe(*PLAN, *words), certframe(*SMALL, *words)
    assert planned.code == carried_out.code == 2
    assert planned.error_lines == carried_out.error_lines
    assert len(planned.error_lines) == 1
    assert planned.out == ""
    for word in expected:
        assert word in planned.error_lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_another_run_is_refused(certframe):
    assert certframe(*SMALL, "--out", "r", "--no-report").code == 0
    outcome = certframe(*PLAN, "--out", "r", "--seed", "4")
    assert outcome.code == 2
    assert "seed is 0 there and 4 here" in outcome.error_lines[0]
    assert load_run("r").config.seed == 0


def test_the_options_that_only_concern_run_are_accepted(certframe):
    assert certframe(*PLAN, "--quiet", "--no-report", "--fail-under", "certified-rate=0.5").code == 0
