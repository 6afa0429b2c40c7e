"""The durable privacy budget: what was released, what it cost, and whether the next round may start.

Rules:

- Reserve the worst case before noise is drawn, commit what happened afterwards. Unfinished reservations count as spent.
- Events are kept whole, epsilons are views of them. What decides is a sum of integers at one Rényi order, fixed at
  creation; `ledger_chain` states the rules and is the only place that knows them.
- What would pass the limit is refused before it happens. The fixed order makes this sound for rounds chosen adaptively;
  the displayed epsilon is the minimum over orders: a reading of the past, not a permission.
- Append only: each transition is a new entry, bound by SHA-256 to all before it. State is the replay of the entries.
- Fail closed: a missing, foreign, damaged or newer ledger is refused, never replaced. An empty one is a reset budget.
- The chain shows alteration. It cannot show that the newest entries were cut off or the whole was replaced by an older
  copy: pin `head` on another machine and give it to `verify`.
- Where the entries are kept follows from the location: a path is one SQLite file (`ledger_sqlite`), an address
  "postgresql://..." a table for several servers (`ledger_postgres`), ":memory:" nothing that lasts.
- Each process and thread opens its own.

Source: Feldman, Zrnic, "Individual Privacy Accounting via a Rényi Filter", NeurIPS 2021 (stopping rule, fixed order).

Example:
    >>> event = SkellamEvent(l2_squared=Fraction(10**6), l1=Fraction(30_000), variance=Fraction(4096**2), dimension=900)
    >>> budget = PrivacyBudget(epsilon=4.0, delta=1e-6, unit="client", order=8)
    >>> with PrivacyLedger.create(":memory:", budget=budget) as ledger:
    ...     ledger.charge(ledger.reserve(event, request_id="round 1"))
    ...     ledger.state().rounds_left(event)
    9
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .accounting import PrivacyEvent
from .errors import LedgerError
from .ledger_chain import ADVICE, Chain, PrivacyBudget, Reservation, Row, amount_of
from .ledger_sqlite import SqliteStore

__all__ = ["LedgerEntry", "LedgerState", "PrivacyBudget", "PrivacyLedger", "Reservation"]

if TYPE_CHECKING:
    from .ledger_postgres import PostgresStore

_POSTGRES = ("postgresql://", "postgres://")


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

    def rounds_left(self, event: PrivacyEvent, *, committed: PrivacyEvent | None = None) -> int:
        """How many more releases fit, one after another, that reserve `event` and commit `committed` (or the same).

        Even when each commits little, the last one must still find room for its worst case.
        """
        left, worst = self.filter_limit - self.filter_spent, amount_of(event, self.order)
        actual = worst if committed is None else amount_of(committed, self.order)
        return 0 if worst > left else 1 + (left - worst) // actual


class _Store(Protocol):
    """Rows in order, kept durably; every method raises `LedgerError` when they cannot be read or written."""

    name: str  # for messages

    def rows(self, start: int) -> list[Row]: ...
    def writing(self) -> AbstractContextManager[Callable[[Row], None]]: ...
    def check(self) -> None: ...
    def close(self) -> None: ...


class PrivacyLedger:
    """One privacy budget in one place, for any number of processes; a context manager, made by `create` or `open`.

    Guarantee: the amounts of all requests never sum to more than the limit, whoever writes at the same time; what a
    method has written when it returns survives `kill -9` and loss of power.

    Every method raises `LedgerError` when the ledger cannot be used or an entry does not follow from those before it.
    """

    def __init__(self, store: _Store) -> None:
        self._opened, self._owner = store, (os.getpid(), threading.get_ident())
        self._chain = Chain()

    @classmethod
    def create(cls, location: str | os.PathLike[str], *, budget: PrivacyBudget) -> "PrivacyLedger":
        """Starts a ledger where none is.

        Args:
            location: path of a new file (mode 0600), "postgresql://..." for a new table in a database, or ":memory:"
                (gone with the object: for simulations).
            budget: what may be spent in all.

        Raises:
            LedgerError: something exists there, or it cannot be written.
            ImportError: PostgreSQL without the extra `postgres`.
        """
        return cls(_stores(location).create(os.fspath(location), Chain.first(budget)))

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> "PrivacyLedger":
        """Opens an existing ledger. The chain is checked at first use, or by `verify`.

        Raises:
            LedgerError: there is none, it is no ledger, or a newer version wrote it. It is left as it is.
            ImportError: PostgreSQL without the extra `postgres`.
        """
        return cls(_stores(location).open(os.fspath(location)))

    @property
    def name(self) -> str:
        """Where the ledger is, in words that hold no password."""
        return self._opened.name

    def close(self) -> None:
        """Closes file or connection. May be called twice."""
        self._opened.close()

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
        with self._writing() as append:
            reservation, row = self._chain.reserve(event, amount=amount, request_id=request_id)
            if row is not None:
                append(row)
        return reservation

    def commit(self, reservation: Reservation, event: PrivacyEvent) -> None:
        """Replaces the reserved worst case by what happened, at no more than it. Repeating it changes nothing.

        Raises:
            LedgerError: `event` costs more than was reserved; the reservation is unknown, or finished in another way.
        """
        amount = reservation.amount if event == reservation.event else self._amount(event)
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

    def unfinished(self) -> tuple[Reservation, ...]:
        """Reservations that were neither committed nor released, oldest first: rounds in flight, here or elsewhere."""
        requests = self._replay(self._chain).requests.values()
        return tuple(request.reservation for request in requests if request.transition == "reserve")

    def state(self) -> LedgerState:
        """What is spent and what is left, including what other processes wrote."""
        chain = self._replay(self._chain)
        return LedgerState(
            epsilon=chain.epsilon,
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
        chain = Chain()
        for row in self._store.rows(0):
            previous = chain.heads[-1].hex()
            chain.append(row)
            yield LedgerEntry(
                sequence=row.sequence, previous=previous, document=row.document.decode(), digest=row.digest.hex()
            )

    def verify(self, *, expected_head: str | None = None) -> str:
        """Recomputes the chain, all amounts and the limit, and checks a file's structure.

        Args:
            expected_head: a `head` noted earlier, which the chain must contain. Without it a cut-off end stays unseen.

        Returns:
            The present head, hex.

        Raises:
            LedgerError: names the first bad entry.
        """
        chain = self._replay(Chain(recompute=True))
        if expected_head is not None and expected_head not in {head.hex() for head in chain.heads}:
            raise LedgerError(f"{self._store.name} does not contain {expected_head}: its end was cut off; {ADVICE}")
        self._store.check()
        return chain.heads[-1].hex()

    def _amount(self, event: PrivacyEvent) -> int:
        """Cost of `event` at this ledger's order; computed outside the write lock."""
        return amount_of(event, self._replay(self._chain).budget.order)

    def _finish(self, transition: str, reservation: Reservation, event: PrivacyEvent, amount: int) -> None:
        """Writes the last transition of a request, unless it stands already."""
        with self._writing() as append:
            row = self._chain.finish(transition, reservation, event, amount=amount)
            if row is not None:
                append(row)

    @contextmanager
    def _writing(self) -> Iterator[Callable[[Row], None]]:
        """The only writer, aware of all entries. Its own row enters the chain when it is read back, if it was kept."""
        with self._store.writing() as append:
            self._replay(self._chain)
            yield append

    def _replay(self, chain: Chain) -> Chain:
        """Brings `chain` up to the newest entry."""
        chain.extend(self._store.rows(chain.newest))
        return chain

    @property
    def _store(self) -> _Store:
        """The rows; refused elsewhere than where they were opened: locks and connections cannot be shared."""
        if os.getpid() != self._owner[0]:
            raise LedgerError(f"{self._opened.name} was opened by another process; a forked process opens its own")
        if threading.get_ident() != self._owner[1]:
            raise LedgerError(f"{self._opened.name} was opened by another thread; each thread opens its own")
        return self._opened


def _stores(location: str | os.PathLike[str]) -> type[SqliteStore] | type["PostgresStore"]:
    """What keeps the rows of a location."""
    if not os.fspath(location).startswith(_POSTGRES):
        return SqliteStore
    from .ledger_postgres import PostgresStore

    return PostgresStore
