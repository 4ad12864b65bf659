"""Certificates never claim more than is true, measured where the truth is known in closed form.

For a linear score h_i(x) = w_i·x and the label [h_i > t_i], a noisy copy has label 1 with probability
p_i = Φ((w_i·x − t_i)/(σ‖w_i‖)), and the majority label is constant exactly within |w_i·x − t_i|/‖w_i‖ = σ|Φ⁻¹(p_i)|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from toys import Toy

from certframe.certifiers.pixel import Pixel
from certframe.noise import image_hash
from certframe.protocols import ABSTAIN, Attribution
from certframe.sampling import Cell, Sampler, Subject
from certframe.sparsifiers.threshold import Threshold
from certframe.statistics.corrections import bonferroni_threshold, split_threshold
from certframe.tally import Tally

SIGMA = 0.25
RUNS = 2500
CORRECTIONS = ("holm", "bonferroni", "paper")

# -- judging ----------------------------------------------------------------------------------------------------------


def is_wrong(labels: np.ndarray, p: np.ndarray, radius: float) -> np.ndarray:
    """(runs,) whether any of the labels (runs, N) claims the wrong label, or more than the true radius."""
    true_radius = SIGMA * np.abs(stats.norm.ppf(p))
    wrong_label = labels != (p > 0.5)
    return ((labels != ABSTAIN) & (wrong_label | (radius > true_radius))).any(axis=1)


def significantly_above(errors: np.ndarray, alpha: float) -> bool:
    """Whether so many errors refute that their probability is at most α (Clopper–Pearson lower limit, 99.99 %)."""
    found = int(errors.sum())
    return found > 0 and bool(stats.beta.ppf(1e-4, found, errors.size - found + 1) > alpha)


# -- counts without a model -------------------------------------------------------------------------------------------

def independent(p: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.binomial(n, p, size=(RUNS, p.size))


def identical(p: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """All pixels look at the same thing."""
    return stats.binom.ppf(np.repeat(rng.random((RUNS, 1)), p.size, axis=1), n, p).astype(int)


def exclusive(p: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """When one pixel errs no other does: the worst case, in which Bonferroni's inequality is an equality."""
    shifted = (rng.random((RUNS, 1)) + np.arange(p.size) / p.size) % 1.0
    return stats.binom.ppf(shifted, n, p).astype(int)


