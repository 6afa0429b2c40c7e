"""A one-shot round of real sessions joined by a network that a test can bend."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocols import (
    AggregateReady,
    ClientId,
    ClientPolicy,
    ContributionNeeded,
    Event,
    History,
    Identity,
    PeerRejected,
    PersistBeforeSend,
    Phase,
    ProtocolError,
    Record,
    Roster,
    SendMessage,
)
from protocols.one_shot import (
    OneShotClient,
    OneShotConfig,
    OneShotMember,
    OneShotServer,
    OneTimeKey,
    committee_digest,
)
from protocols.one_shot.rules import CANARIES, least_threshold, signature_kind
from protocols.one_shot.wire import Contribution, ContributionFrame, MemberBundle, decode_contribution, sealed_digests
from protocols.primitives.keys import CLASSICAL, Suite
from protocols.roster import signed_text
from protocols.wire import Message, encode

Vector = NDArray[np.uint32]
# Takes (sender or None for the server, receiver or None for the server, data) and gives what arrives instead.
Network = Callable[[ClientId | None, ClientId | None, bytes], list[bytes]]
Delivery = tuple[ClientId | None, ClientId | None, bytes]
PartyT = TypeVar("PartyT", OneShotClient, OneShotMember)
FIRST_MEMBER = 101
NO_LIMIT = 10**9


def members(count: int) -> tuple[ClientId, ...]:
    return tuple(ClientId(FIRST_MEMBER + i) for i in range(count))


def round_config(
    cohort: int = 4,
    *,
    committee: tuple[ClientId, ...] = members(5),
    threshold: int | None = None,
    min_survivors: int | None = None,
    corrupt_holders: int = 1,
    length: int = 5,
    modulus_bits: int = 22,
    model: bytes = bytes(32),
    binding: bytes = bytes(32),
    round_id: bytes | None = None,
    suite: int = 1,
) -> OneShotConfig:
    """A valid configuration with the smallest threshold and floor, unless told otherwise."""
    return OneShotConfig(
        round_id=round_id or os.urandom(32),
        cohort=cohort,
        committee=committee,
        threshold=threshold or least_threshold(members=len(committee), corrupt=corrupt_holders),
        min_survivors=corrupt_holders + 2 if min_survivors is None else min_survivors,
        corrupt_holders=corrupt_holders,
        length=length,
        modulus_bits=modulus_bits,
        model=model,
        binding=binding,
        suite=suite,
    )


def random_vectors(cohort: int, length: int = 5, bits: int = 22, *, seed: int = 0) -> dict[ClientId, Vector]:
    rng = np.random.default_rng(seed)
    return {ClientId(i + 1): rng.integers(0, 2**bits, length).astype(np.uint32) for i in range(cohort)}


def faithful(_sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
    return [data]


def signed(identity: Identity, message: Message, suite: Suite = CLASSICAL) -> bytes:
    """The frame as its sender would sign it."""
    covered = encode(message, suite=suite)
    return covered + identity.sign(signed_text(signature_kind(type(message)), sha256(covered).digest()))


@dataclass
class Game:
    """All parties of one round; `step` moves one phase. `configs` and `policies` replace what single parties use."""

    config: OneShotConfig = field(default_factory=round_config)
    vectors: dict[ClientId, Vector] = field(default_factory=lambda: random_vectors(4))
    network: Network = faithful
    identities: dict[ClientId, Identity] = field(default_factory=dict)
    histories: dict[ClientId, History] = field(default_factory=dict)
    configs: Mapping[ClientId, OneShotConfig] = field(default_factory=dict)
    policies: Mapping[ClientId, ClientPolicy] = field(default_factory=dict)
    late: Callable[[], list[Delivery]] = list  # what arrives just before the server closes its phase
    rand: Mapping[ClientId, Callable[[int], bytes]] = field(default_factory=dict)
    serials: Mapping[ClientId, int] = field(default_factory=dict)
    bundles: Mapping[ClientId, MemberBundle] = field(default_factory=dict)
    keys_in_advance: Mapping[ClientId, OneTimeKey] = field(default_factory=dict)
    next_keys: Mapping[ClientId, OneTimeKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parties = sorted({*self.vectors, *self.config.committee})
        self.identities = self.identities or {party: Identity.generate() for party in parties}
        self.roster = Roster({party: identity.public for party, identity in self.identities.items()})
        self.clients = {client: self.session(OneShotClient, client) for client in self.vectors}
        self.members = {member: self.session(OneShotMember, member) for member in self.config.committee}
        self.sessions: list[OneShotClient | OneShotMember] = [*self.clients.values(), *self.members.values()]
        self.server = OneShotServer(self.config, roster=self.roster, serials=self.serials, bundles=self.bundles)
        self.errors: dict[ClientId, ProtocolError] = {}
        self.rejected: list[PeerRejected] = []
        self.refused: dict[ClientId, list[PeerRejected]] = {member: [] for member in self.members}  # by members
        self.records: dict[ClientId, list[Record]] = {party: [] for party in parties}
        self.sent: list[tuple[ClientId, bytes]] = []  # what clients and members gave to the network
        self.result: AggregateReady | None = None

    def session(self, role: type[PartyT], party: ClientId) -> PartyT:
        config = self.configs.get(party, self.config)
        policy = ClientPolicy(
            min_survivors=self.config.min_survivors,
            corrupt_holders=self.config.corrupt_holders,
            suite=config.suite,
            committee=committee_digest(self.roster, self.config.committee),
        )
        ahead: dict[str, Any] = {}
        if role is OneShotMember:
            ahead = {"key_in_advance": self.keys_in_advance.get(party), "next_key": self.next_keys.get(party)}
        return role(
            config,
            party,
            identity=self.identities[party],
            roster=self.roster,
            policy=self.policies.get(party, policy),
            history=self.histories.get(party, History()),
            rand=self.rand.get(party, os.urandom),
            **ahead,
        )

    def call(self, session: OneShotClient | OneShotMember, action: Callable[[], list[Event]]) -> None:
        """Runs a party's call, follows its events, and keeps its error."""
        party = session._me
        try:
            events = action()
        except ProtocolError as error:
            self.errors.setdefault(party, error)
            return
        for event in events:
            match event:
                case PersistBeforeSend(record=record):
                    self.records[party].append(record)
                    self.histories[party] = self.histories.get(party, History()).after(record)
                    self.call(session, session.persisted)
                case ContributionNeeded():
                    self.call(session, lambda: self.clients[party].contribute(self.vectors[party]))
                case PeerRejected():
                    self.refused[party].append(event)
                case SendMessage(data=data):
                    self.sent.append((party, data))
                    for arrived in self.network(party, None, data):
                        self.to_server(party, arrived)

    def to_server(self, party: ClientId, data: bytes) -> None:
        self.rejected += [event for event in self.server.receive(party, data) if isinstance(event, PeerRejected)]

    def to_party(self, session: OneShotClient | OneShotMember, data: bytes) -> None:
        if session.phase not in (Phase.FINISHED, Phase.ABORTED):
            self.call(session, lambda: session.receive(data))

    def start(self) -> None:
        for session in self.sessions:
            self.call(session, session.start)

    def step(self) -> None:
        """Delivers what is late, closes the server's phase and delivers what it sends."""
        for sender, receiver, data in self.late():
            if sender is not None:
                self.to_server(sender, data)
            elif receiver is not None:
                self.to_party(self.clients.get(receiver) or self.members[receiver], data)
        for event in self.server.close_phase():
            match event:
                case SendMessage(to=to, data=data) if to is not None:
                    session = self.clients.get(to) if self.server.phase is Phase.MASKED_INPUT else self.members[to]
                    if session is not None:
                        for arrived in self.network(None, to, data):
                            self.to_party(session, arrived)
                case PeerRejected():
                    self.rejected.append(event)
                case AggregateReady():
                    self.result = event

    def advance(self, phase: Phase) -> None:
        """Starts if need be, and steps until the server stands in `phase`."""
        if all(session.phase is Phase.READY for session in self.sessions):
            self.start()
        while self.server.phase is not phase:
            self.step()

    def play(self) -> ProtocolError | None:
        """The rest of the round; returns the server's typed error, if it ended in one."""
        try:
            self.advance(Phase.FINISHED)
        except ProtocolError as error:
            return error
        return None

    def run(self) -> AggregateReady:
        self.advance(Phase.FINISHED)
        assert self.result is not None
        return self.result

    def expected(self, survivors: frozenset[ClientId]) -> Vector:
        """The plain sum, by integers of any size."""
        total = sum(self.vectors[client].astype(object) for client in survivors) % 2**self.config.modulus_bits
        return np.array(total, dtype=np.uint32)

    def sent_by(self, party: ClientId) -> list[bytes]:
        return [data for sender, data in self.sent if sender == party]

    def parse(self, contribution: bytes) -> ContributionFrame:
        """A contribution of this round, as the server reads it."""
        return decode_contribution(
            contribution,
            suite=self.server._rules.suite,
            limit=NO_LIMIT,
            sealed_bytes=self.server._rules.sealed_bytes,
            vector_bytes=4 * (self.config.length + CANARIES),
        )

    def contribution(
        self, client: ClientId, frame: ContributionFrame, *, sealed: tuple[bytes, ...], vector: bytes, **changes: object
    ) -> bytes:
        """What a client could have sent: like `frame`, with these shares and this vector, signed by that client."""
        digests = {"sealed": sealed_digests(sealed), "vector": sha256(vector).digest(), "sender": client}
        message: Contribution = msgspec.structs.replace(frame.message, **{**digests, **changes})
        return b"".join((signed(self.identities[client], message, self.server._rules.suite), *sealed, vector))


def silencing(*parties: ClientId, after: int = 0) -> Network:
    """A network that loses what these parties say, after their first `after` messages."""
    said = dict.fromkeys(parties, 0)

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        if sender in said:
            said[sender] += 1
            return [data] if said[sender] <= after else []
        return [data]

    return network


def changing(party: ClientId, change: Callable[[bytes], bytes], *, message: int = 0) -> Network:
    """A network on which one of a party's messages, counted from 0, is another one."""
    said = 0

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        nonlocal said
        if sender != party:
            return [data]
        said += 1
        return [change(data) if said == message + 1 else data]

    return network


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)
