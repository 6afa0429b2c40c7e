"""The ledger against crashes, races, damage, forgery and callers who repeat themselves."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

import dp.ledger_sqlite
from dp.accounting import ORDERS, SkellamEvent, best_order, epsilon
from dp.errors import BudgetExceededError, LedgerError
from dp.ledger import LedgerState, PrivacyBudget, PrivacyLedger, Reservation
from tests.dp.ledgers import (
    BUDGET,
    FEWER_LOST,
    HUGE,
    LIMIT,
    ORDER,
    ROOT,
    ROUND,
    SMALL,
    TINY,
    LedgerMachine,
    cost,
    fill,
    make_event,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def run_sql(path: Path, *statements: str) -> None:
    """An attacker with the file: the triggers are no obstacle."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for statement in ("DROP TRIGGER IF EXISTS no_update", "DROP TRIGGER IF EXISTS no_delete", *statements):
            database.execute(statement)


def read_rows(path: Path) -> list[tuple[int, str, bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT sequence, document, digest FROM entry ORDER BY sequence").fetchall()


def forge(path: Path, sequence: int, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites one entry and recomputes all digests, as only somebody who knows the format can."""
    documents = [document for _, document, _ in read_rows(path)]
    fields = json.loads(documents[sequence])
    replaced = edit(fields)
    documents[sequence] = replaced if isinstance(replaced, str) else json.dumps(fields)
    run_sql(path, "DROP INDEX IF EXISTS one_each", "DELETE FROM entry")
    head = hashlib.sha256(b"secagg/v1/ledger").digest()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for position, document in enumerate(documents):
            head = hashlib.sha256(head + document.encode()).digest()
            database.execute("INSERT INTO entry VALUES (?, ?, ?)", (position, document, head))


# --- amounts and limits ---------------------------------------------------------------------------------------------


def test_a_fresh_ledger_has_spent_nothing() -> None:
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        state = ledger.state()
        assert state == LedgerState(
            epsilon=0.0,
            limit_epsilon=4.0,
            delta=1e-6,
            unit="client",
            order=ORDER,
            filter_spent=0,
            filter_limit=LIMIT,
            rounds_committed=0,
            rounds_reserved=0,
            rounds_released=0,
            head=ledger.verify(),
        )
        with pytest.raises(FrozenInstanceError):
            state.filter_spent = 1  # type: ignore[misc]


@given(
    l2_squared=st.integers(1, 10**9),
    rate=st.fractions(min_value=Fraction(1, 2**64), max_value=1),
)
@settings(max_examples=30, deadline=None)
def test_amounts_round_up_and_are_never_zero(l2_squared: int, rate: Fraction) -> None:
    event = make_event(l2_squared, sampling_rate=rate)
    wide = PrivacyBudget(epsilon=1e6, delta=1e-6, unit="client", order=ORDER)
    with PrivacyLedger.create(":memory:", budget=wide) as ledger:
        reservation = ledger.reserve(event, request_id="r")
        assert reservation.amount >= 1
        assert Fraction(reservation.amount, 10**12) >= Fraction(float(event.rdp()[ORDERS.index(ORDER)]))
        assert reservation.amount == cost(event) == ledger.state().filter_spent


def test_tiny_amounts_are_not_lost_beside_large_ones() -> None:
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        ledger.reserve(ROUND, request_id="large")
        for number in range(150):
            ledger.charge(ledger.reserve(TINY, request_id=f"tiny {number}"))
        assert ledger.state().filter_spent == cost(ROUND) + 150


def test_the_last_round_that_fits_is_admitted_and_the_next_is_refused_with_figures() -> None:
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        fitting = ledger.state().rounds_left(ROUND)
        assert fitting == LIMIT // cost(ROUND)
        for number in range(fitting):
            ledger.reserve(ROUND, request_id=f"round {number}")
        before = ledger.state()
        assert before.rounds_left(ROUND) == 0
        with pytest.raises(BudgetExceededError) as refusal:
            ledger.reserve(ROUND, request_id="one too many")
        assert ledger.state() == before
        text = str(refusal.value)
        for part in (
            "'one too many'",
            f"{cost(ROUND) / 1e12:.6g}",
            f"{before.filter_spent / 1e12:.6g}",
            f"{LIMIT / 1e12:.6g}",
            f"{before.epsilon:.4g} of 4 per client at delta 1e-06",
            "Rounds left at this cost: 0",
        ):
            assert part in text
        ledger.reserve(TINY, request_id="a smaller one still fits")
        assert before.epsilon <= BUDGET.epsilon


def test_the_limit_itself_may_be_spent_and_not_one_unit_more(path: Path) -> None:
    PrivacyLedger.create(path, budget=BUDGET).close()
    forge(path, 0, set_fields(amount=cost(SMALL) - 1))
    with PrivacyLedger.open(path) as ledger, pytest.raises(BudgetExceededError):
        ledger.reserve(SMALL, request_id="one unit too much")
    forge(path, 0, set_fields(amount=cost(SMALL)))
    with PrivacyLedger.open(path) as ledger:
        ledger.reserve(SMALL, request_id="exactly all")
        with pytest.raises(BudgetExceededError):
            ledger.reserve(TINY, request_id="one unit")
        assert ledger.state().filter_spent == ledger.state().filter_limit


@given(worst=st.integers(10**6, 10**7), share=st.fractions(min_value=Fraction(1, 5), max_value=1))
@settings(max_examples=25, deadline=None)
def test_rounds_left_are_those_that_fit(worst: int, share: Fraction) -> None:
    reserved, committed = make_event(worst), make_event(max(1, int(worst * share)))
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        predicted = ledger.state().rounds_left(reserved, committed=committed)
        done = 0
        with contextlib.suppress(BudgetExceededError):
            for done in itertools.count():
                ledger.commit(ledger.reserve(reserved, request_id=f"{done}"), committed)
        assert predicted == done
        assert ledger.state().rounds_left(reserved, committed=committed) == 0


def test_a_budget_at_the_best_order_of_a_plan_carries_the_plan() -> None:
    for event in (ROUND, make_event(10**6, sampling_rate=Fraction(1, 50))):
        order = best_order({event: 20}, 1e-5)
        planned = epsilon({event: 20}, delta=1e-5) * (1 + 1e-9)
        budget = PrivacyBudget(epsilon=planned, delta=1e-5, unit="record", order=order)
        with PrivacyLedger.create(":memory:", budget=budget) as ledger:
            assert ledger.state().rounds_left(event) == 20


@pytest.mark.parametrize(
    "change",
    [
        {"order": 1},
        {"order": 65},
        {"epsilon": 0.0},
        {"epsilon": 1e-3},
        {"epsilon": float("inf")},
        {"epsilon": float("nan")},
        {"delta": 0.0},
        {"delta": 1.0},
        {"unit": ""},
    ],
)
def test_impossible_budgets_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(BUDGET, **change)


@pytest.mark.parametrize("request_id", ["", "two\nlines", "nul\0", "\ud800"])
def test_request_ids_are_printable(request_id: str) -> None:
    with (
        PrivacyLedger.create(":memory:", budget=BUDGET) as ledger,
        pytest.raises(ValueError, match="printable"),
    ):
        ledger.reserve(ROUND, request_id=request_id)


# --- transitions ----------------------------------------------------------------------------------------------------


def test_a_reservation_counts_until_it_is_lowered_or_released() -> None:
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        first = ledger.reserve(ROUND, request_id="first")
        second = ledger.reserve(ROUND, request_id="second")
        assert ledger.state().filter_spent == 2 * cost(ROUND)
        ledger.commit(first, FEWER_LOST)
        ledger.release(second)
        state = ledger.state()
        assert state.filter_spent == cost(FEWER_LOST)
        assert state.epsilon == epsilon([FEWER_LOST], delta=BUDGET.delta)
        assert (state.rounds_committed, state.rounds_reserved, state.rounds_released) == (1, 0, 1)


def test_a_finished_request_is_never_a_free_second_release() -> None:
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        ledger.release(ledger.reserve(ROUND, request_id="given back"))
        ledger.charge(ledger.reserve(ROUND, request_id="done"))
        for request_id in ("given back", "done"):
            with pytest.raises(LedgerError, match="use a new id"):
                ledger.reserve(ROUND, request_id=request_id)


def test_every_transition_may_be_repeated_and_none_reversed() -> None:
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        first = ledger.reserve(ROUND, request_id="first")
        assert ledger.reserve(ROUND, request_id="first") == first
        ledger.commit(first, FEWER_LOST)
        second = ledger.reserve(ROUND, request_id="second")
        ledger.release(second)
        third = ledger.reserve(ROUND, request_id="third")
        ledger.charge(third)
        head = ledger.head
        ledger.commit(first, FEWER_LOST)
        ledger.release(second)
        ledger.charge(third)
        ledger.commit(third, ROUND)
        illegal: list[Callable[[], object]] = [
            lambda: ledger.reserve(FEWER_LOST, request_id="first"),
            lambda: ledger.commit(first, SMALL),
            lambda: ledger.charge(first),
            lambda: ledger.release(first),
            lambda: ledger.charge(second),
            lambda: ledger.release(third),
            lambda: ledger.commit(third, HUGE),
        ]
        for act in illegal:
            with pytest.raises(LedgerError):
                act()
        assert ledger.head == head


def test_no_more_is_committed_than_was_reserved() -> None:
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        reservation = ledger.reserve(FEWER_LOST, request_id="r")
        head = ledger.head
        for event in (ROUND, HUGE):
            with pytest.raises(LedgerError, match="too small to commit"):
                ledger.commit(reservation, event)
        assert ledger.head == head
        ledger.charge(reservation)


def test_two_connections_agree_with_a_model(tmp_path: Path) -> None:
    names = itertools.count()

    class OnSqlite(LedgerMachine):
        new_location = staticmethod(lambda: str(tmp_path / f"{next(names)}.db"))

    run_state_machine_as_test(OnSqlite, settings=settings(max_examples=20, stateful_step_count=30, deadline=None))


def test_a_forged_reservation_changes_nothing() -> None:
    with PrivacyLedger.create(":memory:", budget=BUDGET) as ledger:
        real = ledger.reserve(SMALL, request_id="real")
        head = ledger.head
        for forged in (
            replace(real, amount=real.amount * 10),
            replace(real, event=ROUND),
            replace(real, request_id="unknown"),
        ):
            for act in (ledger.charge, ledger.release):
                with pytest.raises(LedgerError, match="holds no"):
                    act(forged)
        assert ledger.head == head


# --- the file -------------------------------------------------------------------------------------------------------


def test_everything_is_there_in_a_new_process(tmp_path: Path) -> None:
    path = tmp_path / "an odd ?mode=memory #%41 name.db"
    state = fill(path)
    script = (
        "import json, sys; from dataclasses import asdict; from dp.ledger import PrivacyLedger\n"
        "with PrivacyLedger.open(sys.argv[1]) as ledger:\n"
        "    ledger.verify(expected_head=sys.argv[2]); print(json.dumps(asdict(ledger.state())))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(path), state.head], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    assert json.loads(output) == asdict(state)


def test_only_the_owner_can_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        with PrivacyLedger.create(path, budget=BUDGET) as ledger:
            ledger.reserve(ROUND, request_id="r")
            files = sorted(path.parent.iterdir())
            assert [file.name for file in files] == ["ledger.db", "ledger.db-shm", "ledger.db-wal"]
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(old)


def test_create_never_overwrites(path: Path) -> None:
    state = fill(path)
    with pytest.raises(LedgerError, match="exists"):
        PrivacyLedger.create(path, budget=BUDGET)
    with PrivacyLedger.open(path) as ledger:
        assert ledger.state() == state
    for content in (b"", b"somebody's notes"):
        other = path.with_name("other")
        other.write_bytes(content)
        with pytest.raises(LedgerError, match="exists"):
            PrivacyLedger.create(other, budget=BUDGET)
        assert other.read_bytes() == content
    with pytest.raises(LedgerError, match="No such file"):
        PrivacyLedger.create(path.parent / "missing" / "ledger.db", budget=BUDGET)


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but longer than the header of one. " * 40)
    empty = tmp_path / "empty"
    empty.touch()
    foreign = tmp_path / "foreign.db"
    run_sql(foreign, "CREATE TABLE entry (sequence)", "PRAGMA application_id = 7")
    for file in (text, empty, foreign):
        before = file.read_bytes()
        with pytest.raises(LedgerError, match="restore the ledger from a backup"):
            PrivacyLedger.open(file)
        assert file.read_bytes() == before
    for nothing in (tmp_path, tmp_path / "missing.db", ":memory:"):
        with pytest.raises(LedgerError, match="no privacy ledger"):
            PrivacyLedger.open(nothing)
    assert not (tmp_path / "missing.db").exists()


def test_a_newer_schema_is_refused_and_kept(path: Path) -> None:
    fill(path)
    run_sql(path, "PRAGMA user_version = 2")
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="schema 2, this version reads 1: upgrade"):
        PrivacyLedger.open(path)
    assert path.read_bytes() == before


def test_it_works_where_write_ahead_logging_does_not(path: Path) -> None:
    state = fill(path)
    run_sql(path, "PRAGMA journal_mode = DELETE")
    with PrivacyLedger.open(path) as ledger, PrivacyLedger.open(path) as other:
        assert ledger.state() == state
        for number in range(5):
            ledger.charge(other.reserve(TINY, request_id=f"{number}"))
        assert other.state().filter_spent == state.filter_spent + 5
        assert ledger.verify(expected_head=state.head) == other.head
        assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]


def test_another_thread_must_open_its_own(path: Path) -> None:
    with PrivacyLedger.create(path, budget=BUDGET) as ledger, ThreadPoolExecutor(1) as pool:
        with pytest.raises(LedgerError, match="thread"):
            pool.submit(ledger.state).result()
        with pytest.raises(LedgerError, match="thread"):
            pool.submit(ledger.reserve, ROUND, request_id="elsewhere").result()
        assert ledger.state().rounds_reserved == 0


def test_a_closed_or_locked_ledger_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr(dp.ledger_sqlite, "LOCK_TIMEOUT_SECONDS", 0)
    with PrivacyLedger.open(path) as ledger, contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            ledger.reserve(SMALL, request_id="late")
        other.rollback()
        ledger.reserve(SMALL, request_id="late")
        ledger.close()
        with pytest.raises(LedgerError, match="closed"):
            ledger.state()


def test_entries_cannot_be_changed_by_accident(path: Path) -> None:
    fill(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        for statement in ("UPDATE entry SET document = '{}'", "DELETE FROM entry"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)


def test_a_forked_child_must_open_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PrivacyLedger.create(path, budget=BUDGET) as ledger:
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(LedgerError):
                try:
                    ledger.reserve(ROUND, request_id="from the child")
                except LedgerError:
                    status = 0
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert ledger.state().rounds_reserved == 0
        monkeypatch.setattr(os, "getpid", lambda: -1)  # the same, where coverage can see it
        with pytest.raises(LedgerError, match="forked process opens its own"):
            ledger.state()


def test_the_write_ahead_log_stays_small(path: Path) -> None:
    sizes = []
    with PrivacyLedger.create(path, budget=BUDGET) as ledger:
        for number in range(270):
            ledger.reserve(TINY, request_id=f"{number}")
            sizes.append(path.with_name("ledger.db-wal").stat().st_size)
        head = ledger.verify()
    assert sizes[-1] < max(sizes) / 4
    with PrivacyLedger.open(path) as ledger:
        assert ledger.verify() == head


# --- the chain ------------------------------------------------------------------------------------------------------


def test_the_export_can_be_checked_without_this_library(path: Path) -> None:
    state = fill(path)
    with PrivacyLedger.open(path) as ledger:
        entries = list(ledger.entries())
    plain = json.loads(json.dumps([entry.to_dict() for entry in entries]))
    head = hashlib.sha256(b"secagg/v1/ledger").hexdigest()
    for number, fields in enumerate(plain):
        assert (fields.pop("sequence"), fields.pop("previous")) == (number, head)
        digest = fields.pop("digest")
        document = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        head = hashlib.sha256(bytes.fromhex(head) + document.encode()).hexdigest()
        assert (head, document) == (digest, entries[number].document)
    assert head == state.head
    transitions = [fields["transition"] for fields in plain]
    assert transitions == ["create", "reserve", "commit", "reserve", "release", "reserve", "commit", "reserve"]
    assert SkellamEvent.from_dict(plain[2]["event"]) == FEWER_LOST


@pytest.mark.parametrize("sequence", range(8))
def test_an_altered_entry_is_named_and_nothing_is_spent_on_it(path: Path, sequence: int) -> None:
    head = fill(path).head
    run_sql(path, f"UPDATE entry SET document = replace(document, '1', '2') WHERE sequence = {sequence}")
    with PrivacyLedger.open(path) as ledger:
        for act in (
            ledger.verify,
            lambda: ledger.verify(expected_head=head),
            ledger.state,
            lambda: ledger.head,
            lambda: list(ledger.entries()),
            lambda: ledger.reserve(TINY, request_id="new"),
            lambda: ledger.charge(Reservation(request_id="fourth", event=ROUND, amount=cost(ROUND))),
        ):
            with pytest.raises(LedgerError, match=f"entry {sequence} was altered"):
                act()
    assert len(read_rows(path)) == 8


def test_damaged_text_and_digests_are_named(path: Path) -> None:
    fill(path)
    run_sql(path, "UPDATE entry SET digest = zeroblob(32) WHERE sequence = 5")
    with PrivacyLedger.open(path) as ledger, pytest.raises(LedgerError, match="entry 5 was altered"):
        ledger.verify()
    run_sql(path, "DROP INDEX one_each", "UPDATE entry SET document = CAST(X'FFFE7B' AS TEXT) WHERE sequence = 3")
    with PrivacyLedger.open(path) as ledger, pytest.raises(LedgerError, match="entry 3 was altered"):
        ledger.verify()


@pytest.mark.parametrize("sequence", range(7))
def test_a_deleted_entry_is_named(path: Path, sequence: int) -> None:
    fill(path)
    run_sql(path, f"DELETE FROM entry WHERE sequence = {sequence}")
    with PrivacyLedger.open(path) as ledger, pytest.raises(LedgerError, match=f"entry {sequence} is missing"):
        ledger.verify()


def test_an_emptied_ledger_is_not_a_fresh_one(path: Path) -> None:
    fill(path)
    run_sql(path, "DELETE FROM entry")
    with PrivacyLedger.open(path) as ledger:
        for act in (ledger.verify, ledger.state, lambda: ledger.reserve(TINY, request_id="new")):
            with pytest.raises(LedgerError, match="entry 0 is missing"):
                act()


def test_a_cut_end_is_seen_by_whoever_pinned_the_head(path: Path) -> None:
    pinned = fill(path).head
    with PrivacyLedger.open(path) as ledger:
        ledger.reserve(TINY, request_id="later")
        assert ledger.verify(expected_head=pinned) == ledger.head != pinned  # growth is no alarm
    run_sql(path, "DELETE FROM entry WHERE sequence >= 7")
    with PrivacyLedger.open(path) as ledger:
        assert ledger.verify() != pinned
        with pytest.raises(LedgerError, match=f"does not contain {pinned}"):
            ledger.verify(expected_head=pinned)


def test_an_open_ledger_notices_what_is_deleted_under_it(path: Path) -> None:
    fill(path)
    with PrivacyLedger.open(path) as ledger:
        head = ledger.head
        run_sql(path, "DELETE FROM entry WHERE sequence >= 6")
        with PrivacyLedger.open(path) as unaware:
            unaware.reserve(TINY, request_id="in its place")
            unaware.reserve(TINY, request_id="and one more")
        for act in (ledger.state, lambda: ledger.head, lambda: ledger.reserve(TINY, request_id="new")):
            with pytest.raises(LedgerError, match="entry 7 was there before and is gone or another now"):
                act()
        with pytest.raises(LedgerError, match=f"does not contain {head}"):
            ledger.verify(expected_head=head)
        run_sql(path, "DELETE FROM entry WHERE sequence >= 1")
        with pytest.raises(LedgerError, match="entry 7 was there before"):
            ledger.state()


def set_fields(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update(changes)


def drop_field(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.pop(name) and None


@pytest.mark.parametrize(
    ("sequence", "edit", "reason"),
    [
        (0, set_fields(amount=LIMIT * 2), "recomputed"),
        (0, lambda fields: fields["budget"].update(epsilon=8.0), "recomputed"),
        (0, lambda fields: fields["budget"].update(order=1), "ORDERS"),
        (0, lambda fields: fields["budget"].update(extra=1), "TypeError"),
        (0, drop_field("budget"), "KeyError"),
        (1, set_fields(amount=cost(ROUND) * 999_999 // 10**6), "recomputed"),
        (1, set_fields(amount=LIMIT + 1), "more than is left"),
        (2, set_fields(amount=0), "recomputed"),
        (2, set_fields(amount=cost(ROUND) + 1), "more than is left"),
        (2, set_fields(amount=-1), "more than is left"),
        (4, set_fields(amount=5), "recomputed"),
        (2, set_fields(transition="reserve"), "reserve of request 'first'"),
        (4, set_fields(request_id="first"), "release of request 'first'"),
        (4, set_fields(request_id="nobody"), "release of request 'nobody'"),
        (3, set_fields(transition="create"), "KeyError"),
        (3, set_fields(request_id=["a list"]), "TypeError"),
        (5, set_fields(event=None), "UnaccountableError"),
        (5, lambda fields: fields["event"].update(event="of a kind to come"), "UnaccountableError"),
        (5, lambda fields: fields["event"].update(variance="1/0"), "UnaccountableError"),
        (6, drop_field("amount"), "KeyError"),
        (6, set_fields(amount="1"), "TypeError"),
        (7, lambda _: "{", "JSONDecodeError"),
        (7, lambda _: "[]", "TypeError"),
    ],
)
def test_a_forged_entry_with_a_good_digest_is_named(
    path: Path, sequence: int, edit: Callable[[dict[str, Any]], object], reason: str
) -> None:
    fill(path)
    forge(path, sequence, edit)
    with (
        PrivacyLedger.open(path) as ledger,
        pytest.raises(LedgerError, match=f"(?s)entry {sequence} is not a valid entry.*{reason}"),
    ):
        ledger.verify()


def test_the_last_bits_of_a_float_are_no_forgery(path: Path) -> None:
    """Another machine may compute a divergence that differs in its last bits."""
    fill(path)
    forge(path, 7, set_fields(amount=cost(ROUND) - 20))
    with PrivacyLedger.open(path) as ledger:
        ledger.verify()
        assert ledger.state().filter_spent == cost(FEWER_LOST) + cost(SMALL) + cost(ROUND) - 20


def test_a_damaged_index_is_found(path: Path) -> None:
    fill(path)
    run_sql(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(sql, '$.transition', '$.amount') WHERE name = 'one_each'",
    )
    with PrivacyLedger.open(path) as ledger, pytest.raises(LedgerError, match=r"is damaged .*index"):
        ledger.verify()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LedgerState]:
    path = tmp_path_factory.mktemp("filled") / "ledger.db"
    return path, fill(path)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_truncated_file_is_taken_for_a_ledger(filled: tuple[Path, LedgerState], data: st.DataObject) -> None:
    original, state = filled
    content = original.read_bytes()
    pages = st.integers(0, len(content) // 4096 - 1).map(lambda page: page * 4096)
    length = data.draw(st.one_of(pages, st.integers(0, len(content) - 1)))
    with tempfile.TemporaryDirectory() as directory:
        cut = Path(directory) / "ledger.db"
        cut.write_bytes(content[:length])
        with pytest.raises(LedgerError), PrivacyLedger.open(cut) as ledger:
            ledger.verify(expected_head=state.head)


@given(data=st.data(), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_no_flipped_bit_changes_what_a_verified_ledger_says(
    filled: tuple[Path, LedgerState], data: st.DataObject, bit: int
) -> None:
    original, state = filled
    content = bytearray(original.read_bytes())
    used = [position for position, byte in enumerate(content) if byte]
    position = data.draw(st.one_of(st.integers(0, 120), st.sampled_from(used)))
    content[position] ^= 1 << bit
    with tempfile.TemporaryDirectory() as directory:
        damaged = Path(directory) / "ledger.db"
        damaged.write_bytes(content)
        with contextlib.suppress(LedgerError), PrivacyLedger.open(damaged) as ledger:
            ledger.verify(expected_head=state.head)
            assert ledger.state() == state


def test_a_copy_of_a_live_ledger_by_vacuum_is_a_ledger(path: Path) -> None:
    with PrivacyLedger.create(path, budget=BUDGET) as ledger:
        ledger.reserve(ROUND, request_id="r")
        backup = path.with_name("backup.db")
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("VACUUM INTO ?", (str(backup),))
        with PrivacyLedger.open(backup) as copy:
            assert copy.state() == ledger.state()
            copy.verify(expected_head=ledger.head)
        shutil.rmtree(path.parent)
