"""One self-contained HTML page: no script, no network, readable on a phone and in the dark.

Pictures are PNG data URIs, charts are inline SVG, and a content security policy forbids everything else. All text is
escaped.

Example:
    >>> page = render_report("Demo", verdict="All sums were exact.", sections=[Section(title="Facts", text="<b>")])
    >>> "&lt;b&gt;" in page, "<script" in page
    (True, False)
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

try:
    from jinja2 import Environment, StrictUndefined
except ImportError as error:
    raise ImportError("reports need Jinja2: pip install 'secagg[report]'") from error

Image = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A grey picture with its caption.

    Attributes:
        caption: what it is.
        image: float64[h, w] in [0, 1].
        note: a figure that belongs under it.
    """

    caption: str
    image: Image
    note: str = ""

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(grey_png(self.image)).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over a common horizontal axis.

    Attributes:
        label: what the vertical axis shows.
        axis: what the horizontal axis shows.
        series: values by name; each series is spread over the whole width, since lengths differ.
        low: bottom of the vertical axis.
        high: top of the vertical axis.
    """

    label: str
    axis: str
    series: Mapping[str, Sequence[float]]
    low: float
    high: float

    def lines(self) -> list[dict[str, object]]:
        """Name, last value and polyline points of every series, in a box of 600 x 200."""
        drawn: list[dict[str, object]] = []
        for name, values in self.series.items():
            steps = max(len(values) - 1, 1)
            points = [(600 * i / steps, 200 * (1 - self._share(value))) for i, value in enumerate(values)]
            drawn.append({"name": name, "last": values[-1], "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points)})
        return drawn

    def ticks(self) -> list[tuple[float, float]]:
        """Five horizontal grid lines: height in the box, value."""
        return [(200 * (1 - i / 4), self.low + (self.high - self.low) * i / 4) for i in range(5)]

    def _share(self, value: float) -> float:
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of a report; every part but the title may be left out.

    Attributes:
        title: its heading.
        text: a paragraph.
        pictures: a strip of pictures.
        chart: a chart.
        header: the header of a table.
        rows: the rows of that table.
        code: text that keeps its lines.
    """

    title: str
    text: str = ""
    pictures: tuple[Picture, ...] = ()
    chart: Chart | None = None
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    code: str = ""


def render_report(title: str, *, verdict: str, sections: Sequence[Section], footer: str = "") -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_PAGE)
    return template.render(title=title, verdict=verdict, sections=sections, footer=footer)


def write_report(path: Path, title: str, *, verdict: str, sections: Sequence[Section], footer: str = "") -> Path:
    """Writes the page and returns its path."""
    path.write_text(render_report(title, verdict=verdict, sections=sections, footer=footer), encoding="utf-8")
    return path


def grey_png(image: Image) -> bytes:
    """An 8-bit grey PNG of float64[h, w] in [0, 1] (values outside are clipped).

    Raises:
        ValueError: not two-dimensional, or empty.
    """
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"a picture must be [height, width] and not empty, got shape {image.shape}")
    height, width = image.shape
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # filter type 0 for every row
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --text: #1d2733; --soft: #5b6875; --line: #d9dfe5; --page: #f6f8fa; --card: #fff;
  --c0: #0b6bcb; --c1: #b4540a; --c2: #5b6875; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e9ee; --soft: #9aa7b4; --line: #333d47; --page: #12171c;
  --card: #1a2128; --c0: #6cb2ff; --c1: #ffae66; --c2: #9aa7b4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
p { margin: .25rem 0 .75rem; }
.verdict { border-left: .3rem solid var(--c0); padding: .25rem 0 .25rem .9rem; font-size: 1.1rem; margin: 0 0 1.5rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.1rem;
  margin: 0 0 1rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .8rem; margin: .5rem 0; }
figure { margin: 0; }
figure img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border: 1px solid var(--line);
  border-radius: .3rem; display: block; }
figcaption { font-size: .85rem; line-height: 1.3; margin-top: .3rem; }
figcaption span { display: block; color: var(--soft); }
.scroll { overflow-x: auto; margin-top: .8rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
pre { overflow-x: auto; font: .82rem/1.5 ui-monospace, monospace; margin: .25rem 0; }
svg { width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg line { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .88rem; list-style: none; margin: .3rem 0 0;
  padding: 0; }
.key li::before { content: ""; display: inline-block; width: 1.3rem; height: .25rem; border-radius: .2rem;
  margin-right: .45rem; vertical-align: middle; background: var(--c); }
footer { color: var(--soft); font-size: .85rem; }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% if section.text %}
<p>{{ section.text }}</p>
{% endif %}
{% if section.pictures %}
<div class="strip">
{% for picture in section.pictures %}
<figure><img src="{{ picture.source }}" alt="{{ picture.caption }}{% if picture.note %}, {{ picture.note }}{% endif %}">
<figcaption>{{ picture.caption }}<span>{{ picture.note }}</span></figcaption></figure>
{% endfor %}
</div>
{% endif %}
{% if section.chart %}
<svg viewBox="-34 -12 650 244" role="img" aria-label="{{ section.chart.label }}">
{% for height, value in section.chart.ticks() %}
<line x1="0" x2="600" y1="{{ height }}" y2="{{ height }}"></line>
<text x="-8" y="{{ height + 4 }}" text-anchor="end">{{ "%.2g" % value }}</text>
{% endfor %}
<text x="600" y="222" text-anchor="end">{{ section.chart.axis }}</text>
{% for line in section.chart.lines() %}
<polyline class="c{{ loop.index0 % 3 }}" points="{{ line.points }}"></polyline>
{% endfor %}
</svg>
<ul class="key">
{% for line in section.chart.lines() %}
<li style="--c: var(--c{{ loop.index0 % 3 }})">{{ line.name }}: {{ "%.3f" % line.last }} at the end</li>
{% endfor %}
</ul>
{% endif %}
{% if section.header %}
<div class="scroll"><table>
<thead><tr>{% for cell in section.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in section.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
{% if section.code %}
<pre>{{ section.code }}</pre>
{% endif %}
</section>
{% endfor %}
<footer>{{ footer }}</footer>
</main>
</body>
</html>
"""
