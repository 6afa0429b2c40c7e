"""The durable privacy budget: what was released, what it cost, and whether the next round may start.

Rules:

- Reserve the worst case before noise is drawn, commit what happened afterwards. Unfinished reservations count as spent.
- Events are kept whole, epsilons are views of them. What decides is a sum of integers: the Rényi divergence of each
  event at the one order fixed at creation, in units of 1e-12, rounded up against a limit rounded down.
- What would pass the limit is refused before it happens. The fixed order makes this sound for rounds chosen adaptively;
  the displayed epsilon is the minimum over orders: a reading of the past, not a permission.
- Append only: each transition is a new entry, bound by SHA-256 to all before it. State is the replay of the entries.
- Fail closed: a missing, foreign, damaged or newer file is refused, never replaced. An empty ledger is a reset budget.
- The chain shows alteration. It cannot show that the newest entries were cut off or the file was replaced by an older
  copy: pin `head` on another machine and give it to `verify`. Back up with `VACUUM INTO`, not by copying one file.
- Each process and thread opens its own, on a local file system: SQLite's locks are not safe on network ones.

Source: Feldman, Zrnic, "Individual Privacy Accounting via a Rényi Filter", NeurIPS 2021 (stopping rule, fixed order).

Example:
    >>> event = SkellamEvent(l2_squared=Fraction(10**6), l1=Fraction(30_000), variance=Fraction(4096**2), dimension=900)
    >>> budget = PrivacyBudget(epsilon=4.0, delta=1e-6, unit="client", order=8)
    >>> with PrivacyLedger.create(":memory:", budget=budget) as ledger:
    ...     ledger.charge(ledger.reserve(event, request_id="round 1"))
    ...     ledger.state().rounds_left(event)
    9
"""

import functools
import hashlib
import json
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from .accounting import ORDERS, PrivacyEvent, epsilon, event_from_dict, rdp_budget
from .errors import BudgetExceededError, LedgerError, UnaccountableError

SCHEMA_VERSION = 1
APPLICATION_ID = int.from_bytes(b"SALG", "big")  # tells our files from other SQLite databases
LOCK_TIMEOUT_SECONDS = 30  # writers hold the lock for a millisecond; a longer wait means that one hangs

