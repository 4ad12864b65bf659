"""The table of certified pixels with a search around every copy, and around the image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("certframe_boundary", reason="certframe-boundary is not installed")

import certframe


def test_the_table_is_that_of_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    import boundary_around

    monkeypatch.setattr(boundary_around, "METHODS", ("bsm", "big"))
    monkeypatch.setattr("sys.argv", ["boundary_around.py", "--out", str(tmp_path), "--images", "2"])
    boundary_around.main()
    printed = capsys.readouterr().out
    row, = (line for line in printed.splitlines() if line.startswith("| `big`"))
    found = re.findall(r"[\d.]+", row)
    expected = []
    for around in ("copy", "image"):
        rows = certframe.load_run(tmp_path / around).table().to_pylist()
        for level in ("50", "25"):
            for metric in ("certified", "certified1"):
                values = [r["value"] for r in rows if r["attributor"] == "big" and r["metric"] == f"{metric}.{level}"]
                assert len(values) == 2
                expected.append(f"{50 * sum(values):.1f}")
    assert found == expected
    assert "Means over 2 digits" in printed
    monkeypatch.setattr("sys.argv", ["boundary_around.py", "--out", str(tmp_path), "--tables"])
    boundary_around.main()
    assert capsys.readouterr().out == printed
