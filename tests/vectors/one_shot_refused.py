"""What must be refused in one-shot rounds, or answered with a complaint; made from one good round of suite 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from protocols import ClientId, Identity, Phase, Roster
from protocols.one_shot.rules import member_bundle_digest, signature_kind
from protocols.one_shot.wire import (
    Accusation,
    Committee,
    Complaint,
    Contribution,
    MemberBundle,
    MemberKeys,
    PartialSum,
    SealedContribution,
    UnmaskRequest,
    decode,
    decode_signed,
)
from protocols.primitives.keys import CLASSICAL
from protocols.roster import signed_text
from protocols.wire import SERVER, Message, encode

from .live import Case, Script
from .refused import LOW_ORDER_POINT, NOT_CANONICAL, altered, flipped, swap

CLIENT, MEMBER, OTHER = 1, 101, 102
NO_LIMIT = 10**6
OPEN_BYTES = 4 * (5 + 64) + 2 * 48 + 4128  # behind the signature of a contribution: three shares, the words


@dataclass
class Forger:
    """Rewrites messages of one round, with the signing keys of everybody."""

    name: str
    script: Script
    identities: Mapping[ClientId, Identity]
    roster: Roster

    def frame(self, kind: type[Message], *, sender: int = SERVER, receiver: int = SERVER) -> bytes:
        """What was sent."""
        wanted = (sender, receiver, kind.__name__)
        found = next(m for m in self.script["messages"] if (m["from"], m["to"], m["kind"]) == wanted)
        return bytes.fromhex(found["bytes"])

    @property
    def committee(self) -> Committee:
        """What client 1 was shown."""
        return decode(self.frame(Committee, receiver=CLIENT), Committee, suite=CLASSICAL, limit=NO_LIMIT)

    @property
    def request(self) -> UnmaskRequest:
        """What member 101 was asked."""
        return decode(self.frame(UnmaskRequest, receiver=MEMBER), UnmaskRequest, suite=CLASSICAL, limit=NO_LIMIT)

    def signature(self, signer: int, kind: type[msgspec.Struct], covered: bytes) -> bytes:
        """Somebody's signature on a header and body."""
        text = signed_text(signature_kind(kind), sha256(covered).digest())
        return self.identities[ClientId(signer)].sign(text)

    def signed(self, message: Message, *, by: int | None = None) -> bytes:
        """A frame with a valid signature of its sender, or of somebody else."""
        covered = encode(message, suite=CLASSICAL)
        return covered + self.signature(by or message.sender, type(message), covered)

    def bundle(self, bundle: MemberBundle, *, by: int | None = None, **changes: Any) -> MemberBundle:
        """A changed bundle, signed by its member or somebody else."""
        changed = altered(bundle, **changes)
        text = signed_text(signature_kind(MemberBundle), member_bundle_digest(changed, self.roster, CLASSICAL))
        return altered(changed, signature=self.identities[ClientId(by or bundle.member)].sign(text))

    def resigned(self, one: SealedContribution, *, by: int | None = None, **changes: Any) -> SealedContribution:
        """A contribution as its client could have signed it; with another share, its digest too."""
        share = changes.pop("share", one.share)
        if share != one.share:
            changes["sealed"] = swap(one.contribution.sealed, 0, sha256(share).digest())
        contribution = altered(one.contribution, **changes)
        covered = encode(contribution, suite=CLASSICAL)
        signature = self.signature(by or contribution.sender, Contribution, covered)
        return SealedContribution(contribution=contribution, signature=signature, share=share)

    def contribution(self, *, by: int | None = None, **changes: Any) -> bytes:
        """Client 1's contribution, changed and signed again; its shares and words are as they were."""
        frame = self.frame(Contribution, sender=CLIENT)
        opened = decode_signed(frame[:-OPEN_BYTES], Contribution, suite=CLASSICAL, limit=NO_LIMIT)
        return self.signed(altered(opened.message, **changes), by=by or CLIENT) + frame[-OPEN_BYTES:]

    def answer(self) -> PartialSum:
        """What member 101 answered."""
        return decode_signed(self.frame(PartialSum, sender=MEMBER), PartialSum, suite=CLASSICAL, limit=NO_LIMIT).message

    def complaint(self, *clients: int, **changes: Any) -> Complaint:
        """Member 101 about these survivors."""
        digests = {
            one.contribution.sender: sha256(encode(one.contribution, suite=CLASSICAL)).digest()
            for one in self.request.contributions
        }
        accused = tuple(Accusation(client=client, contribution=digests.get(client, bytes(32))) for client in clients)
        answer = self.answer()
        whole = Complaint(context=answer.context, sender=MEMBER, view=answer.view, accused=accused)
        return altered(whole, **changes)


