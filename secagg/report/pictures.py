"""Grey pictures as PNG data inside the page."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tone = Literal["leak", "safe", "neutral"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A grey picture with its caption.

    Attributes:
        caption: What it is.
        image: float[h, w] in [0, 1], 0 black.
        note: What to make of it, such as its distance to the truth.
        tone: Colour of the note: "leak" for a secret that came out, "safe" for one that did not.

    Raises:
        ValueError: The image is not a finite matrix within [0, 1].
    """

    caption: str
    image: NDArray[np.floating]
    note: str = ""
    tone: Tone = "neutral"

    def __post_init__(self) -> None:
        _check_grey(self.image)


def png(image: NDArray[np.floating]) -> bytes:
    """A grey picture float[h, w] in [0, 1] as an 8-bit PNG file (ISO/IEC 15948: IHDR, IDAT, IEND, no row filters).

    Raises:
        ValueError: The image is not a finite matrix within [0, 1].
    """
    _check_grey(image)
    height, width = image.shape
    pixels = np.rint(np.asarray(image, dtype=np.float64) * 255).astype(np.uint8)
    rows = np.hstack([np.zeros((height, 1), dtype=np.uint8), pixels])  # each row starts with its filter type, 0

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), level=9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _check_grey(image: NDArray[np.floating]) -> None:
    """Refuse what has no grey levels."""
    if image.ndim != 2 or not image.size:
        raise ValueError(f"a picture has shape [h, w], not {list(image.shape)}")
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise ValueError("a picture has finite values in [0, 1]")


def data_uri(image: NDArray[np.floating]) -> str:
    """The picture as the source of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()
