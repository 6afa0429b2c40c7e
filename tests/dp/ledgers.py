"""What the tests of the ledger share: a budget, events of known cost, and a model that every store must agree with."""

from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import dp
from dp.accounting import ORDERS, SkellamEvent, epsilon, rdp_budget
from dp.errors import BudgetExceededError, LedgerError
from dp.ledger import LedgerState, PrivacyBudget, PrivacyLedger, Reservation

ORDER = 8
BUDGET = PrivacyBudget(epsilon=4.0, delta=1e-6, unit="client", order=ORDER)
ROOT = Path(dp.__file__).parents[1]


def make_event(l2_squared: int, *, sampling_rate: Fraction = Fraction(1)) -> SkellamEvent:
    return SkellamEvent(
        l2_squared=Fraction(l2_squared),
        l1=Fraction(900),
        variance=Fraction(4096**2),
        dimension=900,
        sampling_rate=sampling_rate,
    )


ROUND = make_event(10**6)  # about ten of them fit
FEWER_LOST = make_event(9 * 10**5)
TINY = make_event(1, sampling_rate=Fraction(1, 2**60))
SMALL = make_event(10**3)
HUGE = make_event(10**9)


def exact(value: float, rounding: str) -> int:
    """An independent reading of "units of 1e-12, rounded": decimal arithmetic on the float's exact value."""
    context = Context(prec=1200)
    return int(Decimal(value).scaleb(12, context).to_integral_value(rounding, context))


def cost(event: SkellamEvent) -> int:
    return exact(float(event.rdp()[ORDERS.index(ORDER)]), ROUND_CEILING)


LIMIT = exact(rdp_budget(ORDER, BUDGET.epsilon, BUDGET.delta), ROUND_FLOOR)


def fill(location: str | Path) -> LedgerState:
    """Eight entries: the opening, one round committed, one released, one charged, one open."""
    with PrivacyLedger.create(location, budget=BUDGET) as ledger:
        ledger.commit(ledger.reserve(ROUND, request_id="first"), FEWER_LOST)
        ledger.release(ledger.reserve(SMALL, request_id="second"))
        ledger.charge(ledger.reserve(SMALL, request_id="third"))
        ledger.reserve(ROUND, request_id="fourth")
        return ledger.state()


BIG = make_event(4 * 10**6)  # two of them fit
EVENTS = (BIG, ROUND, SMALL, TINY, HUGE)
REQUESTS = tuple(f"request {number}" for number in range(6))


class LedgerMachine(RuleBasedStateMachine):
    """Two connections to one ledger against a dictionary: same outcomes, same sums, never over the limit."""

    new_location: Callable[[], str]  # a subclass says where ledgers are kept

    @initialize()
    def create(self) -> None:
        self.location = self.new_location()
        self.ledgers = [PrivacyLedger.create(self.location, budget=BUDGET), PrivacyLedger.open(self.location)]
        self.model: dict[str, tuple[str, SkellamEvent, SkellamEvent]] = {}  # id -> transition, reserved, actual
        self.heads: list[str] = []

    def teardown(self) -> None:
        if hasattr(self, "ledgers"):
            for head in self.heads:
                self.ledgers[0].verify(expected_head=head)
            for ledger in self.ledgers:
                ledger.close()

    def spent(self) -> int:
        return sum(cost(actual) for transition, _, actual in self.model.values() if transition != "release")

    def reservation(self, request_id: str) -> Reservation:
        reserved = self.model[request_id][1] if request_id in self.model else ROUND
        return Reservation(request_id=request_id, event=reserved, amount=cost(reserved))

    @rule(side=st.integers(0, 1), request_id=st.sampled_from(REQUESTS), event=st.sampled_from(EVENTS))
    def reserve(self, side: int, request_id: str, event: SkellamEvent) -> None:
        known = self.model.get(request_id)
        if known is None and self.spent() + cost(event) > LIMIT:
            with pytest.raises(BudgetExceededError):
                self.ledgers[side].reserve(event, request_id=request_id)
        elif known is not None and known[:2] != ("reserve", event):
            with pytest.raises(LedgerError):
                self.ledgers[side].reserve(event, request_id=request_id)
        else:
            reservation = self.ledgers[side].reserve(event, request_id=request_id)
            self.model[request_id] = ("reserve", event, event)
            assert reservation == self.reservation(request_id)

    @rule(side=st.integers(0, 1), request_id=st.sampled_from(REQUESTS), event=st.sampled_from(EVENTS))
    def commit(self, side: int, request_id: str, event: SkellamEvent) -> None:
        self.finish(request_id, "commit", event, lambda r: self.ledgers[side].commit(r, event))

    @rule(side=st.integers(0, 1), request_id=st.sampled_from(REQUESTS))
    def charge(self, side: int, request_id: str) -> None:
        self.finish(request_id, "commit", self.reservation(request_id).event, self.ledgers[side].charge)

    @rule(side=st.integers(0, 1), request_id=st.sampled_from(REQUESTS))
    def release(self, side: int, request_id: str) -> None:
        self.finish(request_id, "release", self.reservation(request_id).event, self.ledgers[side].release)

    def finish(self, request_id: str, transition: str, event: SkellamEvent, act: Callable[[Reservation], None]) -> None:
        reservation = self.reservation(request_id)
        known = self.model.get(request_id)
        if known is None or cost(event) > cost(known[1]):
            with pytest.raises(LedgerError):
                act(reservation)
        elif known[0] == "reserve":
            act(reservation)
            self.model[request_id] = (transition, known[1], event)
        elif (known[0], known[2]) == (transition, event):
            head = self.ledgers[0].head
            act(reservation)
            assert self.ledgers[0].head == head
        else:
            with pytest.raises(LedgerError):
                act(reservation)

    @rule(side=st.integers(0, 1))
    def reopen(self, side: int) -> None:
        self.ledgers[side].close()
        self.ledgers[side] = PrivacyLedger.open(self.location)

    @rule()
    def pin(self) -> None:
        self.heads.append(self.ledgers[0].head)

    @invariant()
    def both_sides_agree_with_the_model(self) -> None:
        if not hasattr(self, "ledgers"):
            return
        state = self.ledgers[0].state()
        assert state == self.ledgers[1].state()
        assert state.filter_spent == self.spent() <= state.filter_limit == LIMIT
        counted = [actual for transition, _, actual in self.model.values() if transition != "release"]
        assert state.epsilon == pytest.approx(epsilon(counted, delta=BUDGET.delta))
        assert state.epsilon <= BUDGET.epsilon
        transitions = [transition for transition, _, _ in self.model.values()]
        assert state.rounds_committed == transitions.count("commit")
        assert state.rounds_reserved == transitions.count("reserve")
        assert state.rounds_released == transitions.count("release")
