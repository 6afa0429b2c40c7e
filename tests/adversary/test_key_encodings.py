"""One key, two names: X25519 ignores the top bit and reduces modulo p, so a copied key could pass for another one.

A colluder that repeats a victim's public key makes two pairs derive one secret. Equal keys are refused; so must be what
only looks different.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocols import ClientId, MalformedMessageError, TooFewClientsError
from protocols.wire import AdvertiseKeys, KeyBundle, KeyBundles
from tests.rounds import Round

from .hostile import altered, assert_refused, ids, malicious_client, rewriting, signed_bundle, small_round

LIAR, VICTIM = ClientId(4), ClientId(1)
PRIME = 2**255 - 19


def top_bit(public: bytes) -> bytes:
    """The same point: RFC 7748 masks this bit."""
    return public[:31] + bytes([public[31] | 0x80]) + public[32:]


def small_u_plus_p(public: bytes) -> bytes:
    """The base point u = 9 in its second encoding; only points below 19 have one without the top bit."""
    return (9 + PRIME).to_bytes(32, "little") + public[32:]


SECOND: dict[str, Callable[[bytes], bytes]] = {"top bit": top_bit, "u + p": small_u_plus_p}


@pytest.mark.parametrize("encoding", SECOND)
def test_the_attack_is_real(encoding: str) -> None:
    """The library underneath takes both encodings, and gives the same secret for them."""
    private = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    honest = private.public_key().public_bytes_raw() if encoding == "top bit" else (9).to_bytes(32, "little")
    other = SECOND[encoding](honest)
    assert other != honest
    secrets = {private.exchange(X25519PublicKey.from_public_bytes(one)) for one in (honest, other)}
    assert len(secrets) == 1


def copied(game: Round, bundle: KeyBundle, victim: KeyBundle, name: str, encoding: str) -> KeyBundle:
    """The liar's bundle with the victim's point in it, encoded otherwise, and properly signed by the liar."""
    theirs = getattr(victim, name)[:32]
    key = SECOND[encoding](theirs) + getattr(bundle, name)[32:]
    return signed_bundle(game, msgspec.structs.replace(bundle, **{name: key}))


@pytest.mark.parametrize("encoding", SECOND)
@pytest.mark.parametrize("name", ["channel_key", "mask_key"])
def test_a_copied_key_in_another_encoding_costs_its_sender_its_place(name: str, encoding: str) -> None:
    game = small_round()

    def change(message: AdvertiseKeys) -> AdvertiseKeys:
        victim = game.clients[VICTIM]._own_bundle
        assert victim is not None
        return altered(message, bundle=copied(game, message.bundle, victim, name, encoding))

    game.network = malicious_client(game, LIAR, AdvertiseKeys, change)
    game.play()
    assert [event.client for event in game.rejected] == [LIAR]
    assert "canonical" in game.rejected[0].reason
    assert game.result is not None
    assert game.result.survivors == set(ids(1, 2, 3))
    assert (game.result.vector == game.expected(game.result.survivors)).all()


@pytest.mark.parametrize("encoding", SECOND)
@pytest.mark.parametrize("name", ["channel_key", "mask_key"])
def test_passed_on_by_a_hostile_server_every_client_refuses(name: str, encoding: str) -> None:
    """The server is the colluder's friend. Before anything is sealed, everybody refuses and names who signed."""
    game = small_round()

    def change(_: ClientId, message: KeyBundles) -> KeyBundles:
        victim = message.bundles[0]
        assert victim.client == VICTIM
        bundles = [copied(game, b, victim, name, encoding) if b.client == LIAR else b for b in message.bundles]
        return altered(message, bundles=tuple(bundles))

    game.network = rewriting(KeyBundles, change)
    game.play()
    assert_refused(game, MalformedMessageError, by=ids(1, 2, 3), match="client 4")
    assert all(game.errors[client].client_id == LIAR for client in ids(1, 2, 3))
    assert all(game.kinds_sent(client) == [AdvertiseKeys] for client in game.clients)
    assert isinstance(game.server_error, TooFewClientsError)
