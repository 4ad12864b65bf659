"""CIFAR-10 and MNIST in their makers' formats: tiny files of each, and what is refused."""

from __future__ import annotations

import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from certframe.datasets.arrays import Cifar10, Mnist
from certframe.errors import UsageError


def cifar(path: Path, split: str = "test") -> Cifar10:
    return Cifar10(Cifar10.Options(path=path, split=split))


def mnist(path: Path, split: str = "test") -> Mnist:
    return Mnist(Mnist.Options(path=path, split=split))


def records(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
    found[:, 0] %= 10
    return found


def write_cifar(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    files = {"test_batch.bin": records(4)} | {f"data_batch_{i}.bin": records(2, i) for i in range(1, 6)}
    for name, content in files.items():
        (folder / name).write_bytes(content.tobytes())
    return files


def check_cifar(dataset: Cifar10, expected: np.ndarray, split: str) -> None:
    assert len(dataset) == len(expected)
    for index, record in enumerate(expected):
        sample = dataset.load(index)
        assert sample.name == dataset.name(index) == f"{split}-{index:05d}"
        assert sample.label == record[0]
        # The author's words: 1024 bytes of red, then green, then blue, each row by row.
        row, column = 5, 7
        assert [round(float(v) * 255) for v in sample.image[:, row, column]] == [
            record[1 + channel * 1024 + row * 32 + column] for channel in range(3)]
        assert sample.image.shape == (3, 32, 32)
        assert sample.image.dtype == torch.float32


@pytest.mark.parametrize("split", ["test", "train"])
def test_cifar_from_the_folder_and_from_the_archive(tmp_path: Path, split: str) -> None:
    files = write_cifar(tmp_path / "cifar-10-batches-bin")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    wanted = ["test_batch.bin"] if split == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    expected = np.concatenate([files[name] for name in wanted])
    for path in (tmp_path, tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-10-binary.tar.gz"):
        check_cifar(cifar(path, split), expected, split)


def test_cifar_from_npz(tmp_path: Path) -> None:
    batch = records(3)
    pictures = batch[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "cifar.npz", x_test=pictures, y_test=batch[:, 0].astype(np.int64))
    check_cifar(cifar(tmp_path / "cifar.npz"), batch, "test")
    with pytest.raises(UsageError, match="x_train"):
        cifar(tmp_path / "cifar.npz", "train")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"\x80\x03")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    for path in (folder, tmp_path, tmp_path / "cifar-10-python.tar.gz"):
        with pytest.raises(UsageError, match=r"pickles, which can run code.*cifar-10-binary\.tar\.gz"):
            cifar(path)
    np.savez(tmp_path / "objects.npz", x_test=np.array([{}], dtype=object), y_test=np.zeros(1, int))
    with pytest.raises(UsageError, match="cannot be used"):
        cifar(tmp_path / "objects.npz")


def test_what_is_no_cifar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no test_batch\.bin in .*download https"):
        cifar(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"x" * 3074)
    with pytest.raises(UsageError, match="3074 bytes, not a multiple of 3073"):
        cifar(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match="is not an archive of CIFAR-10"):
        cifar(tmp_path / "a.tar.gz")
    np.savez(tmp_path / "grey.npz", x_test=np.zeros((2, 28, 28), np.uint8), y_test=np.zeros(2, int))
    with pytest.raises(UsageError, match=r"it needs uint8 \(N, 32, 32, 3\)"):
        cifar(tmp_path / "grey.npz")
    with pytest.raises(UsageError, match="there is no file"):
        cifar(tmp_path / "absent.npz")


def write_mnist(folder: Path, images: np.ndarray, labels: np.ndarray, *, prefix: str, zipped: bool) -> None:
    for name, content in ((f"{prefix}-images-idx3-ubyte", struct.pack(">4i", 2051, *images.shape) + images.tobytes()),
                          (f"{prefix}-labels-idx1-ubyte", struct.pack(">2i", 2049, len(labels)) + labels.tobytes())):
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_from_idx_and_npz(tmp_path: Path, zipped: bool) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = generator.integers(0, 10, 5, dtype=np.uint8)
    write_mnist(tmp_path, images[:3], labels[:3], prefix="t10k", zipped=zipped)
    write_mnist(tmp_path, images[3:], labels[3:], prefix="train", zipped=zipped)
    np.savez(tmp_path / "m.npz", x_test=images[:3], y_test=labels[:3], x_train=images[3:], y_train=labels[3:])
    for path in (tmp_path, tmp_path / "m.npz"):
        for split, part in (("test", slice(0, 3)), ("train", slice(3, 5))):
            dataset = mnist(path, split)
            found = [dataset.load(i) for i in range(len(dataset))]
            assert [s.label for s in found] == labels[part].tolist()
            assert np.array_equal(np.stack([(s.image[0] * 255).round().numpy() for s in found]), images[part])
            assert found[0].image.shape == (1, 28, 28)


def test_what_is_no_mnist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz.*download"):
        mnist(tmp_path)
    images = np.zeros((2, 28, 28), np.uint8)
    write_mnist(tmp_path, images, np.zeros(3, np.uint8), prefix="t10k", zipped=False)
    with pytest.raises(UsageError, match="3 labels for images"):
        mnist(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"its header says \[2, 28, 28\] and it holds 1567 bytes"):
        mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="damaged or something else"):
        mnist(tmp_path)


def test_the_real_ones(data_dir: Path) -> None:
    digits, pictures = mnist(data_dir / "mnist.npz"), cifar(data_dir / "cifar10.npz")
    assert (len(digits), digits.load(0).label) == (10000, 7)
    assert len(pictures) == 2000
    assert pictures.load(0).image.shape == (3, 32, 32)
