"""The emulated device computes what the CPU does, and refuses what a GPU refuses."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from certframe.noise import CopyRng, GaussianNoise
from certframe.testing import DeviceMixError, EmulationUnavailable, checks_for, emulated_device, fixtures
from certframe.testing import emulated_device as package_level
from certframe.testing.emulated_device import unavailable

emulation = __import__("sys").modules["certframe.testing.emulated_device"]


@pytest.fixture
def device():
    with emulated_device() as emulated:
        yield emulated.device


@pytest.fixture
def image():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_can_be_had_with_the_torch_at_hand():
    assert unavailable() == ""
    assert package_level is emulated_device


# -- values -------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Convolutions, batch norms, a residual sum, pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.GroupNorm(2, 8)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = functional.gelu(x + self.norm(self.depthwise(x)))
        return self.head(self.pool(x).flatten(1))


class Attention(nn.Module):
    """Patches, a class token, a transformer layer, interpolation."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.layer(x)[:, 0])


@pytest.mark.parametrize("build", [Residual, Attention])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_networks_give_the_same_values_and_gradients(build, context, image):
    torch.manual_seed(0)
    module = build().eval()
    leaf = image.clone().requires_grad_()
    logits = module(leaf)
    gradient, = torch.autograd.grad(logits[:, 1].sum(), leaf)
    with emulated_device() as emulated:
        module.to(emulated.device)
        with context():
            found = module(image.to(emulated.device))
            assert found.device == emulated.device
            torch.testing.assert_close(found.cpu(), logits.detach(), rtol=1e-4, atol=1e-5, check_device=True)
        moved = image.to(emulated.device).requires_grad_()
        theirs, = torch.autograd.grad(module(moved)[:, 1].sum(), moved)
        assert theirs.device == emulated.device
        torch.testing.assert_close(theirs.cpu(), gradient, rtol=1e-4, atol=1e-5)
        module.to("cpu")
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in module.parameters())
    assert all(b.device.type == "cpu" for b in module.buffers())
    torch.testing.assert_close(module(image), logits, rtol=0, atol=0)


def test_training_a_parameter_by_backward_fills_its_gradient(device, image):
    layer = nn.Linear(8, 1).to(device)
    layer(image.to(device)).sum().backward()
    assert layer.weight.grad.device == device
    torch.testing.assert_close(layer.weight.grad.cpu()[0], image.sum((0, 1, 2)))


@pytest.mark.parametrize("make", [
    lambda d, x: torch.tensor([1.0, 2.0], device=d), lambda d, x: torch.as_tensor([1.0, 2.0], device=d),
    lambda d, x: torch.asarray([1.0, 2.0], device=d), lambda d, x: x.new_tensor([1.0, 2.0]),
    lambda d, x: x.cpu().new_tensor([1.0, 2.0], device=d), lambda d, x: torch.linspace(1, 2, 2, device=d),
    lambda d, x: torch.full((2,), 1.0, device=d) + torch.arange(2, device=d),
    lambda d, x: torch.ones(2).to(d).cumsum(0),
    lambda d, x: torch.from_numpy(torch.ones(2).numpy()).to(d).cumsum(0), lambda d, x: x.new_ones(2).cumsum(0),
    lambda d, x: torch.empty(2, device=d).fill_(1).cumsum(0), lambda d, x: torch.ones(2, device=str(d)).cumsum(0),
    lambda d, x: torch.eye(2, device=d).sum(0).cumsum(0), lambda d, x: torch.ones_like(x[0, 0, 0, :2]).cumsum(0),
])
def test_tensors_made_on_the_device_hold_their_values(device, image, make):
    found = make(device, image.to(device))
    assert found.device == device
    assert found.cpu().tolist() == [1.0, 2.0]


def test_in_place_operations_views_and_out_change_what_they_should(device, image):
    x = image.to(device)
    y = x.clone()
    assert y.add_(1) is y
    y[0, 0] = 7.0
    y[:, 1].mul_(0)
    expected = image + 1
    expected[0, 0] = 7.0
    expected[:, 1] = 0
    assert torch.equal(y.cpu(), expected)
    out = torch.empty_like(x)
    assert torch.mul(x, 2, out=out) is out
    assert torch.equal(out.cpu(), image * 2)
    flat = x[0, 0, :3].clone()
    flat.t_()
    assert flat.shape == flat.cpu().shape == (8, 3)
    assert torch.equal(flat.cpu(), image[0, 0, :3].T)
    x.data = x.data * 3
    assert torch.equal(x.cpu(), image * 3)


