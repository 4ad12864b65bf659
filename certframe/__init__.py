"""Certified explanations: which pixels of an image provably drive an image classifier's decision.

    >>> import certframe
    >>> result = certframe.certify("lite0", "coffee.png", attributor="grad-cam", sigma=0.15)   # doctest: +SKIP

Names are imported when they are used, so that ``import certframe`` costs nothing and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from certframe.errors import CertframeError, UsageError, suggest
from certframe.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from certframe.config import build
    from certframe.device import full_precision, weights_hash, weights_state
    from certframe.files import write_atomic
    from certframe.interactive import CertifiedExplanation, certify, plan, run
    from certframe.metrics.pixels import map_on_pixels
    from certframe.noise import CopyRng
    from certframe.planning import Plan
    from certframe.protocols import (
        ABSTAIN,
        Attribution,
        Attributor,
        Certificate,
        Certifier,
        Dataset,
        Executor,
        Explanation,
        Metric,
        Model,
        Options,
        Rng,
        Sample,
        Schedule,
        Sparsifier,
        Split,
    )
    from certframe.registry import Registry, default_registry
    from certframe.sections import Section, SectionTable
    from certframe.store import Run, load_run
    from certframe.tally import Tally
    from certframe.torch_model import TorchModel, split_module
    from certframe.workbench import Workbench

_HOME = {
    "certframe.config": ("build",),
    "certframe.device": ("full_precision", "weights_hash", "weights_state"),
    "certframe.files": ("write_atomic",),
    "certframe.interactive": ("certify", "plan", "run", "CertifiedExplanation"),
    "certframe.metrics.pixels": ("map_on_pixels",),
    "certframe.noise": ("CopyRng",),
    "certframe.planning": ("Plan",),
    "certframe.protocols": ("ABSTAIN", "Attribution", "Attributor", "Certificate", "Certifier", "Dataset", "Executor",
                            "Explanation", "Metric", "Model", "Options", "Rng", "Sample", "Schedule", "Sparsifier",
                            "Split"),
    "certframe.registry": ("Registry", "default_registry"),
    "certframe.sections": ("Section", "SectionTable"),
    "certframe.store": ("Run", "load_run"),
    "certframe.tally": ("Tally",),
    "certframe.torch_model": ("TorchModel", "split_module"),
    "certframe.workbench": ("Workbench",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ABSTAIN",
    "Attribution",
    "Attributor",
    "CertframeError",
    "Certificate",
    "CertifiedExplanation",
    "Certifier",
    "CopyRng",
    "Dataset",
    "Executor",
    "Explanation",
    "Metric",
    "Model",
    "Options",
    "Plan",
    "Register",
    "Registry",
    "Rng",
    "Run",
    "Sample",
    "Schedule",
    "Section",
    "SectionTable",
    "Sparsifier",
    "Split",
    "Tally",
    "TorchModel",
    "UsageError",
    "Workbench",
    "build",
    "certify",
    "default_registry",
    "full_precision",
    "hookimpl",
    "load_run",
    "map_on_pixels",
    "plan",
    "run",
    "split_module",
    "suggest",
    "weights_hash",
    "weights_state",
    "write_atomic",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'certframe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
