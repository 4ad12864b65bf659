"""Grids of pictures of different classes, for the grid pointing game."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import BeforeValidator, Field

from certframe import protocols
from certframe.config import Reference, component, resolve_component
from certframe.errors import UsageError, one_line
from certframe.files import write_atomic
from certframe.noise import stream_key
from certframe.protocols import Sample
from certframe.worker import resolve_label, to_pixels

if TYPE_CHECKING:
    from certframe.protocols import Dataset, Model

MANIFEST = "grids.json"
_FORMAT = 1


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Picture:
    """A labelled picture that all filter models are sure of."""

    index: int
    name: str
    label: int
    class_name: str
    confidence: float


class Grid:
    """Grids of n × n pictures of different classes, drawn from a labelled data set; the cells' classes are explained.

    A picture may be in a grid when each of the filter models gives its label a softmax confidence of at least
    `confidence`. Pictures are drawn without replacement until none is left that fits, then all of them anew. A cell
    shows the largest centred square of its picture. Grids are tensors (C, size, size), so they go to the model as they
    are; an image of the data set is a grid with one of its cells, its label is the class of that cell, and
    ``extras["grid"]`` is {"n": …, "cell": number of the cell, row by row from 0, "source": name of its picture}.

    The grids are made once, with the models and the data set that are named, and written to the folder `store`;
    afterwards they are read from there, and neither is needed. The other options have to be those that the grids were
    made with.

    Source: Rao, Böhle, Schiele, "Towards Better Understanding Attribution Methods", CVPR 2022; the confidence of at
    least 0.99 is that of Anani et al., ICML 2025.
    """

    class Options(protocols.Options):
        """Options of `grid`."""

        store: Path = Field(description="Folder where the grids are written, and read from afterwards; may be written "
                                        "as 'grid:FOLDER'.")
        source: str | None = Field(None, description="The labelled data set that pictures are drawn from, such as "
                                                     "imagenet:PATH; needed to make grids.")
        models: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
            (), description="The models that have to be sure of every picture; needed to make grids.")
        n: int = Field(2, ge=1, le=16, description="Cells along each side.")
        count: int = Field(500, ge=1, description="Number of grids; each is as many images of the data set as cells of "
                                                  "it are explained.")
        cells: int | None = Field(None, ge=1, description="How many cells of each grid are explained, drawn by the "
                                                          "seed; all n² when left out.")
        confidence: float = Field(0.99, ge=0, le=1, description="Least softmax confidence of every model in the label.")
        size: int = Field(224, ge=1, description="Height and width of a grid in pixels, a multiple of n.")
        seed: int = Field(0, ge=0, lt=2**63, description="Seed of the drawing.")
        device: str = Field("auto", description="Where the filter models run.")

    argument: ClassVar[str] = "store"
    execution = frozenset({"device"})
    needs_models = True  # to make the grids; a study checks everything else before

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Two grids of three classes' digits, for the conformance kit."""
        return {"store": str(directory / "grids"), "source": "digits", "models": ["digits"], "count": 2, "size": 16,
                "confidence": 0.5}

    def __init__(self, options: Options) -> None:
        """Read the grids, or make them.

        Raises:
            UsageError: the grids were made with other options, or cannot be made: something is not named, or too few
                pictures pass the filter.
        """
        self.options = options
        if options.size % options.n:
            raise UsageError(f"size={options.size} is not a multiple of n={options.n}: cells have whole pixels")
        if options.cells is not None and options.cells > options.n**2:
            raise UsageError(f"cells={options.cells}: a grid of n={options.n} has {options.n**2} cells to explain")
        self._explained = options.cells or options.n**2
        self._store = options.store.expanduser()
        if not (self._store / MANIFEST).exists():
            make_grids(options, self._store)
        self._grids = _read_manifest(options, self._store)

    def __len__(self) -> int:
        """The cells that are explained of all grids."""
        return len(self._grids) * self._explained

    def name(self, index: int) -> str:
        """``"grid-0003-cell-2"``: a grid and a cell of it."""
        grid, cell = self._place(range(len(self))[index])
        return f"grid-{grid:04d}-cell-{cell}"

    def _place(self, index: int) -> tuple[int, int]:
        """The grid and the cell of an image of the data set."""
        grid, number = divmod(index, self._explained)
        if self._explained == self.options.n**2:
            return grid, number
        drawn = _generator("cells", self.options.seed, grid).permutation(self.options.n**2)[:self._explained]
        return grid, sorted(drawn.tolist())[number]

    def load(self, index: int) -> Sample:
        """A grid with the class of one of its cells as label.

        Raises:
            UsageError: its picture is missing or damaged.
        """
        name = self.name(index)
        grid, cell = self._place(index)
        file = self._store / f"{name[:9]}.png"
        try:
            with Image.open(file) as picture:
                pixels = np.asarray(picture, dtype=np.float32)
        except (OSError, ValueError) as error:
            raise UsageError(f"the grid '{file}' cannot be read ({one_line(error)}): remove the folder to make the "
                             "grids again") from error
        image = torch.from_numpy(np.atleast_3d(pixels) / np.float32(255)).permute(2, 0, 1).contiguous()
        picked = self._grids[grid][cell]
        return Sample(name, image, picked.label, {"grid": {"n": self.options.n, "cell": cell, "source": picked.name}})


