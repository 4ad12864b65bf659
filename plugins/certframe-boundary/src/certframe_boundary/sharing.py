"""One search for all methods that need the same boundary points."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

import certframe
from certframe_boundary.search import Adversarial, SearchOptions, nearest


@dataclass(frozen=True)
class _Kept:
    state: Any
    images: Tensor
    labels: Tensor
    found: Adversarial

    def is_for(self, state: Any, images: Tensor, labels: Tensor) -> bool:
        """Whether it is about the same network, images and classes."""
        mine = self.images
        return (self.state == state and mine.shape == images.shape and mine.device == images.device
                and mine.dtype == images.dtype and torch.equal(mine, images) and torch.equal(self.labels, labels))


class Searches:
    """The last searches of every model: those of a batch, and that of a single image.

    A run gives the same batch to one method after the other, and explains the clean image by itself, to which metrics
    come back later; so both are kept, for each way to search. Images are compared by their values. What is kept for a
    model goes with it.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Kept]] = weakref.WeakKeyDictionary()
        self._lock = Lock()

    def nearest(self, model: certframe.Model, images: Tensor, labels: Tensor, options: SearchOptions) -> Adversarial:
        """As `search.nearest` with the model's module; what was found last for the same images is found again."""
        key = search_key(options), len(images) == 1
        state = certframe.weights_state(model.module)
        with self._lock:
            kept = self._known.setdefault(model.module, {}).get(key)
        if kept is None or not kept.is_for(state, images, labels):
            found = nearest(model.module, images, labels, options)
            kept = _Kept(state, images.detach().clone(), labels.clone(), found)
            with self._lock:
                self._known.setdefault(model.module, {})[key] = kept
        return kept.found


SEARCHES = Searches()
"""Shared by all attributors and metrics of a process."""


def search_key(options: SearchOptions) -> str:
    """What of the options a search's result depends on, as text."""
    chosen = set(SearchOptions.model_fields) - {"chunk"}
    return json.dumps(options.model_dump(mode="json", include=chosen), sort_keys=True)
