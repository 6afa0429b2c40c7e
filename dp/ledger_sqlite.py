"""A ledger's rows in one SQLite file: for the processes of one machine.

Rules:

- One writer at a time (`BEGIN IMMEDIATE`); an entry is on disk before its transaction returns.
- A missing, foreign or newer file is refused and left as it is. Triggers refuse changes by accident.
- Local file systems only: SQLite's locks are not safe on network ones. Back up with `VACUUM INTO`, not by copying.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import LedgerError
from .ledger_chain import ADVICE, SCHEMA_VERSION, Row

APPLICATION_ID = int.from_bytes(b"SALG", "big")  # tells our files from other SQLite databases
LOCK_TIMEOUT_SECONDS = 30  # writers hold the lock for a millisecond; a longer wait means that one hangs
CHECKPOINT_ENTRIES = 256

# EXTRA is FULL, and syncs the directory too where SQLite falls back from WAL to a rollback journal. Before 3.51.3,
# automatic checkpoints that race with a writer can lose commits: `writing` makes exclusive ones.
_SETTINGS = ("PRAGMA synchronous = EXTRA", "PRAGMA wal_autocheckpoint = 0")
# The fields of the index live in the document alone: no column can contradict what was hashed.
_SCHEMA = (
    "CREATE TABLE entry (sequence INTEGER PRIMARY KEY, document TEXT NOT NULL, digest BLOB NOT NULL)",
    "CREATE UNIQUE INDEX one_each"
    " ON entry (json_extract(document, '$.request_id'), json_extract(document, '$.transition'))",
    "CREATE TRIGGER no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class SqliteStore:
    """The rows in one file, or in ":memory:" for as long as the object lives; made by `create` or `open`."""

    def __init__(self, path: str) -> None:
        self.name = path
        target = "file::memory:" if path == ":memory:" else Path(path).resolve().as_uri() + "?mode=rw"
        with _storage_errors(path):
            self._connection = sqlite3.connect(target, uri=True, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)

    @classmethod
    def create(cls, path: str, first: Row) -> "SqliteStore":
        """A new file of mode 0600 that holds `first`; `LedgerError` if the path exists or cannot be written."""
        if path != ":memory:":
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except OSError as error:
                raise LedgerError(f"{path}: {error.strerror}; a ledger is created once and then opened") from error
        with ExitStack() as on_error:
            store = cls(path)
            on_error.callback(store.close)
            with _storage_errors(path):
                for statement in ("PRAGMA journal_mode = WAL", *_SETTINGS, "BEGIN IMMEDIATE", *_SCHEMA):
                    store._connection.execute(statement)
                with store._connection:
                    store._append(first)
            on_error.pop_all()
        return store

    @classmethod
    def open(cls, path: str) -> "SqliteStore":
        """An existing file; `LedgerError` if there is none, it is no ledger, or a newer version wrote it."""
        if not Path(path).is_file():
            raise LedgerError(f"no privacy ledger at {path}: {ADVICE}. Only data never released before gets a new one")
        with ExitStack() as on_error:
            store = cls(path)
            on_error.callback(store.close)
            with _storage_errors(path):
                for statement in _SETTINGS:
                    store._connection.execute(statement)
                (application_id,) = store._connection.execute("PRAGMA application_id").fetchone()
                (version,) = store._connection.execute("PRAGMA user_version").fetchone()
            if application_id != APPLICATION_ID:
                raise LedgerError(f"{path} is not a privacy ledger (application id {application_id}): {ADVICE}")
            if version != SCHEMA_VERSION:
                raise LedgerError(f"{path} has schema {version}, this version reads {SCHEMA_VERSION}: upgrade secagg")
            on_error.pop_all()
        return store

    def rows(self, start: int) -> list[Row]:
        """Rows from `start` on, as one snapshot; as bytes, so that damaged text fails where its entry is named."""
        query = "SELECT sequence, CAST(document AS BLOB), CAST(digest AS BLOB) FROM entry"
        with _storage_errors(self.name):
            found = self._connection.execute(f"{query} WHERE sequence >= ? ORDER BY sequence", (start,)).fetchall()
        return [Row(*row) for row in found]

    @contextmanager
    def writing(self) -> Iterator[Callable[[Row], None]]:
        """The only writer; gives what appends a row. Commits when left, rolls back on any error."""
        with _storage_errors(self.name):
            with self._connection as database:
                database.execute("BEGIN IMMEDIATE")
                yield self._append
            (entries,) = database.execute("SELECT coalesce(max(sequence), 0) FROM entry").fetchone()
            if entries % CHECKPOINT_ENTRIES == 0:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # keeps other writers out while it works

    def _append(self, row: Row) -> None:
        self._connection.execute(
            "INSERT INTO entry VALUES (?, ?, ?)", (row.sequence, row.document.decode(), row.digest)
        )

    def check(self) -> None:
        """`LedgerError` if pages or indexes are damaged."""
        with _storage_errors(self.name):
            (report,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if report != "ok":
            raise LedgerError(f"{self.name} is damaged ({report}); {ADVICE}")

    def close(self) -> None:
        """Closes the file. May be called twice."""
        self._connection.close()


@contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    """Turns errors of SQLite into `LedgerError`; from damaged files, their texts may not even decode."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise LedgerError(
            f"{name} cannot be used ({error}): free the file and disk and try again, or {ADVICE}"
        ) from error
