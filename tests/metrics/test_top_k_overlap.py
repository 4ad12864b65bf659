from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from linear import explained

from certframe.metrics.top_k_overlap import TopKOverlap, membership, overlap
from certframe.sparsifiers.top_k import top_k

IMAGE = torch.zeros(3, 4, 5)


def test_membership_is_the_mean_over_all_orders_of_equal_scores():
    scores = np.array([2.0, 1.0, 1.0, 3.0, 1.0, 0.0])
    for k in range(7):
        tops = []
        for order in itertools.permutations(range(6)):
            first = sorted(order, key=lambda i: -scores[i])[:k]  # stable: equal scores stay in this order
            tops.append([i in first for i in range(6)])
        assert membership(scores, k) == pytest.approx(np.mean(tops, axis=0))


def test_overlap_without_ties_is_the_size_of_the_intersection():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 4, 5))
    for k in (1, 5, 13, 20):
        first, second = (set(m.ravel().argsort()[-k:]) for m in (a, b))
        assert overlap(a, b, k) == pytest.approx(len(first & second) / k)
    assert overlap(a, a, 7) == 1.0
    assert overlap(a, -a, 10) == 0.0
    assert overlap(a, a * 0, 7) == pytest.approx(7 / 20)  # chance
    assert overlap(a, b, 0) == 0.0


def test_the_overlap_with_the_copies_is_their_mean():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(4, 5, generator=generator)
    noisy = clean + 0.3 * torch.randn(40, 4, 5, generator=generator)
    levels = top_k(noisy.abs(), [50, 25]).numpy()
    found = TopKOverlap().compute(explained(IMAGE, clean, labels=np.zeros((2, 4, 5)), counts=levels.sum(0), samples=40))
    for level, (name, k) in enumerate((("50", 10), ("25", 5))):
        top = clean.flatten().argsort(descending=True)[:k]
        each = [float(copy.flatten()[top].sum()) / k for copy in torch.from_numpy(levels[:, level]).float()]
        assert found[f"top-k-overlap.noisy.{name}"] == pytest.approx(np.mean(each))
        assert found[f"top-k-overlap.smoothed.{name}"] == pytest.approx(
            overlap(clean.numpy(), levels[:, level].sum(0), k))


def test_ranking_and_nothing_marked():
    clean = torch.tensor([[-3.0, 1.0], [2.0, 0.0]])
    counts = np.array([[[50, 0], [0, 0]], [[0, 0], [0, 0]]])
    explanation = explained(torch.zeros(3, 2, 2), clean, labels=np.zeros((2, 2, 2)), counts=counts)
    assert TopKOverlap().compute(explanation) == {
        "top-k-overlap.smoothed.50": 1.0, "top-k-overlap.noisy.50": 1.0,
        "top-k-overlap.smoothed.25": 0.0, "top-k-overlap.noisy.25": 0.0}
    signed = TopKOverlap(TopKOverlap.Options(ranking="signed")).compute(explanation)
    assert signed["top-k-overlap.smoothed.50"] == 0.0
