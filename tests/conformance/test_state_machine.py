"""Server, clients, and everything that a hostile network may do to their messages, in any order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols import (
    AggregateReady,
    ClientId,
    ClientPolicy,
    ContributionNeeded,
    Event,
    History,
    Identity,
    LocalProtocolError,
    PairwiseClient,
    PairwiseServer,
    PeerRejected,
    PersistBeforeSend,
    Phase,
    ProtocolError,
    Roster,
    SendMessage,
    SurvivorsAgreed,
)
from protocols.wire import (
    MAGIC,
    KeyBundles,
    Message,
    SealedShares,
    SurvivorList,
    SurvivorSignatures,
    decode,
    encode,
)
from tests.rounds import OVER, Delivery, Round, kind_of, random_vectors, round_config

N = 5
LENGTH = 3
IDS = [ClientId(i) for i in range(1, N + 1)]
SEALED_PAIRS = {"SealedShares": ("cohort", "sealed"), "SurvivorSignatures": ("signers", "signatures")}
LISTS = {"KeyBundles": ("bundles",), "SurvivorList": ("survivors",), **SEALED_PAIRS}
KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (KeyBundles, SealedShares, SurvivorList, SurvivorSignatures)
}


@cache
def identities() -> dict[ClientId, Identity]:
    return {client: Identity.generate() for client in IDS}


@cache
def another_round() -> list[Delivery]:
    """All messages of a finished round between the same parties, to be replayed."""
    seen: list[Delivery] = []

    def network(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        seen.append((sender, receiver, data))
        return [data]

    Round(round_config(N, length=LENGTH), random_vectors(N, LENGTH), network=network, identities=identities()).run()
    return seen


class HostileNetwork(RuleBasedStateMachine):
    """Honest parties; messages in flight can be delivered, lost, copied, swapped, damaged, rewritten and replayed."""

    @initialize(seed=st.integers(0, 2**16), floor=st.integers(3, 4), good_phases=st.integers(0, 4))
    def open(self, seed: int, floor: int, good_phases: int) -> None:
        self.config = round_config(N, length=LENGTH, min_survivors=floor)
        self.vectors = random_vectors(N, LENGTH, seed=seed)
        roster = Roster({client: identity.public for client, identity in identities().items()})
        policy = ClientPolicy(min_survivors=floor, corrupt_holders=0)
        self.clients = {
            client: PairwiseClient(
                self.config, client, identity=identities()[client], roster=roster, policy=policy, history=History()
            )
            for client in IDS
        }
        self.server = PairwiseServer(self.config, roster=roster)
        self.in_flight: list[Delivery] = []
        self.archive: list[Delivery] = []
        self.unfinished: dict[ClientId, Callable[[], list[Event]]] = {
            client: session.start for client, session in self.clients.items()
        }
        self.agreed: dict[ClientId, frozenset[ClientId]] = {}
        self.unmask_sent: set[ClientId] = set()
        self.result: AggregateReady | None = None
        for _ in range(good_phases):
            self.a_good_phase()

    # The parties.

    def call(self, client: ClientId, action: Callable[[], list[Event]]) -> None:
        session = self.clients[client]
        before = session.phase
        try:
            events = action()
        except LocalProtocolError:
            assert before in OVER or before is Phase.READY
            self.unfinished.pop(client, None)
            return
        except ProtocolError:
            assert session.phase is Phase.ABORTED
            assert session._secrets is None
            self.unfinished.pop(client, None)
            return
        for event in events:
            match event:
                case SendMessage(data=data):
                    self.in_flight.append((client, None, data))
                    self.archive.append((client, None, data))
                    if kind_of(data).__name__ == "Unmask":
                        self.unmask_sent.add(client)
                case PersistBeforeSend():
                    self.unfinished[client] = session.persisted
                case ContributionNeeded():
                    self.unfinished[client] = lambda: session.contribute(self.vectors[client])
                case SurvivorsAgreed(survivors=survivors):
                    self.agreed[client] = survivors

    def deliver(self, delivery: Delivery) -> None:
        sender, receiver, data = delivery
        if receiver is not None:
            self.call(receiver, lambda: self.clients[receiver].receive(data))
            return
        assert sender is not None
        try:
            events = self.server.receive(sender, data)
        except LocalProtocolError:
            assert self.server.phase in OVER
            return
        assert all(isinstance(event, PeerRejected) and event.client == sender for event in events)

    def finish(self, client: ClientId) -> None:
        if client in self.unfinished:
            self.call(client, self.unfinished.pop(client))

    @rule(client=st.sampled_from(IDS))
    def client_goes_on(self, client: ClientId) -> None:
        self.finish(client)

    @rule()
    def everything_settles(self) -> None:
        """What a good network does."""
        while self.in_flight or self.unfinished:
            for client in IDS:
                self.finish(client)
            if self.in_flight:
                self.deliver(self.in_flight.pop(0))

    @precondition(lambda self: self.server.phase not in OVER and len(self.server.waiting_for) <= 2)
    @rule()
    def server_closes_its_phase(self) -> None:
        try:
            events = self.server.close_phase()
        except ProtocolError:
            assert self.server.phase is Phase.ABORTED
            return
        for event in events:
            match event:
                case SendMessage(to=to, data=data):
                    self.in_flight.append((None, to, data))
                    self.archive.append((None, to, data))
                case AggregateReady():
                    self.result = event

    def a_good_phase(self) -> None:
        self.everything_settles()
        if self.server.phase not in OVER:
            self.server_closes_its_phase()

    # Good luck must be common, or few rounds get far.
    one_good_phase = rule()(a_good_phase)
    another_good_phase = rule()(a_good_phase)
    one_more_good_phase = rule()(a_good_phase)

    # The network.

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def delivers_one(self, data: st.DataObject) -> None:
        self.deliver(self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1))))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def loses_one(self, data: st.DataObject) -> None:
        self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))

    @precondition(lambda self: self.archive)
    @rule(data=st.data())
    def copies_one(self, data: st.DataObject) -> None:
        self.deliver(self.archive[data.draw(st.integers(0, len(self.archive) - 1))])

    @rule(data=st.data())
    def replays_one_of_another_round(self, data: st.DataObject) -> None:
        old = another_round()
        self.deliver(old[data.draw(st.integers(0, len(old) - 1))])

    @precondition(lambda self: self.archive)
    @rule(data=st.data(), client=st.sampled_from(IDS))
    def sends_one_to_or_from_somebody_else(self, data: st.DataObject, client: ClientId) -> None:
        sender, _, message = self.archive[data.draw(st.integers(0, len(self.archive) - 1))]
        self.deliver((None, client, message) if sender is None else (client, None, message))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), bit=st.integers(0, 2**14))
    def damages_one(self, data: st.DataObject, bit: int) -> None:
        sender, receiver, message = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        place = bit % (8 * len(message))
        damaged = bytearray(message)
        damaged[place // 8] ^= 1 << place % 8
        self.deliver((sender, receiver, bytes(damaged)))

    @precondition(lambda self: any(sender is None for sender, _, _ in self.in_flight))
    @rule(data=st.data())
    def rewrites_one_of_the_server(self, data: st.DataObject) -> None:
        """A well-formed message with an entry left out, or with two contents swapped."""
        places = [i for i, (sender, _, _) in enumerate(self.in_flight) if sender is None]
        _, receiver, frame = self.in_flight.pop(data.draw(st.sampled_from(places)))
        assert frame.startswith(MAGIC)
        name = kind_of(frame).__name__
        message = decode(frame, KINDS[name], limit=10**6)
        fields = LISTS[name]
        lists = [list(getattr(message, field)) for field in fields]
        if name == "SealedShares" and receiver in lists[0]:
            lists[1].insert(lists[0].index(receiver), None)  # line up with the cohort: nothing comes from oneself
        if data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(lists[0]) - 1))
            for entries in lists:
                del entries[place]
        else:
            entries = lists[-1]
            one, other = (data.draw(st.integers(0, len(entries) - 1)) for _ in range(2))
            entries[one], entries[other] = entries[other], entries[one]
        changes = {
            field: tuple(entry for entry in entries if entry is not None)
            for field, entries in zip(fields, lists, strict=True)
        }
        self.deliver((None, receiver, encode(msgspec.structs.replace(message, **changes))))

    # What must hold at any time.

    @invariant()
    def one_survivor_set_for_everybody(self) -> None:
        if not hasattr(self, "config"):
            return
        sets = set(self.agreed.values())
        assert len(sets) <= 1
        assert self.unmask_sent == set(self.agreed)
        assert all(len(survivors) >= self.config.min_survivors for survivors in sets)
        assert all((session.phase is Phase.FINISHED) == (c in self.agreed) for c, session in self.clients.items())

    @invariant()
    def the_exact_sum_or_none(self) -> None:
        if not hasattr(self, "config"):
            return
        assert (self.result is not None) == (self.server.phase is Phase.FINISHED)
        if self.result is not None:
            assert set(self.agreed.values()) == {self.result.survivors}
            total = sum(self.vectors[client].astype(object) for client in self.result.survivors) % 2**32
            assert (self.result.vector == np.array(total, dtype=np.uint32)).all()


TestHostileNetwork = HostileNetwork.TestCase
TestHostileNetwork.settings = settings(max_examples=60, stateful_step_count=30)
