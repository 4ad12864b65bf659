"""Certify one photograph without certframe's machinery, as one would write it down.

    python tests/benchmarks/straightforward.py integrated-gradients-captum

A loop over batches of noisy copies, the method from an existing package (`packages`), all maps kept, a percentile for
each map and K, and for each pixel and K a binomial test by the rule of the published code: the label from the first 10
copies, tested on the others, Bonferroni. The tests are vectorised over the pixels, as there. Model, picture and
allocator are certframe's. Prints seconds to be added for copies that were left out, and peak memory, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bench_end_to_end as runs
import numpy as np
import torch
from measure import peak, settle
from scipy.stats import binom
from torch.nn import functional

from certframe.config import component

PILOT, LEVELS, TAU, ALPHA = 10, (50, 25, 5), 0.75, 0.001


def labels(important: np.ndarray) -> np.ndarray:
    """(copies,H,W) of booleans → (H,W) certified labels, −1 where nothing is."""
    copies = len(important)
    label = important[:PILOT].mean(axis=0) > 0.5
    votes = (important[PILOT:] == label).sum(axis=0)
    p = binom.sf(votes - 1, copies - PILOT, TAU)
    return np.where(p > ALPHA / label.size, -1, label)


def main(case_id: str) -> None:
    """One photograph, one method."""
    case = runs.BY_ID[case_id]
    settle(threads=runs.THREADS)
    model = component("model", "lite0").build()
    image = model.preprocess(component("dataset", "photos").build().load(0).image)
    explain = case.package_explains(model)
    with torch.no_grad():
        target = int(model.module(image[None]).argmax())
    maps, begun = [], time.process_time()
    for first in range(0, case.copies, 32):
        noise = torch.randn(min(32, case.copies - first), *image.shape)
        found = explain(image + runs.SIGMA * noise, target).detach()
        maps.append(functional.interpolate(found[:, None], size=image.shape[1:], mode="bilinear")[:, 0])
    explained = time.process_time() - begun
    every = torch.cat(maps).abs().numpy()
    every = np.resize(every, (runs.SAMPLES, *every.shape[1:]))  # repeats them when only some copies were explained
    for k in LEVELS:
        labels(every > np.percentile(every, 100 - k, axis=(1, 2), keepdims=True))
    print(json.dumps({"scaled": explained * (runs.SAMPLES / case.copies - 1), "MB": peak()}))


if __name__ == "__main__":
    main(sys.argv[1])
