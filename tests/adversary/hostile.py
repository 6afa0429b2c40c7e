"""What a hostile server, network or client does to real messages, and how a test sees that it got nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from hashlib import sha256
from typing import TypeVar

import msgspec

from protocols import ClientId, Identity, Phase, ProtocolError
from protocols.primitives.keys import HYBRID, Suite
from protocols.roster import bundle_digest, signed_text
from protocols.wire import (
    SERVER,
    ConsistencyCheck,
    KeyBundle,
    Message,
    SurvivorList,
    SurvivorSignatures,
    Unmask,
    decode,
    decode_signed,
    encode,
)
from tests.rounds import Network, Round, kind_of, random_vectors, round_config

NO_LIMIT = 10**9
MessageT = TypeVar("MessageT", bound=Message)


def ids(*clients: int) -> tuple[ClientId, ...]:
    return tuple(ClientId(client) for client in clients)


def altered(message: MessageT, **changes: object) -> MessageT:
    return msgspec.structs.replace(message, **changes)


def rewriting(
    kind: type[MessageT],
    change: Callable[[ClientId, MessageT], Message | bytes],
    *,
    to: Collection[ClientId] | None = None,
    suite: Suite = HYBRID,
) -> Network:
    """A network that rewrites the server's messages of one kind."""

    def network(_sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        if receiver is None or kind_of(data) is not kind or (to is not None and receiver not in to):
            return [data]
        forged = change(receiver, decode(data, kind, suite=suite, limit=NO_LIMIT))
        return [forged if isinstance(forged, bytes) else encode(forged, suite=suite)]

    return network


def signed(identity: Identity, message: Message, tail: bytes = b"") -> bytes:
    """The frame as its sender would sign it."""
    covered = encode(message) + tail
    return covered + identity.sign(signed_text(type(message).__name__, sha256(covered).digest()))


def signed_bundle(game: Round, bundle: KeyBundle, by: ClientId | None = None) -> KeyBundle:
    """The bundle with a valid signature of its owner, or of somebody else."""
    identity = game.identities[by or ClientId(bundle.client)]
    signature = identity.sign(signed_text("KeyBundle", bundle_digest(bundle, game.roster)))
    return msgspec.structs.replace(bundle, signature=signature)


def malicious_client(
    game: Round, client: ClientId, kind: type[MessageT], change: Callable[[MessageT], Message | bytes]
) -> Network:
    """A network on which one client's messages of one kind are rewritten, and signed by that client itself."""

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        if sender != client or kind_of(data) is not kind:
            return [data]
        if kind.__name__ == "AdvertiseKeys":
            forged = change(decode(data, kind, limit=NO_LIMIT))
            return [forged if isinstance(forged, bytes) else encode(forged)]
        forged = change(decode_signed(data, kind, limit=NO_LIMIT).message)
        return [forged if isinstance(forged, bytes) else signed(game.identities[client], forged)]

    return network


def silencing(client: ClientId, *kinds: type[Message]) -> Network:
    """A network that loses one client's messages of some kinds."""

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        return [] if sender == client and kind_of(data) in kinds else [data]

    return network


def together(*networks: Network) -> Network:
    """Networks in a row."""

    def network(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        arriving = [data]
        for one in networks:
            arriving = [after for before in arriving for after in one(sender, receiver, before)]
        return arriving

    return network


def assert_refused(
    game: Round, error: type[ProtocolError], *, by: Iterable[ClientId] | None = None, match: str = ""
) -> None:
    """Every named client ended in exactly this error, and none of its shares ever left it."""
    sent = game.shares_sent()
    for client in game.clients if by is None else by:
        assert type(game.errors.get(client)) is error, (client, game.errors.get(client))
        assert match in str(game.errors[client])
        session = game.clients[client]
        assert session.phase is Phase.ABORTED
        assert session._secrets is None
        assert Unmask not in game.kinds_sent(client)
        assert not any(holder == client for holder, _, _ in sent)
        assert client not in game.agreed


def small_round(n: int = 4, **config: object) -> Round:
    """A round of n clients with 5 coordinates; everybody must survive unless the configuration says otherwise."""
    options: dict[str, object] = {"threshold": 3, "min_survivors": 3} | config
    return Round(round_config(n, **options), random_vectors(n, 5))  # type: ignore[arg-type]


class ForkingServer:
    """Shows different survivor sets to different clients, and collects what it gets.

    Corrupt clients sign whatever it likes and hand over all they hold.
    """

    def __init__(self, game: Round, corrupt: Collection[ClientId] = ()) -> None:
        self.game = game
        self.corrupt = frozenset(corrupt)
        game.advance(Phase.MASKED_INPUT)
        self.cohort = game.server._cohort
        self.context = game.server._rules.context

    def view(self, survivors: Collection[ClientId]) -> bytes:
        return self.game.server._rules.view(self.cohort, survivors)

    def ask_to_sign(self, client: ClientId, survivors: Collection[ClientId]) -> bytes | None:
        """The client's signature over a view with these survivors, if it gives one."""
        if client in self.corrupt:
            check = ConsistencyCheck(context=self.context, sender=client, view=self.view(survivors))
            return signed(self.game.identities[client], check)[-64:]
        before = len(self.game.sent)
        frame = SurvivorList(context=self.context, sender=SERVER, survivors=tuple(sorted(survivors)))
        self.game.to_client(client, encode(frame))
        new = [data for _, _, data in self.game.sent[before:]]
        return new[0][-64:] if new else None

    def ask_to_unmask(self, client: ClientId, signatures: dict[ClientId, bytes]) -> bool:
        """Whether the client answered with its shares."""
        signers = tuple(sorted(signatures))
        frame = SurvivorSignatures(
            context=self.context,
            sender=SERVER,
            signers=signers,
            signatures=tuple(signatures[signer] for signer in signers),
        )
        before = len(self.game.sent)
        self.game.to_client(client, encode(frame))
        return len(self.game.sent) > before

    def fork(self, views: dict[ClientId, frozenset[ClientId]]) -> None:
        """Each client is shown its own view, and then all signatures that there are on that view."""
        signatures: dict[frozenset[ClientId], dict[ClientId, bytes]] = {view: {} for view in views.values()}
        for client, view in views.items():
            signature = self.ask_to_sign(client, view)
            if signature is not None:
                signatures[view][client] = signature
        for view, known in signatures.items():
            for client in self.corrupt & view:
                signature = self.ask_to_sign(client, view)
                assert signature is not None
                known[client] = signature
        for client, view in views.items():
            if client not in self.corrupt and client in signatures[view]:
                self.ask_to_unmask(client, signatures[view])

    def shares_of(self, owner: ClientId) -> dict[str, set[ClientId]]:
        """Who gave a share of which of the owner's two secrets; corrupt holders give both."""
        found: dict[str, set[ClientId]] = {"mask key": set(), "self seed": set()}
        for holder, whose, name in self.game.shares_sent():
            if whose == owner:
                found[name].add(holder)
        held_by_corrupt = {client for client in self.corrupt if owner in self.game.held[client]}
        return {name: holders | held_by_corrupt for name, holders in found.items()}


def kept_by(error: BaseException | None) -> list[object]:
    """Everything in the frames of an error, and of the errors that it remembers."""
    found: list[object] = []
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            found += trace.tb_frame.f_locals.values()
            trace = trace.tb_next
        error = error.__context__
    return found
