"""Memory that is deleted, begun anew or turned back, so that a client would repeat what it may do once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from protocols import Phase
from secagg import ClientHistory, MemoryHistory, PolicyRefusal, TooFewClientsError

from .parties import Parties, plain_config, updates_for

VICTIM = 2
MODEL = {"w": np.arange(4.0)}
NEXT = {"w": np.arange(4.0) + 1}


def after_one_round(path: Path) -> Parties:
    """Five clients after a round on a model; the victim's history is a file, closed as after the end of a process."""
    parties = Parties(
        plain_config(clients=5, max_dropouts=2),
        histories=lambda client: ClientHistory.enrol(path) if client == VICTIM else MemoryHistory(),
    )
    parties.run(updates_for(parties.config), model=MODEL)
    parties.histories[VICTIM].close()  # type: ignore[attr-defined]
    return parties


def restart(parties: Parties, history: ClientHistory) -> None:
    parties.histories[VICTIM] = history
    parties.clients[VICTIM] = parties.client(VICTIM)


def test_a_deleted_history_stops_the_client(tmp_path: Path) -> None:
    """The attack: forget the first survivor set, then sign one that differs in one client. It never comes to that."""
    path = tmp_path / "history"
    parties = after_one_round(path)
    path.unlink()
    for _ in range(2):  # a refusal leaves nothing behind that the next start would take for an enrolment
        with pytest.raises(PolicyRefusal, match="history is missing: restore it, or enrol"):
            restart(parties, ClientHistory(path))
        assert not path.exists()
    # The server opens its round all the same; the client that could not start says nothing, and so is not in it.
    del parties.clients[VICTIM]
    parties.reset(updates_for(parties.config))
    for message in parties.server.begin(MODEL):
        if message.to != VICTIM:
            assert message.to is not None
            client = parties.clients[message.to]
            parties.call(message.to, lambda client=client, data=message.data: client.begin(data, model=MODEL))  # type: ignore[misc]
    with pytest.raises(TooFewClientsError):
        parties.advance(Phase.FINISHED)
    assert VICTIM not in {client for client, _, _ in parties.sent}


def test_deleted_while_the_client_runs(tmp_path: Path) -> None:
    """The process goes on with the memory that it has, and refuses; the next one does not start."""
    path = tmp_path / "history"
    parties = after_one_round(path)
    restart(parties, ClientHistory(path))
    path.unlink()
    parties.open(updates_for(parties.config), model=MODEL, silent={5: Phase.MASKED_INPUT})
    with pytest.raises(TooFewClientsError):
        parties.advance(Phase.FINISHED)
    assert isinstance(parties.errors[VICTIM], PolicyRefusal)
    parties.histories[VICTIM].close()  # type: ignore[attr-defined]
    with pytest.raises(PolicyRefusal, match="missing"):
        ClientHistory(path)


def test_enrolling_again_does_not_bring_a_client_back(tmp_path: Path) -> None:
    """Under the old identity: its first bundle has a number that peers have seen, and they refuse it by name."""
    path = tmp_path / "history"
    parties = after_one_round(path)
    path.unlink()
    restart(parties, ClientHistory.enrol(path))
    parties.open(updates_for(parties.config), model=NEXT)
    with pytest.raises(TooFewClientsError):
        parties.advance(Phase.FINISHED)
    for client in (1, 3, 4, 5):
        assert isinstance(parties.errors[client], PolicyRefusal)
        assert "key bundle 1 of client 2 was seen before" in str(parties.errors[client])
    assert not parties.agreed
    assert {phase for _, phase, _ in parties.sent} <= {Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS}


def test_an_older_copy_is_noticed_by_peers(tmp_path: Path) -> None:
    """Restored from before the last round, the file is whole: its client cannot tell, those who remember can."""
    path, old = tmp_path / "history", tmp_path / "old"
    parties = after_one_round(path)
    shutil.copy(path, old)
    restart(parties, ClientHistory(path))
    parties.run(updates_for(parties.config), model=NEXT)
    parties.histories[VICTIM].close()  # type: ignore[attr-defined]
    shutil.copy(old, path)
    restart(parties, ClientHistory(path))
    assert parties.histories[VICTIM].history.serial == 1
    parties.open(updates_for(parties.config), model={"w": np.zeros(4)})
    with pytest.raises(TooFewClientsError):
        parties.advance(Phase.FINISHED)
    for client in (1, 3, 4, 5):
        assert "key bundle 2 of client 2 was seen before" in str(parties.errors[client])
    assert not parties.agreed
