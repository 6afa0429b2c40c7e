"""ClientHistory: what was appended is never forgotten, and what cannot be trusted stops the client."""

from __future__ import annotations

import copy
import os
import random
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols import BundlesSeen, ClientId, History, KeysAdvertised, Record, SurvivorsSigned
from secagg import ClientHistory, MemoryHistory, PolicyRefusal, PrivacyLedger

from .parties import private_config

ROOT = Path(__file__).parents[2]
IDS = st.integers(1, 2**31 - 1).map(ClientId)
SERIALS = st.integers(1, 2**62 - 1)
DIGESTS = st.binary(min_size=32, max_size=32)
RECORDS = st.one_of(
    st.builds(KeysAdvertised, round_id=DIGESTS, serial=SERIALS),
    st.builds(BundlesSeen, serials=st.dictionaries(IDS, SERIALS, max_size=5)),
    st.builds(
        SurvivorsSigned, model=st.sampled_from((bytes(32), bytes([7]) * 32)), survivors=st.frozensets(IDS, max_size=5)
    ),
)


def some_records(rounds: int) -> list[Record]:
    everybody = [ClientId(client) for client in range(1, 6)]
    return [
        record
        for number in range(1, rounds + 1)
        for record in (
            KeysAdvertised(round_id=bytes([number]) * 32, serial=number),
            BundlesSeen(serials=dict.fromkeys(everybody, number)),
            SurvivorsSigned(model=bytes([number]) * 32, survivors=frozenset(everybody)),
        )
    ]


def written(path: Path, records: Sequence[Record]) -> History:
    """A closed history file with these records, and what it holds."""
    history = ClientHistory.enrol(path)
    for record in records:
        history.append(record)
    history.close()
    return history.history


def opened(path: Path) -> History:
    history = ClientHistory(path)
    try:
        return history.history
    finally:
        history.close()


@given(record_lists=st.lists(st.lists(RECORDS, max_size=6), max_size=4))
def test_histories_of_one_simulation_share_groups_and_nothing_else(record_lists: list[list[Record]]) -> None:
    groups: dict[frozenset[ClientId], frozenset[ClientId]] = {}
    seen: dict[frozenset[ClientId], int] = {}
    for records in record_lists:
        memory = MemoryHistory(groups=groups)
        for record in records:
            memory.append(copy.deepcopy(record))
        assert memory.history == History.of(records)
        for kept in (group for sets in memory.history.signed.values() for group in sets):
            assert seen.setdefault(kept, id(groups[kept])) == id(kept)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=8), cut=st.integers(0, 8))
def test_reopening_gives_what_was_appended(tmp_path: Path, records: list[Record], cut: int) -> None:
    path = tmp_path / os.urandom(8).hex()
    memory = MemoryHistory()
    history = ClientHistory.enrol(path)
    for number, record in enumerate(records):
        if number == cut:
            history.close()
            history = ClientHistory(path)
        history.append(record)
        memory.append(record)
        assert history.history == memory.history
    history.close()
    assert opened(path) == memory.history == History.of(records)


