"""How often is anything claimed that is false? Simulated at a large α, with the hardest truths and dependences.

Every certifier is judged by the same two functions: `false_claims` compares labels and radii with the truth,
`significantly_above` asks whether the share of runs with a false claim refutes α. Procedures that are known to be wrong
(a fixed-n test at every look, a fixed-n test where an adaptive one has stopped, maps certified separately at several K,
Clopper–Pearson without the wrong label) are caught by the same functions in the same settings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exact import counted, significantly_above, tally_of
from scipy import stats

from certframe.certifiers.adaptive import Adaptive
from certframe.certifiers.class_and import ClassAnd
from certframe.certifiers.importance_band import ImportanceBand
from certframe.certifiers.overlap import CertifiedRank, TopKOverlap
from certframe.certifiers.pixel import Pixel
from certframe.certifiers.quantile import Quantile
from certframe.certifiers.radius import Radius
from certframe.protocols import ABSTAIN
from certframe.statistics.bands import quantile_indices, shifted_shares
from certframe.statistics.binomial import smoothing_radius
from certframe.statistics.corrections import bonferroni_threshold
from certframe.statistics.radii import majority_threshold, probability_bounds
from certframe.statistics.sequential import crossing_probability, geometric_looks, ladder
from certframe.tally import Tally

SIGMA = 0.25
RUNS = 3000
PIXELS = 12
PLANNED = 300
LOOKS = geometric_looks(PLANNED)


# -- judging ----------------------------------------------------------------------------------------------------------

def false_claims(labels: np.ndarray, p: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """(runs,) whether a label (runs, N) is not the majority's, or is claimed beyond the true radius σ|Φ⁻¹(p)|."""
    true = SIGMA * np.abs(stats.norm.ppf(p))
    wrong_label = (labels != (p > 0.5)) | (p == 0.5)
    return np.asarray(((labels != ABSTAIN) & (wrong_label | (radius >= true))).any(axis=1))


# -- pixels that depend on each other ---------------------------------------------------------------------------------

