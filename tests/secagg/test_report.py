"""The report: self-contained, escaped, and its pictures decode to what went in."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from secagg.report import Chart, Picture, Section, grey_png, render_report, write_report


def decode_png(data: bytes) -> np.ndarray:
    """A reader for 8-bit grey PNGs with filter 0, by the PNG specification."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, data[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        kind, body = rest[4:8], rest[8 : 8 + length]
        assert struct.unpack(">I", rest[8 + length : 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        rest = rest[12 + length :]
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1, 2)))
def test_pictures_decode(image: np.ndarray) -> None:
    assert np.array_equal(decode_png(grey_png(image)), np.rint(np.clip(image, 0, 1) * 255))


def test_only_pictures_are_drawn() -> None:
    for shape in ((3,), (2, 2, 2), (0, 3)):
        with pytest.raises(ValueError, match="picture"):
            grey_png(np.zeros(shape))


def page() -> str:
    hostile = '"><script>alert(1)</script>&'
    picture = Picture(caption=hostile, image=np.eye(3), note=hostile)
    chart = Chart(label=hostile, axis="rounds", series={hostile: [0.0, 0.5, 2.0], "one": [0.3]}, low=0.0, high=1.0)
    section = Section(
        title=hostile,
        text=hostile,
        pictures=(picture,),
        chart=chart,
        header=(hostile,),
        rows=((hostile,),),
        code=hostile,
    )
    return render_report(hostile, verdict=hostile, sections=[section, Section(title="bare")], footer=hostile)


def test_everything_is_escaped_and_nothing_is_fetched() -> None:
    text = page()
    assert "<script" not in text
    assert "default-src 'none'" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", text))


def test_lines_stay_in_the_box() -> None:
    chart = Chart(label="y", axis="x", series={"a": [-5.0, 0.25, 9.0]}, low=0.0, high=1.0)
    assert chart.lines()[0]["points"] == "0.0,200.0 300.0,150.0 600.0,0.0"
    assert [value for _, value in chart.ticks()] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_writes_utf8(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", "ε", verdict="ok", sections=[])
    assert "ε" in path.read_text(encoding="utf-8")
