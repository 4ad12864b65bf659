"""What the studies share: the pictures they explain, and the model that explains them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from certframe.config import RunConfig, resolve
from certframe.device import resolve_device, weights_hash
from certframe.protocols import Attribution, Attributor, Model, Rng, Sample
from certframe.sampling import Cell, Sampler, Subject
from certframe.tally import Tally
from certframe.worker import build_cells, choose_target, load_model, to_pixels

FOLDER = "imagenet_dev"
"""The subfolder with photographs of the folder that CERTFRAME_TEST_DATA names."""


def arguments(description: str, *, images: int, out: str) -> argparse.ArgumentParser:
    """The options that every study has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--images", type=int, default=images, metavar="N", help=f"number of images (default {images})")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of photographs that are used after the three "
                        f"that are always there (default: {FOLDER} in the folder that CERTFRAME_TEST_DATA names)")
    parser.add_argument("--out", type=Path, default=Path(out), metavar="RUN", help=f"counts go here; what is there is "
                        f"not computed again (default {out})")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the model (default: torch's)")
    parser.add_argument("--tables", action="store_true", help="only make the tables, from what is stored")
    parser.add_argument("--docs", action="store_true", help="write the tables into the page of the documentation")
    return parser


def folder(given: Path | None) -> Path | None:
    """The folder of photographs: as given, else as the environment says, else none."""
    base = os.environ.get("CERTFRAME_TEST_DATA")
    return given or (Path(base) / FOLDER if base else None)


def drawn(total: int, wanted: int) -> list[int]:
    """`wanted` indices below `total`, drawn at random; a larger study has the images of a smaller one."""
    return [int(i) for i in np.random.default_rng(0).permutation(total)[:wanted]]


def samples(wanted: int, data: Path | None) -> Iterator[Sample]:
    """The three photographs, then pictures drawn from the folder."""
    photos = resolve({"dataset": "photos"}).dataset.build()
    for index in range(min(wanted, len(photos))):
        yield photos.load(index)
    if data is not None and wanted > len(photos):
        more = resolve({"dataset": f"folder:{data}"}).dataset.build()
        for index in drawn(len(more), wanted - len(photos)):
            yield more.load(index)


class Recorded:
    """An attributor that explains every batch once, and then says the same again, batch by batch.

    Args:
        attributor: what explains.
    """

    def __init__(self, attributor: Attributor) -> None:
        self.attributor, self._batches, self._next = attributor, list[Attribution](), 0

    def again(self) -> Recorded:
        """Begin at the first batch."""
        self._next = 0
        return self

    def attribute(self, model: Model, inputs: Tensor, targets: Tensor, *, rng: Rng) -> Attribution:
        """The next batch: recorded, or explained now."""
        if self._next == len(self._batches):
            self._batches.append(self.attributor.attribute(model, inputs, targets, rng=rng))
        self._next += 1
        return self._batches[self._next - 1]


class Bench:
    """A model on its device with attributors, and images turned into subjects: what a run's worker holds.

    Args:
        config: model, attributors, noise levels and device of the study.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, self.device = config, resolve_device(config.device)
        self.model: Model = load_model(config, self.device)
        self.weights = weights_hash(self.model.module)
        self.cells: dict[str, Cell] = build_cells(config)

    def subject(self, sample: Sample) -> Subject:
        """The image as the model takes it, with the class it predicts (or the label it has)."""
        image = to_pixels(self.model, sample).to(self.device)
        target, _ = choose_target(self.model, sample, image)
        return Subject.of(sample.name, image, target, str(self.model.classes[target]))

    def both(self, subject: Subject, cell: Cell, samplers: Sequence[Sampler], copies: int) -> list[Tally]:
        """Count the same maps by several samplers; the maps of all copies are kept meanwhile, so they must be small."""
        recorded = Recorded(cell.attributor)
        return [sampler.sample(subject, [replace(cell, attributor=cast("Attributor", recorded.again()))], 0,
                               copies)[cell.key] for sampler in samplers]

    def sampler(self, sparsifier: Any, cuts: Sequence[int], samples: int, *, upsample: bool) -> Sampler:
        """A sampler that keeps the counts apart at these cuts."""
        return Sampler(self.model, sparsifier, seed=self.config.seed, batch_size=self.config.batch_size, cuts=cuts,
                       planned=samples, upsample=upsample, channels_last=self.config.channels_last,
                       identity={"weights": self.weights, "model": self.config.model.fingerprint})


def limit_threads(threads: int | None) -> None:
    """Use so many threads; None leaves torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)
