"""`certframe run` for one photograph and each of the methods that [PIX] evaluates, against a straightforward script.

    pytest -s tests/benchmarks/bench_end_to_end.py -k METHOD --benchmark-json=FILE
    python scripts/studies/speed.py --docs FILE …

100 noisy copies of the photograph coffee, lite0, one thread, the tuned allocator on both sides. Both are programs of
their own, and loading torch and the model counts; seconds are processor time (user and system), which does not depend
on how long the machine lets them wait. They run alternately, and the least time counts. The script is
`straightforward.py`. Slow methods have fewer masks, patches or steps than by default, the same on both sides.
ablation-cam of the package would take an hour: it explains one copy, and the time of the others is added.
"""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_attributors import BY_ID as COMPARED
from bench_attributors import Case, installed
from measure import Ratio, fresh, record, run_script

SAMPLES, SIGMA, THREADS, REPETITIONS = 100, 0.15, 1, 1
LIMIT = 0.6
"""On the geometric mean."""
_MASKS = {"masks": 8}
_NAMES = ("gradient-captum", "guided-backprop-captum", "input-x-gradient-captum", "integrated-gradients-captum",
          "lrp-zennit", "occlusion-captum", "cam-torchcam", "grad-cam-torchcam", "grad-cam++-torchcam",
          "ablation-cam-grad-cam", "layer-cam-torchcam")
CASES = tuple(replace(case, model="lite0", copies=1 if case.copies == 1 else SAMPLES) for case in (
    *(COMPARED[name] for name in _NAMES), Case("rise", "plain", _MASKS, _MASKS)))
BY_ID = {case.id: case for case in CASES}

_RUN = """
import json
from certframe.cli import main
from measure import peak
try:
    main({arguments!r})
finally:
    print(json.dumps({{"scaled": 0.0, "MB": peak()}}))
"""


def arguments(case: Case, out: Path) -> list[str]:
    """The command line."""
    options = [part for name, value in case.options.items() for part in ("-o", f"attributor.{name}={value}")]
    return ["run", "--data", "photos", "--limit", "1", "--attributor", case.method, "--samples", str(SAMPLES),
            "--sigma", str(SIGMA), "--quiet", "--out", str(out), *options]


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def bench_run(benchmark: Any, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the command over seconds of the script."""
    installed(case)
    monkeypatch.setenv("OMP_NUM_THREADS", str(THREADS))
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    memory: dict[str, float] = {}
    for repetition in range(REPETITIONS):
        for side in seconds:
            begun = _seconds_of_children()
            found = fresh(_RUN.format(arguments=arguments(case, tmp_path / str(repetition)))) if side == "ours" else \
                run_script("straightforward.py", case.id)
            seconds[side].append(_seconds_of_children() - begun + found["scaled"])
            memory[f"{side}_MB"] = found["MB"]
    ratio = Ratio(min(seconds["ours"]), min(seconds["theirs"]))
    record(benchmark, f"{case.method}, from start to end", ratio,
           **{**case.described("run"), "repetitions": REPETITIONS}, **memory, scaled=case.copies < SAMPLES)
    benchmark.pedantic(lambda: None, rounds=1)
