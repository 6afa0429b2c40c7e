"""What must be refused: bad frames, messages, configurations and rounds, made from a good round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from protocols import ClientId, Phase
from protocols.primitives import keys
from protocols.roster import signed_text
from protocols.wire import (
    HEADER_BYTES,
    SERVER,
    AdvertiseKeys,
    ConsistencyCheck,
    Invitation,
    KeyBundle,
    KeyBundles,
    MaskedInput,
    Message,
    SealedShares,
    ShareKeys,
    SurvivorList,
    SurvivorSignatures,
    Unmask,
)
from tests.classical import HEADER, bundle_digest, decode, decode_signed, encode, message_limit

from .live import CLIENT_MESSAGES, Case, Script, identities_of, roster_of

LOW_ORDER_POINT = (1).to_bytes(32, "little")
NOT_CANONICAL = (2**255 - 19 + 9).to_bytes(32, "little")
VICTIM, PEER, GONE = 1, 5, 3

Change = Callable[[Any], Message | bytes]
StructT = TypeVar("StructT", bound=msgspec.Struct)


class Forger:
    """Rewrites messages of one round, with the signing keys of everybody."""

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.script = script
        self.identities = identities_of(script)
        self.roster = roster_of(script)

    def frame(self, kind: type[Message], *, sender: int = SERVER, receiver: int = SERVER) -> bytes:
        """What was sent."""
        wanted = (sender, receiver, kind.__name__)
        found = next(m for m in self.script["messages"] if (m["from"], m["to"], m["kind"]) == wanted)
        return bytes.fromhex(found["bytes"])

    def to_client(self, kind: type[Message], comment: str, error: str, change: Change) -> Case:
        """A message of the server to the victim, changed."""
        message = change(decode(self.frame(kind, receiver=VICTIM), kind, limit=10**6))
        frame = message if isinstance(message, bytes) else encode(message)
        return self.client_case(kind, comment, error, frame)

    def client_case(self, kind: type[Message], comment: str, error: str, frame: bytes, **more: Any) -> Case:
        """Any bytes in place of a message of the server to the victim."""
        return {
            "comment": comment, "round": self.name, "client": VICTIM, "message": kind.__name__,
            **more, "bytes": frame.hex(), "error": error,
        }  # fmt: skip

    def signed(self, sender: int, message: Message, tail: bytes, *, by: int | None = None) -> bytes:
        """A frame with a valid signature of its sender, or of somebody else."""
        covered = encode(message) + tail
        text = signed_text(type(message).__name__, sha256(covered).digest())
        return covered + self.identities[ClientId(by or sender)].sign(text)

    def resigned(self, kind: type[Message], change: Change, *, sender: int = PEER, by: int | None = None) -> bytes:
        """A client's message, changed and signed again."""
        frame = self.frame(kind, sender=sender)
        if kind is AdvertiseKeys:
            message = change(decode(frame, kind, limit=10**6))
            return message if isinstance(message, bytes) else encode(message)
        tail_bytes = 2 * self.script["config"]["length"] if kind is MaskedInput else 0
        opened = decode_signed(frame, kind, limit=10**6, tail_bytes=tail_bytes)
        message = change(opened.message)
        return message if isinstance(message, bytes) else self.signed(sender, message, bytes(opened.tail), by=by)

    def to_server(self, kind: type[Message], comment: str, error: str, frame: bytes, *, sender: int = PEER) -> Case:
        """A bad message of a client."""
        return {
            "comment": comment, "round": self.name, "sender": sender, "message": kind.__name__,
            "bytes": frame.hex(), "error": error,
        }  # fmt: skip

    def bundle(self, bundle: KeyBundle, *, by: int | None = None, **changes: Any) -> KeyBundle:
        """A changed key bundle, signed by its owner or somebody else."""
        changed = msgspec.structs.replace(bundle, **changes)
        text = signed_text("KeyBundle", bundle_digest(changed, self.roster))
        return msgspec.structs.replace(changed, signature=self.identities[ClientId(by or bundle.client)].sign(text))


