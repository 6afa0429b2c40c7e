"""What a privacy ledger may hold: the rules of its entries, without any file, lock or clock.

Rules:

- A request is reserved at its worst case, then committed at no more than that, or released. Nothing else, and nothing
  twice. Repeating a transition writes nothing.
- What decides is a sum of integers: the Rényi divergence of each event at the one order fixed at creation, in units of
  1e-12, rounded up against a limit rounded down.
- Each entry is bound by SHA-256 to all before it. A writer's check and a reader's check are the same replay.
- Events of several kinds share a ledger: `accounting.event_from_dict` knows them.
"""

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import NamedTuple

from .accounting import ORDERS, PrivacyEvent, epsilon, event_from_dict, rdp_budget
from .errors import BudgetExceededError, LedgerError, UnaccountableError

SCHEMA_VERSION = 1
UNITS = 10**12
ADVICE = "restore the ledger from a backup; an empty one would reset the budget"

_ANCHOR = hashlib.sha256(b"secagg/v1/ledger").digest()  # stands before entry 0


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
        return math.floor(Fraction(rdp_budget(self.order, self.epsilon, self.delta)) * UNITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A worst case that counts as spent: `event`, at `amount` (units of 1e-12), under the caller's `request_id`."""

    request_id: str
    event: PrivacyEvent
    amount: int


class Row(NamedTuple):
    """An entry as it is stored; `document` is canonical JSON, `digest` is SHA-256(digest before, document)."""

    sequence: int
    document: bytes
    digest: bytes


class _Request(NamedTuple):
    """Where a request stands: its newest transition, with the event and the amount of that."""

    reservation: Reservation
    transition: str
    event: PrivacyEvent
    amount: int


class Chain:
    """The replay of a ledger's rows: where they are checked and added up, and where the next one is decided.

    With `recompute`, amounts and limit are computed again from events and budget; else the recorded ones are added up.
    """

    def __init__(self, *, recompute: bool = False) -> None:
        self.heads = [_ANCHOR]  # one digest for each row, after the anchor
        self.budget: PrivacyBudget  # with `limit`, from row 0
        self.limit = 0
        self.spent = 0
        self.requests: dict[str, _Request] = {}
        self.rounds: Counter[str] = Counter()
        self.events: Counter[PrivacyEvent] = Counter()
        self._recompute = recompute

    # The next row.

    @classmethod
    def first(cls, budget: PrivacyBudget) -> Row:
        """The row that opens a ledger."""
        return cls()._next("create", budget=asdict(budget), amount=budget.filter_limit)

    def reserve(self, event: PrivacyEvent, *, amount: int, request_id: str) -> tuple[Reservation, Row | None]:
        """A reservation and its row, which is None if it stands already.

        Raises:
            BudgetExceededError: it does not fit.
            LedgerError: `request_id` stands for another event or a finished release.
        """
        known = self.requests.get(request_id)
        if known is not None:
            if (known.transition, known.event) != ("reserve", event):
                raise LedgerError(f"request {request_id!r} is at {known.transition!r} of {known.event}: use a new id")
            return known.reservation, None
        left = self.limit - self.spent
        if amount > left:
            raise BudgetExceededError(  # at one order, an excess of divergence is the same excess of epsilon
                f"request {request_id!r} is refused: it costs {amount / UNITS:.6g}; {self.spent / UNITS:.6g} of"
                f" {self.limit / UNITS:.6g} is spent (Rényi divergence at order {self.budget.order}). Epsilon is"
                f" {self.epsilon:.4g} of {self.budget.epsilon:g} per {self.budget.unit} at delta {self.budget.delta:g};"
                f" this would exceed the budget by {(amount - left) / UNITS:.4g}. Rounds left at this cost:"
                f" {left // amount}"
            )
        row = self._next("reserve", request_id=request_id, event=event.to_dict(), amount=amount)
        return Reservation(request_id=request_id, event=event, amount=amount), row

    def finish(self, transition: str, reservation: Reservation, event: PrivacyEvent, *, amount: int) -> Row | None:
        """The row of a request's last transition, "commit" or "release"; None if it stands already.

        Raises:
            LedgerError: `amount` is more than was reserved; the reservation is unknown, or finished in another way.
        """
        if amount > reservation.amount:
            raise LedgerError(f"{reservation} is too small to commit {amount}: the release was not the reserved one")
        known = self.requests.get(reservation.request_id)
        if known is None or known.reservation != reservation:
            raise LedgerError(f"the ledger holds no {reservation}")
        if (known.transition, known.event) == (transition, event):
            return None
        if known.transition != "reserve":
            raise LedgerError(f"cannot {transition} {reservation}: it is at {known.transition!r} of {known.event}")
        return self._next(transition, request_id=reservation.request_id, event=event.to_dict(), amount=amount)

    def _next(self, transition: str, **fields: object) -> Row:
        document = _canonical({"transition": transition, **fields}).encode()
        return Row(len(self.heads) - 1, document, _digest(self.heads[-1], document))

    # The rows so far.

    @property
    def epsilon(self) -> float:
        """What is spent, at the budget's delta, as the minimum over all orders: a reading, not what decides."""
        return epsilon(+self.events, delta=self.budget.delta)

    @property
    def newest(self) -> int:
        """Sequence of the newest row known, 0 before there is any: from where to read again for `extend`."""
        return max(0, len(self.heads) - 2)

    def extend(self, rows: Iterable[Row]) -> None:
        """Takes all stored rows from `newest` on, and notices if that one is no more what it was.

        Raises:
            LedgerError: names the first row that is missing, was altered, or does not follow from those before it.
        """
        remaining = iter(rows)
        if len(self.heads) > 1:
            known = next(remaining, None)
            if known is None or (known.sequence, known.digest) != (self.newest, self.heads[-1]):
                raise LedgerError(f"entry {self.newest} was there before and is gone or another now; {ADVICE}")
        for row in remaining:
            self.append(row)
        if len(self.heads) == 1:
            raise LedgerError(f"entry 0 is missing; {ADVICE}")

    def append(self, row: Row) -> None:
        """Takes the next row; `LedgerError` if it does not follow from those before it."""
        sequence, document, digest = row
        if sequence != len(self.heads) - 1:
            raise LedgerError(f"entry {len(self.heads) - 1} is missing (found {sequence}); {ADVICE}")
        try:
            if _digest(self.heads[-1], document) != digest:
                raise LedgerError(f"entry {sequence} was altered: its digest is not that of its content; {ADVICE}")
            fields = json.loads(document)
            if sequence == 0:
                self.budget, self.limit = PrivacyBudget(**fields["budget"]), fields["amount"]
                if self._recompute:
                    _check_number(self.limit, self.budget.filter_limit)
            else:
                event = _read_event(_canonical(fields["event"]))
                self._apply(fields["transition"], fields["request_id"], event, fields["amount"])
        except (KeyError, TypeError, ValueError, UnaccountableError) as error:
            raise LedgerError(f"entry {sequence} is not a valid entry ({error!r}); {ADVICE}") from error
        self.heads.append(digest)

    def _apply(self, transition: str, request_id: str, event: PrivacyEvent, amount: int) -> None:
        """One transition of one request, under the rules of the writer."""
        before = self.requests.get(request_id)
        if (before and before.transition) != {"reserve": None, "commit": "reserve", "release": "reserve"}[transition]:
            raise ValueError(f"{transition} of request {request_id!r} at {before}")
        if not 0 <= amount <= (before.amount if before else self.limit - self.spent):
            raise ValueError(f"amount {amount} is more than is left or was reserved")
        if self._recompute:
            _check_number(amount, 0 if transition == "release" else amount_of(event, self.budget.order))
        reservation = before.reservation if before else Reservation(request_id=request_id, event=event, amount=amount)
        self.requests[request_id] = now = _Request(reservation, transition, event, amount)
        for request, sign in ((before, -1), (now, 1)):
            if request:
                self.spent += sign * request.amount
                self.rounds[request.transition] += sign
                self.events[request.event] += sign * (request.amount > 0)


@functools.lru_cache(maxsize=1024)
def amount_of(event: PrivacyEvent, order: int) -> int:
    """Divergence of `event` at `order`, in units of 1e-12, rounded up: at least 1, as every curve is positive."""
    return math.ceil(Fraction(float(event.rdp()[ORDERS.index(order)])) * UNITS)


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