def independent(runs: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    return rng.random((runs, pixels))


def identical(runs: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(rng.random((runs, 1)), pixels, axis=1)


def blocks(runs: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Blocks of four pixels that correlate equally, 0.7, as neighbours do."""
    shared = np.repeat(rng.normal(size=(runs, -(-pixels // 4))), 4, axis=1)[:, :pixels]
    return np.asarray(stats.norm.cdf(0.7**0.5 * shared + 0.3**0.5 * rng.normal(size=(runs, pixels))))


def opposed(runs: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Every second pixel is high when the others are low."""
    u = identical(runs, pixels, rng)
    u[:, 1::2] = 1 - u[:, 1::2]
    return u


def exclusive(runs: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """When one pixel is high the others are not: the case in which Bonferroni's inequality is an equality."""
    return np.asarray((rng.random((runs, 1)) + np.arange(pixels) / pixels) % 1.0)


DEPENDENCES = [independent, identical, blocks, opposed, exclusive]


def binomials(u: np.ndarray, n: int, p: np.ndarray) -> np.ndarray:
    """Inverse transform, column by column: Bin(n, p_i) from uniforms (runs, N)."""
    counts = np.empty(u.shape, np.int64)
    for value in np.unique(p):
        cdf = stats.binom.cdf(np.arange(n), n, value)
        counts[:, p == value] = np.searchsorted(cdf, u[:, p == value])
    return counts


def border(tau: float) -> np.ndarray:
    """The hardest pixels: short of τ by next to nothing."""
    return np.full(PIXELS, tau - 1e-9)


def two_borders(tau: float) -> np.ndarray:
    return np.where(np.arange(PIXELS) % 2, tau - 1e-9, 1 - tau + 1e-9)


def half_sure(tau: float) -> np.ndarray:
    """Half of the pixels are certified at once, which lowers the bar for the others."""
    return np.where(np.arange(PIXELS) < PIXELS // 2, 0.99999, tau - 1e-9)


def coins(tau: float) -> np.ndarray:
    """No label is the majority's: at τ = ½ both labels of every pixel are false."""
    return np.full(PIXELS, 0.5)


TRUTHS = [border, two_borders, half_sure, coins]


# -- adaptive ---------------------------------------------------------------------------------------------------------

def walks(p: np.ndarray, dependence: Callable[..., np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(looks, runs, N) new ones between the looks; the pixels depend on each other within each stretch."""
    steps = np.diff((0, *LOOKS))
    return np.stack([binomials(dependence(RUNS, p.size, rng), int(m), p) for m in steps])


def exclusive_walks(p: float, pixels: int, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Walks of which at most one pixel's in a run crosses the bounds, each with the right marginal distribution."""
    bank = np.stack([rng.binomial(m, p, size=60_000) for m in np.diff((0, *LOOKS))])
    crosses = (bank.cumsum(axis=0) >= bounds[:, None]).any(axis=0)
    share = crossing_probability(LOOKS, bounds, p)
    assert pixels * share <= 1
    which = np.floor(rng.random(RUNS) / share).astype(int)  # the pixel that crosses, if it is one
    inside, outside = (np.flatnonzero(flag) for flag in (crosses, ~crosses))
    chosen = rng.choice(outside, size=(RUNS, pixels))
    hit = which < pixels
    chosen[hit, which[hit]] = rng.choice(inside, size=int(hit.sum()))
    return np.asarray(bank[:, chosen])


def tally_at(segments: np.ndarray, at: int = len(LOOKS) - 1, **changes: Any) -> Tally:
    """Every run is a level, certified by itself, stopped at a look."""
    kept = segments * (np.arange(len(LOOKS)) <= at).reshape(-1, 1, 1)
    return tally_of(kept[:, :, None, :], LOOKS, copies=((0, LOOKS[at]),), planned=PLANNED, sigma=SIGMA, **changes)


def adaptive_labels(segments: np.ndarray, at: int = len(LOOKS) - 1, **options: Any) -> np.ndarray:
    labels = Adaptive(Adaptive.Options(**options)).certify(tally_at(segments, at)).labels
    return np.asarray(labels[:, 0, :])


SETTINGS = [{"tau": 0.75, "alpha": 0.25}, {"tau": 0.6, "alpha": 0.3, "spending": "union"},
            {"tau": 0.5, "alpha": 0.25}, {"tau": 0.75, "alpha": 0.25, "step_down": False}]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_adaptive_errs_at_most_at_alpha(options: dict[str, Any]) -> None:
    tau, alpha, rng = options["tau"], options["alpha"], np.random.default_rng(0)
    for truth in TRUTHS:
        p = truth(tau)
        for dependence in DEPENDENCES:
            labels = adaptive_labels(walks(p, dependence, rng), **options)
            errors = false_claims(labels, p, smoothing_radius(SIGMA, tau))
            assert not significantly_above(errors, alpha), (truth.__name__, dependence.__name__, errors.mean())


@pytest.mark.parametrize("spending", ["calibrated", "union"])
def test_adaptive_errs_nearly_at_alpha_when_errors_exclude_each_other(spending: str) -> None:
    """The bound is used up: what stays below α above does so for a reason, not because nothing is certified."""
    tau, alpha = 0.75, 0.25
    for pixels, sure in ((PIXELS, 0), (PIXELS // 2, PIXELS // 2)):
        tests, bounds = ladder(LOOKS, tau, alpha, PIXELS, calibrated=spending == "calibrated", step_down=True)
        step = max(s for s, t in enumerate(tests) if t >= pixels)
        row = bounds[step]
        doubtful = exclusive_walks(tau - 1e-9, pixels, row, np.random.default_rng(1))
        everything = np.broadcast_to(np.diff((0, *LOOKS)).reshape(-1, 1, 1), (len(LOOKS), RUNS, sure))
        p = np.r_[np.full(pixels, tau - 1e-9), np.full(sure, 1 - 1e-9)]
        labels = adaptive_labels(np.concatenate([doubtful, everything], axis=2), tau=tau, alpha=alpha,
                                 spending=spending)
        errors = false_claims(labels, p, smoothing_radius(SIGMA, tau))
        assert (labels[:, pixels:] == 1).all()
        assert not significantly_above(errors, alpha)
        # The ladder has no rung for every number of tests, and counts are whole numbers.
        assert errors.mean() > (0.85 if spending == "calibrated" else 0.4) * alpha * pixels / tests[step]


def test_an_adversary_who_stops_at_the_first_false_claim_wins_nothing() -> None:
    """What is claimed at a stop is claimed at every later one, so all reasons to stop are covered by the last look."""
    tau, alpha, rng = 0.75, 0.25, np.random.default_rng(2)
    for dependence in (independent, blocks, exclusive):
        p = half_sure(tau)
        segments = walks(p, dependence, rng)
        at_each = [false_claims(adaptive_labels(segments, at, tau=tau, alpha=alpha), p, smoothing_radius(SIGMA, tau))
                   for at in range(len(LOOKS))]
        whenever = np.any(at_each, axis=0)
        assert np.array_equal(whenever, at_each[-1])
        assert not significantly_above(whenever, alpha)


def fixed_labels(counts: np.ndarray, n: int, tau: float, alpha: float) -> np.ndarray:
    """The fixed-n certifier, told that these copies were all that was planned."""
    certifier = Pixel(Pixel.Options(tau=tau, alpha=alpha, correction="bonferroni"))
    return np.asarray(certifier.certify(counted(counts[:, None, :], n, sigma=SIGMA)).labels[:, 0, :])


@pytest.mark.parametrize("dependence", [independent, blocks])
def test_peeking_with_the_fixed_test_is_caught(dependence: Callable[..., np.ndarray]) -> None:
    """It keeps α at each look alone, and exceeds it when any look may certify."""
    tau, alpha, p = 0.75, 0.2, border(0.75)
    counts = walks(p, dependence, np.random.default_rng(3)).cumsum(axis=0)
    radius = smoothing_radius(SIGMA, tau)
    at_each = [false_claims(fixed_labels(c, n, tau, alpha), p, radius) for c, n in zip(counts, LOOKS, strict=True)]
    for errors in at_each:
        assert not significantly_above(errors, alpha)
    assert significantly_above(np.any(at_each, axis=0), alpha)


def test_a_fixed_test_of_counts_that_were_stopped_is_caught() -> None:
    """Stopped as soon as something can be certified: the pixels' own confidence does not cover that choice."""
    tau, alpha, p = 0.75, 0.2, border(0.75)
    counts = walks(p, exclusive, np.random.default_rng(4)).cumsum(axis=0)
    labels = np.full((RUNS, PIXELS), ABSTAIN)
    going = np.ones(RUNS, bool)
    for c, n in zip(counts, LOOKS, strict=True):
        now = fixed_labels(c, n, tau, alpha)
        stops = going & (now != ABSTAIN).any(axis=1)
        labels[stops] = now[stops]
        going &= ~stops
    assert significantly_above(false_claims(labels, p, smoothing_radius(SIGMA, tau)), alpha)


# -- a radius per pixel -----------------------------------------------------------------------------------------------

def radius_claims(counts: np.ndarray, n: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    certificate = Radius(Radius.Options(alpha=alpha)).certify(counted(counts[:, None, :], n, sigma=SIGMA))
    return certificate.labels[:, 0, :], np.nan_to_num(certificate.arrays["radius"][:, 0, :])


def hardest(n: int, level: float, table: np.ndarray) -> np.ndarray:
    """The p that the bounds of 12 counts are just above: at each a false claim has the largest probability."""
    k = majority_threshold(n, level)
    return np.asarray(table[np.linspace(k, n, PIXELS).astype(int)] - 1e-9)


@pytest.mark.parametrize(("n", "alpha"), [(40, 0.25), (101, 0.25), (12, 0.9)])
def test_radii_err_at_most_at_alpha(n: int, alpha: float) -> None:
    level, rng = alpha / PIXELS, np.random.default_rng(5)
    table = probability_bounds(n, level)
    for p in (hardest(n, level, table), 1 - hardest(n, level, table), np.full(PIXELS, table[n] - 1e-9),
              np.full(PIXELS, 0.5)):
        shares = []
        for dependence in DEPENDENCES:
            labels, radii = radius_claims(binomials(dependence(RUNS, PIXELS, rng), n, p), n, alpha)
            errors = false_claims(labels, p, radii)
            assert not significantly_above(errors, alpha), (dependence.__name__, errors.mean())
            shares.append(float(errors.mean()))
        assert max(shares) > (0.9 if p[0] != 0.5 else 0.2) * alpha


def test_radii_from_clopper_pearson_alone_are_caught() -> None:
    n, alpha = 20, 0.5
    level, m = alpha / PIXELS, np.arange(21)
    k = majority_threshold(n, level)
    plain = np.where(m >= k, stats.beta.ppf(level, m, n - m + 1), 0.5)
    p = np.full(PIXELS, plain[k] - 1e-9)
    u = exclusive(20 * RUNS, PIXELS, np.random.default_rng(6))
    counts = binomials(u, n, p)
    labels, radii = radius_claims(counts, n, alpha)
    assert not significantly_above(false_claims(labels, p, radii), alpha)
    claimed = SIGMA * stats.norm.ppf(plain)[np.maximum(counts, n - counts)]
    assert significantly_above(false_claims(labels, p, claimed), alpha)


# -- several nested levels --------------------------------------------------------------------------------------------

def nested(u: np.ndarray, n: int, inside: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """(runs, L, N) counts of levels that contain each other, the largest from the uniforms."""
    counts = [binomials(u, n, np.full(u.shape[1], inside[0]))]
    for larger, p in itertools.pairwise(inside):
        counts.append(rng.binomial(counts[-1], p / larger))
    return np.stack(counts, axis=1)


def level_errors(labels: np.ndarray, inside: tuple[float, ...], tau: float) -> np.ndarray:
    """(runs,) false claims of labels (runs, L, N) at any level."""
    radius = smoothing_radius(SIGMA, tau)
    return np.any([false_claims(labels[:, level], np.full(labels.shape[2], p), radius)
                   for level, p in enumerate(inside)], axis=0)


def band_labels(counts: np.ndarray, n: int, tau: float, alpha: float) -> np.ndarray:
    certifier = ImportanceBand(ImportanceBand.Options(tau=tau, alpha=alpha))
    return np.stack([certifier.certify(counted(run[:, None, :], n, nested=True)).labels[:, 0] for run in counts])


def separate_labels(counts: np.ndarray, n: int, tau: float, alpha: float) -> np.ndarray:
    """The published overlay: a map for each K with its own confidence, laid over each other."""
    labels = np.stack([fixed_labels(counts[:, level], n, tau, alpha) for level in range(counts.shape[1])], axis=1)
    return np.asarray(labels)


@pytest.mark.parametrize("dependence", [independent, identical, blocks, exclusive])
def test_bands_err_at_most_at_alpha_over_all_levels(dependence: Callable[..., np.ndarray]) -> None:
    tau, alpha, n, rng = 0.75, 0.25, 32, np.random.default_rng(7)
    for inside in ((tau - 1e-9, 1 - tau + 1e-9), (0.9, tau - 1e-9, 0.5, 1 - tau + 1e-9), (tau - 1e-9, tau - 2e-9, 0.1)):
        counts = nested(dependence(RUNS // 3, PIXELS, rng), n, inside, rng)
        errors = level_errors(band_labels(counts, n, tau, alpha), inside, tau)
        assert not significantly_above(errors, alpha), (inside, errors.mean())


def test_maps_certified_separately_at_several_levels_are_caught() -> None:
    """Each is right with probability 1 − α, but not all of them together; the band of the same counts is."""
    tau, n, rng = 0.75, 32, np.random.default_rng(8)
    inside = (tau - 1e-9, 1 - tau + 1e-9)
    # An α that the threshold uses up, so that there is no slack in which the second level could hide.
    k = bonferroni_threshold(n, tau, 0.25, PIXELS)
    alpha = PIXELS * float(stats.binom.sf(k - 1, n, tau) + stats.binom.sf(k - 1, n, 1 - tau)) * (1 + 1e-9)
    counts = nested(independent(RUNS, PIXELS, rng), n, inside, rng)
    labels = separate_labels(counts, n, tau, alpha)
    for level, p in enumerate(inside):
        assert not significantly_above(level_errors(labels[:, [level]], (p,), tau), alpha)
    errors = level_errors(labels, inside, tau)
    assert significantly_above(errors, alpha)
    assert 1.5 * alpha < errors.mean() < 2 * alpha
    assert not significantly_above(level_errors(band_labels(counts[:1000], n, tau, alpha), inside, tau), alpha)


# -- the class and the pixels -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("joint", ["pixel", "adaptive"])
@pytest.mark.parametrize("dependence", [independent, identical, exclusive])
def test_class_and_pixels_err_together_at_most_at_alpha(joint: str, dependence: Callable[..., np.ndarray]) -> None:
    """One more column is the class, which depends on the pixels as they do on each other."""
    tau, alpha, runs, rng = 0.75, 0.3, 800, np.random.default_rng(9)
    p, steps = border(tau)[:6], np.diff((0, *LOOKS))
    certifier, wrong = ClassAnd(ClassAnd.Options(joint=joint, tau=tau, alpha=alpha)), []
    columns = np.stack([binomials(dependence(runs, 7, rng), int(m), np.r_[p, p[:1]]) for m in steps])
    for run in range(runs):
        votes = np.stack([np.array([m - v, v]) for v, m in zip(columns[:, run, 6], steps, strict=True)])
        segments = columns[:, run, :6].reshape(-1, 1, 1, 6)
        certificate = certifier.certify(tally_of(segments, LOOKS, votes=votes, sigma=SIGMA))
        pixels = false_claims(certificate.labels[:, 0], p, smoothing_radius(SIGMA, tau))[0]
        wrong.append((bool(pixels), bool(certificate.arrays["class"][2])))
    either = np.array(wrong).any(axis=1)
    assert not significantly_above(either, alpha), either.mean()
    assert np.array(wrong)[:, 1].mean() > 0.3 * alpha / 2


# -- overlap and ranks ------------------------------------------------------------------------------------------------

MARGINS = np.array([1.6, 1.1, 1.0, 0.4, 0.3, 0.25, 0.2, -0.1, -0.5, -0.9, -1.0, -1.4])


def worst_shift(k: int, distance: float) -> np.ndarray:
    """Half-spaces of which the top K look one way and the others the other: the least that is left of the top."""
    order = np.argsort(-MARGINS)
    moved = MARGINS.copy()
    moved[order[:k]] -= distance
    moved[order[k:]] += distance
    return moved


def remaining(k: int, distance: float) -> int:
    before, after = (set(np.argsort(-m, kind="stable")[:k].tolist()) for m in (MARGINS, worst_shift(k, distance)))
    return len(before & after)


@pytest.mark.parametrize("dependence", [independent, identical, exclusive])
@pytest.mark.parametrize("bounds", ["clopper-pearson", "hoeffding"])
def test_overlaps_and_ranks_err_at_most_at_alpha_over_all_k_and_rho(dependence: Callable[..., np.ndarray],
                                                                   bounds: str) -> None:
    """One event covers the whole curve: any K, any ρ, any rank."""
    n, alpha, runs, rng = 60, 0.5, 400, np.random.default_rng(10)
    percent, tops = (8.4, 16.7, 25, 33.4, 41.7, 50), (1, 2, 3, 4, 5, 6)
    overlap = TopKOverlap(TopKOverlap.Options(alpha=alpha, bounds=bounds, k=percent))
    ranks = CertifiedRank(CertifiedRank.Options(alpha=alpha, bounds=bounds, rho=0.02))
    p = stats.norm.cdf(MARGINS)
    counts = binomials(dependence(runs, PIXELS, rng), n, p)
    truth = None
    # The worst that can become of pixel i within ρ: it goes down, and all others go up.
    higher = (MARGINS + 0.02 / SIGMA)[None] > (MARGINS - 0.02 / SIGMA)[:, None]
    worst = 1 + (higher & ~np.eye(PIXELS, dtype=bool)).sum(axis=1)
    errors = []
    for run in counts:
        tally = counted(run.reshape(1, 3, 4), n, sigma=SIGMA)
        certificate = overlap.certify(tally)
        if truth is None:
            truth = np.array([[remaining(k, rho / SIGMA) / k for rho in certificate.arrays["rho"]] for k in tops])
        too_much = (certificate.arrays["overlap"][0] > truth + 1e-9).any()
        too_high = (ranks.certify(tally).arrays["rank"].ravel() < worst).any()
        errors.append(too_much or too_high)
    assert not significantly_above(errors, alpha)


def test_bounds_that_are_not_simultaneous_are_caught() -> None:
    """The same maps with an error of α for each value: some rank or overlap is then too good too often."""
    n, rng, runs = 60, np.random.default_rng(11), 400
    ranks = CertifiedRank(CertifiedRank.Options(alpha=0.97, rho=0.0))
    counts = binomials(independent(runs, PIXELS, rng), n, stats.norm.cdf(MARGINS))
    worst = 1 + (MARGINS[None] > MARGINS[:, None]).sum(axis=1)
    errors = []
    for run in counts:
        mean = run / n
        plain = 1 + (mean[None] > mean[:, None]).sum(axis=1)  # no bounds at all
        errors.append((plain < worst).any())
        assert np.all(ranks.certify(counted(run.reshape(1, 3, 4), n)).arrays["rank"].ravel() >= plain)
    assert significantly_above(errors, 0.5)


# -- quantiles --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("p", "radius"), [(0.5, 0.0), (0.5, 0.5), (0.2, 0.25)])
@pytest.mark.parametrize("dependence", [independent, identical, exclusive])
def test_quantile_intervals_err_at_most_at_alpha(p: float, radius: float,
                                                 dependence: Callable[..., np.ndarray]) -> None:
    """Standard normal scores of a linear attribution: within R the quantile moves by R/σ either way, no less.

    Thresholds at the ends of that movement are where a false claim is made first.
    """
    n, rng = 80, np.random.default_rng(12)
    # An α that the order statistics use up.
    low, high = quantile_indices(n, p, radius, 0.3, PIXELS)
    assert low is not None
    assert high is not None
    down, up = shifted_shares(p, radius)
    alpha = 2 * PIXELS * max(stats.binom.cdf(low - 1, n, down), stats.binom.sf(high - 1, n, up)) * (1 + 1e-9)
    ends = stats.norm.ppf(p) - radius, stats.norm.ppf(p) + radius
    above = [1 - stats.norm.cdf(t) for t in ends]  # the chance of a score above each threshold
    first = binomials(dependence(RUNS, PIXELS, rng), n, np.full(PIXELS, above[0]))
    counts = np.stack([first, rng.binomial(first, above[1] / above[0])])
    identity = {"sparsifier": "certframe/threshold"}
    certifier = Quantile(Quantile.Options(p=p, radius=radius, alpha=alpha))
    # Each run is a map of its own, so that N is right.
    errors = []
    for run in range(RUNS // 3):
        tally = counted(counts[:, run, None, :], n, levels=("0", "1"), identity=identity)
        found = certifier.certify(tally)
        # "Above the lower end everywhere", or "at most the upper end everywhere", are both false by a hair's breadth.
        errors.append(bool((found.labels[0] == 1).any() or (found.labels[1] == 0).any()))
    assert not significantly_above(errors, alpha), np.mean(errors)
    if dependence is exclusive:
        assert np.mean(errors) > 0.6 * alpha


def test_a_stopped_tally_is_not_given_to_a_fixed_test_by_mistake() -> None:
    """The simulation above had to say that 96 copies were all that was planned."""
    tally = tally_at(walks(border(0.75), independent, np.random.default_rng(13)), 0)
    for certifier in (Pixel(), Radius()):
        with pytest.raises(Exception, match="fixed in advance"):
            certifier.certify(tally)
        assert certifier.certify(replace(tally, planned=0)).labels.shape == (RUNS, 1, PIXELS)