def test_survives_a_kill_right_after_append(tmp_path: Path) -> None:
    """The process dies at once: no close, no exit handlers."""
    path = tmp_path / "history"
    program = f"""
import os, signal
from protocols import KeysAdvertised, SurvivorsSigned
from secagg import ClientHistory
history = ClientHistory.enrol({str(path)!r})
for serial in range(1, 21):
    history.append(KeysAdvertised(round_id=bytes([serial]) * 32, serial=serial))
    history.append(SurvivorsSigned(model=bytes(32), survivors=frozenset({{1, 2, serial + 2}})))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    history = opened(path)
    assert history.serial == 20
    assert history.rounds == {bytes([serial]) * 32 for serial in range(1, 21)}
    assert history.signed[bytes(32)] == tuple(frozenset({1, 2, serial + 2}) for serial in range(1, 21))


class TestEnrolment:
    def test_never_replaces_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "history"
        before = written(path, some_records(2))
        for content in (path.read_bytes(), b"", b"mine"):
            path.write_bytes(content)
            with pytest.raises(FileExistsError):
                ClientHistory.enrol(path)
            assert path.read_bytes() == content
        (tmp_path / "link").symlink_to(path)
        with pytest.raises(FileExistsError):
            ClientHistory.enrol(tmp_path / "link")
        assert before.serial == 2

    def test_only_the_owner_can_read_it(self, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            history = ClientHistory.enrol(tmp_path / "history")
            history.append(some_records(1)[0])
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
            history.close()
        finally:
            os.umask(old)
        assert "history" in modes
        assert set(modes.values()) == {0o600}, modes

    def test_starts_empty(self, tmp_path: Path) -> None:
        assert written(tmp_path / "history", ()) == History()
        assert opened(tmp_path / "history") == History()


class TestRefusals:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyRefusal, match=r"nothing is missing: restore it, or enrol"):
            ClientHistory(tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()
        with pytest.raises(PolicyRefusal, match="missing"):
            ClientHistory(tmp_path)

    def test_foreign(self, tmp_path: Path) -> None:
        budget = private_config().budget()
        assert budget is not None
        PrivacyLedger.create(tmp_path / "ledger", budget=budget).close()
        database = sqlite3.connect(tmp_path / "database")
        database.execute("CREATE TABLE record (number INTEGER PRIMARY KEY, record BLOB NOT NULL)")
        database.commit()
        database.close()
        (tmp_path / "text").write_text("dear diary " * 1000)
        (tmp_path / "empty").touch()
        for name in ("ledger", "database", "text", "empty"):
            content = (tmp_path / name).read_bytes()
            with pytest.raises(PolicyRefusal, match=name):
                ClientHistory(tmp_path / name)
            assert (tmp_path / name).read_bytes() == content

    @pytest.mark.parametrize("rounds", [3, 40])
    def test_truncated_anywhere(self, tmp_path: Path, rounds: int) -> None:
        written(tmp_path / "history", some_records(rounds))
        content = (tmp_path / "history").read_bytes()
        for number, size in enumerate({*range(0, len(content), 509), *range(0, len(content), 4096), len(content) - 1}):
            path = tmp_path / f"cut-{number}"
            path.write_bytes(content[:size])
            with pytest.raises(PolicyRefusal):
                ClientHistory(path)

    @pytest.mark.parametrize("rounds", [3, 40])
    def test_damaged_anywhere(self, tmp_path: Path, rounds: int) -> None:
        """Bytes flip: either they do not matter, or the client stops. It never goes on with another history."""
        whole = written(tmp_path / "history", some_records(rounds))
        content = (tmp_path / "history").read_bytes()
        rng = random.Random(rounds)
        refused = 0
        for number in range(400):
            damaged = bytearray(content)
            for _ in range(rng.choice((1, 4, 64))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path = tmp_path / f"damaged-{number}"
            path.write_bytes(damaged)
            try:
                assert opened(path) == whole
            except PolicyRefusal:
                refused += 1
        assert refused > 100

    def test_a_record_taken_out_or_changed(self, tmp_path: Path) -> None:
        for number, damage in enumerate(
            (
                "DELETE FROM record WHERE number = 2",
                "UPDATE record SET record = (SELECT record FROM record WHERE number = 1) WHERE number = 4",
                "UPDATE record SET record = x'93' WHERE number = 1",
                "UPDATE record SET record = x'' WHERE number = 3",
                "UPDATE record SET number = 100 WHERE number = 1",
            )
        ):
            path = tmp_path / f"history-{number}"
            written(path, some_records(3))
            database = sqlite3.connect(path)
            database.execute(damage)
            database.commit()
            database.close()
            with pytest.raises(PolicyRefusal):
                ClientHistory(path)

    def test_in_use_by_somebody_else(self, tmp_path: Path) -> None:
        """Two processes over one file would each sign what the other's record forbids."""
        first = ClientHistory.enrol(tmp_path / "history")
        program = f"import secagg; secagg.ClientHistory({str(tmp_path / 'history')!r})"
        second = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "PolicyRefusal" in second.stderr.splitlines()[-1]
        first.append(some_records(1)[0])
        first.close()
        assert opened(tmp_path / "history").serial == 1

    def test_written_by_a_newer_version(self, tmp_path: Path) -> None:
        """A record of a kind that this version does not know may forbid what this version would sign."""
        history = ClientHistory.enrol(tmp_path / "history")
        history.append(some_records(1)[0])
        newer = msgspec.msgpack.encode(["rotated", bytes(32)])
        database = history._database  # the file is locked for everybody else
        database.execute("INSERT INTO record (record, digest) VALUES (?, ?)", (newer, history._link(newer)))
        history.close()
        with pytest.raises(PolicyRefusal):
            ClientHistory(tmp_path / "history")

    def test_append_after_close(self, tmp_path: Path) -> None:
        history = ClientHistory.enrol(tmp_path / "history")
        history.close()
        with pytest.raises(PolicyRefusal, match="cannot be written"):
            history.append(some_records(1)[0])
        assert history.history == History()
