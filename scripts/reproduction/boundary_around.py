"""What holding the way to the boundary changes: certified pixels with a search in every copy, and with one search.

    python scripts/reproduction/boundary_around.py --docs --out RUN            # what is missing, then the page
    python scripts/reproduction/boundary_around.py --docs --out RUN --tables   # only the page, of what is there

The runs are on the digits that come with certframe, and take about a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

from pages import publish, table

import certframe
from certframe.comparing import Summary, find_runs, summaries, values_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "boundary.md"
METHODS = ("bsm", "big", "boundary-deeplift")
AROUND = ("copy", "image")
LEVELS = (50.0, 25.0)


def carry_out(out: Path, images: int) -> None:
    """A run for each place to search around; what is done is not done again."""
    for around in AROUND:
        certframe.run(out / around, model="digits", dataset="digits", limit=images, sigma=0.15, samples=200,
                      attributor=[{"name": name, "around": around} for name in METHODS])


def areas(found: Sequence[Summary]) -> str:
    """Certified pixels, and those certified important, of every method: percent, means over the images."""
    cells = {(s.group.method.partition(" ")[0], s.group.run, s.metric, s.level): s for s in found}
    rows = [[f"`{name}`", *(f"{100 * cells[name, around, 'certified', level].mean:.1f} "
                            f"({100 * cells[name, around, 'certified1', level].mean:.1f})"
                            for around in AROUND for level in LEVELS)] for name in METHODS]
    return table(["certified pixels (important), %", *(
        f"`around={around}`, K = {level:g}" if level == LEVELS[0] else f"K = {level:g}"
        for around in AROUND for level in LEVELS)], rows)


def size(found: Sequence[Summary]) -> str:
    """How many images, and how sure the means are."""
    shown = [s for s in found if s.metric in ("certified", "certified1") and s.level in LEVELS]
    return (f"*Means over {shown[0].images} digits, σ = 0.15, 200 copies, standard errors at most "
            f"{100 * max(s.standard_error for s in shown):.1f}. Made by "
            "`python scripts/reproduction/boundary_around.py`.*")


def main() -> None:
    """Run what is missing, and tabulate."""
    parser = argparse.ArgumentParser(description="Search around each noisy copy, or around the image.")
    parser.add_argument("--out", type=Path, default=Path("runs/boundary-around"), metavar="DIR", help="the two runs "
                        "(runs/boundary-around)")
    parser.add_argument("--images", type=int, default=20, metavar="N", help="digits (20)")
    parser.add_argument("--tables", action="store_true", help="only make the table, from what is stored")
    parser.add_argument("--docs", action="store_true", help="write it into the documentation")
    given = parser.parse_args()
    if not given.tables:
        carry_out(given.out, given.images)
    found = summaries(values_of(find_runs([given.out / around for around in AROUND])))
    publish(PAGE, {"around": areas(found), "around-size": size(found)}, docs=given.docs)


if __name__ == "__main__":
    main()