def make_grids(options: Grid.Options, store: Path) -> None:
    """Draw the grids and write them, the list of them last.

    Raises:
        UsageError: as for `Grid`.
    """
    if options.source is None or not options.models:
        raise UsageError(f"there are no grids in '{store}' yet: name a labelled data set with dataset.source=… and the "
                         "models that have to be sure of its pictures with dataset.models=…")
    source: Dataset = component("dataset", options.source).build()
    pool = confident(source, [_model(name, options.device) for name in options.models], options.confidence)
    classes = len({picture.label for picture in pool})
    if classes < options.n**2:
        raise UsageError(f"a grid needs pictures of {options.n**2} classes, and {len(pool)} pictures of {classes} "
                         f"classes of '{options.source}' have a confidence of {options.confidence} with "
                         f"{', '.join(options.models)}: give more pictures, or a smaller dataset.confidence")
    grids = draw(pool, options.n**2, options.count, options.seed)
    for number, grid in enumerate(grids):
        write_atomic(store / f"grid-{number:04d}.png", _png(compose(source, grid, options)))
    content = {"format": _FORMAT, "options": _essential(options), "grids": [[asdict(p) for p in g] for g in grids]}
    write_atomic(store / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def confident(source: Dataset, models: Sequence[Model], least: float, batch: int = 32) -> list[Picture]:
    """The pictures whose label every model gives at least that confidence; what cannot be read is left out.

    Raises:
        UsageError: a picture has no label.
    """
    found: list[Picture] = []
    for start in range(0, len(source), batch):
        samples = {}
        for index in range(start, min(start + batch, len(source))):
            try:
                samples[index] = source.load(index)
            except UsageError:
                continue  # an unreadable picture is no reason to have no grids
        found += _sure(samples, models, least)
    return found


@torch.no_grad()
def _sure(samples: Mapping[int, Sample], models: Sequence[Model], least: float) -> list[Picture]:
    labels = {}
    for index, sample in samples.items():
        label = resolve_label(models[0], sample)
        if label is None:
            raise UsageError(f"picture '{sample.name}' has no label, and grids are made of labelled pictures: give a "
                             "data set that has them")
        labels[index] = label
    confidence = dict.fromkeys(samples, 1.0)
    for model in models:
        left = [index for index in samples if confidence[index] >= least]
        if not left:
            break
        inputs = torch.stack([to_pixels(model, samples[index]) for index in left])
        probabilities = model.module(inputs.to(_device(model))).float().softmax(dim=1).cpu()
        for index, row in zip(left, probabilities, strict=True):
            confidence[index] = min(confidence[index], float(row[labels[index]]))
    return [Picture(index, sample.name, labels[index], str(models[0].classes[labels[index]]), confidence[index])
            for index, sample in samples.items() if confidence[index] >= least]


def draw(pool: Sequence[Picture], cells: int, count: int, seed: int) -> list[list[Picture]]:
    """`count` grids of pictures of different classes; every picture once before any is drawn again."""
    generator = _generator("grids", seed)
    deck: list[Picture] = []
    grids = []
    for _ in range(count):
        grid: list[Picture] = []
        while len(grid) < cells:
            used = {p.label for p in grid}
            place = next((i for i, p in enumerate(deck) if p.label not in used), None)
            if place is None:
                deck += [pool[i] for i in generator.permutation(len(pool))]
            else:
                grid.append(deck.pop(place))
        grids.append(grid)
    return grids


def _generator(*names: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array(stream_key(*names), dtype=np.uint64)))


def compose(source: Dataset, grid: Sequence[Picture], options: Grid.Options) -> Image.Image:
    """The picture of a grid: in colour, or grey when all its pictures are tensors of one channel."""
    side = options.size // options.n
    pictures = [_picture(source.load(picked.index)) for picked in grid]
    whole = Image.new("L" if all(p.mode == "L" for p in pictures) else "RGB", (options.size, options.size))
    for cell, picture in enumerate(pictures):
        row, column = divmod(cell, options.n)
        whole.paste(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC), (column * side, row * side))
    return whole


def _picture(sample: Sample) -> Image.Image:
    if isinstance(sample.image, Image.Image):
        return sample.image.convert("RGB")
    array = (sample.image * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def _model(reference: Reference, device: str) -> Model:
    from certframe.device import resolve_device

    model: Model = resolve_component("model", reference).build()
    model.module.to(resolve_device(device))
    return model


def _device(model: Model) -> torch.device:
    tensors = (*model.module.parameters(), *model.module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _essential(options: Grid.Options) -> dict[str, Any]:
    return options.model_dump(mode="json", exclude={"store", "device", "cells"})


def _read_manifest(options: Grid.Options, store: Path) -> list[list[Picture]]:
    """The grids of a folder, when they are what the options ask for."""
    file = store / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        made, grids = content["options"], [[Picture(**picture) for picture in grid] for grid in content["grids"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{file}' is damaged ({one_line(error)}): remove the folder to make the grids "
                         "again") from error
    wanted = {name: value for name, value in _essential(options).items() if value not in (None, [])}
    if different := sorted(name for name in wanted if wanted[name] != made.get(name)):
        name = different[0]
        raise UsageError(f"the grids in '{store}' were made with {name}={made.get(name)}, not {wanted[name]}: give "
                         f"another dataset.store, or dataset.{name}={made.get(name)}")
    return grids
