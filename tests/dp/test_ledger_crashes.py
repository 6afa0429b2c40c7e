"""The ledger under races, `kill -9`, a full disk and a file that cannot be written: SQLite and PostgreSQL alike."""

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dp.errors import LedgerError
from dp.ledger import PrivacyLedger
from tests.dp.ledgers import BUDGET, LIMIT, ROOT, TINY, cost, fill, make_event
from tests.postgres import NOBODY, PostgresServer

RACER = """
import sys
from dp.accounting import SkellamEvent
from dp.errors import BudgetExceededError
from dp.ledger import PrivacyLedger
location, name, plain = sys.argv[1:]
event = SkellamEvent.from_dict(eval(plain))
with PrivacyLedger.open(location) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    won = 0
    try:
        while True:
            reservation = ledger.reserve(event, request_id=f"{name} {won}")
            won += 1
            if won % 2:
                ledger.charge(reservation)
    except BudgetExceededError:
        print(won, flush=True)
"""

# Forks writers from one process that has imported everything, so that a life takes milliseconds.
NURSERY = """
import itertools, os, sys
import dp.ledger_postgres
from dp.accounting import SkellamEvent
from dp.ledger import PrivacyLedger
location, worst, actual = sys.argv[1], *(SkellamEvent.from_dict(eval(plain)) for plain in sys.argv[2:])
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
for life in sys.stdin:
    writers = []
    for writer in range(2):
        child = os.fork()
        if child == 0:
            try:
                with PrivacyLedger.open(location) as ledger:
                    for turn in itertools.count():
                        request_id = f"{life.strip()}-{writer}-{turn}"
                        reservation = ledger.reserve(worst, request_id=request_id)
                        say("reserve", request_id)
                        ledger.commit(reservation, actual)
                        say("commit", request_id)
            finally:
                os._exit(1)
        writers.append(child)
    say("writers", *writers)
    say("dead", *(os.waitpid(child, 0)[1] for child in writers))
"""

NewLocation = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgres"])
def new_location(request: pytest.FixtureRequest, tmp_path: Path) -> NewLocation:
    """Where a ledger may be created, in either store."""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.new_schema
    return lambda: str(Path(tempfile.mkdtemp(dir=tmp_path)) / "ledger.db")


class TestRaces:
    def test_eight_processes_stop_exactly_at_the_limit(self, new_location: NewLocation) -> None:
        event = make_event(5 * 10**4)
        fitting = LIMIT // cost(event)
        location = new_location()
        with PrivacyLedger.create(location, budget=BUDGET) as ledger, contextlib.ExitStack() as stack:
            racers = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", RACER, location, f"racer {number}", repr(event.to_dict())],
                        cwd=ROOT,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                for number in range(8)
            ]
            for racer in racers:
                assert racer.stdout is not None
                assert racer.stdout.readline() == "ready\n"
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("go\n")
                racer.stdin.flush()
            assert sum(int(racer.communicate()[0]) for racer in racers) == fitting
            state = ledger.state()
            assert state.filter_spent == fitting * cost(event) <= LIMIT < state.filter_spent + cost(event)
            assert state.rounds_committed + state.rounds_reserved == fitting
            ledger.verify()


