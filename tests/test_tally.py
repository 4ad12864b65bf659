from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import save

from certframe.errors import CertframeError, UsageError
from certframe.tally import FORMAT, REAL_UNIT, Tally, merge

IDENTITY = {"image": "a" * 64, "noise": "gaussian seed=0", "target": 2, "weights": "w1", "attributor_options": "cam {}"}


def tally_of(levels: np.ndarray, start: int = 0, stop: int | None = None, cuts: tuple[int, ...] = (),
             winners: np.ndarray | None = None, **changes: Any) -> Tally:
    """The slow and obvious tally of the copies start … stop − 1 of (n,L,h,w) levels."""
    stop = len(levels) if stop is None else stop
    unit = 1 if levels.dtype == bool else REAL_UNIT
    segments = np.zeros((len(cuts) + 1, *levels.shape[1:]), np.int64)
    votes = np.zeros((len(cuts) + 1, 3), np.int64)
    for copy in range(start, stop):
        segment = sum(copy >= cut for cut in cuts)
        segments[segment] += np.rint(levels[copy].astype(np.float64) * unit).astype(np.int64)
        if winners is not None:
            votes[segment, winners[copy]] += 1
    names = tuple("abc"[: levels.shape[1]])
    fields: dict[str, Any] = {
        "segments": segments, "copies": ((start, stop),), "levels": names, "sigma": 0.25, "cuts": cuts, "unit": unit,
        "identity": dict(IDENTITY), "votes": None if winners is None else votes}
    return Tally(**{**fields, **changes})


def some_levels(seed: int, n: int = 12, real: bool = False) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.random((n, 2, 3, 2)) if real else generator.random((n, 2, 3, 2)) < 0.6


@st.composite
def splits(draw: st.DrawFn, n: int) -> list[tuple[int, int]]:
    """A partition of the copies 0 … n − 1 into ranges, in any order."""
    edges = sorted(draw(st.sets(st.integers(1, n - 1), max_size=n - 1)))
    return list(draw(st.permutations(list(zip([0, *edges], [*edges, n], strict=True)))))


# -- merging ----------------------------------------------------------------------------------------------------------

@given(splits(12), st.integers(0, 5), st.booleans(), st.sampled_from([(), (4,), (1, 5, 9)]), st.booleans())
def test_any_split_merged_in_any_order_gives_the_same_bytes(pieces: list[tuple[int, int]], seed: int, real: bool,
                                                           cuts: tuple[int, ...], with_votes: bool) -> None:
    levels = some_levels(seed, real=real)
    winners = np.random.default_rng(seed).integers(0, 3, 12) if with_votes else None
    whole = tally_of(levels, cuts=cuts, winners=winners)
    parts = [tally_of(levels, a, b, cuts, winners) for a, b in pieces]
    merged = merge(parts)
    assert merged.to_bytes() == whole.to_bytes()
    assert merged.copies == ((0, 12),)
    assert merged.samples == 12


@given(st.permutations([(0, 2), (2, 5), (5, 6), (6, 12)]), st.integers(1, 3))
def test_merging_is_associative(order: list[tuple[int, int]], where: int) -> None:
    levels = some_levels(1)
    parts = [tally_of(levels, a, b) for a, b in order]
    grouped = merge(parts[:where]).merge(merge(parts[where:]))
    assert grouped.to_bytes() == merge(parts).to_bytes()


def test_real_levels_sum_exactly_where_floats_would_not() -> None:
    levels = np.array([0.1, 0.2, 0.3, 1e-9, 1.0, 0.7] * 2, dtype=np.float64).reshape(12, 1, 1, 1)
    forward = merge([tally_of(levels, i, i + 1) for i in range(12)])
    backward = merge([tally_of(levels, i, i + 1) for i in reversed(range(12))])
    assert forward.to_bytes() == backward.to_bytes() == tally_of(levels).to_bytes()
    assert forward.mean.item() == pytest.approx(levels.mean(), abs=0.5 / REAL_UNIT)


