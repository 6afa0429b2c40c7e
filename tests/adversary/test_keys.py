"""Keys that are swapped, echoed, invented or unusable."""

from collections.abc import Callable

import msgspec
import pytest

from protocols import (
    ClientId,
    Identity,
    InconsistentViewError,
    InvalidSignatureError,
    MalformedMessageError,
    PolicyRefusal,
    ProtocolError,
    TooFewClientsError,
)
from protocols.primitives.keys import CLASSICAL, HYBRID, AgreementKey
from protocols.wire import AdvertiseKeys, KeyBundle, KeyBundles
from tests.protocols.oracles import load_vectors
from tests.rounds import Round, random_vectors, round_config

from .hostile import altered, assert_refused, ids, malicious_client, rewriting, signed_bundle, small_round, together

ALL = ids(1, 2, 3, 4)
ATTACKER = AgreementKey(bytes(range(32)), HYBRID).public
OTHER = AgreementKey(bytes(range(1, 33)), HYBRID).public
REFUSED = load_vectors("x25519_refused.json")
UNUSABLE = {name: bytes.fromhex(value) for group in REFUSED.values() for name, value in group.items()}

Change = Callable[[KeyBundle], KeyBundle]


def with_bundle(message: KeyBundles, client: ClientId, change: Change) -> KeyBundles:
    return altered(message, bundles=tuple(change(b) if b.client == client else b for b in message.bundles))


def field(**changes: object) -> Change:
    return lambda bundle: msgspec.structs.replace(bundle, **changes)


def unusable_key(bundle: KeyBundle, name: str, unusable: str) -> KeyBundle:
    """A bundle in which one X25519 key is unusable, and the ML-KEM key beside it is still good."""
    return field(**{name: UNUSABLE[unusable] + getattr(bundle, name)[32:]})(bundle)


@pytest.mark.parametrize("name", ["channel_key", "mask_key"])
class TestSubstitution:
    def test_one_key_of_one_peer(self, name: str) -> None:
        """The peer itself sees its own keys changed; everybody else sees a bad signature."""
        game = small_round()
        game.network = rewriting(KeyBundles, lambda _, m: with_bundle(m, ClientId(2), field(**{name: ATTACKER})))
        game.play()
        assert_refused(game, InvalidSignatureError, by=ids(1, 3, 4), match="client 2")
        assert all(game.errors[client].client_id == 2 for client in ids(1, 3, 4))
        assert_refused(game, InconsistentViewError, by=ids(2))
        assert isinstance(game.server_error, TooFewClientsError)

    def test_one_key_shown_to_one_client(self, name: str) -> None:
        """The victim refuses; the others do not even notice, and their sum does not hold the victim's vector."""
        game = small_round()
        game.network = rewriting(
            KeyBundles, lambda _, m: with_bundle(m, ClientId(2), field(**{name: ATTACKER})), to=ids(1)
        )
        game.play()
        assert_refused(game, InvalidSignatureError, by=ids(1), match="client 2")
        assert game.result is not None
        assert game.result.survivors == set(ids(2, 3, 4))
        assert (game.result.vector == game.expected(game.result.survivors)).all()

    def test_keys_of_all_peers(self, name: str) -> None:
        """A man in the middle with a fresh key for each pair."""

        def change(me: ClientId, message: KeyBundles) -> KeyBundles:
            for peer in ALL:
                if peer != me:
                    fresh = AgreementKey(bytes((peer, me)) * 16, HYBRID).public
                    message = with_bundle(message, peer, field(**{name: fresh}))
            return message

        game = small_round()
        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, InvalidSignatureError)

    def test_signed_by_another_client(self, name: str) -> None:
        """A colluder's signature over keys in a victim's name is not the victim's."""
        game = small_round()

        def change(_: ClientId, message: KeyBundles) -> KeyBundles:
            return with_bundle(
                message,
                ClientId(2),
                lambda b: signed_bundle(game, msgspec.structs.replace(b, **{name: ATTACKER}), by=ClientId(4)),
            )

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, InvalidSignatureError, by=ids(1, 3, 4))

    def test_own_key_echoed_as_a_peers(self, name: str) -> None:
        """With a colluder's valid signature: the shared secret would be one that the server can square out."""
        game = small_round()

        def change(me: ClientId, message: KeyBundles) -> KeyBundles:
            own = next(bundle for bundle in message.bundles if bundle.client == me)
            peer = ClientId(2 if me == 1 else 1)
            echo = field(**{name: getattr(own, name)})
            return with_bundle(message, peer, lambda b: signed_bundle(game, echo(b)))

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, InconsistentViewError, match="two public keys")

    @pytest.mark.parametrize("unusable", UNUSABLE)
    def test_unusable_keys_cost_their_sender_its_place(self, name: str, unusable: str) -> None:
        """Properly signed by a malicious client; an honest server turns it away and the others go on."""
        game = small_round()
        game.network = malicious_client(
            game,
            ClientId(4),
            AdvertiseKeys,
            lambda m: altered(m, bundle=signed_bundle(game, unusable_key(m.bundle, name, unusable))),
        )
        game.play()
        assert [event.client for event in game.rejected] == [4]
        assert game.result is not None
        assert game.result.survivors == set(ids(1, 2, 3))
        assert not game.shares_sent() & {
            (ClientId(4), owner, name) for owner in ALL for name in ("mask key", "self seed")
        }
        assert ClientId(4) not in game.agreed

    @pytest.mark.parametrize("unusable", UNUSABLE)
    def test_unusable_keys_passed_on_by_a_hostile_server(self, name: str, unusable: str) -> None:
        """Every honest client refuses, and names the client that signed them."""
        game = small_round()

        def change(_: ClientId, message: KeyBundles) -> KeyBundles:
            return with_bundle(message, ClientId(4), lambda b: signed_bundle(game, unusable_key(b, name, unusable)))

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, MalformedMessageError, by=ids(1, 2, 3), match="client 4")
        assert all(game.errors[client].client_id == 4 for client in ids(1, 2, 3))


