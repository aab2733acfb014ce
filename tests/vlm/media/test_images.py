"""Images: what is read, paths, and the error for each bad input."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm.media import MediaError, inside, read_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def quadrants() -> Image.Image:
    """8 x 4, each quadrant its own grey level, so that a turn shows."""
    values = np.kron([[10, 80], [160, 240]], np.ones((2, 4))).astype(np.uint8)
    return Image.fromarray(values)


# --- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.asarray(quadrants())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(read_image(data))[:, :, 0], upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored() -> None:
    data = encode(Image.new("RGB", (4, 3), RED), "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert pixels(read_image(data)).shape == (3, 4, 3)


def test_every_kind_of_source(tmp_path: Path) -> None:
    image = Image.new("RGB", (5, 4), RED)
    path = tmp_path / "a.png"
    image.save(path)
    sources: list[Any] = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), image]
    for source in [*sources, np.asarray(image)]:
        assert (pixels(read_image(source)) == RED).all()
    with pytest.raises(TypeError, match="list"):
        read_image([1, 2])  # type: ignore[arg-type]


def test_the_callers_image_is_not_shared() -> None:
    image = Image.new("RGB", (2, 2), RED)
    read_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == RED


def test_palette() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert (pixels(read_image(encode(image, "PNG"))) == RED).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "PA"])
def test_transparency_is_composited_on_white(mode: str) -> None:
    options: dict[str, Any] = {}
    if mode == "RGBA":
        image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    elif mode in ("LA", "PA"):
        image = Image.new(mode, (2, 2), (0, 0))
    else:
        image = Image.new(mode, (2, 2), 0)
        options["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    source = image if mode == "PA" else encode(image, "PNG", **options)
    assert (pixels(read_image(source)) == WHITE).all()


def test_half_transparency() -> None:
    assert (pixels(read_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))) == 127).all()


def test_cmyk() -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(pixels(read_image(data)).astype(int) - RED).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    data = encode(Image.fromarray(values), kind)
    np.testing.assert_array_equal(pixels(read_image(data))[0, :, 0], [0, 1, 128, 255])


def test_16_bit_colour_is_scaled() -> None:
    raw = b"\0" + struct.pack(">6H", 65535, 32896, 0, 257, 65535, 0)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    assert pixels(read_image(data)).tolist() == [[[255, 128, 0], [1, 255, 0]]]


def test_wide_integers_and_floats() -> None:
    def grey(array: np.ndarray) -> list[int]:
        return pixels(read_image(Image.fromarray(array)))[0, :, 0].tolist()

    assert grey(np.array([[0, 65535]], dtype=np.int32)) == [0, 255]
    assert grey(np.array([[-1000, 0, 1000]], dtype=np.int32)) == [0, 128, 255]
    assert grey(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)) == [0, 128, 255]
    assert grey(np.array([[0.0, 5.0, 10.0]], dtype=np.float32)) == [0, 128, 255]
    assert grey(np.array([[7.0, np.nan]], dtype=np.float32)) == [255, 0]


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    for kind in ("GIF", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (pixels(read_image(data)) == RED).all()


def test_arrays() -> None:
    assert pixels(read_image(np.full((2, 3), 65535, np.uint16))).max() == 255
    assert pixels(read_image(np.full((2, 3, 1), 0.5, np.float32))).tolist()[0][0] == [128] * 3
    assert (pixels(read_image(np.ones((2, 3), bool))) == 255).all()
    assert (pixels(read_image(np.zeros((2, 3, 4), np.uint8))) == 255).all()  # transparent black
    for bad, words in [
        (np.zeros((3, 2, 2), np.uint8), "shape"),
        (np.zeros((0, 2, 3), np.uint8), "shape"),
        (np.full((2, 2), 3.0), r"0\.\.1"),
        (np.full((2, 2), np.nan), "NaN"),
        (np.zeros((2, 2), np.int64), "dtype"),
    ]:
        with pytest.raises(MediaError, match=words):
            read_image(bad)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_image(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(encode(Image.fromarray(noise), kind)[:-700])
    with pytest.raises(MediaError, match=path.name):
        read_image(path)


def test_unreadable_images(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.png", tmp_path / "page.jpg"
    empty.touch()
    text.write_text("<html>404</html>")
    for source, words in [
        (empty, r"empty\.png: the file is empty"),
        (text, r"page\.jpg: not an image in a known format"),
        (tmp_path / "none.png", r"none\.png: no such file"),
        (tmp_path, "it is a folder"),
        ("a\0b.png", "null character"),
        ("https://example.org/a.png", "no such file"),
        (b"", "no bytes"),
        (b"abc", r"image \(3 bytes\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "not an image"),
    ]:
        with pytest.raises(MediaError, match=words):
            read_image(source)  # type: ignore[arg-type]


def test_decompression_bomb_is_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    png += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    png += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(MediaError, match="decompression bomb"):
        read_image(png)
    small = encode(Image.new("L", (20, 10)), "PNG")
    with pytest.raises(MediaError, match="20 x 10 = 200 pixels, more than max_pixels=199"):
        read_image(small, max_pixels=199)
    assert read_image(small, max_pixels=200).size == (20, 10)


def test_media_error_survives_a_process_border() -> None:
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "bad")))
    assert str(error) == "cannot read a.mp4: bad"
    assert isinstance(error, ValueError)


# --- paths -------------------------------------------------------------------------------------


def test_inside(tmp_path: Path) -> None:
    root = tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").touch()
    (tmp_path / "secret").touch()
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "sub")
    assert inside(root, "sub/a.png") == (root / "sub" / "a.png").resolve()
    assert inside(root, "in/a.png") == (root / "sub" / "a.png").resolve()
    assert inside(root, "not/there..yet.png").name == "there..yet.png"
    for bad, words in [
        ("", "expected"),
        ("/etc/passwd", "absolute"),
        ("C:\\secret", "absolute"),
        ("\\\\host\\share", "absolute"),
        ("../secret", r"\.\."),
        ("sub/../../secret", r"\.\."),
        ("sub\\..\\..\\secret", r"\.\."),
        ("a\0b", "expected"),
        ("out/secret", "leads out"),
        ("out", "leads out"),
    ]:
        with pytest.raises(ValueError, match=words):
            inside(root, bad)


def test_inside_compares_folders_not_prefixes(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media2").mkdir()
    (tmp_path / "media" / "link").symlink_to(tmp_path / "media2")
    with pytest.raises(ValueError, match="leads out"):
        inside(tmp_path / "media", "link/a.png")


def test_inside_refuses_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="relative='a/x'"):
        inside(tmp_path, "a/x")
