"""Real clients and a real server of one configuration, joined by a wire that a test can hold in its hands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from dp import PrivacyLedger
from protocols import (
    ClientId,
    ContributionNeeded,
    Event,
    Identity,
    PeerRejected,
    Phase,
    ProtocolError,
    Roster,
    SendMessage,
    SurvivorsAgreed,
)
from secagg import AggregationConfig, AggregationResult, Client, ClientLevel, MemoryHistory, NoPrivacy, Server
from secagg.history import HistoryStore

LIKE = {"w": np.zeros(4)}
SERVER_PHASES = (
    Phase.ADVERTISE_KEYS,
    Phase.SHARE_KEYS,
    Phase.MASKED_INPUT,
    Phase.CONSISTENCY_CHECK,
    Phase.UNMASK,
)


def plain_config(clients: int = 4, *, max_dropouts: int = 1, max_colluders: int = 0, **other: Any) -> AggregationConfig:
    """No privacy: the mean can be compared with the plain one."""
    return AggregationConfig.cross_silo(
        like=LIKE,
        clients=clients,
        max_dropouts=max_dropouts,
        max_colluders=max_colluders,
        privacy=NoPrivacy(clip_norm=100.0),
        **other,
    )


def private_config(clients: int = 5, *, rounds: int = 2, epsilon: float = 4.0, **other: Any) -> AggregationConfig:
    """A budget for `rounds` worst cases."""
    return AggregationConfig.cross_silo(
        like=LIKE,
        clients=clients,
        max_dropouts=1,
        max_colluders=1,
        privacy=ClientLevel(clip_norm=1.0, epsilon=epsilon, delta=1e-6, rounds=rounds),
        **other,
    )


def memory_ledger(config: AggregationConfig) -> PrivacyLedger | None:
    budget = config.budget()
    return None if budget is None else PrivacyLedger.create(":memory:", budget=budget)


def fates(ledger: PrivacyLedger) -> list[tuple[str, int]]:
    """For each request of a ledger, oldest first: its newest transition and what it costs."""
    last: dict[str, tuple[str, int]] = {}
    for entry in ledger.entries():
        fields = entry.to_dict()
        if "request_id" in fields:
            last[str(fields["request_id"])] = (str(fields["transition"]), int(str(fields["amount"])))
    return list(last.values())


class Parties:
    """All parties of one configuration, over many rounds; clients 1 to n."""

    def __init__(
        self,
        config: AggregationConfig,
        *,
        server_config: AggregationConfig | None = None,
        histories: Callable[[int], HistoryStore] = lambda client: MemoryHistory(),
        ledgers: Callable[[int], PrivacyLedger | None] | None = None,
        **server: object,
    ) -> None:
        self.config = config
        ids = range(1, config.clients + 1)
        self.identities = {client: Identity.generate() for client in ids}
        self.roster = Roster({ClientId(client): key.public for client, key in self.identities.items()})
        self.ledgers = {client: ledgers(client) if ledgers else memory_ledger(config) for client in ids}
        self.histories = {client: histories(client) for client in ids}
        self.server_ledger = memory_ledger(server_config or config)
        self.server = Server(server_config or config, roster=self.roster, **{"ledger": self.server_ledger, **server})  # type: ignore[arg-type]
        self.clients = {client: self.client(client) for client in ids}
        self.reset({})

    def client(self, client: int) -> Client:
        """A client over the history and ledger that it has now: what a restart makes."""
        return Client(
            self.config, client, identity=self.identities[client], roster=self.roster,
            history=self.histories[client], ledger=self.ledgers[client],
        )  # fmt: skip

    def ledger(self, client: int) -> PrivacyLedger:
        ledger = self.ledgers[client]
        assert ledger is not None
        return ledger

    def reset(self, updates: Mapping[int, object], silent: Mapping[int, Phase] | None = None) -> None:
        self.updates = updates
        self.silent = dict(silent or {})
        self.errors: dict[int, Exception] = {}
        self.agreed: dict[int, frozenset[ClientId]] = {}
        self.rejected: list[PeerRejected] = []
        self.sent: list[tuple[int, Phase, bytes]] = []  # client, the server's phase, data
        self.result: AggregationResult | None = None
        self.invitation = b""

    def open(
        self,
        updates: Mapping[int, object],
        *,
        silent: Mapping[int, Phase] | None = None,
        model: Mapping[str, object] | None = None,
    ) -> None:
        """Invites everybody. `silent` gives the first server phase in which nothing comes from a client."""
        self.reset(updates, silent)
        invitations = self.server.begin(model)  # type: ignore[arg-type]
        self.invitation = invitations[0].data
        for message in invitations:
            assert message.to is not None
            self.call(message.to, partial(self.clients[message.to].begin, message.data, model=model))  # type: ignore[arg-type]

    def call(self, client: int, action: Callable[[], list[Event]]) -> None:
        """Runs a client's call and what follows from it; a protocol error is kept, and silences the client."""
        if client in self.errors or self.silent.get(client) is self.server.phase:
            return
        try:
            events = action()
        except ProtocolError as error:
            self.errors[client] = error
            return
        for event in events:
            match event:
                case ContributionNeeded():
                    self.call(client, partial(self.clients[client].contribute, self.updates[client]))  # type: ignore[arg-type]
                case SurvivorsAgreed(survivors=survivors):
                    self.agreed[client] = survivors
                case SendMessage(data=data):
                    self.sent.append((client, self.server.phase, data))
                    self.rejected += [e for e in self.server.receive(client, data) if isinstance(e, PeerRejected)]

    def step(self) -> None:
        """Closes the server's phase and delivers what it sends."""
        for event in self.server.close_phase():
            match event:
                case SendMessage(to=to, data=data) if to is not None:
                    self.call(to, partial(self.clients[to].receive, data))
                case AggregationResult():
                    self.result = event

    def advance(self, phase: Phase) -> None:
        """Goes on until the server is in `phase`."""
        while self.server.phase is not phase:
            self.step()

    def run(self, updates: Mapping[int, object], **options: object) -> AggregationResult:
        """A whole round; raises what the server raises."""
        self.open(updates, **options)  # type: ignore[arg-type]
        self.advance(Phase.FINISHED)
        assert self.result is not None
        return self.result


def updates_for(config: AggregationConfig, *, seed: int = 0) -> dict[int, dict[str, np.ndarray]]:
    """Test data within the clip norm, for clients 1 to n."""
    rng = np.random.default_rng(seed)
    length = config.layout.length
    scale = config.privacy.clip_norm / (2 * length**0.5)
    return {
        client: config.layout.unflatten(rng.uniform(-scale, scale, size=length))
        for client in range(1, config.clients + 1)
    }
