"""Messages of another round, between the same parties with the same identities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from protocols import (
    ClientId,
    ClientPolicy,
    Identity,
    InconsistentViewError,
    InvalidSignatureError,
    PolicyRefusal,
    ProtocolError,
    RemoteProtocolError,
    RoundConfig,
    TooFewClientsError,
)
from protocols.wire import (
    AdvertiseKeys,
    KeyBundles,
    Message,
    SealedShares,
    ShareKeys,
    SurvivorList,
    SurvivorSignatures,
    decode,
    encode,
)
from tests.rounds import Network, Round, kind_of, random_vectors, round_config

from .hostile import NO_LIMIT, altered, assert_refused, ids, rewriting, signed_bundle, small_round

ALL = ids(1, 2, 3, 4)
SERVER_KINDS: list[type[Message]] = [KeyBundles, SealedShares, SurvivorList, SurvivorSignatures]


def pair_of_rounds(
    *, histories: bool = False, network: Network | None = None
) -> tuple[Round, dict[tuple[object, ...], bytes]]:
    """A finished round's messages by (sender, receiver, kind), and a new round of the same clients."""
    old: dict[tuple[object, ...], bytes] = {}

    def record(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        old[sender, receiver, kind_of(data)] = data
        return [data]

    first = small_round()
    first.network = record
    first.run()
    game = Round(
        round_config(4, threshold=3),
        random_vectors(4, 5, seed=1),
        identities=first.identities,
        histories=dict(first.histories) if histories else {},
    )
    return game, old


class TestDownwards:
    @pytest.mark.parametrize("kind", SERVER_KINDS)
    def test_as_it_was(self, kind: type[Message]) -> None:
        """The context is that of the old round."""
        game, old = pair_of_rounds()
        game.network = rewriting(kind, lambda me, _: old[None, me, kind])
        game.play()
        assert_refused(game, InconsistentViewError, match="another round")

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            (KeyBundles, InconsistentViewError),  # its own bundle is not the one it advertised
            (SealedShares, RemoteProtocolError),  # nothing opens
            (SurvivorSignatures, InconsistentViewError),  # they are over another view
        ],
    )
    def test_with_the_context_of_this_round(self, kind: type[Message], error: type[ProtocolError]) -> None:
        game, old = pair_of_rounds()

        def change(me: ClientId, message: Message) -> Message:
            return altered(decode(old[None, me, kind], kind, limit=NO_LIMIT), context=message.context)

        game.network = rewriting(kind, change)
        game.play()
        assert_refused(game, error)

    def old_bundles_of_peers(self, histories: bool) -> Round:
        game, old = pair_of_rounds(histories=histories)

        def change(me: ClientId, message: KeyBundles) -> KeyBundles:
            before = decode(old[None, me, KeyBundles], KeyBundles, limit=NO_LIMIT).bundles
            bundles = [now if now.client == me else then for now, then in zip(message.bundles, before, strict=True)]
            return altered(message, bundles=tuple(bundles))

        game.network = rewriting(KeyBundles, change)
        game.play()
        return game

    def test_old_bundles_of_peers_were_seen_before(self) -> None:
        game = self.old_bundles_of_peers(histories=True)
        assert_refused(game, PolicyRefusal, match="seen before")

    def test_old_bundles_of_peers_are_useless_even_to_who_never_saw_them(self) -> None:
        """Without memory they are accepted, but the root is another, and no one else has it."""
        game = self.old_bundles_of_peers(histories=False)
        assert not game.shares_sent()
        assert not game.agreed
        assert {event.client for event in game.rejected} == set(ALL)

    def test_an_old_bundle_with_a_new_serial(self) -> None:
        """The serial is signed."""
        game, old = pair_of_rounds(histories=True)

        def change(me: ClientId, message: KeyBundles) -> KeyBundles:
            before = decode(old[None, me, KeyBundles], KeyBundles, limit=NO_LIMIT).bundles
            bundles = [
                now if now.client == me else msgspec.structs.replace(then, serial=now.serial)
                for now, then in zip(message.bundles, before, strict=True)
            ]
            return altered(message, bundles=tuple(bundles))

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, InvalidSignatureError)


class TestUpwards:
    @pytest.mark.parametrize("number", range(5))
    def test_a_clients_old_message_is_a_rejected_message(self, number: int) -> None:
        """And the good one that follows still counts."""
        game, old = pair_of_rounds(histories=True)
        olds = {sender: [data for (s, _, _), data in old.items() if s == sender] for sender in ALL}
        counts = dict.fromkeys(ALL, 0)

        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender is None:
                return [data]
            counts[sender] += 1
            return [olds[sender][number], data] if counts[sender] == number + 1 else [data]

        game.network = network
        game.run()
        assert [event.client for event in game.rejected] == list(ALL)
        assert game.result is not None
        assert (game.result.vector == game.expected(frozenset(ALL))).all()

    @pytest.mark.parametrize("number", range(5))
    def test_another_clients_message_is_a_rejected_message(self, number: int) -> None:
        """A copied contribution would count twice and cancel nothing."""
        game = small_round()
        counts = dict.fromkeys(ALL, 0)
        first: dict[int, bytes] = {}

        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender is None:
                return [data]
            counts[sender] += 1
            first.setdefault(counts[sender], data)
            return [first[number + 1]] if sender == 4 and counts[sender] == number + 1 else [data]

        game.network = network
        game.run()
        assert [event.client for event in game.rejected][:1] == [4]
        assert game.result is not None
        survivors = frozenset(ALL) if number >= 3 else frozenset(ids(1, 2, 3))
        assert game.result.survivors == survivors
        assert (game.result.vector == game.expected(survivors)).all()


