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
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Cell = str | int | float

_SMALL = 1e-3  # numbers below it are shown on their own terms, not with the decimals of their column
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
    """Rows of text and numbers under a header; floats of a column are shown with about four digits.

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
        if not any(math.isfinite(value) for series in self.series for value in series.values if value is not None):
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
    environment.filters.update(blocks=_blocks, cells=_cells, data_uri=_data_uri)
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
    blocks: list[tuple[str, list[str]]] = []
    for block in text.strip("\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        if all(line.startswith("    ") for line in lines):
            code = [line[4:] for line in lines]
            if blocks and blocks[-1][0] == "pre":
                blocks[-1][1].extend(["", *code])
            else:
                blocks.append(("pre", code))
        elif all(line.lstrip().startswith("- ") for line in lines):
            blocks.append(("ul", [line.lstrip()[2:] for line in lines]))
        else:
            blocks.append(("p", [line.strip() for line in lines]))
    return blocks


def _cells(rows: Sequence[Sequence[Cell | None]]) -> list[list[tuple[str, bool]]]:
    """Each cell as (text, is a number); a column shares the decimals that four digits of its floats need."""
    columns = []
    for column in zip(*rows, strict=True):
        short = [f"{cell:.4g}" for cell in column if isinstance(cell, float) and abs(cell) >= _SMALL]
        decimals = min(max((len(text.partition(".")[2]) for text in short if "e" not in text), default=0), 4)
        columns.append([(_text(cell, decimals), not isinstance(cell, str)) for cell in column])
    return [list(row) for row in zip(*columns, strict=True)]


def _text(cell: Cell | None, decimals: int) -> str:
    """One cell as text."""
    if not isinstance(cell, float):
        return "–" if cell is None else str(cell)
    if not math.isfinite(cell):
        return str(cell).replace("inf", "∞")
    short = f"{cell:.4g}"
    return short if "e" in short or abs(cell) < _SMALL else f"{cell:.{decimals}f}"


def _numbers(chart: Chart) -> tuple[list[str], list[list[float | None]]]:
    """The chart as a table."""
    columns = zip_longest(*(series.values for series in chart.series))
    header = [chart.x_label, *(series.name for series in chart.series)]
    return header, [[count, *values] for count, values in enumerate(columns, start=1)]


# Geometry of a chart, in units that are about one CSS pixel on a phone.
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 360, 240, 38, 12, 40
_LINE_HEIGHT, _CHARACTER_WIDTH, _LABEL_GAP = 14, 7.8, 12

Point = tuple[float, float]


def _draw(chart: Chart) -> dict[str, object]:
    """The chart in coordinates, for the template: ticks, a path per series, its name, and the end of its line."""
    names = [textwrap.wrap(series.name, 13, max_lines=3, placeholder="…") or [""] for series in chart.series]
    right = round(_WIDTH - _LABEL_GAP - _CHARACTER_WIDTH * max(len(line) for name in names for line in name))
    bottom = _HEIGHT - _BOTTOM
    finite = [value for series in chart.series for value in series.values if value is not None and math.isfinite(value)]
    low, high = min(finite), max(finite)
    y_ticks = _ticks(0.0 if low >= 0 and (low <= high / 2 or low == high) else low, high)
    low, high = y_ticks[0], y_ticks[-1]
    count = max(len(series.values) for series in chart.series)

    def place(index: int, value: float) -> Point:
        across = (index - 1) / max(count - 1, 1)
        up = (value - low) / (high - low)
        return round(_LEFT + (right - _LEFT) * across, 1), round(bottom - (bottom - _TOP) * up, 1)

    lines = [
        [place(index, value) if value is not None and math.isfinite(value) else None for index, value in series]
        for series in (enumerate(series.values, start=1) for series in chart.series)
    ]
    ends = [next((point for point in reversed(line) if point), None) for line in lines]
    heights = [_LINE_HEIGHT * len(name) for name in names]
    tops = _spread([end[1] if end else bottom for end in ends], heights, bottom)
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": right,
        "bottom": bottom,
        "x_ticks": [(place(int(t), low)[0], f"{t:g}") for t in _ticks(1, count) if t in range(1, count + 1)],
        "y_ticks": [(place(1, tick)[1], f"{tick:g}") for tick in y_ticks],
        "paths": [_path(line) for line in lines],
        "labels": list(zip(names, tops, ends, strict=True)),
    }


def _ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose [low, high], about five of them."""
    # Narrower than this, neighbouring labels would read the same.
    high = max(high, low + (1e-4 * max(abs(low), abs(high)) or 1.0))
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= (high - low) * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _path(line: Sequence[Point | None]) -> str:
    """SVG path data; a gap lifts the pen, and a point alone becomes a dot."""
    commands = []
    before = None
    for point in line:
        if point:
            commands.append(f"{'L' if before else 'M'}{point[0]} {point[1]}" + ("" if before else "h0"))
        before = point
    return "".join(commands)


