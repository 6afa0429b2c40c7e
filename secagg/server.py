"""The server over any transport: it opens rounds, routes messages, and gets the mean of the survivors' updates.

A round, from the server's side:

1. `begin(model)` gives an invitation for every client on the roster.
2. `receive(sender, data)` for every message that arrives; `close_phase()` when `waiting_for` is empty or patience is.
   Send what comes back as `SendMessage`.
3. After the fifth `close_phase()` the last event is an `AggregationResult`.

The server keeps its own ledger, but nothing depends on its honesty: clients refuse by theirs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp import EpsilonLadder, LocalRecordLevel, NoPrivacy, PrivacyLedger, Reservation
from dp.samplers import Int64Vector
from protocols import (
    AggregateReady,
    ClientId,
    Event,
    LocalProtocolError,
    PairwiseServer,
    PeerRejected,
    Phase,
    Roster,
    SendMessage,
)
from protocols.pairwise import round_context
from protocols.partial import Item, Map, Result
from protocols.session import DIGEST_BYTES
from protocols.wire import SERVER, Invitation, KeyBundle, encode

from .client import agreed_ledger, request_id
from .config import AggregationConfig
from .layout import Arrays
from .pipeline import finish
from .statement import statement, statement_dict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AggregationResult:
    """What one round reveals, and to what it amounts.

    Attributes:
        mean: the named arrays of the survivors' (weighted) mean, noised if the configuration says so.
        weight: the sum of the survivors' weights, noised if they are private; None without weights.
        metrics: the (weighted) mean of each agreed metric, noised likewise.
        total: int64[config.length], the integer sum it all was decoded from; rotated, if `config.rotation`.
        near_limit: coordinates of `total` beyond three quarters of the ring's range. A few mean nothing; many warn that
            sums wrap, which nothing else shows: then take more bits or fewer units.
        unclipped: noised fraction of updates that were not clipped; None unless the clip norm is adaptive.
        survivors: whose updates are in it.
        epsilon: spent so far, this round included: against the server and `max_colluders` clients, at the survivors
            that were verified. Infinity without privacy. With `LocalRecordLevel` the budget that every client keeps on
            its own, over all its rounds: it does not depend on this one.
        ladder: epsilon of this round alone, under falling trust; None without privacy.
        transcript: SHA-256 over the round, its clients and its sum.
        config: what was agreed; with an adaptive clip norm, for this round.
    """

    mean: dict[str, NDArray[np.floating]]
    weight: float | None
    metrics: dict[str, float]
    total: Int64Vector
    near_limit: int
    unclipped: float | None
    survivors: frozenset[ClientId]
    epsilon: float
    ladder: EpsilonLadder | None
    transcript: bytes
    config: AggregationConfig

    def statement(self) -> str:
        """What is hidden from whom, at what epsilon, under which assumptions."""
        return statement(self.config, survivors=len(self.survivors), spent=self.epsilon)

    def to_dict(self) -> dict[str, object]:
        """The statement and the round's facts in plain types (epsilon may be infinite); without the vectors."""
        return {
            "survivors": sorted(self.survivors),
            "near_limit": self.near_limit,
            "clip_norm": self.config.clip_norm,
            "unclipped": self.unclipped,
            "dropouts": self.config.clients - len(self.survivors),
            "weight": self.weight,
            "metrics": self.metrics,
            "epsilon": self.epsilon,
            "ladder": None if self.ladder is None else self.ladder.to_dict(),
            "transcript": self.transcript.hex(),
            "statement": statement_dict(self.config, survivors=len(self.survivors), spent=self.epsilon),
        }


ServerEvent = Event | AggregationResult


