"""`secagg ledger`: what it says is what the ledger holds, and every broken ledger is a finding."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secagg import (
    AggregationConfig,
    BudgetExceededError,
    ClientLevel,
    PrivacyLedger,
    Simulation,
    ledger_command,
)
from secagg.cli import _parser, main
from tests.postgres import PostgresServer
from tests.secagg.test_cli import ROOT, SCHEMA, options, toml

CONFIG = AggregationConfig.cross_silo(
    like={"model": np.zeros(100, np.float32)}, clients=20, max_dropouts=5, max_colluders=2,
    privacy=ClientLevel(clip_norm=1.5, epsilon=4.0, delta=1e-6, rounds=30),
)  # fmt: skip
STATED = options("client", rounds=30)[1:]  # the same, as options


def event(survivors: int) -> Any:
    assert CONFIG.mechanism is not None
    return CONFIG.mechanism.event(survivors=survivors)


WORST = event(15)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a ledger")


def create(location: str) -> PrivacyLedger:
    budget = CONFIG.budget()
    assert budget is not None
    return PrivacyLedger.create(location, budget=budget)


def fill(location: str, *survivors: int) -> list[float]:
    """One committed round for each number, between one released and one open; what was left after each."""
    left = []
    with create(location) as ledger:
        ledger.release(ledger.reserve(WORST, request_id="released"))
        for number, count in enumerate(survivors):
            ledger.commit(ledger.reserve(WORST, request_id=f"round {number}"), event(count))
            state = ledger.state()
            left.append(1 - state.filter_spent / state.filter_limit)
        ledger.reserve(WORST, request_id="open")
    return left


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """Runs a command with --json; the object that it printed, with its documented keys."""
    assert main(["ledger", *arguments, "--json"]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    facts: dict[str, Any] = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(facts) == SCHEMA[f"ledger {arguments[0]}"]
    assert facts["schema"] == f"secagg/ledger/{arguments[0]}/1"
    return facts


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int, message: str) -> None:
    assert main(["ledger", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("secagg: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def alter(path: str, sequence: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TRIGGER no_update")
        database.execute(f"UPDATE entry SET document = replace(document, '1', '2') WHERE sequence = {sequence}")


def rounds_that_fit(path: str, survivors: int) -> int:
    """An oracle: spends until the refusal."""
    with PrivacyLedger.open(path) as ledger:
        for done in range(1000):
            try:
                reservation = ledger.reserve(WORST, request_id=f"more {done}")
            except BudgetExceededError:
                return done
            ledger.commit(reservation, event(survivors))
    raise AssertionError


class TestInit:
    def test_keeps_the_budget_of_the_configuration(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        facts = call(capsys, "init", path, *STATED)
        budget = CONFIG.budget()
        assert budget is not None
        with PrivacyLedger.open(path) as ledger:
            state = ledger.state()
        assert facts["head"] == state.head
        assert facts["location"] == path
        assert (facts["unit"], facts["epsilon"], facts["delta"], facts["order"]) == (
            budget.unit, budget.epsilon, budget.delta, budget.order,
        )  # fmt: skip
        assert facts["filter_limit"] == state.filter_limit == budget.filter_limit
        assert facts["rounds_left"] == 30

    def test_a_file_says_the_same(self, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = (
            'kind = "cross_silo"\nclients = 20\nmax_dropouts = 5\nmax_colluders = 2\n'
            '[privacy]\nunit = "client"\nclip_norm = 1.5\nepsilon = 4.0\ndelta = 1e-6\nrounds = 30\n'
        )
        facts = call(capsys, "init", path, "--dimension", "100", "--config", toml(tmp_path, text))
        assert facts["head"] == call(capsys, "init", f"{path} 2", *STATED)["head"]

    def test_for_people(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["ledger", "init", path, *STATED]) == 0
        out = capsys.readouterr().out
        with PrivacyLedger.open(path) as ledger:
            assert ledger.head in out

    def test_never_overwrites(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path, 20)
        refused(capsys, "init", path, *STATED, code=2, message="a ledger is created once")
        with PrivacyLedger.open(path) as ledger:
            assert ledger.state().rounds_committed == 1

    def test_refuses_what_has_no_budget(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        refused(capsys, "init", path, *options("none")[1:], code=2, message="unit 'none' spends no budget")
        assert not Path(path).exists()


class TestShow:
    def test_a_fresh_ledger(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        create(path).close()
        facts = call(capsys, "show", path)
        assert facts["rounds_left"] == {"worst_case": None, "recent": None}
        assert facts["burn_down"] == []
        assert main(["ledger", "show", path]) == 0
        assert "unknown before the first round" in capsys.readouterr().out

    def test_says_what_the_ledger_holds(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        left = fill(path, 20)
        with PrivacyLedger.open(path) as ledger:
            state = ledger.state()
        facts = call(capsys, "show", path)
        assert facts["location"] == path
        assert (facts["unit"], facts["delta"], facts["order"]) == ("client", 1e-6, state.order)
        assert facts["epsilon"] == {"spent": state.epsilon, "limit": 4.0}
        assert facts["filter"] == {
            "spent": state.filter_spent, "limit": state.filter_limit, "left": state.filter_limit - state.filter_spent,
        }  # fmt: skip
        assert facts["rounds"] == {"committed": 1, "reserved": 1, "released": 1}
        assert facts["burn_down"] == pytest.approx(left)
        assert facts["head"] == state.head

    @pytest.mark.parametrize("survivors", [(15,), (20,), (20, 15), (15, 20, 20), (15,) * 2 + (20,) * 10])
    def test_rounds_left_are_those_that_fit(
        self, path: str, survivors: tuple[int, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for copy in (path, f"{path} 2"):
            with create(copy) as ledger:
                for number, count in enumerate(survivors):
                    ledger.commit(ledger.reserve(WORST, request_id=f"{number}"), event(count))
        facts = call(capsys, "show", path)
        middle = sorted(survivors[-10:], reverse=True)[len(survivors[-10:]) // 2]
        assert facts["rounds_left"]["recent"] == rounds_that_fit(f"{path} 2", middle)
        assert facts["rounds_left"]["worst_case"] == rounds_that_fit(path, 15)

    def test_plain_lines(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        left = fill(path, 20)
        assert main(["ledger", "show", path]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "\x1b" not in out
        *_, plotted, head, advice = out.splitlines()
        assert plotted == f"1  {left[0]:7.2%}"
        with PrivacyLedger.open(path) as ledger:
            assert head == f"head {ledger.head}"
        assert "verify --head" in advice

    def test_bars_on_a_terminal(
        self, path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = fill(path, 20)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main(["ledger", "show", path]) == 0
        last = capsys.readouterr().out.splitlines()[-3]
        assert f"{left[0]:.2%}" in last
        assert "━" in last or "-" in last


class TestVerify:
    def test_a_good_ledger(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path, 20)
        with PrivacyLedger.open(path) as ledger:
            heads = [entry.digest for entry in ledger.entries()]
        for head in (None, *heads):
            facts = call(capsys, "verify", path, *(["--head", head] if head else []))
            assert facts["ok"] is True
            assert (facts["entries"], facts["head"], facts["finding"]) == (len(heads), heads[-1], None)
        assert main(["ledger", "verify", path]) == 0
        assert capsys.readouterr().out == f"ok: entries {len(heads)}, head {heads[-1]}\n"

    def test_another_head(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path, 20)
        wrong = "0" * 64
        facts = call(capsys, "verify", path, "--head", wrong, code=1)
        assert (facts["ok"], facts["head"], facts["entries"]) == (False, None, None)
        assert f"does not contain {wrong}" in facts["finding"]
        refused(capsys, "verify", path, "--head", wrong, code=1, message=f"does not contain {wrong}")
        for malformed in ("abc", "G" * 64, "0" * 65):
            refused(capsys, "verify", path, "--head", malformed, code=2, message="--head must be 64 hexadecimal")

    @pytest.mark.parametrize("sequence", [0, 3, 5])
    def test_the_first_bad_entry_is_named(self, path: str, sequence: int, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path, 20)
        alter(path, sequence)
        finding = call(capsys, "verify", path, code=1)["finding"]
        assert finding.startswith(f"entry {sequence} was altered")
        refused(capsys, "verify", path, code=1, message=finding)
        for command in (["show"], ["plan", *STATED]):
            refused(capsys, command[0], path, *command[1:], code=1, message=f"entry {sequence} was altered")

    @pytest.mark.parametrize("command", ["show", "verify", "export", "plan"])
    def test_what_is_no_ledger_is_wrong_input(
        self, command: str, path: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        extra = STATED if command == "plan" else []
        refused(capsys, command, path, *extra, code=2, message="no privacy ledger at")
        assert not Path(path).exists()
        Path(path).write_text("notes")
        refused(capsys, command, path, *extra, code=2, message="restore the ledger")
        assert Path(path).read_text() == "notes"


class TestExport:
    def test_the_chain_can_be_checked_without_this_library(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path, 20)
        assert main(["ledger", "export", path]) == 0
        lines = capsys.readouterr().out.splitlines()
        head = hashlib.sha256(b"secagg/v1/ledger").hexdigest()
        for number, line in enumerate(lines):
            fields = json.loads(line)
            assert (fields.pop("sequence"), fields.pop("previous")) == (number, head)
            digest = fields.pop("digest")
            document = json.dumps(fields, sort_keys=True, separators=(",", ":"))
            head = hashlib.sha256(bytes.fromhex(head) + document.encode()).hexdigest()
            assert head == digest
        assert call(capsys, "verify", path)["head"] == head
        assert call(capsys, "export", path)["entries"] == [json.loads(line) for line in lines]

    def test_stops_at_a_bad_entry(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path, 20)
        alter(path, 3)
        assert main(["ledger", "export", path]) == 1
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 3
        assert "entry 3 was altered" in err
        refused(capsys, "export", path, "--json", code=1, message="entry 3 was altered")


class TestPlan:
    def test_rounds_left_are_those_that_fit(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path, 20)
        facts = call(capsys, "plan", path, *STATED)
        assert (facts["clients"], facts["min_survivors"], facts["max_colluders"]) == (20, 15, 2)
        rows = {row["survivors"]: row["rounds_left"] for row in facts["rows"]}
        assert list(rows) == [15, 16, 17, 18, 19, 20]
        assert list(rows.values()) == sorted(rows.values())
        assert rows[18] == rounds_that_fit(path, 18)

    def test_chosen_survivors(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path)
        facts = call(capsys, "plan", path, *STATED, "--survivors", "20", "16")
        assert [row["survivors"] for row in facts["rows"]] == [20, 16]
        assert main(["ledger", "plan", path, *STATED]) == 0
        assert "a round reserves 15 survivors" in capsys.readouterr().out
        for count, message in (("14", "min_survivors = 15"), ("21", "clients = 20")):
            refused(capsys, "plan", path, *STATED, "--survivors", count, code=2, message=message)

    def test_another_budget_is_wrong_input(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        fill(path)
        other = options("client", epsilon=2.0)[1:]
        refused(capsys, "plan", path, *other, code=2, message="the ledger keeps epsilon 4.0")
        refused(capsys, "plan", path, *options("none")[1:], code=2, message="spends no budget")


def test_the_ledgers_of_a_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulation = Simulation(CONFIG, clients=range(1, 21), ledger_directory=tmp_path)
    update = {"model": np.ones(100, np.float32)}
    for _ in range(2):
        simulation.round(dict.fromkeys(range(1, 21), update), drop={3})
    ledgers = sorted(tmp_path.glob("*.ledger"))
    assert len(ledgers) == 21
    for path in ledgers:
        assert call(capsys, "verify", str(path))["ok"] is True
        facts = call(capsys, "show", str(path))
        assert facts["rounds"]["committed"] == len(facts["burn_down"]) == (0 if path.name == "client-3.ledger" else 2)


def test_a_plot_is_short_and_shows_first_and_last() -> None:
    assert ledger_command._spread(3, 20) == [0, 1, 2]
    for count in (21, 22, 1000):
        chosen = ledger_command._spread(count, 20)
        assert (len(chosen), chosen[0], chosen[-1]) == (20, 0, count - 1)
        assert chosen == sorted(set(chosen))


def test_the_commands_of_the_readme_are_commands() -> None:
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("secagg ledger ")]
    assert len(lines) == 5
    for line in lines:
        _parser().parse_args(shlex.split(line.partition(" > ")[0], comments=True)[1:])


def test_postgres(postgres: PostgresServer, capsys: pytest.CaptureFixture[str]) -> None:
    location = postgres.new_schema().replace("owner@", "owner:hunter2@")
    words = [call(capsys, "init", location, *STATED)]
    with PrivacyLedger.open(location) as ledger:
        ledger.charge(ledger.reserve(WORST, request_id="r"))
    words += [call(capsys, command, location) for command in ("show", "verify", "export")]
    words += [call(capsys, "plan", location, *STATED)]
    assert words[1]["rounds"]["committed"] == 1
    assert words[2]["ok"] is True
    assert "hunter2" not in json.dumps(words)
    assert all(fact["location"].startswith("PostgreSQL database 'postgres', schema 'ledger_") for fact in words)


def test_postgres_without_its_driver(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "dp.ledger_postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    refused(capsys, "show", "postgresql:///x", code=3, message="pip install 'secagg[postgres]'")
