"""The scripts of the pages on attacks and robust training, without the hours that their studies take."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attack_curves
import numpy as np
import pytest
import robust_training

from certframe.cli.app import command_of
from certframe.registry import default_registry


def test_a_certified_overlap_is_that_of_the_next_larger_distance():
    curve = np.array([0.0, 0.1, 0.2]), np.array([0.9, 0.5, 0.2])
    for rho, wanted in ((0.0, 0.9), (0.05, 0.5), (0.1, 0.5), (0.15, 0.2), (0.2, 0.2), (0.21, 0.0)):
        assert attack_curves.certified_at(curve, rho) == wanted


def test_the_figure_is_drawn_from_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    found = {kind: {f"{rho:g}": [0.5, 0.6] for rho in attack_curves.RADII}
             for variant in attack_curves.VARIANTS for kind in (variant, f"{variant}, random")}
    attack_curves.draw(found, [(np.array([0.0, 0.2]), np.array([0.8, 0.1]))], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize("weight", robust_training.WEIGHTS)
def test_the_study_types_commands_that_there_are(weight):
    words = robust_training.command(Path("data"), Path("out"), weight)
    assert words[:2] == ["certframe", "train-robust"]
    command = command_of(default_registry().find("command", "train-robust"))
    with command.make_context("train-robust", words[2:]) as context:
        assert context.params["weight"] == weight
        assert context.params["out"] == Path("out") / f"{weight:g}"


def test_the_table_is_made_of_the_scores_that_are_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robust_training, "WEIGHTS", (0.0, 0.5))
    for weight, overlap in ((0.0, 0.5), (0.5, 0.875)):
        (tmp_path / f"{weight:g}").mkdir()
        scores = {"weight": weight, "accuracy": 0.95, "overlap": overlap, "standard_error": 0.01, "attacked": 200,
                  "without_start": 1}
        (tmp_path / f"{weight:g}" / "scores.json").write_text(json.dumps(scores))
    monkeypatch.setattr(sys, "argv", ["robust_training.py", "--data", str(tmp_path), "--out", str(tmp_path)])
    robust_training.main()
    assert "| 0.5 | 95.0% | 87.5% ± 1.0% | 199 |" in capsys.readouterr().out