def bad_configs(forger: Forger) -> Iterator[Case]:
    """Configurations that nobody may use; `config` replaces those of the round."""
    for comment, changes in (
        ("round id of 31 bytes", {"round_id": "00" * 31}),
        ("one client", {"cohort": 1}),
        ("more clients than the roster", {"cohort": 7}),
        ("two members", {"committee": [101, 102]}),
        ("members out of order", {"committee": [102, 101, 103]}),
        ("a member twice", {"committee": [101, 101, 103]}),
        ("a member that is not on the roster", {"committee": [101, 102, 104]}),
        ("two views fit", {"threshold": 2}),
        ("threshold above the members", {"threshold": 4}),
        ("all members corrupt", {"corrupt_holders": 3}),
        ("a floor of one client", {"min_survivors": 1}),
        ("a floor above the cohort", {"min_survivors": 4}),
        ("a floor that one honest client and corrupt members reach", {"corrupt_holders": 1, "min_survivors": 2}),
        ("no coordinates", {"length": 0}),
        ("too many coordinates", {"length": 2**31 + 1}),
        ("no bits", {"modulus_bits": 0}),
        ("no room for the errors", {"modulus_bits": 25}),
        ("a suite that does not exist", {"suite": 3}),
    ):
        yield {"comment": comment, "round": forger.name, "config": changes, "error": "ValueError"}


def bad_encodings(forger: Forger) -> Iterator[Case]:
    """Frames that no decoder takes, by what they should be."""
    keys_of, shown, request = forger.frame(MemberKeys, sender=MEMBER), forger.committee, forger.request
    first = request.contributions[0]

    def case(kind: type[Message], comment: str, frame: bytes | Message) -> Case:
        data = frame if isinstance(frame, bytes) else encode(frame, suite=CLASSICAL)
        return {"comment": comment, "message": kind.__name__, "bytes": data.hex(), "error": "MalformedMessageError"}

    def bundles(**changes: Any) -> Committee:
        return altered(shown, bundles=(altered(shown.bundles[0], **changes),))

    def asked(**changes: Any) -> UnmaskRequest:
        return altered(request, contributions=(altered(first, **changes),))

    yield case(MemberKeys, "nothing", b"")
    yield case(MemberKeys, "a trailing byte", keys_of + b"\x00")
    yield case(MemberKeys, "another tag", keys_of[:7] + b"\x11" + keys_of[8:])
    yield case(MemberKeys, "suite 2", keys_of[:5] + b"\x02" + keys_of[6:])
    yield case(Committee, "serial 0", bundles(serial=0))
    yield case(Committee, "serial 2^62", bundles(serial=2**62))
    yield case(Committee, "member 0", bundles(member=0))
    yield case(Committee, "member 2^31", bundles(member=2**31))
    yield case(Committee, "a key of 31 bytes", bundles(key=bytes(31)))
    yield case(Committee, "a key of suite 2", bundles(key=bytes(1216)))
    yield case(Committee, "a signature of 63 bytes", bundles(signature=bytes(63)))
    yield case(UnmaskRequest, "a share of 47 bytes", asked(share=bytes(47)))
    yield case(UnmaskRequest, "a share of 49 bytes", asked(share=bytes(49)))
    yield case(UnmaskRequest, "a share of suite 2", asked(share=bytes(48 + 1088)))
    yield case(
        UnmaskRequest,
        "an ephemeral key of suite 2",
        asked(contribution=altered(first.contribution, ephemeral_key=bytes(1216))),
    )
    yield case(UnmaskRequest, "a digest of 31 bytes", asked(contribution=altered(first.contribution, vector=bytes(31))))
    yield case(UnmaskRequest, "sealed is one digest", asked(contribution=altered(first.contribution, sealed=bytes(32))))
    yield case(PartialSum, "a share of 4095 bytes", altered(forger.answer(), share=bytes(4095)))
    yield case(PartialSum, "two bundles", altered(forger.answer(), next_bundle=shown.bundles[:2]))
    yield case(Complaint, "about nobody", forger.complaint())
    yield case(Complaint, "about client 0", forger.complaint(0))


def client_case(forger: Forger, comment: str, error: str, frame: bytes, **more: Any) -> Case:
    """Any bytes in place of what client 1 was shown."""
    return {
        "comment": comment, "round": forger.name, "client": CLIENT, "message": "Committee", **more,
        "bytes": frame.hex(), "error": error,
    }  # fmt: skip


