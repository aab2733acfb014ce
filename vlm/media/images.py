"""Reads still images, in the formats that Pillow decodes safely, as 8-bit RGB."""

from __future__ import annotations

import io
import os
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from vlm.media.files import MediaError, existing_file

MAX_PIXELS = 64_000_000
# Raster formats decoded inside Pillow. Others are excluded on purpose: EPS starts Ghostscript,
# and the rest are not needed enough for their risk.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")

ImageSource = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray


def read_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as 8-bit RGB, upright.

    - EXIF orientation is applied; unreadable EXIF data are ignored.
    - Transparency (alpha channel or a palette's) is composited on white.
    - Palettes, grey, CMYK and YCbCr are converted; colour profiles are not applied.
    - 16-bit grey is scaled from 0..65535 to 0..255. 32-bit integers within 0..65535 likewise and
      floats within 0..1 by 255; outside these ranges both are stretched from (min, max).
    - Of an animation, the first frame is read (`read_video` reads all). Of a PIL image, its current
      frame.

    Args:
        source: a path, the bytes of a file, a binary file object, a PIL image, or an array:
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8, uint16, bool, or float in 0..1.
        max_pixels: larger images are refused before they are decoded. Pillow refuses above
            2 * `PIL.Image.MAX_IMAGE_PIXELS` on its own.

    Raises:
        MediaError: missing, empty, truncated, corrupt, too large, or of an unknown format.
        TypeError: `source` is none of the above.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels={max_pixels}: expected at least 1")
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, max_pixels))
    if isinstance(source, Image.Image):
        return _guard(lambda: _finish(source, max_pixels), "image")
    with open_image(source) as image:
        return _guard(lambda: _finish(image, max_pixels), source_name(source))


def open_image(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Image.Image:
    """The undecoded Pillow image of a file, as a context manager. Raises MediaError."""
    name = source_name(source)
    file: Any = source
    if isinstance(source, bytes):
        if not source:
            raise MediaError(name, "no bytes")
        file = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        file = existing_file(source)
    elif not hasattr(source, "read"):
        raise TypeError(
            f"source is a {type(source).__name__}: expected a path, bytes, a binary file object, "
            "a PIL image or a numpy array"
        )
    return _guard(lambda: Image.open(file, formats=FORMATS), name)


def png(image: Image.Image) -> bytes:
    """The bytes of an image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def source_name(source: object) -> str:
    """The name of a source in error messages."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return f"image ({len(source)} bytes)"
    return str(getattr(source, "name", f"image ({type(source).__name__})"))


def frame_to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """The current frame of an opened image as RGB, without EXIF orientation."""
    return _guard(lambda: _finish(image, max_pixels, upright=False), name)


def _guard(read: Any, name: str) -> Any:
    # Pillow's plugins raise whatever the broken field led to (SyntaxError, struct.error,
    # IndexError, MemoryError, ...), so only Exception covers them.
    try:
        return read()
    except MediaError as error:
        raise MediaError(name, error.reason) from error
    except Image.UnidentifiedImageError as error:
        raise MediaError(name, f"not an image in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise MediaError(name, f"corrupt or truncated image ({reason})") from error


def _finish(image: Image.Image, max_pixels: int, upright: bool = True) -> Image.Image:
    width, height = image.size
    if width * height == 0:
        raise MediaError("image", f"it has no pixels ({width} x {height})")
    if width * height > max_pixels:
        pixels = f"{width} x {height} = {width * height} pixels"
        raise MediaError("image", f"{pixels}, more than max_pixels={max_pixels}")
    image.load()
    return _to_rgb(_upright(image) if upright else image)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a picture with broken EXIF is still readable
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray(_to_bytes(values / 257)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_wide_to_bytes(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "RGB":
        return image.copy()
    return image.convert("RGB")


def _wide_to_bytes(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    top = 65535.0 if image.mode == "I" else 1.0
    if low >= 0 and high <= top:
        return _to_bytes(values * (255 / top))
    return _to_bytes((values - low) * (255 / (high - low)) if high > low else values * 0)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise MediaError("array", f"shape {shape}: expected (H, W), (H, W, 1), (H, W, 3 or 4)")
    if not 0 < shape[0] * shape[1] <= max_pixels:
        raise MediaError("array", f"shape {shape}: expected 1 to {max_pixels} pixels")
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = _to_bytes(array / 257)
    elif np.issubdtype(array.dtype, np.floating):
        # Written so that NaN fails too.
        if not (array.min() >= 0 and array.max() <= 1):
            raise MediaError("array", f"{array.dtype} values outside 0..1 (or NaN)")
        array = _to_bytes(array.astype(np.float64) * 255)
    elif array.dtype != np.uint8:
        raise MediaError("array", f"dtype {array.dtype}: expected uint8, uint16, bool or float")
    return Image.fromarray(np.ascontiguousarray(array))
