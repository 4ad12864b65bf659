"""RISE: which random masks keep the score high?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

import certframe


class Rise:
    """Randomized input sampling: the mean of random masks, weighted by the class score of the masked image.

    The map is Σᵢ f(x ⊙ mᵢ) mᵢ / (N·p) over N masks, where f is the softmax score of the target class. A mask is a grid
    of cells × cells, each 1 with probability p and else 0, enlarged bilinearly and shifted by up to a cell. Masked
    pixels are black. Only forward passes are used, so the model may be a black box.

    At a feature map the masks multiply all its channels, and only the network behind it runs N times. What has no place
    on the map (a transformer's class token) is not masked.

    With `fresh` masks every noisy copy has its own. They are drawn independently of the noise, so the certificate is
    sound, and the function it is about is the expectation over noise and masks. That holds for any number of masks, but
    maps from few are grainy, and the pixels of a grainy map abstain. Otherwise one set of masks serves all copies and
    images of the run, and the certified function is the expectation over noise for these masks: with few of them their
    grain is certified too.

    Source: Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018. The
    defaults are those of Anani et al., "Pixel-level Certified Explanations via Randomized Smoothing", ICML 2025.
    """

    class Options(certframe.Options):
        """Options of `rise`."""

        layer: str = Field("input", description="'input', 'final' (last spatial feature map), or a module path.")
        masks: int = Field(1000, ge=1, description="Number of masks N for each noisy copy; few fresh ones are sound "
                                                   "and quick, but certify little.")
        cells: int = Field(6, ge=1, description="Cells of a mask's grid along each side.")
        p: float = Field(0.1, gt=0, lt=1, description="Probability that a cell is kept.")
        fresh: bool = Field(True, description="Draw new masks for every noisy copy, instead of one set for the run.")
        batch: int = Field(32, ge=1, description="Largest number of masked images in one forward pass.")

    needs_gradients = False
    deterministic = False
    family = "perturbation"
    execution = frozenset({"batch"})  # changes no result

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.passes = self.options.masks if self.options.layer == "input" else None  # others are not of the whole model

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Few masks, in several passes for each copy, for the conformance kit."""
        return {"masks": 24, "batch": 7}

    def attribute(self, model: certframe.Model, inputs: Tensor, targets: Tensor, *,
                  rng: certframe.Rng) -> certframe.Attribution:
        """Explain ``targets[b]`` (B,) on ``inputs[b]`` (B,C,H,W), in pixel units; maps (B,h,w), not negative.

        At most `batch` masked images exist at a time, whatever the number of masks and of copies. A pass has masked
        images of several copies when all masks of each fit in.
        """
        o, split = self.options, model.at(self.options.layer)
        with torch.no_grad():
            values = split.body(inputs)
            count, _, height, width = split.as_map(values[0]).shape
            masks = _Masks(o, height, width, rng)
            maps = inputs.new_zeros(count, height, width)
            for copies in _pieces(count, o.batch // o.masks):
                for some in _pieces(o.masks, o.batch):
                    enlarged = masks(copies, some)
                    scores = _scores(split, [value[copies] for value in values], enlarged, targets[copies])
                    maps[copies] += _weighted_sum(scores, enlarged)
        return certframe.Attribution(maps / (o.masks * o.p))


class _Masks:
    """All masks of a batch, kept as small grids and enlarged when they are needed.

    Enlarging is linear in the rows and in the columns of a grid, so it is a product of three small matrices. That is
    several times faster than to enlarge and then cut the shifted window out, and needs no loop over masks.
    """

    def __init__(self, options: Rise.Options, height: int, width: int, rng: certframe.Rng) -> None:
        stream = rng if options.fresh else rng.shared
        n, s = options.masks, options.cells
        self._shared = not options.fresh
        self._grids = stream.uniform(n, s, s) < options.p
        self._up, self._across = _windows(s, height, rng.device), _windows(s, width, rng.device)
        self._down_by = stream.integers(len(self._up), n)
        self._right_by = stream.integers(len(self._across), n)

    def __call__(self, copies: slice, some: slice) -> Tensor:
        """(copies, masks, H, W) in [0, 1]; one row for all copies when they share their masks."""
        rows = slice(None) if self._shared else copies
        with certframe.full_precision(self._up.device):
            tall = self._up[self._down_by[rows, some]] @ self._grids[rows, some].float()
            return tall @ self._across[self._right_by[rows, some]].mT


def _windows(cells: int, size: int, device: torch.device) -> Tensor:
    """(shifts, size, cells): what each cell contributes to each pixel, bilinearly, for every shift.

    As in the paper's code a cell is ⌈size/cells⌉ pixels, the grid is enlarged to cells + 1 of them, and the image is a
    window in it.
    """
    pixels = math.ceil(size / cells)
    unit = torch.eye(cells, device=device)[None]
    enlarged = functional.interpolate(unit, size=(cells + 1) * pixels, mode="linear", align_corners=False)[0]
    return torch.stack([enlarged[:, shift:shift + size].T for shift in range(pixels)])


def _scores(split: certframe.Split, values: Sequence[Tensor], masks: Tensor, targets: Tensor) -> Tensor:
    """(copies, masks): the softmax score of each copy's target class with each mask on the layer's map."""
    copies, count = len(targets), masks.shape[1]
    rows = torch.arange(copies, device=masks.device).repeat_interleave(count)
    masked, *around = (value[rows] for value in values)
    # The map is a view of the activation, and what is not on the map stays.
    split.as_map(masked).mul_(masks.expand(copies, -1, -1, -1).flatten(0, 1)[:, None])
    probabilities = split.head(masked, *around).float().softmax(dim=1).view(copies, count, -1)
    wanted = targets[:, None, None].expand(-1, count, 1)
    return probabilities.gather(2, wanted).squeeze(2)


def _weighted_sum(scores: Tensor, masks: Tensor) -> Tensor:
    """(copies, masks) and (copies or 1, masks, H, W) → (copies, H, W)."""
    pixels = masks.flatten(2).expand(len(scores), -1, -1)
    with certframe.full_precision(scores.device):
        return torch.bmm(scores[:, None], pixels).reshape(-1, *masks.shape[2:])



def _pieces(total: int, most: int) -> Iterator[slice]:
    """Cut 0…total into slices of nearly the same length, at least 1 and at most `most`."""
    pieces = math.ceil(total / max(1, most))
    edges = [total * i // pieces for i in range(pieces + 1)]
    return (slice(a, b) for a, b in itertools.pairwise(edges))