def bad_committees(forger: Forger) -> Iterator[Case]:
    """What a client refuses instead of Committee."""
    shown = forger.committee
    one, two, three = shown.bundles

    def case(comment: str, error: str, **changes: Any) -> Case:
        return client_case(forger, comment, error, encode(altered(shown, **changes), suite=CLASSICAL))

    def first(comment: str, error: str, bundle: MemberBundle) -> Case:
        return case(comment, error, bundles=(bundle, two, three))

    yield case("context of another round", "InconsistentViewError", context=bytes(32))
    yield case("sent by a client", "MalformedMessageError", sender=2)
    yield case("out of order", "MalformedMessageError", bundles=(two, one, three))
    yield case("a member twice", "MalformedMessageError", bundles=(one, one, two, three))
    yield case(
        "a client among them", "InconsistentViewError", bundles=(forger.bundle(one, by=3, member=3), one, two, three)
    )
    yield first("two members with one key", "InconsistentViewError", forger.bundle(one, key=two.key))
    yield case("fewer than the threshold", "TooFewClientsError", bundles=(one, two))
    yield case("nobody", "TooFewClientsError", bundles=())
    yield first("another key under an old signature", "InvalidSignatureError", altered(one, key=bytes(range(32))))
    yield first("signed by another member", "InvalidSignatureError", forger.bundle(one, by=OTHER))
    yield first("a key of low order", "MalformedMessageError", forger.bundle(one, key=LOW_ORDER_POINT))
    yield first("a key that is not canonical", "MalformedMessageError", forger.bundle(one, key=NOT_CANONICAL))
    frame = encode(shown, suite=CLASSICAL)
    yield client_case(forger, "larger than the limit", "MalformedMessageError", frame + bytes(1024))
    yield client_case(
        forger, "what members are asked", "MalformedMessageError", forger.frame(UnmaskRequest, receiver=MEMBER)
    )


def bad_policy(forger: Forger) -> Iterator[Case]:
    """Honest messages that a client's own memory or floors forbid. No message: the round is not even joined."""
    start = {"round": forger.name, "client": CLIENT, "message": None, "bytes": "", "error": "PolicyRefusal"}
    yield {"comment": "this round was joined", **start, "history": {"rounds": [forger.script["config"]["round_id"]]}}
    yield {"comment": "floor of survivors", **start, "policy": {"min_survivors": 3}}
    yield {"comment": "floor of corrupt holders", **start, "policy": {"corrupt_holders": 1}}
    yield {"comment": "floor of the suite", **start, "policy": {"suite": forger.script["config"]["suite"] + 1}}
    yield {"comment": "another committee is pinned", **start, "policy": {"committee": "11" * 32}}
    yield {"comment": "no committee is pinned", **start, "policy": {"committee": None}}
    frame = forger.frame(Committee, receiver=CLIENT)
    for comment, peers in (("a member's serial was seen", {"103": 1}), ("a higher one was seen", {"101": 9})):
        yield client_case(forger, comment, "PolicyRefusal", frame, history={"peers": peers})


def member_case(forger: Forger, comment: str, request: UnmaskRequest | bytes, **more: Any) -> Case:
    """Any bytes in place of what member 101 was asked."""
    frame = request if isinstance(request, bytes) else encode(request, suite=CLASSICAL)
    return {"comment": comment, "round": forger.name, "member": MEMBER, **more, "bytes": frame.hex()}


