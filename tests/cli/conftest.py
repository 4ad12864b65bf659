"""Calling the command line in this process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from certframe.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@pytest.fixture
def certframe(tmp_path, monkeypatch, capfd):
    """Run ``certframe WORDS…`` in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


SMALL = ("run", "--model", "digits", "--data", "digits", "--attributor", "gradient", "--limit", "2", "--samples", "70",
         "--device", "cpu", "--no-tune-allocator")