def test_what_a_gpu_allows_is_allowed(device, image):
    x = image.to(device)
    assert x.sum().item() == pytest.approx(float(image.sum()))
    assert torch.equal((x * torch.tensor(2.0)).cpu(), image * 2)  # a CPU scalar
    assert torch.equal(x[torch.tensor([1])].cpu(), image[[1]])  # a CPU index
    assert torch.equal(x[x > 0.5].cpu(), image[image > 0.5])
    assert bool((x >= 0).all())
    assert image.copy_(x * 2) is image
    assert image.device.type == "cpu"
    assert x.to("cpu").numpy().shape == (2, 3, 8, 8)
    assert copy.deepcopy(x).device == device
    with torch.autocast(x.device.type, enabled=False):
        assert x.add(1).device == device


def test_vmap_and_functional_gradients_work(device, image):
    x = image.to(device)
    found = torch.func.vmap(torch.func.grad(lambda t: (t**2).sum()))(x)
    assert torch.allclose(found.cpu(), 2 * image)


def test_the_kernels_noise_and_randomness_come_out_the_same(device):
    noise = GaussianNoise(0, "0" * 64)
    assert torch.allclose(noise.draw(3, 5, (3, 4, 4), device).cpu(), noise.draw(3, 5, (3, 4, 4)), atol=1e-6)
    there, here = CopyRng(0, "a", "b", [1, 2], device), CopyRng(0, "a", "b", [1, 2])
    assert there.normal(3).device == device
    assert torch.equal(there.uniform(5).cpu(), (here.normal(3), here.uniform(5))[1])


# -- mixing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [
    lambda x, c: x + c, lambda x, c: c - x, lambda x, c: x * torch.zeros(8, 8), lambda x, c: torch.cat([x, c]),
    lambda x, c: torch.stack([x, c]), lambda x, c: torch.where(c > 0, x, 0.0), lambda x, c: x.masked_fill(c > 0.5, 0),
    lambda x, c: x.gather(1, torch.zeros(2, 1, 8, 8, dtype=torch.int64)),
    lambda x, c: c[torch.tensor([0]).to(x.device)],
    lambda x, c: x.index_select(0, torch.tensor([0])), lambda x, c: torch.matmul(x, c), lambda x, c: x.add_(c),
    lambda x, c: x.clone().index_put_((torch.tensor([0]),), c[:1]), lambda x, c: torch.add(x, 1, out=c),
    lambda x, c: functional.conv2d(x, torch.zeros(1, 3, 3, 3)), lambda x, c: nn.Linear(8, 2)(x),
    lambda x, c: torch.equal(x, c), lambda x, c: x.scatter(1, torch.zeros(2, 3, 8, 8, dtype=torch.int64), c),
    lambda x, c: x.bernoulli_(c), lambda x, c: torch.rand(2, device=x.device, generator=torch.Generator()),
    lambda x, c: torch.einsum("bchw,bchw->b", x, c), lambda x, c: x.lerp(c, 0.5),
])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_mixing_devices_is_refused(device, image, mix, context):
    x = image.to(device)
    with context(), pytest.raises(DeviceMixError, match="device"):
        mix(x, image.clone())


def test_mixing_in_the_backward_pass_is_refused(device, image):
    x = image.to(device).requires_grad_()
    x.register_hook(lambda gradient: gradient * torch.ones(8, 8))
    with pytest.raises(DeviceMixError):
        (x * 2).sum().backward()


def test_numpy_is_refused_on_the_device(device, image):
    with pytest.raises(RuntimeError, match="numpy"):
        image.to(device).numpy()


def test_operations_between_cpu_tensors_go_on_as_ever(device, image):
    assert torch.equal(image + image, image * 2)
    assert (image @ image).device.type == "cpu"


