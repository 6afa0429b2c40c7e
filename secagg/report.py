"""One self-contained HTML file: pictures, tables and line charts that can be mailed, archived and read on a phone.

Rules:
- Nothing is loaded from anywhere and nothing runs: no script, no link, styles and pictures inline, and a content
  security policy in the page says so. Every text is escaped; text never carries markup of its own.
- No figure without words: a picture has a caption and a note, a chart has its numbers in a table beneath.
- Colour only repeats what a text says. Light and dark follow the reader's system.

Text is plain, with three conventions: an empty line starts a paragraph, lines that start with "- " are a list, lines
indented by four spaces are shown as code.
"""

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Cell = str | int | float

_MAX_SERIES = 4  # as many as the palette tells apart, also without colour: each has its own dashes


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
    tone: Literal["leak", "safe", "neutral"] = "neutral"

    def __post_init__(self) -> None:
        _check_grey(self.image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text and numbers under a header; a number is aligned right and shown with four digits.

    Raises:
        ValueError: A row is not as long as the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of {len(row)} cells under a header of {len(self.header)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart: its values at 1, 2, 3, ...; None or a value that is not finite leaves a gap."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over a common count, such as accuracy over rounds.

    Raises:
        ValueError: There are no series or more than four, or none has a finite value.
    """

    title: str
    x_label: str
    series: Sequence[Series]

    def __post_init__(self) -> None:
        if not 1 <= len(self.series) <= _MAX_SERIES:
            raise ValueError(f"a chart has 1 to {_MAX_SERIES} series, not {len(self.series)}")
        if not any(_is_finite(value) for series in self.series for value in series.values):
            raise ValueError(f"chart {self.title!r} has no finite value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, its text, and then pictures, charts and a table, in this order."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    charts: Sequence[Chart] = ()
    table: Table | None = None


def render_report(title: str, verdict: str, sections: Sequence[Section], *, footer: str = "") -> str:
    """The report as one HTML page.

    Args:
        title: Heading of the page.
        verdict: The finding in a sentence or two, shown first.
        sections: The evidence, in order.
        footer: Versions, date, how to reproduce.

    Raises:
        ImportError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as missing:
        raise ImportError("a report needs Jinja2: pip install 'secagg[report]'") from missing
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(blocks=_blocks, cell=_cell, data_uri=_data_uri)
    environment.tests["numeric"] = _is_numeric
    return environment.from_string(_PAGE).render(
        title=title, verdict=verdict, sections=sections, footer=footer, style=_STYLE, draw=_draw, numbers=_numbers
    )


def write_report(path: Path, title: str, verdict: str, sections: Sequence[Section], *, footer: str = "") -> Path:
    """Render and write the page as UTF-8, creating the folder; returns `path`. Arguments as for `render_report`."""
    page = render_report(title, verdict, sections, footer=footer)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


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


def _data_uri(image: NDArray[np.floating]) -> str:
    """The picture as the source of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def _blocks(text: str) -> list[tuple[str, list[str]]]:
    """Split plain text into ("p" | "ul" | "pre", lines)."""
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        if all(line.startswith("    ") for line in lines):
            blocks.append(("pre", [line[4:] for line in lines]))
        elif all(line.lstrip().startswith("- ") for line in lines):
            blocks.append(("ul", [line.lstrip()[2:] for line in lines]))
        else:
            blocks.append(("p", [line.strip() for line in lines]))
    return blocks


def _is_numeric(cell: Cell | None) -> bool:
    """Whether a cell is aligned as a number."""
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _is_finite(value: float | None) -> bool:
    """Whether a value has a place on a chart."""
    return value is not None and math.isfinite(value)


def _cell(cell: Cell | None) -> str:
    """A cell as text."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}".replace("inf", "∞")
    return str(cell)


def _numbers(chart: Chart) -> tuple[list[str], list[list[float | None]]]:
    """The chart as a table."""
    columns = zip_longest(*(series.values for series in chart.series))
    return (
        [chart.x_label, *(series.name for series in chart.series)],
        [[count, *values] for count, values in enumerate(columns, start=1)],
    )


# Geometry of a chart, in units that are one CSS pixel on a phone.
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 360, 236, 38, 12, 40
_LINE, _CHARACTER = 13, 6.4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Label:
    """A series' name at the right edge, with the line that leads to it from the series' last point."""

    lines: list[str]
    top: float
    leader: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """A chart in coordinates."""

    width: int
    height: int
    left: float
    right: float
    bottom: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[str]
    labels: list[_Label]


def _draw(chart: Chart) -> _Drawing:
    """Place ticks, lines and labels."""
    names = [_wrap(series.name) for series in chart.series]
    right = _WIDTH - 14 - _CHARACTER * max(len(line) for lines in names for line in lines)
    bottom = _HEIGHT - _BOTTOM
    points = [
        [(count, value) for count, value in enumerate(series.values, start=1) if value is not None and _is_finite(value)]
        for series in chart.series
    ]
    values = [value for line in points for _, value in line]
    low, high = min(values), max(values)
    y_ticks = _ticks(0.0 if 0 <= low <= high / 2 else low, high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    last = max(len(series.values) for series in chart.series)
    x_ticks = [tick for tick in _ticks(1, last) if 1 <= tick <= last and tick == int(tick)]

    def x(count: float) -> float:
        return _LEFT + (right - _LEFT) * (count - 1) / max(last - 1, 1)

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * (value - low) / (high - low)

    ends = [(x(line[-1][0]), y(line[-1][1])) if line else (right, bottom) for line in points]
    tops = _spread([end for _, end in ends], [_LINE * len(lines) for lines in names], bottom)
    return _Drawing(
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=right,
        bottom=bottom,
        x_ticks=[(x(tick), f"{tick:g}") for tick in x_ticks],
        y_ticks=[(y(tick), f"{tick:g}") for tick in y_ticks],
        paths=[_path(series, x, y) for series in chart.series],
        labels=[
            _Label(lines=lines, top=top, leader=(*end, right + 8, top + _LINE * len(lines) / 2))
            for lines, top, end in zip(names, tops, ends, strict=True)
        ],
    )
