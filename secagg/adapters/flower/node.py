"""What one node keeps on its own disk: who it is, what it agreed to, and what it must never forget.

    identity.toml     its client id and its private signing key        made by `enrol`, once
    history.sqlite    used rounds, keys seen, survivor sets signed     made by `enrol`, once
    vault.sqlite      one-use keys of sealed sessions                  made by `enrol`, once
    ledger.sqlite     its privacy budget                               made in its first round
    roster.toml       all clients' public keys                         put there by its operator
    agreement.toml    the `secagg-` keys it agreed to                  put there by its operator

Rules:

1. Nothing here comes from the server. A node without these files takes part in nothing.
2. Flower starts a process for every message. In between, the session is sealed: the ciphertext stays with Flower (the
   node's `Context.state`), its one-use key in the vault. Taking a key out destroys it first, durably, so no state runs
   twice; a session that was lost, or left behind, cannot be opened.
3. A round that broke off is settled when the next one begins: charged in full if its vector may have left, else free.
4. One process at a time: the history is locked while a message is handled.
"""

from __future__ import annotations

import os
import sqlite3
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dp import PrivacyLedger, Reservation
from dp.accounting import event_from_dict
from protocols import ClientId, Identity, LocalProtocolError, PolicyRefusal, Roster, SendMessage
from protocols.pairwise import OneTimeKeys
from protocols.policy import KeysAdvertised
from protocols.primitives.keys import SUITES
from protocols.snapshot import KEY_BYTES, open_keys, open_session, seal_keys, seal_session

from ...client import Client
from ...config import AggregationConfig
from ...history import ClientHistory
from .agreement import KEYS, Agreement, Value

_IDENTITY, _HISTORY, _VAULT, _LEDGER = "identity.toml", "history.sqlite", "vault.sqlite", "ledger.sqlite"
ROSTER, AGREEMENT = "roster.toml", "agreement.toml"


def enrol(directory: str | Path, client_id: int) -> bytes:
    """Makes a node's directory, with a fresh identity and an empty history.

    Args:
        directory: where; created with mode 0700.
        client_id: the client's number on the roster.

    Returns:
        The public identity, 32 bytes: it goes into everybody's `roster.toml`.

    Raises:
        FileExistsError: this directory has an identity or a history already; neither is ever replaced.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    private = os.urandom(32)
    identity = Identity(private)
    _write_new(directory / _IDENTITY, f'client = {client_id}\nprivate = "{private.hex()}"\n')
    ClientHistory.enrol(directory / _HISTORY).close()
    Vault.enrol(directory / _VAULT)
    return identity.public


def write_roster(path: str | Path, identities: Mapping[int, bytes]) -> None:
    """Writes `roster.toml` from the public identities that the nodes' operators sent.

    Raises:
        FileExistsError: there is a roster already.
    """
    _write_new(Path(path), "".join(f'{client} = "{identities[client].hex()}"\n' for client in sorted(identities)))


def read_roster(path: str | Path) -> Roster:
    """Reads `roster.toml`.

    Raises:
        PolicyRefusal: it is missing or not usable: without it nobody can be told from anybody else.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return Roster({ClientId(int(client)): bytes.fromhex(public) for client, public in data.items()})
    except (OSError, ValueError, TypeError) as error:
        raise PolicyRefusal(f"the roster {path} cannot be used: {error}") from None


def write_agreement(path: str | Path, settings: Mapping[str, Value]) -> None:
    """Writes `agreement.toml`: the `secagg-` keys that a node agrees to.

    Raises:
        ValueError: a key is missing, unknown or has a wrong value.
        FileExistsError: there is an agreement already.
    """
    Agreement.of(settings)
    lines = [f"{name} = {_toml(settings[name])}\n" for name in sorted(KEYS & set(settings))]
    _write_new(Path(path), "".join(lines))