@pytest.mark.parametrize(("action", "sync"), [
    (lambda x: x.sum().item(), "_local_scalar_dense"), (lambda x: bool(x.max() > 0), "_local_scalar_dense"),
    (lambda x: x.cpu(), "_to_copy"), (lambda x: torch.empty(2, 3, 8, 8).copy_(x), "copy_"),
    (lambda x: x[x > 0.5], "index"), (lambda x: x.nonzero(), "nonzero"), (lambda x: torch.equal(x, x), "equal"),
    (lambda x: x.masked_select(x > 0), "masked_select"), (lambda x: x.unique(), "unique"),
])
def test_waiting_for_the_device_is_noted(image, action, sync):
    with emulated_device() as emulated:
        x = image.to(emulated.device)
        (x * 2).sum(1).relu_().topk(3)
        assert emulated.host_syncs == []
        action(x)
        assert sync in emulated.host_syncs[0]


# -- what it leaves behind, and what it cannot do -----------------------------------------------------------------


def test_nothing_stays_behind():
    autocast = torch.autocast.__init__
    before = len(torch.utils._python_dispatch._get_current_dispatch_mode_stack())
    with contextlib.suppress(KeyError), emulated_device() as emulated:
        kept = torch.ones(2, device=emulated.device)
        raise KeyError("out of the middle")
    assert len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()) == before
    assert torch.autocast.__init__ is autocast
    plain = torch.ones(2, device="meta")
    assert type(plain) is torch.Tensor
    with pytest.raises(NotImplementedError, match="no data"):
        plain.cpu()
    assert type(torch.tensor([1.0], device="meta")) is torch.Tensor
    assert torch.ones(2).add(1).tolist() == [2.0, 2.0]
    assert kept.cpu().tolist() == [1.0, 1.0]
    with emulated_device() as again:
        assert again.host_syncs == []


def test_other_threads_are_not_affected():
    found = []
    with emulated_device():
        thread = threading.Thread(target=lambda: found.append(type(torch.ones(1, device="meta"))))
        thread.start()
        thread.join()
    assert found == [torch.Tensor]


def test_two_at_once_are_refused():
    with emulated_device(), pytest.raises(EmulationUnavailable, match="already open"), emulated_device():
        pass


def test_a_tensor_without_values_is_not_computed_with(device):
    with pytest.raises(EmulationUnavailable, match="without values"):
        torch.ones(2, device=device) + _true_meta_tensor()


def _true_meta_tensor():
    made = []
    thread = threading.Thread(target=lambda: made.append(torch.ones(2, device="meta")))
    thread.start()
    thread.join()
    return made[0]


@pytest.mark.parametrize("broken", ["_refuse_mixing", "_result_device", "_MISSING"])
def test_where_torch_behaves_otherwise_it_says_so_and_the_check_is_skipped(ask, monkeypatch, broken):
    """As in a torch whose interface is missing or has changed: never passed, always skipped with the reason."""
    def raises(*args):
        raise TypeError("this torch is another")

    monkeypatch.setattr(emulation, broken, {"_MISSING": "torch lacks it", "_result_device": raises}.get(
        broken, lambda *args: None))
    unavailable.cache_clear()
    try:
        reason = unavailable()
        with pytest.raises(EmulationUnavailable), emulated_device():
            pass
        results = [ask(kind, "device", cls) for kind, cls in (("model", _Tiny), ("sparsifier", _Sparsifier))]
    finally:
        monkeypatch.undo()
        unavailable.cache_clear()
    said = {"_MISSING": "torch lacks it", "_result_device": "raises TypeError: this torch is another",
            "_refuse_mixing": "mixing devices"}
    assert said[broken] in reason
    assert {(r.outcome, r.message) for r in results} == {("skipped", reason)}
    assert unavailable() == ""


class _Tiny(fixtures.TinyModel):
    class Options(__import__("certframe").Options):
        pass

    def __init__(self, options):
        super().__init__()


class _Sparsifier:
    class Options(__import__("certframe").Options):
        pass

    levels, nested, binary = ("0",), True, True

    def __init__(self, options):
        self.options = options

    def sparsify(self, maps):
        return (maps > 0)[:, None]


def test_every_kind_that_computes_with_tensors_is_checked_on_the_device():
    for kind in ("model", "attributor", "sparsifier", "metric"):
        assert "device" in {c.name for c in checks_for(kind)}


def test_its_errors_can_be_sent_to_another_process():
    assert isinstance(pickle.loads(pickle.dumps(DeviceMixError("both"))), RuntimeError)
