"""Charts as SVG coordinates: lines over a count, curves over logarithmic axes, and bars against a limit."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from .pictures import Tone

Cell = str | int | float
Point = tuple[float, float]

_MAX_SERIES = 4  # as many as the palette tells apart, also without colour: each has its own dashes


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
        _check_series(self.series)
        if not any(math.isfinite(value) for series in self.series for value in series.values if value is not None):
            raise ValueError(f"chart {self.title!r} has no finite value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line through points (x, y); a point with a coordinate that is not positive is left out."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Curves over two logarithmic axes, such as the ROC of an attack at small rates of false alarms.

    Raises:
        ValueError: There are no curves or more than four, or none has a positive point.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Curve]

    def __post_init__(self) -> None:
        _check_series(self.series)
        if not any(min(point) > 0 for curve in self.series for point in curve.points):
            raise ValueError(f"chart {self.title!r} has no positive point")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: a value, what it should not pass (or should reach), and how that is to be read."""

    label: str
    value: float
    limit: float | None = None
    tone: Tone = "neutral"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Horizontal bars over one axis from zero, each with a mark at its limit.

    Raises:
        ValueError: There are none, or a value is negative or not finite.
    """

    title: str
    x_label: str
    bars: Sequence[Bar]

    def __post_init__(self) -> None:
        if not self.bars:
            raise ValueError(f"chart {self.title!r} has no bars")
        for bar in self.bars:
            if not (math.isfinite(bar.value) and bar.value >= 0):
                raise ValueError(f"bar {bar.label!r} must be finite and not negative, got {bar.value}")


AnyChart = Chart | Curves | Bars


def numbers_of(chart: AnyChart) -> tuple[list[str], list[list[Cell | None]]]:
    """The chart as a table: header and rows."""
    match chart:
        case Bars():
            return ["", chart.x_label, "limit"], [[bar.label, bar.value, bar.limit] for bar in chart.bars]
        case Curves():
            rows: list[list[Cell | None]] = [[curve.name, *point] for curve in chart.series for point in curve.points]
            return ["curve", chart.x_label, chart.y_label], rows
        case Chart():
            columns = zip_longest(*(series.values for series in chart.series))
            header = [chart.x_label, *(series.name for series in chart.series)]
            return header, [[count, *values] for count, values in enumerate(columns, start=1)]


# Geometry of a chart, in units that are about one CSS pixel on a phone.
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 360, 240, 38, 12, 40
_LINE_HEIGHT, _CHARACTER_WIDTH, _LABEL_GAP = 14, 7.8, 12
_BAR_ROW, _BAR_HEIGHT = 36, 12


def drawing(chart: AnyChart) -> dict[str, object]:
    """The chart in coordinates, for the template."""
    match chart:
        case Bars():
            return _draw_bars(chart)
        case Curves():
            return _draw_curves(chart)
        case Chart():
            return _draw_lines(chart)


def _draw_lines(chart: Chart) -> dict[str, object]:
    """Ticks, a path per series, its name, and the end of its line."""
    finite = [value for series in chart.series for value in series.values if value is not None and math.isfinite(value)]
    low, high = min(finite), max(finite)
    y_ticks = _ticks(0.0 if low >= 0 and (low <= high / 2 or low == high) else low, high)
    count = max(len(series.values) for series in chart.series)
    lines = [
        [(index, value) if value is not None and math.isfinite(value) else None for index, value in series]
        for series in (enumerate(series.values, start=1) for series in chart.series)
    ]
    return _frame(
        [series.name for series in chart.series],
        lines,
        x_ticks=[(tick, f"{tick:g}") for tick in _ticks(1, count) if tick in range(1, count + 1)],
        y_ticks=[(tick, f"{tick:g}") for tick in y_ticks],
        x_range=(1, max(count, 2)),
        y_range=(y_ticks[0], y_ticks[-1]),
        scale=lambda value: value,
    )


def _draw_curves(chart: Curves) -> dict[str, object]:
    """The same over whole decades."""
    points = [point for curve in chart.series for point in curve.points if min(point) > 0]
    decades = []
    for axis in (0, 1):
        values = [point[axis] for point in points]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        decades.append((low, max(high, low + 1)))
    ticks = [[(10.0**power, f"{10.0**power:g}") for power in range(low, high + 1)] for low, high in decades]
    return _frame(
        [curve.name for curve in chart.series],
        [[point if min(point) > 0 else None for point in curve.points] for curve in chart.series],
        x_ticks=ticks[0],
        y_ticks=ticks[1],
        x_range=(ticks[0][0][0], ticks[0][-1][0]),
        y_range=(ticks[1][0][0], ticks[1][-1][0]),
        scale=math.log10,
    )


def _frame(
    series: Sequence[str],
    lines: Sequence[Sequence[Point | None]],
    *,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_range: Point,
    y_range: Point,
    scale: Callable[[float], float],
) -> dict[str, object]:
    """Axes, paths and labels of lines whose points are in units of the data."""
    names = [textwrap.wrap(name, 13, max_lines=3, placeholder="…") or [""] for name in series]
    right = round(_WIDTH - _LABEL_GAP - _CHARACTER_WIDTH * max(len(line) for name in names for line in name))
    bottom = _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> Point:
        across, up = (
            (scale(value) - scale(low)) / (scale(high) - scale(low))
            for value, (low, high) in ((x, x_range), (y, y_range))
        )
        return round(_LEFT + (right - _LEFT) * across, 1), round(bottom - (bottom - _TOP) * up, 1)

    placed = [[place(*point) if point else None for point in line] for line in lines]
    ends = [next((point for point in reversed(line) if point), None) for line in placed]
    heights = [_LINE_HEIGHT * len(name) for name in names]
    tops = _spread([end[1] if end else bottom for end in ends], heights, bottom)
    return {
        "kind": "lines",
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": right,
        "bottom": bottom,
        "x_ticks": [(place(tick, y_range[0])[0], text) for tick, text in x_ticks],
        "y_ticks": [(place(x_range[0], tick)[1], text) for tick, text in y_ticks],
        "paths": [_path(line) for line in placed],
        "labels": list(zip(names, tops, ends, strict=True)),
    }


def _draw_bars(chart: Bars) -> dict[str, object]:
    """A row for each bar: its label above, its value beside, its limit as a mark."""
    marks = [bar.limit for bar in chart.bars if bar.limit is not None and math.isfinite(bar.limit)]
    ticks = _ticks(0.0, max([bar.value for bar in chart.bars] + marks))
    left, right = 4, _WIDTH - 52
    bottom = _TOP + _BAR_ROW * len(chart.bars)

    def across(value: float) -> float:
        return round(left + (right - left) * value / ticks[-1], 1)

    rows = [
        {
            "label": textwrap.shorten(bar.label, 52, placeholder="…"),
            "top": _TOP + _BAR_ROW * row,
            "width": round(across(bar.value) - left, 1),
            "value": f"{bar.value:.3g}",
            "mark": across(bar.limit) if bar.limit is not None and math.isfinite(bar.limit) else None,
            "tone": bar.tone,
        }
        for row, bar in enumerate(chart.bars)
    ]
    return {
        "kind": "bars",
        "width": _WIDTH,
        "height": bottom + _BOTTOM,
        "left": left,
        "right": right,
        "bottom": bottom,
        "x_ticks": [(across(tick), f"{tick:g}") for tick in ticks],
        "y_ticks": [],
        "bar_height": _BAR_HEIGHT,
        "rows": rows,
    }


def _check_series(series: Sequence[Series] | Sequence[Curve]) -> None:
    if not 1 <= len(series) <= _MAX_SERIES:
        raise ValueError(f"a chart has 1 to {_MAX_SERIES} series, not {len(series)}")


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
