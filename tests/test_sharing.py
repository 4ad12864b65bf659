"""Methods of a sweep run the network up to a layer once, and get what they would get by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import Residual, settled
from torch import Tensor

from certframe.attributors.ablation import AblationCam
from certframe.attributors.cam import Cam, GradCam, LayerCam
from certframe.attributors.gradient import Gradient, InputXGradient
from certframe.attributors.guided import GuidedBackprop
from certframe.attributors.occlusion import Occlusion
from certframe.attributors.path import IntegratedGradients
from certframe.protocols import Attribution
from certframe.sampling import Cell, Sampler, Subject
from certframe.sharing import SharedModel, gradient_of
from certframe.sparsifiers.top_k import TopK
from certframe.torch_model import TorchModel

SIZE = (3, 16, 16)
IMAGE = torch.rand(SIZE, generator=torch.Generator().manual_seed(5))
SUBJECT = Subject.of("random", IMAGE, 1, "one")
METHODS = (Cam, GradCam, LayerCam, AblationCam, Gradient, InputXGradient, Occlusion, IntegratedGradients)


@pytest.fixture(scope="module")
def model() -> TorchModel:
    found = TorchModel(settled(Residual()), SIZE)
    for layer in ("final", "stage1"):
        found.at(layer)
    return found


@pytest.fixture
def bodies(model: TorchModel) -> Iterator[list[int]]:
    """How many rows went through the first layer, for each of its runs."""
    seen: list[int] = []
    handle = model.network.stem.register_forward_hook(lambda _module, given, _out: seen.append(len(given[0])))
    yield seen
    handle.remove()


def cell(method: Any, layer: str, sigma: float = 0.25) -> Cell:
    name = f"{method.__name__} {layer}"
    return Cell(f"{name} {sigma}", name, method(method.Options(layer=layer)), name, sigma)


def sampler(model: TorchModel, batch: int = 8, **options: Any) -> Sampler:
    return Sampler(model, TopK(), batch_size=batch, **options)


def test_the_body_runs_once_for_a_batch_and_noise_level(model: TorchModel, bodies: list[int]) -> None:
    cells = [cell(method, "final", sigma) for sigma in (0.25, 0.5) for method in METHODS]
    together = sampler(model).sample(SUBJECT, cells, 0, 20)
    # Integrated gradients need the activation of one more picture, at which their path begins.
    assert bodies == [8, 1, 8, 1, 8, 1, 8, 1, 4, 1, 4, 1]
    for one in cells:
        alone = sampler(model).sample(SUBJECT, [one], 0, 20)
        assert alone[one.key].to_bytes() == together[one.key].to_bytes()
    assert (together[cells[0].key].counts != together[cells[len(METHODS)].key].counts).any()


def test_other_layers_parts_of_a_batch_and_watched_calls_are_run_again(model: TorchModel, bodies: list[int]) -> None:
    sampler(model).sample(SUBJECT, [cell(GradCam, "final"), cell(GradCam, "stage1"), cell(LayerCam, "stage1")], 0, 8)
    assert bodies == [8, 8]
    bodies.clear()
    sampler(model).sample(SUBJECT, [cell(GradCam, "final"), cell(GuidedBackprop, "final"), cell(Cam, "final")], 0, 8)
    assert bodies == [8, 8], "guided backpropagation looks for rectifiers on the way"
    bodies.clear()

    class Halved(GradCam):
        def attribute(self, model: Any, inputs: Tensor, targets: Tensor, *, rng: Any) -> Attribution:
            if len(inputs) > 4:
                raise MemoryError
            return super().attribute(model, inputs, targets, rng=rng)

    sampler(model, notify=lambda line: None).sample(
        SUBJECT, [cell(GradCam, "final"), cell(Halved, "final"), cell(Halved, "final", 0.5)], 0, 8)
    assert bodies == [8, 4, 4, 4, 4]
    bodies.clear()
    cells = [cell(GradCam, "final"), cell(Halved, "final"), cell(Cam, "final")]
    sampler(model, notify=lambda line: None).sample(SUBJECT, cells, 0, 8)
    assert bodies == [8, 4, 4, 8], "when memory is short, what was kept for the whole batch is given up"


def test_an_activation_that_was_changed_is_computed_again(model: TorchModel, bodies: list[int]) -> None:
    class Careless(GradCam):
        def attribute(self, model: Any, inputs: Tensor, targets: Tensor, *, rng: Any) -> Attribution:
            with torch.no_grad():
                model.at("final").body(inputs)[0].zero_()
            return super().attribute(model, inputs, targets, rng=rng)

    cells = [cell(method, "final") for method in (Cam, Careless, LayerCam)]
    with_it = sampler(model).sample(SUBJECT, cells, 0, 8)
    assert bodies == [8, 8]
    for one in (cells[0], cells[2]):
        assert sampler(model).sample(SUBJECT, [one], 0, 8)[one.key].to_bytes() == with_it[one.key].to_bytes()


def test_gradients_and_precision_are_respected(model: TorchModel) -> None:
    shared, x, targets = SharedModel(model), IMAGE[None].clone(), torch.ones(1, dtype=torch.int64)
    with shared.batch(x, targets):
        with torch.no_grad():
            first, = shared.at("final").body(x)
        again, = shared.at("final").body(x.detach())
        assert again.data_ptr() == first.data_ptr()
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            rough, = shared.at("final").body(x)
        assert rough.data_ptr() != first.data_ptr()
        leaf = x.detach().requires_grad_()
        assert shared.at("final").body(leaf)[0].requires_grad
        x.mul_(2)
        assert not torch.equal(shared.at("final").body(x)[0], first)
    after, = shared.at("final").body(x)
    assert shared.at("final").body(x)[0].data_ptr() != after.data_ptr(), "nothing is kept between batches"
    assert shared.input_size == SIZE


@pytest.fixture
def backward(model: TorchModel) -> Iterator[list[int]]:
    """How many rows' gradients came back to the first layer, for each time."""
    seen: list[int] = []
    handle = model.network.stem.register_full_backward_hook(lambda _module, given, _out: seen.append(len(given[0])))
    yield seen
    handle.remove()


