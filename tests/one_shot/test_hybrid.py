"""Suite 2 in one-shot rounds: a share opens to who has both halves of the member's key, and to nobody else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocols import ClientId, InconsistentViewError, MalformedMessageError, Phase
from protocols.one_shot.rules import Rules, member_bundle_digest
from protocols.one_shot.sealed import seal, unseal
from protocols.one_shot.wire import Committee, MemberBundle, MemberKeys
from protocols.primitives import keys
from protocols.wire import encode

from .game import Game, random_vectors, round_config
from .hostile import ONE, TWO, members_of, rebundled

SHARE = bytes(range(32))


def hybrid(**changes: object) -> Game:
    return Game(round_config(4, suite=2, **changes), random_vectors(4))  # type: ignore[arg-type]


def channel_of(game: Game) -> tuple[Rules, keys.AgreementKey, keys.AgreementKey, ClientId]:
    """The rules of a round, a client's ephemeral key, a member's key, and the member."""
    game.advance(Phase.MASKED_INPUT)
    member = members_of(game)[0]
    secrets = game.members[member]._secrets
    assert secrets is not None
    return game.server._rules, keys.AgreementKey(bytes(range(100, 132)), keys.CLASSICAL), secrets.key, member


def test_rounds_are_exact_and_frames_are_of_their_suite() -> None:
    game = hybrid()
    result = game.run()
    assert np.array_equal(result.vector, game.expected(frozenset(game.vectors)))
    assert not game.errors
    assert not game.rejected
    assert {data[:6] for _, data in game.sent} == {b"SAGG\x01\x02"}


def test_a_contribution_has_one_ciphertext_for_each_member() -> None:
    classical, modern = Game(), hybrid()
    for game in (classical, modern):
        game.advance(Phase.MASKED_INPUT)
    sizes = [len(game.sent_by(ONE)[0]) for game in (classical, modern)]
    assert sizes[1] - sizes[0] == 5 * 1088


def seal_to(rules: Rules, client_key: keys.AgreementKey, member: ClientId, client: ClientId = ONE) -> bytes:
    agreed = client_key.agree(rules.bundles[member].key)
    return seal(
        rules, SHARE, client=client, member=member, agreed=agreed, ephemeral_key=client_key.public, vector=bytes(32)
    )


def test_a_share_needs_both_halves_of_the_members_key() -> None:
    rules, client_key, member_key, member = channel_of(hybrid())
    sealed = seal_to(rules, client_key, member)
    box = {"client": ONE, "member": member, "ephemeral_key": client_key.public, "vector": bytes(32)}
    assert unseal(rules, sealed, key=member_key, **box) == SHARE  # type: ignore[arg-type]
    other = keys.AgreementKey(bytes(range(50, 82)), keys.HYBRID)
    for part in ("_x25519", "_kem"):
        mixed = keys.AgreementKey(member_key.secret, keys.HYBRID)
        setattr(mixed, part, getattr(other, part))
        with pytest.raises(ValueError, match="does not open"):
            unseal(rules, sealed, key=mixed, **box)  # type: ignore[arg-type]


def test_nothing_of_a_sealed_share_can_be_exchanged() -> None:
    rules, client_key, member_key, member = channel_of(hybrid())
    sealed, again = seal_to(rules, client_key, member), seal_to(rules, client_key, member)
    box = {"client": ONE, "member": member, "ephemeral_key": client_key.public, "vector": bytes(32)}
    assert sealed != again  # a fresh KEM secret each time
    swapped = again[:1088] + sealed[1088:]
    changed = [{"client": TWO}, {"member": members_of(Game())[1]}, {"vector": SHARE}]
    for data, replaced in [(swapped, {}), *((sealed, one) for one in changed)]:
        with pytest.raises(ValueError, match="does not open"):
            unseal(rules, data, key=member_key, **(box | replaced))  # type: ignore[arg-type]
    for bit in range(0, 8 * len(sealed), 97):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="does not open"):
            unseal(rules, bytes(damaged), key=member_key, **box)  # type: ignore[arg-type]


def test_a_round_has_one_suite() -> None:
    """Parties of the other suite read nothing of it, whichever side they are on."""
    game = hybrid()
    game.configs = {ONE: replace(game.config, suite=1)}
    game.clients[ONE] = game.session(type(game.clients[ONE]), ONE)
    game.sessions = [*game.clients.values(), *game.members.values()]
    game.run()
    assert type(game.errors[ONE]) is MalformedMessageError
    assert game.result is not None
    assert game.result.survivors == set(game.vectors) - {ONE}


@pytest.mark.parametrize("part", ["X25519", "ML-KEM", "both"])
def test_no_part_of_a_members_key_may_be_another_members(part: str) -> None:
    game = hybrid()

    def stolen(first: MemberBundle, second: MemberBundle) -> MemberBundle:
        key = {
            "X25519": first.key[:32] + second.key[32:],
            "ML-KEM": second.key[:32] + first.key[32:],
            "both": first.key,
        }[part]
        return rebundled(game, second, key=key)

    rules = game.server._rules
    game.start()
    first, second, *rest = game.server._offered.values()
    with pytest.raises(InconsistentViewError, match="same key"):
        rules.check_bundles((first, stolen(first, second), *rest), Phase.ADVERTISE_KEYS)
    late = Game(game.config, game.vectors, identities=game.identities)
    late.call(late.members[ClientId(first.member)], late.members[ClientId(first.member)].start)
    offered = late.server._offered[ClientId(first.member)]
    taken = rebundled(late, second, key=stolen(offered, second).key)
    message = signed_keys(late, taken)
    late.to_server(ClientId(second.member), message)
    assert "another member's key" in late.rejected[-1].reason


def signed_keys(game: Game, bundle: MemberBundle) -> bytes:
    message = MemberKeys(context=game.server._rules.context, sender=bundle.member, bundle=bundle)
    return encode(message, suite=game.server._rules.suite)


def test_a_member_key_that_is_not_canonical_is_refused() -> None:
    """An ML-KEM coefficient of 3329 or more (FIPS 203, 7.2): at the server a rejection, at a client a typed error."""
    game = hybrid()
    game.start()
    first, *rest = game.server._offered.values()
    bad = rebundled(game, first, key=first.key[:32] + b"\xff" * 1184)
    fresh = Game(game.config, game.vectors, identities=game.identities)
    fresh.to_server(ClientId(first.member), signed_keys(fresh, bad))
    assert "not canonical" in fresh.rejected[-1].reason
    shown = Committee(context=game.server._rules.context, sender=0, bundles=(bad, *rest))
    game.call(game.clients[ONE], lambda: game.clients[ONE].receive(encode(shown, suite=keys.HYBRID)))
    assert type(game.errors[ONE]) is MalformedMessageError
    assert f"the key of member {first.member}" in str(game.errors[ONE])


def test_keys_and_shares_of_the_other_suite_do_not_decode() -> None:
    game, other = hybrid(), Game()
    for one in (game, other):
        one.start()
    short = tuple(other.server._offered.values())
    frame = Committee(context=game.server._rules.context, sender=0, bundles=short)
    for client, suite in ((ONE, keys.HYBRID), (TWO, keys.CLASSICAL)):
        with pytest.raises(MalformedMessageError):
            game.clients[client].receive(encode(frame, suite=suite))


def test_a_session_that_ends_wipes_both_halves_of_its_key() -> None:
    game = hybrid()
    game.advance(Phase.MASKED_INPUT)
    kept = [session._secrets.key for session in game.members.values() if session._secrets]
    assert len(kept) == 5
    game.advance(Phase.FINISHED)
    for key in kept:
        assert key.secret == b""
        assert key._kem is None
        with pytest.raises(ValueError, match="wiped"):
            key.agree(keys.AgreementKey(SHARE, keys.CLASSICAL).public)


def test_a_bundle_is_signed_for_one_suite() -> None:
    game = hybrid()
    game.start()
    first = next(iter(game.server._offered.values()))
    assert len({member_bundle_digest(first, game.roster, suite) for suite in keys.SUITES.values()}) == 2
