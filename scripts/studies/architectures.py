"""Every registered attributor on the architectures of the papers at full size, at the input and at the last map.

Weights are random (only lite0 has its own): it is about which cells of the table can be filled. Every cell is tried on
a noisy image: the map has to be finite and as large as the layer. Methods with many passes are given few, by the
options that the table names.

    python scripts/studies/architectures.py --docs

What is done is kept in ``--out``; only what is missing or was refused is done. The exit status is 1 when a cell is
empty.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import torch
from pydantic import ValidationError
from torch import Tensor

from certframe.config import resolve
from certframe.errors import UsageError, one_line
from certframe.protocols import Model
from certframe.registry import Entry, default_registry
from certframe.testing import fixtures

MODELS = ("timm:resnet18", "timm:wide_resnet50_2", "timm:resnet152", "timm:vgg11", "timm:vgg11_bn",
          "timm:vit_base_patch16_224", "lite0")
LAYERS = ("input", "final")
FEW = {"samples": 2, "masks": 8, "steps": 3, "channels": 4, "orders": 1}
PATCH = {"patch": 64, "stride": 64}
"""Values of options that make a method cheap, for whichever has them; the patches are for the input only."""
ELSEWHERE = ("certframe-eva", "certframe-boundary")
"""Distributions whose methods have pages of their own: a map takes hundreds of passes, or verified bounds of
a small network."""
PAGE = Path(__file__).parents[2] / "docs" / "studies" / "architectures.md"


def main() -> int:
    """Fill the table; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL", help="which models to do now")
    parser.add_argument("--out", type=Path, default=Path("runs/architectures.json"), metavar="FILE",
                        help="results go here; what is there is not done again")
    parser.add_argument("--docs", action="store_true", help="write the tables into the page of the documentation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name in given.models:
        for found in column(name, done.get(name, {})):
            done[name] = found
            given.out.write_text(json.dumps(done, indent=1))
    parts = {layer: table(done, layer) for layer in LAYERS}
    pages.publish(PAGE, parts, docs=given.docs)
    empty = [f"{name} {layer} {method}: {cell['refused']}" for name, found in done.items() for layer in LAYERS
             for method, cell in found[layer]["cells"].items() if "refused" in cell]
    print("\n".join(empty), file=sys.stderr)
    return 1 if empty else 0


def column(name: str, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All methods on one model, after each that was not there or was refused."""
    entries = [entry for entry in default_registry().entries("attributor")
               if entry.distribution not in ELSEWHERE]
    left = {(layer, entry.name) for layer in LAYERS for entry in entries
            if "refused" in found.get(layer, {}).get("cells", {}).get(entry.name, {"refused": "not tried"})}
    if not left:
        return
    torch.manual_seed(0)
    reference = {"name": name, **({"pretrained": False} if name.startswith("timm:") else {})}
    model = resolve({"model": reference}).model.build()
    inputs = fixtures.noisy_images(model, 1)
    for layer in LAYERS:
        split = model.at(layer)
        with torch.no_grad():
            size = list(split.as_map(split.body(inputs)[0]).shape[2:])
        found.setdefault(layer, {"size": size, "cells": {}})
        for entry in entries:
            if (layer, entry.name) in left:
                print(name, layer, entry.name, flush=True)
                found[layer]["cells"][entry.name] = cell(entry, model, layer, inputs, size)
                yield found


def cell(entry: Entry, model: Model, layer: str, inputs: Tensor, size: list[int]) -> dict[str, Any]:
    """One cell: whether its map is constant, which options it was given; or why it is empty."""
    options = cheap(entry, layer)
    cls = entry.load()
    if "layer" in cls.Options.model_fields:
        options["layer"] = layer
    elif layer != "input":
        return {"absent": True, "options": options}
    try:
        method = cls(cls.Options.model_validate(options))
        with torch.no_grad():
            target = model.module(inputs).argmax(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not conserve")
            found = method.attribute(model, inputs, target, rng=fixtures.rng([0])).maps
    except (UsageError, ValidationError) as error:
        return {"refused": one_line(error)}
    if not bool(torch.isfinite(found).all()) or ("layer" in options and list(found.shape[1:]) != size):
        return {"refused": f"maps of shape {tuple(found.shape)} are not finite or not of the layer's size {size}"}
    spread = float(found.std()) / max(float(found.abs().max()), 1e-30)
    return {"constant": spread < 1e-5, "options": options}


def cheap(entry: Entry, layer: str) -> dict[str, Any]:
    """Options that make the method cheap: its own for the conformance kit, and those of FEW."""
    options_class = entry.load().Options
    example = getattr(entry.load(), "conformance_options", None)
    options: dict[str, Any] = dict(example(Path())) if example else {}
    for option, value in {**FEW, **(PATCH if layer == "input" else {})}.items():
        if option in options_class.model_fields:
            try:
                options_class.model_validate({option: value})
            except ValidationError:  # the name means something else here
                continue
            options[option] = value
    return options


def shown(cell: dict[str, Any]) -> str:
    """The text of a cell."""
    if "refused" in cell or "absent" in cell:
        return "refused" if "refused" in cell else "no layer"
    return "constant" if cell["constant"] else "✓"


def table(done: dict[str, Any], layer: str) -> str:
    """Methods × models."""
    names = [name for name in MODELS if name in done]
    rows = []
    for method in next(iter(done.values()))[layer]["cells"]:
        cells = [done[name][layer]["cells"][method] for name in names]
        options = next((c["options"] for c in cells if c.get("options")), {})
        label = f"`{method}`" + "".join(f" {key}={value}" for key, value in options.items() if key in {**FEW, **PATCH})
        rows.append([label, *(shown(c) for c in cells)])
    sizes = ["map", *("×".join(map(str, done[name][layer]["size"])) for name in names)]
    return pages.table(["", *(f"`{name}`" for name in names)], [sizes, *rows])


if __name__ == "__main__":
    sys.exit(main())
