"""One self-contained HTML file: pictures, tables and line charts that can be mailed, archived and read on a phone.

Rules:
- Nothing is loaded from anywhere and nothing runs: no script, no link, styles and pictures inline, and a content
  security policy in the page says so. Every text is escaped; text never carries markup of its own.
- No figure without words: a picture has a caption and a note, a chart has its numbers in a table beneath.
- Colour only repeats what a text says. Light and dark follow the reader's system.

Text is plain, with three conventions: an empty line starts a paragraph, lines that start with "- " are a list, lines
indented by four spaces are shown as code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .charts import AnyChart, Bar, Bars, Cell, Chart, Curve, Curves, Series, drawing, numbers_of
from .page import PAGE, STYLE
from .pictures import Picture, Tone, data_uri, png

_SMALL = 1e-3  # numbers below it are shown on their own terms, not with the decimals of their column

__all__ = [
    "Bar",
    "Bars",
    "Cell",
    "Chart",
    "Curve",
    "Curves",
    "Marked",
    "Picture",
    "Section",
    "Series",
    "Table",
    "png",
    "render_report",
    "write_report",
]


@dataclass(frozen=True, slots=True)
class Marked:
    """A cell whose text is coloured as a secret that came out ("leak") or did not ("safe")."""

    text: str
    tone: Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text and numbers under a header; floats of a column are shown with about four digits.

    Raises:
        ValueError: A row is not as long as the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | Marked]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of {len(row)} cells under a header of {len(self.header)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, its text, and then pictures, charts and a table, in this order."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    charts: Sequence[AnyChart] = ()
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
    environment.filters.update(blocks=_blocks, cells=_cells, data_uri=data_uri)
    return environment.from_string(PAGE).render(
        title=title, verdict=verdict, sections=sections, footer=footer, style=STYLE, draw=drawing, numbers=numbers_of
    )


def write_report(path: Path, title: str, verdict: str, sections: Sequence[Section], *, footer: str = "") -> Path:
    """Render and write the page as UTF-8, creating the folder; returns `path`. Arguments as for `render_report`."""
    page = render_report(title, verdict, sections, footer=footer)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


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


def _cells(rows: Sequence[Sequence[Cell | Marked | None]]) -> list[list[tuple[str, bool, str]]]:
    """Each cell as (text, is a number, tone); a column shares the decimals that four digits of its floats need."""
    columns = []
    for column in zip(*rows, strict=True):
        short = [f"{cell:.4g}" for cell in column if isinstance(cell, float) and abs(cell) >= _SMALL]
        decimals = min(max((len(text.partition(".")[2]) for text in short if "e" not in text), default=0), 4)
        columns.append(
            [
                (cell.text, False, cell.tone)
                if isinstance(cell, Marked)
                else (_text(cell, decimals), not isinstance(cell, str), "")
                for cell in column
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def _text(cell: Cell | None, decimals: int) -> str:
    """One cell as text."""
    if not isinstance(cell, float):
        return "–" if cell is None else str(cell)
    if not math.isfinite(cell):
        return str(cell).replace("inf", "∞")
    short = f"{cell:.4g}"
    return short if "e" in short or abs(cell) < _SMALL else f"{cell:.{decimals}f}"
