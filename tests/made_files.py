"""Files that tests of several folders write: pictures with a disc, PNG chunk by chunk."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DISC = ((np.mgrid[:48, :64] - [[[20]], [[24]]]) ** 2).sum(0) < 150
OTHER = ((np.mgrid[:48, :64] - [[[36]], [[50]]]) ** 2).sum(0) < 60


def photo(seed: int = 0) -> np.ndarray:
    """A picture whose disc is bright, so that its edges tell where it is."""
    noise = np.random.default_rng(seed).integers(0, 20, (48, 64, 3))
    return (60 + 120 * DISC[..., None] + noise).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    """Write pixels as an image, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def png(width: int, height: int, rows: bytes, bits: int = 8, color: int = 0) -> bytes:
    """A PNG of any claim: ``rows`` are compressed as they are, ``color`` 0 is grey and 2 is RGB."""
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