def test_the_gradient_is_taken_once_for_a_batch_and_noise_level(model: TorchModel, backward: list[int]) -> None:
    methods = (Gradient, InputXGradient, Cam, GradCam, GuidedBackprop, LayerCam)
    cells = [cell(method, "input", sigma) for sigma in (0.25, 0.5) for method in methods]
    together = sampler(model).sample(SUBJECT, cells, 0, 12)
    assert backward == [8, 8] * 2 + [4, 4] * 2, "once for guided backpropagation, and once for all others"
    for one in cells:
        alone = sampler(model).sample(SUBJECT, [one], 0, 12)
        assert alone[one.key].to_bytes() == together[one.key].to_bytes()


@pytest.mark.parametrize("layer", ["input", "stage1"])
def test_another_gradient_is_taken_when_what_it_depends_on_is_another(model: TorchModel, layer: str) -> None:
    x = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(0))
    targets, others = torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    shared, plain = SharedModel(model), model.at(layer)

    def expected(rows: Tensor, classes: Tensor) -> Tensor:
        found = gradient_of(plain, plain.body(rows), classes)[0]
        assert found is not None
        return found

    with shared.batch(x, targets):
        split = shared.at(layer)
        values = split.body(x)
        first, logits = gradient_of(split, values, targets)
        assert first is not None
        again, _ = gradient_of(split, split.body(x), targets)
        assert again is not None
        assert again.data_ptr() == first.data_ptr()
        assert torch.equal(first, expected(x, targets))
        assert torch.equal(logits, model.module(x))
        for rows, classes in ((x, others), (x[1:3], targets[:2]), (x.clone(), targets)):
            found, _ = gradient_of(split, split.body(rows), classes)
            assert found is not None
            assert torch.equal(found, expected(rows, classes))
        doubled, _ = gradient_of(split, [2 * values[0], *values[1:]], targets)
        assert doubled is not None
        assert not torch.equal(doubled, first)
        first.zero_()
        after, _ = gradient_of(split, values, targets)
        assert after is not None
        assert torch.equal(after, expected(x, targets)), "somebody worked on the gradient in place"
        targets.zero_()
        other, _ = gradient_of(split, values, targets)
        assert other is not None
        assert torch.equal(other, expected(x, others))


def test_nothing_is_kept_when_a_batch_is_done(model: TorchModel) -> None:
    kept: list[int] = []

    class Watched(GradCam):
        def attribute(self, model: Any, inputs: Tensor, targets: Tensor, *, rng: Any) -> Attribution:
            kept.append(len(model._kept))
            found = super().attribute(model, inputs, targets, rng=rng)
            kept.append(len(model._kept))
            return found

    one = sampler(model, 4)
    one.sample(SUBJECT, [cell(Watched, "final"), cell(Watched, "stage1")], 0, 8)
    assert kept == [0, 2, 2, 4] * 2, "an activation and a gradient for each layer"
    one.clean(SUBJECT, cell(Watched, "final"))
    assert kept[8:] == [0, 0]
