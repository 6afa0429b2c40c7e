"""Every message of the `one_shot` protocol, as bytes.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.

The rules are those of `protocols.wire`, with one exception. A contribution's sealed key shares and vector follow its
signature, which covers each of them by a digest: so a committee member verifies a contribution, and the share that it
got with it, without the vector and without the others' shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Annotated

import msgspec

from .. import wire
from ..errors import ClientId, MalformedMessageError
from ..primitives import key_shares, share_proof
from ..primitives.keys import CLASSICAL, HYBRID, SEAL_OVERHEAD_BYTES, SIGNATURE_BYTES, Suite
from ..primitives.prg import SEED_BYTES
from ..wire import (
    FIXED_BYTES,
    FRESH_BYTES,
    Digest,
    Id,
    Message,
    MessageT,
    PublicKey,
    Serial,
    Signature,
    SignedFrame,
)

SEALED_BYTES = frozenset((key_shares.SHARE_BYTES, SEED_BYTES))  # what is sealed
BYTES_PER_BUNDLE = 160  # no message spends more on one bundle than this and a public key
BYTES_PER_CONTRIBUTION = 256  # nor more than this, digests, proof and share aside, on one contribution
BYTES_PER_DIGEST = 34
BYTES_PER_ACCUSATION = 48

SealedShare = Annotated[
    bytes,
    msgspec.Meta(
        min_length=SEED_BYTES + SEAL_OVERHEAD_BYTES,
        max_length=key_shares.SHARE_BYTES + SEAL_OVERHEAD_BYTES + HYBRID.ciphertext_bytes,
    ),
]
EphemeralKey = Annotated[
    bytes, msgspec.Meta(min_length=CLASSICAL.public_key_bytes, max_length=CLASSICAL.public_key_bytes)
]
KeyShareSum = Annotated[bytes, msgspec.Meta(min_length=key_shares.SUM_BYTES, max_length=key_shares.SUM_BYTES)]


class MemberBundle(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """A committee member's public key for one round; the signature covers the rest and the roster."""

    member: Id
    serial: Serial
    fresh: Annotated[bytes, msgspec.Meta(min_length=FRESH_BYTES, max_length=FRESH_BYTES)]
    key: PublicKey
    signature: Signature


class MemberKeys(Message, frozen=True, kw_only=True, tag=16):
    """Member: my key. Its signature is the bundle's."""

    bundle: MemberBundle


class Committee(Message, frozen=True, kw_only=True, tag=17):
    """Server: the keys of the members that are there, in increasing order. Clients contribute now."""

    bundles: tuple[MemberBundle, ...]


class Contribution(Message, frozen=True, kw_only=True, tag=18):
    """Client: the digests of my masked vector and of each sealed share of its key; a proof that the shares fit."""

    ephemeral_key: EphemeralKey
    vector: Digest
    sealed: tuple[Digest, ...]
    proof: bytes


