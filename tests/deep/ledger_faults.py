"""Faults of the privacy ledger that its tests must notice: rules, files, servers and the command line."""

from __future__ import annotations

from .faults import Fault

RULES, POSTGRES, CRASHES, COMMAND = (
    "tests/dp/test_ledger.py",
    "tests/dp/test_ledger_postgres.py",
    "tests/dp/test_ledger_crashes.py::TestRaces",
    "tests/secagg/test_ledger_command.py",
)

LEDGER_FAULTS = tuple(
    Fault(name, file, old, new, targets)
    for name, file, old, new, targets in (
        ("one unit over the limit", "dp/ledger_chain.py", "if amount > left:", "if amount > left + 1:", (RULES,)),
        (
            "a finished request is reserved again",
            "dp/ledger_chain.py",
            'if (known.transition, known.event) != ("reserve", event):',
            "if known.event != event:",
            (RULES,),
        ),
        (
            "a reservation need not be the one that was made",
            "dp/ledger_chain.py",
            "if known is None or known.reservation != reservation:",
            "if known is None:",
            (RULES,),
        ),
        (
            "a released round may be committed",
            "dp/ledger_chain.py",
            'if known.transition != "reserve":',
            'if known.transition not in ("reserve", "release"):',
            (RULES,),
        ),
        ("amounts are rounded down", "dp/ledger_chain.py", "return math.ceil(", "return math.floor(", (RULES,)),
        ("the limit is rounded up", "dp/ledger_chain.py", "return math.floor(", "return math.ceil(", (RULES,)),
        (
            "digests are not checked",
            "dp/ledger_chain.py",
            "if _digest(self.heads[-1], document) != digest:",
            "if False:",
            (RULES,),
        ),
        ("gaps are not noticed", "dp/ledger_chain.py", "if sequence != len(self.heads) - 1:", "if False:", (RULES,)),
        (
            "an open ledger forgets what it knew",
            "dp/ledger_chain.py",
            "if known is None or (known.sequence, known.digest) != (self.newest, self.heads[-1]):",
            "if False:",
            (RULES, POSTGRES),
        ),
        ("an emptied ledger is fresh", "dp/ledger_chain.py", "if len(self.heads) == 1:", "if False:", (RULES,)),
        (
            "more than was reserved is committed",
            "dp/ledger_chain.py",
            "if amount > reservation.amount:",
            "if False:",
            (RULES,),
        ),
        (
            "a fork shares the connection",
            "dp/ledger.py",
            "if os.getpid() != self._owner[0]:",
            "if False:",
            (RULES, POSTGRES),
        ),
        (
            "threads share the connection",
            "dp/ledger.py",
            "if threading.get_ident() != self._owner[1]:",
            "if False:",
            (POSTGRES,),
        ),
        (
            "a pinned head is not looked for",
            "dp/ledger.py",
            "if expected_head is not None and",
            "if False and",
            (RULES,),
        ),
        (
            "the last round needs no room for its worst case",
            "dp/ledger.py",
            "return 0 if worst > left else 1 + (left - worst) // actual",
            "return left // actual",
            (RULES,),
        ),
        (
            "a file is opened whatever wrote it",
            "dp/ledger_sqlite.py",
            "if version != SCHEMA_VERSION:",
            "if False:",
            (RULES,),
        ),
        ("a file is made again", "dp/ledger_sqlite.py", "os.O_CREAT | os.O_EXCL", "os.O_CREAT", (RULES,)),
        (
            "writers of a file do not exclude each other",
            "dp/ledger_sqlite.py",
            '                database.execute("BEGIN IMMEDIATE")\n',
            '                database.execute("BEGIN")\n',
            (CRASHES,),
        ),
        ("damaged pages are not looked for", "dp/ledger_sqlite.py", 'if report != "ok":', "if False:", (RULES,)),
        (
            "a commit need not be on disk",
            "dp/ledger_postgres.py",
            '                    f"SET LOCAL synchronous_commit = on; SET',
            '                    f"SET',
            (POSTGRES,),
        ),
        (
            "the isolation is the server's default",
            "dp/ledger_postgres.py",
            "database.isolation_level = psycopg.IsolationLevel.READ_COMMITTED",
            "pass",
            (POSTGRES,),
        ),
        (
            "writers on a server do not exclude each other",
            "dp/ledger_postgres.py",
            "SELECT pg_advisory_xact_lock(",
            "SELECT abs(",
            (CRASHES,),
        ),
        (
            "a lost connection stays lost",
            "dp/ledger_postgres.py",
            "if self._connection.broken:",
            "if False:",
            (POSTGRES,),
        ),
        ("a server without fsync will do", "dp/ledger_postgres.py", '!= ("on",):', '== ("never",):', (POSTGRES,)),
        (
            "any table is a ledger",
            "dp/ledger_postgres.py",
            "if not comment.startswith(_COMMENT):",
            "if False:",
            (POSTGRES,),
        ),
        (
            "passwords are repeated",
            "dp/ledger_postgres.py",
            '"the address is no PostgreSQL URI: postgresql://user@host:port/database"',
            'f"the address is no PostgreSQL URI: {address}"',
            (POSTGRES,),
        ),
        (
            "a broken chain is no finding",
            "secagg/ledger_command.py",
            "return DONE if finding is None else FINDING",
            "return DONE",
            (COMMAND,),
        ),
        (
            "any configuration may plan",
            "secagg/ledger_command.py",
            "    agreed_ledger(ledger, config)\n",
            "",
            (COMMAND,),
        ),
    )
)
