"""Make docs/gallery.md and its pictures: every attribution method on two photographs, clean and certified.

    python scripts/docs/gallery.py --out RUNS                  # run what is missing, then pictures and page
    python scripts/docs/gallery.py --out RUNS --only rise lrp  # only these
    python scripts/docs/gallery.py --only                      # none: only the page, of the pictures that are there

The methods are those that the distributions of this repository register. Each has a run of its own in RUNS, made by
`certframe.run`, which goes on where it was interrupted. Pictures of methods that are not in RUNS stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from generate import first_party
from pages import fill
from PIL import Image

import certframe
from certframe.cli.allocator import tune_allocator
from certframe.config import resolve
from certframe.errors import UsageError
from certframe.protocols import Explanation
from certframe.registry import Entry, default_registry
from certframe.report import figure, levels, paint, sheet
from certframe.store import Run

ROOT = Path(__file__).resolve().parents[2]
PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "images" / "gallery"
SIDE, PICTURED = 150, 2
NOT = "Without a picture: "


@dataclass(frozen=True)
class Way:
    """How a method is shown.

    Attributes:
        options: that make the slowest methods take minutes instead of hours.
        model: what is explained; methods that are for small networks have a small one.
        dataset: where the two pictures are from.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "lite0"
    dataset: str = "photos"

    @property
    def sentence(self) -> str:
        """What the page says of it; nothing for the usual way without options."""
        words = ["on two pictures of the data set `digits`, for whose size it is"] * (self.dataset == "digits")
        words += ["with " + ", ".join(f"`{key}={value}`" for key, value in self.options.items())] * bool(self.options)
        return f" Here {', '.join(words)}." if words else ""


def _on_digits(**options: Any) -> Way:
    return Way(options, "digits", "digits")


WAYS = {
    "integrated-gradients": Way({"steps": 4}), "smoothgrad": Way({"samples": 4}), "vargrad": Way({"samples": 4}),
    "occlusion": Way({"patch": 56, "stride": 56}), "score-cam": Way({"channels": 16}), "rise": Way({"masks": 25}),
    "shapley-sampling": Way({"grid": 4, "orders": 2}),
    "eva": _on_digits(eps=0.1, grid=4, method="ibp+backward"),
    "eva-targeted": _on_digits(eps=0.1, grid=4, method="ibp+backward"),
    **{name: _on_digits() for name in ("bsm", "big", "boundary-deeplift", "agi", "bsg")},
    "eva-hybrid": _on_digits(eps=0.1, grid=4), "greedy-as": _on_digits(grid=4, samples=30),
}


def methods() -> list[Entry]:
    """Every attributor of this repository's distributions, in the order of registration."""
    distributions = first_party()
    return [entry for entry in default_registry().entries("attributor") if entry.distribution in distributions]


def run_of(entry: Entry, out: Path) -> Run:
    """The run of a method, finished.

    Raises:
        UsageError: the method cannot be applied to the model.
    """
    way = WAYS.get(entry.name, Way())
    settings: dict[str, Any] = {"model": way.model, "dataset": way.dataset, "limit": PICTURED, "batch_size": 16,
                                "attributor": {"name": entry.qualified, **way.options}}
    return certframe.run(out / f"{entry.name}-{resolve(settings).digest[:8]}", settings)


def picture(explanations: Sequence[Explanation]) -> Image.Image:
    """A row for each photograph: the clean map, the certified map of every level, and the overlay of all levels."""
    rows = [figure.layout(explanation, SIDE)[0][1:] for explanation in explanations]
    legend = [("important", Image.new("RGB", (8, 8), paint.IMPORTANT)),
              ("unimportant", Image.new("RGB", (8, 8), paint.UNIMPORTANT)), ("abstain", paint.hatched(8, 8)),
              *((meaning, Image.new("RGB", (8, 8), colour)) for colour, meaning in levels.legend(explanations[0]))]
    heading = "; ".join(figure.title(explanation).partition(", R")[0] for explanation in explanations)
    return few_colours(sheet.compose(heading, rows, legend, SIDE))


def photographs(explanations: Sequence[Explanation]) -> Image.Image:
    """The pictures themselves, as the model sees them."""
    row = [sheet.Picture(f"{one.name}: {one.target_name}", paint.picture(one.image)) for one in explanations]
    side = max(cell.image.width for cell in row)
    return few_colours(sheet.compose("The photographs, and the class that is explained", [row], [], side))


def few_colours(image: Image.Image) -> Image.Image:
    """For a small file; the colours that have a meaning stay exactly as they are."""
    exact = [(255, 255, 255), (0, 0, 0), paint.IMPORTANT, paint.UNIMPORTANT, paint.ABSTAIN_LIGHT, paint.ABSTAIN_DARK,
             *paint.level_colours(3)]
    chosen = image.quantize(256 - len(exact), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in exact for value in colour] + chosen)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def heading(entry: Entry) -> str:
    """Name and summary."""
    return f"### `{entry.name}`\n\n{entry.summary[:1].upper()}{entry.summary[1:]}."


def section(entry: Entry) -> str:
    """The part of the page about a method that has a picture."""
    return (f"{heading(entry)}{WAYS.get(entry.name, Way()).sentence}\n\n"
            f"![{entry.name}: clean and certified maps](images/gallery/{entry.name}.png)\n\n"
            "*Made by `python scripts/docs/gallery.py`.*")


def without(entry: Entry, reason: str) -> str:
    """The part of the page about a method that has no picture, and why."""
    return f"{heading(entry)} {NOT}{reason}."


def main() -> None:
    """Run what is missing, draw, and write the page."""
    parser = argparse.ArgumentParser(description="Every attribution method on two photographs.")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"), metavar="RUNS", help="the runs are here")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="run only these methods, or none")
    given = parser.parse_args()
    tune_allocator()
    PICTURES.mkdir(parents=True, exist_ok=True)
    parts = []
    for entry in methods():
        target = PICTURES / f"{entry.name}.png"
        try:
            if given.only is None or entry.name in given.only:
                explanations = [found for *_, found in run_of(entry, given.out).explanations()]
                if WAYS.get(entry.name, Way()).dataset == "photos":
                    photographs(explanations).save(PICTURES / "photographs.png", "PNG", optimize=True)
                picture(explanations).save(target, "PNG", optimize=True)
                print(f"{entry.name}: {target.stat().st_size / 1024:.0f} KB", flush=True)
            parts.append(section(entry) if target.exists() else without(entry, "it has not been run yet"))
        except UsageError as error:
            parts.append(without(entry, str(error)))
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), {"methods": "\n\n".join(parts)}), encoding="utf-8")
    print(f"{PAGE}: {sum(file.stat().st_size for file in PICTURES.glob('*.png')) / 2**20:.2f} MB of pictures")


if __name__ == "__main__":
    main()