class TestDuplicates:
    """Ruling: what the server can see to be bad costs its sender a `PeerRejected`, never the round."""

    def test_one_key_for_both_purposes(self) -> None:
        game = small_round()
        game.network = malicious_client(
            game,
            ClientId(4),
            AdvertiseKeys,
            lambda m: altered(m, bundle=signed_bundle(game, field(mask_key=m.bundle.channel_key)(m.bundle))),
        )
        game.play()
        assert [event.client for event in game.rejected] == [4]
        assert game.result is not None
        assert game.result.survivors == set(ids(1, 2, 3))

    @pytest.mark.parametrize("name", ["channel_key", "mask_key"])
    @pytest.mark.parametrize("source", ["channel_key", "mask_key"])
    def test_a_key_copied_from_another_client(self, name: str, source: str) -> None:
        game = small_round()
        game.network = malicious_client(
            game,
            ClientId(4),
            AdvertiseKeys,
            lambda m: altered(
                m,
                bundle=signed_bundle(
                    game, field(**{name: getattr(game.server._offered[ClientId(1)], source)})(m.bundle)
                ),
            ),
        )
        game.play()
        assert [event.client for event in game.rejected] == [4]
        assert game.result is not None
        assert game.result.survivors == set(ids(1, 2, 3))

    def test_passed_on_by_a_hostile_server(self) -> None:
        game = small_round()

        def change(_: ClientId, message: KeyBundles) -> KeyBundles:
            first = message.bundles[0]
            return with_bundle(message, ClientId(4), lambda b: signed_bundle(game, field(mask_key=first.mask_key)(b)))

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, InconsistentViewError, by=ids(1, 2, 3), match="two public keys")


