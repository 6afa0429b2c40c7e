"""TABLES.md is what the script makes of the committed results, and every result says how to make it again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import harness, tables
from benchmarks.__main__ import main
from benchmarks.tables import TABLES, load, render


def test_the_document_is_generated_from_the_results() -> None:
    assert TABLES.read_text() == render(load(harness.RESULTS))


def test_every_result_names_the_command_that_writes_it() -> None:
    paths = sorted(harness.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        facts = json.loads(path.read_text())
        words = shlex.split(facts["command"])
        assert words[:3] == ["python", "-m", "benchmarks"]
        assert facts["schema"].startswith(f"benchmarks/{words[3]}")
        assert words[words.index("--save") + 1] == path.stem


def test_sizes_have_not_changed_since_they_were_saved(capsys: pytest.CaptureFixture[str]) -> None:
    """They are exact, so the saved ones must be those of today's wire."""
    saved = [facts for facts in load(harness.RESULTS) if facts["schema"] == "benchmarks/sizes/1"]
    assert saved
    for facts in saved:
        words = shlex.split(facts["command"])[3:]
        save = words.index("--save")
        assert main([*words[:save], *words[save + 2 :], "--json"]) == 0
        today = json.loads(capsys.readouterr().out)
        ours = {key: value for key, value in facts.items() if key not in ("command", "environment")}
        assert ours == {key: value for key, value in today.items() if key != "environment"}


def test_saved_results_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "TABLES", tmp_path / "TABLES.md")
    small = ["--dimension", "500", "--bits", "16"]
    assert main(["sizes", "--clients", "7", *small, "--save", "a-size"]) == 0
    assert main(["speed", "--clients", "6", *small, "--save", "a-speed"]) == 0
    assert main(["scaling", "--clients", "5,8", *small, "--save", "growth"]) == 0
    assert main(["tables"]) == 0
    text = (tmp_path / "TABLES.md").read_text()
    for path in tmp_path.glob("*.json"):
        facts = json.loads(path.read_text())
        assert facts["command"] in text.splitlines()
        assert f"Python {facts['environment']['python']}" in text
    size = json.loads((tmp_path / "a-size.json").read_text())
    assert f"| ↑ total | {size['upload']['total']:,} |" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert any(row[:4] == ["| 6", "5", "500", "16"] for row in rows)
    assert sum("growth" in row for row in rows) == 1
    assert all(len(row) in (2, 15, 17) for row in rows)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "Name", "-x"])
def test_names_of_results_are_plain(name: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sizes", f"--save={name}"])
    assert stop.value.code == 2


def test_unknown_results_are_refused() -> None:
    with pytest.raises(ValueError, match="no table for 'benchmarks/else/1'"):
        render([{"schema": "benchmarks/else/1", "command": "?"}])
