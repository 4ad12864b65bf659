from __future__ import annotations

import gc
import re
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn import functional

from certframe.device import out_of_memory
from certframe.errors import UsageError
from certframe.noise import STREAM, CopyRng, GaussianNoise, image_hash
from certframe.protocols import Attribution
from certframe.sampling import Cell, Sampler, Subject
from certframe.tally import REAL_UNIT, Tally, merge

MODEL = toys.Toy()
SIGMA = 0.25


def subject(index: int = 0, target: int = 1) -> Subject:
    image = toys.Toys(toys.Toys.Options(count=9)).load(index)
    return Subject.of(image.name, image.image, target, MODEL.classes[target])


def cell(attributor: Any = None, sigma: float = SIGMA, key: str = "cell") -> Cell:
    attributor = attributor or toys.Weighted()
    name = type(attributor).__name__
    return Cell(key, name.lower(), attributor, f"toys/{name} {{}}", sigma)


def sampler(sparsifier: Any = None, **options: Any) -> Sampler:
    return Sampler(MODEL, sparsifier or toys.Above(), **{"seed": 3, "batch_size": 7, **options})


def brute_force(attributor: Any, sparsifier: Any, subject: Subject, start: int, stop: int, *, sigma: float = SIGMA,
                cuts: tuple[int, ...] = (), upsample: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Counts and class votes, one copy at a time."""
    segments: list[Any] = [0] * (len(cuts) + 1)
    votes = np.zeros((len(cuts) + 1, 3), np.int64)
    for copy in range(start, stop):
        noise = GaussianNoise(3, subject.key).draw(copy, copy + 1, subject.image.shape)
        rng = CopyRng(3, subject.key, f"toys/{type(attributor).__name__} {{}}", [copy])
        noisy = subject.image + sigma * noise
        maps = attributor.attribute(MODEL, noisy, torch.tensor([subject.target]), rng=rng).maps
        if upsample:
            maps = functional.interpolate(maps[None], size=subject.image.shape[1:], mode="bilinear")[0]
        levels = sparsifier.sparsify(maps)[0].numpy()
        segment = sum(copy >= cut for cut in cuts)
        segments[segment] = segments[segment] + (
            levels.astype(np.int64) if levels.dtype == bool else np.rint(levels.astype(np.float64) * REAL_UNIT))
        votes[segment, int(MODEL.module(noisy).argmax())] += 1
    return np.stack(np.broadcast_arrays(*segments, np.zeros((2, 1, 1)))[:-1]).astype(np.int64), votes


# -- the same counts, however the copies are divided ------------------------------------------------------------------

@pytest.mark.parametrize("attributor", [toys.Weighted(), toys.Random()])
@pytest.mark.parametrize("sparsifier", [toys.Above(), toys.Soft()])
def test_counts_equal_copy_by_copy(attributor: Any, sparsifier: Any) -> None:
    tally = sampler(sparsifier, cuts=(4, 15)).sample(subject(), [cell(attributor)], 0, 30)["cell"]
    segments, votes = brute_force(attributor, sparsifier, subject(), 0, 30, cuts=(4, 15))
    assert tally.segments.dtype == np.int64
    assert tally.segments.tobytes() == np.broadcast_to(segments, tally.segments.shape).tobytes()
    assert tally.votes is not None
    assert np.array_equal(tally.votes, votes)
    assert tally.counts.any()


@st.composite
def divisions(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    """Ranges of copies that cover 0 … 39 in any order, and a batch size for each."""
    edges = sorted(draw(st.sets(st.integers(1, 39), max_size=6)))
    ranges = list(draw(st.permutations(list(zip([0, *edges], [*edges, 40], strict=True)))))
    return ranges, [draw(st.integers(1, 50)) for _ in ranges]


WHOLE: dict[tuple[str, str], bytes] = {}


@given(divisions(), st.sampled_from([toys.Weighted(), toys.Random(), toys.Coarse()]),
       st.sampled_from([toys.Above(), toys.Soft()]))
@hypothesis_settings(max_examples=60)
def test_batches_shards_and_their_order_change_no_bit(division: tuple[list[tuple[int, int]], list[int]],
                                                      attributor: Any, sparsifier: Any) -> None:
    which = (type(attributor).__name__, type(sparsifier).__name__)
    if which not in WHOLE:
        whole = sampler(sparsifier, cuts=(5, 23), batch_size=40).sample(subject(), [cell(attributor)], 0, 40)["cell"]
        WHOLE[which] = whole.to_bytes()
    parts = [sampler(sparsifier, cuts=(5, 23), batch_size=size).sample(subject(), [cell(attributor)], a, b)["cell"]
             for (a, b), size in zip(*division, strict=True)]
    assert merge(parts).to_bytes() == WHOLE[which]


def test_the_order_of_images_changes_no_bit() -> None:
    one = sampler()
    forward = [one.sample(subject(i), [cell()], 0, 12)["cell"].to_bytes() for i in (0, 1, 2)]
    backward = [one.sample(subject(i), [cell()], 0, 12)["cell"].to_bytes() for i in (2, 1, 0)]
    assert forward == backward[::-1]
    assert len(set(forward)) == 3


def test_the_seed_changes_the_counts_and_refuses_to_merge() -> None:
    a = sampler(seed=1).sample(subject(), [cell()], 0, 20)["cell"]
    b = sampler(seed=2).sample(subject(), [cell()], 20, 40)["cell"]
    assert not np.array_equal(a.counts, b.counts)
    with pytest.raises(Exception, match="noise is"):
        a.merge(b)


# -- batches ----------------------------------------------------------------------------------------------------------

def watch() -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    toys.OBSERVERS.append(lambda inputs, targets: seen.append(inputs.clone()))
    return seen


def test_batches_end_where_the_same_copies_would_in_any_other_division() -> None:
    """A real network's last digits may depend on the batch, so the batch of a copy must not depend on the division."""
    def batches(*ranges: tuple[int, int]) -> set[tuple[float, ...]]:
        seen = watch()
        for start, stop in ranges:
            sampler(batch_size=8).sample(subject(), [cell()], start, stop)
        toys.OBSERVERS.clear()
        return {tuple(batch.flatten().tolist()) for batch in seen}

    look = 20  # a place where every division has to stop, and not a multiple of the batch size
    whole = batches((0, look), (look, 50))
    assert whole == batches((0, 8), (8, 16), (16, look), (look, 24), (24, 32), (32, 50))
    assert whole == batches((0, 16), (16, look), (look, 32), (32, 50))


def test_every_copy_is_the_image_plus_sigma_times_its_noise_unclamped() -> None:
    seen = watch()
    sampler(batch_size=4).sample(subject(), [cell(sigma=0.5)], 3, 13)
    assert [len(batch) for batch in seen] == [1, 4, 4, 1]
    noise = GaussianNoise(3, subject().key).draw(3, 13, (1, 4, 4))
    torch.testing.assert_close(torch.cat(seen), subject().image + 0.5 * noise, atol=1e-6, rtol=0)
    assert float(torch.cat(seen).min()) < 0 < 1 < float(torch.cat(seen).max())


def test_several_sigmas_and_attributors_share_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    draw = GaussianNoise.draw

    def recorded(self: GaussianNoise, start: int, stop: int, *rest: Any) -> torch.Tensor:
        drawn.append((start, stop))
        return draw(self, start, stop, *rest)

    monkeypatch.setattr(GaussianNoise, "draw", recorded)
    seen = watch()
    cells = [cell(key="a"), cell(key="b", sigma=0.5), cell(toys.Random(), key="c"), cell(toys.Coarse(), 0.5, "d")]
    together = sampler(batch_size=10).sample(subject(), cells, 0, 20)
    assert drawn == [(0, 10), (10, 20)]
    assert len(seen) == 8
    for low in (0, 4):
        quiet, same, loud, also_loud = seen[low: low + 4]
        assert torch.equal(quiet, same)
        assert torch.equal(loud, also_loud)
        torch.testing.assert_close((quiet - subject().image) / 0.25, (loud - subject().image) / 0.5, atol=1e-5, rtol=0)
    toys.OBSERVERS.clear()
    for one in cells:
        alone = sampler(batch_size=10).sample(subject(), [one], 0, 20)
        assert alone[one.key].to_bytes() == together[one.key].to_bytes()


def test_attributors_are_told_the_target_of_the_subject() -> None:
    targets: list[torch.Tensor] = []
    toys.OBSERVERS.append(lambda inputs, given: targets.append(given))
    sampler(batch_size=8).sample(subject(target=2), [cell()], 0, 12)
    assert [t.tolist() for t in targets] == [[2] * 8, [2] * 4]
    assert targets[0].dtype == torch.int64


class Spy(toys.Weighted):
    """Remembers the circumstances of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def attribute(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, *, rng: Any) -> Attribution:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        self.calls.append({
            "grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(), "dtype": product.dtype,
            "strides": inputs.stride(), "rng": rng.device})
        return super().attribute(model, inputs, targets, rng=rng)


def test_autograd_is_on_whatever_the_caller_has_set() -> None:
    spy = Spy()
    with torch.no_grad():
        sampler().sample(subject(), [cell(spy)], 0, 3)
        sampler().clean(subject(), cell(spy))
    assert [call["grad"] for call in spy.calls] == [True, True]
    assert torch.is_grad_enabled()


def test_reduced_precision_is_autocast_and_part_of_the_identity() -> None:
    spy = Spy()
    full = sampler().sample(subject(), [cell(spy)], 0, 3)["cell"]
    reduced = sampler(precision="bfloat16").sample(subject(), [cell(spy)], 3, 6)["cell"]
    assert [call["dtype"] for call in spy.calls] == [torch.float32, torch.bfloat16]
    with pytest.raises(Exception, match="precision is off in one and bfloat16"):
        full.merge(reduced)


def test_channels_last_reaches_the_attributor() -> None:
    class Colours(toys.Weighted):
        def attribute(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, *, rng: Any) -> Attribution:
            layouts.append(inputs.is_contiguous(memory_format=torch.channels_last))
            return Attribution(inputs.sum(1))

    layouts: list[bool] = []
    image = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    colourful = Subject.of("colours", image, 0, "zero")
    tallies = [sampler(channels_last=flag).sample(colourful, [cell(Colours())], 0, 9)["cell"] for flag in (False, True)]
    assert layouts == [False, False, True, True]
    assert tallies[0].to_bytes() == tallies[1].to_bytes()


# -- resolution -------------------------------------------------------------------------------------------------------

def test_maps_are_upsampled_bilinearly_before_they_are_sparsified() -> None:
    native = sampler().sample(subject(), [cell(toys.Coarse())], 0, 20)["cell"]
    assert native.counts.shape == (2, 2, 2)
    assert native.votes is None
    fine = sampler(upsample=True).sample(subject(), [cell(toys.Coarse())], 0, 20)["cell"]
    segments, _ = brute_force(toys.Coarse(), toys.Above(), subject(), 0, 20, upsample=True)
    assert np.array_equal(fine.segments, segments)
    with pytest.raises(Exception, match="resolution"):
        native.merge(fine)
    clean = sampler(upsample=True).clean(subject(), cell(toys.Coarse()))
    assert clean.shape == (4, 4)
    coarse = sampler().clean(subject(), cell(toys.Coarse()))
    assert torch.equal(functional.interpolate(coarse[None, None], size=(4, 4), mode="bilinear")[0, 0], clean)


class Stacked(toys.Weighted):
    """Attributor: a value for every channel, the channels one below the other."""

    def attribute(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, *, rng: Any) -> Attribution:
        fine = super().attribute(model, inputs, targets, rng=rng).maps
        return Attribution(torch.cat([fine, 2 * fine.flip(1), fine * fine], dim=1))


def test_maps_with_a_value_for_every_channel_are_left_as_they_are() -> None:
    left, native = (sampler(upsample=upsample).sample(subject(), [cell(Stacked())], 0, 20)["cell"]
                    for upsample in (True, False))
    segments, _ = brute_force(Stacked(), toys.Above(), subject(), 0, 20)
    assert left.counts.shape == (2, 12, 4)
    assert np.array_equal(left.segments, segments)
    assert np.array_equal(left.segments, native.segments)
    assert sampler(upsample=True).clean(subject(), cell(Stacked())).shape == (12, 4)


def test_the_clean_map_has_no_noise_and_randomness_of_its_own() -> None:
    seen = watch()
    clean = sampler().clean(subject(), cell(toys.Random()))
    assert torch.equal(seen[0], subject().image[None])
    assert clean.shape == (4, 4)
    assert clean.dtype == torch.float32
    rng = CopyRng(3, subject().key, "toys/Random {}", [-1])
    again = toys.Random().attribute(MODEL, subject().image[None], torch.tensor([1]), rng=rng).maps[0]
    assert torch.equal(clean, again)


# -- methods that look at the clean image first ------------------------------------------------------------------------

class Anchoring(toys.Weighted):
    """Its map is that of `Weighted`, plus the clean image in integers and the class."""

    held = "the picture itself"

    def __init__(self, added: torch.Tensor | None = None) -> None:
        super().__init__()
        self.added = added
        self.looks: list[tuple[torch.Tensor, int]] = []

    def anchored(self, model: Any, image: torch.Tensor, target: int) -> Anchoring:
        self.looks.append((image.clone(), target))
        return Anchoring(toys.quantised(image[0]) + target)

    def attribute(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, *, rng: Any) -> Attribution:
        assert self.added is not None, "it was used without a look"
        found = super().attribute(model, inputs, targets, rng=rng)
        return Attribution(found.maps + self.added, found.logits)


def test_a_look_at_the_clean_image_is_taken_once_and_used_for_all_copies() -> None:
    attributor, one, two = Anchoring(), subject(), subject(1)
    cells = [cell(attributor), cell(attributor, sigma=0.5, key="wide")]
    drawer = sampler()
    clean = drawer.clean(one, cells[0])
    tally = drawer.sample(one, cells, 0, 30)["cell"]
    assert len(attributor.looks) == 1
    seen, target = attributor.looks[0]
    assert torch.equal(seen, one.image)
    assert target == one.target
    by_hand = Anchoring(toys.quantised(one.image[0]) + one.target)
    assert np.array_equal(tally.segments, brute_force(by_hand, toys.Above(), one, 0, 30)[0])
    assert torch.equal(clean, by_hand.attribute(MODEL, one.image[None], torch.tensor([1]), rng=None).maps[0])
    assert tally.identity["held"] == "the picture itself"
    drawer.sample(two, cells, 0, 3)
    assert torch.equal(attributor.looks[-1][0], two.image)


def test_the_look_may_be_at_another_image() -> None:
    attributor, one, other = Anchoring(), subject(), subject(1).image
    tally = sampler().sample(replace(one, anchor=other), [cell(attributor)], 0, 12)["cell"]
    by_hand = Anchoring(toys.quantised(other[0]) + one.target)
    assert np.array_equal(tally.segments, brute_force(by_hand, toys.Above(), one, 0, 12)[0])


def test_a_look_that_finds_nothing_to_hold_leaves_the_method_as_it_is() -> None:
    class Indifferent(toys.Weighted):
        def anchored(self, model: Any, image: torch.Tensor, target: int) -> None:
            return None

    tally = sampler().sample(subject(), [cell(Indifferent())], 0, 12)["cell"]
    assert np.array_equal(tally.counts, sampler().sample(subject(), [cell()], 0, 12)["cell"].counts)
    assert "held" not in tally.identity


# -- identity ---------------------------------------------------------------------------------------------------------

def test_the_tally_knows_everything_that_has_to_agree() -> None:
    one = sampler(identity={"weights": "w", "sparsifier": "above {}"}, cuts=(9, 5, 5), planned=40)
    tally = one.sample(subject(), [cell()], 2, 20)["cell"]
    assert isinstance(tally, Tally)
    assert (tally.copies, tally.cuts, tally.levels, tally.sigma) == (((2, 20),), (5, 9), ("-20", "60"), SIGMA)
    assert (tally.nested, tally.unit, tally.planned) == (True, 1, 40)
    assert tally.identity == {
        "weights": "w", "sparsifier": "above {}", "image": image_hash(subject().image), "target": 1,
        "noise": f"gaussian seed=3 {STREAM}", "target_name": "one", "attributor": "weighted",
        "attributor_options": "toys/Weighted {}", "precision": "off", "resolution": "native"}
    assert sampler(toys.Soft()).sample(subject(), [cell()], 0, 2)["cell"].unit == REAL_UNIT


@pytest.mark.parametrize(("other", "named"), [
    (lambda: sampler().sample(subject(1), [cell()], 20, 30), "image"),
    (lambda: sampler().sample(subject(target=0), [cell()], 20, 30), "target"),
    (lambda: sampler().sample(subject(), [cell(sigma=0.5)], 20, 30), "sigma"),
    (lambda: sampler().sample(subject(), [cell(toys.Random())], 20, 30), "attributor"),
    (lambda: sampler(toys.Above(toys.Above.Options(t=(1.0, 2.0)))).sample(subject(), [cell()], 20, 30), "levels"),
    (lambda: sampler(identity={"weights": "v"}).sample(subject(), [cell()], 20, 30), "weights"),
    (lambda: sampler(cuts=(4,)).sample(subject(), [cell()], 20, 30), "cuts"),
    (lambda: sampler().sample(subject(), [cell()], 15, 30), "copies 15 to 19"),
])
def test_tallies_of_different_things_refuse_to_merge(other: Any, named: str) -> None:
    tally = sampler().sample(subject(), [cell()], 0, 20)["cell"]
    with pytest.raises(Exception, match="cannot be merged") as caught:
        tally.merge(other()["cell"])
    assert named in str(caught.value)


# -- memory -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sigmas", [(0.25,), (0.25, 0.5)])
def test_no_noisy_copy_or_map_outlives_its_batch(sigmas: tuple[float, ...]) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Watched(toys.Weighted):
        def attribute(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, *, rng: Any) -> Attribution:
            nonlocal most
            attribution = super().attribute(model, inputs, targets, rng=rng)
            earlier = sum(reference() is not None for reference in alive)
            most = max(most, earlier)
            assert attribution.logits is not None
            alive.extend(weakref.ref(t) for t in (attribution.maps, attribution.logits, inputs))
            return attribution

    watched = Watched()
    gc.disable()  # what is freed is freed because nobody holds it, not because the collector came by
    try:
        cells = [cell(watched, sigma, f"{sigma}") for sigma in sigmas]
        sampler(batch_size=4).sample(subject(), cells, 0, 80)
    finally:
        gc.enable()
    assert len(alive) == 3 * 20 * len(sigmas)
    assert most == 0
    assert not any(reference() is not None for reference in alive)


def hungry(most: int, **options: Any) -> Cell:
    return cell(toys.Hungry(toys.Hungry.Options(most=most, **options)))


@pytest.mark.parametrize(("most", "batch", "says"), [
    (4, 16, [(16, 8), (8, 4)]), (3, 7, [(7, 3)]), (1, 40, [(33, 16), (16, 8), (8, 4), (4, 2), (2, 1)]), (20, 7, [])])
def test_a_batch_that_does_not_fit_is_halved_with_a_notice(most: int, batch: int, says: list[tuple[int, int]]) -> None:
    notes: list[str] = []
    seen = watch()
    one = sampler(toys.Soft(), batch_size=batch, cuts=(5, 23), notify=notes.append)
    first, second = (one.sample(subject(), [hungry(most)], a, b)["cell"] for a, b in ((0, 33), (33, 40)))
    assert notes == [f"attributor 'hungry': {full} noisy copies at once do not fit into memory; it goes on with {half} "
                     f"(begin with --batch-size {half} to save the attempt)" for full, half in says]
    assert sum(len(given) for given in seen if len(given) <= most) == 40
    assert len([given for given in seen if len(given) > most]) == len(says), "what does not fit is tried once"
    toys.OBSERVERS.clear()
    roomy = sampler(toys.Soft(), batch_size=batch, cuts=(5, 23)).sample(subject(), [hungry(40)], 0, 40)["cell"]
    assert first.merge(second).to_bytes() == roomy.to_bytes()


def test_other_methods_keep_their_batches() -> None:
    notes: list[str] = []
    seen = watch()
    cells = [cell(key="plain"), replace(hungry(4), key="hungry"), replace(hungry(4), key="louder", sigma=0.5)]
    found = sampler(batch_size=8, notify=notes.append).sample(subject(), cells, 0, 8)
    assert [len(given) for given in seen] == [8, 8, 4, 4, 4, 4]
    assert len(notes) == 1
    assert np.array_equal(found["plain"].counts, found["hungry"].counts)


def test_by_default_the_notice_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="8 noisy copies at once do not fit into memory; it goes on with 4"):
        sampler(batch_size=8).sample(subject(), [hungry(4)], 0, 8)


@pytest.mark.parametrize("call", [lambda one, which: one.sample(subject(), [which], 0, 9),
                                  lambda one, which: one.clean(subject(), which)])
def test_not_even_one_copy(call: Any) -> None:
    one = sampler(batch_size=4, notify=lambda line: None)
    assert refusal(lambda: call(one, hungry(0))) == (
        "attributor 'hungry' does not fit into memory on image 'toy 0', not even one copy at a time: try -o "
        "attributor.hungry.own=4, or take a smaller model, another method or another device")
    assert "own=6, or take" in refusal(lambda: call(one, hungry(9, own=12)))


@pytest.mark.parametrize(("error", "memory"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True), (MemoryError(), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True), (RuntimeError("shape mismatch"), False),
    (ValueError("DefaultCPUAllocator: can't allocate memory"), False)])
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert out_of_memory(error) == memory

    class Raising(toys.Weighted):
        def maps(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, rng: Any) -> torch.Tensor:
            if len(inputs) > 2:
                raise error
            return super().maps(model, inputs, targets, rng)

    def work() -> Any:
        return sampler(batch_size=4, notify=lambda line: None).sample(subject(), [cell(Raising())], 0, 4)
    if memory:
        assert work()["cell"].samples == 4
    else:
        with pytest.raises(type(error)):
            work()


def test_the_real_allocator_says_it_in_these_words() -> None:
    with pytest.raises(Exception) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)


# -- bad numbers ------------------------------------------------------------------------------------------------------

def refusal(call: Any) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("infinite", [False, True])
def test_bad_scores_of_the_clean_image_name_method_image_and_number(infinite: bool) -> None:
    bad = toys.Poisoned(toys.Poisoned.Options(where="clean", pixels=5, infinite=infinite))
    text = refusal(lambda: sampler().clean(subject(), cell(bad)))
    assert "'poisoned'" in text
    assert "5 NaN or infinite scores" in text
    assert "'toy 0'" in text
    assert sampler().sample(subject(), [cell(bad)], 0, 20)["cell"].samples == 20


@pytest.mark.parametrize("infinite", [False, True])
def test_bad_scores_of_noisy_copies_name_method_image_and_number(infinite: bool) -> None:
    bad = toys.Poisoned(toys.Poisoned.Options(where="noisy", pixels=2, infinite=infinite))
    assert torch.isfinite(sampler().clean(subject(), cell(bad))).all()
    text = refusal(lambda: sampler().sample(subject(), [cell(), cell(bad, key="bad")], 0, 20))
    for said in ("'poisoned'", "2 NaN or infinite scores", "'toy 0'", "noisy copies 0 to 6"):
        assert said in text


def test_one_bad_copy_among_many_is_found() -> None:
    class Once(toys.Weighted):
        def maps(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, rng: Any) -> torch.Tensor:
            maps = super().maps(model, inputs, targets, rng)
            maps[(inputs == cursed).flatten(1).all(1), 3, 1] = float("nan")
            return maps

    cursed = torch.add(subject().image, GaussianNoise(3, subject().key).draw(17, 18, (1, 4, 4)), alpha=SIGMA)
    text = refusal(lambda: sampler().sample(subject(), [cell(Once())], 0, 30))
    assert "1 NaN" in text
    low, high = map(int, re.search(r"copies (\d+) to (\d+)", text).groups())  # type: ignore[union-attr]
    assert low <= 17 <= high < low + 7
    sampler().sample(subject(), [cell(Once())], 18, 30)
    sampler().sample(subject(), [cell(Once())], 0, 17)


def test_a_model_that_returns_nan_is_named_not_the_method() -> None:
    broken = toys.Toy(toys.Toy.Options(broken=True))
    one = Sampler(broken, toys.Above())
    for text in (refusal(lambda: one.clean(subject(), cell())),
                 refusal(lambda: one.sample(subject(), [cell()], 0, 5))):
        assert "the model returns NaN or infinite logits for image 'toy 0'" in text
        assert "weights" in text


def test_bad_scores_that_do_not_come_back_are_called_not_reproducible() -> None:
    class Flaky(toys.Weighted):
        calls = 0

        def maps(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, rng: Any) -> torch.Tensor:
            self.calls += 1
            maps = super().maps(model, inputs, targets, rng)
            return maps if self.calls > 1 else maps * float("nan")

    text = refusal(lambda: sampler().sample(subject(), [cell(Flaky())], 0, 5))
    assert "'flaky'" in text
    assert "not reproducible" in text


def test_a_constant_attribution_counts_nothing() -> None:
    tally = sampler(toys.Above(toys.Above.Options(t=(0.0, 1.0)))).sample(subject(), [cell(toys.Constant())], 0, 20)
    assert not tally["cell"].segments.any()


def test_no_copies_is_refused() -> None:
    assert "at least one" in refusal(lambda: sampler().sample(subject(), [cell()], 5, 5))
