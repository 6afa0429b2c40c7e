"""The look of a report: one style sheet and one Jinja2 template."""

STYLE = """
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
svg .bar rect { fill: var(--s0); }
svg .bar.leak rect { fill: var(--leak); }
svg .bar.safe rect { fill: var(--safe); }
svg .bar text { fill: var(--ink); font-weight: 400; }
svg .bar .mark { stroke: var(--ink); stroke-width: 2; }
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

PAGE = """\
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
{% for text, is_number, tone in row %}
{% if loop.first %}
<th scope="row">{{ text }}</th>
{% elif tone %}
<td><span class="{{ tone }}">{{ text }}</span></td>
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
{% if chart.y_label is defined %}
<text x="{{ drawing.left }}" y="6">{{ chart.y_label }}</text>
{% endif %}
{% if drawing.kind == "bars" %}
{% for x, tick in drawing.x_ticks %}
<path class="grid" d="M{{ x }} 4V{{ drawing.bottom }}"/>
{% endfor %}
{% for row in drawing.rows %}
<g class="bar {{ row.tone }}">
<text x="{{ drawing.left }}" y="{{ row.top + 10 }}">{{ row.label }}</text>
<rect x="{{ drawing.left }}" y="{{ row.top + 15 }}" width="{{ [row.width, 1] | max }}"
 height="{{ drawing.bar_height }}"/>
{% if row.mark is not none %}
<path class="mark" d="M{{ row.mark }} {{ row.top + 12 }}v{{ drawing.bar_height + 6 }}"/>
{% endif %}
<text x="{{ drawing.width }}" y="{{ row.top + 25 }}" text-anchor="end">{{ row.value }}</text>
</g>
{% endfor %}
{% endif %}
{% for path in drawing.paths | default([]) %}
<path class="line s{{ loop.index0 }}" d="{{ path }}"/>
{% endfor %}
{% for name, top, end in drawing.labels | default([]) %}
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
