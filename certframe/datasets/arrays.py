"""CIFAR-10 and MNIST from the files their makers distribute, or from a numpy archive. No pickle is ever read."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from certframe import protocols
from certframe.errors import UsageError, one_line
from certframe.protocols import Sample

Split = Literal["test", "train"]

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CIFAR_FILES = {"test": ("test_batch.bin",), "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6))}
_MNIST_FILES = {"test": "t10k", "train": "train"}
_RECORD = 1 + 3 * 32 * 32


class _Arrays:
    """Pictures and labels in memory."""

    _stem: str
    _names: Sequence[str] = ()

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images)

    def name(self, index: int) -> str:
        """The split and the image's number in it, as in ``"test-00007"``."""
        return f"{self._stem}-{range(len(self))[index]:05d}"

    def load(self, index: int) -> Sample:
        """One image, (C,H,W) float32 in [0, 1], with its label."""
        pixels = torch.from_numpy(self._images[index].astype(np.float32) / np.float32(255))
        return Sample(self.name(index), pixels, int(self._labels[index]))


class Cifar10(_Arrays):
    """CIFAR-10: 32×32 colour images of ten classes, as tensors that go to the model as they are.

    Read from what its author distributes, in the binary version: the archive ``cifar-10-binary.tar.gz``, or the folder
    that is in it; or from a numpy archive (.npz) with ``x_test``, ``y_test``, ``x_train`` and ``y_train``, uint8 (N,32,
    32,3) and integers (N,). The Python version of CIFAR-10 consists of pickles, which can run code, and is refused.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    argument: ClassVar[str] = "path"

    class Options(protocols.Options):
        """Options of `cifar10`."""

        path: Path = Field(description="cifar-10-binary.tar.gz, the folder in it, or an .npz file; may be written as "
                                       "'cifar10:PATH'.")
        split: Split = Field("test", description="Which images.")

    def __init__(self, options: Options) -> None:
        """Read the images.

        Raises:
            UsageError: a file is missing or not what it should be; says what to download.
        """
        self.options = options
        self._stem = options.split
        path = options.path.expanduser()
        if path.suffix == ".npz":
            super().__init__(*_from_npz(path, options.split, (32, 32, 3)))
        else:
            records = np.concatenate([_records(name, _cifar_file(path, name)) for name in _CIFAR_FILES[options.split]])
            super().__init__(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """A test batch of three made-up images, for the conformance kit."""
        records = (np.arange(3 * _RECORD) % 251).astype(np.uint8).reshape(3, _RECORD)
        records[:, 0] = (3, 1, 4)
        (directory / "test_batch.bin").write_bytes(records.tobytes())
        return {"path": str(directory)}


class Mnist(_Arrays):
    """MNIST: 28×28 grey handwritten digits, 1 for ink, as tensors that go to the model as they are.

    Read from what its authors distribute: a folder with ``t10k-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte`` (and
    ``train-…``), each as it is or with ``.gz``; or from a numpy archive (.npz) with ``x_test``, ``y_test``, ``x_train``
    and ``y_train``, uint8 (N,28,28) and integers (N,).

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
    """

    argument: ClassVar[str] = "path"

    class Options(protocols.Options):
        """Options of `mnist`."""

        path: Path = Field(description="Folder with the idx files, or an .npz file; may be written as 'mnist:PATH'.")
        split: Split = Field("test", description="Which images.")

    def __init__(self, options: Options) -> None:
        """Read the images.

        Raises:
            UsageError: a file is missing or not what it should be; says what to download.
        """
        self.options = options
        self._stem = options.split
        path = options.path.expanduser()
        if path.suffix == ".npz":
            super().__init__(*_from_npz(path, options.split, (28, 28)))
            return
        prefix = _MNIST_FILES[options.split]
        images, labels = (_idx(path, f"{prefix}-{what}-ubyte", axes) for what, axes in (("images-idx3", 3),
                                                                                       ("labels-idx1", 1)))
        if images.shape[1:] != (28, 28) or len(images) != len(labels):
            raise UsageError(f"'{path}' has {len(labels)} labels for images {images.shape}: download both files again "
                             f"from {_MNIST_URL}")
        super().__init__(images[:, None], labels)

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """Three made-up digits, for the conformance kit."""
        pixels = (np.arange(3 * 28 * 28) % 251).astype(np.uint8)
        (directory / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 3, 28, 28) + pixels.tobytes())
        (directory / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 3) + bytes((3, 1, 4)))
        return {"path": str(directory)}


def _cifar_file(path: Path, name: str) -> bytes:
    """A batch, from the archive or its folder."""
    where = f"download {_CIFAR_URL} and give its path"
    if path.is_file():
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile() and Path(member.name).name == name:
                        stream = archive.extractfile(member)
                        assert stream is not None
                        return stream.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UsageError(f"'{path}' is not an archive of CIFAR-10 ({one_line(error)}): {where}") from error
        raise UsageError(f"the archive '{path}' has no {name}; the Python version is made of pickles, which can run "
                         f"code, and is not read: {where}")
    for folder in (path, path / "cifar-10-batches-bin"):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    if any((folder / name.removesuffix(".bin")).exists() for folder in (path, path / "cifar-10-batches-py")):
        raise UsageError(f"'{path}' holds the Python version of CIFAR-10, made of pickles, which can run code: {where}")
    raise UsageError(f"there is no {name} in '{path}': {where}")


def _records(name: str, content: bytes) -> np.ndarray:
    if not content or len(content) % _RECORD:
        raise UsageError(f"{name} has {len(content)} bytes, not a multiple of {_RECORD}: it is cut off or something "
                         f"else; download {_CIFAR_URL} again")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)


def _idx(folder: Path, name: str, axes: int) -> np.ndarray:
    """An array in MNIST's own format: a header of big-endian int32, then bytes."""
    found = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    where = f"download {_MNIST_URL}{name}.gz into '{folder}'"
    if found is None:
        raise UsageError(f"there is no {name} or {name}.gz in '{folder}': {where}")
    try:
        content = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + axes}i", content)
        data = np.frombuffer(content, dtype=np.uint8, offset=4 * (1 + axes))
        if magic != 2048 + axes or data.size != int(np.prod(shape)):
            raise ValueError(f"its header says {shape} and it holds {data.size} bytes")
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UsageError(f"'{found}' is damaged or something else ({one_line(error)}): {where}") from error
    return data.reshape(shape)


def _from_npz(path: Path, split: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images (N,C,H,W) uint8 and labels (N,) from a numpy archive."""
    if not path.is_file():
        raise UsageError(f"there is no file '{path}': give an .npz with x_{split} and y_{split}, or another path")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            images, labels = archive[f"x_{split}"], archive[f"y_{split}"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"'{path}' cannot be used ({one_line(error)}): it needs x_{split}, uint8 (N, "
                         f"{', '.join(map(str, shape))}), and y_{split}") from error
    labels = labels.reshape(-1)
    good = images.dtype == np.uint8 and images.shape[1:] == shape
    if not good or len(labels) != len(images) or labels.dtype.kind not in "iu":
        raise UsageError(f"'{path}' has {images.dtype} images {images.shape} and {labels.dtype} labels "
                         f"{labels.shape}: it needs uint8 (N, {', '.join(map(str, shape))}) and as many integers")
    pictures = images[:, None] if len(shape) == 2 else images.transpose(0, 3, 1, 2)
    return pictures, labels
