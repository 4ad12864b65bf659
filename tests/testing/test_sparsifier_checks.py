"""Each check of sparsifiers catches the mistake that it is there for."""

from __future__ import annotations

import pytest
import torch

from certframe import protocols
from certframe.testing import run_checks


class Good:
    """Above 0, and above 1."""

    class Options(protocols.Options):
        """None."""

    levels = ("0", "1")
    nested = True
    binary = True

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def sparsify(self, maps):
        return torch.stack([maps > 0, maps > 1], dim=1)


class GoodReal(Good):
    """|h| / max |h|."""

    levels = ("scaled",)
    nested = False
    binary = False

    def sparsify(self, maps):
        size = maps.abs()
        return (size / size.amax((1, 2), keepdim=True).clamp(min=1e-38))[:, None]


@pytest.mark.parametrize("cls", [Good, GoodReal])
def test_a_sound_sparsifier_passes(cls):
    report = run_checks("sparsifier", cls)
    assert report.ok, str(report)
    assert [r.check for r in report.skipped] == ([] if cls is Good else ["nested-claim"])


def but(base=Good, **attributes):
    """A sparsifier like `base`, but …"""
    return type("But", (base,), {"__doc__": "But.", **attributes})


def result(change, base=Good, **attributes):
    """A sparsifier that changes the result of `base`."""
    return but(base, sparsify=lambda self, maps: change(base.sparsify(self, maps)), **attributes)


def sparsify(function, base=Good, **attributes):
    """A sparsifier with another function."""
    return but(base, sparsify=lambda self, maps: function(maps), **attributes)


class Remembering(Good):
    """Compares with the largest score ever seen."""

    largest = 0.0

    def sparsify(self, maps):
        self.largest = max(self.largest, float(maps.max()))
        return torch.stack([maps > self.largest / 2, maps > self.largest], dim=1)


class Keeping(Good):
    """Keeps every result."""

    def __init__(self, options=None):
        super().__init__(options)
        self.kept = []

    def sparsify(self, maps):
        self.kept.append(super().sparsify(maps))
        return self.kept[-1]


def _first_half(maps):
    """The first half of the pixels in the order of their scores; ties in the order of the pixels."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(maps.flatten(1), dtype=torch.bool)
    chosen.scatter_(1, order[:, : maps[0].numel() // 2], True)
    return torch.stack([chosen.view(maps.shape)] * 2, dim=1)


def _clamped(maps):
    return Good().sparsify(maps.clamp_(min=-1))


def _reads_storage(maps):
    flat = torch.as_strided(maps, (maps.numel(),), (1,))
    return Good().sparsify(flat.reshape(maps.shape))


def _weighted(maps):
    return maps.new_tensor([1.0], requires_grad=True) * GoodReal().sparsify(maps)


BROKEN = [
    ("levels-named", but(levels=()), "not a sequence of names"),
    ("levels-named", but(levels=(50, 25)), "not a sequence of names"),
    ("levels-named", but(levels=("5", "5")), "two levels have one name"),
    ("shape", but(levels=("0",)), "not (2, 1, 7, 9)"),
    ("shape", result(lambda r: r.transpose(2, 3)), "(2, 2, 9, 7)"),
    ("shape", sparsify(lambda m: Good().sparsify(m.squeeze())), ""),
    ("values", but(binary=False), "not torch.bool"),
    ("values", but(GoodReal, binary=True), "not torch.float32"),
    ("values", result(lambda r: r.double(), GoodReal), "not torch.float64"),
    ("values", result(lambda r: 2 * r, GoodReal), "outside [0, 1]"),
    ("values", sparsify(lambda m: (m.abs() / m.abs().amax((1, 2), keepdim=True))[:, None], GoodReal), "NaN, for zeros"),
    ("nested-claim", result(lambda r: r.flip(1)), "not in the one before"),
    ("nested-claim", but(nested=None), "not True or False"),
    ("batch-of-one", sparsify(lambda m: torch.stack([m > m.mean(), m > m.max()], 1)), "by itself"),
    ("pixel-order", sparsify(_first_half), "order of the pixels, for ties"),
    ("memory-layout", sparsify(lambda m: Good().sparsify(m.view(-1).view(m.shape))), "view"),
    ("memory-layout", sparsify(_reads_storage), "another memory layout"),
    ("maps-unchanged", sparsify(_clamped), "changed the values of 'maps'"),
    ("pure", Remembering, "second call"),
    ("pure", sparsify(lambda m: Good().sparsify(m + torch.rand_like(m))), "second call"),
    ("pure", sparsify(lambda m: (torch.rand(1), Good().sparsify(m))[1]), "torch's global random state"),
    ("no-graph", sparsify(_weighted, GoodReal), "autograd graph"),
    ("no-graph", sparsify(lambda m: Good().sparsify(-m if m.is_inference() else m)), "under inference mode"),
    ("steady-memory", Keeping, "more tensors behind"),
    ("device", sparsify(lambda m: Good().sparsify(m) & torch.ones(m.shape[-2:], dtype=torch.bool)), "DeviceMixError"),
    ("device", result(lambda r: r.cpu()), "on the cpu"),
    ("device", sparsify(lambda m: Good().sparsify(m if m.device.type == "cpu" else -m)), "differs"),
    ("no-host-sync", sparsify(lambda m: Good().sparsify(m if m.max() > 0 else -m)), "_local_scalar_dense"),
    ("no-host-sync", sparsify(lambda m: Good().sparsify(m.cpu()).to(m.device)), "_to_copy"),
    ("no-host-sync", sparsify(lambda m: (m[m > 0], Good().sparsify(m))[1]), "aten.index"),
    ("no-host-sync", sparsify(lambda m: (m.nonzero(), Good().sparsify(m))[1]), "nonzero"),
]


@pytest.mark.parametrize(("name", "cls", "said"), BROKEN, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BROKEN)])
def test_a_mistake_is_caught(ask, name, cls, said):
    found = ask("sparsifier", name, cls)
    assert found.outcome == "failed", found
    assert said in found.message


def test_every_check_has_a_mistake_that_it_catches(own_checks):
    assert own_checks("sparsifier") == {name for name, _, _ in BROKEN}