def altered(message: StructT, **changes: object) -> StructT:
    """A struct with other fields."""
    return msgspec.structs.replace(message, **changes)


def flipped(data: bytes, place: int = -1) -> bytes:
    """One bit differs."""
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def swap(entries: tuple[Any, ...], place: int, entry: Any) -> tuple[Any, ...]:
    """One entry of a list replaced."""
    return (*entries[:place], entry, *entries[place + 1 :])


def bad_key_bundles(forger: Forger) -> Iterator[Case]:
    """What a client refuses instead of KeyBundles. Places: client i has place i - 1."""

    def case(comment: str, error: str, change: Change) -> Case:
        return forger.to_client(KeyBundles, comment, error, change)

    def peers_bundle(**changes: Any) -> Change:
        return lambda m: altered(m, bundles=swap(m.bundles, 4, forger.bundle(m.bundles[4], **changes)))

    def stranger(m: KeyBundles) -> KeyBundles:
        return altered(m, bundles=swap(m.bundles, 4, altered(m.bundles[4], client=6)))

    def six(m: KeyBundles) -> KeyBundles:
        return altered(m, bundles=(*m.bundles, altered(m.bundles[4], client=6)))

    yield case("context of another round", "InconsistentViewError", lambda m: altered(m, context=bytes(32)))
    yield case("sent by a client", "MalformedMessageError", lambda m: altered(m, sender=PEER))
    yield case("out of order", "MalformedMessageError", lambda m: altered(m, bundles=m.bundles[::-1]))
    yield case(
        "a client twice", "MalformedMessageError", lambda m: altered(m, bundles=swap(m.bundles, 4, m.bundles[3]))
    )
    yield case("more clients than the cohort", "InconsistentViewError", six)
    yield case("fewer clients than the floor", "TooFewClientsError", lambda m: altered(m, bundles=m.bundles[:2]))
    yield case("nobody", "TooFewClientsError", lambda m: altered(m, bundles=()))
    yield case("a client that is not on the roster", "InconsistentViewError", stranger)
    yield case("without the receiver", "InconsistentViewError", lambda m: altered(m, bundles=m.bundles[1:]))
    yield case(
        "the receiver's bundle with another serial, rightly signed",
        "InconsistentViewError",
        lambda m: altered(m, bundles=swap(m.bundles, 0, forger.bundle(m.bundles[0], serial=2))),
    )
    yield case(
        "the receiver's bundle with another signature",
        "InconsistentViewError",
        lambda m: altered(m, bundles=swap(m.bundles, 0, altered(m.bundles[0], signature=bytes(64)))),
    )
    yield case(
        "a peer with the receiver's mask key",
        "InconsistentViewError",
        lambda m: peers_bundle(mask_key=m.bundles[0].mask_key)(m),
    )
    yield case(
        "a peer whose two keys are one",
        "InconsistentViewError",
        lambda m: peers_bundle(mask_key=m.bundles[4].channel_key)(m),
    )
    yield case(
        "another mask key under an old signature",
        "InvalidSignatureError",
        lambda m: altered(m, bundles=swap(m.bundles, 4, altered(m.bundles[4], mask_key=bytes(32)))),
    )
    yield case("a bundle signed by another client", "InvalidSignatureError", peers_bundle(by=2))
    yield case("channel key of low order", "MalformedMessageError", peers_bundle(channel_key=LOW_ORDER_POINT))
    yield case("mask key not canonical", "MalformedMessageError", peers_bundle(mask_key=NOT_CANONICAL))
    yield case("trailing byte", "MalformedMessageError", lambda m: encode(m) + b"\x00")
    yield case(
        "the next message instead", "MalformedMessageError", lambda _: forger.frame(SealedShares, receiver=VICTIM)
    )
    yield case("larger than the limit", "MalformedMessageError", lambda m: encode(m) + bytes(message_limit(5) + 1))


