"""The study of masks in RISE: what it accumulates is RISE, it resumes, and it compares with other masks only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import rise_masks
import torch
from rise_masks import Found, Sums
from subjects import Bench

import certframe
from certframe.certifiers.pixel import Pixel
from certframe.config import resolve
from certframe.tally import Tally

pytest.importorskip("certframe_rise", reason="certframe-rise is not installed")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, rise_masks.Subject]:
    for name, value in {"COPIES": 10, "BLOCK": 5, "COUNTS": (5, 15)}.items():
        monkeypatch.setattr(rise_masks, name, value)
    bench = Bench(resolve({"model": "digits", "dataset": "digits", "attributor": "rise", "samples": 10,
                           "batch_size": 5, "sigma": 0.15}))
    return bench, bench.subject(bench.config.dataset.build().load(0))


@pytest.mark.parametrize("kind", rise_masks.KINDS)
def test_masks_add_up_whether_interrupted_or_not(small, kind, tmp_path: Path) -> None:
    bench, subject = small
    fresh = rise_masks.KINDS[kind]
    rise_masks.advance(bench, subject, tmp_path, 5, kind, fresh=fresh)
    rise_masks.advance(bench, subject, tmp_path, 15, kind, fresh=fresh)
    blocks = [rise_masks.block(bench, subject, fresh=fresh, number=number) for number in range(3)]
    sums = Sums.load(rise_masks.place(tmp_path, subject.name, kind, "sums"), 8)
    assert sums.masks == 15
    torch.testing.assert_close(sums.maps, sum(blocks))
    mean = np.load(rise_masks.place(tmp_path, subject.name, kind, 15).with_suffix(".npy"))
    torch.testing.assert_close(torch.from_numpy(mean), torch.stack(blocks).mean((0, 1)))
    tally = Tally.load(rise_masks.place(tmp_path, subject.name, kind, 15))
    levels = bench.config.sparsifier.build().sparsify(sums.maps)
    np.testing.assert_array_equal(tally.counts, levels.sum(0).numpy())
    assert tally.copies == ((0, 10),)
    first = Tally.load(rise_masks.place(tmp_path, subject.name, kind, 5))
    assert (first.counts != tally.counts).any()


def test_fixed_masks_are_those_of_all_copies_and_fresh_ones_are_not(small, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, subject = small
    monkeypatch.setattr(rise_masks, "SIGMA", 0.0)
    fixed, fresh = (rise_masks.block(bench, subject, fresh=fresh, number=0) for fresh in (False, True))
    torch.testing.assert_close(fixed, fixed[:1].expand_as(fixed))
    assert (fresh[0] - fresh[1]).abs().max() > 1e-3
    assert (fixed - rise_masks.block(bench, subject, fresh=False, number=1)).abs().max() > 1e-3


def found(kind: str, masks: int, mean: np.ndarray, label: int = 1) -> Found:
    return Found("one", kind, masks, np.full((3, *mean.shape), label), mean)


def test_a_map_is_compared_with_masks_that_are_not_its_own() -> None:
    rng = np.random.default_rng(0)
    own, others = rng.random((9, 9)), rng.random((9, 9))
    most = found("fresh", 100, (25 * own + 75 * others) / 100)
    assert rise_masks.against(found("fresh", 25, own), most).correlation == pytest.approx(
        float(rise_masks.spearmanr(own.ravel(), others.ravel()).statistic))
    assert rise_masks.against(found("fixed", 100, others), most).correlation == pytest.approx(
        float(rise_masks.spearmanr(others.ravel(), most.mean.ravel()).statistic))
    assert np.isnan(rise_masks.against(most, most).correlation)


def test_labels_that_are_certified_otherwise_are_counted() -> None:
    mean = np.random.default_rng(0).random((2, 2))
    labels = np.ones((3, 2, 2), int)
    labels[0, 0] = [0, -1]
    most = dataclasses.replace(found("fresh", 100, mean), labels=labels)
    assert rise_masks.against(found("fixed", 25, mean), most).contradicted == pytest.approx(1 / 12)


def test_what_is_stored_is_certified_as_a_run_would(small, tmp_path: Path) -> None:
    bench, subject = small
    for kind, fresh in rise_masks.KINDS.items():
        rise_masks.advance(bench, subject, tmp_path, 5, kind, fresh=fresh)
    for one in rise_masks.stored(tmp_path):
        tally = Tally.load(rise_masks.place(tmp_path, subject.name, one.kind, one.masks))
        np.testing.assert_array_equal(one.labels, Pixel().certify(tally).labels)
        assert one.area == (one.labels >= 0).mean()


def test_other_methods_see_the_same_copies_and_are_ranked(small, monkeypatch: pytest.MonkeyPatch,
                                                          tmp_path: Path) -> None:
    bench, subject = small
    digit = bench.config.dataset.build().load(0)
    monkeypatch.setattr(rise_masks, "OTHERS", ("gradient", {"name": "occlusion", "patch": 2, "stride": 2}))
    monkeypatch.setattr(rise_masks, "samples", lambda wanted, data: [digit])
    monkeypatch.setattr(rise_masks, "resolve", lambda settings: resolve(
        {"model": "digits", "dataset": "digits", **settings, "samples": 200}))
    monkeypatch.setattr(rise_masks, "COPIES", 200)
    rise_masks.sample_others(1, None, tmp_path, [])
    rise_masks.advance(bench, subject, tmp_path, 5, "fresh", fresh=True)
    run = certframe.run(tmp_path / "run", model="digits", dataset="digits", limit=1, attributor="gradient", samples=200,
                        device="cpu")
    *_, explanation = next(run.explanations())
    counted = Tally.load(rise_masks.place(tmp_path, subject.name, "others", "gradient"))
    np.testing.assert_array_equal(counted.counts, explanation.tally.counts)
    text = rise_masks.others(rise_masks.stored(tmp_path), tmp_path).splitlines()
    assert {line.split("|")[1].strip() for line in text[2:]} == {"`gradient`", "`occlusion`", "`rise`, fresh"}
    shares = [float(line.split("|")[2].split("%")[0]) for line in text[2:]]
    assert shares == sorted(shares, reverse=True)
    assert "(5 masks)" in next(line for line in text if "rise" in line)
