"""What people see: bars where there is a terminal, plain lines where there is none, nothing when quiet."""

from __future__ import annotations

import io
import runpy
import sys

import pytest

from secagg.terminal import progress, show_table


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def run(steps: int, *, quiet: bool = False) -> None:
    with progress("training", steps, quiet=quiet) as step:
        for number in range(steps):
            step(f"note {number}")


def test_lines_every_tenth_of_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    run(20)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "training  20/20  note 19"
    assert "\x1b" not in err


def test_few_steps_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    run(3)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    run(5, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    run(4)
    text = screen.getvalue()
    assert "training" in text
    assert "4/4" in text
    assert "note 3" in text


@pytest.mark.parametrize(("encoding", "box"), [("utf-8", "─"), ("ascii", "-")])
def test_tables_use_what_the_encoding_has(monkeypatch: pytest.MonkeyPatch, encoding: str, box: str) -> None:
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    show_table(("name", "value"), [("a", "1")])
    out.flush()
    text = written.getvalue().decode(encoding)
    assert box in text
    assert "\x1b" not in text
    assert "value" in text


def test_tables_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "60")
    show_table(("name", "why"), [("a", "word " * 40)])
    assert len(screen.getvalue().splitlines()) > 4


def test_the_module_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["secagg", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("secagg", run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("secagg ")
