"""The attack on explanations: known optima, constraints, and what it says when it cannot."""

from __future__ import annotations

import math

import pytest
import torch
from certframe_boundary.explained import Explained, class_of, differentiable, ranked, relaxed
from certframe_boundary.explanation_attack import AttackOptions, attack, mean_map, overlap, top
from certframe_boundary.softplus import Softened, SoftRectifiers
from torch import nn
from torch.nn import functional

import certframe

SHAPE = (1, 4, 4)


def always(z):
    return torch.zeros(len(z), dtype=torch.int64)


@pytest.fixture(scope="module")
def linear():
    """A map that is linear in the image, so that the best change is known."""
    matrix = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))

    def maps(z, owners):
        yield z.flatten(1) @ matrix.T
    return matrix, maps


@pytest.fixture(scope="module")
def digits():
    model = certframe.build("model", "digits")
    data = certframe.build("dataset", "digits")
    images = torch.stack([data.load(i).image for i in range(6)])
    return model, images, class_of(model)(images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_optimum_of_a_linear_map(linear, norm):
    matrix, maps = linear
    x = 0.5 + 0.1 * torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    found = attack(maps, always, x, AttackOptions(norm=norm, rho=0.2, k=30, steps=60))
    chosen = top(mean_map(maps, x, 8), 30).float() @ matrix
    gain = 0.2 * (chosen.norm(dim=1) if norm == "l2" else chosen.abs().sum(1))
    torch.testing.assert_close(found.objective, found.before + gain, rtol=5e-3, atol=1e-3)
    way = -chosen / chosen.norm(dim=1, keepdim=True) if norm == "l2" else -chosen.sign()
    torch.testing.assert_close((found.images - x).flatten(1), 0.2 * way, rtol=0, atol=1e-2)


def test_parts_of_a_map_are_attacked_as_their_mean(linear):
    matrix, maps = linear

    def halves(z, owners):
        for sign in (0.5, 1.5):
            yield sign * z.flatten(1) @ matrix.T
    x = 0.5 + 0.1 * torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    options = AttackOptions(rho=0.2, k=30)
    torch.testing.assert_close(attack(halves, always, x, options).images, attack(maps, always, x, options).images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("rho", [0.05, 0.7])
def test_ball_box_and_class_are_kept_also_at_the_edge_of_the_box(digits, norm, rho):
    model, images, _ = digits
    edge = images.clone()
    edge[0], edge[1] = 0.0, 1.0
    edge[2] = (images[2] > 0.5).float()
    maps = Explained(Softened(model, 20), certframe.build("attributor", "gradient"), class_of(model)(edge))
    found = attack(maps, class_of(model), edge, AttackOptions(norm=norm, rho=rho, steps=6, restarts=2))
    change = (found.images - edge).flatten(1).double()
    size = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
    assert bool((size <= rho * (1 + 1e-5)).all())
    torch.testing.assert_close(size.float(), found.distance)
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1
    torch.testing.assert_close(class_of(model)(found.images), class_of(model)(edge))
    assert bool((found.objective >= found.before)[found.distance > 0].any())


def test_a_boundary_of_the_class_is_not_crossed(linear):
    matrix, maps = linear
    x = torch.full((1, *SHAPE), 0.5)
    wanted = -(top(mean_map(maps, x, 8), 30).float() @ matrix)[0]

    def half_space(z):  # the best direction leads out of the class after a tenth of the way
        return ((z - 0.5).flatten(1) @ wanted > 0.02 * wanted.norm()).long()
    found = attack(maps, half_space, x, AttackOptions(rho=0.2, k=30, steps=20))
    assert int(half_space(found.images)) == 0
    along = float((found.images - x).flatten(1) @ wanted / wanted.norm())
    assert 0.012 < along <= 0.02


def test_rho_0_leaves_the_image_and_its_whole_top(digits):
    model, images, classes = digits
    maps = Explained(model, certframe.build("attributor", "gradient"), classes)
    found = attack(maps, class_of(model), images, AttackOptions(rho=0))
    torch.testing.assert_close(found.images, images, rtol=0, atol=0)
    assert bool(found.found.all())
    assert overlap(mean_map(maps, images, 8), mean_map(maps, found.images, 8), 20).tolist() == [1.0] * len(images)


def test_an_attack_without_a_start_says_so(linear):
    _, maps = linear
    x = torch.full((2, *SHAPE), 0.5)
    tried = []

    def only_here(z):
        tried.append(len(z))
        return (z != 0.5).flatten(1).any(1).long()
    found = attack(maps, only_here, x, AttackOptions(rho=0.2, tries=37))
    assert found.found.tolist() == [False, False]
    torch.testing.assert_close(found.images, x, rtol=0, atol=0)
    assert sum(tried) == 2 + 2 * 37


@pytest.mark.parametrize("variant", ["plain", "smoothed", "sparsified"])
def test_the_overlap_falls_below_that_of_a_random_change(digits, variant):
    model, images, classes = digits
    method = certframe.build("attributor", "gradient")
    maps = Explained(Softened(model, 20), method, classes, variant=variant, sigma=0.05, samples=4, tau=0.2)
    found = attack(maps, class_of(model), images, AttackOptions(rho=0.6, restarts=3))
    assert bool(found.found.all())
    measure = Explained(model, method, classes, variant=variant, sigma=0.05, samples=64, tau=0.2, seed=1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    random = images + 0.6 * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
    before = mean_map(measure, images, 64)
    attacked, other = (overlap(before, mean_map(measure, z, 64), 20) for z in (found.images, random.clamp(0, 1)))
    assert float(attacked.mean()) < float(other.mean()) - 0.05


def test_a_map_without_gradient_is_refused(digits):
    model, images, classes = digits
    maps = Explained(model, certframe.build("attributor", "occlusion"), classes)
    assert not differentiable(maps, images[0])
    with pytest.raises(certframe.UsageError, match="has no gradient with respect to the picture"):
        attack(maps, class_of(model), images, AttackOptions(rho=0.1))


# -- maps -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("tau", "gamma"), [(0.5, 0.25), (0.25, 0.0), (0.2, 0.2)])
def test_relaxed_maps_are_those_of_the_sparsifier(tau, gamma):
    scores = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    wanted = certframe.build("sparsifier", "relaxed", [f"sparsifier.tau={tau}", f"sparsifier.gamma={gamma}"])
    expected = wanted.sparsify(scores)[:, 0].flatten(1)
    torch.testing.assert_close(relaxed(ranked(scores, "magnitude"), tau, gamma), expected)


def test_a_smoothed_map_is_the_mean_over_its_noise(digits):
    model, images, classes = digits
    method = certframe.build("attributor", "gradient")
    maps = Explained(model, method, classes, variant="smoothed", sigma=0.1, samples=5)
    rows = torch.arange(len(images))
    torch.testing.assert_close(mean_map(maps, images, 2), torch.stack(list(maps(images, rows))).mean(0))


# -- softplus ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layer", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), torch.relu,
                                   functional.relu, lambda x: x.relu()])
def test_smooth_rectifiers_are_close_to_rectifiers_and_leave_them_as_they_are(layer):
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    exact = layer(x.clone())
    with SoftRectifiers(10):
        soft = layer(x.clone())
    assert 0 < float((soft - exact).abs().max()) <= math.log(2) / 10 + 1e-9
    torch.testing.assert_close(layer(x.clone()), exact, rtol=0, atol=0)


def test_a_soft_copy_has_second_derivatives_and_the_same_answers(digits):
    model, images, classes = digits
    soft = Softened(model, 50)
    with torch.no_grad():
        assert float((soft.module(images) - model.module(images)).abs().max()) < 1
    method = certframe.build("attributor", "gradient")
    for one, moves in ((model, False), (soft, True)):
        z = images.clone().requires_grad_()
        value = next(Explained(one, method, classes)(z, torch.arange(len(images)))).sum()
        assert (float(torch.autograd.grad(value, z)[0].abs().max()) > 0) == moves


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_senseless_sharpness_is_refused(digits, beta):
    with pytest.raises(certframe.UsageError, match="beta"):
        Softened(digits[0], beta)


@pytest.mark.parametrize(("options", "word"), [({"rho": -1}, "rho"), ({"k": 0}, "k"), ({"steps": 0}, "steps"),
                                               ({"norm": "l7"}, "norm"), ({"rho": float("nan")}, "rho")])
def test_senseless_options_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        AttackOptions(**options)
