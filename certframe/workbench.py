"""The model and the methods of a run, built again, for images of one's own choosing."""

from __future__ import annotations

import torch
from torch import Tensor

from certframe.device import resolve_device, weights_hash
from certframe.errors import UsageError
from certframe.noise import CopyRng
from certframe.protocols import Attributor, Model
from certframe.registry import Registry
from certframe.sampling import Cell, Sampler, Subject, anchored, at_resolution
from certframe.store import Run
from certframe.tally import Tally
from certframe.worker import build_cells, guard, load_model


class Workbench:
    """Explains and counts other images as a run does: its model, methods, sparsifier, resolution and precision.

    Args:
        run: the run.
        device: where to work; by default where the run says.
        registry: where names are looked up.

    Attributes:
        model: the run's model, on `device`.
        methods: the attributor of every cell of the run.

    Raises:
        UsageError: model or methods are no longer there, the model has other weights than the run's, or there is no
            such device.
    """

    def __init__(self, run: Run, *, device: str | None = None, registry: Registry | None = None) -> None:
        self.config = run.config.model_copy(update={"device": device}) if device else run.config
        self.device = resolve_device(self.config.device)
        self.model: Model = load_model(self.config, self.device, registry)
        self.weights = weights_hash(self.model.module)
        stated = str(run.provenance.get("weights"))
        if self.weights != stated:
            raise UsageError(f"model '{self.config.model.name}' has other weights than when {run.path} was made "
                             f"(SHA-256 {self.weights[:12]}… and {stated[:12]}…): bring them back, or run again")
        self._cells: dict[str, Cell] = build_cells(self.config, registry)
        self._sparsifier = self.config.sparsifier.build(registry)
        self.methods: dict[str, Attributor] = {key: cell.attributor for key, cell in self._cells.items()}

    def maps(self, cell: str, inputs: Tensor, targets: Tensor, *, model: Model | None = None,
             anchor: Tensor | None = None) -> Tensor:
        """Attributions of images by the method of a cell, at the resolution that is certified.

        Args:
            cell: the cell's key.
            inputs: (B,C,H,W) on `device`; where they require a gradient, so do the maps of a differentiable method.
            targets: (B,) int64, the classes to explain.
            model: explain this model instead, such as a smooth copy.
            anchor: (C,H,W), the image at which a method looks first that does; then all targets are the same. Without
                it every input is looked at by itself.

        Returns:
            (B,h,w). A randomised method draws the same for every row, as for a clean image.
        """
        chosen = self._cells[cell]
        rng = CopyRng(self.config.seed, "workbench", chosen.fingerprint, [-1] * len(inputs), inputs.device)
        with torch.enable_grad():
            method = chosen.attributor
            if anchor is not None:
                method = anchored(method, self.model, anchor.detach().to(self.device), int(targets[0]))
            found = method.attribute(model or self.model, inputs, targets, rng=rng).maps
            return at_resolution(found.to(torch.float32), inputs, upsample=self.config.resolution == "input")

    def tally(self, cell: str, image: Tensor, target: int, *, samples: int, seed: int,
              anchor: Tensor | None = None) -> Tally:
        """Count the noisy copies of an image for a cell of the run, with fresh noise.

        Args:
            cell: the cell's key.
            image: (C,H,W) float32.
            target: the class to explain.
            samples: number of noisy copies.
            seed: of the noise; with the seed of the run an image of the run has the noise that it had there.
            anchor: (C,H,W), the image at which a method looks first that does; `image` itself when left out. A claim
                about a changed image is one about the method as it was for the unchanged image, its anchor.
        """
        sampler = Sampler(
            self.model, self._sparsifier, seed=seed, batch_size=self.config.batch_size, planned=samples,
            upsample=self.config.resolution == "input", precision=self.config.autocast,
            channels_last=self.config.channels_last,
            identity={"weights": self.weights, "model": self.config.model.fingerprint,
                      "sparsifier": self.config.sparsifier.fingerprint})
        subject = Subject.of("an image", image.detach().to(self.device), target, str(self.model.classes[target]),
                             None if anchor is None else anchor.detach().to(self.device))
        chosen = self._cells[cell]
        method = next(c for c in self.config.attributor if c.fingerprint == chosen.fingerprint)
        counted: dict[str, Tally] = guard(method, lambda: sampler.sample(subject, [chosen], 0, samples))
        return counted[cell]
