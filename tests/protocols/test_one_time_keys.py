"""Key bundles in advance: a round without its first trip, and keys that serve once."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from protocols import (
    ClientId,
    ClientPolicy,
    Event,
    History,
    Identity,
    KeysAdvertised,
    LocalProtocolError,
    PairwiseClient,
    PairwiseServer,
    PersistBeforeSend,
    Phase,
    PolicyRefusal,
    ProtocolError,
    Roster,
    RoundConfig,
)
from protocols.pairwise import OneTimeKeys
from protocols.primitives.keys import CLASSICAL, HYBRID
from protocols.session import AggregateReady, ContributionNeeded, SendMessage
from protocols.wire import KeyBundle
from tests.rounds import Vector, random_vectors, round_config

N = 4
CLIENTS = [ClientId(i) for i in range(1, N + 1)]
IDENTITIES = {client: Identity.generate() for client in CLIENTS}
ROSTER = Roster({client: identity.public for client, identity in IDENTITIES.items()})


class World:
    """Clients with a memory, over several rounds."""

    def __init__(self) -> None:
        self.histories = dict.fromkeys(CLIENTS, History())
        self.keys: dict[ClientId, OneTimeKeys] = {}
        self.bundles: dict[ClientId, KeyBundle] = {}
        self.trips = 0
        self.errors: dict[ClientId, ProtocolError] = {}

    def make_keys(self, client: ClientId, *, ahead: int = 0) -> OneTimeKeys:
        history = self.histories[client]
        later = history.after(KeysAdvertised(round_id=bytes(32), serial=history.serial + ahead))
        return OneTimeKeys(client, identity=IDENTITIES[client], roster=ROSTER, suite=HYBRID, history=later)

    def session(self, client: ClientId, config: RoundConfig, *, attach: bool) -> PairwiseClient:
        own = self.keys.pop(client, None)
        return PairwiseClient(
            config,
            client,
            identity=IDENTITIES[client],
            roster=ROSTER,
            policy=ClientPolicy(min_survivors=3, corrupt_holders=0),
            history=self.histories[client],
            keys_in_advance=own,
            next_keys=self.make_keys(client, ahead=own is None) if attach else None,
        )

    def play(self, *, attach: bool = True, config: RoundConfig | None = None) -> tuple[AggregateReady, list[Vector]]:
        """One round without faults; counts the times that clients are waited for."""
        config = config or round_config(N, threshold=3)
        vectors = random_vectors(N, config.length)
        server = PairwiseServer(config, roster=ROSTER, bundles=self.bundles)
        sessions = {client: self.session(client, config, attach=attach) for client in CLIENTS}
        later = {client: session._next_keys for client, session in sessions.items()}
        inbox = {client: session.start for client, session in sessions.items()}
        self.trips = 0
        result = None
        while result is None:
            self.trips += bool(server.waiting_for)
            for client, call in inbox.items():
                try:
                    frames = self.follow(client, sessions[client], call(), vectors[client])
                except ProtocolError as error:
                    self.errors[client] = error
                    continue
                for frame in frames:
                    assert server.receive(client, frame) == []
            events = server.close_phase()
            inbox = {
                event.to: partial(sessions[event.to].receive, event.data)
                for event in events
                if isinstance(event, SendMessage) and event.to is not None
            }
            result = next((event for event in events if isinstance(event, AggregateReady)), None)
        self.bundles = dict(server.next_bundles)
        self.keys = {client: keys for client, keys in later.items() if keys is not None and client in self.bundles}
        return result, list(vectors.values())

    def follow(self, client: ClientId, session: PairwiseClient, events: list[Event], vector: Vector) -> list[bytes]:
        frames = []
        todo = list(events)
        while todo:
            match todo.pop(0):
                case PersistBeforeSend(record=record):
                    self.histories[client] = self.histories[client].after(record)
                    todo += session.persisted()
                case ContributionNeeded():
                    todo += session.contribute(vector)
                case SendMessage(data=data):
                    frames.append(data)
        return frames


def check(result: AggregateReady, vectors: list[Vector]) -> None:
    assert result.survivors == set(CLIENTS)
    assert (result.vector == sum(vectors[1:], start=vectors[0])).all()


def test_saves_a_round_trip_every_round() -> None:
    world = World()
    check(*world.play())
    assert world.trips == 5
    serials = {}
    for _ in range(3):
        assert world.bundles.keys() == set(CLIENTS)
        check(*world.play())
        assert world.trips == 4
        assert all(bundle.serial > serials.get(client, 0) for client, bundle in world.bundles.items())
        serials = {client: bundle.serial for client, bundle in world.bundles.items()}


def test_a_serial_is_burned_before_its_bundle_leaves() -> None:
    world = World()
    config = round_config(N, threshold=3)
    world.play(config=config)
    for client in CLIENTS:
        assert world.histories[client].serial == world.bundles[client].serial == 2
        assert world.histories[client].rounds == {config.round_id}


def test_a_client_that_lost_its_keys_advertises_others() -> None:
    world = World()
    world.play()
    del world.keys[CLIENTS[0]]
    check(*world.play())
    assert world.bundles[CLIENTS[0]].serial == 4  # 2 was lost, 3 was advertised


def test_keys_serve_one_round() -> None:
    world = World()
    world.play()
    again = dict(world.keys)
    bundles = dict(world.bundles)
    world.play()
    first = CLIENTS[0]
    with pytest.raises(LocalProtocolError, match="served a round before"):
        again[first].take()
    with pytest.raises(ValueError, match="do not fit"):  # older than the latest
        PairwiseClient(
            round_config(N, threshold=3),
            first,
            identity=IDENTITIES[first],
            roster=ROSTER,
            policy=ClientPolicy(min_survivors=3, corrupt_holders=0),
            history=world.histories[first],
            keys_in_advance=again[first],
        )
    world.keys, world.bundles = {}, {**bundles, CLIENTS[0]: bundles[CLIENTS[1]]}
    server = PairwiseServer(round_config(N, threshold=3), roster=ROSTER, bundles=world.bundles)
    assert server.waiting_for == {CLIENTS[0]}  # another's bundle is left out


def test_a_server_that_shows_an_old_bundle_is_refused_by_peers() -> None:
    """The owner could have been made to use its keys twice; its peers remember the serial."""
    world = World()
    world.play()
    old = world.bundles[CLIENTS[3]]
    world.play()
    world.play()
    world.bundles[CLIENTS[3]] = old
    with pytest.raises(ProtocolError):
        world.play()
    for client in CLIENTS[:3]:
        assert isinstance(world.errors[client], PolicyRefusal)
        assert world.errors[client].client_id == CLIENTS[3]


@pytest.mark.parametrize("wrong", ["client", "suite", "roster", "serial"])
def test_keys_that_do_not_fit_are_a_wrong_argument(wrong: str) -> None:
    fewer = Roster({client: ROSTER[client] for client in CLIENTS[:3]})
    made = OneTimeKeys(
        CLIENTS[1] if wrong == "client" else CLIENTS[0],
        identity=IDENTITIES[CLIENTS[0]],
        roster=fewer if wrong == "roster" else ROSTER,
        suite=CLASSICAL if wrong == "suite" else HYBRID,
        history=History(serial=4 if wrong == "serial" else 1),
    )
    for name in ("keys_in_advance", "next_keys"):
        with pytest.raises(ValueError, match="do not fit"):
            PairwiseClient(
                round_config(3, threshold=3),
                CLIENTS[0],
                identity=IDENTITIES[CLIENTS[0]],
                roster=ROSTER,
                policy=ClientPolicy(min_survivors=3, corrupt_holders=0),
                history=History(serial=2 if name == "keys_in_advance" else 0),
                **{name: made},  # type: ignore[arg-type]
            )


def test_a_bundle_of_somebody_else_is_not_taken_with_the_last_message() -> None:
    """A client cannot plant keys for another one; its own answer is refused with it, and may be sent again."""
    world = World()
    config = round_config(N, threshold=3)
    server = PairwiseServer(config, roster=ROSTER)
    mine, other = world.make_keys(CLIENTS[0]).bundle, world.make_keys(CLIENTS[1]).bundle
    one_key = msgspec.structs.replace(mine, mask_key=mine.channel_key)
    for bundle in (other, msgspec.structs.replace(mine, serial=9), one_key):
        with pytest.raises(ProtocolError):
            server._check_bundle(CLIENTS[0], bundle)
    server._check_bundle(CLIENTS[0], mine)
    assert server.phase is Phase.ADVERTISE_KEYS
