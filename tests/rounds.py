"""A round of real sessions joined by a network that a test can bend."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

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
    Roster,
    RoundConfig,
    SendMessage,
    SurvivorsAgreed,
    required_threshold,
)

Vector = np.ndarray
# Takes (sender or None for the server, receiver or None for the server, data) and gives what arrives instead.
Network = Callable[[ClientId | None, ClientId | None, bytes], list[bytes]]


def round_config(
    cohort: int,
    *,
    threshold: int | None = None,
    min_survivors: int | None = None,
    corrupt_holders: int = 0,
    degree: int | None = None,
    length: int = 5,
    modulus_bits: int = 32,
    model: bytes = bytes(32),
    binding: bytes = bytes(32),
    round_id: bytes | None = None,
) -> RoundConfig:
    """A valid configuration with the smallest threshold, unless told otherwise."""
    degree = cohort - 1 if degree is None else degree
    threshold = threshold or required_threshold(holders=degree + 1, corrupt_holders=corrupt_holders)
    return RoundConfig(
        round_id=round_id or os.urandom(32),
        cohort=cohort,
        threshold=threshold,
        min_survivors=min_survivors or threshold,
        degree=degree,
        corrupt_holders=corrupt_holders,
        length=length,
        modulus_bits=modulus_bits,
        model=model,
        binding=binding,
    )


def faithful(_sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
    """A network that delivers everything once."""
    return [data]


@dataclass
class Round:
    """All parties of one round; `step` moves one phase."""

    config: RoundConfig
    vectors: dict[ClientId, Vector]
    network: Network = faithful
    histories: dict[ClientId, History] = field(default_factory=dict)
    identities: dict[ClientId, Identity] = field(default_factory=dict)
    server_map: Callable[..., object] = map

    def __post_init__(self) -> None:
        ids = sorted(self.vectors)
        self.identities = self.identities or {client: Identity.generate() for client in ids}
        self.roster = Roster({client: identity.public for client, identity in self.identities.items()})
        policy = ClientPolicy(min_survivors=self.config.min_survivors, corrupt_holders=self.config.corrupt_holders)
        self.clients = {
            client: PairwiseClient(
                self.config,
                client,
                identity=self.identities[client],
                roster=self.roster,
                policy=policy,
                history=self.histories.get(client, History()),
            )
            for client in ids
        }
        self.server = PairwiseServer(self.config, roster=self.roster, map=self.server_map)
        self.errors: dict[ClientId, ProtocolError] = {}
        self.rejected: list[PeerRejected] = []
        self.agreed: dict[ClientId, frozenset[ClientId]] = {}
        self.sent: list[tuple[ClientId, Phase, bytes]] = []  # what clients gave to the network
        self.result: AggregateReady | None = None

    def start(self) -> None:
        for client in self.clients:
            self.call(client, lambda client=client: self.clients[client].start())

    def call(self, client: ClientId, action: Callable[[], list[Event]]) -> None:
        """Runs a client's call, follows its events, and keeps its error."""
        try:
            events = action()
        except ProtocolError as error:
            self.errors[client] = error
            return
        for event in events:
            self.follow(client, event)

    def follow(self, client: ClientId, event: Event) -> None:
        session = self.clients[client]
        match event:
            case PersistBeforeSend(record=record):
                self.histories[client] = self.histories.get(client, History()).after(record)
                self.call(client, session.persisted)
            case ContributionNeeded():
                self.call(client, lambda: session.contribute(self.vectors[client]))
            case SurvivorsAgreed(survivors=survivors):
                self.agreed[client] = survivors
            case SendMessage(data=data):
                self.sent.append((client, session.phase, data))
                for arrived in self.network(client, None, data):
                    self.to_server(client, arrived)

    def to_server(self, client: ClientId, data: bytes) -> None:
        if self.server.phase not in (Phase.FINISHED, Phase.ABORTED):
            self.rejected += [event for event in self.server.receive(client, data) if isinstance(event, PeerRejected)]

    def step(self) -> None:
        """Closes the server's phase and delivers what it sends."""
        for event in self.server.close_phase():
            match event:
                case SendMessage(to=to, data=data) if to is not None:
                    for arrived in self.network(None, to, data):
                        if self.clients[to].phase not in (Phase.FINISHED, Phase.ABORTED):
                            self.call(to, lambda to=to, arrived=arrived: self.clients[to].receive(arrived))
                case AggregateReady():
                    self.result = event

    def run(self) -> AggregateReady:
        """The whole round; raises the server's typed error if it aborts."""
        self.start()
        while self.result is None:
            self.step()
        return self.result

    def expected(self, survivors: frozenset[ClientId]) -> Vector:
        """The plain sum, by integers of any size."""
        total = sum(self.vectors[client].astype(object) for client in survivors) % 2**self.config.modulus_bits
        return np.array(total, dtype=np.uint32)


def random_vectors(cohort: int, length: int, bits: int = 32, *, seed: int = 0, limit: int | None = None) -> dict[ClientId, Vector]:
    """Deterministic test data for clients 1..cohort."""
    rng = np.random.default_rng(seed)
    return {
        ClientId(i + 1): rng.integers(0, limit or 2**bits, size=length, dtype=np.uint64).astype(np.uint32) for i in range(cohort)
    }
