"""What the tables of the search for the nearest boundary say, on made-up results and a small model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from boundary_search import WALKS, Found, against, collect, compute, reading, stage_table, together, walk_name
from eva_methods import Lines, Subject
from pages import fill
from torch import nn

import certframe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduction" / "boundary.md"


def found(*distances: float, seconds: float = 1.0) -> Found:
    """Infinite where nothing was found."""
    values = np.array(distances)
    return Found(np.isfinite(values), np.where(np.isfinite(values), values, 9.0), np.full(len(values), seconds))


def test_together_the_closest_counts_and_all_time() -> None:
    whole = together([found(1, np.inf, np.inf), found(2, 3, np.inf)])
    assert whole.success.tolist() == [True, True, False]
    assert whole.distance[:2].tolist() == [1, 3]
    assert whole.seconds.tolist() == [2, 2, 2]


def test_ratios_are_of_the_images_where_both_succeed() -> None:
    assert against(found(1, np.inf, 1), found(2, 1, np.inf)).startswith("0.50 ×")
    assert against(found(1, np.inf), found(np.inf, 1)).startswith("no image")


def test_the_table_and_what_is_said_of_it() -> None:
    results = {"PGD 0.3": found(0.2, np.inf), "C&W": found(0.3, 0.4, seconds=8)}
    results |= {walk_name(steps): found(0.1, 0.2, seconds=2) for steps in WALKS}
    rows = stage_table(results, "cifar10").splitlines()
    assert rows[2].startswith("| PGD 0.3 | 50.0 % | 0.200 | 1 | 50.0 % | 0.200 | 1 |")
    assert rows[3].startswith("| C&W | 100.0 % | 0.350 ± 0.050 | 8 | 100.0 % | 0.300 ± 0.100 | 9 |")
    said = reading(results)
    assert "0.50 × the mean distance of all stages in 22.2 % of their time" in said
    assert "first 1 stages, which take 50 % of its time and succeed on 50 %: 0.50 × the mean distance" in said


def test_results_are_stored_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certframe_boundary.search.published.STEPS", 2)
    torch.manual_seed(0)
    model = certframe.TorchModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2))
    chosen = [Subject(i, torch.rand(3, 2, 2), 0) for i in range(2)]
    lines = Lines(tmp_path / "lines.jsonl", "key")
    compute(model, chosen[:1], lines, "made up")
    before = lines.path.read_text()
    compute(model, chosen, lines, "made up")
    assert lines.path.read_text().startswith(before)
    results = collect(lines, chosen)
    assert [name for name in results if "default" in name] == [walk_name(steps) for steps in WALKS]
    assert all(len(one.distance) == 2 for one in results.values())


def test_the_page_has_a_place_for_every_part() -> None:
    page = PAGE.read_text(encoding="utf-8")
    fill(page, {f"search-{name}{part}": "" for name in ("lite0", "cifar10") for part in ("", "-reading")})
