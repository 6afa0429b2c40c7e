"""A member that crashes cannot be made to answer again: what it made durable burns its round and its key.

A crash loses the session and keeps the records. The driver starts again from these alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols import (
    ClientId,
    History,
    LocalProtocolError,
    PersistBeforeSend,
    Phase,
    PolicyRefusal,
    RemoteProtocolError,
    SendMessage,
    SurvivorsSigned,
)
from protocols.one_shot import OneShotMember
from protocols.one_shot.wire import UnmaskRequest
from tests.classical import decode, encode

from .game import NO_LIMIT, Game, round_config
from .hostile import altered, at_unmask, members_of

WHEN = ["before the request", "before the answer left", "after the answer left"]


def crashed(when: str) -> tuple[Game, ClientId, UnmaskRequest, list[SendMessage]]:
    """A round in which one member is gone; what it had sent of its answer; its history is what it made durable."""
    game, requests = at_unmask(Game(round_config(4, min_survivors=3)))
    member = members_of(game)[0]
    request, sent = requests[member], []
    session = game.members.pop(member)
    if when != "before the request":
        (event,) = session.receive(encode(request))
        assert isinstance(event, PersistBeforeSend)
        game.records[member].append(event.record)
        if when == "after the answer left":
            sent = [event for event in session.persisted() if isinstance(event, SendMessage)]
            assert len(sent) == 1
    game.histories[member] = History.of(game.records[member])
    return game, member, request, sent


@pytest.mark.parametrize("when", WHEN)
def test_the_round_is_not_joined_again(when: str) -> None:
    game, member, _, _ = crashed(when)
    with pytest.raises(PolicyRefusal, match="used before"):
        game.session(OneShotMember, member)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("whole", [True, False], ids=["same survivors", "one less"])
def test_the_old_request_is_not_answered_in_another_round(when: str, whole: bool) -> None:
    """Not even if the server gives the next round everything else of the old one: the key is another one."""
    game, member, request, _ = crashed(when)
    game.configs = {member: replace(game.config, round_id=bytes([9]) * 32)}
    session = game.session(OneShotMember, member)
    (event,) = session.start()
    assert isinstance(event, PersistBeforeSend)
    assert event.record.serial == 2  # type: ignore[union-attr]
    session.persisted()
    asked = request if whole else altered(request, contributions=request.contributions[1:])
    with pytest.raises(RemoteProtocolError, match="as it advertised it"):
        session.receive(encode(altered(asked, context=session._rules.context)))
    assert session.phase is Phase.ABORTED
    assert session._secrets is None
    with pytest.raises(LocalProtocolError):
        session.persisted()


@pytest.mark.parametrize("when", WHEN[1:])
def test_what_may_have_been_opened_counts_as_opened(when: str) -> None:
    """In the next round on the model, a set that differs in one client is refused, whether or not the answer left."""
    game, member, _, _ = crashed(when)
    next_round = Game(round_config(4, min_survivors=3), identities=game.identities, histories=dict(game.histories))
    next_round.advance(Phase.MASKED_INPUT)
    requests = {
        event.to: decode(event.data, UnmaskRequest, limit=NO_LIMIT)  # type: ignore[union-attr]
        for event in next_round.server.close_phase()
    }
    smaller = altered(requests[member], contributions=requests[member].contributions[1:])
    with pytest.raises(PolicyRefusal, match="differs in 1 clients"):
        next_round.members[member].receive(encode(smaller))
    assert not any(isinstance(record, SurvivorsSigned) for record in next_round.records[member])


def test_without_the_record_nothing_has_left() -> None:
    """A crash before the record is durable: the answer did not exist outside the member."""
    game, requests = at_unmask()
    member = members_of(game)[0]
    events = game.members[member].receive(encode(requests[member]))
    assert [type(event) for event in events] == [PersistBeforeSend]
    assert len(game.sent_by(member)) == 1  # its key, in the first phase
    assert game.members[member]._secrets is None
