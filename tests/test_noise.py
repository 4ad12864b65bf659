from __future__ import annotations

import hashlib
import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

import certframe.noise as noise_module
from certframe.noise import STREAM, CopyRng, GaussianNoise, image_hash, stream_key

IMAGE = "a" * 64
BIG = (3, 64, 64)


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """Half a million draws: 40 copies of a 3×64×64 image."""
    return GaussianNoise(7, IMAGE).draw(0, 40, BIG).numpy()


# -- the definition of the stream -------------------------------------------------------------------------------------

def scalar_normal(key: tuple[int, int], counter: int, size: int) -> np.ndarray:
    """The stream's definition in float64, number by number."""
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array([0, counter, 0, 0], np.uint64))
    half = (size + 1) // 2
    words: list[int] = []
    for raw in generator.random_raw(half):
        words += [int(raw) & 0xFFFFFFFF, int(raw) >> 32]
    first, second = words[:half], words[half:]
    cosines, sines = [], []
    for a, b in zip(first, second, strict=True):
        radius = math.sqrt(-2 * math.log(min(1.0, ((a & 0x7FFFFFFF) + 0.5) / 2**31)))
        angle = math.pi * (b - 2**32 * (b >= 2**31)) / 2**31
        cosines.append(radius * math.cos(angle))
        sines.append(radius * math.sin(angle))
    return np.array((cosines + sines)[:size])


@pytest.mark.parametrize("size", [1, 2, 7, 48, 1001])
def test_draws_are_philox_and_box_muller_in_float64(size: int) -> None:
    drawn = GaussianNoise(3, IMAGE).draw(5, 8, (size,)).numpy()
    for row, copy in zip(drawn, (5, 6, 7), strict=True):
        expected = scalar_normal(stream_key("noise", 3, IMAGE), copy, size)
        # Near u = 1 float32 holds the radius only to 2^-12; elsewhere to its last digits.
        np.testing.assert_allclose(row, expected, atol=4e-4, rtol=0)
        assert np.mean(np.abs(row - expected) < 2e-6) >= 0.99


def test_a_radius_near_zero_is_the_only_place_where_float32_shows() -> None:
    drawn = GaussianNoise(3, IMAGE).draw(0, 1, (100_000,)).numpy()[0]
    expected = scalar_normal(stream_key("noise", 3, IMAGE), 0, 100_000)
    wrong = np.abs(drawn - expected) > 1e-5
    partner = np.roll(expected, 50_000)
    assert np.all(np.hypot(expected, partner)[wrong] < 0.02)


def test_the_stream_does_not_change_between_versions() -> None:
    assert STREAM == "philox4x64-boxmuller-1"
    digest = hashlib.sha256(f"{STREAM}\x1fnoise\x1f0\x1f{IMAGE}".encode()).digest()
    assert stream_key("noise", 0, IMAGE) == (int.from_bytes(digest[:8], "little"),
                                             int.from_bytes(digest[8:16], "little"))
    drawn = GaussianNoise(0, IMAGE).draw(0, 2, (3,)).flatten().tolist()
    assert drawn == pytest.approx(PINNED_NORMAL, abs=1e-6)
    rng = CopyRng(0, IMAGE, "method", [-1, 0])
    assert rng.integers(1000, 3).tolist() == PINNED_INTEGERS
    assert image_hash(torch.zeros(1, 1, 2)) == hashlib.sha256(b"(1, 1, 2)" + b"\0" * 8).hexdigest()


PINNED_NORMAL = [0.4199412, 1.6531893, 0.2153733, -1.2083727, -2.1145203, 2.5614452]
PINNED_INTEGERS = [[582, 866, 817], [276, 129, 943]]


# -- the distribution -------------------------------------------------------------------------------------------------

def test_shape_dtype_and_device() -> None:
    noise = GaussianNoise(0, IMAGE)
    drawn = noise.draw(2, 6, (3, 5, 7))
    assert drawn.shape == (4, 3, 5, 7)
    assert drawn.dtype == torch.float32
    assert drawn.device == torch.device("cpu")
    assert noise.draw(4, 4, (3, 5)).shape == (0, 3, 5)


