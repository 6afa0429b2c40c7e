"""Sessions of real rounds, each waiting for one message, in every phase of both protocols.

1. A round runs until one party waits for a message; that message is withheld. Everybody else has spoken, so a server
   may close its phase after it.
2. A snapshot puts a session back to where it stood, keys and all, so one round serves any number of messages. It also
   says whether a session has changed.
3. A hostile party signs what it sends: `renewed` gives a changed body the signatures that it would carry.

Identities and secrets follow from the seed; only the randomness of KEM ciphertexts is OpenSSL's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np

from protocols import ClientId, Identity, MalformedMessageError, Phase
from protocols.lifecycle import Lifecycle
from protocols.one_shot import rules as one_shot_rules
from protocols.one_shot import wire as one_shot
from protocols.primitives import keys
from protocols.primitives.keys import CLASSICAL, SIGNATURE_BYTES, SUITES, Suite
from protocols.roster import Roster, bundle_digest, signed_text
from protocols.wire import AdvertiseKeys, KeyBundle, KeyBundles, MaskedInput, Message, decode, decode_signed, encode
from tests.one_shot import game as one_shot_game
from tests.one_shot.test_blame import sealing_badly
from tests.protocols.messages import SIGNED
from tests.rounds import Round, kind_of, random_vectors, round_config

CLIENTS, LENGTH = 4, 5
VICTIM = ClientId(2)
WITH_SEED, MEMBER = ClientId(101), ClientId(105)  # the first members hold seeds of shares, the last ones shares
SERVER_PHASES = (
    Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK, Phase.UNMASK
)  # fmt: skip
CLIENT_PHASES = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK)
NO_LIMIT = 10**9


class Snapshot:
    """All that can change in a session: its own objects, containers and arrays, as they are now."""

    def __init__(self, session: Lifecycle) -> None:
        self._saved: dict[int, tuple[Any, Any]] = {}
        self._save(session)

    def restore(self) -> None:
        """Puts everything back."""
        for thing, then in self._saved.values():
            match thing:
                case dict() | set():
                    thing.clear()
                    thing.update(then)
                case np.ndarray():
                    thing[...] = then
                case _:
                    for name, value in then.items():
                        setattr(thing, name, value)

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        for thing, then in self._saved.values():
            match thing:
                case dict():
                    same = thing.keys() == then.keys() and all(thing[key] is then[key] for key in then)
                case set():
                    same = thing == then
                case np.ndarray():
                    same = np.array_equal(thing, then)
                case _:
                    same = all(getattr(thing, name) is value for name, value in then.items())
            if not same:
                return False
        return True

    def _save(self, thing: Any) -> None:
        if id(thing) in self._saved:
            return
        if isinstance(thing, dict):
            self._saved[id(thing)] = (thing, dict(thing))
            for value in thing.values():
                self._save(value)
        elif isinstance(thing, set) or (isinstance(thing, np.ndarray) and thing.flags.writeable):
            self._saved[id(thing)] = (thing, thing.copy())
        elif isinstance(thing, keys.AgreementKey):
            self._saved[id(thing)] = (thing, {name: getattr(thing, name) for name in keys.AgreementKey.__slots__})
        elif type(thing).__module__.startswith("protocols.") and hasattr(thing, "__dict__"):
            self._save(vars(thing))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A session, and the message it waits for.

    Attributes:
        name: protocol, suite, party and phase.
        session: the session.
        sender: whose message a server waits for; None if the session is a client's or member's.
        frame: the genuine message.
        body_end: where its body ends.
        decode: the decoder that this kind of message has.
        renewed: header and body, changed, as a frame with the signatures of whoever would send it.
        snapshot: the session as it waits.
    """

    name: str
    session: Any
    sender: ClientId | None
    frame: bytes
    body_end: int
    decode: Callable[[bytes], object]
    renewed: Callable[[bytes], bytes]
    snapshot: Snapshot


def targets(seed: int) -> list[Target]:
    """Every phase of every party of both protocols."""
    rng = random.Random(seed)
    return [*_pairwise(rng), *_one_shot(rng)]


