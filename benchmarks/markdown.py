"""How tables and numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> list[str]:
    """Markdown; the first columns are words, all others numbers."""
    alignment = ["---"] * words + ["---:"] * (len(head) - words)
    return [f"| {' | '.join(cells)} |" for cells in (head, alignment, *rows)]


def count(number: int) -> str:
    """With separators of thousands."""
    return f"{number:,}"