class TestLists:
    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda me, b: tuple(x for x in b if x.client != me), InconsistentViewError),
            (lambda _, b: (b[0], *b), MalformedMessageError),
            (lambda _, b: b[::-1], MalformedMessageError),
            (lambda _, b: (), TooFewClientsError),
            (lambda _, b: b[:2], TooFewClientsError),
        ],
    )
    def test_impossible_lists(
        self, change: Callable[[ClientId, tuple[KeyBundle, ...]], tuple[KeyBundle, ...]], error: type[ProtocolError]
    ) -> None:
        game = small_round()
        game.network = rewriting(KeyBundles, lambda me, m: altered(m, bundles=change(me, m.bundles)))
        game.play()
        assert_refused(game, error)

    @pytest.mark.parametrize("name", ["serial", "fresh", "channel_key", "mask_key", "signature"])
    def test_own_keys_must_come_back_unchanged(self, name: str) -> None:
        """Even if the change is signed with the client's own key, as if it came from a twin of it."""
        values: dict[str, object] = {
            "serial": 7, "fresh": OTHER[:32], "channel_key": OTHER, "mask_key": OTHER, "signature": bytes(64),
        }  # fmt: skip
        game = small_round()

        def change(me: ClientId, message: KeyBundles) -> KeyBundles:
            def mine(bundle: KeyBundle) -> KeyBundle:
                bundle = field(**{name: values[name]})(bundle)
                return bundle if name == "signature" else signed_bundle(game, bundle)

            return with_bundle(message, me, mine)

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, InconsistentViewError, match="own keys")

    def stranger(self, game: Round, message: KeyBundles) -> KeyBundles:
        identity = Identity.generate()
        bundle = msgspec.structs.replace(message.bundles[0], client=99, channel_key=ATTACKER, mask_key=OTHER)
        game.identities = {**game.identities, ClientId(99): identity}
        return altered(message, bundles=(*message.bundles, signed_bundle(game, bundle)))

    def test_a_client_outside_the_roster(self) -> None:
        game = Round(round_config(5, threshold=3), random_vectors(5, 5))
        lost = lambda sender, _, data: [] if sender == 5 else [data]  # noqa: E731
        game.network = together(lost, rewriting(KeyBundles, lambda _, m: self.stranger(game, m)))
        game.play()
        assert_refused(game, InconsistentViewError, by=ALL, match="roster")

    def test_strangers_on_a_ring_cannot_fill_up_a_cohort(self) -> None:
        """Also for clients whose neighbours they are not: the floor counts people, not inventions."""
        n = 12
        game = Round(round_config(n, degree=4, threshold=5), random_vectors(n, 5))
        lost = lambda sender, _, data: [] if sender == n else [data]  # noqa: E731
        game.network = together(lost, rewriting(KeyBundles, lambda _, m: self.stranger(game, m)))
        game.play()
        assert_refused(game, InconsistentViewError, by=ids(*range(1, n)), match="roster")

    def test_more_clients_than_the_cohort(self) -> None:
        game = Round(round_config(4, threshold=3), random_vectors(6, 5))

        def change(_: ClientId, message: KeyBundles) -> KeyBundles:
            extra = game.clients[ClientId(5)]._own_bundle
            assert extra is not None
            return altered(message, bundles=(*message.bundles, extra))

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert_refused(game, MalformedMessageError, by=ALL, match="at most")

    def test_more_clients_than_the_cohort_in_short_bundles(self) -> None:
        """The classical suite's bundles are small enough for the limit to hold one more."""
        game = Round(round_config(4, threshold=3, suite=1), random_vectors(6, 5))

        def change(_: ClientId, message: KeyBundles) -> KeyBundles:
            extra = game.clients[ClientId(5)]._own_bundle
            assert extra is not None
            return altered(message, bundles=(*message.bundles, extra))

        game.network = rewriting(KeyBundles, change, suite=CLASSICAL)
        game.play()
        assert_refused(game, InconsistentViewError, by=ALL, match="5 clients in a cohort of 4")


class TestServer:
    def test_keys_in_another_clients_name(self) -> None:
        game = small_round()
        game.network = malicious_client(
            game, ClientId(4), AdvertiseKeys, lambda m: altered(m, bundle=field(client=3)(m.bundle))
        )
        game.play()
        assert [event.client for event in game.rejected] == [4]
        assert "keys of client 3" in game.rejected[0].reason

    def test_a_message_in_another_clients_name(self) -> None:
        game = small_round()
        game.network = malicious_client(game, ClientId(4), AdvertiseKeys, lambda m: altered(m, sender=3))
        game.play()
        assert [event.client for event in game.rejected] == [4]

    def test_an_old_bundle_is_named_by_everybody(self) -> None:
        """A client that lost its memory starts again at serial 1; its peers have seen that number."""
        first = small_round()
        first.run()
        histories = {client: history for client, history in first.histories.items() if client != 4}
        game = Round(
            round_config(4, threshold=3), random_vectors(4, 5), histories=histories, identities=first.identities
        )
        game.play()
        assert_refused(game, PolicyRefusal, by=ids(1, 2, 3), match="key bundle 1 of client 4 was seen before")
        assert all(game.errors[client].client_id == 4 for client in ids(1, 2, 3))
