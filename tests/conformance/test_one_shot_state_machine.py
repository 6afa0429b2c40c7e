"""The one-shot protocol's server, clients and members, and all that a hostile network may do to their messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, partial

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols import (
    AggregateReady,
    ClientId,
    ContributionNeeded,
    Event,
    Identity,
    LocalProtocolError,
    PeerRejected,
    PersistBeforeSend,
    Phase,
    ProtocolError,
    SendMessage,
    SurvivorsSigned,
)
from protocols.one_shot import OneShotClient, OneShotMember
from protocols.one_shot.wire import Committee, Complaint, PartialSum, UnmaskRequest, says
from protocols.wire import Message
from tests.classical import decode, encode
from tests.one_shot.game import Delivery, Game, members, random_vectors, round_config

OVER = (Phase.FINISHED, Phase.ABORTED)
CLIENTS = [ClientId(i) for i in range(1, 4)]
MEMBERS = members(4)
PARTIES = [*CLIENTS, *MEMBERS]
Session = OneShotClient | OneShotMember


@cache
def identities() -> dict[ClientId, Identity]:
    return {party: Identity.generate() for party in PARTIES}


def new_game(seed: int = 0, **options: object) -> Game:
    config = round_config(3, committee=MEMBERS, corrupt_holders=0, length=2)
    return Game(config, random_vectors(3, 2, seed=seed), identities=identities(), **options)  # type: ignore[arg-type]


@cache
def another_round() -> list[Delivery]:
    """All messages of a finished round between the same parties, to be replayed."""
    seen: list[Delivery] = []

    def network(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        seen.append((sender, receiver, data))
        return [data]

    new_game(network=network).run()
    return seen


class HostileNetwork(RuleBasedStateMachine):
    """Honest parties; messages in flight can be delivered, lost, copied, swapped, damaged, rewritten and replayed."""

    @initialize(seed=st.integers(0, 2**16), good_phases=st.integers(0, 3))
    def open(self, seed: int, good_phases: int) -> None:
        self.game = new_game(seed)
        self.server = self.game.server
        self.sessions: dict[ClientId, Session] = {**self.game.clients, **self.game.members}
        self.in_flight: list[Delivery] = []
        self.archive: list[Delivery] = []
        self.unfinished: dict[ClientId, Callable[[], list[Event]]] = {
            party: session.start for party, session in self.sessions.items()
        }
        self.signed: dict[ClientId, list[frozenset[ClientId]]] = {member: [] for member in MEMBERS}
        self.said: Counter[tuple[ClientId, str]] = Counter()
        self.result: AggregateReady | None = None
        for _ in range(good_phases):
            self.a_good_phase()

    # The parties.

    def call(self, party: ClientId, action: Callable[[], list[Event]]) -> None:
        session = self.sessions[party]
        before = session.phase
        try:
            events = action()
        except LocalProtocolError:
            assert before in OVER or before is Phase.READY
            self.unfinished.pop(party, None)
            return
        except ProtocolError:
            assert session.phase is Phase.ABORTED
            assert session._secrets is None
            self.unfinished.pop(party, None)
            return
        for event in events:
            match event:
                case SendMessage(data=data):
                    self.in_flight.append((party, None, data))
                    self.archive.append((party, None, data))
                    kind = "answer" if says(data, PartialSum) or says(data, Complaint) else "other"
                    self.said[party, kind] += 1
                    assert not says(data, Complaint), "everybody is honest, so nobody is accused"
                case PersistBeforeSend(record=record):
                    if isinstance(record, SurvivorsSigned):
                        self.signed[party].append(record.survivors)
                    self.unfinished[party] = session.persisted
                case ContributionNeeded() if isinstance(session, OneShotClient):
                    self.unfinished[party] = partial(session.contribute, self.game.vectors[party])

    def deliver(self, delivery: Delivery) -> None:
        sender, receiver, data = delivery
        if receiver is not None:
            if receiver in self.sessions:
                self.call(receiver, lambda: self.sessions[receiver].receive(data))
            return
        assert sender is not None
        try:
            events = self.server.receive(sender, data)
        except LocalProtocolError:
            assert self.server.phase in OVER
            return
        assert all(isinstance(event, PeerRejected) and event.client == sender for event in events)

    def finish(self, party: ClientId) -> None:
        if party in self.unfinished:
            self.call(party, self.unfinished.pop(party))

    @rule(party=st.sampled_from(PARTIES))
    def party_goes_on(self, party: ClientId) -> None:
        self.finish(party)

    @rule()
    def everything_settles(self) -> None:
        """What a good network does."""
        while self.in_flight or self.unfinished:
            for party in PARTIES:
                self.finish(party)
            if self.in_flight:
                self.deliver(self.in_flight.pop(0))

    @precondition(lambda self: self.server.phase not in OVER)
    @rule()
    def server_closes_its_phase(self) -> None:
        asked = CLIENTS if self.server.phase is Phase.ADVERTISE_KEYS else MEMBERS
        try:
            events = self.server.close_phase()
        except ProtocolError:
            assert self.server.phase is Phase.ABORTED
            return
        for event in events:
            match event:
                case SendMessage(to=to, data=data) if to in asked:
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
    @rule(data=st.data(), party=st.sampled_from(PARTIES))
    def sends_one_to_or_from_somebody_else(self, data: st.DataObject, party: ClientId) -> None:
        sender, _, message = self.archive[data.draw(st.integers(0, len(self.archive) - 1))]
        self.deliver((None, party, message) if sender is None else (party, None, message))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), bit=st.integers(0, 2**17))
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
        kind: type[Message] = Committee if says(frame, Committee) else UnmaskRequest
        message = decode(frame, kind, limit=10**6)
        name = data.draw(st.sampled_from(["bundles", "contributions"])) if kind is UnmaskRequest else "bundles"
        entries = list(getattr(message, name))
        one, other = (data.draw(st.integers(0, len(entries) - 1)) for _ in range(2))
        if data.draw(st.booleans()):
            del entries[one]
        else:
            field = "key" if name == "bundles" else data.draw(st.sampled_from(["share", "contribution", "signature"]))
            first, second = (getattr(entries[place], field) for place in (one, other))
            entries[one] = msgspec.structs.replace(entries[one], **{field: second})
            entries[other] = msgspec.structs.replace(entries[other], **{field: first})
        self.deliver((None, receiver, encode(msgspec.structs.replace(message, **{name: tuple(entries)}))))

    # What must hold at any time.

    @invariant()
    def members_answer_once_and_one_set_can_be_opened(self) -> None:
        if not hasattr(self, "game"):
            return
        assert all(len(sets) <= 1 for sets in self.signed.values())
        assert all(self.said[member, "answer"] <= len(self.signed[member]) for member in MEMBERS)
        assert all(self.said[client, "other"] <= 1 for client in CLIENTS)
        opened = Counter(sets[0] for sets in self.signed.values() if sets)
        assert all(len(survivors) >= self.game.config.min_survivors for survivors in opened)
        assert sum(count >= self.game.config.threshold for count in opened.values()) <= 1

    @invariant()
    def the_exact_sum_or_none(self) -> None:
        if not hasattr(self, "game"):
            return
        assert (self.result is not None) == (self.server.phase is Phase.FINISHED)
        if self.result is not None:
            agreed = [sets[0] for sets in self.signed.values() if sets]
            assert agreed.count(self.result.survivors) >= self.game.config.threshold
            assert np.array_equal(self.result.vector, self.game.expected(self.result.survivors))


TestHostileNetwork = HostileNetwork.TestCase
TestHostileNetwork.settings = settings(max_examples=40, stateful_step_count=25)
