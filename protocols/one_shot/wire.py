"""Every message of the `one_shot` protocol, as bytes.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.

The rules are those of `protocols.wire`, with one exception. A contribution's sealed key shares and vector follow its
signature, which covers them by their digests: so a committee member verifies a contribution without its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Annotated

import msgspec

from ..errors import MalformedMessageError
from ..primitives import key_shares
from ..primitives.keys import CLASSICAL, SEAL_OVERHEAD_BYTES, SIGNATURE_BYTES
from ..primitives.prg import SEED_BYTES
from ..wire import (
    BYTES_PER_CLIENT,
    FIXED_BYTES,
    FRESH_BYTES,
    Digest,
    Id,
    Message,
    PublicKey,
    Serial,
    Signature,
    decode_signed,
)

SUITE = CLASSICAL  # of every frame
SEALED_SHARE_BYTES = key_shares.SHARE_BYTES + SEAL_OVERHEAD_BYTES

SealedShare = Annotated[bytes, msgspec.Meta(min_length=SEED_BYTES + SEAL_OVERHEAD_BYTES, max_length=SEALED_SHARE_BYTES)]
KeyShare = Annotated[bytes, msgspec.Meta(min_length=key_shares.SHARE_BYTES, max_length=key_shares.SHARE_BYTES)]


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
    """Client: the digests of my masked vector, and of the shares of its key that are sealed to the members."""

    ephemeral_key: PublicKey
    vector: Digest
    sealed: Digest


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
    """Member: the digest of round and survivors, and the sum of the shares that these sealed to me."""

    view: Digest
    share: KeyShare


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


def request_limit(cohort: int, committee: int) -> int:
    """The largest size in bytes of a message that goes to a member."""
    return (
        FIXED_BYTES
        + (BYTES_PER_CLIENT + 2 * SUITE.public_key_bytes) * (committee + cohort)
        + SEALED_SHARE_BYTES * cohort
    )


def sealed_digest(sealed: Sequence[bytes]) -> bytes:
    """SHA-256 of sealed shares of known lengths, one after the other."""
    return sha256(b"".join(sealed)).digest()


def decode_contribution(
    data: bytes, *, limit: int, sealed_bytes: Sequence[int], vector_bytes: int
) -> ContributionFrame:
    """Reads a contribution.

    Args:
        data: the received bytes.
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
    head = decode_signed(bytes(view[:start]), Contribution, suite=SUITE, limit=limit)
    ends = accumulate(sealed_bytes, initial=start)
    sealed = tuple(bytes(view[begin:end]) for begin, end in pairwise(ends))
    vector = view[len(data) - vector_bytes :]
    if sealed_digest(sealed) != head.message.sealed or sha256(vector).digest() != head.message.vector:
        raise MalformedMessageError("the shares or the vector of a contribution are not those that were signed")
    return ContributionFrame(
        message=head.message, digest=head.digest, signature=head.signature, sealed=sealed, vector=vector
    )
