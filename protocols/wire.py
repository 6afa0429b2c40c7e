"""Every message of the `pairwise` protocol, as bytes.

Rules:

1. A frame is header, body, tail, signature. The header is `SAGG`, version, suite. The body is a msgpack array: tag,
   round context, sender, fields. Only a masked vector has a tail: its words, of a length both sides know. Only clients
   sign; the 64 signature bytes come last and cover everything before them.
2. One encoding: decoded bodies must re-encode to the same bytes. There are no maps; lists of clients increase strictly.
3. Lengths are bounded before anything is parsed.
4. There is no negotiation: a round has one suite, the hybrid one unless its configuration says otherwise, and a frame
   with another one is malformed.

Example:
    >>> frame = encode(SurvivorList(context=bytes(32), sender=SERVER, survivors=(1, 2, 5)))
    >>> decode(frame, SurvivorList, limit=1000).survivors
    (1, 2, 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Annotated, Generic, TypeVar

import msgspec

from .errors import MalformedMessageError
from .primitives.keys import CLASSICAL, HYBRID, SEAL_OVERHEAD_BYTES, SIGNATURE_BYTES, Suite
from .primitives.shamir import SHARE_BYTES

MAGIC = b"SAGG"
VERSION = 1
HEADER_BYTES = len(MAGIC) + 2
SERVER = 0
FRESH_BYTES = 32
SEALED_SHARES_BYTES = 2 * SHARE_BYTES + SEAL_OVERHEAD_BYTES
COMMITMENT_BYTES = 32
SEALED_HALF_BYTES = COMMITMENT_BYTES + 32 + SEAL_OVERHEAD_BYTES
BYTES_PER_CLIENT = 192  # no message spends more on one client than this and two public keys, vectors aside
FIXED_BYTES = 1024  # nor more than this on what does not grow with the cohort

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=CLASSICAL.public_key_bytes, max_length=HYBRID.public_key_bytes)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
# One digest, or two with removable components.
Commitments = Annotated[bytes, msgspec.Meta(min_length=COMMITMENT_BYTES, max_length=2 * COMMITMENT_BYTES)]
SealedShare = Annotated[bytes, msgspec.Meta(min_length=SEALED_SHARES_BYTES)]
Id = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Sender = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Serial = Annotated[int, msgspec.Meta(ge=1, lt=2**62)]


class KeyBundle(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """A client's public keys for one round; the signature covers the rest and the roster (`roster.bundle_digest`)."""

    client: Id
    serial: Serial
    fresh: Annotated[bytes, msgspec.Meta(min_length=FRESH_BYTES, max_length=FRESH_BYTES)]
    channel_key: PublicKey
    mask_key: PublicKey
    signature: Signature


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True, tag=-1):
    """What every message starts with: the digest of the round it belongs to, and who sent it (0: the server)."""

    context: Digest
    sender: Sender


class Invitation(Message, frozen=True, kw_only=True, tag=0):
    """Server: a round opens. A client that derives the same context agrees on the whole configuration."""

    round_id: Digest
    model: Digest


class AdvertiseKeys(Message, frozen=True, kw_only=True, tag=1):
    """Client: my keys. Its signature is the bundle's."""

    bundle: KeyBundle


class KeyBundles(Message, frozen=True, kw_only=True, tag=2):
    """Server: everybody's keys."""

    bundles: tuple[KeyBundle, ...]


class ShareKeys(Message, frozen=True, kw_only=True, tag=3):
    """Client: a commitment to my self seed; shares of my secrets, sealed to each neighbour in increasing order.

    With removable components the end of their chain follows the commitment.
    """

    seed_commitment: Commitments
    sealed: tuple[SealedShare, ...]


class SealedShares(Message, frozen=True, kw_only=True, tag=4):
    """Server: all clients that shared keys, and what your neighbours among them sealed to you, in increasing order."""

    cohort: tuple[Id, ...]
    sealed: tuple[SealedShare, ...]


class MaskedInput(Message, frozen=True, kw_only=True, tag=5):
    """Client: the digest of the cohort that I masked with, and my masked vector (the tail)."""

    cohort: Digest


class SurvivorList(Message, frozen=True, kw_only=True, tag=6):
    """Server: whose masked vectors arrived."""

    survivors: tuple[Id, ...]


class ConsistencyCheck(Message, frozen=True, kw_only=True, tag=7):
    """Client: the digest of cohort and survivors as I saw them.

    Signed, and relayed to the other clients as a signature alone.
    """

    view: Digest


class SurvivorSignatures(Message, frozen=True, kw_only=True, tag=8):
    """Server: signatures of your co-holders over the same view as yours."""

    signers: tuple[Id, ...]
    signatures: tuple[Signature, ...]


class Unmask(Message, frozen=True, kw_only=True, tag=9):
    """Client: one share for each client I hold shares of, in increasing order.

    It is the share of the self seed if that client survived, of the mask key if not; both cannot be said. If components
    are to be removed, one share of a link of each survivor's chain follows. With it may come the client's bundle for a
    later round.
    """

    shares: bytes
    next_bundle: Annotated[tuple[KeyBundle, ...], msgspec.Meta(max_length=1)] = ()


MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedFrame(Generic[MessageT]):
    """A decoded frame that carries a signature, not verified yet.

    Attributes:
        message: the body.
        tail: the raw bytes of the vector, empty for all other messages.
        digest: SHA-256 of everything that the signature covers, as received.
        signature: the last 64 bytes.
    """

    message: MessageT
    tail: memoryview
    digest: bytes
    signature: bytes


def encode(message: Message, *, suite: Suite = HYBRID) -> bytes:
    """Header and body."""
    return _header(suite) + msgspec.msgpack.encode(message)


def sealed_bytes(suite: Suite, removable: int = 0) -> int:
    """The size of what a client seals to a neighbour: shares and, in the hybrid suite, its half of their pair secret.

    Each of the two is sealed under a KEM secret of its own.
    """
    half = suite.ciphertext_bytes + SEALED_HALF_BYTES if suite.ciphertext_bytes else 0
    return suite.ciphertext_bytes + sealed_shares_bytes(removable) + half


def sealed_shares_bytes(removable: int) -> int:
    """The size of the shares of two secrets and of `removable` links of a chain, sealed."""
    return SEALED_SHARES_BYTES + removable * SHARE_BYTES


def message_limit(cohort: int, suite: Suite = HYBRID, removable: int = 0) -> int:
    """The largest size in bytes of a message in a round with `cohort` clients, vectors and signatures aside."""
    return FIXED_BYTES + (BYTES_PER_CLIENT + 2 * suite.public_key_bytes + removable * SHARE_BYTES) * cohort


def decode(
    data: bytes | memoryview, kind: type[MessageT], *, suite: Suite = HYBRID, removable: int = 0, limit: int
) -> MessageT:
    """Reads a frame without tail and signature.

    Args:
        data: the received bytes.
        kind: the only message that is expected now.
        suite: the suite of the round.
        removable: components of a vector that may be taken out.
        limit: the largest acceptable size in bytes.

    Raises:
        MalformedMessageError: the bytes are not the canonical encoding of such a message.
    """
    if len(data) > limit:
        raise MalformedMessageError(f"{kind.__name__} has {len(data)} bytes, at most {limit} are allowed")
    if bytes(data[:HEADER_BYTES]) != _header(suite):
        raise MalformedMessageError(
            f"{kind.__name__} does not start with the header of version {VERSION}, suite {suite.number}"
        )
    body = data[HEADER_BYTES:]
    try:
        message = msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessageError(f"{kind.__name__} does not decode: {error}") from None
    if msgspec.msgpack.encode(message) != body:
        raise MalformedMessageError(f"{kind.__name__} is not in canonical form")
    _check_sizes(message, suite, removable)
    return message


def decode_signed(
    data: bytes, kind: type[MessageT], *, suite: Suite = HYBRID, removable: int = 0, limit: int, tail_bytes: int = 0
) -> SignedFrame[MessageT]:
    """Reads a signed frame.

    Args:
        data: the received bytes.
        kind: the only message that is expected now.
        suite: the suite of the round.
        removable: components of a vector that may be taken out.
        limit: the largest acceptable size of header and body.
        tail_bytes: the exact size of the tail.

    Raises:
        MalformedMessageError: the bytes are not the canonical encoding of such a message.
    """
    view = memoryview(data)
    body_end = len(data) - SIGNATURE_BYTES - tail_bytes
    if body_end < HEADER_BYTES:
        raise MalformedMessageError(f"{kind.__name__} has {len(data)} bytes, fewer than its vector and signature take")
    message = decode(view[:body_end], kind, suite=suite, removable=removable, limit=limit)
    covered = view[: len(data) - SIGNATURE_BYTES]
    return SignedFrame(
        message=message,
        tail=view[body_end : len(covered)],
        digest=sha256(covered).digest(),
        signature=bytes(view[len(covered) :]),
    )


def check_increasing(clients: tuple[int, ...]) -> None:
    """Refuses lists of clients that do not increase strictly.

    Raises:
        MalformedMessageError: an id repeats or is out of order.
    """
    if any(map(int.__ge__, clients, islice(clients, 1, None))):
        raise MalformedMessageError("client ids must increase strictly")


def _header(suite: Suite) -> bytes:
    return MAGIC + bytes((VERSION, suite.number))


def _check_sizes(message: Message, suite: Suite, removable: int) -> None:
    """Public keys and sealed messages have the sizes of the suite."""
    bundles: tuple[KeyBundle, ...] = ()
    sealed: tuple[bytes, ...] = ()
    match message:
        case AdvertiseKeys():
            bundles = (message.bundle,)
        case KeyBundles():
            bundles = message.bundles
        case Unmask():
            bundles = message.next_bundle
        case ShareKeys() | SealedShares():
            sealed = message.sealed
    sizes = {len(bundle.channel_key) for bundle in bundles} | {len(bundle.mask_key) for bundle in bundles}
    if sizes - {suite.public_key_bytes}:
        raise MalformedMessageError(f"a public key of suite {suite.number} has {suite.public_key_bytes} bytes")
    size = sealed_bytes(suite, removable)
    if set(map(len, sealed)) - {size}:
        raise MalformedMessageError(f"a sealed message of suite {suite.number} has {size} bytes")
    digests = 2 if removable else 1
    if isinstance(message, ShareKeys) and len(message.seed_commitment) != digests * COMMITMENT_BYTES:
        raise MalformedMessageError(f"the commitments of a client have {digests * COMMITMENT_BYTES} bytes")
