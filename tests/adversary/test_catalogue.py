"""The catalogue of attacks is complete, its tests exist, SECURITY.md says the same (`UPDATE_DOCS=1` rewrites it)."""

from __future__ import annotations

import os
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from .catalogue import CATALOGUE, table

TESTS = Path(__file__).parents[1]
SECURITY = TESTS.parent / "SECURITY.md"
START, END = "<!-- attacks -->", "<!-- /attacks -->"
NAMED = sorted({test for entry in CATALOGUE for test in entry.tests})


def test_every_attack_has_its_number() -> None:
    assert [entry.number for entry in CATALOGUE] == list(range(1, 31))


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: str(entry.number))
def test_entries_say_something(entry: object) -> None:
    for name in ("attack", "defence", "tests"):
        assert getattr(entry, name)
    for name in ("attack", "defence", "remains"):
        assert "|" not in getattr(entry, name)
        assert "\n" not in getattr(entry, name)


@pytest.mark.parametrize("test", NAMED)
def test_named_tests_exist_and_are_collected(test: str) -> None:
    """As pytest collects: from a file `test_*.py`, in classes `Test*`, functions `test_*`, and none of them skipped."""
    path, *names = test.split("::")
    assert (TESTS / path).is_file()
    assert Path(path).name.startswith("test_")
    assert all(name.startswith("Test") for name in names[:-1])
    assert names[-1].startswith("test_")
    module = import_module(".".join(("tests", *Path(path).with_suffix("").parts)))
    found = reduce(getattr, names, module)
    assert callable(found)
    marks = {mark.name for mark in getattr(found, "pytestmark", [])}
    assert not marks & {"skip", "skipif", "xfail", "slow"}


def test_the_table_is_the_catalogue() -> None:
    text = SECURITY.read_text()
    start, end = text.index(START) + len(START), text.index(END)
    if os.environ.get("UPDATE_DOCS"):
        SECURITY.write_text(text[:start] + table() + text[end:])
        text = SECURITY.read_text()
        end = text.index(END)
    assert text[start:end] == table()
