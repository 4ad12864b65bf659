"""Make docs/images/coffee.png, the picture in the README, from a run.

    python scripts/docs/picture.py

It is the run of ``certframe run --limit 1``: the photograph *coffee* (Rachel Michetti, CC0, from scikit-image), lite0,
grad-cam, 100 noisy copies at σ = 0.15, τ = 0.75, α = 0.001.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import certframe
from certframe.report.figure import write_png

TARGET = Path(__file__).resolve().parents[2] / "docs" / "images" / "coffee.png"


def main() -> None:
    """Run and write."""
    with tempfile.TemporaryDirectory() as folder:
        run = certframe.run(folder, model="lite0", dataset="photos", attributor="grad-cam", limit=1)
        *_, explanation = next(run.explanations())
        write_png(explanation, TARGET, side=224)
        for row in run.table().to_pylist():
            print(f"{row['metric']} {row['value']:.5f}")
    print(explanation.certificate.statement)
    print(TARGET)


if __name__ == "__main__":
    main()
