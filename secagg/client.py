"""A client over any transport: bytes in, events out; it refuses by its own policy, its own history and its own budget.

A round, from the client's side:

1. `begin(invitation, model=...)` checks that the round is the one it was configured for and reserves the worst case of
   its budget. A spent budget refuses here, before anything is drawn or sent.
2. `receive(data)` for every message of the server; send what comes back as `SendMessage`.
3. On `ContributionNeeded`, call `contribute(update)` once.
4. After `SurvivorsAgreed` the round is over, and the budget holds what really happened. A round that breaks off after
   the masked vector left stays charged at the worst case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from dp import LocalRecordLevel, PrivacyLedger, Reservation, UInt32Vector, secure_random
from protocols import (
    ClientId,
    Event,
    Identity,
    InconsistentViewError,
    LocalProtocolError,
    PairwiseClient,
    PersistBeforeSend,
    Phase,
    PolicyRefusal,
    Roster,
    SurvivorsAgreed,
)
from protocols.pairwise import OneTimeKeys, round_context
from protocols.wire import Invitation, decode, message_limit

from .config import AggregationConfig
from .history import HistoryStore
from .layout import Arrays
from .pipeline import Update, prepare

RandomBytes = Callable[[int], bytes]


class Client:
    """One enrolled client, over all its rounds; for one thread at a time.

    Args:
        config: what this client agreed to; the server's must be the same.
        client_id: this client's id on the roster.
        identity: its long-term signing key.
        roster: the pinned public identities of all clients.
        history: what it must never forget (`ClientHistory.enrol` once, then `ClientHistory(path)`).
        ledger: its own privacy budget, made with `PrivacyLedger.create(path, budget=config.budget())`; without one, the
            budget lasts as long as this object.
        inspect: looks at the model of every round that names one, and raises `PolicyRefusal` for a model that this
            client will not train (`secagg.linter.refuse_planted`).
        rand: source of uniform bytes for keys; noise and rounding use a fresh AES-CTR stream keyed by the operating
            system.

    Raises:
        ValueError: the identity is not the pinned one, or the ledger keeps another budget than the configuration's.
    """

    def __init__(
        self,
        config: AggregationConfig,
        client_id: int,
        *,
        identity: Identity,
        roster: Roster,
        history: HistoryStore,
        ledger: PrivacyLedger | None = None,
        inspect: Callable[[Arrays], None] | None = None,
        rand: RandomBytes = os.urandom,
    ) -> None:
        self.config = config
        self.client_id = ClientId(client_id)
        if roster.get(self.client_id) != identity.public:
            raise ValueError(f"the roster pins another identity for client {client_id}")
        config.riders.require_weights([client_id])
        self.ledger = agreed_ledger(ledger, config)
        self._identity = identity
        self._roster = roster
        self._history = history
        self._inspect = inspect
        self._rand = rand
        self._session: PairwiseClient | None = None
        self._seed = b""
        self._reservation: Reservation | None = None
        self._contributed = False

    @property
    def phase(self) -> Phase:
        """Where the present round stands."""
        return Phase.READY if self._session is None else self._session.phase

    def begin(
        self,
        invitation: bytes,
        *,
        model: Arrays | bytes | None = None,
        clip_norm: float | None = None,
        keys_in_advance: OneTimeKeys | None = None,
        next_keys: OneTimeKeys | None = None,
    ) -> list[Event]:
        """Opens a round.

        Args:
            invitation: the server's bytes.
            model: the arrays that this round's update starts from, as this client has them; the server must have named
                the same. Or their digest, from a driver that checks the arrays before it contributes.
            clip_norm: with `AdaptiveClipping`, this round's, as the server announces it with the model; by default the
                last round's, or the initial one. The server must have opened the round with the same. It decides how
                far the update is scaled, never how much noise covers it.
            keys_in_advance: keys whose bundle the server has from an earlier round.
            next_keys: keys for a later round.

        Raises:
            BudgetExceededError: the worst case of this round does not fit the budget any more.
            InconsistentViewError: the server's round differs from this client's configuration, roster or model.
            PolicyRefusal: the client's policy forbids the round, `inspect` the model, or no honest course leads to this
                clip norm.
            MalformedMessageError: the bytes are not an invitation.
        """
        if clip_norm is not None:
            try:
                self.config = self.config.with_clip_norm(clip_norm)
            except ValueError as error:
                raise PolicyRefusal(str(error), client_id=self.client_id) from None
        message = decode(invitation, Invitation, limit=message_limit(self.config.clients))
        if message.model != (model if isinstance(model, bytes) else self.config.layout.model_digest(model)):
            raise InconsistentViewError("the server opens the round on another model than this client has")
        if self._inspect is not None and model is not None:
            if isinstance(model, bytes):
                raise ValueError("a client that inspects models needs the arrays, not their digest")
            self._inspect(model)
        round_config = self.config.round_config(round_id=message.round_id, model=message.model)
        if message.context != round_context(round_config, self._roster):
            raise InconsistentViewError(
                "the server's configuration or roster is not this client's: compare config digests"
            )
        session = PairwiseClient(
            round_config,
            self.client_id,
            identity=self._identity,
            roster=self._roster,
            policy=self.config.policy(),
            history=self._history.history,
            keys_in_advance=keys_in_advance,
            next_keys=next_keys,
            rand=self._rand,
        )
        self.abandon()
        if self.ledger is not None and self.config.mechanism is not None:
            worst = self.config.mechanism.event(survivors=self.config.min_survivors)
            self._reservation = self.ledger.reserve(worst, request_id=request_id(message.round_id))
        self._session = session
        self._seed = self.config.round_seed(round_id=message.round_id, model=message.model)
        return self._run(session.start)

    def receive(self, data: bytes) -> list[Event]:
        """Takes one message of the server; after an error (see `ClientSession.receive`) this client's round is over."""
        session = self._live()
        return self._run(lambda: session.receive(data))

    def contribute(self, update: Update) -> list[Event]:
        """Clips, rounds, noises, masks and sends this round's update, once.

        Raises:
            UnsafeUpdateError: the update is not finite or does not match the layout; nothing left, a mended one may
                follow.
            LocalProtocolError: no contribution is expected now.
        """
        session = self._live()
        if session.phase is not Phase.CONTRIBUTE:
            raise LocalProtocolError(
                f"no contribution is expected in phase {session.phase.value}", client_id=self.client_id
            )
        words = self.prepare(update)
        if self._session is not session:
            raise LocalProtocolError("another round was opened meanwhile", client_id=self.client_id)
        self._contributed = True
        return self._run(lambda: session.contribute(words))

    def prepare(self, update: Update) -> UInt32Vector:
        """The vector that `contribute` masks, with fresh rounding and noise at every call."""
        seeds = self._live().removable_seeds if self.config.removable else ()
        return prepare(update, self.config, rand=secure_random(), client=self.client_id, seeds=seeds, seed=self._seed)

    def abandon(self) -> None:
        """Ends the present round, if any: charged in full if the masked vector may have left, free otherwise."""
        reservation, contributed = self._reservation, self._contributed
        self._session, self._reservation, self._contributed = None, None, False
        if reservation is not None and self.ledger is not None:
            settle = self.ledger.charge if contributed else self.ledger.release
            settle(reservation)

    def _live(self) -> PairwiseClient:
        if self._session is None:
            raise LocalProtocolError(
                "no round is open: call begin with the server's invitation", client_id=self.client_id
            )
        return self._session

    def _run(self, call: Callable[[], list[Event]]) -> list[Event]:
        """Runs a session call, makes its records durable, settles the budget, and passes the other events on."""
        with self._settling():
            events: list[Event] = []
            for event in call():
                match event:
                    case PersistBeforeSend(record=record):
                        self._history.append(record)
                        events += self._run(self._live().persisted)
                    case SurvivorsAgreed(survivors=survivors):
                        self._settle(len(survivors))
                        events.append(event)
                    case _:
                        events.append(event)
            return events

    def _settle(self, survivors: int) -> None:
        """The round's cost, now that enough signatures prove how many shares of noise are in the sum."""
        if self._reservation is not None and self.ledger is not None and self.config.mechanism is not None:
            self.ledger.commit(self._reservation, self.config.mechanism.event(survivors=survivors))
        self._reservation = None

    @contextmanager
    def _settling(self) -> Iterator[None]:
        with ExitStack() as on_failure:
            on_failure.callback(self.abandon)
            yield
            on_failure.pop_all()