def bad_sealed_shares(forger: Forger) -> Iterator[Case]:
    """What a client refuses instead of SealedShares."""

    def case(comment: str, error: str, change: Change) -> Case:
        return forger.to_client(SealedShares, comment, error, change)

    def context0(m: SealedShares) -> SealedShares:
        return altered(m, context=bytes.fromhex(forger.script["derived"]["context0"]))

    def sealing(plain: bytes) -> Change:
        key = bytes.fromhex(forger.script["keys"]["channel"][f"{PEER},{VICTIM}"])
        context = bytes.fromhex(forger.script["derived"]["context"])
        return lambda m: altered(m, sealed=swap(m.sealed, 3, keys.seal(key, plain, associated=context)))

    def reflected(m: SealedShares) -> SealedShares:
        own = decode_signed(forger.frame(ShareKeys, sender=VICTIM), ShareKeys, limit=10**6).message
        return altered(m, sealed=own.sealed)

    yield case("the context before the keys", "InconsistentViewError", context0)
    yield case("out of order", "MalformedMessageError", lambda m: altered(m, cohort=m.cohort[::-1]))
    yield case("without the receiver", "InconsistentViewError", lambda m: altered(m, cohort=m.cohort[1:]))
    yield case("a client without keys", "InconsistentViewError", lambda m: altered(m, cohort=(*m.cohort, 6)))
    yield case(
        "fewer clients than the floor",
        "TooFewClientsError",
        lambda m: altered(m, cohort=m.cohort[:2], sealed=m.sealed[:1]),
    )
    yield case("a share is missing", "InconsistentViewError", lambda m: altered(m, sealed=m.sealed[:-1]))
    yield case("a share too many", "InconsistentViewError", lambda m: altered(m, sealed=(*m.sealed, m.sealed[0])))
    yield case("swapped", "RemoteProtocolError", lambda m: altered(m, sealed=m.sealed[::-1]))
    yield case(
        "one bit of a tag", "RemoteProtocolError", lambda m: altered(m, sealed=swap(m.sealed, 0, flipped(m.sealed[0])))
    )
    yield case("the receiver's own shares, reflected", "RemoteProtocolError", reflected)
    yield case("element 65521 in a good seal", "RemoteProtocolError", sealing(b"\xf1\xff" + bytes(70)))
    yield case("a ciphertext one byte short", "MalformedMessageError", lambda m: altered(m, sealed=(m.sealed[0][:-1],)))


def bad_survivors(forger: Forger) -> Iterator[Case]:
    """What a client refuses instead of SurvivorList and SurvivorSignatures. The survivors are 1, 2, 4, 5."""

    def listed(comment: str, error: str, *survivors: int) -> Case:
        return forger.to_client(SurvivorList, comment, error, lambda m: altered(m, survivors=survivors))

    def case(comment: str, error: str, change: Change) -> Case:
        return forger.to_client(SurvivorSignatures, comment, error, change)

    def another_view(m: SurvivorSignatures) -> SurvivorSignatures:
        frame = forger.resigned(ConsistencyCheck, lambda c: altered(c, view=bytes(32)))
        return altered(m, signatures=swap(m.signatures, 2, frame[-64:]))

    yield listed("out of order", "MalformedMessageError", 1, 4, 2, 5)
    yield listed("a client twice", "MalformedMessageError", 1, 2, 2, 5)
    yield listed("client 0", "MalformedMessageError", 0, 1, 2, 5)
    yield listed("without the receiver", "InconsistentViewError", 2, 4, 5)
    yield listed("a client outside the cohort", "InconsistentViewError", 1, 2, 4, 6)
    yield listed("fewer clients than the floor", "TooFewClientsError", 1, 2)
    yield forger.to_client(
        SurvivorList, "sent by a client", "MalformedMessageError", lambda m: altered(m, sender=VICTIM)
    )
    # The signers are 1, 4, 5.
    yield case("out of order", "MalformedMessageError", lambda m: altered(m, signers=m.signers[::-1]))
    yield case("a signature is missing", "MalformedMessageError", lambda m: altered(m, signatures=m.signatures[1:]))
    yield case("a signer that did not survive", "InconsistentViewError", lambda m: altered(m, signers=(1, GONE, 5)))
    yield case(
        "fewer signers than the threshold",
        "TooFewClientsError",
        lambda m: altered(m, signers=m.signers[:2], signatures=m.signatures[:2]),
    )
    yield case("signatures change places", "InconsistentViewError", lambda m: altered(m, signatures=m.signatures[::-1]))
    yield case("a signature over another view", "InconsistentViewError", another_view)
    yield case(
        "one bit of a signature",
        "InconsistentViewError",
        lambda m: altered(m, signatures=swap(m.signatures, 0, flipped(m.signatures[0], 0))),
    )


