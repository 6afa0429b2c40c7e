"""A report loads nothing, runs nothing, cannot be broken by what it shows, and its pictures are the pictures."""

import base64
import itertools
import math
import re
import struct
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.report import (
    Bar,
    Bars,
    Chart,
    Curve,
    Curves,
    Marked,
    Picture,
    Section,
    Series,
    Table,
    _blocks,
    _cells,
    png,
    render_report,
    write_report,
)
from secagg.report.charts import _spread, _ticks, drawing

HOSTILE = "</style></title></pre></svg><script>alert(1)</script><img src=x onerror='alert(2)'>\"'& {{ 7*7 }} {% raw %}"


def decode_png(data: bytes) -> np.ndarray:
    """An independent reader for 8-bit grey without row filters; checks every length and checksum."""
    assert data[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    chunks, rest = [], data[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        kind, body, (crc,) = rest[4:8], rest[8 : 8 + length], struct.unpack(">I", rest[8 + length : 12 + length])
        assert zlib.crc32(kind + body) == crc
        chunks.append((kind, body))
        rest = rest[12 + length :]
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, compression, row_filter, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, colour, compression, row_filter, interlace) == (8, 0, 0, 0, 0)
    raw = np.frombuffer(zlib.decompress(chunks[1][1]), dtype=np.uint8).reshape(height, width + 1)
    assert not raw[:, 0].any()
    return raw[:, 1:]


class Page(HTMLParser):
    """Tags with attributes, text, and the text of each element that matters."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.path: list[str] = []
        self.by_tag: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path"):
            self.path.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.path.pop() == tag, "elements must nest"

    def handle_data(self, data):
        self.text.append(data)
        if self.path:
            self.by_tag.setdefault(self.path[-1], []).append(data.strip())

    def structure(self):
        return [(tag, tuple(attrs)) for tag, attrs in self.tags]

    def attributes(self, tag, name):
        return [attrs[name] for found, attrs in self.tags if found == tag and name in attrs]


def report(word: str) -> str:
    """A page with `word` in every place that takes text."""
    image = np.linspace(0, 1, 6).reshape(2, 3)
    return render_report(
        f"t {word}",
        f"v {word}",
        [
            Section(
                title=f"s {word}",
                text=f"p {word}\n\n- a {word}\n- b\n\n    code {word}\n    more",
                pictures=[
                    Picture(caption=f"c {word}", image=image, note=f"n {word}", tone="leak"),
                    Picture(caption="plain", image=image),
                ],
                charts=[
                    Chart(
                        title=f"chart {word}",
                        x_label=f"x {word}",
                        series=[Series(name="first", values=[0.1, None, 0.9]), Series(name="second", values=[0.5])],
                    )
                ],
                table=Table(header=(f"h {word}", "n"), rows=[(f"r {word}", 0.5), ("q", math.inf)]),
            ),
            Section(title="bare"),
        ],
        footer=f"f {word}",
    )


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_png_round_trip(height, width, seed):
    image = np.random.default_rng(seed).random((height, width))
    decoded = decode_png(png(image))
    assert decoded.shape == (height, width)
    assert np.abs(decoded / 255 - image).max() <= 0.5 / 255 + 1e-12


def test_png_is_exact_on_its_256_levels_and_takes_float32():
    levels = np.arange(256, dtype=np.float32).reshape(16, 16) / 255
    np.testing.assert_array_equal(decode_png(png(levels)), np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(4),
        np.zeros((2, 2, 3)),
        np.zeros((0, 2)),
        np.full((2, 2), np.nan),
        np.full((2, 2), 1.01),
        np.full((2, 2), -0.01),
    ],
)
def test_what_is_no_grey_picture_is_refused(image):
    with pytest.raises(ValueError, match="a picture has"):
        png(image)
    with pytest.raises(ValueError, match="a picture has"):
        Picture(caption="", image=image)


def test_the_page_loads_nothing_and_runs_nothing():
    html = report("word")
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a", "use", "image"}
    assert not re.search(r"https?:|//|url\(|@import|javascript:", re.sub(r"base64,[\w+/=]+", "", html))
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("img", "src"))
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("style", "href", "srcset")], tag
    policies = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_the_style_sheet_is_not_escaped():
    (style,) = re.findall(r"<style>(.*?)</style>", report("word"), re.S)
    assert "&" not in style
    assert '"Segoe UI"' in style
    assert style.count("{") == style.count("}")


def test_hostile_text_stays_text():
    benign, hostile = Page(report("word")), Page(report(HOSTILE))
    assert hostile.structure() == benign.structure()
    text = "".join(hostile.text)
    assert "{{ 7*7 }}" in text
    assert "49" not in "".join(part for part in hostile.text if "7*7" in part)
    for place in ("t ", "v ", "s ", "p ", "a ", "code ", "c ", "n ", "chart ", "x ", "h ", "r ", "f "):
        assert place + HOSTILE in text
    assert any(f"c {HOSTILE}. n {HOSTILE}" in alt for alt in hostile.attributes("img", "alt"))


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=40))
def test_any_text_keeps_the_structure(word):
    assert Page(report(word + "|")).structure() == Page(report("word|")).structure()


def test_pictures_are_in_the_page_with_alternatives():
    image = np.random.default_rng(0).random((8, 8))
    page = Page(
        render_report("t", "v", [Section(title="s", pictures=[Picture(caption="c", image=image, note="9 dB")])])
    )
    (source,) = page.attributes("img", "src")
    decoded = decode_png(base64.b64decode(source.removeprefix("data:image/png;base64,")))
    np.testing.assert_array_equal(decoded, np.rint(image * 255))
    assert page.attributes("img", "alt") == ["Picture: c. 9 dB"]
    assert page.attributes("img", "width") == ["8"]


def test_chart_lines_start_and_end_where_the_values_say():
    """Of a line from 0 to 1 over three counts: left and bottom, gap in the middle, right and top."""
    chart = Chart(title="c", x_label="round", series=[Series(name="s", values=[0.0, None, 0.5, 1.0])])
    page = Page(render_report("t", "v", [Section(title="s", charts=[chart])]))
    (line,) = [attrs["d"] for tag, attrs in page.tags if tag == "path" and attrs["class"].startswith("line")]
    numbers = [float(number) for number in re.findall(r"[\d.]+", line.replace("h0", ""))]
    x, y = numbers[0::2], numbers[1::2]
    assert line.count("M") == 2
    assert line.count("L") == 1
    assert x[0] == 38
    assert (x[1] - x[0]) == pytest.approx(2 * (x[2] - x[1]), abs=0.2)
    assert y == [200, 106, 12]
    header, *cells = page.by_tag["th"][:2], page.by_tag["td"]
    assert header == ["round", "s"]
    assert cells == [["0", "–", "0.5", "1.0"]]


@pytest.mark.parametrize(
    "values",
    [[3.0], [2.0, 2.0, 2.0], [0.0, 0.0], [-5.0, 5.0], [math.inf, 1.0, math.nan], [None, 1e-9], [1e12, 3e12]],
)
def test_charts_of_awkward_values_have_finite_coordinates_inside_the_picture(values):
    chart = Chart(title="c", x_label="x", series=[Series(name="n", values=values), Series(name="none", values=[])])
    page = Page(render_report("t", "v", [Section(title="s", charts=[chart])]))
    for tag, attrs in page.tags:
        if tag == "path":
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", attrs["d"])]
            assert all(0 <= number <= 360 for number in numbers)
            assert "nan" not in attrs["d"]
            assert "inf" not in attrs["d"]


def test_a_long_series_name_leaves_room_for_the_lines():
    chart = Chart(title="c", x_label="x", series=[Series(name="w" * 500, values=[1.0, 2.0])])
    html = render_report("t", "v", [Section(title="s", charts=[chart])])
    (edge,) = {float(number) for number in re.findall(r'class="grid" d="M38 [\d.]+H([\d.]+)"', html)}
    assert 200 < edge < 360


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_enclose_the_range_with_a_handful_of_round_numbers(low, width):
    high = low + width
    ticks = _ticks(low, high)
    assert ticks[0] <= low + 1e-6 * abs(low) + 1e-6 * width
    assert ticks[-1] >= high - 1e-6 * abs(high) - 1e-6 * width
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))


@given(st.lists(st.floats(12, 200), min_size=1, max_size=4), st.data())
def test_labels_never_overlap_and_stay_above_the_bottom(centres, data):
    heights = [data.draw(st.sampled_from([14.0, 28.0, 42.0])) for _ in centres]
    tops = _spread(centres, heights, 200.0)
    spans = sorted((top, top + height) for top, height in zip(tops, heights, strict=True))
    assert spans[-1][1] <= 200.1
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start >= end
    order = np.argsort(centres, kind="stable")
    assert (np.diff(np.array(tops)[order]) > 0).all()


def test_a_label_alone_sits_at_its_line():
    assert _spread([100.0], [14.0], 200.0) == [93.0]


def test_text_blocks():
    text = "one\ntwo\n\n- a\n- b\n\n    x = 1\n      y\n\n    z\n\n\n\n \n\nnot a list\n- c"
    assert _blocks(text) == [
        ("p", ["one", "two"]),
        ("ul", ["a", "b"]),
        ("pre", ["x = 1", "  y", "", "z"]),
        ("p", ["not a list", "- c"]),
    ]
    assert _blocks("") == []


def test_numbers_of_a_column_share_their_decimals():
    rows = [
        ("a", 100.0, 3.412, 7, 1e-6, 0.0),
        ("b", 5.1, 3.98, 12, 0.25, 0.0123456),
        ("c", 18.4, math.inf, None, -math.inf, 1 / 3),
    ]
    texts = [[text for text, _, _ in row] for row in _cells(rows)]
    assert texts == [
        ["a", "100.0", "3.412", "7", "1e-06", "0"],
        ["b", "5.1", "3.980", "12", "0.25", "0.0123"],
        ["c", "18.4", "∞", "–", "-∞", "0.3333"],
    ]
    assert [[is_number for _, is_number, _ in row] for row in _cells(rows)] == [[False, *[True] * 5]] * 3


def test_an_empty_table_is_only_a_header():
    page = Page(render_report("t", "v", [Section(title="s", table=Table(header=("a", "b"), rows=[]))]))
    assert page.by_tag["th"] == ["a", "b"]
    assert "td" not in page.by_tag


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table(header=("a", "b"), rows=[("x",)]), "row of 1 cells under a header of 2"),
        (lambda: Chart(title="c", x_label="x", series=[]), "not 0"),
        (lambda: Chart(title="c", x_label="x", series=[Series(name="s", values=[1.0])] * 5), "not 5"),
        (lambda: Chart(title="c", x_label="x", series=[Series(name="s", values=[None, math.nan])]), "no finite value"),
    ],
)
def test_what_cannot_be_shown_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_write_report_makes_the_folder_and_returns_the_path(tmp_path):
    target = tmp_path / "new" / "folder" / "report.html"
    assert write_report(target, "ε = ∞", "v", [Section(title="s")], footer="f") == target
    page = Page(target.read_text(encoding="utf-8"))
    assert page.by_tag["title"] == ["ε = ∞"]


def test_the_page_is_reproducible():
    assert report("word") == report("word")


def test_missing_jinja_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'secagg\[report\]'"):
        render_report("t", "v", [])


class TestBarsAndCurves:
    """Bars end at their values, marks stand at limits, curves keep to their decades; the numbers stand beneath."""

    BARS = Bars(
        title="bounds",
        x_label="epsilon",
        bars=[
            Bar(label="as it is", value=1.0, limit=2.0, tone="safe"),
            Bar(label="bug", value=4.0, limit=2.0, tone="leak"),
        ],
    )
    ROC = Curves(
        title="ROC",
        x_label="false alarms",
        y_label="found",
        series=[
            Curve(name="attack", points=[(0.0, 0.0), (0.001, 0.01), (0.1, 0.5), (1.0, 1.0)]),
            Curve(name="guess", points=[(0.001, 0.001), (1.0, 1.0)]),
        ],
    )

    def test_widths_are_in_proportion_and_marks_at_limits(self):
        rows = drawing(self.BARS)["rows"]
        assert rows[1]["width"] == pytest.approx(4 * rows[0]["width"], abs=0.5)
        assert rows[0]["mark"] == rows[1]["mark"] == pytest.approx(4 + 2 * rows[0]["width"], abs=0.5)
        html = render_report("t", "v", [Section(title="s", charts=[self.BARS])])
        assert html.count("<rect") == 2
        assert 'class="bar leak"' in html
        assert ">4</td>" in html

    def test_decades_are_equally_wide(self):
        frame = drawing(self.ROC)
        places = [x for x, _ in frame["x_ticks"]]
        assert [text for _, text in frame["x_ticks"]] == ["0.001", "0.01", "0.1", "1"]
        assert np.diff(places) == pytest.approx([np.diff(places)[0]] * 3, abs=0.2)
        html = render_report("t", "v", [Section(title="s", charts=[self.ROC])])
        assert "found" in html
        assert html.count('class="line') == 2

    def test_a_marked_cell_has_its_tone_and_stays_text(self):
        table = Table(header=("a", "b"), rows=[("x", Marked("<b>out", "leak")), ("y", Marked("kept", "safe"))])
        html = render_report("t", "v", [Section(title="s", table=table)])
        assert '<span class="leak">&lt;b&gt;out</span>' in html
        assert '<span class="safe">kept</span>' in html

    @pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
    def test_bars_that_cannot_be_drawn(self, bad):
        with pytest.raises(ValueError, match="bar 'x'"):
            Bars(title="t", x_label="x", bars=[Bar(label="x", value=bad)])
        with pytest.raises(ValueError, match="no bars"):
            Bars(title="t", x_label="x", bars=[])

    def test_curves_that_cannot_be_drawn(self):
        with pytest.raises(ValueError, match="no positive point"):
            Curves(title="t", x_label="x", y_label="y", series=[Curve(name="c", points=[(0.0, 1.0)])])
        with pytest.raises(ValueError, match="1 to 4"):
            Curves(title="t", x_label="x", y_label="y", series=[])
