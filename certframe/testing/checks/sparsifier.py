"""What is demanded of a sparsifier."""

from __future__ import annotations

import torch
from torch import Tensor

from certframe.testing.emulated_device import emulated_device
from certframe.testing.kit import NotApplicable, Subject, check, require
from certframe.testing.unchanged import require_steady_memory, unchanged_process, unchanged_tensors

_TOLERANCE = 1e-6
_WHO = "sparsify()"


def _maps(batch: int = 3, height: int = 7, width: int = 9, *, seed: int = 0) -> Tensor:
    """Distinct scores of both signs."""
    return torch.randn(batch, height, width, generator=torch.Generator().manual_seed(seed))


def _tied(batch: int = 3, height: int = 7, width: int = 9, *, seed: int = 0) -> Tensor:
    """Few different scores, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (batch, height, width), generator=generator).to(torch.float32)


def _special_maps() -> dict[str, Tensor]:
    return {
        "distinct scores": _maps(), "ties": _tied(), "negative scores": -_maps().abs() - 0.1,
        "zeros": torch.zeros(2, 7, 9), "a constant": torch.full((2, 7, 9), 0.3),
        "a negative constant": torch.full((2, 7, 9), -0.3),
        "huge scores": _maps() * 1e30, "tiny scores": _maps() * 1e-38, "one pixel": _maps(2, 1, 1),
        "one hot pixel": torch.eye(9)[None, :7] * 5 * (torch.arange(9) == 3),
    }


def _same(a: Tensor, b: Tensor, *, tolerance: float = 0.0) -> bool:
    return a.shape == b.shape and bool(((a.to(torch.float32) - b.to(torch.float32)).abs() <= tolerance).all())


@check("sparsifier")
def levels_named(subject: Subject) -> None:
    """`levels` names each level once; the names label pictures, tables and metrics."""
    levels = list(subject.build().levels)
    require(bool(levels) and all(isinstance(name, str) and name for name in levels),
            f"levels is {levels!r}, not a sequence of names")
    require(len(set(levels)) == len(levels), f"two levels have one name: {levels!r}")


@check("sparsifier")
def shape(subject: Subject) -> None:
    """(B,h,w) becomes (B,L,h,w) with one channel per name in `levels`, for any h and w."""
    sparsifier = subject.build()
    for height, width in ((7, 9), (9, 7), (1, 5), (1, 1)):
        found = sparsifier.sparsify(_maps(2, height, width))
        expected = (2, len(sparsifier.levels), height, width)
        got = tuple(found.shape)
        require(got == expected, f"maps of 2×{height}×{width} give shape {got}, not {expected}")


@check("sparsifier")
def values(subject: Subject) -> None:
    """Levels are bool when `binary`, else float32 in [0, 1], also for constant maps: the proofs assume that range."""
    sparsifier = subject.build()
    for name, maps in _special_maps().items():
        found = sparsifier.sparsify(maps)
        wanted = torch.bool if sparsifier.binary else torch.float32
        require(found.dtype == wanted, f"binary is {sparsifier.binary}, so levels are {wanted}, not {found.dtype}")
        inside = bool(((found >= 0) & (found <= 1)).all())  # False for NaN, too
        require(inside, f"values outside [0, 1], or NaN, for {name}")


@check("sparsifier")
def nested_claim(subject: Subject) -> None:
    """`nested` is true: what is in level l+1 is in level l, in every map, or certificates that use it are wrong."""
    sparsifier = subject.build()
    require(isinstance(sparsifier.nested, bool), f"nested is {sparsifier.nested!r}, not True or False")
    if not sparsifier.nested or len(sparsifier.levels) < 2:
        raise NotApplicable("the sparsifier does not claim nested levels, or has only one")
    for name, maps in _special_maps().items():
        found = sparsifier.sparsify(maps).to(torch.float32)
        inside = bool((found[:, 1:] <= found[:, :-1]).all())
        require(inside, f"nested is True, but a level is not in the one before for {name}")


@check("sparsifier")
def batch_of_one(subject: Subject) -> None:
    """Each map is treated by itself: statistics over a batch would couple the noisy copies, and void the proof."""
    sparsifier, maps = subject.build(), torch.cat([_maps(), 50 * _maps(2, seed=1), _tied(), torch.zeros(1, 7, 9)])
    together = sparsifier.sparsify(maps)
    for row in range(len(maps)):
        same = _same(together[row:row + 1], sparsifier.sparsify(maps[row:row + 1]), tolerance=_TOLERANCE)
        require(same, f"map {row} of a batch gives other levels than by itself")


@check("sparsifier")
def pixel_order(subject: Subject) -> None:
    """Equal scores are treated equally: permuting the pixels, also among ties, only permutes the result."""
    sparsifier = subject.build()
    order = torch.randperm(63, generator=torch.Generator().manual_seed(2))
    for name, maps in (("distinct scores", _maps()), ("ties", _tied()), ("a constant", torch.full((1, 7, 9), 2.0))):
        permuted = maps.flatten(1)[:, order].reshape(maps.shape)
        straight = sparsifier.sparsify(maps).flatten(2)[:, :, order].reshape(len(maps), -1, 7, 9)
        same = _same(sparsifier.sparsify(permuted), straight, tolerance=_TOLERANCE)
        require(same, f"the result depends on the order of the pixels, for {name}")


@check("sparsifier")
def memory_layout(subject: Subject) -> None:
    """Maps need not be contiguous in memory: attributors return views."""
    sparsifier, maps = subject.build(), _maps()
    view = maps.transpose(1, 2).contiguous().transpose(1, 2)
    same = _same(sparsifier.sparsify(view), sparsifier.sparsify(maps))
    require(same, "maps in another memory layout give another result")


@check("sparsifier")
def maps_unchanged(subject: Subject) -> None:
    """The maps are left as they were: they are stored and drawn, too."""
    for build in (_maps, _tied):
        maps = build()
        sparsifier = subject.build()
        with unchanged_tensors(_WHO, maps=maps):
            sparsifier.sparsify(maps)


@check("sparsifier")
def pure(subject: Subject) -> None:
    """The result depends on the maps alone: no randomness, nothing remembered from earlier calls, no global state."""
    sparsifier, maps = subject.build(), _maps()
    first = sparsifier.sparsify(maps).clone()
    sparsifier.sparsify(100 * _maps(seed=1))
    require(_same(first, sparsifier.sparsify(maps)), "a second call on the same maps gives another result")
    require(_same(first, subject.build().sparsify(maps)), "another instance gives another result")
    with unchanged_process(_WHO):
        sparsifier.sparsify(maps)


@check("sparsifier")
def no_graph(subject: Subject) -> None:
    """No autograd graph is attached to the result, and inference mode is no obstacle."""
    sparsifier = subject.build()
    found = sparsifier.sparsify(_maps())
    require(not found.requires_grad, "the result carries an autograd graph")
    with torch.inference_mode():
        require(_same(sparsifier.sparsify(_maps()).clone(), found), "under inference mode the result differs")


@check("sparsifier")
def steady_memory(subject: Subject) -> None:
    """Memory does not grow over calls: a run makes thousands of them on one instance."""
    sparsifier = subject.build()
    require_steady_memory(lambda i: sparsifier.sparsify(_maps(seed=i)), _WHO)


@check("sparsifier")
def device(subject: Subject) -> None:
    """The result is on the device of the maps and the same as on the CPU; no CPU tensor is mixed in."""
    sparsifier = subject.build()
    for maps in (_maps(), _tied(), torch.zeros(2, 7, 9)):
        expected = subject.build().sparsify(maps)
        with emulated_device() as emulated:
            found = sparsifier.sparsify(maps.to(emulated.device))
            require(found.device == emulated.device, f"the result is on the {found.device.type}, the maps elsewhere")
            require(_same(found.cpu(), expected, tolerance=_TOLERANCE), "on another device the result differs")


@check("sparsifier")
def no_host_sync(subject: Subject) -> None:
    """The host never waits for the device: `.item()`, `.cpu()`, ``if tensor`` or a boolean index stalls every batch."""
    sparsifier = subject.build()
    with emulated_device() as emulated:
        maps = _maps().to(emulated.device)
        emulated.host_syncs.clear()
        sparsifier.sparsify(maps)
        syncs = list(dict.fromkeys(emulated.host_syncs))
    require(not syncs, f"sparsify() makes the host wait for the device: {', '.join(syncs)}")