def bad_policy(forger: Forger) -> Iterator[Case]:
    """Honest messages that a client's own memory or floors forbid. No message: the round is not even joined."""
    script = forger.script
    refused = {"error": "PolicyRefusal", "bytes": ""}
    start = {"round": forger.name, "client": VICTIM, "message": None}
    yield {
        "comment": "this round was joined",
        **start,
        "history": {"rounds": [script["config"]["round_id"]]},
        **refused,
    }
    yield {"comment": "floor of survivors", **start, "policy": {"min_survivors": 4}, **refused}
    yield {"comment": "floor of corrupt holders", **start, "policy": {"corrupt_holders": 1}, **refused}
    yield {"comment": "floor of the suite", **start, "policy": {"suite": 2}, **refused}

    def case(kind: type[Message], comment: str, history: Mapping[str, Any]) -> Case:
        frame = forger.frame(kind, receiver=VICTIM)
        return forger.client_case(kind, comment, "PolicyRefusal", frame, history=history)

    yield case(KeyBundles, "a peer's serial was seen", {"peers": {"5": 1}})
    yield case(KeyBundles, "a higher serial of a peer was seen", {"peers": {"2": 9}})
    model = script["config"]["model"]
    yield case(SurvivorList, "one client fewer than signed before", {"signed": {model: [[1, 2, 3, 4, 5]]}})
    yield case(
        SurvivorList, "two clients differ from an earlier set", {"signed": {model: [[1, 2, 4, 5], [1, 2, 3, 4]]}}
    )