def _pairwise(rng: random.Random) -> Iterator[Target]:
    for suite in SUITES.values():
        for side, phases in (("server", SERVER_PHASES), ("client", CLIENT_PHASES)):
            for phase in phases:
                game, frame = _waiting(rng, suite, phase, server=side == "server")
                kind = kind_of(frame)
                tail = 4 * LENGTH if kind is MaskedInput else 0
                check: partial[Any] = partial(decode, kind=kind, suite=suite, limit=game.server._rules.limit)
                if kind in SIGNED:
                    check = partial(decode_signed, **check.keywords, tail_bytes=tail)
                body_end = len(frame) - (SIGNATURE_BYTES + tail if kind in SIGNED else 0)
                session = game.server if side == "server" else game.clients[VICTIM]
                yield Target(
                    name=f"pairwise, suite {suite.number}, {side}, {phase.value}",
                    session=session,
                    sender=VICTIM if side == "server" else None,
                    frame=frame,
                    body_end=body_end,
                    decode=check,
                    renewed=partial(
                        _renewed, kind=kind, suite=suite, rest=frame[body_end : body_end + tail], game=game
                    ),
                    snapshot=Snapshot(session),
                )


def _waiting(rng: random.Random, suite: Suite, phase: Phase, *, server: bool) -> tuple[Round, bytes]:
    """A round in which the server, or the victim, waits in a phase for one message; and that message."""
    kept: list[bytes] = []

    def network(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        stands = game.server.phase if server else game.clients[VICTIM].phase
        if (sender if server else receiver) == VICTIM and stands is phase:
            kept.append(data)
            return []
        return [data]

    vectors = random_vectors(CLIENTS, LENGTH)
    config = round_config(CLIENTS, threshold=3, length=LENGTH, suite=suite.number, round_id=rng.randbytes(32))
    game = Round(
        config,
        vectors,
        network=network,
        identities={client: Identity.generate(rand=rng.randbytes) for client in vectors},
        rand=dict.fromkeys(vectors, rng.randbytes),
    )
    game.start()
    while not kept:
        game.step()
    return game, kept[0]


def _renewed(head: bytes, *, kind: type[Message], suite: Suite, rest: bytes, game: Round) -> bytes:
    if kind in SIGNED:
        covered = head + rest
        return covered + game.identities[VICTIM].sign(signed_text(kind.__name__, sha256(covered).digest()))
    try:
        message: Any = decode(head, kind, suite=suite, limit=NO_LIMIT)
    except MalformedMessageError:
        return head
    sign = partial(_signed_bundle, identities=game.identities, roster=game.roster, suite=suite)
    if kind is AdvertiseKeys:
        message = msgspec.structs.replace(message, bundle=sign(message.bundle))
    elif kind is KeyBundles:
        message = msgspec.structs.replace(message, bundles=tuple(map(sign, message.bundles)))
    return encode(message, suite=suite)


def _signed_bundle(
    bundle: KeyBundle, *, identities: dict[ClientId, Identity], roster: Roster, suite: Suite
) -> KeyBundle:
    identity = identities.get(ClientId(bundle.client))
    if identity is None:
        return bundle
    text = signed_text("KeyBundle", bundle_digest(bundle, roster, suite))
    return msgspec.structs.replace(bundle, signature=identity.sign(text))


def _one_shot(rng: random.Random) -> Iterator[Target]:
    signed, server = SIGNATURE_BYTES, "server"
    for side, phase, party, kind in (
        (server, Phase.ADVERTISE_KEYS, MEMBER, one_shot.MemberKeys),
        (server, Phase.MASKED_INPUT, VICTIM, one_shot.Contribution),
        (server, Phase.UNMASK, MEMBER, one_shot.PartialSum),
        (server, Phase.UNMASK, MEMBER, one_shot.Complaint),
        ("client", Phase.MASKED_INPUT, VICTIM, one_shot.Committee),
        ("member", Phase.UNMASK, MEMBER, one_shot.UnmaskRequest),
        ("member", Phase.UNMASK, WITH_SEED, one_shot.UnmaskRequest),
    ):
        complaining = kind is one_shot.Complaint
        game, frame = _waiting_one_shot(rng, phase, party, server=side == server, complaining=complaining)
        rules, body_end = game.server._rules, len(frame)
        limit = rules.limits[kind]
        check: Callable[[bytes], object] = partial(one_shot.decode, kind=kind, suite=CLASSICAL, limit=limit)
        if kind is one_shot.Contribution:
            sealed, vector = rules.sealed_bytes, 4 * (LENGTH + one_shot_rules.CANARIES)
            check = partial(
                one_shot.decode_contribution, suite=CLASSICAL, limit=limit, sealed_bytes=sealed, vector_bytes=vector
            )
            body_end -= signed + sum(sealed) + vector
        elif kind in (one_shot.PartialSum, one_shot.Complaint):
            check = partial(one_shot.decode_signed, kind=kind, suite=CLASSICAL, limit=limit)
            body_end -= signed
        session = {"client": game.clients.get(party), "member": game.members.get(party), server: game.server}[side]
        assert session is not None
        yield Target(
            name=f"one_shot, {side if side == server else f'{side} {party}'}, {phase.value}, {kind.__name__}",
            session=session,
            sender=party if side == server else None,
            frame=frame,
            body_end=body_end,
            decode=check,
            renewed=partial(_renewed_one_shot, kind=kind, rest=frame[body_end + signed :], game=game, party=party),
            snapshot=Snapshot(session),
        )


def _waiting_one_shot(
    rng: random.Random, phase: Phase, party: ClientId, *, server: bool, complaining: bool
) -> tuple[one_shot_game.Game, bytes]:
    """The same for a one-shot round; phases are the server's."""
    kept: list[bytes] = []

    def network(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        if (sender if server else receiver) == party and game.server.phase is phase:
            kept.append(data)
            return []
        return [data]

    config = one_shot_game.round_config(CLIENTS, length=LENGTH, round_id=rng.randbytes(32))
    vectors = one_shot_game.random_vectors(CLIENTS, LENGTH)
    identities = {one: Identity.generate(rand=rng.randbytes) for one in sorted({*vectors, *config.committee})}
    game = one_shot_game.Game(config, vectors, network, identities)
    for session in game.sessions:
        session._rand = rng.randbytes
    if complaining:
        sealing_badly(game, party)
    game.start()
    while not kept:
        game.step()
    return game, kept[0]


def _renewed_one_shot(
    head: bytes, *, kind: type[Message], rest: bytes, game: one_shot_game.Game, party: ClientId
) -> bytes:
    def sign(signer: int, what: type[msgspec.Struct], digest: bytes) -> bytes | None:
        identity = game.identities.get(ClientId(signer))
        return identity.sign(signed_text(one_shot_rules.signature_kind(what), digest)) if identity else None

    def signed_bundle(bundle: one_shot.MemberBundle) -> one_shot.MemberBundle:
        digest = one_shot_rules.member_bundle_digest(bundle, game.roster, CLASSICAL)
        signature = sign(bundle.member, one_shot.MemberBundle, digest) or bundle.signature
        return msgspec.structs.replace(bundle, signature=signature)

    def signed_contribution(one: one_shot.SealedContribution) -> one_shot.SealedContribution:
        digest = sha256(encode(one.contribution, suite=CLASSICAL)).digest()
        signature = sign(one.contribution.sender, one_shot.Contribution, digest) or one.signature
        return msgspec.structs.replace(one, signature=signature)

    if kind in (one_shot.Contribution, one_shot.PartialSum, one_shot.Complaint):
        return head + (sign(party, kind, sha256(head).digest()) or b"") + rest
    try:
        message: Any = decode(head, kind, suite=CLASSICAL, limit=NO_LIMIT)
    except MalformedMessageError:
        return head
    if kind is one_shot.MemberKeys:
        message = msgspec.structs.replace(message, bundle=signed_bundle(message.bundle))
    elif kind is one_shot.Committee:
        message = msgspec.structs.replace(message, bundles=tuple(map(signed_bundle, message.bundles)))
    else:
        contributions = tuple(map(signed_contribution, message.contributions))
        message = msgspec.structs.replace(message, contributions=contributions)
    return encode(message, suite=CLASSICAL)