def test_gaps_are_remembered_and_closed() -> None:
    levels = some_levels(2)
    ends = tally_of(levels, 0, 3).merge(tally_of(levels, 9, 12))
    assert ends.copies == ((0, 3), (9, 12))
    assert ends.samples == 6
    assert ends.merge(tally_of(levels, 3, 9)).copies == ((0, 12),)


def test_merging_changes_neither() -> None:
    levels = some_levels(3)
    a, b = tally_of(levels, 0, 5), tally_of(levels, 5, 12)
    before = a.to_bytes(), b.to_bytes()
    a.merge(b)
    assert (a.to_bytes(), b.to_bytes()) == before


def test_votes_are_merged_only_when_both_have_them() -> None:
    levels, winners = some_levels(4), np.arange(12) % 3
    with_votes, without = tally_of(levels, 0, 5, winners=winners), tally_of(levels, 5, 12)
    assert with_votes.class_votes is not None
    assert with_votes.class_votes.tolist() == [2, 2, 1]
    assert with_votes.merge(without).votes is None
    assert without.merge(with_votes).votes is None
    assert without.class_votes is None


@pytest.mark.parametrize(("change", "named"), [
    ({"identity": {**IDENTITY, "image": "b" * 64}}, "image"),
    ({"identity": {**IDENTITY, "weights": "w2"}}, "weights is w1 in one and w2 in the other"),
    ({"identity": {**IDENTITY, "attributor_options": "cam {1}"}}, "attributor_options"),
    ({"identity": {**IDENTITY, "noise": "gaussian seed=1"}}, "noise"),
    ({"identity": {**IDENTITY, "target": 0}}, "target is 2 in one and 0 in the other"),
    ({"identity": {k: v for k, v in IDENTITY.items() if k != "weights"}}, "weights is w1 in one and None"),
    ({"identity": {**IDENTITY, "precision": "bfloat16"}}, "precision"),
    ({"sigma": 0.5}, "sigma is 0.25 in one and 0.5 in the other"),
    ({"levels": ("a", "z")}, "levels"),
    ({"cuts": (7,)}, "cuts"),
    ({"unit": REAL_UNIT}, "unit"),
    ({"nested": True}, "nested"),
    ({"planned": 24}, "planned is 0 in one and 24 in the other"),
    ({"segments": np.zeros((1, 2, 3, 3), np.int64)}, "shapes"),
    ({"copies": ((4, 12),)}, "both count the copies 4 to 4"),
    ({"copies": ((0, 2), (5, 12))}, "both count the copies 0 to 1"),
    ({"copies": ((0, 5),)}, "both count the copies 0 to 4"),
])
def test_refusals_name_what_differs(change: dict[str, Any], named: str) -> None:
    levels = some_levels(5)
    a, b = tally_of(levels, 0, 5), replace(tally_of(levels, 5, 12), **change)
    for one, other in ((a, b), (b, a)):
        with pytest.raises(CertframeError) as caught:
            one.merge(other)
        assert named.split(" is ")[0] in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(CertframeError, match="cannot be merged"):
        merge([a, b])
    with pytest.raises(CertframeError) as caught:
        a.merge(b)
    assert named in str(caught.value)


def test_long_values_are_shortened_in_messages() -> None:
    levels = some_levels(5)
    other = tally_of(levels, 5, 12, identity={**IDENTITY, "image": "b" * 64})
    with pytest.raises(CertframeError) as caught:
        tally_of(levels, 0, 5).merge(other)
    assert len(str(caught.value)) < 150


def test_merging_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no tally"):
        merge([])
    single = tally_of(some_levels(0))
    assert merge([single]) is single


# -- what it says -----------------------------------------------------------------------------------------------------

