"""The durable privacy budget: what was released, what it cost, and whether the next round may start.

Rules:

- Reserve the worst case before noise is drawn; commit what really happened afterwards. An unfinished reservation counts as spent.
- Events are kept whole; epsilons are views of them. What decides is a sum of integers: the Rényi divergence of each event at the one
  order fixed at creation, in units of 1e-12, rounded up against a limit rounded down. No spend is too small to count.
- A release that would pass the limit is refused before it happens. One fixed order is what makes this sound when rounds are chosen
  adaptively; the displayed epsilon takes the minimum over orders and is a reading of the past, not a permission.
- Append only. Every transition is a new entry, bound to all earlier ones by its SHA-256 digest. The state is always derived by replaying
  the entries, so nothing is read that was not checked.
- Fail closed. A missing, foreign, damaged or newer file is refused and never replaced: an empty ledger is a budget reset to zero.
- The chain shows alteration. It cannot show that the newest entries were cut off, or the file replaced by an older copy: pin `head` on
  another machine and hand it to `verify`. Back up with SQLite's `VACUUM INTO`; a plain copy may miss the `-wal` file beside the ledger.
- Every process and every thread opens its own. The file lies on a local file system: SQLite's locks are not safe on network ones.

Source: Feldman, Zrnic, "Individual Privacy Accounting via a Rényi Filter", NeurIPS 2021 (stopping rule at a fixed order).

Example:
    >>> event = SkellamEvent(l2_squared=Fraction(1000**2), l1=Fraction(30_000), variance=Fraction(4096**2), dimension=900)
    >>> with PrivacyLedger.create(":memory:", budget=PrivacyBudget(epsilon=4.0, delta=1e-6, unit="client", order=8)) as ledger:
    ...     before = ledger.state().rounds_left(event)
    ...     ledger.charge(ledger.reserve(event, request_id="round 1"))
    ...     before - ledger.state().rounds_left(event)
    1
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
from types import TracebackType

from .accounting import ORDERS, SkellamEvent, epsilon, rdp_budget
from .errors import BudgetExceededError, LedgerError, UnaccountableError

SCHEMA_VERSION = 1
APPLICATION_ID = int.from_bytes(b"SALG", "big")  # tells our files from other SQLite databases
MAX_REQUEST_ID_LENGTH = 256  # a name for a round, not a place for data
LOCK_TIMEOUT_SECONDS = (
    30  # a writer holds the lock for a millisecond; a longer wait means that a process hangs in a transaction
)

_AMOUNTS_PER_UNIT = 10**12
_ANCHOR = hashlib.sha256(b"secagg/v1/ledger").digest()  # stands before entry 0
_CHECKPOINT_ENTRIES = 256
# Another numpy or C library may compute a divergence that differs in its last bits; a larger difference is another event or formula.
_RECOMPUTE_PARTS = 10**9
_ADVICE = "restore the ledger from a backup; an empty one would reset the budget"

# transition -> the transition that the request must be in
_AFTER = {"reserve": None, "commit": "reserve", "release": "reserve"}

# The request id and the transition live in the document alone, so an index entry cannot contradict what was hashed.
_SCHEMA = (
    "CREATE TABLE entry (sequence INTEGER PRIMARY KEY, document TEXT NOT NULL, digest BLOB NOT NULL)",
    "CREATE UNIQUE INDEX once ON entry (json_extract(document, '$.request_id'), json_extract(document, '$.transition'))",
    "CREATE TRIGGER no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyBudget:
    """What may be spent in all, fixed when a ledger is created.

    Attributes:
        epsilon: bound on the privacy loss, > 0 and large enough for `order` to certify it.
        delta: failure probability, in (0, 1).
        unit: what is protected, in words ("client", "record"); shown next to every epsilon.
        order: Rényi order at which spending is summed and refused, one of `ORDERS`. `accounting.best_order` of the planned rounds fits most.

    Raises:
        ValueError: a value is outside its bound.
    """

    epsilon: float
    delta: float
    unit: str
    order: int

    def __post_init__(self) -> None:
        if not self.unit:
            raise ValueError("unit must name what the budget protects, got an empty text")
        rdp_budget(self.order, self.epsilon, self.delta)  # raises on every other bad value

    @property
    def filter_limit(self) -> int:
        """Divergence at `order` that converts to `epsilon`, in units of 1e-12, rounded down."""
        return math.floor(Fraction(rdp_budget(self.order, self.epsilon, self.delta)) * _AMOUNTS_PER_UNIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A worst case that is already counted as spent: `event` at `amount` (units of 1e-12), under the caller's `request_id`."""

    request_id: str
    event: SkellamEvent
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One link of the chain: `digest` = SHA-256(`previous` | `document` in UTF-8), both digests in hex, `document` in canonical JSON."""

    sequence: int
    previous: str
    document: str
    digest: str

    def to_dict(self) -> dict[str, object]:
        """The entry as plain JSON types, with the fields of the document at top level."""
        return {
            "sequence": self.sequence,
            "previous": self.previous,
            "digest": self.digest,
            **json.loads(self.document),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """The ledger at one moment. Reserved rounds count as spent at their worst case, committed ones at what happened.

    Attributes:
        epsilon: spent so far at `delta`, the minimum over all orders; for display.
        limit_epsilon: the budget.
        delta: failure probability of both epsilons.
        unit: what is protected.
        order: Rényi order that decides.
        filter_spent: summed divergence at `order`, units of 1e-12.
        filter_limit: what `filter_spent` never passes.
        rounds_committed: rounds that took place.
        rounds_reserved: rounds begun and not finished.
        rounds_released: rounds given back unspent.
        head: digest of the newest entry, hex; pin it elsewhere.
    """

    epsilon: float
    limit_epsilon: float
    delta: float
    unit: str
    order: int
    filter_spent: int
    filter_limit: int
    rounds_committed: int
    rounds_reserved: int
    rounds_released: int
    head: str

    def rounds_left(self, event: SkellamEvent) -> int:
        """How many more releases like `event` fit."""
        return (self.filter_limit - self.filter_spent) // _amount(event, self.order)


class PrivacyLedger:
    """One privacy budget in one file, shared by any number of processes. Build it with `create` or `open`; a context manager.

    Every method raises `LedgerError` if the file cannot be used or an entry does not follow from the ones before it.

    Guarantee: the sum of the amounts of all requests never passes the limit, whoever writes at the same time; and what `reserve` or
    `commit` returned is on disk, so it survives `kill -9` and loss of power.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Connects to an existing file; for `create` and `open` only."""
        self._name = os.fspath(path)
        self._owner = os.getpid()
        self._chain = _Chain()
        target = "file::memory:" if self._name == ":memory:" else Path(path).resolve().as_uri() + "?mode=rw"
        with _storage_errors(self._name):
            self._connection = sqlite3.connect(target, uri=True, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)
            self._connection.execute("PRAGMA synchronous = FULL")
            # SQLite before 3.51.3 may lose commits if two automatic checkpoints race with a writer; `_transaction` makes exclusive ones.
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, budget: PrivacyBudget) -> "PrivacyLedger":
        """Starts an empty ledger in a new file that only its owner can read (mode 0600).

        Args:
            path: a file that does not exist, or ":memory:" for a ledger that dies with the object (simulations).
            budget: what may be spent in all.

        Raises:
            LedgerError: the path exists, or cannot be written.
        """
        if os.fspath(path) != ":memory:":
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except OSError as error:
                raise LedgerError(
                    f"cannot create a privacy ledger at {path} ({error.strerror}); an existing one is opened, never overwritten"
                ) from error
        ledger = cls(path)
        with ledger._database() as database:
            # Where WAL is impossible SQLite keeps its rollback journal: slower, no less safe.
            database.execute("PRAGMA journal_mode = WAL")
            with database:
                database.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    database.execute(statement)
                ledger._append({"transition": "create", "budget": asdict(budget), "filter_limit": budget.filter_limit})
        return ledger

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "PrivacyLedger":
        """Opens an existing ledger. The chain is checked on first use, or by `verify`.

        Raises:
            LedgerError: there is no such file, it is no ledger, or a newer version wrote it. The file is left as it is.
        """
        if not Path(path).is_file():
            raise LedgerError(
                f"there is no privacy ledger at {path}: {_ADVICE}. Only data never released before starts with `create`"
            )
        with ExitStack() as on_error:
            ledger = cls(path)
            on_error.callback(ledger.close)
            with ledger._database() as database:
                application_id = database.execute("PRAGMA application_id").fetchone()[0]
                version = database.execute("PRAGMA user_version").fetchone()[0]
            if application_id != APPLICATION_ID:
                raise LedgerError(
                    f"{path} is not a privacy ledger (application id {application_id}): check the path, or {_ADVICE}"
                )
            if version != SCHEMA_VERSION:
                raise LedgerError(
                    f"{path} has ledger schema {version}, this version reads {SCHEMA_VERSION}: upgrade secagg to open it"
                )
            on_error.pop_all()
        return ledger

    def close(self) -> None:
        """Closes the file; what was written stays. May be called twice."""
        self._connection.close()

    def __enter__(self) -> "PrivacyLedger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reserve(self, event: SkellamEvent, *, request_id: str) -> Reservation:
        """Counts the worst case of one release as spent, before anything is noised.

        Asking again for an unfinished request returns the same reservation, so a crashed caller may retry. One request is one release:
        a finished request cannot be reserved again.

        Args:
            event: the most that the release can cost.
            request_id: the caller's own name for it, unique per release: 1 to 256 printable characters.

        Raises:
            BudgetExceededError: it does not fit; nothing was recorded.
            LedgerError: `request_id` stands for another event, or is finished.
            ValueError: `request_id` is no such text.
        """
        if not (0 < len(request_id) <= MAX_REQUEST_ID_LENGTH and request_id.isprintable()):
            raise ValueError(
                f"request_id must be 1 to {MAX_REQUEST_ID_LENGTH} printable characters, got {request_id!r:.300}"
            )
        amount = self._amount(event)
        with self._transaction() as chain:
            known = chain.requests.get(request_id)
            if known is None:
                if chain.spent + amount > chain.limit:
                    raise BudgetExceededError(_refusal(chain, request_id, event, amount))
                self._append_transition("reserve", request_id, event, amount)
                return Reservation(request_id=request_id, event=event, amount=amount)
            if known.reservation.event != event:
                raise LedgerError(
                    f"request {request_id!r} was reserved for another event; a new release needs a new request_id"
                )
            if known.transition != "reserve":
                raise LedgerError(
                    f"request {request_id!r} is finished ({known.transition}); a new release needs a new request_id"
                )
            return known.reservation

    def commit(self, reservation: Reservation, event: SkellamEvent) -> None:
        """Replaces the reserved worst case by what happened. Repeating it changes nothing.

        Args:
            reservation: as `reserve` returned it.
            event: the release with its actual survivors, never more expensive than the reserved one.

        Raises:
            LedgerError: `event` costs more than was reserved, the reservation is unknown, or it is finished in another way.
        """
        amount = reservation.amount if event == reservation.event else self._amount(event)
        if amount > reservation.amount:
            raise LedgerError(
                f"request {reservation.request_id!r} reserved {reservation.amount} and cannot commit {amount} (units of 1e-12): "
                "the release was not the reserved one"
            )
        self._finish("commit", reservation, event, amount)

    def charge(self, reservation: Reservation) -> None:
        """Commits the reserved worst case: for every round of which it is not certain what left this machine."""
        self.commit(reservation, reservation.event)

    def release(self, reservation: Reservation) -> None:
        """Gives a reservation back. Only for a round of which nothing noised was ever sent. Repeating it changes nothing.

        Raises:
            LedgerError: the reservation is unknown, or committed.
        """
        self._finish("release", reservation, reservation.event, 0)

    def state(self) -> LedgerState:
        """What was spent and what is left, entries of other processes included."""
        self._catch_up()
        chain = self._chain
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
            head=chain.head.hex(),
        )

    @property
    def head(self) -> str:
        """Digest of the newest entry, hex: what to pin on another machine."""
        self._catch_up()
        return self._chain.head.hex()

    def entries(self) -> Iterator[LedgerEntry]:
        """All entries, oldest first, each checked before it is handed out.

        Raises:
            LedgerError: at the first entry that does not follow from the ones before it.
        """
        chain = _Chain()
        for sequence, document, digest in self._rows(0):
            previous = chain.head.hex()
            chain.append(sequence, document, digest)
            yield LedgerEntry(sequence=sequence, previous=previous, document=document.decode(), digest=digest.hex())

    def verify(self, *, expected_head: str | None = None) -> str:
        """Recomputes the whole chain, every amount and the limit, and checks the file's own structure.

        Args:
            expected_head: a `head` noted earlier; the chain must pass through it. Without it, missing newest entries go unnoticed.

        Returns:
            The present head, hex.

        Raises:
            LedgerError: names the first bad entry and what is wrong with it.
        """
        chain = _Chain(recompute=True)
        heads = set()
        for row in self._rows(0):
            chain.append(*row)
            heads.add(chain.head.hex())
        if not heads:
            raise LedgerError(f"entry 0 of {self._name} is missing; {_ADVICE}")
        if expected_head is not None and expected_head not in heads:
            raise LedgerError(
                f"{self._name} does not pass through the head {expected_head}: newer entries are missing; {_ADVICE}"
            )
        with self._database() as database:
            report = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if report != "ok":
            raise LedgerError(f"{self._name} is damaged ({report}); {_ADVICE}")
        return chain.head.hex()

    def _amount(self, event: SkellamEvent) -> int:
        """Cost of `event` at this ledger's order; computed outside the write lock."""
        self._catch_up()
        return _amount(event, self._chain.budget.order)

    def _finish(self, transition: str, reservation: Reservation, event: SkellamEvent, amount: int) -> None:
        """Appends the second and last transition of a request."""
        with self._transaction() as chain:
            known = chain.requests.get(reservation.request_id)
            if known is None or known.reservation != reservation:
                raise LedgerError(f"{self._name} holds no such reservation for request {reservation.request_id!r}")
            if (known.transition, known.event) == (transition, event):
                return
            if known.transition != _AFTER[transition]:
                raise LedgerError(
                    f"request {reservation.request_id!r} is finished otherwise ({known.transition}): no {transition}"
                )
            self._append_transition(transition, reservation.request_id, event, amount)

    def _append_transition(self, transition: str, request_id: str, event: SkellamEvent, amount: int) -> None:
        """Writes one transition, inside the caller's transaction."""
        self._append({"transition": transition, "request_id": request_id, "event": event.to_dict(), "amount": amount})

    def _append(self, fields: dict[str, object]) -> None:
        """Writes one entry; the chain learns of it when it is read back after the commit."""
        document = _canonical(fields)
        row = (self._chain.length, document, _digest(self._chain.head, document.encode()))
        self._connection.execute("INSERT INTO entry VALUES (?, ?, ?)", row)

    @contextmanager
    def _transaction(self) -> Iterator["_Chain"]:
        """The only writer, having read everything written before; commits on leaving, rolls back on any error."""
        with self._database() as database:
            with database:
                database.execute("BEGIN IMMEDIATE")
                self._catch_up()
                yield self._chain
            if self._chain.length % _CHECKPOINT_ENTRIES == 0:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _catch_up(self) -> None:
        """Replays what was written since the last look, and makes sure that what was seen then is still there."""
        seen = self._chain.length
        rows = self._rows(max(0, seen - 1))
        if not rows or (seen and rows[0][2] != self._chain.head):
            raise LedgerError(f"entry {max(0, seen - 1)} of {self._name} is missing or was replaced; {_ADVICE}")
        for row in rows[1:] if seen else rows:
            self._chain.append(*row)

    def _rows(self, start: int) -> list[tuple[int, bytes, bytes]]:
        """Entries from `start` on, in one consistent snapshot; casts keep a damaged text from failing before its entry is named."""
        query = "SELECT sequence, CAST(document AS BLOB), CAST(digest AS BLOB) FROM entry WHERE sequence >= ? ORDER BY sequence"
        with self._database() as database:
            return database.execute(query, (start,)).fetchall()

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The connection, with typed errors; refused in a forked child, where SQLite's locks no longer hold."""
        if os.getpid() != self._owner:
            raise LedgerError(f"{self._name} was opened by process {self._owner}; a forked process must open it again")
        with _storage_errors(self._name):
            yield self._connection


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """Where one request stands: its newest transition, with the event and the amount of that."""

    reservation: Reservation
    transition: str
    event: SkellamEvent
    amount: int


