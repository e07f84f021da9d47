"""Image files of every kind that people have, made here."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo(seed: int = 0, height: int = 12, width: int = 16) -> np.ndarray:
    """Return smooth RGB pixels, so that JPEG keeps them roughly."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(0, 1, (3, 3))]
    return (127.5 + 127.5 * np.stack(waves, axis=2)).round().astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_16(pixels: np.ndarray) -> bytes:
    """Return a PNG of 16 bits a channel, grey or RGB: Pillow writes none of RGB."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def turned_by_exif(pixels: np.ndarray, orientation: int) -> bytes:
    """Return a PNG of these pixels as they lie in the file, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, "PNG", exif=exif.tobytes())


def write_tar(file: Path, members: list[tuple[str, bytes]], **options: Any) -> Path:
    """Write a .tar file of these members, in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def write_photos(root: Path, names: list[str], *, kind: str = "JPEG") -> dict[str, bytes]:
    """Write a different photo under each name; return name → content."""
    contents = {}
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        contents[name] = encoded(photo(seed), kind)
        path.write_bytes(contents[name])
    return contents
