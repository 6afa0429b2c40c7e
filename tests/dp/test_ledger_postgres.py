"""The ledger in PostgreSQL: the semantics of the file, on a real server with its settings, owners and deaths."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import psycopg
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

import dp.ledger_postgres
from dp.errors import BudgetExceededError, LedgerError
from dp.ledger import PrivacyLedger, Reservation
from tests.dp.ledgers import BUDGET, HUGE, ROOT, ROUND, SMALL, TINY, LedgerMachine, cost, fill
from tests.postgres import PostgresServer


@pytest.fixture
def location(postgres: PostgresServer) -> str:
    return postgres.new_schema()


def tamper(server: PostgresServer, location: str, statement: str) -> None:
    """An attacker who owns the table: the trigger is no obstacle."""
    server.execute("ALTER TABLE secagg_ledger DISABLE TRIGGER append_only", address=location)
    server.execute(statement, address=location)


def test_two_connections_agree_with_a_model(postgres: PostgresServer) -> None:
    class OnPostgres(LedgerMachine):
        new_location = staticmethod(postgres.new_schema)

    run_state_machine_as_test(OnPostgres, settings=settings(max_examples=5, stateful_step_count=30, deadline=None))


def test_everything_is_there_in_a_new_process(location: str) -> None:
    state = fill(location)
    script = (
        "import json, sys; from dataclasses import asdict; from dp.ledger import PrivacyLedger\n"
        "with PrivacyLedger.open(sys.argv[1]) as ledger:\n"
        "    ledger.verify(expected_head=sys.argv[2]); print(json.dumps(asdict(ledger.state())))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, location, state.head], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    assert json.loads(output) == asdict(state)


def test_the_chain_is_that_of_a_file(location: str) -> None:
    """A ledger can move from one store to the other: the same acts give the same entries."""
    state = fill(location)
    assert fill(":memory:") == state
    with PrivacyLedger.open(location) as ledger:
        assert [entry.to_dict()["transition"] for entry in ledger.entries()][:3] == ["create", "reserve", "commit"]


def test_create_never_overwrites(location: str) -> None:
    state = fill(location)
    with pytest.raises(LedgerError, match="exists; a ledger is created once and then opened"):
        PrivacyLedger.create(location, budget=BUDGET)
    with PrivacyLedger.open(location) as ledger:
        assert ledger.state() == state


def test_each_schema_keeps_its_own(postgres: PostgresServer) -> None:
    one, other = postgres.new_schema(), postgres.new_schema()
    fill(one)
    with PrivacyLedger.create(other, budget=BUDGET) as ledger:
        assert ledger.state().filter_spent == 0
    first, second, empty = (place.rpartition("%3D")[2] for place in (one, other, postgres.new_schema()))
    with PrivacyLedger.open(postgres.address(search_path=f"{second},{first}")) as ledger:
        assert ledger.state().filter_spent == 0
    with pytest.raises(LedgerError, match=f"no privacy ledger in .*'{empty}'"):
        PrivacyLedger.open(postgres.address(search_path=f"{empty},{first}"))


def test_what_is_no_ledger_is_refused_and_left_alone(postgres: PostgresServer, location: str) -> None:
    with pytest.raises(LedgerError, match="no privacy ledger in PostgreSQL database 'postgres', schema 'ledger_"):
        PrivacyLedger.open(location)
    nowhere = postgres.address(search_path="nowhere")
    with pytest.raises(LedgerError, match="no privacy ledger"):
        PrivacyLedger.open(nowhere)
    with pytest.raises(LedgerError, match="no schema has been selected"):
        PrivacyLedger.create(nowhere, budget=BUDGET)
    postgres.execute("CREATE TABLE secagg_ledger (sequence bigint, document text, digest bytea)", address=location)
    with pytest.raises(LedgerError, match="is not a privacy ledger"):
        PrivacyLedger.open(location)
    with pytest.raises(LedgerError, match="exists"):
        PrivacyLedger.create(location, budget=BUDGET)
    assert postgres.execute("SELECT count(*) FROM secagg_ledger", address=location) == [(0,)]


def test_a_newer_schema_is_refused_and_kept(postgres: PostgresServer, location: str) -> None:
    fill(location)
    postgres.execute("COMMENT ON TABLE secagg_ledger IS 'secagg privacy ledger, schema 2'", address=location)
    with pytest.raises(LedgerError, match="schema 2, this version reads 1: upgrade"):
        PrivacyLedger.open(location)
    assert postgres.execute("SELECT count(*) FROM secagg_ledger", address=location) == [(8,)]


@pytest.mark.parametrize(
    "address",
    [
        "postgres://[user:hunter2",
        "postgresql://host?password=hunter2&nonsense",
    ],
)
def test_a_wrong_address_is_refused_and_no_password_repeated(address: str) -> None:
    with pytest.raises(LedgerError, match="no PostgreSQL URI") as refusal:
        PrivacyLedger.open(address)
    assert "hunter2" not in f"{refusal.value!r} {refusal.value.__cause__!r}"


def test_a_server_that_is_not_there_is_named(postgres: PostgresServer) -> None:
    for address in (
        postgres.address().replace("/postgres?", "/another?"),
        postgres.address().replace("owner@", "owner:hunter2@").replace("host=", "host=%2Fnowhere"),
        "postgresql://owner:hunter2@127.0.0.1:port/another",
    ):
        with pytest.raises(LedgerError, match=r"PostgreSQL database '(another|postgres)' cannot be used") as refusal:
            PrivacyLedger.open(address)
        assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_may_forget_is_refused(postgres: PostgresServer, location: str, setting: str) -> None:
    fill(location)
    set_server(postgres, f"ALTER SYSTEM SET {setting} = off", setting, "off")
    try:
        for act in (PrivacyLedger.open, lambda place: PrivacyLedger.create(place, budget=BUDGET)):
            with pytest.raises(LedgerError, match=f"the server runs with {setting} off and may forget"):
                act(location)
    finally:
        set_server(postgres, f"ALTER SYSTEM RESET {setting}", setting, "on")


def set_server(server: PostgresServer, statement: str, setting: str, value: str) -> None:
    server.execute(statement)
    server.execute("SELECT pg_reload_conf()")
    while server.execute(f"SHOW {setting}") != [(value,)]:
        time.sleep(0.01)


def test_a_commit_waits_for_the_disk_whatever_the_server_does_by_default(
    postgres: PostgresServer, location: str
) -> None:
    lazy = location + "%20-csynchronous_commit%3Doff%20-cdefault_transaction_isolation%3Dserializable"
    assert postgres.execute("SHOW synchronous_commit", address=lazy) == [("off",)]
    postgres.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO noted VALUES (current_setting('synchronous_commit'), current_setting('transaction_isolation'));"
        " RETURN NEW; END $$",
        address=location,
    )
    postgres.execute("CREATE TABLE noted (durability text, isolation text)", address=location)
    with PrivacyLedger.create(lazy, budget=BUDGET) as ledger:
        postgres.execute(
            "CREATE TRIGGER note BEFORE INSERT ON secagg_ledger FOR EACH ROW EXECUTE FUNCTION note()", address=location
        )
        ledger.charge(ledger.reserve(ROUND, request_id="r"))
    assert postgres.execute("SELECT * FROM noted", address=location) == [("on", "read committed")] * 2


def test_entries_cannot_be_changed_by_accident(postgres: PostgresServer, location: str) -> None:
    fill(location)
    for change in ("UPDATE secagg_ledger SET document = '{}'", "DELETE FROM secagg_ledger", "TRUNCATE secagg_ledger"):
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            postgres.execute(change, address=location)


def test_a_role_that_may_only_append_is_enough(postgres: PostgresServer, location: str) -> None:
    fill(location)
    schema = location.rpartition("search_path%3D")[2]
    postgres.execute(f"CREATE ROLE writer_{schema} LOGIN")
    postgres.execute(f"GRANT USAGE ON SCHEMA {schema} TO writer_{schema}")
    postgres.execute(f"GRANT SELECT ON secagg_ledger TO writer_{schema}", address=location)
    writer = postgres.address(user=f"writer_{schema}", search_path=schema)
    with PrivacyLedger.open(writer) as ledger:
        with pytest.raises(LedgerError, match="permission denied"):
            ledger.reserve(SMALL, request_id="not yet")
        postgres.execute(f"GRANT INSERT ON secagg_ledger TO writer_{schema}", address=location)
        ledger.charge(ledger.reserve(SMALL, request_id="now"))
        ledger.verify()
    for statement in ("DELETE FROM secagg_ledger", "UPDATE secagg_ledger SET sequence = 0"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            postgres.execute(statement, address=writer)


# --- tampering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", [0, 3, 7])
def test_an_altered_entry_is_named_and_nothing_is_spent_on_it(
    postgres: PostgresServer, location: str, sequence: int
) -> None:
    head = fill(location).head
    tamper(
        postgres,
        location,
        f"UPDATE secagg_ledger SET document = replace(document, '1', '2') WHERE sequence = {sequence}",
    )
    with PrivacyLedger.open(location) as ledger:
        acts: list[Callable[[], object]] = [
            ledger.verify,
            lambda: ledger.verify(expected_head=head),
            ledger.state,
            lambda: list(ledger.entries()),
            lambda: ledger.reserve(TINY, request_id="new"),
            lambda: ledger.charge(Reservation(request_id="fourth", event=ROUND, amount=cost(ROUND))),
        ]
        for act in acts:
            with pytest.raises(LedgerError, match=f"entry {sequence} was altered"):
                act()
    assert postgres.execute("SELECT count(*) FROM secagg_ledger", address=location) == [(8,)]


@pytest.mark.parametrize("sequence", [0, 4])
def test_a_deleted_entry_is_named(postgres: PostgresServer, location: str, sequence: int) -> None:
    fill(location)
    tamper(postgres, location, f"DELETE FROM secagg_ledger WHERE sequence = {sequence}")
    with PrivacyLedger.open(location) as ledger, pytest.raises(LedgerError, match=f"entry {sequence} is missing"):
        ledger.verify()


def test_a_cut_end_is_seen_by_whoever_pinned_the_head_and_by_whoever_knew_it(
    postgres: PostgresServer, location: str
) -> None:
    """What a standby does that takes over and lags behind."""
    pinned = fill(location).head
    with PrivacyLedger.open(location) as before:
        before.state()
        tamper(postgres, location, "DELETE FROM secagg_ledger WHERE sequence >= 7")
        with PrivacyLedger.open(location) as after:
            after.verify()
            with pytest.raises(LedgerError, match=f"does not contain {pinned}"):
                after.verify(expected_head=pinned)
            after.reserve(TINY, request_id="in its place")
        with pytest.raises(LedgerError, match="entry 7 was there before and is gone or another now"):
            before.reserve(TINY, request_id="new")


def test_an_emptied_ledger_is_not_a_fresh_one(postgres: PostgresServer, location: str) -> None:
    fill(location)
    tamper(postgres, location, "TRUNCATE secagg_ledger")
    with PrivacyLedger.open(location) as ledger:
        for act in (ledger.verify, ledger.state, lambda: ledger.reserve(TINY, request_id="new")):
            with pytest.raises(LedgerError, match="entry 0 is missing"):
                act()


def test_other_columns_are_refused(postgres: PostgresServer, location: str) -> None:
    fill(location)
    postgres.execute("ALTER TABLE secagg_ledger RENAME COLUMN digest TO sum", address=location)
    with PrivacyLedger.open(location) as ledger, pytest.raises(LedgerError, match="cannot be used"):
        ledger.state()


# --- connections ----------------------------------------------------------------------------------------------------


def cut_connections(server: PostgresServer) -> None:
    """Ends the sessions of all others, as an administrator, a firewall or a restart does."""
    server.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid != pg_backend_pid()"
                   " AND backend_type = 'client backend'")  # fmt: skip


def test_a_lost_connection_fails_one_call_and_is_made_again(postgres: PostgresServer, location: str) -> None:
    with PrivacyLedger.create(location, budget=BUDGET) as ledger:
        reservation = ledger.reserve(ROUND, request_id="r")
        cut_connections(postgres)
        with pytest.raises(LedgerError, match="cannot be used"):
            ledger.charge(reservation)
        ledger.charge(reservation)
        assert ledger.state().rounds_committed == 1


def test_a_connection_lost_within_a_write_leaves_nothing_behind(postgres: PostgresServer, location: str) -> None:
    PrivacyLedger.create(location, budget=BUDGET).close()
    store = dp.ledger_postgres.PostgresStore.open(location)
    with contextlib.closing(store):
        (first,) = store.rows(0)
        with pytest.raises(LedgerError, match="cannot be used"), store.writing() as append:  # noqa: PT012
            cut_connections(postgres)
            with pytest.raises(LedgerError):
                store.rows(0)
            assert store.rows(0) == [first]  # by a new connection, which holds no lock and must not write
            append(first._replace(sequence=1))
        assert store.rows(0) == [first]


def test_writers_wait_for_each_other_but_not_for_ever(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with PrivacyLedger.create(location, budget=BUDGET) as ledger:
        store = dp.ledger_postgres.PostgresStore.open(location)
        with contextlib.closing(store), store.writing():
            assert ledger.state().rounds_reserved == 0  # readers do not wait
            monkeypatch.setattr(dp.ledger_postgres, "LOCK_TIMEOUT_SECONDS", 1)
            with pytest.raises(LedgerError, match="lock timeout"):
                ledger.reserve(SMALL, request_id="r")
        ledger.reserve(SMALL, request_id="r")


def hang_until_cut(server: PostgresServer, location: str) -> None:
    """A writer that appends and then sleeps with the lock in its hand."""
    with contextlib.closing(dp.ledger_postgres.PostgresStore.open(location)) as store, store.writing() as append:
        (row,) = store.rows(0)
        append(row._replace(sequence=1))
        while server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") != [(0,)]:
            time.sleep(0.05)


def test_a_writer_that_hangs_loses_the_lock_and_what_it_wrote(
    postgres: PostgresServer, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PrivacyLedger.create(location, budget=BUDGET) as ledger:
        monkeypatch.setattr(dp.ledger_postgres, "LOCK_TIMEOUT_SECONDS", 1)
        with pytest.raises(LedgerError, match="cannot be used"):
            hang_until_cut(postgres, location)
        ledger.reserve(SMALL, request_id="r")
        assert len(list(ledger.entries())) == 2


def test_a_closed_ledger_says_so(location: str) -> None:
    with PrivacyLedger.create(location, budget=BUDGET) as ledger:
        ledger.close()
        for act in (ledger.state, lambda: ledger.reserve(SMALL, request_id="r")):
            with pytest.raises(LedgerError, match="closed"):
                act()
        ledger.close()


def test_a_forked_child_and_another_thread_must_open_their_own(location: str) -> None:
    with PrivacyLedger.create(location, budget=BUDGET) as ledger:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                ledger.reserve(ROUND, request_id="from the child")
            except LedgerError:
                status = 0
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        refusals: list[str] = []

        def elsewhere() -> None:
            try:
                ledger.reserve(ROUND, request_id="from a thread")
            except LedgerError as error:
                refusals.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "each thread opens its own" in refusals[0]
        assert ledger.state().rounds_reserved == 0


def test_what_does_not_fit_is_refused_and_not_recorded(location: str) -> None:
    with PrivacyLedger.create(location, budget=BUDGET) as ledger:
        head = ledger.head
        with pytest.raises(BudgetExceededError, match="Epsilon is 0 of 4 per client at delta 1e-06"):
            ledger.reserve(HUGE, request_id="huge")
        assert ledger.head == head


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dp.ledger_postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"needs psycopg: pip install 'secagg\[postgres\]'"):
        PrivacyLedger.open("postgresql:///anywhere")
