"""A refusal that others can provoke remembers no key: a report of it must not open what was sealed to that party."""

from __future__ import annotations

import gc

from protocols import InconsistentViewError, MalformedMessageError, PeerRejected, SendMessage
from protocols.one_shot import OneShotMember
from protocols.primitives.keys import AgreementKey
from tests.adversary.hostile import kept_by
from tests.classical import encode

from .game import Game
from .hostile import ONE, altered, ask, at_unmask, members_of, rebundled, resigned, rewriting


def assert_no_key(error: BaseException, secret: bytes) -> None:
    kept = kept_by(error)
    assert len(kept) > 10, "the walk saw nothing"
    assert not [one for one in kept if isinstance(one, bytes) and one == secret]
    assert not [one for one in kept if isinstance(one, AgreementKey) and one.secret]


def test_a_member_that_a_client_made_complain() -> None:
    """Its key opens its shares of all clients' masks: neither what it says nor what is left of it has the key."""
    game, requests = at_unmask()
    member = members_of(game)[0]
    session = game.members[member]
    secrets = session._secrets
    assert secrets is not None
    secret, key = secrets.key.secret, secrets.key
    first, *rest = requests[member].contributions
    bad = resigned(game, first, share=first.share[:-1] + bytes((first.share[-1] ^ 1,)))
    events = session.receive(encode(altered(requests[member], contributions=(bad, *rest))))
    assert [type(event) for event in events] == [PeerRejected, SendMessage]
    assert secret
    assert secret not in repr(events).encode("latin-1", "ignore")
    assert secret not in events[-1].data  # type: ignore[union-attr]
    assert key.secret == b""
    assert session._secrets is None
    assert not [one for one in gc.get_referrers(key) if isinstance(one, OneShotMember)]


def test_a_member_that_the_server_made_refuse() -> None:
    game, requests = at_unmask()
    member = members_of(game)[0]
    secrets = game.members[member]._secrets
    assert secrets is not None
    secret = secrets.key.secret
    first, *rest = requests[member].contributions
    swapped = altered(first, share=rest[0].share)
    assert ask(game, member, altered(requests[member], contributions=(swapped, *rest))) is None
    assert type(game.errors[member]) is InconsistentViewError
    assert secret
    assert_no_key(game.errors[member], secret)


def test_a_client_that_a_member_made_refuse() -> None:
    game = Game()
    member = members_of(game)[0]
    secrets: list[bytes] = []

    def change(shown):  # type: ignore[no-untyped-def]
        live = game.clients[ONE]._secrets
        assert live is not None
        secrets.append(live.key.secret)
        first, *rest = shown.bundles
        return altered(shown, bundles=(rebundled(game, first, key=bytes(32)), *rest))

    game.network = rewriting(change, to=ONE)
    game.play()
    assert type(game.errors[ONE]) is MalformedMessageError
    assert f"the key of member {member}" in str(game.errors[ONE])
    assert_no_key(game.errors[ONE], secrets[0])
