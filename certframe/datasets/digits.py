"""The 8×8 digits on which the `digits` model was not trained."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from safetensors.torch import load_file

from certframe import protocols
from certframe.protocols import Sample

IMAGES = Path(__file__).with_name("digits.safetensors")
HELD_OUT = 360
"""How many digits there are."""
INK = 16
"""The stored value of full ink."""


class DigitImages:
    """Handwritten digits, 8×8 grey, 1 for ink, with labels; none was used to train the model `digits`.

    A fifth of scikit-learn's digits, which are the test set of "Optical Recognition of Handwritten Digits" by
    E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, 1998, doi:10.24432/C50P49), licensed under CC BY 4.0.
    Written by ``scripts/train_digits.py``.
    """

    class Options(protocols.Options):
        """Options of `digits`."""

        count: int = Field(20, ge=1, le=HELD_OUT, description="How many of them, from the first.")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        stored = load_file(IMAGES)
        self._images = stored["images"]
        self._labels = [int(label) for label in stored["labels"]]

    def __len__(self) -> int:
        """`count`."""
        return self.options.count

    def name(self, index: int) -> str:
        """``"digit-007"`` for index 7."""
        return f"digit-{range(len(self))[index]:03d}"

    def load(self, index: int) -> Sample:
        """One digit: (1,8,8) float32 in [0, 1]."""
        return Sample(self.name(index), self._images[index][None].float() / INK, self._labels[index])
