"""The page about speed, from what the benchmarks recorded.

    pytest -s tests/benchmarks/bench_attributors.py --benchmark-json=FILE      # or in several calls, by -k
    pytest -s tests/benchmarks/bench_end_to_end.py --benchmark-json=FILE
    python scripts/studies/speed.py --docs FILE …

A later file wins over an earlier one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from pages import publish, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies" / "speed.md"
Records = dict[tuple[str, str], Mapping[str, Any]]
"""What was measured (``package``, ``passes``, ``cost``, ``memory``, ``run``) and of what → the numbers."""


def read(files: Iterable[Path]) -> Records:
    """All records of some files of pytest-benchmark."""
    found: Records = {}
    for file in files:
        for benchmark in json.loads(file.read_text(encoding="utf-8"))["benchmarks"]:
            info = benchmark["extra_info"]
            if "kind" in info:
                found[info["kind"], info["case"]] = info
    return found


def of(records: Records, kind: str) -> dict[str, Mapping[str, Any]]:
    """The records of one kind, by case."""
    return {case: info for (found, case), info in records.items() if found == kind}


def milliseconds(seconds: float, copies: int) -> str:
    """For each copy."""
    return f"{1000 * seconds / copies:.{1 if seconds < copies else 0}f}"


def spread(info: Mapping[str, Any]) -> str:
    """The median ratio, and the quartiles in brackets."""
    digits = 3 if info["median"] < 0.1 else 2
    return f"{info['median']:.{digits}f} ({info['low']:.{digits}f}–{info['high']:.{digits}f})"


def packages(records: Records) -> str:
    """Each method against a package: passes, time, memory."""
    rows = []
    for case, info in {**of(records, "cost"), **of(records, "package")}.items():
        if not info["package"]:
            continue
        cost, memory = (records.get((kind, case), {}) for kind in ("cost", "memory"))
        timed = ["", "", "", ""] if info["kind"] != "package" else [
            milliseconds(info["ours_s"], info["copies"]), milliseconds(info["theirs_s"], info["copies"]), spread(info),
            str(info["repetitions"])]
        rows.append([f"`{info['method']}`", info["package"], info["setting"],
                     *(f"{cost[f'{side}_forward']:.2f} + {cost[f'{side}_backward']:.2f}" if cost else ""
                       for side in ("ours", "theirs")), *timed,
                     *(f"{memory[f'{side}_MB']:.0f}" if memory else "" for side in ("ours", "theirs"))])
    if not rows:
        return "Not yet measured."
    return table(["method", "package", "setting", "passes", "theirs", "ms", "theirs", "ratio", "repetitions", "MB",
                  "theirs"], rows)


def passes(records: Records) -> str:
    """Methods made of forward passes, against the passes."""
    rows = [[f"`{info['method']}`", info["setting"], str(info["passes"]), spread(info),
             str(info["repetitions"])] for info in of(records, "passes").values()]
    if not rows:
        return "Not yet measured."
    return table(["method", "setting", "passes", "ratio", "repetitions"], rows)


def runs(records: Records) -> str:
    """`certframe run` against the straightforward script."""
    found = of(records, "run")
    rows = [[f"`{info['method']}`", info["package"], info["setting"], f"{info['ours_s']:.1f}",
             f"{info['theirs_s']:.1f}{'*' if info['scaled'] else ''}", f"{info['ratio']:.3f}",
             f"{info['ours_MB']:.0f}", f"{info['theirs_MB']:.0f}"] for info in found.values()]
    if not rows:
        return "Not yet measured."
    for name, ratios in (("of all of these", [info["ratio"] for info in found.values()]),
                         ("of those without a star", [info["ratio"] for info in found.values() if not info["scaled"]])):
        if ratios:
            mean = f"{statistics.geometric_mean(ratios):.3f}"
            rows.append([f"geometric mean {name}: {len(ratios)}", "", "", "", "", mean, "", ""])
    return table(["method", "package", "setting", "s", "script, s", "ratio", "MB", "script, MB"], rows)


def main() -> None:
    """Print the tables, and write them into the page."""
    parser = argparse.ArgumentParser(description="The page about speed.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="records of pytest-benchmark")
    parser.add_argument("--docs", action="store_true", help="write the tables into the page of the documentation")
    given = parser.parse_args()
    records = read(given.files)
    publish(PAGE, {make.__name__: make(records) for make in (packages, passes, runs)}, docs=given.docs)


if __name__ == "__main__":
    main()