def _spread(centres: Sequence[float], heights: Sequence[float], bottom: float) -> list[float]:
    """Tops of labels as near to their centres as they get without overlapping or passing the bottom."""
    order = sorted(range(len(centres)), key=lambda index: centres[index])
    tops = [centre - height / 2 for centre, height in zip(centres, heights, strict=True)]
    floor = 0.0
    for index in order:
        tops[index] = max(tops[index], floor)
        floor = tops[index] + heights[index] + 2
    ceiling = bottom
    for index in reversed(order):
        tops[index] = min(tops[index], ceiling - heights[index])
        ceiling = tops[index] - 2
    return [round(top, 1) for top in tops]


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f4f6f8; --ink: #1b2330; --muted: #566170; --rule: #dde2e8; --accent: #1f5fbf;
  --leak: #b3261e; --safe: #17703d; --s0: #1f5fbf; --s1: #b4500a; --s2: #17703d; --s3: #7a3fc0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --panel: #1b2128; --ink: #e7eaee; --muted: #a3adba; --rule: #303943; --accent: #8ab8ff;
    --leak: #ff9086; --safe: #74d39d; --s0: #8ab8ff; --s1: #f7ad6b; --s2: #74d39d; --s3: #c9a8ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 2.5rem 1rem 3rem; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, footer { max-width: 58rem; margin: 0 auto; }