def bad_to_server(forger: Forger) -> Iterator[Case]:
    """What a server rejects from client 5, without harm to the round."""

    def reject(kind: type[Message], comment: str, error: str, change: Change, **more: Any) -> Case:
        return forger.to_server(kind, comment, error, forger.resigned(kind, change, **more))

    def advertise(comment: str, error: str, **changes: Any) -> Case:
        return reject(AdvertiseKeys, comment, error, lambda m: altered(m, bundle=forger.bundle(m.bundle, **changes)))

    other = decode(forger.frame(AdvertiseKeys, sender=VICTIM), AdvertiseKeys, limit=10**6).bundle
    yield advertise("a bundle signed by another client", "InvalidSignatureError", by=2)
    yield advertise("low order", "MalformedMessageError", mask_key=LOW_ORDER_POINT)
    yield advertise("not canonical", "MalformedMessageError", channel_key=NOT_CANONICAL)
    yield advertise("a key of another client", "MalformedMessageError", mask_key=other.channel_key)
    yield reject(
        AdvertiseKeys,
        "two equal keys",
        "MalformedMessageError",
        lambda m: altered(m, bundle=forger.bundle(m.bundle, channel_key=m.bundle.mask_key)),
    )
    yield reject(AdvertiseKeys, "another client's bundle", "MalformedMessageError", lambda m: altered(m, bundle=other))
    for kind in CLIENT_MESSAGES:
        sender = 4 if kind in (ConsistencyCheck, Unmask) else PEER
        frame = forger.frame(kind, sender=sender)
        yield forger.to_server(kind, "empty", "MalformedMessageError", b"", sender=sender)
        yield forger.to_server(kind, "another suite", "MalformedMessageError", flipped(frame, 5), sender=sender)
        yield forger.to_server(kind, "last byte missing", "MalformedMessageError", frame[:-1], sender=sender)
        yield forger.to_server(kind, "signature damaged", "InvalidSignatureError", flipped(frame), sender=sender)
        yield forger.to_server(
            kind,
            "context of another round",
            "InconsistentViewError",
            forger.resigned(kind, lambda m: altered(m, context=bytes(32)), sender=sender),
            sender=sender,
        )
        yield forger.to_server(
            kind,
            "in the name of another client",
            "MalformedMessageError",
            forger.resigned(kind, lambda m: altered(m, sender=VICTIM), sender=sender),
            sender=sender,
        )
        if kind is not AdvertiseKeys:
            yield forger.to_server(
                kind,
                "signed by another client",
                "InvalidSignatureError",
                forger.resigned(kind, lambda m: m, sender=sender, by=2),
                sender=sender,
            )
        yield forger.to_server(kind, "not on the roster", "RemoteProtocolError", frame, sender=9)
    masked = forger.frame(MaskedInput, sender=PEER)
    yield reject(ShareKeys, "a share is missing", "MalformedMessageError", lambda m: altered(m, sealed=m.sealed[:-1]))
    yield reject(ShareKeys, "a share too many", "MalformedMessageError", lambda m: altered(m, sealed=m.sealed * 2))
    yield reject(MaskedInput, "another cohort", "InconsistentViewError", lambda m: altered(m, cohort=bytes(32)))
    yield forger.to_server(MaskedInput, "one bit of the vector", "InvalidSignatureError", flipped(masked, -65))
    yield forger.to_server(
        MaskedInput,
        "a signature for another kind of message",
        "InvalidSignatureError",
        masked[:-64] + forger.identities[ClientId(PEER)].sign(signed_text("Unmask", sha256(masked[:-64]).digest())),
    )
    yield reject(ConsistencyCheck, "another view", "InconsistentViewError", lambda m: altered(m, view=bytes(32)))
    yield reject(Unmask, "a share is missing", "MalformedMessageError", lambda m: altered(m, shares=m.shares[:-36]))
    yield reject(
        Unmask, "element 65521", "MalformedMessageError", lambda m: altered(m, shares=b"\xf1\xff" + m.shares[2:])
    )


def bad_rounds(forger: Forger) -> Iterator[Case]:
    """Rounds that the server must end without a sum: nobody's message is refused, but something is wrong or missing."""

    def case(comment: str, phase: Phase, error: str, replaced: list[tuple[type[Message], int, bytes | None]]) -> Case:
        return {
            "comment": comment, "round": forger.name,
            "replaced": [[kind.__name__, sender, frame and frame.hex()] for kind, sender, frame in replaced],
            "phase": phase.value, "error": error,
        }  # fmt: skip

    def lost(kind: type[Message], *senders: int) -> list[tuple[type[Message], int, bytes | None]]:
        return [(kind, sender, None) for sender in senders]

    too_few = "TooFewClientsError"
    yield case("two bundles", Phase.ADVERTISE_KEYS, too_few, lost(AdvertiseKeys, 1, 2, 3))
    yield case("two clients share keys", Phase.SHARE_KEYS, too_few, lost(ShareKeys, 1, 2, 3))
    yield case("two vectors", Phase.MASKED_INPUT, too_few, lost(MaskedInput, 1, 2))
    yield case("two signatures", Phase.CONSISTENCY_CHECK, too_few, lost(ConsistencyCheck, 4))
    yield case("two answers", Phase.UNMASK, too_few, lost(Unmask, 5))

    # The lowest bits of a mask key do not matter: X25519 clears them. So the lie about one is in its second digit.
    def lie(start: int) -> bytes:
        def change(m: Unmask) -> Unmask:
            return altered(m, shares=m.shares[:start] + bytes((m.shares[start] ^ 1,)) + m.shares[start + 1 :])

        return forger.resigned(Unmask, change)

    yield case("a wrong share of client 1's self seed", Phase.UNMASK, "RemoteProtocolError", [(Unmask, PEER, lie(0))])
    yield case("a wrong share of client 3's mask key", Phase.UNMASK, "RemoteProtocolError", [(Unmask, PEER, lie(74))])
    commitment = forger.resigned(ShareKeys, lambda m: altered(m, seed_commitment=bytes(32)))
    yield case("another commitment", Phase.UNMASK, "RemoteProtocolError", [(ShareKeys, PEER, commitment)])