@given(st.integers(0, 9), st.booleans())
def test_counts_and_means(seed: int, real: bool) -> None:
    levels = some_levels(seed, real=real)
    tally = tally_of(levels, cuts=(3, 7))
    assert tally.samples == 12
    assert tally.pixels == 6
    assert tally.segments.shape == (3, 2, 3, 2)
    np.testing.assert_allclose(tally.mean, levels.mean(axis=0), atol=1e-9)
    if not real:
        assert np.array_equal(tally.counts, levels.sum(axis=0))


@given(st.sets(st.integers(1, 11), max_size=4), st.integers(0, 5))
def test_upto_counts_the_first_copies(cuts: set[int], seed: int) -> None:
    levels, ordered = some_levels(seed), tuple(sorted(cuts))
    tally = tally_of(levels, cuts=ordered)
    for copies in range(1, 13):
        if copies in cuts or copies == 12:
            assert np.array_equal(tally.upto(copies), levels[:copies].sum(axis=0))
        else:
            with pytest.raises(UsageError, match=f"first {copies} copies"):
                tally.upto(copies)


def test_upto_refuses_copies_that_were_not_counted() -> None:
    levels = some_levels(0)
    for start, stop in ((0, 4), (1, 12), (6, 12)):
        with pytest.raises(UsageError, match="does not cover all of its first 5 copies"):
            tally_of(levels, start, stop, cuts=(5,)).upto(5)
    with pytest.raises(UsageError, match="first 6 copies"):
        tally_of(levels, 6, 12).upto(6)
    with_a_gap = tally_of(levels, 0, 3, (5,)).merge(tally_of(levels, 4, 12, (5,)))
    with pytest.raises(UsageError, match="does not cover"):
        with_a_gap.upto(5)
    assert np.array_equal(tally_of(levels, 0, 5, (5,)).upto(5), levels[:5].sum(axis=0))
    assert np.array_equal(tally_of(levels, 0, 9, (5,)).upto(5), levels[:5].sum(axis=0))


def test_upto_says_where_the_tally_is_cut() -> None:
    with pytest.raises(UsageError, match="cut at 4, 8"):
        tally_of(some_levels(0), cuts=(4, 8)).upto(6)
    with pytest.raises(UsageError, match="cut at no place"):
        tally_of(some_levels(0)).upto(6)


# -- files ------------------------------------------------------------------------------------------------------------

@given(st.integers(0, 5), st.booleans(), st.booleans(), st.booleans())
@hypothesis_settings(max_examples=30)
def test_a_file_gives_back_the_tally(tmp_path_factory: pytest.TempPathFactory, seed: int, real: bool, with_votes: bool,
                                     nested: bool) -> None:
    winners = np.random.default_rng(seed).integers(0, 3, 12) if with_votes else None
    tally = tally_of(some_levels(seed, real=real), cuts=(4,), winners=winners, nested=nested,
                     planned=12 * seed)
    path = tmp_path_factory.mktemp("tally") / "deep" / "t.safetensors"
    tally.save(path)
    assert path.read_bytes() == tally.to_bytes()
    back = Tally.load(path)
    for name in ("copies", "levels", "sigma", "cuts", "planned", "nested", "unit", "identity",
                 "samples"):
        assert getattr(back, name) == getattr(tally, name), name
        assert type(getattr(back, name)) is type(getattr(tally, name)), name
    assert back.segments.dtype == np.int64
    assert np.array_equal(back.segments, tally.segments)
    assert (back.votes is None) == (tally.votes is None)
    assert tally.votes is None or np.array_equal(np.asarray(back.votes), tally.votes)
    assert back.to_bytes() == tally.to_bytes()
    # What was read merges with what was not.
    more = replace(tally, copies=((12, 24),))
    assert back.merge(more).to_bytes() == tally.merge(more).to_bytes() == more.merge(back).to_bytes()