class Server:
    """The aggregating server, over all its rounds.

    With `AdaptiveClipping`, `config` is that of the next round: tell its `clip_norm` to the clients, with the model.

    Args:
        config: what was agreed with the clients.
        roster: the pinned public identities of all clients.
        ledger: the privacy budget of what it publishes; without one, the budget lasts as long as this object.
        map: where masks are expanded: in threads, in processes, or on machines as trusted, for they get seeds.
            The default uses one thread for each processor on vectors that are worth it.

    Raises:
        ValueError: the roster has fewer clients than the configuration, or the ledger keeps another budget.
    """

    def __init__(
        self,
        config: AggregationConfig,
        *,
        roster: Roster,
        ledger: PrivacyLedger | None = None,
        map: Map | None = None,  # noqa: A002
    ) -> None:
        if len(roster) < config.clients:
            raise ValueError(f"the configuration needs {config.clients} clients, the roster has {len(roster)}")
        config.riders.require_weights(roster)
        self.config = config
        self._roster = roster
        self.ledger = agreed_ledger(ledger, config)
        self._map = map or threaded_map
        self._session: PairwiseServer | None = None
        self._seed = b""
        self._reservation: Reservation | None = None
        self._unmasking = False

    @property
    def phase(self) -> Phase:
        """Where the present round stands."""
        return Phase.READY if self._session is None else self._session.phase

    @property
    def seed(self) -> bytes:
        """The public seed of the present or last round's rotation."""
        return self._seed

    @property
    def waiting_for(self) -> frozenset[ClientId]:
        """Clients whose message of the present phase is missing."""
        return frozenset() if self._session is None else self._session.waiting_for

    @property
    def next_bundles(self) -> dict[ClientId, KeyBundle]:
        """Verified key bundles that clients of the last round sent for the next one: give them to `begin`, once."""
        return {} if self._session is None else dict(self._session.next_bundles)

    def begin(
        self, model: Arrays | None = None, *, bundles: Mapping[ClientId, KeyBundle] | None = None
    ) -> list[SendMessage]:
        """Opens a round.

        Args:
            model: the arrays that all updates start from; clients check that they have the same.
            bundles: `next_bundles` of an earlier round: their owners need not advertise keys.

        Returns:
            One invitation for every client on the roster.

        Raises:
            BudgetExceededError: the worst case of this round does not fit the budget any more.
        """
        self.abandon()
        round_id = os.urandom(DIGEST_BYTES)
        round_config = self.config.round_config(round_id=round_id, model=self.config.layout.model_digest(model))
        if self.ledger is not None and self.config.mechanism is not None:
            worst = self.config.mechanism.event(survivors=self.config.min_survivors)
            self._reservation = self.ledger.reserve(worst, request_id=request_id(round_id))
        self._seed = self.config.round_seed(round_id=round_id, model=round_config.model)
        self._session = PairwiseServer(round_config, roster=self._roster, bundles=bundles, map=self._map)
        context = round_context(round_config, self._roster)
        invitation = encode(Invitation(context=context, sender=SERVER, round_id=round_id, model=round_config.model))
        return [SendMessage(to=client, data=invitation) for client in self._roster]

    def receive(self, sender: int, data: bytes) -> list[ServerEvent]:
        """Takes one message of a client; a bad or late one becomes `PeerRejected` and changes nothing."""
        if self.phase in (Phase.READY, Phase.FINISHED, Phase.ABORTED):
            return [PeerRejected(client=ClientId(sender), reason="no round is open")]
        return list(self._live().receive(ClientId(sender), data))

    def close_phase(self) -> list[ServerEvent]:
        """Stops waiting and goes on with those who answered.

        Raises:
            TooFewClientsError: fewer than the floor are left; the round is over.
            RemoteProtocolError: a share does not fit; names the client. The round is over.
        """
        session = self._live()
        with ExitStack() as on_failure:
            on_failure.callback(self.abandon)
            events = session.close_phase()
            on_failure.pop_all()
        self._unmasking |= session.phase is Phase.UNMASK
        return [self._result(event) if isinstance(event, AggregateReady) else event for event in events]

    def abandon(self) -> None:
        """Ends the present round, if any: free if no client was asked to unmask, charged in full otherwise."""
        reservation, unmasking = self._reservation, self._unmasking
        self._session, self._reservation, self._unmasking = None, None, False
        if reservation is not None and self.ledger is not None:
            settle = self.ledger.charge if unmasking else self.ledger.release
            settle(reservation)

    def _live(self) -> PairwiseServer:
        if self._session is None:
            raise LocalProtocolError("no round is open: call begin")
        return self._session

    def _result(self, ready: AggregateReady) -> AggregationResult:
        config, survivors = self.config, len(ready.survivors)
        released = finish(ready.vector, config, survivors=ready.survivors, removed=ready.removed, seed=self._seed)
        spent, rungs = (config.privacy.epsilon if isinstance(config.privacy, LocalRecordLevel) else math.inf), None
        if config.mechanism is not None and not isinstance(config.privacy, NoPrivacy):
            event = config.mechanism.event(survivors=survivors)
            rungs = config.ladder(survivors=survivors, rounds=1)
            if self._reservation is not None and self.ledger is not None:
                self.ledger.commit(self._reservation, event)
                spent = self.ledger.state().epsilon
        self._reservation = None
        self._unmasking = False
        if released.unclipped is not None:
            self.config = config.with_clip_norm(config.next_clip_norm(released.unclipped))
        return AggregationResult(
            mean=released.mean,
            weight=released.weight,
            metrics=released.metrics,
            total=released.total,
            near_limit=released.near_limit,
            unclipped=released.unclipped,
            survivors=ready.survivors,
            epsilon=spent,
            ladder=rungs,
            transcript=ready.transcript,
            config=config,
        )


def threaded_map(function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterable[Result]:
    """`map` over all processors: AES and additions release the interpreter lock. One item runs where it is."""
    pending = list(items)
    workers = min(len(pending), os.cpu_count() or 1)
    if workers <= 1:
        return list(map(function, pending))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, pending))