class SealedContribution(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What a member gets to see of a contribution: what its client signed, and the share sealed to this member."""

    contribution: Contribution
    signature: Signature
    share: SealedShare


class UnmaskRequest(Message, frozen=True, kw_only=True, tag=19):
    """Server: the keys that clients were shown, and the contributions to sum up, in increasing order of clients."""

    bundles: tuple[MemberBundle, ...]
    contributions: tuple[SealedContribution, ...]


class PartialSum(Message, frozen=True, kw_only=True, tag=20):
    """Member: the digest of round and survivors, and the sum of the shares that these sealed to me.

    With it may come the member's bundle for a later round.
    """

    view: Digest
    share: KeyShareSum
    next_bundle: Annotated[tuple[MemberBundle, ...], msgspec.Meta(max_length=1)] = ()


class Accusation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """The client, and the digest of what it signed: with the share that it names, that is the evidence."""

    client: Id
    contribution: Digest


class Complaint(Message, frozen=True, kw_only=True, tag=21):
    """Member, instead of a partial sum: these contributions brought shares that do not open, or do not fit."""

    view: Digest
    accused: Annotated[tuple[Accusation, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionFrame:
    """A decoded contribution whose signature is not verified yet; shares and vector have the digests it names.

    Attributes:
        message: what the signature covers.
        digest: SHA-256 of it, as received.
        signature: 64 bytes.
        sealed: one sealed key share for each member that is there.
        vector: the raw bytes of the masked vector.
    """

    message: Contribution
    digest: bytes
    signature: bytes
    sealed: tuple[bytes, ...]
    vector: memoryview


def sealed_bytes(share_bytes: int, suite: Suite) -> int:
    """The size of a share of that size once it is sealed, KEM ciphertext included."""
    return suite.ciphertext_bytes + share_bytes + SEAL_OVERHEAD_BYTES


def limits(*, cohort: int, committee: int, threshold: int, suite: Suite) -> dict[type[Message], int]:
    """The largest size in bytes of each message's header and body: nobody reads more than its role needs."""
    bundle = BYTES_PER_BUNDLE + suite.public_key_bytes
    contribution = BYTES_PER_CONTRIBUTION
    contribution += BYTES_PER_DIGEST * committee + share_proof.proof_bytes(threshold)
    share = sealed_bytes(key_shares.SHARE_BYTES, suite)
    return {
        MemberKeys: FIXED_BYTES + bundle,
        Committee: FIXED_BYTES + bundle * committee,
        Contribution: FIXED_BYTES + contribution,
        UnmaskRequest: FIXED_BYTES + bundle * committee + (contribution + share) * cohort,
        PartialSum: FIXED_BYTES + key_shares.SUM_BYTES + bundle,
        Complaint: FIXED_BYTES + BYTES_PER_ACCUSATION * cohort,
    }


def decode(data: bytes | memoryview, kind: type[MessageT], *, suite: Suite, limit: int) -> MessageT:
    """As `protocols.wire.decode`; keys and sealed shares have the sizes of the suite too."""
    message = wire.decode(data, kind, suite=suite, limit=limit)
    _check_sizes(message, suite)
    return message


def decode_signed(data: bytes | memoryview, kind: type[MessageT], *, suite: Suite, limit: int) -> SignedFrame[MessageT]:
    """As `protocols.wire.decode_signed`; keys have the size of the suite too."""
    frame = wire.decode_signed(bytes(data), kind, suite=suite, limit=limit)
    _check_sizes(frame.message, suite)
    return frame


def sealed_digests(sealed: Sequence[bytes]) -> tuple[bytes, ...]:
    """SHA-256 of each sealed share."""
    return tuple(sha256(one).digest() for one in sealed)


def says(data: bytes, kind: type[Message]) -> bool:
    """Whether a frame, if it is a good one, is of that kind."""
    return data[wire.HEADER_BYTES + 1 : wire.HEADER_BYTES + 2] == bytes((kind.__struct_config__.tag,))  # type: ignore[arg-type]


def decode_contribution(
    data: bytes, *, suite: Suite, limit: int, sealed_bytes: Sequence[int], vector_bytes: int
) -> ContributionFrame:
    """Reads a contribution.

    Args:
        data: the received bytes.
        suite: the suite of the round.
        limit: the largest acceptable size of header and body.
        sealed_bytes: the exact size of each sealed share.
        vector_bytes: the exact size of the vector.

    Raises:
        MalformedMessageError: the bytes are not the canonical encoding of a contribution, or its shares or vector are
            not those that it names.
    """
    view = memoryview(data)
    start = len(data) - vector_bytes - sum(sealed_bytes)
    if start < SIGNATURE_BYTES:
        raise MalformedMessageError(f"a contribution has {len(data)} bytes, fewer than its vector and shares take")
    head = decode_signed(view[:start], Contribution, suite=suite, limit=limit)
    ends = accumulate(sealed_bytes, initial=start)
    sealed = tuple(bytes(view[begin:end]) for begin, end in pairwise(ends))
    vector = view[len(data) - vector_bytes :]
    if sealed_digests(sealed) != head.message.sealed or sha256(vector).digest() != head.message.vector:
        raise MalformedMessageError("the shares or the vector of a contribution are not those that were signed")
    return ContributionFrame(
        message=head.message, digest=head.digest, signature=head.signature, sealed=sealed, vector=vector
    )


def _check_sizes(message: Message, suite: Suite) -> None:
    """Public keys and sealed shares have the sizes of the suite."""
    bundles: tuple[MemberBundle, ...] = ()
    shares: tuple[bytes, ...] = ()
    match message:
        case MemberKeys():
            bundles = (message.bundle,)
        case Committee():
            bundles = message.bundles
        case PartialSum():
            bundles = message.next_bundle
        case UnmaskRequest():
            bundles, shares = message.bundles, tuple(one.share for one in message.contributions)
    for bundle in bundles:
        if len(bundle.key) != suite.public_key_bytes:
            raise MalformedMessageError(
                f"the key of member {bundle.member} has {len(bundle.key)} bytes, suite {suite.number} has "
                f"{suite.public_key_bytes}",
                client_id=ClientId(bundle.member),
            )
    allowed = {sealed_bytes(size, suite) for size in SEALED_BYTES}
    if any(len(share) not in allowed for share in shares):
        raise MalformedMessageError(f"a sealed share of suite {suite.number} has {sorted(allowed)} bytes")