# Two sides that do not run the same round.

BASE = round_config(5, threshold=4, round_id=bytes(32))
VARIANTS: dict[str, RoundConfig] = {
    name: replace(BASE, **changes)  # type: ignore[arg-type]
    for name, changes in {
        "round_id": {"round_id": b"\x01" * 32},
        "cohort": {"cohort": 6, "degree": 5},
        "threshold": {"threshold": 5, "min_survivors": 5},
        "min_survivors": {"min_survivors": 5},
        "degree": {"degree": 2, "threshold": 3, "corrupt_holders": 1},
        "corrupt_holders": {"corrupt_holders": 1},
        "length": {"length": 6},
        "modulus_bits": {"modulus_bits": 16},
        "model": {"model": b"\x01" * 32},
        "binding": {"binding": b"\x01" * 32},
    }.items()
}
FIVE = ids(1, 2, 3, 4, 5)


def disagreeing(server: RoundConfig, clients: Mapping[ClientId, RoundConfig]) -> Round:
    """A server with one configuration, clients with theirs, and a roster of six."""
    identities = {client: Identity.generate() for client in (*FIVE, ClientId(6))}
    lenient = ClientPolicy(min_survivors=3, corrupt_holders=0)
    vectors = {client: np.arange(clients[client].length, dtype=np.uint32) for client in FIVE}
    return Round(server, vectors, identities=identities, configs=clients, policies=dict.fromkeys(FIVE, lenient))


def translating(game: Round) -> Network:
    """A hostile network that gives every message the context that its receiver expects, where nothing is signed."""

    def network(_sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        kind = kind_of(data)
        if receiver is None and kind is not AdvertiseKeys:
            return [data]
        rules = game.server._rules if receiver is None else game.clients[receiver]._rules
        return [encode(altered(decode(data, kind, limit=NO_LIMIT), context=rules.context))]

    return network


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("server_differs", [False, True])
class TestDifferentConfigurations:
    """Lowered floors or threshold, another width, another model: every field, in both directions."""

    def configs(self, name: str, server_differs: bool) -> tuple[RoundConfig, RoundConfig]:
        return (VARIANTS[name], BASE) if server_differs else (BASE, VARIANTS[name])

    def test_clients_send_no_more_than_public_keys(self, name: str, server_differs: bool) -> None:
        server, clients = self.configs(name, server_differs)
        game = disagreeing(server, dict.fromkeys(FIVE, clients))
        game.play()
        assert [event.client for event in game.rejected] == list(FIVE)
        assert isinstance(game.server_error, TooFewClientsError)
        assert all(game.kinds_sent(client) == [AdvertiseKeys] for client in FIVE)

    def test_even_if_the_network_translates_what_is_not_signed(self, name: str, server_differs: bool) -> None:
        """Keys pass, but the contexts under which shares are sealed and messages signed differ for good."""
        server, clients = self.configs(name, server_differs)
        game = disagreeing(server, dict.fromkeys(FIVE, clients))
        game.network = translating(game)
        game.play()
        assert game.result is None
        assert not game.agreed
        assert not game.shares_sent()
        assert all(set(game.kinds_sent(client)) <= {AdvertiseKeys, ShareKeys} for client in FIVE)

    @pytest.mark.parametrize("translated", [False, True])
    def test_one_client_is_told_another_round_than_the_rest(
        self, name: str, server_differs: bool, translated: bool
    ) -> None:
        """Its neighbours seal under another context: nothing opens for it, and it releases nothing."""
        rest, special = self.configs(name, server_differs)
        game = disagreeing(rest, {**dict.fromkeys(FIVE, rest), ClientId(1): special})
        if translated:
            game.network = translating(game)
        game.play()
        victim = ClientId(1)
        assert victim not in game.agreed
        assert set(game.kinds_sent(victim)) <= {AdvertiseKeys, ShareKeys}
        if game.result is not None:
            assert game.result.survivors == set(FIVE) - {victim}
            assert (game.result.vector == game.expected(game.result.survivors)).all()


class TestRoster:
    def test_another_roster(self) -> None:
        """Pinned identities are part of the round: a server with a longer roster is in another one."""
        game = Round(round_config(4, threshold=3), random_vectors(4, 5))
        longer = Round(
            game.config, random_vectors(5, 5), identities={**game.identities, ClientId(5): Identity.generate()}
        )
        game.server = longer.server
        game.play()
        assert len(game.rejected) == 4
        assert all(len(game.kinds_sent(client)) == 1 for client in game.clients)

    def test_bundles_name_no_round_but_the_roster(self) -> None:
        """A bundle signed for another roster is refused in this one, whoever signed it."""
        game = small_round()
        other = Round(
            game.config, random_vectors(5, 5), identities={**game.identities, ClientId(5): Identity.generate()}
        )

        def change(_: ClientId, message: KeyBundles) -> KeyBundles:
            bundles = tuple(signed_bundle(other, b) if b.client == 2 else b for b in message.bundles)
            return altered(message, bundles=bundles)

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, InvalidSignatureError, by=ids(1, 3, 4), match="client 2")