class Writers:
    """Two processes at a time that reserve and commit without end, and what they said they had done."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._say, self._hear = process.stdin, process.stdout
        self.acknowledged: set[tuple[str, str]] = set()

    def start(self, life: int, *, patience: int) -> list[int]:
        """New writers; waits until they have done `patience` things and returns their process ids."""
        self._say.write(f"{life}\n")
        self._say.flush()
        writers: list[int] = []
        seen = 0
        while not (writers and seen >= patience):
            word, *rest = self._hear.readline().split()
            if word == "writers":
                writers = [int(pid) for pid in rest]
            else:
                self.acknowledged.add((word, rest[0]))
                seen += 1
        return writers

    def bury(self) -> list[int]:
        """Waits for the end of the writers; how each ended."""
        for line in self._hear:
            word, *rest = line.split()
            if word == "dead":
                return [int(status) for status in rest]
            self.acknowledged.add((word, rest[0]))
        raise AssertionError("the nursery ended")


@contextlib.contextmanager
def nursery(location: str) -> Iterator[Writers]:
    halved = make_event(1, sampling_rate=Fraction(1, 2**61))
    arguments = [sys.executable, "-c", NURSERY, location, repr(TINY.to_dict()), repr(halved.to_dict())]
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Writers(process)


def check_nothing_is_lost(location: str, writers: Writers, *, head: str, lives: int) -> tuple[str, int]:
    """All that was acknowledged is there, once, and hardly more; returns the head, and how many are unfinished."""
    with PrivacyLedger.open(location) as ledger:
        head = ledger.verify(expected_head=head)
        state = ledger.state()
        entries = list(ledger.entries())
    while entries[-1].digest != state.head:  # a server may end what a dead writer began
        entries.pop()
    plain = [entry.to_dict() for entry in entries[1:]]
    written = [(str(fields["transition"]), str(fields["request_id"])) for fields in plain]
    assert len(set(written)) == len(written)
    assert writers.acknowledged <= set(written)
    assert len(set(written) - writers.acknowledged) <= 2 * lives
    assert state.filter_spent == sum(word == "reserve" for word, _ in written)  # each costs one unit
    return head, state.rounds_reserved


def kill_writers(location: str, *, lives: int, seed: int) -> int:
    """Kills two writers at a random moment, again and again; returns how many kills fell between two transitions."""
    timing = np.random.default_rng(seed)
    with PrivacyLedger.create(location, budget=BUDGET) as ledger:
        head = ledger.head
    unfinished = 0
    with nursery(location) as writers:
        for life in range(lives):
            pids = writers.start(life, patience=int(timing.integers(0, 15)))
            time.sleep(float(timing.uniform(0, 0.002)))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            assert writers.bury() == [signal.SIGKILL] * 2, "a writer ended by itself"
            head, unfinished = check_nothing_is_lost(location, writers, head=head, lives=life + 1)
    assert len(writers.acknowledged) > 2 * lives
    return unfinished


def test_kill_9_loses_no_acknowledged_spend(new_location: NewLocation) -> None:
    assert kill_writers(new_location(), lives=25, seed=0) > 0, "no kill fell between reserve and commit"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_kills_lose_no_acknowledged_spend(new_location: NewLocation, seed: int) -> None:
    assert kill_writers(new_location(), lives=50, seed=seed) > 0, "no kill fell between reserve and commit"


def test_a_crash_of_the_database_server_loses_no_acknowledged_spend(postgres: PostgresServer) -> None:
    location = postgres.new_schema()
    with PrivacyLedger.create(location, budget=BUDGET) as ledger, nursery(location) as writers:
        head = ledger.head
        for life in range(2):
            writers.start(life, patience=50)
            postgres.stop(signal.SIGQUIT)
            assert writers.bury() == [1 << 8] * 2, "a writer did not notice"
            postgres.start()
            head, _ = check_nothing_is_lost(location, writers, head=head, lives=life + 1)
        with pytest.raises(LedgerError, match="cannot be used"):
            ledger.state()  # finds its connection lost
        assert ledger.verify(expected_head=head) == head  # and makes a new one


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def reserve_until_refused(ledger: PrivacyLedger) -> int:
    done = 0
    with contextlib.suppress(LedgerError):
        for done in itertools.count():
            ledger.reserve(TINY, request_id=f"{done}")
    return done


def test_a_full_disk_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    for room in range(0, 40_000, 2_500):
        path = tmp_path / f"{room}.db"
        log = path.with_name(path.name + "-wal")
        with PrivacyLedger.create(path, budget=BUDGET) as ledger:
            with largest_file(log.stat().st_size + room):
                done = reserve_until_refused(ledger)
                with pytest.raises(LedgerError, match="free the file and disk"):
                    ledger.reserve(TINY, request_id="again")
            assert ledger.state().filter_spent == done
            with PrivacyLedger.open(path) as other:
                assert other.verify() == ledger.head
            ledger.reserve(TINY, request_id="once there is room again")
            assert ledger.state().rounds_reserved == done + 1


def test_what_cannot_be_written_refuses_and_is_left_alone() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "ledger.db"
        fill(path)
        before = path.read_bytes()
        path.chmod(0o444)
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(NOBODY)
        try:
            with pytest.raises(LedgerError), PrivacyLedger.open(path) as ledger:
                ledger.reserve(TINY, request_id="new")
            with pytest.raises(LedgerError, match="Permission denied"):
                PrivacyLedger.create(folder / "another.db", budget=BUDGET)
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert [file.name for file in folder.iterdir()] == ["ledger.db"]
        assert path.read_bytes() == before
