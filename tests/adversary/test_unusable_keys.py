"""Keys, properly signed by a colluder, that a decoder lets pass: clients refuse them before anything is sealed."""

from __future__ import annotations

import msgspec
import pytest

from protocols import ClientId, MalformedMessageError, Phase
from protocols.one_shot.wire import Committee
from protocols.wire import KeyBundles
from tests.one_shot import hostile as one_shot
from tests.one_shot.game import Game

from .hostile import altered, assert_refused, ids, rewriting, signed_bundle, small_round


@pytest.mark.parametrize("name", ["channel_key", "mask_key"])
def test_an_ml_kem_key_that_is_not_reduced_beside_a_good_x25519_key(name: str) -> None:
    """All coefficients are 4095, above the modulus 3329."""
    game, liar = small_round(), ClientId(4)

    def change(_: ClientId, message: KeyBundles) -> KeyBundles:
        *others, last = message.bundles
        key = getattr(last, name)
        unreduced = key[:32] + b"\xff" * (len(key) - 64) + key[-32:]
        return altered(
            message, bundles=(*others, signed_bundle(game, msgspec.structs.replace(last, **{name: unreduced})))
        )

    game.network = rewriting(KeyBundles, change)
    game.play()
    assert_refused(game, MalformedMessageError, by=ids(1, 2, 3), match=f"client {liar}")
    assert {game.errors[client].client_id for client in ids(1, 2, 3)} == {liar}


def test_a_committee_key_that_goes_on_after_its_point() -> None:
    """A second encoding of one key: the wire allows the longer keys of another suite, the round does not."""
    game = Game()

    def change(shown: Committee) -> Committee:
        first, *rest = shown.bundles
        longer = one_shot.rebundled(game, first, key=first.key + b"\0")
        return Committee(context=shown.context, sender=shown.sender, bundles=(longer, *rest))

    game.network = one_shot.rewriting(change, to=one_shot.ONE)
    game.run()
    assert type(game.errors[one_shot.ONE]) is MalformedMessageError
    assert game.errors[one_shot.ONE].client_id == one_shot.members_of(game)[0]
    assert game.clients[one_shot.ONE].phase is Phase.ABORTED
    assert game.sent_by(one_shot.ONE) == []
