"""A control that knows nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from certframe import protocols
from certframe.protocols import Attribution

if TYPE_CHECKING:
    from certframe.protocols import Model, Rng


class Random:
    """Independent uniform scores for every pixel and copy: what a method has to beat.

    No pixel is ever certified important. At a small K every pixel is certified *un*important, rightly: it is rarely
    among the top. So compare methods by what they certify important.
    """

    class Options(protocols.Options):
        """`random` has no options."""

    needs_gradients: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    passes: ClassVar[int] = 0

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """(B,H,W) maps in [0, 1); the model is not run."""
        return Attribution(rng.uniform(*inputs.shape[-2:]))
