"""Tables and progress for people. rich is imported here only, and only when something is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class Step(Protocol):
    """Advances a progress bar by one and says how things stand."""

    def __call__(self, note: str = "") -> None:
        """One more step is done."""


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; plain characters where the terminal is not UTF-8."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    table = Table(box=box.SIMPLE_HEAD if utf8 else box.ASCII2, show_edge=False, pad_edge=False)
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def show_bars(rows: Sequence[tuple[str, float]]) -> None:
    """Labelled fractions in [0, 1] on stdout: bars on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        for label, fraction in rows:
            print(f"{label}  {fraction:7.2%}")
        return
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for label, fraction in rows:
        table.add_row(label, ProgressBar(total=1.0, completed=fraction, width=40), f"{fraction:7.2%}")
    Console(file=sys.stdout).print(table)


@contextmanager
def progress(title: str, steps: int, *, quiet: bool) -> Iterator[Step]:
    """A progress bar on stderr; where that is no terminal, a line every tenth of the way; if `quiet`, neither."""
    if quiet:
        yield lambda note="": None
        return
    if not sys.stderr.isatty():
        done = 0

        def line(note: str = "") -> None:
            nonlocal done
            done += 1
            if done == steps or done % max(1, steps // 10) == 0:
                print(f"{title}  {done}/{steps}  {note}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, note="")
        yield lambda note="": bar.update(task, advance=1, note=note)