@pytest.fixture
def bits_seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The random bits that are given to the Box–Muller transform, which then does nothing."""
    seen: list[torch.Tensor] = []

    def transform(bits: torch.Tensor) -> torch.Tensor:
        seen.append(bits)
        return torch.empty(bits.shape[0], 2 * bits.shape[2], device=bits.device)

    monkeypatch.setattr(noise_module, "_box_muller", transform)
    return seen


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_bits_become_numbers_on_the_device_that_asks(bits_seen: list[torch.Tensor], device: torch.device | str) -> None:
    drawn = GaussianNoise(0, IMAGE).draw(0, 2, (3, 5), device)
    assert bits_seen[0].device.type == drawn.device.type == "meta"
    assert bits_seen[0].shape == (2, 2, 8)
    assert bits_seen[0].dtype == torch.int32


def test_normal_by_kolmogorov_and_smirnov(draws: np.ndarray) -> None:
    assert stats.kstest(draws.ravel().astype(np.float64), "norm").pvalue > 1e-4
    for copy in draws[::10]:
        assert stats.kstest(copy.ravel().astype(np.float64), "norm").pvalue > 1e-4


def test_moments(draws: np.ndarray) -> None:
    x = draws.ravel().astype(np.float64)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)]:
        assert abs(np.mean(x**power) - moment) < 4 * math.sqrt(variance / x.size), power


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0, 4.0, 4.5])
def test_tails(draws: np.ndarray, bound: float) -> None:
    for side in (draws, -draws):
        beyond = int((side > bound).sum())
        assert stats.binomtest(beyond, draws.size, stats.norm.sf(bound)).pvalue > 1e-4


def test_every_pixel_position_is_normal() -> None:
    x = GaussianNoise(1, IMAGE).draw(0, 4000, (5,)).numpy().astype(np.float64)
    for position in x.T:
        assert stats.kstest(position, "norm").pvalue > 1e-3


def test_halves_of_box_muller_are_independent(draws: np.ndarray) -> None:
    size = math.prod(BIG)
    flat = draws.reshape(40, size).astype(np.float64)
    uniform = stats.norm.cdf(flat)
    assert independent(uniform[:, : size // 2].ravel(), uniform[:, size // 2:].ravel())


def independent(u: np.ndarray, v: np.ndarray, bins: int = 16) -> bool:
    """χ² test that (u, v) is uniform on the unit square."""
    table, _, _ = np.histogram2d(u, v, bins=bins, range=[[0, 1], [0, 1]])
    return bool(stats.chisquare(table.ravel()).pvalue > 1e-4)


def test_copies_images_seeds_and_neighbours_are_independent(draws: np.ndarray) -> None:
    other_image = GaussianNoise(7, "b" * 64).draw(0, 40, BIG).numpy()
    other_seed = GaussianNoise(8, IMAGE).draw(0, 40, BIG).numpy()
    pairs = [(draws[:20], draws[20:]), (draws[:-1], draws[1:]), (draws, other_image), (draws, other_seed),
             (draws[..., :-1], draws[..., 1:]), (draws[:, 0], draws[:, 1]), (other_image, other_seed)]
    for a, b in pairs:
        assert independent(stats.norm.cdf(a).ravel(), stats.norm.cdf(b).ravel())


def test_a_test_of_independence_that_can_fail() -> None:
    u = stats.norm.cdf(GaussianNoise(7, IMAGE).draw(0, 40, BIG).numpy()).ravel()
    assert not independent(u, u)
    assert not independent(u, np.abs(2 * u - 1))


# -- replay -----------------------------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(1,), (2,), (3,), (7,), (16,), (1, 5, 5), (3, 4, 4), (3, 9, 11), (3, 33, 31)])


@hypothesis_settings(max_examples=60)
@given(SHAPES, st.integers(0, 40), st.integers(1, 9), st.data())
def test_any_sub_range_equals_the_full_draw(shape: tuple[int, ...], start: int, length: int,
                                            data: st.DataObject) -> None:
    noise = GaussianNoise(11, IMAGE)
    whole = noise.draw(start, start + length, shape)
    low = data.draw(st.integers(0, length))
    high = data.draw(st.integers(low, length))
    assert torch.equal(GaussianNoise(11, IMAGE).draw(start + low, start + high, shape), whole[low:high])


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 127, 33), (1, 181, 181)])
def test_large_draws_do_not_depend_on_batch_or_threads(shape: tuple[int, ...]) -> None:
    noise = GaussianNoise(2, IMAGE)
    whole = noise.draw(0, 5, shape)
    assert torch.equal(torch.cat([noise.draw(i, i + 1, shape) for i in range(5)]), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(noise.draw(0, 5, shape), whole)
    finally:
        torch.set_num_threads(threads)


def test_distant_copies_need_not_draw_those_before() -> None:
    far = GaussianNoise(2, IMAGE).draw(2**40, 2**40 + 2, (4,))
    assert torch.isfinite(far).all()
    assert not torch.equal(far[0], far[1])


def test_global_generators_are_neither_used_nor_touched() -> None:
    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002

    before = state()
    first = GaussianNoise(5, IMAGE).draw(0, 3, (7,))
    one = CopyRng(5, IMAGE, "m", [0, 1])
    drawn = [one.normal(4), one.uniform(4), one.integers(10, 4), one.shared.normal(3)]
    assert state() == before
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    assert torch.equal(GaussianNoise(5, IMAGE).draw(0, 3, (7,)), first)
    two = CopyRng(5, IMAGE, "m", [0, 1])
    again = [two.normal(4), two.uniform(4), two.integers(10, 4), two.shared.normal(3)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


# -- keys -------------------------------------------------------------------------------------------------------------

def test_keys_differ_in_every_part() -> None:
    parts = [(kind, seed, image, *rest) for kind in ("noise", "rng") for seed in (0, 1, 10, 2**62)
             for image in (IMAGE, "b" * 64, "shared") for rest in ((), ("x",), ("y",), ("x", "y"))]
    assert len({stream_key(*p) for p in parts}) == len(parts)
    # Parts do not run into each other.
    assert len({stream_key("a", "bc"), stream_key("ab", "c"), stream_key("abc"), stream_key("a", "b", "c")}) == 4
    assert stream_key("noise", 1, "1") != stream_key("noise", 11, "")


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_seeds_never_share_a_stream(a: int, b: int) -> None:
    assert (stream_key("noise", a, IMAGE) == stream_key("noise", b, IMAGE)) == (a == b)


def test_images_never_share_a_stream() -> None:
    base = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    nudged = base.clone()
    nudged[1, 2, 3] = torch.nextafter(nudged[1, 2, 3], torch.tensor(2.0))
    images = [base, nudged, base.flip(0), base.transpose(1, 2), base.reshape(3, 2, 8), base.reshape(1, 12, 4),
              torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)]
    hashes = [image_hash(image) for image in images]
    assert len(set(hashes)) == len(images)
    draws = [GaussianNoise(0, h).draw(0, 1, (64,)) for h in hashes]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


def test_the_hash_is_of_the_content_not_of_its_layout() -> None:
    image = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    channels_last = image[None].contiguous(memory_format=torch.channels_last)[0]
    assert channels_last.stride() != image.stride()
    assert image_hash(channels_last) == image_hash(image) == image_hash(image.double())
    assert image_hash(image.clone().requires_grad_()) == image_hash(image)


# -- randomness of attributors ----------------------------------------------------------------------------------------

def three_draws(rng: CopyRng) -> list[torch.Tensor]:
    return [rng.normal(3, 5), rng.uniform(2), rng.integers(1000, 7), rng.normal(), rng.uniform(2, 2)]


@given(st.lists(st.integers(-1, 500), min_size=1, max_size=8, unique=True))
@hypothesis_settings(max_examples=40)
def test_a_row_depends_on_its_copy_and_not_on_its_batch(copies: list[int]) -> None:
    together = three_draws(CopyRng(4, IMAGE, "rise {}", copies))
    for row, copy in enumerate(copies):
        alone = three_draws(CopyRng(4, IMAGE, "rise {}", [copy]))
        for batch, single in zip(together, alone, strict=True):
            assert batch.shape[0] == len(copies)
            assert torch.equal(batch[row: row + 1], single)


def test_streams_of_copies_images_seeds_and_methods_differ() -> None:
    rngs = [CopyRng(seed, image, salt, [copy]) for seed in (0, 1) for image in (IMAGE, "b" * 64)
            for salt in ("rise", "rise 2") for copy in (-1, 0, 1)]
    drawn = [rng.uniform(8) for rng in rngs]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


def test_draws_of_one_stream_go_on() -> None:
    rng = CopyRng(0, IMAGE, "m", [0])
    assert not torch.equal(rng.uniform(8), rng.uniform(8))


def test_shared_is_the_same_for_all_copies_and_images() -> None:
    here, there = CopyRng(0, IMAGE, "m", [0, 1, 2]), CopyRng(0, "b" * 64, "m", [7])
    here.uniform(5)
    assert here.shared.uniform(6).shape == (1, 6)
    assert torch.equal(here.shared.uniform(6), there.shared.uniform(6))
    assert not torch.equal(here.shared.uniform(6), CopyRng(0, IMAGE, "n", [0]).shared.uniform(6))
    assert not torch.equal(here.shared.uniform(6), CopyRng(1, IMAGE, "m", [0]).shared.uniform(6))
    assert not torch.equal(here.shared.uniform(6), CopyRng(0, IMAGE, "m", [-1]).uniform(6))


def test_ranges_types_and_distributions() -> None:
    rng = CopyRng(0, IMAGE, "m", range(50))
    uniform, integers, normal = rng.uniform(5_000), rng.integers(13, 5_000), rng.normal(5_000)
    assert uniform.dtype == normal.dtype == torch.float32
    assert integers.dtype == torch.int64
    assert uniform.shape == integers.shape == normal.shape == (50, 5_000)
    assert float(uniform.min()) >= 0.0
    assert float(uniform.max()) < 1.0
    assert stats.kstest(uniform.numpy().ravel().astype(np.float64), "uniform").pvalue > 1e-4
    assert stats.kstest(normal.numpy().ravel().astype(np.float64), "norm").pvalue > 1e-4
    assert stats.chisquare(np.bincount(integers.numpy().ravel(), minlength=13)).pvalue > 1e-4
    assert set(rng.integers(1, 9).unique().tolist()) == {0}
    high = rng.integers(2**31, 1000)
    assert 0 <= int(high.min()) < 2**28 < 2**30 < int(high.max()) < 2**31


def test_masks_are_independent_of_the_noise() -> None:
    """Randomised attributors are sound only when their randomness does not know the noise."""
    noise = stats.norm.cdf(GaussianNoise(0, IMAGE).draw(0, 50, (5000,)).numpy())
    masks = CopyRng(0, IMAGE, "m", range(50)).uniform(5000).numpy()
    shifted = CopyRng(0, IMAGE, "m", range(-1, 49)).uniform(5000).numpy()
    assert independent(noise.ravel(), masks.ravel())
    assert independent(noise.ravel(), shifted.ravel())


def test_rng_draws_on_its_device(bits_seen: list[torch.Tensor]) -> None:
    rng = CopyRng(0, IMAGE, "m", [0, 1], "meta")
    assert rng.device.type == rng.shared.device.type == "meta"
    assert {t.device.type for t in three_draws(rng)} == {"meta"}
    assert {bits.device.type for bits in bits_seen} == {"meta"}