class Vault:
    """One-use keys of sealed states, and which round each belongs to. A key that was taken out is gone.

    Args:
        path: the file made by `enrol`.

    Raises:
        PolicyRefusal: the file is missing or not usable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise PolicyRefusal(f"the vault {path} is missing: enrol this client anew under another id")
        self._database = sqlite3.connect(path, isolation_level=None)
        with self._storage() as database:
            database.execute("PRAGMA secure_delete = ON")
            database.execute("PRAGMA synchronous = EXTRA")
            database.execute("SELECT number FROM sealed LIMIT 0")

    @staticmethod
    def enrol(path: Path) -> None:
        """Creates an empty vault."""
        path.touch(mode=0o600, exist_ok=False)
        database = sqlite3.connect(path, isolation_level=None)
        # AUTOINCREMENT: a number is never given twice, even after its row is gone.
        database.execute(
            "CREATE TABLE sealed (number INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB, request TEXT, sent INTEGER)"
        )
        database.close()

    def put(self, *, request: str = "", sent: bool = False) -> tuple[int, bytes]:
        """A fresh key and the number under which it can be taken, once.

        Args:
            request: the ledger's name of the round that the state belongs to.
            sent: whether this client's vector has left.
        """
        key = os.urandom(KEY_BYTES)
        with self._storage() as database:
            row = (key, request, int(sent))
            cursor = database.execute("INSERT INTO sealed (key, request, sent) VALUES (?, ?, ?)", row)
        return int(cursor.lastrowid or 0), key

    def take(self, number: int, *, sending: bool = False) -> tuple[bytes, str, bool]:
        """The key of that number, which is destroyed before this returns; its round; whether the vector has left.

        Args:
            number: as `put` gave it.
            sending: the vector may leave from here on; whoever settles the round must take it for sent.

        Raises:
            PolicyRefusal: the key was taken before, or there never was one.
        """
        with self._storage() as database, database:
            database.execute("BEGIN IMMEDIATE")
            row = database.execute("SELECT key, request, sent FROM sealed WHERE number = ?", (number,)).fetchone()
            database.execute(
                "UPDATE sealed SET key = NULL, sent = max(sent, ?) WHERE number = ?", (int(sending), number)
            )
        if row is None or row[0] is None:
            raise PolicyRefusal(f"sealed state {number} was used before, or was never made here")
        return row[0], row[1], bool(row[2])

    def unsent(self) -> set[str]:
        """Rounds whose vector surely has not left."""
        with self._storage() as database:
            rows = database.execute("SELECT request FROM sealed GROUP BY request HAVING max(sent) = 0").fetchall()
        return {request for (request,) in rows}

    def clear(self, *, keep: int = 0) -> None:
        """Destroys all keys but one."""
        with self._storage() as database:
            database.execute("DELETE FROM sealed WHERE number != ?", (keep,))

    @contextmanager
    def _storage(self) -> Iterator[sqlite3.Connection]:
        """The file, whose errors mean that nothing may depend on it."""
        try:
            yield self._database
        except sqlite3.Error as error:
            raise PolicyRefusal(f"the vault {self._path} cannot be used: {error}") from None

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A state that waits for the next message: it says nothing without the vault's key."""

    number: int
    sealed: bytes


