"""A node's files: made once, never replaced; keys of sealed states that serve once, whatever crashes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dp import Reservation
from protocols import Phase, PolicyRefusal
from secagg import AggregationConfig, LedgerError, Server
from secagg.adapters.flower import Node, enrol, read_roster, simulate_nodes, write_roster
from secagg.adapters.flower.node import AGREEMENT, ROSTER, Vault
from secagg.layout import Layout

SETTINGS = {
    "secagg-clients": 4, "secagg-max-dropouts": 1, "secagg-max-colluders": 0, "secagg-clip-norm": 1.0,
    "secagg-epsilon": 4.0, "secagg-delta": 1e-6, "secagg-rounds": 2,
}  # fmt: skip
LAYOUT = Layout.of({"w": np.zeros(3)})
PLAIN_TYPES = (bytes, bool, int, float, str, Reservation, AggregationConfig)


@pytest.fixture
def node(nodes: Path) -> Path:
    simulate_nodes(nodes, SETTINGS)
    return nodes / "client-2"


class TestEnrolment:
    def test_makes_a_private_directory_once(self, tmp_path: Path) -> None:
        public = enrol(tmp_path / "node", 7)
        assert len(public) == 32
        assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700
        for path in (tmp_path / "node").iterdir():
            assert path.stat().st_mode & 0o077 == 0, path
        before = (tmp_path / "node" / "identity.toml").read_text()
        with pytest.raises(FileExistsError):
            enrol(tmp_path / "node", 7)
        assert (tmp_path / "node" / "identity.toml").read_text() == before

    def test_rosters_are_what_the_operators_sent(self, tmp_path: Path) -> None:
        identities = {client: enrol(tmp_path / str(client), client) for client in (3, 1, 2)}
        write_roster(tmp_path / ROSTER, identities)
        assert dict(read_roster(tmp_path / ROSTER)) == identities
        with pytest.raises(FileExistsError):
            write_roster(tmp_path / ROSTER, identities)

    @pytest.mark.parametrize("text", ["", '1 = "zz"', "1 = 2", '1 = "00"', 'a = "00"', "["])
    def test_a_roster_that_is_none_is_refused(self, text: str, tmp_path: Path) -> None:
        (tmp_path / ROSTER).write_text(text)
        with pytest.raises(PolicyRefusal, match="cannot be used"):
            read_roster(tmp_path / ROSTER)

    @pytest.mark.parametrize("name", ["identity.toml", "history.sqlite", "vault.sqlite", ROSTER, AGREEMENT])
    def test_nothing_may_be_missing(self, name: str, node: Path) -> None:
        (node / name).unlink()
        with pytest.raises(PolicyRefusal), Node(node):
            pass

    def test_an_identity_of_another_is_refused(self, node: Path) -> None:
        (node / "identity.toml").write_text(
            (node.parent / "client-1" / "identity.toml").read_text().replace("= 1", "= 2")
        )
        config = _config()
        with (
            Node(node) as opened,
            pytest.raises(ValueError, match="pins another identity for client 2"),
            opened.client(config),
        ):
            pass

    def test_one_process_at_a_time(self, node: Path) -> None:
        with Node(node), pytest.raises(PolicyRefusal, match="locked"):
            Node(node)

    def test_a_ledger_that_went_missing_is_not_replaced(self, node: Path) -> None:
        from protocols import KeysAdvertised

        with Node(node) as opened:
            with opened.client(_config()):
                pass  # the first use makes the ledger
            opened._history.append(KeysAdvertised(round_id=bytes(32), serial=1))
        (node / "ledger.sqlite").unlink()
        with Node(node) as opened, pytest.raises(LedgerError, match="no privacy ledger"), opened.client(_config()):
            pass


class TestResuming:
    def test_brings_back_all_that_a_client_is(self, node: Path) -> None:
        """Every attribute: whoever gives a client another one must bring it back here."""
        config, roster = _config(), read_roster(node.parent / ROSTER)
        model = {"w": np.ones(3)}
        digest = LAYOUT.model_digest(model)
        invitation = Server(config, roster=roster).begin(model)[0].data
        with Node(node) as opened, opened.client(config) as client:
            (sent,) = client.open_round(invitation, model=digest, keys=None)
            assert sent
            before = {name: value for name, value in vars(client).items() if isinstance(value, PLAIN_TYPES)}
            names = vars(client).keys()
            parked = client.park()
            assert client.phase is Phase.READY
        with Node(node) as opened, opened.client(config) as client:
            assert client.resume(parked) == digest
            assert vars(client).keys() == names
            assert client.phase is Phase.ADVERTISE_KEYS
            assert {name: vars(client)[name] for name in before} == before
            assert {"_seed", "_contributed", "_reservation"} <= before.keys()


class TestVault:
    def test_a_key_is_given_once(self, node: Path) -> None:
        vault = Vault(node / "vault.sqlite")
        number, key = vault.put(request="round 1", sent=True)
        assert vault.take(number) == (key, "round 1", True)
        for _ in range(2):
            with pytest.raises(PolicyRefusal, match=f"sealed state {number} was used before"):
                vault.take(number)

    def test_numbers_never_come_again(self, node: Path) -> None:
        vault = Vault(node / "vault.sqlite")
        first, _ = vault.put()
        vault.clear()
        second, _ = vault.put()
        assert second > first
        with pytest.raises(PolicyRefusal):
            vault.take(first)

    def test_a_key_leaves_the_file_when_it_is_taken(self, node: Path) -> None:
        vault = Vault(node / "vault.sqlite")
        number, key = vault.put()
        assert key in (node / "vault.sqlite").read_bytes()
        vault.take(number)
        assert all(key not in path.read_bytes() for path in node.iterdir())
        number, key = vault.put()
        vault.clear()
        assert all(key not in path.read_bytes() for path in node.iterdir())

    def test_a_kill_at_the_moment_of_taking_burns_the_key(self, node: Path) -> None:
        vault = Vault(node / "vault.sqlite")
        number, _ = vault.put()
        program = (
            "import os, signal, sys; from pathlib import Path; from secagg.adapters.flower.node import Vault\n"
            f"Vault(Path(sys.argv[1])).take({number}, sending=True); os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, node / "vault.sqlite"], check=False)
        assert done.returncode == -9
        with pytest.raises(PolicyRefusal):
            vault.take(number)

    def test_two_processes_do_not_get_the_same_key(self, node: Path) -> None:
        vault = Vault(node / "vault.sqlite")
        number, _ = vault.put()
        program = (
            "import sys; from pathlib import Path; from secagg.adapters.flower.node import Vault\n"
            "from protocols import PolicyRefusal\n"
            "vault = Vault(Path(sys.argv[1])); sys.stdin.readline()\n"
            f"try:\n    vault.take({number}); print('got it')\nexcept PolicyRefusal:\n    print('refused')"
        )
        racers = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", program, node / "vault.sqlite"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        answers = [racer.communicate("go\n", timeout=60)[0].strip() for racer in racers]
        assert sorted(answers) == ["got it", "refused"]

    def test_what_was_sent_stays_sent(self, node: Path) -> None:
        vault = Vault(node / "vault.sqlite")
        number, _ = vault.put(request="a")
        assert vault.unsent() == {"a"}
        vault.take(number, sending=True)
        assert vault.unsent() == set()
        vault.put(request="a")
        assert vault.unsent() == set()

    def test_a_damaged_file_is_refused(self, node: Path) -> None:
        (node / "vault.sqlite").write_bytes(os.urandom(4096))
        with pytest.raises(PolicyRefusal, match="vault"), Node(node):
            pass


def _config():  # type: ignore[no-untyped-def]
    from secagg.adapters.flower import Agreement

    return Agreement.of(SETTINGS).config(LAYOUT)


def test_a_roster_cannot_be_read_as_a_history(node: Path) -> None:
    database = sqlite3.connect(node / "history.sqlite")
    database.execute("PRAGMA application_id = 1")
    database.close()
    with pytest.raises(PolicyRefusal, match="not a client history"), Node(node):
        pass
