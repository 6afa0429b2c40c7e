"""What a client must never forget: used rounds, key bundles seen, survivor sets signed.

One SQLite file for each enrolled client. A client without its history could be made to sign what it would refuse, so
the file is created once, by explicit enrolment, and a missing or unreadable file stops the client. Records are durable
before the message that depends on them leaves.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from protocols import BundlesSeen, ClientId, History, KeysAdvertised, PolicyRefusal, Record, SurvivorsSigned

APPLICATION_ID = 0x53414748  # "SAGH"


class HistoryStore(Protocol):
    """Where a client keeps its history."""

    @property
    def history(self) -> History:
        """All records so far."""

    def append(self, record: Record) -> None:
        """Makes a record durable."""


class MemoryHistory:
    """A history that lives as long as the process: for simulations."""

    def __init__(self) -> None:
        self.history = History()

    def append(self, record: Record) -> None:
        """Keeps a record."""
        self.history = self.history.after(record)


class ClientHistory:
    """A durable history.

    Args:
        path: the file made by `enrol`.

    Raises:
        PolicyRefusal: the file is missing or not a history: this client must not take part.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise PolicyRefusal(
                f"the history {path} is missing: restore it, or enrol this client anew under another id"
            )
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            (application,) = self._database.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                raise PolicyRefusal(f"{path} is not a client history")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            rows = self._database.execute("SELECT record FROM record ORDER BY number").fetchall()
            self.history = History.of(_decode(row) for (row,) in rows)
        except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
            self._database.close()
            raise PolicyRefusal(f"the history {path} cannot be read: {error}") from None
        except PolicyRefusal:
            self._database.close()
            raise

    @classmethod
    def enrol(cls, path: str | Path) -> ClientHistory:
        """Creates an empty history.

        Raises:
            FileExistsError: there is a file already: an existing history is never replaced.
        """
        path = Path(path)
        path.touch(mode=0o600, exist_ok=False)
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE record (number INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.close()
        return cls(path)

    def append(self, record: Record) -> None:
        """Makes a record durable: it survives a crash once this returns."""
        self._database.execute("INSERT INTO record (record) VALUES (?)", (_encode(record),))
        self.history = self.history.after(record)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


class _Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """How a record is stored: its kind, a digest or nothing, a serial or nothing, clients with their serials."""

    kind: Literal["keys", "bundles", "signed"]
    digest: bytes = b""
    serial: int = 0
    clients: list[tuple[int, int]] = []


def _encode(record: Record) -> bytes:
    match record:
        case KeysAdvertised(round_id=round_id, serial=serial):
            row = _Row("keys", digest=round_id, serial=serial)
        case BundlesSeen(serials=serials):
            row = _Row("bundles", clients=sorted(serials.items()))
        case SurvivorsSigned(model=model, survivors=survivors):
            row = _Row("signed", digest=model, clients=[(client, 0) for client in sorted(survivors)])
    return msgspec.msgpack.encode(row)


def _decode(data: bytes) -> Record:
    row = msgspec.msgpack.decode(data, type=_Row)
    if row.kind == "keys":
        return KeysAdvertised(round_id=row.digest, serial=row.serial)
    if row.kind == "bundles":
        return BundlesSeen(serials={ClientId(peer): serial for peer, serial in row.clients})
    return SurvivorsSigned(model=row.digest, survivors=frozenset(ClientId(client) for client, _ in row.clients))
