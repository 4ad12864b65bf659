"""Three photographs that scikit-image carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from certframe import protocols
from certframe.errors import UsageError
from certframe.images import read_image
from certframe.protocols import Sample

FILES = {"coffee": "coffee.png", "chelsea": "chelsea.png", "motorcycle": "motorcycle_left.png"}
"""Name of each photograph → its file in scikit-image."""


class Photos:
    """Three photographs from the scikit-image package: a cup of espresso, a cat, a motorcycle.

    - ``coffee``: by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0 (no copyright restrictions).
    - ``chelsea``: the cat Chelsea, by Stéfan van der Walt; CC0 (no copyright restrictions).
    - ``motorcycle``: the left view of a stereo pair of the Middlebury 2014 benchmark (Scharstein et al., GCPR 2014),
      scaled down. scikit-image distributes it without naming a licence: cite the paper when you publish the picture.

    They have no labels: the model's prediction is explained. Read from the installed package, which is not imported.
    """

    class Options(protocols.Options):
        """`photos` has no options."""

    def __init__(self, options: Options | None = None) -> None:
        """Find the photographs.

        Raises:
            UsageError: scikit-image is not installed, or does not carry them.
        """
        self.options = options or self.Options()
        self._folder = _data_folder()
        missing = [file for file in FILES.values() if not (self._folder / file).is_file()]
        if missing:
            raise UsageError(f"the installed scikit-image does not carry {missing[0]}: reinstall it with "
                             "pip install --force-reinstall 'certframe[photos]'")
        self._names = tuple(FILES)

    def __len__(self) -> int:
        """Three."""
        return len(self._names)

    def name(self, index: int) -> str:
        """The photograph's name."""
        return self._names[index]

    def load(self, index: int) -> Sample:
        """Read a photograph, RGB, 300 to 500 pixels high.

        Raises:
            UsageError: the file is damaged.
        """
        name = self._names[index]
        return Sample(name, read_image(self._folder / FILES[name]))


def _data_folder() -> Path:
    # Not skimage.data: importing scikit-image takes longer than everything else here.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the photographs come with scikit-image, which is not installed: "
                         "pip install 'certframe[photos]'")
    return Path(next(iter(spec.submodule_search_locations))) / "data"