h1 { margin: 0 0 1.25rem; font-size: clamp(1.6rem, 1.2rem + 2vw, 2.2rem); line-height: 1.2; text-wrap: balance; }
h2 { margin: 0 0 .75rem; font-size: 1.25rem; line-height: 1.3; }
p, ul, pre { margin: 0 0 1rem; max-width: 44rem; overflow-wrap: anywhere; }
ul { padding-left: 1.25rem; }
li { margin-bottom: .3rem; }
pre {
  padding: .75rem 1rem; background: var(--panel); border-radius: 6px; white-space: pre-wrap;
  font: .875rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
.verdict { padding: 1rem 1.25rem; background: var(--panel); border-left: 4px solid var(--accent); border-radius: 4px; }
.verdict p { margin: 0 0 .5rem; max-width: none; font-size: 1.1rem; }
.verdict :last-child { margin-bottom: 0; }
section { margin-top: 2.75rem; padding-top: 1.5rem; border-top: 1px solid var(--rule); }
figure { margin: 0; min-width: 0; }
.pictures, .charts { display: grid; gap: 1.5rem 1rem; margin: 0 0 1.5rem; }
.pictures { grid-template-columns: repeat(auto-fill, minmax(8.25rem, 1fr)); }
.pictures img { display: block; width: 100%; height: auto; image-rendering: pixelated; outline: 1px solid var(--rule); }
.pictures figcaption { margin-top: .5rem; font-size: .9rem; line-height: 1.4; overflow-wrap: break-word; }
.note { display: block; color: var(--muted); }
.leak { color: var(--leak); font-weight: 600; }
.safe { color: var(--safe); font-weight: 600; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); column-gap: 2rem; }
.charts figure { max-width: 30rem; }
.charts figcaption { margin-bottom: .25rem; font-weight: 600; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-size: 12px; line-height: 1; }
svg text { fill: var(--muted); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .leader { stroke-width: 1; stroke-dasharray: 1 3; opacity: .8; }
svg .line { fill: none; stroke-width: 2.25; stroke-linejoin: round; stroke-linecap: round;
  stroke-dasharray: var(--dash); }
svg text.name { fill: var(--series); font-weight: 600; }
svg .line, svg .leader { stroke: var(--series); }
.s0 { --series: var(--s0); --dash: none; }
.s1 { --series: var(--s1); --dash: 7 4; }
.s2 { --series: var(--s2); --dash: 1.5 4; }
.s3 { --series: var(--s3); --dash: 9 4 1.5 4; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table, .note { font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; line-height: 1.4; }
th, td { padding: .5rem 1.75rem .5rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 6.5rem; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; }
td.number { white-space: nowrap; }
details { font-size: .9rem; margin-top: .5rem; }
summary { cursor: pointer; color: var(--accent); }
details .scroll { max-height: 20rem; overflow-y: auto; }
footer { margin-top: 2.75rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--muted); }
footer p { font-size: .9rem; }
"""

_PAGE = """\
{% macro text(source) %}
{% for kind, lines in source | blocks %}
{% if kind == "ul" %}
<ul>
{% for line in lines %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% elif kind == "pre" %}
<pre>{{ lines | join("\n") }}</pre>
{% else %}
<p>{{ lines | join("\n") }}</p>
{% endif %}
{% endfor %}
{% endmacro %}
{% macro table(label, header, rows) %}
{% set body = rows | cells %}
<div class="scroll" role="region" aria-label="{{ label }}" tabindex="0">
<table>
<thead><tr>
{% for name in header %}
<th scope="col"{% if body and not loop.first and body[0][loop.index0][1] %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in body %}
<tr>
{% for text, is_number in row %}
{% if loop.first %}
<th scope="row">{{ text }}</th>
{% else %}
<td{% if is_number %} class="number"{% endif %}>{{ text }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<div class="verdict">
{{ text(verdict) }}
</div>
</header>
<main>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{{ text(section.text) }}
{% if section.pictures %}
<div class="pictures">
{% for picture in section.pictures %}
<figure>
<img src="{{ picture.image | data_uri }}" width="{{ picture.image.shape[1] }}" height="{{ picture.image.shape[0] }}"
 alt="Picture: {{ picture.caption }}. {{ picture.note }}">
<figcaption>
<strong>{{ picture.caption }}</strong> <span class="note {{ picture.tone }}">{{ picture.note }}</span>
</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% if section.charts %}
<div class="charts">
{% for chart in section.charts %}
<figure>
<figcaption>{{ chart.title }}</figcaption>
{% set drawing = draw(chart) %}
<svg viewBox="0 0 {{ drawing.width }} {{ drawing.height }}" role="img" aria-label="{{ chart.title }}; numbers below">
{% for y, tick in drawing.y_ticks %}
<path class="grid" d="M{{ drawing.left }} {{ y }}H{{ drawing.right }}"/>
<text x="{{ drawing.left - 6 }}" y="{{ y + 4 }}" text-anchor="end">{{ tick }}</text>
{% endfor %}
{% for x, tick in drawing.x_ticks %}
<text x="{{ x }}" y="{{ drawing.bottom + 17 }}" text-anchor="middle">{{ tick }}</text>
{% endfor %}
<text x="{{ (drawing.left + drawing.right) / 2 }}" y="{{ drawing.bottom + 35 }}" text-anchor="middle">
{{ chart.x_label }}</text>
{% for path in drawing.paths %}
<path class="line s{{ loop.index0 }}" d="{{ path }}"/>
{% endfor %}
{% for name, top, end in drawing.labels %}
<g class="s{{ loop.index0 }}">
{% if end %}
<path class="leader" d="M{{ end | join(" ") }}L{{ drawing.right + 8 }} {{ top + 7 * name | length }}"/>
{% endif %}
{% for line in name %}
<text class="name" x="{{ drawing.right + 11 }}" y="{{ top + 14 * loop.index0 + 11 }}">{{ line }}</text>
{% endfor %}
</g>
{% endfor %}
</svg>
<details>
<summary>Show the numbers</summary>
{% set header, rows = numbers(chart) %}
{{ table(chart.title, header, rows) }}
</details>
</figure>
{% endfor %}
</div>
{% endif %}
{% if section.table %}
{{ table(section.title, section.table.header, section.table.rows) }}
{% endif %}
</section>
{% endfor %}
</main>
{% if footer %}
<footer>
{{ text(footer) }}
</footer>
{% endif %}
</body>
</html>
"""