def bad_configs(forger: Forger) -> Iterator[Case]:
    """Configurations and rosters that nobody may use; `config` and `identities` replace those of the round."""
    complete: list[tuple[str, dict[str, Any]]] = [
        ("round id of 31 bytes", {"round_id": "00" * 31}),
        ("one client", {"cohort": 1, "degree": 0, "threshold": 1, "min_survivors": 1}),
        ("more clients than the roster", {"cohort": 7, "degree": 6, "threshold": 4, "min_survivors": 4}),
        ("odd degree below the complete graph", {"degree": 3}),
        ("degree of the cohort", {"degree": 5}),
        ("two quorums fit", {"threshold": 2}),
        ("threshold above the holders", {"threshold": 6, "min_survivors": 6}),
        ("floor below the threshold", {"threshold": 4, "min_survivors": 3}),
        ("floor above the cohort", {"min_survivors": 6}),
        ("corrupt holders raise the threshold", {"corrupt_holders": 1, "threshold": 3}),
        ("all holders corrupt", {"corrupt_holders": 5, "threshold": 5, "min_survivors": 5}),
        ("a ring with the floor at its holders", {"degree": 2, "corrupt_holders": 1, "min_survivors": 3}),
        ("a ring without corrupt holders", {"degree": 2, "corrupt_holders": 0, "min_survivors": 4}),
        ("no coordinates", {"length": 0}),
        ("too many coordinates", {"length": 2**31 + 1}),
        ("a lane width that does not exist", {"modulus_bits": 24}),
        ("another number of removable components", {"removable": 1}),
        ("removable components on a ring", {"degree": 2, "corrupt_holders": 1, "min_survivors": 4, "removable": 1}),
    ]
    for comment, changes in complete:
        yield {"comment": comment, "round": forger.name, "config": changes, "error": "ValueError"}
    key = forger.script["identities"]["1"]
    for comment, identities in (
        ("one identity for two clients", {**forger.script["identities"], "6": key}),
        ("client 0", {**forger.script["identities"], "0": "55" * 32}),
        ("client 2^31", {**forger.script["identities"], str(2**31): "55" * 32}),
        ("a roster of one", {"1": key}),
    ):
        yield {"comment": comment, "round": forger.name, "identities": identities, "error": "ValueError"}