_UNITS = 10**12
_ANCHOR = hashlib.sha256(b"secagg/v1/ledger").digest()  # stands before entry 0
_ADVICE = "restore the ledger from a backup; an empty one would reset the budget"
# EXTRA is FULL, and syncs the directory too where SQLite falls back from WAL to a rollback journal. Before 3.51.3,
# automatic checkpoints that race with a writer can lose commits: `_writing` makes exclusive ones.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyBudget:
    """What may be spent in all; `ValueError` if a value is out of bounds or `order` cannot certify `epsilon`."""

    epsilon: float
    delta: float
    unit: str  # what is protected, in words: "client", "record"
    order: int  # of `ORDERS`; `accounting.best_order` of the planned rounds lets most of them fit

    def __post_init__(self) -> None:
        if not self.unit:
            raise ValueError("unit must name what the budget protects, got an empty text")
        rdp_budget(self.order, self.epsilon, self.delta)

    @property
    def filter_limit(self) -> int:
        """Divergence at `order` that converts to `epsilon`, in units of 1e-12, rounded down."""
        return math.floor(Fraction(rdp_budget(self.order, self.epsilon, self.delta)) * _UNITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A worst case that counts as spent: `event`, at `amount` (units of 1e-12), under the caller's `request_id`."""

    request_id: str
    event: PrivacyEvent
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """A link of the chain: `digest` = SHA-256(`previous` | `document`), both in hex; the document is canonical JSON."""

    sequence: int
    previous: str
    document: str
    digest: str

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types, the fields of the document at top level."""
        fields: dict[str, object] = json.loads(self.document)
        return fields | {"sequence": self.sequence, "previous": self.previous, "digest": self.digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """The ledger at one moment. Reserved rounds count at their worst case, committed ones at what happened."""

    epsilon: float  # spent at `delta`, minimum over all orders: for display
    limit_epsilon: float
    delta: float
    unit: str
    order: int
    filter_spent: int  # divergence at `order`, units of 1e-12: what decides
    filter_limit: int
    rounds_committed: int
    rounds_reserved: int  # begun and not finished
    rounds_released: int
    head: str  # digest of the newest entry, hex

    def rounds_left(self, event: PrivacyEvent) -> int:
        """How many more releases like `event` fit."""
        return (self.filter_limit - self.filter_spent) // _amount(event, self.order)


class PrivacyLedger:
    """One privacy budget in one file, for any number of processes; a context manager, made by `create` or `open`.

    Guarantee: the amounts of all requests never sum to more than the limit, whoever writes at the same time; what a
    method has written when it returns survives `kill -9` and loss of power.

    Every method raises `LedgerError` when the file cannot be used or an entry does not follow from those before it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = os.fspath(path)
        self._owner = os.getpid()
        self._chain = _Chain()
        target = "file::memory:" if self._name == ":memory:" else Path(path).resolve().as_uri() + "?mode=rw"
        with _storage_errors(self._name):
            self._connection = sqlite3.connect(target, uri=True, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, budget: PrivacyBudget) -> "PrivacyLedger":
        """Starts a ledger in a new file of mode 0600, or in ":memory:" (gone with the object: for simulations).

        Raises:
            LedgerError: the path exists, or cannot be written.
        """
        if os.fspath(path) != ":memory:":
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except OSError as error:
                raise LedgerError(f"{path}: {error.strerror}; a ledger is created once and then opened") from error
        ledger = cls(path)
        with ledger._database() as database:
            for statement in ("PRAGMA journal_mode = WAL", *_SETTINGS, "BEGIN IMMEDIATE", *_SCHEMA):
                database.execute(statement)
            with database:
                ledger._append("create", budget=asdict(budget), amount=budget.filter_limit)
        return ledger

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "PrivacyLedger":
        """Opens an existing ledger. The chain is checked at first use, or by `verify`.

        Raises:
            LedgerError: there is no file, it is no ledger, or a newer version wrote it. It is left as it is.
        """
        if not Path(path).is_file():
            raise LedgerError(f"no privacy ledger at {path}: {_ADVICE}. Only data never released before gets a new one")
        with ExitStack() as on_error:
            ledger = cls(path)
            on_error.callback(ledger.close)
            with ledger._database() as database:
                for statement in _SETTINGS:
                    database.execute(statement)
                (application_id,) = database.execute("PRAGMA application_id").fetchone()
                (version,) = database.execute("PRAGMA user_version").fetchone()
            if application_id != APPLICATION_ID:
                raise LedgerError(f"{path} is not a privacy ledger (application id {application_id}): {_ADVICE}")
            if version != SCHEMA_VERSION:
                raise LedgerError(f"{path} has schema {version}, this version reads {SCHEMA_VERSION}: upgrade secagg")
            on_error.pop_all()
        return ledger

    def close(self) -> None:
        """Closes the file. May be called twice."""
        self._connection.close()

    def __enter__(self) -> "PrivacyLedger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(self, event: PrivacyEvent, *, request_id: str) -> Reservation:
        """Counts the worst case of one release as spent, before anything is noised.

        Asking again for an unfinished request returns the same reservation, so that a caller may retry after a crash.

        Args:
            event: the most that the release can cost.
            request_id: the caller's name for this one release, printable.

        Raises:
            BudgetExceededError: it does not fit; nothing was recorded.
            LedgerError: `request_id` stands for another event or a finished release.
            ValueError: `request_id` is empty or not printable.
        """
        if not (request_id and request_id.isprintable()):
            raise ValueError(f"request_id must be a printable text, got {request_id!r}")
        amount = self._amount(event)
        with self._writing() as chain:
            known = chain.requests.get(request_id)
            if known is None:
                if chain.spent + amount > chain.limit:
                    raise BudgetExceededError(self._refusal(request_id, amount))
                self._append("reserve", request_id=request_id, event=event.to_dict(), amount=amount)
                return Reservation(request_id=request_id, event=event, amount=amount)
            if (known.transition, known.event) != ("reserve", event):
                raise LedgerError(f"request {request_id!r} is at {known.transition!r} of {known.event}: use a new id")
            return known.reservation

    def commit(self, reservation: Reservation, event: PrivacyEvent) -> None:
        """Replaces the reserved worst case by what happened, at no more than it. Repeating it changes nothing.

        Raises:
            LedgerError: `event` costs more than was reserved; the reservation is unknown, or finished in another way.
        """
        amount = reservation.amount if event == reservation.event else self._amount(event)
        if amount > reservation.amount:
            raise LedgerError(f"{reservation} is too small to commit {amount}: the release was not the reserved one")
        self._finish("commit", reservation, event, amount)

    def charge(self, reservation: Reservation) -> None:
        """Commits the reserved worst case: for every round of which it is uncertain what left this machine."""
        self.commit(reservation, reservation.event)

    def release(self, reservation: Reservation) -> None:
        """Gives a reservation back, if nothing of its release left this machine. Repeating it changes nothing.

        Raises:
            LedgerError: the reservation is unknown, or committed.
        """
        self._finish("release", reservation, reservation.event, 0)

    def state(self) -> LedgerState:
        """What is spent and what is left, including what other processes wrote."""
        chain = self._replay(self._chain)
        return LedgerState(
            epsilon=epsilon(+chain.events, delta=chain.budget.delta),
            limit_epsilon=chain.budget.epsilon,
            delta=chain.budget.delta,
            unit=chain.budget.unit,
            order=chain.budget.order,
            filter_spent=chain.spent,
            filter_limit=chain.limit,
            rounds_committed=chain.rounds["commit"],
            rounds_reserved=chain.rounds["reserve"],
            rounds_released=chain.rounds["release"],
            head=chain.heads[-1].hex(),
        )

    @property
    def head(self) -> str:
        """Digest of the newest entry, hex: what to pin on another machine."""
        return self._replay(self._chain).heads[-1].hex()

    def entries(self) -> Iterator[LedgerEntry]:
        """All entries, oldest first; raises `LedgerError` at the first that does not follow from those before it."""
        chain = _Chain()
        for sequence, document, digest in self._rows(0):
            previous = chain.heads[-1].hex()
            chain.append(sequence, document, digest)
            yield LedgerEntry(sequence=sequence, previous=previous, document=document.decode(), digest=digest.hex())

    def verify(self, *, expected_head: str | None = None) -> str:
        """Recomputes the chain, all amounts and the limit, and checks the file's structure.

        Args:
            expected_head: a `head` noted earlier, which the chain must contain. Without it a cut-off end stays unseen.

        Returns:
            The present head, hex.

        Raises:
            LedgerError: names the first bad entry.
        """
        chain = self._replay(_Chain(recompute=True))
        if expected_head is not None and expected_head not in {head.hex() for head in chain.heads}:
            raise LedgerError(f"{self._name} does not contain {expected_head}: its end was cut off; {_ADVICE}")
        with self._database() as database:
            (report,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if report != "ok":
            raise LedgerError(f"{self._name} is damaged ({report}); {_ADVICE}")
        return chain.heads[-1].hex()

    def _amount(self, event: PrivacyEvent) -> int:
        """Cost of `event` at this ledger's order; computed outside the write lock."""
        return _amount(event, self._replay(self._chain).budget.order)

    def _finish(self, transition: str, reservation: Reservation, event: PrivacyEvent, amount: int) -> None:
        """Writes the last transition of a request, unless it stands already."""
        with self._writing() as chain:
            known = chain.requests.get(reservation.request_id)
            if known is None or known.reservation != reservation:
                raise LedgerError(f"{self._name} holds no {reservation}")
            if (known.transition, known.event) == (transition, event):
                return
            if known.transition != "reserve":
                raise LedgerError(f"cannot {transition} {reservation}: it is at {known.transition!r} of {known.event}")
            self._append(transition, request_id=reservation.request_id, event=event.to_dict(), amount=amount)

    def _append(self, transition: str, **fields: object) -> None:
        """Writes one entry inside the caller's transaction; the chain learns of it by reading it back later."""
        document, heads = _canonical({"transition": transition, **fields}), self._chain.heads
        row = (len(heads) - 1, document, _digest(heads[-1], document.encode()))
        self._connection.execute("INSERT INTO entry VALUES (?, ?, ?)", row)

    @contextmanager
    def _writing(self) -> Iterator["_Chain"]:
        """The only writer, aware of all entries; commits when left, and rolls back on any error."""
        with self._database() as database:
            with database:
                database.execute("BEGIN IMMEDIATE")
                yield self._replay(self._chain)
            if len(self._chain.heads) % 256 == 0:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # keeps other writers out while it works

    def _replay(self, chain: "_Chain") -> "_Chain":
        """Brings `chain` up to the newest entry."""
        for row in self._rows(len(chain.heads) - 1):
            chain.append(*row)
        if len(chain.heads) == 1:
            raise LedgerError(f"entry 0 of {self._name} is missing; {_ADVICE}")
        return chain

    def _rows(self, start: int) -> list[tuple[int, bytes, bytes]]:
        """Entries from `start` on, as one snapshot; as bytes, so that damaged text fails where its entry is named."""
        query = "SELECT sequence, CAST(document AS BLOB), CAST(digest AS BLOB) FROM entry"
        with self._database() as database:
            return database.execute(f"{query} WHERE sequence >= ? ORDER BY sequence", (start,)).fetchall()

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The connection, with typed errors; refused in a forked child, where SQLite's locks do not hold."""
        if os.getpid() != self._owner:
            raise LedgerError(f"{self._name} was opened by process {self._owner}; a forked process opens its own")
        with _storage_errors(self._name):
            yield self._connection

    def _refusal(self, request_id: str, amount: int) -> str:
        """Why a request does not fit. At one order, an excess of divergence is the same excess of epsilon."""
        state = self.state()
        left = state.filter_limit - state.filter_spent
        return (
            f"request {request_id!r} is refused: it costs {amount / _UNITS:.6g}; {state.filter_spent / _UNITS:.6g} of"
            f" {state.filter_limit / _UNITS:.6g} is spent (Rényi divergence at order {state.order}). Epsilon is"
            f" {state.epsilon:.4g} of {state.limit_epsilon:g} per {state.unit} at delta {state.delta:g}; this would"
            f" exceed the budget by {(amount - left) / _UNITS:.4g}. Rounds left at this cost: {left // amount}"
        )


class _Request(NamedTuple):
    """Where a request stands: its newest transition, with the event and the amount of that."""

    reservation: Reservation
    transition: str
    event: PrivacyEvent
    amount: int


class _Chain:
    """The replay of the entries: where they are checked and added up."""

    def __init__(self, *, recompute: bool = False) -> None:
        self.heads = [_ANCHOR]
        self.budget: PrivacyBudget  # with `limit`, from entry 0
        self.limit = 0
        self.spent = 0
        self.requests: dict[str, _Request] = {}
        self.rounds: Counter[str] = Counter()
        self.events: Counter[PrivacyEvent] = Counter()
        self._recompute = recompute

    def append(self, sequence: int, document: bytes, digest: bytes) -> None:
        """Takes the next entry; `LedgerError` if it does not follow from those before it."""
        if sequence != len(self.heads) - 1:
            raise LedgerError(f"entry {len(self.heads) - 1} is missing (found {sequence}); {_ADVICE}")
        try:
            if _digest(self.heads[-1], document) != digest:
                raise LedgerError(f"entry {sequence} was altered: its digest is not that of its content; {_ADVICE}")
            fields = json.loads(document)
            if sequence == 0:
                self.budget, self.limit = PrivacyBudget(**fields["budget"]), fields["amount"]
                if self._recompute:
                    _check_number(self.limit, self.budget.filter_limit)
            else:
                event = _read_event(_canonical(fields["event"]))
                self._apply(fields["transition"], fields["request_id"], event, fields["amount"])
        except (KeyError, TypeError, ValueError, UnaccountableError) as error:
            raise LedgerError(f"entry {sequence} is not a valid entry ({error!r}); {_ADVICE}") from error
        self.heads.append(digest)

    def _apply(self, transition: str, request_id: str, event: PrivacyEvent, amount: int) -> None:
        """One transition of one request, under the rules of the writer."""
        before = self.requests.get(request_id)
        if (before and before.transition) != {"reserve": None, "commit": "reserve", "release": "reserve"}[transition]:
            raise ValueError(f"{transition} of request {request_id!r} at {before}")
        if not 0 <= amount <= (before.amount if before else self.limit - self.spent):
            raise ValueError(f"amount {amount} is more than is left or was reserved")
        if self._recompute:
            _check_number(amount, 0 if transition == "release" else _amount(event, self.budget.order))
        reservation = before.reservation if before else Reservation(request_id=request_id, event=event, amount=amount)
        self.requests[request_id] = now = _Request(reservation, transition, event, amount)
        for request, sign in ((before, -1), (now, 1)):
            if request:
                self.spent += sign * request.amount
                self.rounds[request.transition] += sign
                self.events[request.event] += sign * (request.amount > 0)


@functools.lru_cache(maxsize=1024)
def _amount(event: PrivacyEvent, order: int) -> int:
    """Divergence of `event` at `order`, in units of 1e-12, rounded up: at least 1, as every curve is positive."""
    return math.ceil(Fraction(float(event.rdp()[ORDERS.index(order)])) * _UNITS)


@functools.lru_cache(maxsize=1024)
def _read_event(document: str) -> PrivacyEvent:
    """The event of a canonical text; most rounds of a ledger share one."""
    return event_from_dict(json.loads(document))


def _check_number(recorded: int, recomputed: int) -> None:
    """Another numpy or C library may differ in the last bits of a float; more is another event or formula."""
    if abs(recorded - recomputed) > 1 + recomputed // 10**9:
        raise ValueError(f"recorded {recorded}, recomputed {recomputed}")


def _canonical(fields: object) -> str:
    """The one JSON text of plain fields: ASCII, sorted keys, no spaces."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _digest(previous: bytes, document: bytes) -> bytes:
    """Binds an entry to all before it."""
    return hashlib.sha256(previous + document).digest()


@contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    """Turns errors of SQLite into `LedgerError`; from damaged files, their texts may not even decode."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise LedgerError(
            f"{name} cannot be used ({error}): free the file and disk and try again, or {_ADVICE}"
        ) from error
