"""Pictures of every odd kind: what can be converted is, what cannot is refused in one line."""

from __future__ import annotations

import contextlib
import gc
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from certframe.errors import UsageError
from certframe.images import IMAGE_SUFFIXES, MAX_PIXELS, as_image, read_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(image: Image.Image, name: str = "picture.png", **options: object) -> Path:
        image.save(tmp_path / name, **options)
        return tmp_path / name
    return write


# What can be converted.

@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_announced_format_is_read(save: Callable[..., Path], suffix: str) -> None:
    grey = suffix == ".pgm"
    read = read_image(save(Image.fromarray(RAMP if grey else COLOUR), f"picture{suffix}"))
    assert read.mode == ("L" if grey else "RGB")
    assert read.size == (16, 16)
    np.testing.assert_allclose(np.asarray(read.convert("L"), dtype=int), np.asarray(
        Image.fromarray(RAMP if grey else COLOUR).convert("L"), dtype=int), atol=60)


def test_rgb_and_grey_are_left_alone(save: Callable[..., Path]) -> None:
    np.testing.assert_array_equal(np.asarray(read_image(save(Image.fromarray(COLOUR)))), COLOUR)
    grey = read_image(str(save(Image.fromarray(RAMP))))
    assert grey.mode == "L"
    np.testing.assert_array_equal(np.asarray(grey), RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation_is_applied(save: Callable[..., Path], orientation: int, deep: bool) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # How the stored rows and columns map to the upright picture, from the definition in the EXIF standard.
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
              6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1]}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = stored.astype(np.uint16) * 257 if deep else stored
    read = read_image(save(Image.fromarray(np.ascontiguousarray(pixels)), exif=exif))
    np.testing.assert_array_equal(np.asarray(read), upright)


def test_damaged_exif(save: Callable[..., Path]) -> None:
    lost = read_image(save(Image.fromarray(COLOUR), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage"))
    np.testing.assert_array_equal(np.asarray(lost), COLOUR)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "abc", 6
    # The maker's tag becomes an exposure, which is no text: the orientation is still there to be read.
    damaged = exif.tobytes().replace(b"\x01\x0f", b"\x01\x55")
    turned = read_image(save(Image.fromarray(COLOUR), exif=damaged))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(COLOUR, -1))


def test_nobody_turns_a_picture_twice(save: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    read = read_image(save(Image.fromarray(COLOUR), exif=exif))
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(read)), np.rot90(COLOUR, -1))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(save: Callable[..., Path], suffix: str) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    path = save(Image.fromarray(flat).convert("CMYK"), f"picture.{suffix}")
    read = read_image(path)
    assert read.mode == "RGB"
    np.testing.assert_allclose(np.asarray(read, dtype=int), flat, atol=3)


def test_palette(save: Callable[..., Path]) -> None:
    picture = Image.fromarray(COLOUR).quantize(16)
    np.testing.assert_array_equal(np.asarray(read_image(save(picture))), np.asarray(picture.convert("RGB")))


def test_transparency_is_laid_over_white(save: Callable[..., Path]) -> None:
    pixels = np.array([[(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)]], dtype=np.uint8)
    read = read_image(save(Image.fromarray(pixels, "RGBA")))
    assert read.mode == "RGB"
    np.testing.assert_allclose(np.asarray(read, dtype=int)[0], [(10, 20, 30), (255, 255, 255), (127, 127, 127)], atol=1)


def test_transparent_grey(save: Callable[..., Path]) -> None:
    read = read_image(save(Image.fromarray(np.array([[(50, 255), (50, 0)]], dtype=np.uint8), "LA")))
    np.testing.assert_array_equal(np.asarray(read.convert("L"))[0], [50, 255])


def test_a_transparent_colour(save: Callable[..., Path]) -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([9, 9, 9, 50, 60, 70])
    for picture, name in ((palette, "a.png"), (palette, "a.gif"), (palette.convert("RGB"), "b.png")):
        key: object = 0 if picture.mode == "P" else (9, 9, 9)
        read = np.asarray(read_image(save(picture, name, transparency=key)))
        np.testing.assert_array_equal(read[0], [(255, 255, 255), (50, 60, 70)])


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_sixteen_bit_grey_is_scaled(save: Callable[..., Path], name: str) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    read = read_image(save(Image.fromarray(deep), name))
    assert read.mode == "L"
    np.testing.assert_array_equal(np.asarray(read), RAMP)