def opposed(p: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Every second pixel is high when the others are low."""
    u = np.repeat(rng.random((RUNS, 1)), p.size, axis=1)
    u[:, 1::2] = 1 - u[:, 1::2]
    return stats.binom.ppf(u, n, p).astype(int)


def border(tau: float, pixels: int) -> np.ndarray:
    """The hardest pixels: their radius is short of R by next to nothing."""
    return np.full(pixels, tau - 1e-9)


def two_borders(tau: float, pixels: int) -> np.ndarray:
    return np.where(np.arange(pixels) % 2, tau - 1e-9, 1 - tau + 1e-9)


def half_sure(tau: float, pixels: int) -> np.ndarray:
    """Half of the pixels are certified for certain, which lowers Holm's bar for the others."""
    return np.where(np.arange(pixels) < pixels // 2, 0.99999, tau - 1e-9)


def half_sure_of_zero(tau: float, pixels: int) -> np.ndarray:
    return 1 - half_sure(tau, pixels)


def coins(tau: float, pixels: int) -> np.ndarray:
    return np.full(pixels, 0.5)


def graded(tau: float, pixels: int) -> np.ndarray:
    return np.linspace(1 - tau, tau, pixels).clip(1 - tau + 1e-9, tau - 1e-9)


# (τ, α, N, n), chosen so that N times the p-value at the threshold is nearly α: no slack in which a mistake could hide.
TIGHT = [(0.75, 0.3, 8, 30), (0.6, 0.2, 8, 32), (0.7, 0.2, 20, 44), (0.501, 0.2, 12, 40)]


def certified(pixel: Pixel, pilot: np.ndarray, rest: np.ndarray, n: int) -> tuple[np.ndarray, float]:
    """Labels (runs, N): every run is a level, certified by itself."""
    tally = Tally(np.stack([pilot, rest])[:, :, None, :].astype(np.int64), ((0, n),),
                  tuple(map(str, range(len(rest)))), SIGMA, cuts=(pixel.options.pilot,))
    certificate = pixel.certify(tally)
    return certificate.labels[:, 0, :], certificate.radius


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("dependence", [independent, identical, exclusive, opposed])
@pytest.mark.parametrize("truth", [border, two_borders, half_sure, half_sure_of_zero, coins, graded])
def test_the_family_wise_error_stays_below_alpha(correction: str, dependence: Callable[..., np.ndarray],
                                                 truth: Callable[..., np.ndarray]) -> None:
    for seed, (tau, alpha, pixels, n) in enumerate(TIGHT):
        pixel = Pixel(Pixel.Options(tau=tau, alpha=alpha, correction=correction))
        p, rng = truth(tau, pixels), np.random.default_rng(seed)
        # Only the published rule sets copies aside; for the others all n come from one draw.
        aside = 10 if correction == "paper" else 0
        labels, radius = certified(pixel, independent(p, aside, rng), dependence(p, n, rng), n + aside)
        errors = is_wrong(labels, p, radius)
        assert not significantly_above(errors, alpha), (tau, errors.mean(), alpha)


@pytest.mark.parametrize("setting", TIGHT)
def test_the_error_comes_close_to_alpha_where_it_should(setting: tuple[float, float, int, int]) -> None:
    """The bound is used up: what stays below α above does so for a reason, not because nothing is certified."""
    tau, alpha, pixels, n = setting
    rng = np.random.default_rng(0)
    for correction, truth in (("bonferroni", border), ("holm", border), ("holm", half_sure)):
        p = truth(tau, pixels)
        pixel = Pixel(Pixel.Options(tau=tau, alpha=alpha, correction=correction))
        labels, radius = certified(pixel, np.zeros((RUNS, pixels)), exclusive(p, n, rng), n)
        assert is_wrong(labels, p, radius).mean() > 0.4 * alpha
    p = border(tau, pixels)
    pixel = Pixel(Pixel.Options(tau=tau, alpha=alpha, correction="bonferroni"))
    labels, radius = certified(pixel, np.zeros((RUNS, pixels)), exclusive(p, n, rng), n)
    assert is_wrong(labels, p, radius).mean() > 0.9 * alpha


# -- the same judgement finds what is broken --------------------------------------------------------------------------

def decide(counts: np.ndarray, n: int, threshold: int) -> np.ndarray:
    votes = np.maximum(counts, n - counts)
    return np.where(votes >= threshold, (2 * counts > n).astype(int), ABSTAIN)


@pytest.mark.parametrize("dependence", [independent, exclusive])
@pytest.mark.parametrize("setting", TIGHT)
def test_a_threshold_one_too_low_is_caught(setting: tuple[float, float, int, int],
                                           dependence: Callable[..., np.ndarray]) -> None:
    tau, alpha, pixels, n = setting
    p = border(tau, pixels)
    counts = dependence(p, n, np.random.default_rng(1))
    radius = SIGMA * float(stats.norm.ppf(tau))
    right = bonferroni_threshold(n, tau, alpha, pixels)
    assert not significantly_above(is_wrong(decide(counts, n, right), p, radius), alpha)
    assert significantly_above(is_wrong(decide(counts, n, right - 1), p, radius), alpha)


def test_testing_every_pixel_without_correction_is_caught() -> None:
    tau, alpha, pixels, n = TIGHT[0]
    p = border(tau, pixels)
    labels = decide(independent(p, n, np.random.default_rng(2)), n, bonferroni_threshold(n, tau, alpha, 1))
    assert significantly_above(is_wrong(labels, p, SIGMA * float(stats.norm.ppf(tau))), alpha)


def test_choosing_the_label_on_the_copies_that_test_it_is_caught() -> None:
    """The published test without its split: near τ = ½ both labels of a pixel can be certified wrongly."""
    tau, alpha, pixels, n = 0.5001, 0.1, 12, 40
    p = coins(tau, pixels)
    counts = independent(p, n, np.random.default_rng(3))
    radius = SIGMA * float(stats.norm.ppf(tau))
    one_sided = split_threshold(n, tau, alpha, pixels)
    assert one_sided < bonferroni_threshold(n, tau, alpha, pixels)
    assert significantly_above(is_wrong(decide(counts, n, one_sided), p, radius), alpha)
    assert not significantly_above(
        is_wrong(decide(counts, n, bonferroni_threshold(n, tau, alpha, pixels)), p, radius), alpha)


def test_peeking_is_caught() -> None:
    """Looking several times at growing counts with the threshold for one look."""
    tau, alpha, pixels = 0.75, 0.2, 16
    looks = [96, 136, 192, 272, 384, 544, 768]
    p, rng = border(tau, pixels), np.random.default_rng(4)
    counts, labels = np.zeros((RUNS, pixels), int), np.full((RUNS, pixels), ABSTAIN)
    for before, n in zip([0, *looks], looks, strict=False):
        counts += independent(p, n - before, rng)
        now = decide(counts, n, bonferroni_threshold(n, tau, alpha, pixels))
        labels = np.where(labels == ABSTAIN, now, labels)
        if n == looks[0]:
            assert not significantly_above(is_wrong(labels, p, SIGMA * float(stats.norm.ppf(tau))), alpha)
    assert significantly_above(is_wrong(labels, p, SIGMA * float(stats.norm.ppf(tau))), alpha)


def test_a_radius_slightly_too_long_is_caught() -> None:
    tau, alpha, pixels, n = TIGHT[0]
    p = np.full(pixels, 0.9)
    counts = independent(p, n, np.random.default_rng(5))
    labels = decide(counts, n, bonferroni_threshold(n, tau, alpha, pixels))
    true_radius = SIGMA * float(stats.norm.ppf(0.9))
    assert not significantly_above(is_wrong(labels, p, SIGMA * float(stats.norm.ppf(tau))), alpha)
    assert significantly_above(is_wrong(labels, p, 1.001 * true_radius), alpha)


# -- power ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_certified_radius_approaches_the_true_one(correction: str) -> None:
    p = np.array([0.55, 0.7, 0.9, 0.99, 0.3, 0.05, 0.001])
    true_radius = SIGMA * np.abs(stats.norm.ppf(p))
    steps = np.arange(0.0, 3.2, 0.08)
    gaps = []
    for n in (100, 1000, 10_000):
        rng = np.random.default_rng(n)
        pilot, rest = (rng.binomial(size, p)[None, None, None] for size in (10, n - 10))
        tally = Tally(np.concatenate([pilot, rest]).astype(np.int64), ((0, n),), ("t",), SIGMA, cuts=(10,))
        radius = np.zeros(p.size)
        for step in steps:
            certificate = Pixel(Pixel.Options(tau=float(stats.norm.cdf(step)), alpha=0.05,
                                              correction=correction)).certify(tally)
            label = certificate.labels[0, 0]
            radius[label == (p > 0.5)] = certificate.radius
            assert ((label == ABSTAIN) | (label == (p > 0.5))).all()
        assert np.all(radius <= true_radius)
        # Five standard errors of the counts and a little for their being whole numbers, seen through Φ⁻¹, and the grid.
        certain = np.clip(np.maximum(p, 1 - p) - 5 * np.sqrt(p * (1 - p) / n) - 10 / n, 0.5, 1)
        assert np.all(true_radius - radius <= true_radius - SIGMA * stats.norm.ppf(certain) + 0.08 * SIGMA), n
        gaps.append(float((true_radius - radius).mean()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.12 * SIGMA


# -- through the sampler: noise, attribution, threshold, counts -------------------------------------------------------

class Linear:
    """Attributor h_i(x) = w_i·x − t_i with orthogonal w_i of different lengths, so that the pixels are independent."""

    needs_gradients = False
    deterministic = True

    def __init__(self, image: torch.Tensor, p: np.ndarray) -> None:
        rng = np.random.default_rng(11)
        basis, _ = np.linalg.qr(rng.normal(size=(p.size, p.size)))
        lengths = rng.uniform(0.3, 4.0, size=(p.size, 1))
        self.weights = basis * lengths
        self.t = self.weights @ image.double().numpy().ravel() - SIGMA * lengths[:, 0] * stats.norm.ppf(p)

    def attribute(self, model: Any, inputs: torch.Tensor, targets: torch.Tensor, *, rng: Any) -> Attribution:
        scores = inputs.double().flatten(1) @ torch.from_numpy(self.weights.T) - torch.from_numpy(self.t)
        return Attribution(scores.float().reshape(inputs.shape[0], *inputs.shape[2:]))

    def radius(self, image: torch.Tensor) -> np.ndarray:
        """|w_i·x − t_i| / ‖w_i‖."""
        margin = self.weights @ image.double().numpy().ravel() - self.t
        return np.asarray(np.abs(margin) / np.linalg.norm(self.weights, axis=1))


IMAGE = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(2))
SIGNED = Threshold(Threshold.Options(t=(0.0,), ranking="signed"))


def sample(attributor: Any, image: torch.Tensor, n: int, seed: int, cuts: tuple[int, ...] = (10,)) -> Tally:
    sampler = Sampler(Toy(), SIGNED, seed=seed, batch_size=64, cuts=cuts)
    subject = Subject("linear", image, 0, "zero", image_hash(image))
    return sampler.sample(subject, [Cell("c", "linear", attributor, "linear", SIGMA)], 0, n)["c"]


def test_counts_of_a_linear_attributor_follow_the_closed_form() -> None:
    p = np.array([0.5, 0.52, 0.6, 0.7, 0.75, 0.8, 0.9, 0.97, 0.995, 0.4, 0.3, 0.25, 0.2, 0.1, 0.03, 0.005])
    linear = Linear(IMAGE, p)
    np.testing.assert_allclose(linear.radius(IMAGE), SIGMA * np.abs(stats.norm.ppf(p)), atol=1e-9)
    n = 20_000
    counts = sample(linear, IMAGE, n, seed=1).counts.ravel()
    for count, probability in zip(counts, p, strict=True):
        assert stats.binomtest(int(count), n, probability).pvalue > 1e-4


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_certificates_of_a_linear_attributor_hold_over_seeded_runs(correction: str) -> None:
    tau, alpha, n, runs = 0.6, 0.3, 32, 600
    p = np.array([tau - 1e-6] * 6 + [1 - tau + 1e-6] * 4 + [0.99, 0.01, 0.97, 0.9, 0.5, 0.999])
    linear = Linear(IMAGE, p)
    pixel = Pixel(Pixel.Options(tau=tau, alpha=alpha, correction=correction))
    tallies = [sample(linear, IMAGE, n, seed) for seed in range(runs)]
    certificates = [pixel.certify(tally) for tally in tallies]
    labels = np.array([certificate.labels.ravel() for certificate in certificates])
    radius = certificates[0].radius
    errors = is_wrong(labels, p, radius)
    assert not significantly_above(errors, alpha)
    assert errors.any()
    assert (labels[:, 10] == 1).mean() > 0.9
    assert (labels[:, 11] == 0).mean() > 0.9
    counts = np.array([tally.counts.ravel() for tally in tallies])
    uncorrected = decide(counts, n, bonferroni_threshold(n, tau, alpha, 1))
    assert significantly_above(is_wrong(uncorrected, p, radius), alpha)


def test_the_majority_label_flips_where_the_closed_form_says() -> None:
    """The smoothed map itself, at images just inside and just outside of a pixel's true radius."""
    p = np.array([0.6, 0.75, 0.9, 0.3, 0.2, 0.1] + [0.5] * 10)
    linear = Linear(IMAGE, p)
    true_radius = linear.radius(IMAGE)
    for i in range(6):
        toward_the_border = -np.sign(p[i] - 0.5) * linear.weights[i] / np.linalg.norm(linear.weights[i])
        for share, same in ((0.85, True), (1.15, False)):
            delta = torch.from_numpy(share * true_radius[i] * toward_the_border).reshape(IMAGE.shape)
            moved = (IMAGE.double() + delta).float()
            majority = sample(linear, moved, 6000, seed=i, cuts=()).mean.ravel()[i] > 0.5
            assert (majority == (p[i] > 0.5)) is np.bool_(same)