def bad_requests(forger: Forger) -> Iterator[Case]:
    """What a member refuses instead of UnmaskRequest."""
    request = forger.request
    own, two, three = request.bundles
    first, second = request.contributions

    def case(comment: str, error: str, **changes: Any) -> Case:
        return {**member_case(forger, comment, altered(request, **changes)), "error": error}

    def listed(comment: str, error: str, *contributions: SealedContribution) -> Case:
        return case(comment, error, contributions=contributions)

    yield case("context of another round", "InconsistentViewError", context=bytes(32))
    yield case("sent by a client", "MalformedMessageError", sender=CLIENT)
    yield case("without its own bundle", "TooFewClientsError", bundles=(two, three))
    yield case(
        "its own bundle with other fresh bytes, rightly signed",
        "InconsistentViewError",
        bundles=(forger.bundle(own, fresh=bytes(32)), two, three),
    )
    yield case(
        "a colleague's bundle with other fresh bytes: another context",
        "InconsistentViewError",
        bundles=(own, forger.bundle(two, fresh=bytes(32)), three),
    )
    yield listed("out of order", "MalformedMessageError", second, first)
    yield listed("a client twice", "MalformedMessageError", first, first)
    yield listed("fewer clients than the floor", "TooFewClientsError", first)
    yield listed("nobody", "TooFewClientsError")
    more = [forger.resigned(first, sender=i, ephemeral_key=bytes((i,)) * 32, vector=bytes((i,)) * 32) for i in (3, 101)]
    yield listed("more clients than the cohort", "InconsistentViewError", first, second, *more)
    for name in ("ephemeral_key", "vector"):
        copied = forger.resigned(second, **{name: getattr(first.contribution, name)})
        yield listed(f"two contributions with one {name}", "InconsistentViewError", first, copied)
    yield listed(
        "a contribution to another round", "InconsistentViewError", first, forger.resigned(second, context=bytes(32))
    )
    yield listed("signed by somebody else", "InvalidSignatureError", first, forger.resigned(second, by=3))
    yield listed(
        "a client that is not on the roster", "InvalidSignatureError", first, forger.resigned(second, by=2, sender=9)
    )
    yield listed(
        "a digest too few",
        "MalformedMessageError",
        first,
        forger.resigned(second, sealed=second.contribution.sealed[:2]),
    )
    yield listed("a proof one byte short", "MalformedMessageError", first, forger.resigned(second, proof=bytes(47)))
    yield listed(
        "a proof outside the field",
        "MalformedMessageError",
        first,
        forger.resigned(second, proof=b"\xf1\xff" + bytes(46)),
    )
    yield listed("another share than was signed", "InconsistentViewError", first, altered(second, share=first.share))
    for comment, sets in (("one client fewer than before", [[1, 2, 3]]), ("one more than before", [[1]])):
        history = {"signed": {forger.script["config"]["model"]: sets}}
        yield {**member_case(forger, comment, request, history=history), "error": "PolicyRefusal"}
    yield {
        **member_case(forger, "a trailing byte", encode(request, suite=CLASSICAL) + b"\x00"),
        "error": "MalformedMessageError",
    }


def complaints(forger: Forger) -> Iterator[Case]:
    """Requests with contributions that brought bad shares, and the member's answer."""
    request = forger.request
    first, second = request.contributions

    def case(comment: str, *contributions: SealedContribution) -> Case:
        digest = {
            one.contribution.sender: sha256(encode(one.contribution, suite=CLASSICAL)).digest() for one in contributions
        }
        accused = [one.contribution.sender for one in contributions if one not in request.contributions]
        named = tuple(Accusation(client=client, contribution=digest[client]) for client in accused)
        answer = forger.signed(forger.complaint(accused=named))
        return {
            **member_case(forger, comment, altered(request, contributions=contributions)),
            "accused": accused, "answer": answer.hex(),
        }  # fmt: skip

    yield case("zeros", first, forger.resigned(second, share=bytes(48)))
    yield case("one bit of a share", forger.resigned(first, share=flipped(first.share)), second)
    yield case("both clients", forger.resigned(first, share=bytes(48)), forger.resigned(second, share=bytes(48)))
    yield case("client 1's share, signed by client 2", first, forger.resigned(second, share=first.share))
    yield case("another vector", first, forger.resigned(second, vector=bytes(32)))
    yield case("another ephemeral key", first, forger.resigned(second, ephemeral_key=bytes(range(32))))
    yield case("an ephemeral key of low order", first, forger.resigned(second, ephemeral_key=LOW_ORDER_POINT))
    yield case("another proof", first, forger.resigned(second, proof=flipped(second.contribution.proof, 0)))
    others = swap(second.contribution.sealed, 2, bytes(32))
    yield case("a proof for other shares of other members", first, forger.resigned(second, sealed=others))