def request_id(round_id: bytes) -> str:
    """A ledger's name for one attempt at a round: the server chooses round ids, so an id alone must not be one."""
    return f"{round_id.hex()}/{os.urandom(8).hex()}"


def agreed_ledger(ledger: PrivacyLedger | None, config: AggregationConfig) -> PrivacyLedger | None:
    """The ledger that keeps a configuration's budget: the given one, or one in memory; None without privacy.

    Raises:
        ValueError: the given ledger keeps another budget; names both.
    """
    budget = config.budget()
    if budget is None:
        if ledger is not None and isinstance(config.privacy, LocalRecordLevel):
            raise ValueError("local steps are charged where they are made: give the ledger to make_private")
        if ledger is not None:
            raise ValueError("a configuration without privacy cannot keep a ledger: no budget bounds it")
        return None
    if ledger is None:
        return PrivacyLedger.create(":memory:", budget=budget)
    state = ledger.state()
    if (state.limit_epsilon, state.delta, state.unit) != (budget.epsilon, budget.delta, budget.unit):
        raise ValueError(
            f"the ledger keeps epsilon {state.limit_epsilon} at delta {state.delta} for unit {state.unit!r}, "
            f"the configuration epsilon {budget.epsilon} at delta {budget.delta} for unit {budget.unit!r}"
        )
    return ledger
