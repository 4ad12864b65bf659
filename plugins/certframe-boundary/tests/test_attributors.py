"""Boundary attributions on networks whose nearest boundary is known, and what they say when there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from certframe_boundary.attributors import Big, BoundaryDeepLift, Bsm
from certframe_boundary.search import SearchOptions, nearest
from certframe_boundary.sharing import Searches
from small_networks import TwoPixels, enumerated
from torch import Tensor, nn

import certframe
from certframe.noise import GaussianNoise, image_hash
from certframe.testing import check_plugin
from certframe.testing.fixtures import rng
from certframe.verification import verify

EFFORT: dict[str, Any] = {"steps": 60, "halvings": 16}


class Counted(nn.Module):
    """A network that counts its forward passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.passes = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x)
        return self.network(x)


def model_of(network: nn.Module, size: tuple[int, int, int]) -> certframe.TorchModel:
    return certframe.TorchModel(network, size)


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    return nn.Sequential(nn.Flatten(), layer)


def maps(attributor: Any, model: certframe.Model, images: Tensor, targets: Tensor) -> Tensor:
    return attributor.attribute(model, images, targets, rng=rng(range(len(images)))).maps


@pytest.fixture(scope="module")
def digits() -> tuple[certframe.Model, Tensor, Tensor]:
    registry = certframe.default_registry()
    model = registry.find("model", "digits").load()()
    data = registry.find("dataset", "digits").load()()
    images = torch.stack([data.load(i).image for i in range(6)])
    return model, images, model.module(images).argmax(1)


def test_on_a_linear_model_the_boundary_is_a_plane() -> None:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3 * 4 * 5, generator=g)
    model = model_of(linear(weight, -weight.sum(1) / 2), (3, 4, 5))
    images = 0.4 + 0.2 * torch.rand(4, 3, 4, 5, generator=g)
    targets = model.module(images).argmax(1)
    saliency = maps(Bsm(Bsm.Options(**EFFORT)), model, images, targets)
    torch.testing.assert_close(saliency, weight[targets].abs().view(4, 3, 4, 5).sum(1))
    normal = (weight[1] - weight[0]) / (weight[1] - weight[0]).norm()
    logits = model.module(images)
    gap = (logits[:, 1] - logits[:, 0]) / (weight[1] - weight[0]).norm()
    way = gap[:, None] * normal  # from the foot of the perpendicular to the image
    expected = (way * weight[targets]).view(4, 3, 4, 5).sum(1)
    for attributor in (Big(Big.Options(points=2, **EFFORT)), BoundaryDeepLift(BoundaryDeepLift.Options(**EFFORT))):
        found = maps(attributor, model, images, targets)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=float(expected.abs().max()) * 2e-3)


def test_on_small_rectifier_networks_the_boundary_is_enumerated() -> None:
    right = total = 0
    for seed in range(30):
        network = TwoPixels(seed)
        model, image = model_of(network, (1, 1, 2)), 0.2 + 0.6 * torch.rand(
            1, 1, 1, 2, generator=torch.Generator().manual_seed(seed))
        label = network(image).argmax(1)
        truth = enumerated(network, image, int(label))
        found = nearest(model.module, image, label, SearchOptions(**EFFORT))
        if truth is None:
            assert not found.success.any(), "the class holds the whole square"
            continue
        total += 1
        if not found.success.all():
            continue
        assert float(found.distance) >= truth.distance - 1e-5, "nothing is nearer than the nearest"
        if float(found.distance) < truth.distance * 1.001 + 1e-5:
            saliency = maps(Bsm(Bsm.Options(**EFFORT)), model, image, label)
            expected = torch.tensor(abs(truth.gradient), dtype=torch.float32).view(1, 1, 2)
            right += bool(torch.allclose(saliency, expected, rtol=1e-4, atol=1e-5))
    assert total >= 20
    assert right >= 0.8 * total, f"{right} of {total}"