def bad_encodings() -> Iterator[Case]:
    """Frames that no decoder takes, by what they should be."""
    context = bytes(range(32))
    bound = b"\xc4\x20" + context

    def case(comment: str, kind: type[Message], body: bytes, header: bytes = HEADER) -> Case:
        return {
            "comment": comment, "message": kind.__name__, "bytes": (header + body).hex(),
            "error": "MalformedMessageError",
        }  # fmt: skip

    for comment, ids in {
        "id 0": "00", "id -1": "ff", "id 2^31": "ce80000000", "id 2^32": "cf0000000100000000", "nil": "c0",
        "true": "c3", "float 1.0": "ca3f800000", "text": "a131", "nested": "9101", "bytes": "c40101",
        "1 as uint8": "cc01", "1 as uint16": "cd0001", "1 as uint32": "ce00000001", "1 as int8": "d001",
        "1 as int64": "d30000000000000001", "extension": "d6ff00000000", "never used": "c1",
    }.items():  # fmt: skip
        yield case(f"survivors: {comment}", SurvivorList, b"\x94\x06" + bound + b"\x00\x91" + bytes.fromhex(ids))
    good = b"\x94\x06" + bound + b"\x00\x91\x01"
    yield case("no body", SurvivorList, b"")
    yield case("an empty array", SurvivorList, b"\x90")
    yield case("a missing field", SurvivorList, b"\x93" + good[1:-2])
    yield case("a field too many", SurvivorList, b"\x95" + good[1:] + b"\x00")
    yield case("array16 for four", SurvivorList, b"\xdc\x00\x04" + good[1:])
    yield case("array16 for one", SurvivorList, good[:-2] + b"\xdc\x00\x01\x01")
    yield case("array of 2^32 - 1 announced", SurvivorList, good[:-2] + b"\xdd\xff\xff\xff\xff")
    yield case("a map", SurvivorList, good[:-2] + b"\x81\x01\x01")
    yield case("context as bin16", SurvivorList, b"\x94\x06\xc5\x00\x20" + context + good[36:])
    yield case("context as text", SurvivorList, b"\x94\x06\xd9\x20" + b"a" * 32 + good[36:])
    yield case("context of 31 bytes", SurvivorList, b"\x94\x06\xc4\x1f" + context[1:] + good[36:])
    yield case("context of 33 bytes", SurvivorList, b"\x94\x06\xc4\x21\x00" + context + good[36:])
    yield case("sender 2^31", SurvivorList, b"\x94\x06" + bound + b"\xce\x80\x00\x00\x00\x91\x01")
    yield case("another tag", SurvivorList, good[:1] + b"\x05" + good[2:])
    yield case("the tag in two bytes", SurvivorList, good[:1] + b"\xcc\x06" + good[2:])
    yield case("the tag as text", SurvivorList, good[:1] + b"\xa16" + good[2:])
    yield case("trailing byte", SurvivorList, good + b"\xc0")
    yield case("another magic", SurvivorList, good, b"SAGH\x01\x01")
    yield case("version 2", SurvivorList, good, b"SAGG\x02\x01")
    yield case("suite 0", SurvivorList, good, b"SAGG\x01\x00")
    key = bytes(32)
    for comment, changes in {
        "serial 0": {"serial": 0}, "serial 2^62": {"serial": 2**62}, "client 0": {"client": 0},
        "a key of 31 bytes": {"mask_key": bytes(31)}, "a signature of 65 bytes": {"signature": bytes(65)},
    }.items():  # fmt: skip
        bundle = KeyBundle(client=1, serial=1, fresh=key, channel_key=key, mask_key=key, signature=bytes(64))
        frame = encode(AdvertiseKeys(context=context, sender=1, bundle=msgspec.structs.replace(bundle, **changes)))  # type: ignore[arg-type]
        yield case(f"bundle: {comment}", AdvertiseKeys, frame[HEADER_BYTES:])
    yield case("round id of 31 bytes", Invitation, b"\x95\x00" + bound + b"\x00\xc4\x1f" + bytes(31) + bound)
    yield case(
        "a sealed share of 87 bytes", SealedShares, b"\x95\x04" + bound + b"\x00\x91\x01\x91\xc4\x57" + bytes(87)
    )
    short = b"\x91\xc4\x3f" + bytes(63)
    yield case("a signature of 63 bytes", SurvivorSignatures, b"\x95\x08" + bound + b"\x00\x91\x01" + short)