class Node:
    """One node's files, opened for one message; a context manager.

    Args:
        directory: made by `enrol`, with the operator's roster and agreement in it.

    Raises:
        PolicyRefusal: a file is missing, damaged or in use.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        try:
            data = tomllib.loads((self._directory / _IDENTITY).read_text(encoding="utf-8"))
            self.client_id = ClientId(int(data["client"]))
            self._identity = Identity(bytes.fromhex(data["private"]))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise PolicyRefusal(f"{self._directory} is not the directory of an enrolled node: {error}") from None
        self.roster = read_roster(self._directory / ROSTER)
        self.agreement = Agreement.read(self._directory / AGREEMENT)
        with ExitStack() as on_failure:
            self._history = ClientHistory(self._directory / _HISTORY)
            on_failure.callback(self._history.close)
            self._vault = Vault(self._directory / _VAULT)
            on_failure.pop_all()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self._vault.close()
        self._history.close()

    @contextmanager
    def client(self, config: AggregationConfig) -> Iterator[NodeClient]:
        """This node as a client of one configuration."""
        ledger = self._ledger(config)
        try:
            yield NodeClient(
                config,
                self.client_id,
                identity=self._identity,
                roster=self.roster,
                history=self._history,
                ledger=ledger,
                vault=self._vault,
            )
        finally:
            if ledger is not None:
                ledger.close()

    def _ledger(self, config: AggregationConfig) -> PrivacyLedger | None:
        budget, path = config.budget(), self._directory / _LEDGER
        if budget is None:
            return None
        if not path.exists() and not self._history.history.rounds:
            return PrivacyLedger.create(path, budget=budget)
        return PrivacyLedger.open(path)  # missing after the first round: refused, for it would forget what was spent


class NodeClient(Client):
    """A client whose session is put away between messages."""

    def __init__(self, *arguments: object, vault: Vault, **others: object) -> None:
        super().__init__(*arguments, **others)  # type: ignore[arg-type]
        self._vault = vault
        self._next_keys: OneTimeKeys | None = None

    def open_round(self, invitation: bytes, *, model: bytes, keys: Parked | None) -> list[bytes]:
        """Settles what was left behind, and opens a round.

        Args:
            invitation: the server's bytes.
            model: digest of the model that the server will send.
            keys: one-time keys whose bundle the server has; without them, fresh ones are advertised.

        Returns:
            What to send: the advertised keys, or nothing.
        """
        in_advance = None
        if keys is not None:
            key, _, _ = self._vault.take(keys.number)
            in_advance = open_keys(keys.sealed, key=key, context=self._owner(keys.number))
        self._settle_left_behind()
        history = self._history.history
        if in_advance is None:
            history = history.after(KeysAdvertised(round_id=b"", serial=history.serial + 1))
        self._next_keys = OneTimeKeys(
            self.client_id,
            identity=self._identity,
            roster=self._roster,
            suite=SUITES[self.config.round_config(round_id=bytes(32), model=model).suite],
            history=history,
            rand=self._rand,
        )
        events = self.begin(invitation, model=model, keys_in_advance=in_advance, next_keys=self._next_keys)
        return [event.data for event in events if isinstance(event, SendMessage)]

    def park(self) -> Parked:
        """Puts the session away; this object has none afterwards."""
        session, request = self._live(), self._reservation.request_id if self._reservation else ""
        number, key = self._vault.put(request=request, sent=self._contributed)
        sealed = seal_session(session, key=key, context=self._context(number))
        self._session, self._reservation, self._contributed = None, None, False
        return Parked(number=number, sealed=sealed)

    def resume(self, parked: Parked, *, sending: bool = False) -> bytes:
        """Takes the session up again.

        Args:
            parked: what `park` gave, in this process or another.
            sending: the vector may leave from here on.

        Returns:
            The digest of the model that the round is about.

        Raises:
            PolicyRefusal: this state was used before.
            LocalProtocolError: it is not a state of this node.
        """
        key, request, sent = self._vault.take(parked.number, sending=sending)
        try:
            opened = open_session(
                parked.sealed,
                key=key,
                context=self._context(parked.number),
                identity=self._identity,
                roster=self._roster,
                policy=self.config.policy(),
                history=self._history.history,
                rand=self._rand,
            )
        except ValueError as error:
            raise LocalProtocolError(f"sealed state {parked.number}: {error}", client_id=self.client_id) from None
        self._session, self._next_keys, self._contributed = opened.session, opened.next_keys, sent
        if request and self.ledger is not None and self.config.mechanism is not None:
            worst = self.config.mechanism.event(survivors=self.config.min_survivors)
            self._reservation = self.ledger.reserve(worst, request_id=request)
        self._seed = self.config.round_seed(round_id=opened.config.round_id, model=opened.config.model)
        return opened.config.model

    def leave(self) -> None:
        """Ends the round for this client, whatever it was: settled, and with no state left to take up."""
        self.abandon()
        self._vault.clear()

    def close_round(self) -> Parked | None:
        """After the last message: forgets the round, and puts away the keys that went with it."""
        if self._next_keys is None:
            self._vault.clear()
            return None
        number, key = self._vault.put()
        sealed = seal_keys(self._next_keys, key=key, context=self._owner(number))
        self._vault.clear(keep=number)
        return Parked(number=number, sealed=sealed)

    def _owner(self, number: int) -> bytes:
        return b"flower/" + self._roster.digest + f"{self.client_id}/{number}".encode()

    def _context(self, number: int) -> bytes:
        """Of a session: what was clipped and noised under one configuration is not masked under another."""
        return self.config.digest() + self._owner(number)

    def _settle_left_behind(self) -> None:
        """A round that began before this one and never ended here."""
        if self.ledger is not None:
            unsent = self._vault.unsent()
            for reservation in _unfinished(self.ledger):
                settle = self.ledger.release if reservation.request_id in unsent else self.ledger.charge
                settle(reservation)
        self._vault.clear()


def _unfinished(ledger: PrivacyLedger) -> list[Reservation]:
    """What a ledger has reserved and neither committed nor released."""
    pending: dict[str, Reservation] = {}
    for entry in ledger.entries():
        fields = entry.to_dict()
        name = str(fields.get("request_id", ""))
        if fields["transition"] == "reserve":
            event = event_from_dict(fields["event"])
            pending[name] = Reservation(request_id=name, event=event, amount=int(str(fields["amount"])))
        else:
            pending.pop(name, None)
    return list(pending.values())


def _write_new(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if not value.isprintable() or '"' in value or "\\" in value:
            raise ValueError(f"a text must be printable and without quotes or backslashes, got {value!r}")
        return f'"{value}"'
    return repr(value)