def test_sixteen_bits_are_rounded_to_the_nearest(save: Callable[..., Path]) -> None:
    deep = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], dtype=np.uint16)
    expected = [[round(int(v) / 257) for v in deep[0]]]
    assert np.asarray(read_image(save(Image.fromarray(deep)))).tolist() == expected


def test_float_and_bilevel(save: Callable[..., Path]) -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(read_image(save(Image.fromarray(values), "float.tif"))), RAMP)
    read = read_image(save(Image.fromarray(RAMP > 100)))
    assert read.mode == "L"
    np.testing.assert_array_equal(np.asarray(read), np.where(RAMP > 100, 255, 0))


def test_the_first_frame_of_an_animation(save: Callable[..., Path]) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    read = read_image(save(frames[0], "film.gif", save_all=True, append_images=frames[1:]))
    assert read.mode == "RGB"
    assert read.getpixel((3, 3)) == (255, 0, 0)


def test_the_ending_does_not_have_to_fit(save: Callable[..., Path], tmp_path: Path) -> None:
    odd = save(Image.fromarray(COLOUR)).rename(tmp_path / "picture.jpg")
    np.testing.assert_array_equal(np.asarray(read_image(odd)), COLOUR)


# What is refused.

def test_no_such_file(tmp_path: Path) -> None:
    assert "nowhere.png" in (text := refusal(lambda: read_image(tmp_path / "nowhere.png")))
    assert "no such file" in text
    assert "not a file" in refusal(lambda: read_image(tmp_path))
    assert refusal(lambda: read_image("x" * 5000))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    Image.new("L", (2, 2)).save(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("certframe.images.Image.open", refuse)
    assert "Permission denied" in (text := refusal(lambda: read_image(path)))
    assert "secret.png" in text


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert "empty.png" in (text := refusal(lambda: read_image(tmp_path / "empty.png")))
    assert "empty file" in text


@pytest.mark.parametrize("content", [b"just text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM",
                                     b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(100)])
def test_not_a_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fake.png"
    path.write_bytes(content)
    assert "fake.png" in refusal(lambda: read_image(path))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated(save: Callable[..., Path], suffix: str, share: float) -> None:
    path = save(Image.fromarray(NOISE), f"cut{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])
    assert f"cut{suffix}" in refusal(lambda: read_image(path))


def test_corrupt(save: Callable[..., Path]) -> None:
    path = save(Image.fromarray(COLOUR), "corrupt.png")
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    assert "corrupt.png" in refusal(lambda: read_image(path))


def test_every_corruption_is_read_or_refused(save: Callable[..., Path]) -> None:
    rng = np.random.default_rng(1)
    for suffix in (".png", ".jpg", ".gif", ".tif", ".webp", ".bmp"):
        path = save(Image.fromarray(COLOUR), f"odd{suffix}")
        content = path.read_bytes()
        for _ in range(60):
            broken = bytearray(content)
            for place in rng.integers(0, len(broken), 4):
                broken[place] = rng.integers(0, 256)
            path.write_bytes(broken)
            with contextlib.suppress(UsageError):
                assert read_image(path).mode in ("RGB", "L")


def header_only(path: Path, width: int, height: int) -> Path:
    """A PNG that announces a size and has hardly any data: refusing it must not need the data."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


@pytest.mark.parametrize("size", [(10_000, 10_000), (9459, 9460), (30_000, 30_000)])
def test_bombs_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    text = refusal(lambda: read_image(header_only(tmp_path / "bomb.png", *size)))
    assert "bomb.png" in text
    assert str(MAX_PIXELS) in text
    assert "scale it down" in text
    assert f"{size[0]}x{size[1]}" in text or str(size[0] * size[1]) in text


def test_a_bomb_is_refused_whatever_pillow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "30000x30000" in refusal(lambda: read_image(header_only(tmp_path / "bomb.png", 30_000, 30_000)))


def test_grey_values_of_unknown_scale(save: Callable[..., Path]) -> None:
    wide = save(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), "wide.tif")
    assert "70000" in refusal(lambda: read_image(wide))
    hot = save(Image.fromarray(np.array([[0, 2.5]], dtype=np.float32)), "hot.tif")
    assert "2.5" in refusal(lambda: read_image(hot))
    lost = save(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "lost.tif")
    assert "nan" in refusal(lambda: read_image(lost))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")
def test_no_file_stays_open(save: Callable[..., Path], tmp_path: Path) -> None:
    good = save(Image.fromarray(COLOUR), "good.tif")
    cut = tmp_path / "cut.png"
    cut.write_bytes(save(Image.fromarray(NOISE)).read_bytes()[:5000])
    (tmp_path / "text.png").write_text("text")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    kept = [read_image(good) for _ in range(3)]
    for bad in (cut, tmp_path / "text.png", header_only(tmp_path / "bomb.png", 20_000, 20_000)):
        refusal(lambda bad=bad: read_image(bad))
    assert len(os.listdir("/proc/self/fd")) == before
    assert kept[0].size == (16, 16)


# What a Python user has.

def test_a_pil_image_or_a_path(save: Callable[..., Path]) -> None:
    for source in (Image.fromarray(COLOUR), save(Image.fromarray(COLOUR)), str(save(Image.fromarray(COLOUR)))):
        np.testing.assert_array_equal(np.asarray(as_image(source)), COLOUR)
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert np.asarray(as_image(clear)).min() == 255
    assert "10000x10000" in refusal(lambda: as_image(Image.new("L", (10_000, 10_000))))


def test_a_pil_image_that_cannot_be_loaded(save: Callable[..., Path]) -> None:
    path = save(Image.fromarray(NOISE))
    path.write_bytes(path.read_bytes()[:5000])
    with Image.open(path) as image:
        refusal(lambda: as_image(image))


@pytest.mark.parametrize(("array", "mode"), [
    (COLOUR, "RGB"), (RAMP, "L"), (RAMP[..., None], "L"), (COLOUR.astype(np.uint16) * 257, "RGB"),
    (RAMP.astype(np.uint16) * 257, "L"), (COLOUR / 255.0, "RGB"), ((RAMP / 255.0).astype(np.float32), "L"),
    (np.concatenate([COLOUR, np.full((16, 16, 1), 255, np.uint8)], axis=2), "RGB"), (np.asfortranarray(COLOUR), "RGB")])
def test_arrays_become_pictures(array: np.ndarray, mode: str) -> None:
    image = as_image(array)
    assert isinstance(image, Image.Image)
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image), RAMP if mode == "L" else COLOUR)


def test_tensors_are_taken_as_they_are() -> None:
    tensor = torch.rand(3, 5, 4, dtype=torch.float64, requires_grad=True)
    image = as_image(tensor)
    assert isinstance(image, torch.Tensor)
    assert image.dtype == torch.float32
    assert not image.requires_grad
    assert torch.equal(image, tensor.detach().float())
    assert torch.equal(as_image(torch.full((1, 2, 2), 51, dtype=torch.uint8)), torch.full((1, 2, 2), 0.2))


def test_tensors_are_copied() -> None:
    tensor = torch.zeros(1, 2, 2)
    image = as_image(tensor)
    tensor += 1
    assert not image.any()


@pytest.mark.parametrize(("source", "words"), [
    (np.zeros((3, 224, 224), np.uint8), "channels first"),
    (np.zeros((2, 8, 8, 3), np.uint8), "one image"),
    (np.zeros(5, np.uint8), "(5,)"),
    (np.zeros((8, 8, 2), np.uint8), "1, 3 or 4 channels"),
    (np.zeros((0, 8, 3), np.uint8), "no pixels"),
    (np.zeros((8, 8, 3), np.int64), "int64"),
    (np.full((8, 8, 3), 255.0), "divide it by 255"),
    (np.full((8, 8, 3), np.nan), "NaN"),
    (np.where(np.arange(64).reshape(8, 8) == 9, np.nan, 0.5), "NaN"),
    (np.full((8, 8, 3), np.inf), "infinite"),
    (torch.zeros(2, 3, 8, 8), "one image at a time"),
    (torch.zeros(8, 8), "tensor[None]"),
    (torch.zeros(3, 0, 8), "no pixels"),
    (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
    (torch.full((3, 8, 8), 200.0), "divide it by 255"),
    (torch.full((3, 8, 8), -1.8), "before normalisation"),
    (torch.full((3, 8, 8), 1.01), "clip it"),
    (torch.tensor([[[0.5, float("nan")]]]), "NaN"),
    (torch.tensor([[[0.5, float("-inf")]]]), "infinite"),
    ([[0, 1]], "list"), (None, "NoneType")])
def test_what_is_no_image(source: object, words: str) -> None:
    assert words in refusal(lambda: as_image(source))