def test_big_is_complete(digits: tuple[certframe.Model, Tensor, Tensor]) -> None:
    model, images, targets = digits
    options = SearchOptions(steps=20)
    start = nearest(model.module, images, targets, options).images
    rise = (model.module(images) - model.module(start)).gather(1, targets[:, None])[:, 0]
    assert (rise > 0.5).all()
    for attributor in (Big(Big.Options(points=300)), BoundaryDeepLift(BoundaryDeepLift.Options())):
        total = maps(attributor, model, images, targets).sum((1, 2))
        torch.testing.assert_close(total, rise, rtol=0.01, atol=0)


def test_big_is_the_sum_over_its_path(digits: tuple[certframe.Model, Tensor, Tensor]) -> None:
    model, images, targets = digits
    start = nearest(model.module, images, targets, SearchOptions()).images
    total = torch.zeros_like(images)
    for point in range(7):
        z = (start + (images - start) * point / 6).requires_grad_()
        gradient, = torch.autograd.grad(model.module(z).gather(1, targets[:, None]).sum(), z)
        total += gradient * (0.5 if point in (0, 6) else 1.0) / 6
    for chunk in (1, 4, 32):
        found = Big(Big.Options(points=7, chunk=chunk)).attribute(model, images, targets, rng=rng(range(6)))
        torch.testing.assert_close(found.maps, (total * (images - start)).sum(1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.logits, model.module(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attributor", [Bsm(), Big(), BoundaryDeepLift()], ids=lambda a: a.name)
def test_pixels_that_the_model_treats_alike_are_explained_alike(attributor: Any) -> None:
    """The symmetry axiom: two pixels may be exchanged, and the image has the same value in both.

    f_c − f_other = max(x₁ + x₂, x₃) − 1/2, boundaries x₁ + x₂ = 1/2 and x₃ = 1/2. Nearest to (0.4, 0.4, 0.1), where the
    sum decides, is a point with x₁ = x₂, so both pixels get the same, and the third nothing.
    """
    class Symmetric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b, c = x.flatten(1).unbind(1)
            lead = c + torch.relu(a + b - c) - 0.5
            return torch.stack([lead, torch.zeros_like(lead)], dim=1)

    model, image = model_of(Symmetric(), (1, 1, 3)), torch.tensor([0.4, 0.4, 0.1]).view(1, 1, 1, 3)
    found = maps(attributor, model, image, torch.tensor([0]))[0, 0]
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-5)
    assert float(found[0]) > 0
    assert float(found[2]) == pytest.approx(0, abs=1e-6)


def test_where_two_points_are_nearest_the_map_depends_on_which_is_found() -> None:
    """What the axiom cannot give: min(x₁, x₂) > 1/2 at (0.7, 0.7) has two nearest points that mirror each other."""
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = x.flatten(1).amin(1) - 0.5
            return torch.stack([lead, torch.zeros_like(lead)], dim=1)

    model, image = model_of(Corner(), (1, 1, 2)), torch.tensor([0.7, 0.7]).view(1, 1, 1, 2)
    slightly = image + torch.tensor([0.01, -0.01]).view(1, 1, 1, 2)
    big = Big(Big.Options(**EFFORT))
    one = maps(big, model, slightly, torch.tensor([0]))[0, 0]
    other = maps(big, model, slightly.flip(-1), torch.tensor([0]))[0, 0]
    torch.testing.assert_close(one, other.flip(-1))
    assert float(one[1]) == pytest.approx(0.19, rel=0.01)
    assert float(one[0]) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("make", [Bsm, Big, BoundaryDeepLift])
def test_a_batch_with_classes_of_its_own_is_its_rows(make: Any, digits: tuple[certframe.Model, Tensor, Tensor]) -> None:
    model, images, predicted = digits
    targets = predicted.clone()
    targets[::2] = (targets[::2] + 1) % 10
    attributor = make()
    together = maps(attributor, model, images, targets)
    for row in range(len(images)):
        alone = maps(attributor, model, images[row:row + 1], targets[row:row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-4)


def test_a_class_that_does_not_hold_the_image_is_explained_at_the_image() -> None:
    network = TwoPixels(1)
    model, image = model_of(network, (1, 1, 2)), torch.full((1, 1, 1, 2), 0.5)
    other = network(image).argmin(1)
    assert (maps(Big(), model, image, other) == 0).all(), "x' is x: no pixel is important"
    z = image.clone().requires_grad_()
    gradient, = torch.autograd.grad(network(z)[0, int(other)], z)
    torch.testing.assert_close(maps(Bsm(), model, image, other), gradient.abs().sum(1))


@pytest.mark.parametrize("make", [Bsm, Big, BoundaryDeepLift])
def test_a_search_that_fails_says_so_once(make: Any) -> None:
    weight = torch.ones(2, 4) * torch.tensor([[1.0], [0.99]])
    model = model_of(linear(weight, torch.tensor([10.0, 0.0])), (1, 2, 2))
    images, targets = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    attributor = make()
    with pytest.warns(UserWarning, match=f"{attributor.name}: no point of another class was found for 3 of 3 inputs"):
        found = maps(attributor, model, images, targets)
    assert torch.isfinite(found).all()
    maps(attributor, model, images + 0.001, targets)  # a second warning would be an error


def test_images_at_the_end_of_the_range_stay_in_it(digits: tuple[certframe.Model, Tensor, Tensor]) -> None:
    model, _, _ = digits
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8), (torch.arange(64).view(1, 8, 8) % 2).float()])
    targets = model.module(images).argmax(1)
    for norm in ("l2", "linf"):
        found = nearest(model.module, images, targets, SearchOptions(norm=norm))
        assert found.success.all()
        assert ((found.images >= 0) & (found.images <= 1)).all()


