"""Accuracy, and how much of an explanation survives an attack, against the weight λ of robust training [LEV, app. D].

    python scripts/reproduction/robust_training.py --data DIR --out runs/robust           # trains what is missing
    python scripts/reproduction/robust_training.py --data DIR --out runs/robust --docs    # and writes the page

DIR has mnist.npz. Every network is trained by `certframe train-robust`, which goes on from a checkpoint: the same
command resumes the study. One thread makes it repeatable.

A. Levine, S. Singla, S. Feizi. Certifiably robust interpretation in deep learning. 2019 [LEV].
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))

from pages import publish, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduction" / "robust-training.md"
WEIGHTS = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
SETTINGS = ("--architecture", "dense", "--beta", "20", "--limit", "10000", "--epochs", "12", "--batch", "128",
            "--steps", "5", "--restarts", "1", "--tries", "20", "--test-images", "200", "--device", "cpu")
"""Fewer images, epochs, steps and restarts than [LEV]: all of it takes about half an hour on one core."""


def command(data: Path, out: Path, weight: float) -> list[str]:
    """The words that train one network."""
    return ["certframe", "train-robust", f"mnist:{data / 'mnist.npz'}", "--weight", f"{weight:g}", *SETTINGS, "--out",
            str(out / f"{weight:g}")]


def rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each network."""
    return [[f"{r['weight']:g}", f"{r['accuracy']:.1%}", f"{r['overlap']:.1%} ± {r['standard_error']:.1%}",
             str(r["attacked"] - r["without_start"])] for r in results]


def main() -> None:
    """Train what is missing, and tabulate."""
    parser = argparse.ArgumentParser(description="Robust training of MNIST networks.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with mnist.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/robust"), metavar="DIR", help="where networks go")
    parser.add_argument("--docs", action="store_true", help="write the table into the page")
    given = parser.parse_args()
    for weight in WEIGHTS:
        if not (given.out / f"{weight:g}" / "scores.json").exists():
            words = command(given.data, given.out, weight)
            print(shlex.join(words), flush=True)
            subprocess.run([sys.executable, "-m", *words], check=True)
    results = [json.loads((given.out / f"{weight:g}" / "scores.json").read_text(encoding="utf-8"))
               for weight in WEIGHTS]
    text = table(["λ", "accuracy", "overlap of the top quarter under attack", "images attacked"], rows(results))
    publish(PAGE, {"table": text}, docs=given.docs)


if __name__ == "__main__":
    main()