@pytest.mark.parametrize("top", [0, 1, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**52])
def test_every_count_survives(tmp_path: Path, top: int) -> None:
    segments = np.zeros((1, 1, 2, 3), np.int64)
    segments[0, 0, 1, 2] = top
    Tally(segments, ((0, max(top, 1)),), ("a",), 0.1).save(tmp_path / "t")
    assert Tally.load(tmp_path / "t").counts[0, 1, 2] == top


def test_the_layout_in_memory_does_not_matter(tmp_path: Path) -> None:
    tally = tally_of(some_levels(0), cuts=(4,), winners=np.arange(12) % 3)
    assert tally.votes is not None
    turned = replace(tally, segments=np.asfortranarray(tally.segments), votes=np.asfortranarray(tally.votes))
    assert turned.to_bytes() == tally.to_bytes()


def test_small_counts_take_one_byte() -> None:
    one = tally_of(np.ones((200, 1, 50, 50), bool))
    assert len(one.to_bytes()) < 1.5 * 2500 + 600


def test_the_identity_in_any_order_gives_the_same_bytes() -> None:
    levels = some_levels(0)
    backwards = tally_of(levels, identity=dict(reversed(list(IDENTITY.items()))))
    assert backwards.to_bytes() == tally_of(levels).to_bytes()


def error_of(path: Path) -> CertframeError:
    with pytest.raises(CertframeError) as caught:
        Tally.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value


def test_missing_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    assert "missing" in str(error_of(path))
    good = tally_of(some_levels(0), winners=np.zeros(12, int)).to_bytes()
    for damaged in (b"", b"not a tally", good[:-1], good[:40], good + b"x", b"\xff" * 64, b"\0" * 64):
        path.write_bytes(damaged)
        assert "damaged" in str(error_of(path))
    (tmp_path / "folder").mkdir()
    error_of(tmp_path / "folder")


def with_header(header: Any, arrays: dict[str, np.ndarray] | None = None) -> bytes:
    arrays = {"segments": np.zeros((1, 2, 3, 2), np.uint8)} if arrays is None else arrays
    return save(arrays, metadata={"certframe.tally": header if isinstance(header, str) else json.dumps(header)})


def good_header() -> dict[str, Any]:
    return {"format": FORMAT, "copies": [[0, 12]], "levels": ["a", "b"], "sigma": 0.25, "cuts": [], "planned": 12,
            "nested": False, "unit": 1, "identity": {}}


def test_headers_that_make_no_sense_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(with_header(good_header()))
    assert Tally.load(path).samples == 12
    wrong: list[Any] = ["{", "[]", "3", "null", {}]
    wrong += [{k: v for k, v in good_header().items() if k != left_out} for left_out in good_header()]
    wrong += [{**good_header(), "copies": 3}, {**good_header(), "copies": [3]}, {**good_header(), "format": "one"}]
    for header in wrong:
        path.write_bytes(with_header(header))
        assert "damaged" in str(error_of(path)), header
    path.write_bytes(with_header(good_header(), {"other": np.zeros(3, np.uint8)}))
    assert "damaged" in str(error_of(path))
    path.write_bytes(save({"segments": np.zeros(3, np.uint8)}, metadata={"other": "x"}))
    assert "damaged" in str(error_of(path))


def test_newer_files_ask_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(with_header({"format": FORMAT + 1, "new": "layout"}, {"counts": np.zeros(3, np.uint8)}))
    error = error_of(path)
    assert isinstance(error, UsageError)
    assert "newer certframe" in str(error)
    assert "upgrade" in str(error)


@given(st.data())
@hypothesis_settings(max_examples=150)
def test_no_flipped_byte_gives_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = bytearray(tally_of(some_levels(0), winners=np.zeros(12, int)).to_bytes())
    position = data.draw(st.integers(0, len(good) - 1))
    good[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.write_bytes(bytes(good))
    try:
        Tally.load(path)
    except CertframeError as error:
        message = str(error)
        assert "\n" not in message
