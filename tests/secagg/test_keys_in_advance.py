"""Clients whose next key bundle goes with their last message: from the second round on nobody advertises keys."""

from __future__ import annotations

import numpy as np
import pytest

from protocols import ClientId, ContributionNeeded, Identity, InconsistentViewError, Phase, Roster, SendMessage
from protocols.pairwise import OneTimeKeys
from protocols.policy import KeysAdvertised
from protocols.primitives.keys import HYBRID
from secagg import AggregationConfig, AggregationResult, Client, MemoryHistory, NoPrivacy, Server

CLIENTS = [ClientId(number) for number in range(1, 5)]
CONFIG = AggregationConfig.cross_silo(
    like={"w": np.zeros(3)}, clients=4, max_dropouts=1, max_colluders=0, privacy=NoPrivacy(clip_norm=10.0)
)


class World:
    def __init__(self) -> None:
        self.identities = {client: Identity.generate() for client in CLIENTS}
        self.roster = Roster({client: identity.public for client, identity in self.identities.items()})
        self.histories = {client: MemoryHistory() for client in CLIENTS}
        self.clients = {
            client: Client(
                CONFIG, client, identity=self.identities[client], roster=self.roster, history=self.histories[client]
            )
            for client in CLIENTS
        }
        self.server = Server(CONFIG, roster=self.roster)
        self.keys: dict[ClientId, OneTimeKeys] = {}
        self.trips = 0

    def make_keys(self, client: ClientId, *, fresh: bool) -> OneTimeKeys:
        history = self.histories[client].history
        later = history.after(KeysAdvertised(round_id=b"", serial=history.serial + fresh))
        return OneTimeKeys(client, identity=self.identities[client], roster=self.roster, suite=HYBRID, history=later)

    def play(self, model: dict[str, np.ndarray]) -> AggregationResult:
        own, self.keys = self.keys, {}
        inbox = list(self.server.begin(model, bundles=self.server.next_bundles))
        self.trips = 0
        while True:
            self.trips += bool(self.server.waiting_for)
            for message in inbox:
                client = self.clients[ClientId(message.to or 0)]
                if client.phase in (Phase.READY, Phase.FINISHED):
                    self.keys[client.client_id] = self.make_keys(client.client_id, fresh=client.client_id not in own)
                    events = client.begin(
                        message.data,
                        model=CONFIG.layout.model_digest(model),
                        keys_in_advance=own.get(client.client_id),
                        next_keys=self.keys[client.client_id],
                    )
                else:
                    events = client.receive(message.data)
                if any(isinstance(event, ContributionNeeded) for event in events):
                    events = client.contribute({"w": np.full(3, float(client.client_id))})
                for event in events:
                    if isinstance(event, SendMessage):
                        assert self.server.receive(client.client_id, event.data) == []
            inbox = []
            for event in self.server.close_phase():
                if isinstance(event, AggregationResult):
                    return event
                if isinstance(event, SendMessage):
                    inbox.append(event)


def test_the_second_round_has_four_trips() -> None:
    world = World()
    for number, trips in ((1, 5), (2, 4), (3, 4)):
        result = world.play({"w": np.full(3, float(number))})
        assert world.trips == trips
        np.testing.assert_allclose(result.mean["w"], 2.5, atol=1e-6)
        assert set(world.server.next_bundles) == set(CLIENTS)


def test_no_bundles_before_a_round() -> None:
    assert World().server.next_bundles == {}


def test_a_digest_stands_for_the_model() -> None:
    world = World()
    (invitation, *_) = world.server.begin({"w": np.ones(3)})
    with pytest.raises(InconsistentViewError, match="another model"):
        world.clients[ClientId(1)].begin(invitation.data, model=CONFIG.layout.model_digest({"w": np.zeros(3)}))
    world.clients[ClientId(1)].begin(invitation.data, model=CONFIG.layout.model_digest({"w": np.ones(3)}))
    assert world.clients[ClientId(1)].phase is Phase.ADVERTISE_KEYS


def test_what_is_inspected_must_be_there() -> None:
    world = World()
    (invitation, *_) = world.server.begin({"w": np.ones(3)})
    looking = Client(
        CONFIG,
        1,
        identity=world.identities[ClientId(1)],
        roster=world.roster,
        history=MemoryHistory(),
        inspect=lambda model: None,
    )
    with pytest.raises(ValueError, match="needs the arrays"):
        looking.begin(invitation.data, model=CONFIG.layout.model_digest({"w": np.ones(3)}))