@pytest.mark.parametrize("make", [Bsm, Big, BoundaryDeepLift])
def test_a_constant_model_is_refused_or_has_no_important_pixel(make: Any) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    images, targets = torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(certframe.UsageError, match="no gradient"):
        maps(make(), model_of(Constant(), (1, 2, 2)), images, targets)
    flat = model_of(linear(torch.zeros(2, 4), torch.tensor([1.0, 0.0])), (1, 2, 2))
    with pytest.warns(UserWarning, match="no point of another class"):
        assert (maps(make(), flat, images, targets) == 0).all()


def test_methods_share_a_search(digits: tuple[certframe.Model, Tensor, Tensor]) -> None:
    _, images, targets = digits
    counted = Counted(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
    model = model_of(counted, (1, 8, 8))
    network = model.module
    passes = next(m for m in network.modules() if isinstance(m, Counted))
    targets = network(images).argmax(1)
    maps(Big(Big.Options(points=2)), model, images, targets)
    before = passes.passes
    maps(Bsm(Bsm.Options(chunk=3)), model, images.clone(), targets)
    assert passes.passes - before == len(images), "one pass for the gradient, none for a search"
    before = passes.passes
    maps(Bsm(Bsm.Options(norm="linf")), model, images, targets)
    assert passes.passes - before > 10 * len(images), "another norm is another search"


def test_a_search_is_forgotten_with_the_weights(digits: tuple[certframe.Model, Tensor, Tensor]) -> None:
    _, images, _ = digits
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    model, searches, options = model_of(network, (1, 8, 8)), Searches(), SearchOptions()
    targets = model.module(images).argmax(1)
    first = searches.nearest(model, images, targets, options)
    assert searches.nearest(model, images.clone(), targets, options) is first
    one = searches.nearest(model, images[:1], targets[:1], options)
    assert searches.nearest(model, images, targets, options) is first, "a single image does not drive out the batch"
    assert searches.nearest(model, images[:1], targets[:1], options) is one
    assert searches.nearest(model, images, (targets + 1) % 10, options) is not first
    again = searches.nearest(model, images, targets, options)
    with torch.no_grad():
        next(p for p in model.module.parameters() if p.ndim == 2).mul_(1.5)
    assert searches.nearest(model, images, targets, options) is not again


ANCHORED: dict[str, Any] = {"around": "image", "steps": 8, "halvings": 4}


@pytest.mark.parametrize("make", [Bsm, Big, BoundaryDeepLift])
def test_around_the_image_the_way_goes_with_every_copy(
        make: Any, digits: tuple[certframe.Model, Tensor, Tensor]) -> None:
    model, images, targets = digits
    image, target = images[0], int(targets[0])
    copies = image + 0.1 * torch.randn(5, *image.shape, generator=torch.Generator().manual_seed(0))
    method = make(make.Options(**ANCHORED))
    found = method.anchored(model, image, target)
    way = nearest(model.module, image[None], targets[:1], method.options).images[0] - image
    assert float(way.norm()) > 0
    same = torch.full((5,), target)
    z, ends = copies + way, maps(found, model, copies, same)
    for row in range(5):
        if make is Bsm:
            x = z[row:row + 1].clone().requires_grad_()
            gradient, = torch.autograd.grad(model.module(x)[0, target], x)
            expected = gradient.abs().sum(1)[0]
        elif make is Big:
            points = [z[row] + (copies[row] - z[row]) * i / 19 for i in range(20)]
            x = torch.stack(points).requires_grad_()
            gradient, = torch.autograd.grad(model.module(x)[:, target].sum(), x)
            mean = (gradient[1:] + gradient[:-1]).mean(0) / 2
            expected = (mean * (copies[row] - z[row])).sum(0)
        else:
            rule = certframe.default_registry().find("attributor", "deeplift").load()()
            expected = rule.against(model, copies[row:row + 1], z[row:row + 1], same[:1]).maps[0]
        torch.testing.assert_close(ends[row], expected, rtol=1e-3, atol=1e-4)
    alone = maps(method, model, image[None], targets[:1])
    torch.testing.assert_close(maps(found, model, image[None], targets[:1]), alone, rtol=1e-3, atol=1e-3)
    assert make().anchored(model, image, target) is None, "by default every copy is searched around itself"


@pytest.mark.parametrize("make", [Bsm, Big, BoundaryDeepLift])
def test_around_the_image_they_keep_the_contract(make: Any) -> None:
    check_plugin("attributor", make, options=ANCHORED)


def test_a_run_searches_around_the_image_once_and_its_certificates_say_so(tmp_path: Path) -> None:
    run = certframe.run(tmp_path / "run", model="digits", dataset="digits", device="cpu", limit=2, samples=64,
                        attributor=["big", {"name": "big", **ANCHORED}])
    for _, _, _, explanation in run.explanations():
        anchored = "held" in explanation.tally.identity
        assert anchored == ("image" in str(explanation.tally.identity["attributor_options"]))
        assert ("the way to the nearest boundary point held fixed" in explanation.certificate.statement) == anchored
    checked = verify(run, share=1.0)
    assert checked.ok, checked


def test_an_audit_holds_what_the_certificate_holds(tmp_path: Path) -> None:
    run = certframe.run(tmp_path / "run", model="digits", dataset="digits", device="cpu", limit=1, samples=100,
                        attributor=[{"name": "bsm", **ANCHORED}])
    bench = certframe.Workbench(run)
    _, cell, _, explanation = next(run.explanations())
    image, target = explanation.image, explanation.target
    moved = image + 0.3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    found = bench.tally(cell, moved, target, samples=40, seed=5, anchor=image)
    method = bench.methods[cell].anchored(bench.model, image, target)
    noise = GaussianNoise(5, image_hash(moved)).draw(0, 40, image.shape)
    levels = run.config.sparsifier.build().sparsify(
        maps(method, bench.model, moved + explanation.tally.sigma * noise, torch.full((40,), target)))
    assert (found.counts == levels.sum(0).numpy()).all()
    assert not (found.counts == bench.tally(cell, moved, target, samples=40, seed=5).counts).all()
    held = bench.maps(cell, moved[None], torch.tensor([target]), anchor=image)
    torch.testing.assert_close(held, maps(method, bench.model, moved[None], torch.tensor([target])))
