"""What a client must never forget: used rounds, key bundles seen, survivor sets signed.

One SQLite file for each enrolled client. A client without its history could be made to sign what it would refuse, so
the file is created once, by explicit enrolment, and a missing or unreadable file stops the client. Records are durable
before the message that depends on them leaves.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from hashlib import sha256
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
    """A history that lives as long as the process: for simulations.

    Args:
        groups: survivor sets that histories have in common, so that clients of one simulation do not keep a copy each.
    """

    def __init__(self, *, groups: dict[frozenset[ClientId], frozenset[ClientId]] | None = None) -> None:
        self.history = History()
        self._groups = groups

    def append(self, record: Record) -> None:
        """Keeps a record."""
        if self._groups is not None and isinstance(record, SurvivorsSigned):
            record = replace(record, survivors=self._groups.setdefault(record.survivors, record.survivors))
        self.history = self.history.after(record)


class ClientHistory:
    """A durable history, for one process at a time.

    Records are chained by SHA-256, so a damaged or missing one stops the client. What the file cannot show is that its
    newest records were cut off or an old copy put back.

    Args:
        path: the file made by `enrol`.

    Raises:
        PolicyRefusal: the file is missing, damaged, in use, or not a history: this client must not take part.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise PolicyRefusal(
                f"the history {path} is missing: restore it, or enrol this client anew under another id"
            )
        self._head = b""
        records: list[Record] = []
        try:
            self._database = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        except sqlite3.Error as error:
            raise PolicyRefusal(f"the history {path} cannot be opened: {error}") from None
        try:
            (application,) = self._database.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                raise ValueError("it is not a client history")
            # Two processes over one history would each sign what the other's record forbids.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA synchronous = EXTRA")
            self._database.execute("BEGIN EXCLUSIVE")
            rows = self._database.execute("SELECT number, record, digest FROM record ORDER BY number").fetchall()
            self._database.execute("COMMIT")
            for expected, (number, record, digest) in enumerate(rows, start=1):
                if number != expected or not isinstance(record, bytes) or digest != self._link(record):
                    raise ValueError(f"record {expected} was damaged or taken out")
                records.append(_decode(record))
                self._head = digest
        except (sqlite3.Error, ValueError) as error:
            self._database.close()
            raise PolicyRefusal(f"the history {path} cannot be used: {error}") from None
        self.history = History.of(records)

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
        database.execute("CREATE TABLE record (number INTEGER PRIMARY KEY, record BLOB NOT NULL, digest BLOB NOT NULL)")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.close()
        return cls(path)

    def append(self, record: Record) -> None:
        """Makes a record durable: it survives a crash once this returns.

        Raises:
            PolicyRefusal: the file cannot be written, so nothing may depend on the record.
        """
        data = _encode(record)
        digest = self._link(data)
        try:
            self._database.execute("INSERT INTO record (record, digest) VALUES (?, ?)", (data, digest))
        except sqlite3.Error as error:
            raise PolicyRefusal(f"the history {self._path} cannot be written: {error}") from None
        self._head = digest
        self.history = self.history.after(record)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def _link(self, record: bytes) -> bytes:
        """The digest that chains a record to all before it."""
        return sha256(b"secagg/v1/history" + self._head + record).digest()


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