def bad_to_server(forger: Forger) -> Iterator[Case]:
    """What a server rejects, without harm to the round: keys and answers of member 101, a vector of client 1."""
    own, other = forger.committee.bundles[:2]
    start = decode(forger.frame(MemberKeys, sender=MEMBER), MemberKeys, suite=CLASSICAL, limit=NO_LIMIT)
    answer = forger.answer()
    sender_of = {MemberKeys: MEMBER, Contribution: CLIENT, PartialSum: MEMBER}

    def case(kind: type[Message], comment: str, error: str, frame: bytes, sender: int | None = None) -> Case:
        return {
            "comment": comment, "round": forger.name, "sender": sender or sender_of[kind], "message": kind.__name__,
            "bytes": frame.hex(), "error": error,
        }  # fmt: skip

    def advertise(comment: str, error: str, bundle: MemberBundle, **changes: Any) -> Case:
        return case(MemberKeys, comment, error, encode(altered(start, bundle=bundle, **changes), suite=CLASSICAL))

    yield advertise("another member's bundle", "MalformedMessageError", other)
    yield advertise("signed by another member", "InvalidSignatureError", forger.bundle(own, by=OTHER))
    yield advertise("low order", "MalformedMessageError", forger.bundle(own, key=LOW_ORDER_POINT))
    yield advertise("not canonical", "MalformedMessageError", forger.bundle(own, key=NOT_CANONICAL))
    yield advertise("another member's key", "RemoteProtocolError", forger.bundle(own, key=other.key))
    yield advertise("context of another round", "InconsistentViewError", own, context=bytes(32))
    yield advertise("in the name of another member", "MalformedMessageError", own, sender=OTHER)
    for kind, sender in sender_of.items():
        frame = forger.frame(kind, sender=sender)
        yield case(kind, "empty", "MalformedMessageError", b"")
        yield case(kind, "another suite", "MalformedMessageError", flipped(frame, 5))
        yield case(kind, "not expected", "RemoteProtocolError", frame if kind is MemberKeys else b"", 9)
    frame = forger.frame(Contribution, sender=CLIENT)
    yield case(Contribution, "one bit of the words", "MalformedMessageError", flipped(frame))
    yield case(Contribution, "one bit of a share", "MalformedMessageError", flipped(frame, -OPEN_BYTES))
    yield case(Contribution, "one bit of the signature", "InvalidSignatureError", flipped(frame, -OPEN_BYTES - 1))
    yield case(Contribution, "signed by another client", "InvalidSignatureError", forger.contribution(by=2))
    yield case(
        Contribution, "context of another round", "InconsistentViewError", forger.contribution(context=bytes(32))
    )
    yield case(Contribution, "a proof one byte short", "MalformedMessageError", forger.contribution(proof=bytes(47)))
    yield case(Contribution, "low order", "MalformedMessageError", forger.contribution(ephemeral_key=LOW_ORDER_POINT))

    def said(comment: str, error: str, message: Message, *, by: int = MEMBER) -> Case:
        return case(PartialSum, comment, error, forger.signed(message, by=by))

    yield said("other survivors", "InconsistentViewError", altered(answer, view=bytes(32)))
    yield said("element 65521", "MalformedMessageError", altered(answer, share=b"\xf1\xff" + answer.share[2:]))
    yield said("signed by another member", "InvalidSignatureError", answer, by=OTHER)
    yield said("context of another round", "InconsistentViewError", altered(answer, context=bytes(32)))
    yield said(
        "a bundle of this round again",
        "RemoteProtocolError",
        altered(answer, next_bundle=(forger.bundle(own, serial=1),)),
    )
    yield said(
        "a bundle of another member",
        "MalformedMessageError",
        altered(answer, next_bundle=(forger.bundle(other, serial=2),)),
    )
    yield said("a complaint about a stranger", "InconsistentViewError", forger.complaint(3))
    yield said("a complaint out of order", "MalformedMessageError", forger.complaint(2, 1))
    yield said("a complaint for other survivors", "InconsistentViewError", forger.complaint(1, view=bytes(32)))


def bad_rounds(forger: Forger) -> Iterator[Case]:
    """Rounds that the server must end without a sum: nobody's message is refused, but something is wrong or missing."""
    answer = forger.answer()

    def case(comment: str, phase: Phase, error: str, *replaced: tuple[type[Message], int, bytes | None]) -> Case:
        return {
            "comment": comment, "round": forger.name,
            "replaced": [[kind.__name__, sender, frame and frame.hex()] for kind, sender, frame in replaced],
            "phase": phase.value, "error": error,
        }  # fmt: skip

    moved = (int.from_bytes(answer.share[:2], "little") + 1000) % 65521
    lie = altered(answer, share=moved.to_bytes(2, "little") + answer.share[2:])
    yield case("two members", Phase.ADVERTISE_KEYS, "TooFewClientsError", (MemberKeys, MEMBER, None))
    yield case("one client", Phase.MASKED_INPUT, "TooFewClientsError", (Contribution, CLIENT, None))
    yield case("two answers", Phase.UNMASK, "TooFewClientsError", (PartialSum, MEMBER, None))
    yield case("an answer moved", Phase.UNMASK, "RemoteProtocolError", (PartialSum, MEMBER, forger.signed(lie)))
    yield {
        **case(
            "a complaint", Phase.UNMASK, "BadShareError", (PartialSum, MEMBER, forger.signed(forger.complaint(1, 2)))
        ),
        "pairs": [[1, MEMBER], [2, MEMBER]],
    }
