"""A round of real sessions joined by a network that a test can bend."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    PairwiseClient,
    PairwiseServer,
    PeerRejected,
    PersistBeforeSend,
    Phase,
    ProtocolError,
    Record,
    Roster,
    RoundConfig,
    SendMessage,
    SurvivorsAgreed,
    required_threshold,
)
from protocols.wire import HEADER_BYTES, Message

Vector = NDArray[np.uint32]
RandomBytes = Callable[[int], bytes]
# Takes (sender or None for the server, receiver or None for the server, data) and gives what arrives instead.
Network = Callable[[ClientId | None, ClientId | None, bytes], list[bytes]]
Delivery = tuple[ClientId | None, ClientId | None, bytes]
OVER = (Phase.FINISHED, Phase.ABORTED)
KINDS = {kind.__struct_config__.tag: kind for kind in Message.__subclasses__()}


def round_config(
    cohort: int,
    *,
    threshold: int | None = None,
    min_survivors: int | None = None,
    corrupt_holders: int | None = None,
    degree: int | None = None,
    length: int = 5,
    modulus_bits: int = 32,
    model: bytes = bytes(32),
    binding: bytes = bytes(32),
    round_id: bytes | None = None,
    suite: int = 2,
    removable: bool = False,
) -> RoundConfig:
    """A valid configuration with the smallest threshold and floor, unless told otherwise."""
    degree = cohort - 1 if degree is None else degree
    if corrupt_holders is None:
        corrupt_holders = 0 if degree == cohort - 1 else 1
    threshold = threshold or required_threshold(holders=degree + 1, corrupt_holders=corrupt_holders)
    min_survivors = min_survivors or (threshold if degree == cohort - 1 else degree + 2)
    return RoundConfig(
        round_id=round_id or os.urandom(32),
        cohort=cohort,
        threshold=threshold,
        min_survivors=min_survivors,
        degree=degree,
        corrupt_holders=corrupt_holders,
        length=length,
        suite=suite,
        modulus_bits=modulus_bits,
        model=model,
        binding=binding,
        removable=cohort - min_survivors if removable else 0,
    )


def faithful(_sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
    """A network that delivers everything once."""
    return [data]


def kind_of(data: bytes) -> type[Message]:
    """The kind that a frame claims to be: its tag is the first element of its array."""
    return KINDS[data[HEADER_BYTES + 1]]


@dataclass(frozen=True)
class Implementation:
    """A protocol to run: both of its sessions."""

    client: type[PairwiseClient] = PairwiseClient
    server: type[PairwiseServer] = PairwiseServer


@dataclass
class Round:
    """All parties of one round; `step` moves one phase.

    Clients are those with a vector. `configs`, `policies` and `rand` replace what single clients use.
    """

    config: RoundConfig
    vectors: dict[ClientId, Vector]
    network: Network = faithful
    late: Callable[[], list[Delivery]] = list  # what arrives just before the server closes its phase
    histories: dict[ClientId, History] = field(default_factory=dict)
    identities: dict[ClientId, Identity] = field(default_factory=dict)
    configs: Mapping[ClientId, RoundConfig] = field(default_factory=dict)
    policies: Mapping[ClientId, ClientPolicy] = field(default_factory=dict)
    rand: Mapping[ClientId, RandomBytes] = field(default_factory=dict)
    server_map: Callable[..., object] = map
    implementation: Implementation = field(default_factory=Implementation)

    def __post_init__(self) -> None:
        ids = sorted(self.vectors)
        self.identities = self.identities or {client: Identity.generate() for client in ids}
        self.roster = Roster({client: identity.public for client, identity in self.identities.items()})
        policy = ClientPolicy(
            min_survivors=self.config.min_survivors,
            corrupt_holders=self.config.corrupt_holders,
            suite=self.config.suite,
        )
        self.clients = {
            client: self.implementation.client(
                self.configs.get(client, self.config),
                client,
                identity=self.identities[client],
                roster=self.roster,
                policy=self.policies.get(client, policy),
                history=self.histories.get(client, History()),
                rand=self.rand.get(client, os.urandom),
            )
            for client in ids
        }
        self.server = self.implementation.server(self.config, roster=self.roster, map=self.server_map)  # type: ignore[arg-type]
        self.errors: dict[ClientId, ProtocolError] = {}
        self.rejected: list[PeerRejected] = []
        self.agreed: dict[ClientId, frozenset[ClientId]] = {}
        self.records: dict[ClientId, list[Record]] = {client: [] for client in ids}
        self.sent: list[tuple[ClientId, Phase, bytes]] = []  # what clients gave to the network
        self.received: list[tuple[ClientId, bytes]] = []  # what arrived at clients
        self.held: dict[ClientId, dict[ClientId, bytes]] = {client: {} for client in ids}  # shares, while they lived
        self.seeds: dict[ClientId, tuple[bytes, ...]] = {}  # of removable components
        self.result: AggregateReady | None = None
        self.server_error: ProtocolError | None = None

    def start(self) -> None:
        for client in self.clients:
            self.call(client, lambda client=client: self.clients[client].start())  # type: ignore[misc]

    def start_once(self) -> None:
        if all(client.phase is Phase.READY for client in self.clients.values()):
            self.start()

    def call(self, client: ClientId, action: Callable[[], list[Event]]) -> None:
        """Runs a client's call, follows its events, and keeps its error."""
        try:
            events = action()
        except ProtocolError as error:
            self.errors.setdefault(client, error)
            return
        secrets = self.clients[client]._secrets
        if secrets is not None:
            self.held[client] |= secrets.held
        for event in events:
            self.follow(client, event)

    def follow(self, client: ClientId, event: Event) -> None:
        session = self.clients[client]
        match event:
            case PersistBeforeSend(record=record):
                self.records[client].append(record)
                self.histories[client] = self.histories.get(client, History()).after(record)
                self.call(client, session.persisted)
            case ContributionNeeded():
                self.seeds[client] = session.removable_seeds
                self.call(client, lambda: session.contribute(self.vectors[client]))
            case SurvivorsAgreed(survivors=survivors):
                self.agreed[client] = survivors
            case SendMessage(data=data):
                self.sent.append((client, session.phase, data))
                for arrived in self.network(client, None, data):
                    self.to_server(client, arrived)

    def to_server(self, client: ClientId, data: bytes) -> None:
        if self.server.phase not in OVER:
            self.rejected += [event for event in self.server.receive(client, data) if isinstance(event, PeerRejected)]

    def to_client(self, client: ClientId, data: bytes) -> None:
        if self.clients[client].phase not in OVER:
            self.received.append((client, data))
            self.call(client, lambda: self.clients[client].receive(data))

    def deliver(self, delivery: Delivery) -> None:
        sender, receiver, data = delivery
        if receiver is not None:
            self.to_client(receiver, data)
        elif sender is not None:
            self.to_server(sender, data)

    def step(self) -> None:
        """Closes the server's phase and delivers what it sends."""
        for delivery in self.late():
            self.deliver(delivery)
        for event in self.server.close_phase():
            match event:
                case SendMessage(to=to, data=data) if to is not None:
                    for arrived in self.network(None, to, data):
                        self.to_client(to, arrived)
                case AggregateReady():
                    self.result = event

    def advance(self, phase: Phase) -> None:
        """Starts if need be, and steps until the server stands in `phase`."""
        self.start_once()
        while self.server.phase is not phase:
            self.step()

    def run(self) -> AggregateReady:
        """The rest of the round; raises the server's typed error if it aborts."""
        self.start_once()
        while self.result is None:
            self.step()
        return self.result

    def play(self) -> ProtocolError | None:
        """The rest of the round; returns the server's typed error, if it ended in one."""
        try:
            self.run()
        except ProtocolError as error:
            self.server_error = error
        return self.server_error

    def expected(self, survivors: frozenset[ClientId]) -> Vector:
        """The plain sum, by integers of any size."""
        total = sum(self.vectors[client].astype(object) for client in survivors) % 2**self.config.modulus_bits
        return np.array(total, dtype=np.uint32)

    def kinds_sent(self, client: ClientId) -> list[type[Message]]:
        """What left a client, in order."""
        return [kind_of(data) for sender, _, data in self.sent if sender == client]

    def shares_sent(self) -> set[tuple[ClientId, ClientId, str]]:
        """(holder, owner, which secret) of every share whose bytes occur in anything that ever left a client."""
        everything = [data for _, _, data in self.sent]
        return {
            (holder, owner, name)
            for holder, pairs in self.held.items()
            for owner, shares in pairs.items()
            for place in range(len(shares) // 36)
            for name in (("mask key", "self seed")[place] if place < 2 else f"link {place - 1}",)
            if any(shares[36 * place : 36 * place + 36] in data for data in everything)
        }


def random_vectors(
    cohort: int, length: int, bits: int = 32, *, seed: int = 0, limit: int | None = None
) -> dict[ClientId, Vector]:
    """Deterministic test data for clients 1..cohort."""
    rng = np.random.default_rng(seed)
    return {
        ClientId(i + 1): rng.integers(0, limit or 2**bits, size=length, dtype=np.uint64).astype(np.uint32)
        for i in range(cohort)
    }
