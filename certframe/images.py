"""Pictures as people have them → pictures as models want them.

Everything that can be converted is: orientation in EXIF, palettes, CMYK, transparency (over white), 16 bits. What
cannot is refused in one line before anything is decoded, if possible.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from certframe.errors import UsageError, one_line

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings, in lower case, of the files that are taken for pictures when a folder is searched."""

MAX_PIXELS = 89_478_485
"""The largest picture that is decoded, in pixels: Pillow's own limit, a quarter of a gigabyte as RGB."""

_ORIENTATION = 0x0112
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture of any size from a file; of an animation, the first frame.

    Returns:
        A picture in mode "RGB", or "L" for grey, upright, with nothing left open.

    Raises:
        UsageError: there is no such file, it is empty, broken, no picture, of a kind that cannot be converted, or has
            more than `MAX_PIXELS` pixels; names the file.
    """
    name = f"picture '{path}'"
    with _refusing_in_one_line(name):
        file = Path(path).expanduser()
        if not file.exists():
            raise UsageError(f"{name}: there is no such file; check the path")
        if not file.is_file():
            raise UsageError(f"{name} is not a file: give the path of one picture")
        if file.stat().st_size == 0:
            raise UsageError(f"{name} is an empty file: copy or download it again")
        with Image.open(file) as image:
            return _convert(image, name)


def decode_image(data: bytes, name: str) -> Image.Image:
    """Read a picture from the content of a file, as `read_image` does from a file; `name` is for messages.

    Raises:
        UsageError: it is broken, no picture, or too large.
    """
    with _refusing_in_one_line(f"picture '{name}'"), Image.open(io.BytesIO(data)) as image:
        return _convert(image, f"picture '{name}'")


def as_image(source: object) -> Image.Image | Tensor:
    """Take an image in any of the forms a Python user has it in.

    A picture (PIL), a path or a numpy array becomes a picture that still goes through the model's preprocessing.
    A tensor is taken as it is, in the size and range that the model's `module` takes.

    Args:
        source: a PIL image; a path; an array (H,W), (H,W,1), (H,W,3) or (H,W,4), uint8, uint16, or float in [0, 1]
            (rounded to 8 bits); a tensor (C,H,W), float in [0, 1] or uint8.

    Returns:
        A picture in mode "RGB" or "L", or a float32 tensor (C,H,W) in [0, 1] on the CPU, a copy.

    Raises:
        UsageError: another type, number of dimensions or range, NaN, or an unreadable file.
    """
    if isinstance(source, Image.Image):
        with _refusing_in_one_line("the picture"):
            return _convert(source, "the picture")
    if isinstance(source, str | os.PathLike):
        return read_image(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    raise UsageError(f"an image of type {type(source).__name__} cannot be explained: give a PIL image, a path, "
                     "a numpy array (H,W,C) or a tensor (C,H,W)")


@contextmanager
def _refusing_in_one_line(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a broken file into a `UsageError`, and keep its warnings to ourselves."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UsageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UsageError(f"{name} is not a picture, or of a format that Pillow does not read: save it as PNG or "
                         "JPEG") from error
    except Image.DecompressionBombError as error:
        size = re.search(r"\d+", str(error))
        raise UsageError(_too_large(name, f"{size.group()}" if size else "far too many")) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # Pillow's own complaints have no number.
            raise UsageError(f"{name} cannot be opened: {error.strerror}; check its path and permissions") from error
        raise UsageError(f"{name} cannot be decoded, it may be damaged or cut off: {one_line(error)}; copy it again "
                         "or save it as PNG") from error


def _too_large(name: str, size: str) -> str:
    return f"{name} has {size} pixels, more than the {MAX_PIXELS} that are read: scale it down first"


def _convert(image: Image.Image, name: str) -> Image.Image:
    """Any picture → upright "RGB" or "L", detached from its file."""
    if image.width * image.height > MAX_PIXELS:
        raise UsageError(_too_large(name, f"{image.width}x{image.height}"))
    image.load()
    image = _upright(image)
    if image.mode in ("RGB", "L") and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_bytes(np.asarray(image), image.mode, name))
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image.convert("L" if image.mode == "1" else "RGB")


def _upright(image: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF data says and then without it, so that nobody turns it twice.

    Not `ImageOps.exif_transpose`: that also writes the EXIF data anew, and fails where some other tag is damaged.
    """
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Unreadable EXIF data is no reason to refuse a readable picture.
        turn = None
    upright = image.copy() if turn is None else image.transpose(turn)
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey_bytes(values: np.ndarray, mode: str, name: str) -> np.ndarray:
    """Integer or float grey values → uint8, scaled: Pillow's own conversion clips them at 255."""
    low, high = values.min(), values.max()
    if mode == "F" and low >= 0 and high <= 1:
        return _to_bytes(values)
    if mode != "F" and low >= 0 and high <= 65535:
        return _to_bytes(values.astype(np.uint16))
    raise UsageError(f"{name} has grey values from {low} to {high}: save it with 8 or 16 bits")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 and float in [0, 1] rounded to the nearest of 256 levels."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.rint(values * 255.0).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    name = f"the array of shape {array.shape}"
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3):
        raise UsageError(f"{name} seems to have its channels first: transpose(1, 2, 0) makes a picture of it, "
                         "torch.from_numpy a tensor")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UsageError(f"{name} is not a picture: give one image (H,W) or (H,W,C) with 1, 3 or 4 channels")
    if array.size == 0:
        raise UsageError(f"{name} has no pixels")
    if array.dtype.kind == "f":
        _check_range(name, float(array.min()), float(array.max()))
    elif array.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise UsageError(f"{name} has the type {array.dtype}: give uint8, uint16, or float in [0, 1]")
    pixels = _to_bytes(array)
    return _convert(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)), name)


def _from_tensor(tensor: Tensor) -> Tensor:
    name = f"the tensor of shape {tuple(tensor.shape)}"
    if tensor.ndim != 3:
        hint = {4: ": explain one image at a time, tensor[0] for instance", 2: ": give tensor[None]"}
        raise UsageError(f"{name} is not an image (C,H,W){hint.get(tensor.ndim, '')}")
    if tensor.numel() == 0:
        raise UsageError(f"{name} has no pixels")
    if tensor.dtype == torch.uint8:
        return tensor.cpu().float() / 255
    if not tensor.is_floating_point():
        raise UsageError(f"{name} has the type {tensor.dtype}: give float in [0, 1], or uint8")
    image = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    _check_range(name, float(image.min()), float(image.max()))
    return image


def _check_range(name: str, low: float, high: float) -> None:
    """Refuse values outside [0, 1]; NaN anywhere makes both ends NaN."""
    if low >= 0 and high <= 1:
        return
    if np.isnan(low) or np.isinf([low, high]).any():
        raise UsageError(f"{name} has NaN or infinite values: an image is finite, in [0, 1]")
    if low >= 0 and 2 < high <= 255:
        hint = "divide it by 255"
    elif low < -0.5:
        hint = "give it as it is before normalisation, which the model does itself"
    else:
        hint = "clip it"
    raise UsageError(f"{name} has values from {low:g} to {high:g}, an image has them in [0, 1]: {hint}")
