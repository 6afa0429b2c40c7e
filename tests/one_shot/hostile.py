"""What a hostile server or client does to real messages, and how a test sees that it got nothing."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

import msgspec
import pytest

from protocols import (
    ClientId,
    LocalProtocolError,
    Phase,
    ProtocolError,
    SurvivorsSigned,
)
from protocols.one_shot.rules import member_bundle_digest, signature_kind
from protocols.one_shot.wire import (
    Committee,
    Complaint,
    MemberBundle,
    SealedContribution,
    UnmaskRequest,
)
from protocols.roster import signed_text
from protocols.wire import (
    Message,
)
from tests.classical import decode, decode_signed, encode

from .game import NO_LIMIT, Game, Network, signed

ONE, TWO, THREE, FOUR = (ClientId(i) for i in range(1, 5))


StructT = TypeVar("StructT", bound=msgspec.Struct)


def members_of(game: Game) -> tuple[ClientId, ...]:
    return game.config.committee


def at_unmask(game: Game | None = None) -> tuple[Game, dict[ClientId, UnmaskRequest]]:
    """A round whose members are about to be asked, and what an honest server would ask."""
    game = game or Game()
    game.advance(Phase.MASKED_INPUT)
    events = game.server.close_phase()
    return game, {event.to: decode(event.data, UnmaskRequest, limit=NO_LIMIT) for event in events}  # type: ignore[union-attr, misc]


def ask(game: Game, member: ClientId, request: Message | bytes) -> bytes | None:
    """The member's answer, if it gives one."""
    before = len(game.sent)
    data = request if isinstance(request, bytes) else encode(request)
    session = game.members[member]
    game.call(session, lambda: session.receive(data))
    new = [data for _, data in game.sent[before:]]
    return new[0] if new else None


def assert_member_refuses(
    game: Game, member: ClientId, request: Message | bytes, error: type[ProtocolError], match: str = ""
) -> None:
    assert ask(game, member, request) is None
    assert type(game.errors[member]) is error, game.errors[member]
    assert match in str(game.errors[member])
    session = game.members[member]
    assert session.phase is Phase.ABORTED
    assert session._secrets is None
    assert session._after_persist is None
    assert not any(isinstance(record, SurvivorsSigned) for record in game.records[member])


def altered(said: StructT, **changes: object) -> StructT:
    return msgspec.structs.replace(said, **changes)


def assert_member_complains(
    game: Game, member: ClientId, request: UnmaskRequest, accused: set[ClientId], match: str
) -> Complaint:
    """It says whose shares are bad, and nothing else: no share, no record of a sum, no key left."""
    answer = ask(game, member, request)
    assert answer is not None
    complaint = decode_signed(answer, Complaint, limit=NO_LIMIT).message
    assert {one.client for one in complaint.accused} == accused
    rejected = game.refused[member]
    assert [event.client for event in rejected] == sorted(accused)
    assert all(match in event.reason and f"to member {member}" in event.reason for event in rejected)
    assert not any(isinstance(record, SurvivorsSigned) for record in game.records[member])
    session = game.members[member]
    assert session.phase is Phase.FINISHED
    assert session._secrets is None
    with pytest.raises(LocalProtocolError):
        session.receive(encode(request))
    return complaint


def resigned(game: Game, one: SealedContribution, share: bytes | None = None, **changes: object) -> SealedContribution:
    """The contribution with other fields, another sealed share, or both, signed by whom it then names."""
    if share is not None:
        digests = tuple(
            sha256(share).digest() if digest == sha256(one.share).digest() else digest
            for digest in one.contribution.sealed
        )
        changes = {"sealed": digests, **changes}
    contribution = msgspec.structs.replace(one.contribution, **changes)
    signature = signed(game.identities[ClientId(contribution.sender)], contribution)[-64:]
    return SealedContribution(contribution=contribution, signature=signature, share=share or one.share)


def rewriting(change: Callable[[Committee], Message], *, to: ClientId) -> Network:
    """A network that rewrites the server's message to one client."""

    def network(_sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        return [encode(change(decode(data, Committee, limit=NO_LIMIT)))] if receiver == to else [data]

    return network


def rebundled(game: Game, bundle: MemberBundle, *, by: ClientId | None = None, **changes: object) -> MemberBundle:
    """The bundle with other fields, signed by its member or by somebody else."""
    changed = msgspec.structs.replace(bundle, **changes)
    identity = game.identities[by or ClientId(changed.member)]
    digest = member_bundle_digest(changed, game.roster, game.server._rules.suite)
    signature = identity.sign(signed_text(signature_kind(MemberBundle), digest))
    return msgspec.structs.replace(changed, signature=signature)
