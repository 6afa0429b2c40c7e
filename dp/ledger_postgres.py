"""A ledger's rows in PostgreSQL: for the servers of several machines that spend one budget.

Rules:

- One ledger for each schema of a database: the table `secagg_ledger` in the first schema of the search path. Another
  one is chosen by the address: `postgresql://host/database?options=-csearch_path%3Dname`.
- One writer at a time: an advisory lock that ends with the transaction. Were it passed by, the primary key would still
  let only one row follow another. Readers never wait.
- A commit is acknowledged when it is on the server's disk, whatever the server's default is. A server that runs with
  `fsync` or `full_page_writes` off is refused. A standby that takes over has all of it only if it replicates
  synchronously; an open ledger notices when the newest row it knows is gone.
- A role that may SELECT and INSERT is enough to spend; the owner alone can change rows, and a trigger refuses that too.
- Errors repeat no address: it may hold a password. `PGPASSFILE` and `?service=` keep it out of addresses altogether.
- A lost connection fails the call that finds it. The next call connects again; repeating a call is safe.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError as error:
    raise ImportError("a ledger in PostgreSQL needs psycopg: pip install 'secagg[postgres]'") from error

from .errors import LedgerError
from .ledger_chain import ADVICE, SCHEMA_VERSION, Row

LOCK_TIMEOUT_SECONDS = 30  # writers hold the lock for milliseconds; a longer wait means that one hangs

_LOCK = int.from_bytes(b"SALG", "big") << 32  # apart from other advisory locks of the database
_COMMENT = "secagg privacy ledger, schema "  # and the version: tells our table from others
_SCHEMA = (
    "CREATE TABLE secagg_ledger (sequence bigint PRIMARY KEY, document text NOT NULL, digest bytea NOT NULL)",
    "CREATE OR REPLACE FUNCTION secagg_ledger_append_only() RETURNS trigger LANGUAGE plpgsql"
    " AS $$ BEGIN RAISE EXCEPTION 'append-only'; END $$",
    "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON secagg_ledger"
    " EXECUTE FUNCTION secagg_ledger_append_only()",
    f"COMMENT ON TABLE secagg_ledger IS '{_COMMENT}{SCHEMA_VERSION}'",
)
# Notice a dead server or a cut network within the lock timeout; the address may say otherwise.
_CONNECTION = {"connect_timeout": "30", "keepalives_idle": "20", "tcp_user_timeout": "30000"}


class PostgresStore:
    """The rows in one schema of a PostgreSQL database; made by `create` or `open`."""

    def __init__(self, address: str) -> None:
        try:
            settings = {**_CONNECTION, **conninfo_to_dict(address)}
        except psycopg.ProgrammingError:
            raise LedgerError("the address is no PostgreSQL URI: postgresql://user@host:port/database") from None
        self._address = make_conninfo("", **settings)
        self.name = f"PostgreSQL database {settings.get('dbname', 'of the default name')!r}"
        with _storage_errors(self.name):
            self._connection = self._connect()
            (schema,) = self._connection.execute("SELECT current_schema()").fetchone() or (None,)
        self.name += f", schema {schema!r}"

    @classmethod
    def create(cls, address: str, first: Row) -> "PostgresStore":
        """A new table that holds `first`; `LedgerError` if there is one already or it cannot be made."""
        with ExitStack() as on_error:
            store = cls(address)
            on_error.callback(store.close)
            try:
                with _storage_errors(store.name), store._connection.transaction():
                    for statement in ("SET LOCAL synchronous_commit = on", *_SCHEMA):
                        store._connection.execute(statement)
                    _append(store._connection, first)
            except LedgerError as error:
                if isinstance(error.__cause__, psycopg.errors.DuplicateTable):
                    raise LedgerError(f"{store.name}: exists; a ledger is created once and then opened") from error
                raise
            on_error.pop_all()
        return store

    @classmethod
    def open(cls, address: str) -> "PostgresStore":
        """An existing table; `LedgerError` if there is none, it is no ledger, or a newer version wrote it."""
        with ExitStack() as on_error:
            store = cls(address)
            on_error.callback(store.close)
            store._check_table(store._connection)
            on_error.pop_all()
        return store

    def rows(self, start: int) -> list[Row]:
        """Rows from `start` on, as one snapshot; as bytes, so that damaged text fails where its entry is named."""
        query = "SELECT sequence, convert_to(document, 'UTF8'), digest FROM secagg_ledger WHERE sequence >= %s"
        with _storage_errors(self.name):
            found = self._live().execute(f"{query} ORDER BY sequence", (start,)).fetchall()
        return [Row(*row) for row in found]

    @contextmanager
    def writing(self) -> Iterator[Callable[[Row], None]]:
        """The only writer; gives what appends a row. Commits when left, rolls back on any error."""
        with _storage_errors(self.name):
            database = self._live()  # rows are appended to this connection or not at all
            with database.transaction():
                database.execute(
                    f"SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s';"
                    f"SET LOCAL idle_in_transaction_session_timeout = '{LOCK_TIMEOUT_SECONDS}s';"
                    f"SELECT pg_advisory_xact_lock({_LOCK} + 'secagg_ledger'::regclass::oid::bigint)"
                )
                yield lambda row: _append(database, row)

    def check(self) -> None:
        """Nothing beyond the rows: PostgreSQL's own pages are checked by `initdb --data-checksums`."""

    def close(self) -> None:
        """Closes the connection. May be called twice."""
        self._connection.close()

    def _connect(self) -> psycopg.Connection:
        """A connection to a server that keeps what it acknowledged."""
        # Nothing lasts from one transaction to the next, so a pooler between may hand out another connection each time.
        database = psycopg.connect(self._address, autocommit=True, prepare_threshold=None)
        database.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # sees all rows once the lock is held
        for setting in ("fsync", "full_page_writes"):
            if database.execute(f"SHOW {setting}").fetchone() != ("on",):
                database.close()
                raise LedgerError(f"{self.name}: the server runs with {setting} off and may forget what was spent")
        return database

    def _live(self) -> psycopg.Connection:
        """The connection, made again if it was lost; an error of this transaction's own connection stays one."""
        if self._connection.broken:
            self._connection = self._connect()
            self._check_table(self._connection)
        return self._connection

    def _check_table(self, database: psycopg.Connection) -> None:
        # In the first schema alone: a ledger further along the path is another budget.
        query = (
            "SELECT obj_description(oid, 'pg_class') FROM pg_class"
            " WHERE relname = 'secagg_ledger' AND relnamespace = current_schema()::regnamespace"
        )
        with _storage_errors(self.name):
            found = database.execute(query).fetchone()
        if found is None:
            raise LedgerError(
                f"no privacy ledger in {self.name}: {ADVICE}. Only data never released before gets a new one"
            )
        comment = found[0] or ""
        if not comment.startswith(_COMMENT):
            raise LedgerError(f"{self.name} is not a privacy ledger (comment {comment!r}): {ADVICE}")
        version = comment.removeprefix(_COMMENT)
        if version != str(SCHEMA_VERSION):
            raise LedgerError(f"{self.name} has schema {version}, this version reads {SCHEMA_VERSION}: upgrade secagg")


def _append(database: psycopg.Connection, row: Row) -> None:
    values = (row.sequence, row.document.decode(), row.digest)
    database.execute("INSERT INTO secagg_ledger VALUES (%s, %s, %s)", values)


@contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    """Turns errors of the driver and the server into `LedgerError`."""
    try:
        yield
    except psycopg.Error as error:
        raise LedgerError(
            f"{name} cannot be used ({str(error).strip()}): free the server and try again, or {ADVICE}"
        ) from error