class _Chain:
    """The replay of the entries: the only place where they are read, checked and added up."""

    def __init__(self, *, recompute: bool = False) -> None:
        self.length = 0
        self.head = _ANCHOR
        self.budget: PrivacyBudget  # set by entry 0, like `limit`
        self.limit = 0
        self.spent = 0
        self.requests: dict[str, _Request] = {}
        self.rounds: Counter[str] = Counter()
        self.events: Counter[SkellamEvent] = Counter()
        self._recompute = recompute

    def append(self, sequence: int, document: bytes, digest: bytes) -> None:
        """Takes the next entry, or raises `LedgerError` and stays as it was."""
        if sequence != self.length:
            raise LedgerError(f"entry {self.length} is missing (found {sequence}); {_ADVICE}")
        if _digest(self.head, document) != digest:
            raise LedgerError(
                f"entry {sequence} was altered: its digest does not follow from the entry before it; {_ADVICE}"
            )
        try:
            fields = json.loads(document)
            if sequence == 0:
                self._begin(PrivacyBudget(**fields["budget"]), fields["filter_limit"])
            else:
                event = _read_event(_canonical(fields["event"]))
                self._apply(fields["transition"], fields["request_id"], event, fields["amount"])
        except (KeyError, TypeError, ValueError, UnaccountableError) as error:
            raise LedgerError(f"entry {sequence} is not a valid entry ({error}); {_ADVICE}") from error
        self.length += 1
        self.head = digest

    def _begin(self, budget: PrivacyBudget, limit: int) -> None:
        """Entry 0: the budget."""
        if self._recompute:
            _check_recomputed("limit", limit, budget.filter_limit)
        self.budget = budget
        self.limit = limit

    def _apply(self, transition: str, request_id: str, event: SkellamEvent, amount: int) -> None:
        """Any later entry: one transition of one request, by the rules that its writer had to obey."""
        before = self.requests.get(request_id)
        if (before and before.transition) != _AFTER[transition]:
            raise ValueError(f"{transition} of request {request_id!r} after {before and before.transition}")
        ceiling = before.amount if before else self.limit - self.spent
        if not 0 <= amount <= ceiling:
            raise ValueError(f"{transition} of {amount}, where at most {ceiling} may stand")
        counted = transition != "release"
        if self._recompute:
            _check_recomputed("amount", amount, _amount(event, self.budget.order) if counted else 0)
        reservation = before.reservation if before else Reservation(request_id=request_id, event=event, amount=amount)
        self.requests[request_id] = _Request(reservation=reservation, transition=transition, event=event, amount=amount)
        self.rounds[transition] += 1
        self.events[event] += counted
        self.spent += amount
        if before:
            self.rounds[before.transition] -= 1
            self.events[before.event] -= 1
            self.spent -= before.amount


