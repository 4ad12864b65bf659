"""The commands as a user meets them, on the digits model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from certframe import load_run

from .conftest import SMALL


def test_run_writes_a_run_and_a_report_and_repeats_nothing(certframe):
    first = certframe(*SMALL, "--out", "run")
    assert first.code == 0, first.err
    assert "certified pixels" in first.out
    assert "run/report.html" in first.out
    tallies = {p: p.stat().st_mtime_ns for p in Path("run/tallies").rglob("*.safetensors")}
    again = certframe(*SMALL, "--out", "run")
    assert again.code == 0
    assert {p: p.stat().st_mtime_ns for p in Path("run/tallies").rglob("*.safetensors")} == tallies
    assert again.out == first.out


def test_the_same_settings_lead_to_the_same_directory(certframe):
    assert certframe(*SMALL, "--no-report").code == 0
    assert certframe(*SMALL, "--no-report", "--batch-size", "16").code == 0
    assert len(list(Path("runs").iterdir())) == 1
    assert certframe(*SMALL, "--no-report", "--seed", "1").code == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_json_is_json(certframe):
    outcome = certframe(*SMALL, "--out", "run", "--json")
    result = json.loads(outcome.out)
    assert result["run"] == "run"
    assert Path(result["report"]).exists()
    table = load_run("run").table().to_pylist()
    by_metric = {row["metric"]: row["mean"] for row in result["metrics"]}
    for metric in by_metric:
        values = [row["value"] for row in table if row["metric"] == metric]
        assert by_metric[metric] == pytest.approx(sum(values) / len(values))


def test_a_sweep_has_a_row_for_each_method_and_noise_level(certframe):
    outcome = certframe(*SMALL, "--attributor", "grad-cam", "--sigma", "0.1", "--sigma", "0.2", "-k", "40", "--out",
                        "r", "--json")
    rows = json.loads(outcome.out)["metrics"]
    cells = {(a, s) for a in ("gradient", "grad-cam") for s in (0.1, 0.2)}
    assert {(r["attributor"], r["sigma"]) for r in rows} == cells
    assert {r["metric"] for r in rows} == {"confidence", "certified.40", "certified1.40", "certified0.40", "abstain.40"}


def test_command_line_wins_over_the_file_wins_over_the_defaults(certframe, tmp_path):
    (tmp_path / "e.toml").write_text(
        "model = 'digits'\ndataset = 'digits'\nattributor = 'gradient'\nlimit = 1\nsamples = 80\nsigma = 0.3\n"
        "[options]\ncertifier.tau = 0.8\nsparsifier.k = [30]\n")
    assert certframe("run", "e.toml", "--out", "r", "--sigma", "0.2", "--tau", "0.7").code == 0
    config = load_run("r").config
    assert (config.samples, config.sigma, config.seed) == (80, [0.2], 0)
    assert config.certifier[0].options["tau"] == 0.7
    assert config.sparsifier.options["k"] == [30.0]
    assert config.certifier[0].options["alpha"] == 0.001


def test_gates(certframe):
    assert certframe(*SMALL, "--out", "run", "--fail-under", "certified-rate=0.0").code == 0
    missed = certframe(*SMALL, "--out", "run", "--fail-under", "certified.50=0.9999")
    assert missed.code == 3
    assert "gate not met: certified.50 of gradient" in missed.err
    assert certframe("certify", "run", "--fail-under", "certified-rate=0.9999").code == 3
    unknown = certframe(*SMALL, "--out", "run", "--fail-under", "beauty=1")
    assert unknown.code == 2
    assert "beauty" in unknown.error_lines[0]


def test_certify_again_without_a_model(certframe):
    assert certframe(*SMALL, "--out", "run", "--no-report").code == 0
    looser = json.loads(certframe("certify", "run", "--tau", "0.6", "--json").out)["metrics"]
    before = {m["metric"]: m["mean"] for m in json.loads(certframe(*SMALL, "--out", "run", "--json").out)["metrics"]}
    after = {m["metric"]: m["mean"] for m in looser}
    assert after["certified.50"] >= before["certified.50"]
    assert len(list(Path("run").glob("report-pixel-*.html"))) == 1


@pytest.mark.parametrize("certifier", ["radius", "importance-band", "class", "top-k-overlap", "certified-rank",
                                       "adaptive"])
def test_certify_with_every_certifier_that_needs_no_other_counts(certframe, certifier):
    assert certframe(*SMALL, "--out", "run", "--no-report").code == 0
    outcome = certframe("certify", "run", "--certifier", certifier)
    assert outcome.code == 0, outcome.err
    assert len(list(Path("run/certificates").rglob(f"*--{certifier}-*.safetensors"))) == 2


def test_adaptive_runs_stop_early_and_say_why(certframe):
    words = [w if w != "70" else "400" for w in SMALL]
    assert certframe(*words, "--certifier", "adaptive", "-o", "certifier.target=0.2", "--out", "run").code == 0
    rows = load_run("run").table().to_pylist()
    assert all(row["samples"] < 400 for row in rows)
    assert all("certified" in row["stopped"] for row in rows)


def test_report_of_a_run(certframe):
    assert certframe(*SMALL, "--out", "run", "--no-report").code == 0
    assert not Path("run/report.html").exists()
    assert certframe("report", "run").out.strip() == "run/report.html"
    assert certframe("report", "run", "--out", "elsewhere.html").code == 0
    assert Path("elsewhere.html").read_text().startswith("<!doctype html>")


def test_list_prints_one_name_a_line_with_summary_and_owner(certframe):
    lines = certframe("list", "attributors").out.splitlines()
    assert any(line.startswith("gradient ") and "[certframe " in line for line in lines)
    everything = json.loads(certframe("list", "--json").out)
    assert {e["kind"] for e in everything} == {"model", "attributor", "sparsifier", "certifier", "metric", "dataset",
                                               "executor", "command"}
    assert certframe("list", "thing").code == 2


def test_describe(certframe):
    text = certframe("describe", "pixel").out
    for word in ("-o certifier.tau", "0.75", "holm", "Anani"):
        assert word in text
    assert json.loads(certframe("describe", "top-k", "--json").out)[0]["kind"] == "sparsifier"
    assert "did you mean 'pixel'" in certframe("describe", "pixle").err


def test_plugins_names_the_broken_ones(certframe, monkeypatch):
    from certframe.registry import Broken, Registry
    registry = Registry(external=False)
    registry.broken.append(Broken("lime", "certframe-lime", "1.0", "ModuleNotFoundError: No module named 'lime'"))
    monkeypatch.setattr("certframe.cli.listing.default_registry", lambda: registry)
    out = certframe("plugins").out
    assert "certframe-lime 1.0: broken" in out
    assert "No module named 'lime'" in out


def test_version_and_help(certframe):
    assert certframe("--version").out.startswith("certframe ")
    assert "certframe run" in certframe("--help").out
    for command in ("run", "certify", "report", "list", "describe", "plugins"):
        assert certframe(command, "--help").code == 0


@pytest.mark.parametrize("words", [["--help"], ["list"], ["run", "--help"], ["plugins"]])
def test_starting_does_not_import_torch(words):
    code = ("import sys\nfrom certframe.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
            "assert 'torch' not in sys.modules, 'torch was imported'")
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def test_python_dash_m():
    out = subprocess.run([sys.executable, "-m", "certframe", "--version"], check=True, capture_output=True, text=True)
    assert out.stdout.startswith("certframe ")


def test_completion_offers_names():
    from certframe.cli.options import _complete
    assert ("gradient", "absolute input gradient (saliency)") in _complete("attributor")("gra")


def test_a_batch_that_does_not_fit_into_memory_is_a_notice_not_the_end(certframe, monkeypatch):
    from certframe.attributors.gradient import Gradient

    explain = Gradient.attribute

    def hungry(self, model, inputs, targets, *, rng):
        if len(inputs) > 16:
            raise MemoryError
        return explain(self, model, inputs, targets, rng=rng)

    plain = certframe(*SMALL, "--out", "plain", "--json")
    monkeypatch.setattr(Gradient, "attribute", hungry)
    outcome = certframe(*SMALL, "--out", "run")
    assert outcome.code == 0, outcome.err
    note = ("note: attributor 'gradient': 32 noisy copies at once do not fit into memory; it goes on with 16 (begin "
            "with --batch-size 16 to save the attempt)")
    assert " ".join(outcome.err.split()).count(note) == 1
    assert json.loads(plain.out)["metrics"] == json.loads(certframe(*SMALL, "--out", "run", "--json").out)["metrics"]