@functools.lru_cache(maxsize=1024)
def _amount(event: SkellamEvent, order: int) -> int:
    """Divergence of `event` at `order`, in units of 1e-12, rounded up: never zero."""
    return max(1, math.ceil(Fraction(float(event.rdp()[ORDERS.index(order)])) * _AMOUNTS_PER_UNIT))


@functools.lru_cache(maxsize=1024)
def _read_event(document: str) -> SkellamEvent:
    """The event of a canonical text; most rounds of a ledger share one."""
    return SkellamEvent.from_dict(json.loads(document))


def _check_recomputed(what: str, recorded: int, recomputed: int) -> None:
    """Recorded and recomputed numbers agree, but for the last bits of a float."""
    if abs(recorded - recomputed) > 1 + recomputed // _RECOMPUTE_PARTS:
        raise ValueError(f"the {what} is {recorded}, recomputed {recomputed}")


def _refusal(chain: _Chain, request_id: str, event: SkellamEvent, amount: int) -> str:
    """Why a request does not fit. At one order, divergence above the limit is epsilon above the budget, unit for unit."""
    budget = chain.budget
    spent = epsilon(+chain.events, delta=budget.delta)
    excess = (chain.spent + amount - chain.limit) / _AMOUNTS_PER_UNIT
    return (
        f"request {request_id!r} is refused: it costs {amount}, and {chain.spent} of {chain.limit} are spent (units of 1e-12 at Rényi order "
        f"{budget.order}). In words: epsilon {spent:.4g} of {budget.epsilon:g} is spent per {budget.unit} at delta {budget.delta:g}, and this "
        f"release would pass the budget by {excess:.4g}; rounds left at this cost: {(chain.limit - chain.spent) // amount}"
    )


def _canonical(fields: object) -> str:
    """The one JSON text of plain fields: ASCII, sorted keys, no spaces."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _digest(previous: bytes, document: bytes) -> bytes:
    """SHA-256 that binds an entry to all before it."""
    return hashlib.sha256(previous + document).digest()


@contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    """Turns errors of SQLite into `LedgerError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerError(
            f"{name} cannot be used ({error}): free the file or the disk and try again, or {_ADVICE}"
        ) from error
