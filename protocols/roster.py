"""Who the parties are: pinned Ed25519 identities, signed key bundles, and one commitment to all bundles of a round.

Rules:

1. A roster is fixed before any round, by means outside the protocol: it is the root of trust. The server cannot add to
   it.
2. A key bundle is signed over SHA-256 of version, suite, protocol, roster digest, client id, serial, fresh bytes and
   both public keys. It names no round, so it can be made in advance; the round is bound by the bundle root, which
   enters every later key and signature.
3. A message is signed over its kind and the SHA-256 of its bytes as received.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256

import msgspec

from .errors import ClientId, InvalidSignatureError
from .primitives.keys import HYBRID, IDENTITY_BYTES, SECRET_KEY_BYTES, SigningKey, Suite, verifies
from .session import MAX_CLIENT_ID
from .wire import VERSION, KeyBundle

PROTOCOL = "pairwise"
_SIGNATURE_LABEL = b"secagg/v1/pairwise/signature/"


class Identity(SigningKey):
    """A client's long-term signing key. Its `public` goes into every roster."""

    @classmethod
    def generate(cls, *, rand: Callable[[int], bytes] = os.urandom) -> Identity:
        """A fresh identity."""
        return cls(rand(SECRET_KEY_BYTES))


class Roster(Mapping[ClientId, bytes]):
    """The pinned public identities: client id -> 32-byte Ed25519 public key. Immutable.

    Args:
        identities: at least two clients, ids from 1 to 2^31 - 1.

    Raises:
        ValueError: an id is out of range, a key has the wrong length or is pinned twice.
    """

    def __init__(self, identities: Mapping[ClientId, bytes]) -> None:
        self._identities = dict(sorted(identities.items()))
        for client, public in self._identities.items():
            if not 1 <= client <= MAX_CLIENT_ID:
                raise ValueError(f"client ids are from 1 to {MAX_CLIENT_ID}, got {client}")
            if len(public) != IDENTITY_BYTES:
                raise ValueError(f"the identity of client {client} must have {IDENTITY_BYTES} bytes, got {len(public)}")
        if len(self._identities) < 2:
            raise ValueError(f"a roster needs at least two clients, got {len(self._identities)}")
        if len(set(self._identities.values())) != len(self._identities):
            raise ValueError("two clients of the roster have the same identity")
        self.digest = sha256(b"secagg/v1/roster" + msgspec.msgpack.encode(list(self._identities.items()))).digest()

    def __getitem__(self, client: ClientId) -> bytes:
        return self._identities[client]

    def __contains__(self, client: object) -> bool:
        return client in self._identities

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._identities)

    def __len__(self) -> int:
        return len(self._identities)

    def check_signature(self, client: ClientId, kind: str, digest: bytes, signature: bytes) -> None:
        """Checks a client's signature over a message digest.

        Raises:
            InvalidSignatureError: the client is not on the roster, or the signature is not its own.
        """
        public = self._identities.get(client)
        if public is None or not verifies(public, signature, signed_text(kind, digest)):
            raise InvalidSignatureError(f"the {kind} signature of client {client} does not verify", client_id=client)


def signed_text(kind: str, digest: bytes) -> bytes:
    """What a signature covers: the kind of statement and the SHA-256 digest of its bytes."""
    return _SIGNATURE_LABEL + kind.encode() + digest


def bundle_digest(bundle: KeyBundle, roster: Roster, suite: Suite = HYBRID) -> bytes:
    """The digest that a key bundle's signature covers: everything in it, and the roster, but no round."""
    where = (VERSION, suite.number, PROTOCOL, roster.digest)
    what = (bundle.client, bundle.serial, bundle.fresh, bundle.channel_key, bundle.mask_key)
    return sha256(b"secagg/v1/pairwise/key-bundle" + msgspec.msgpack.encode((*where, *what))).digest()


def bundle_root(bundles: Sequence[KeyBundle]) -> bytes:
    """The Merkle root over the bundles of a round in increasing client order, signatures included."""
    layer = [sha256(b"\x00" + msgspec.msgpack.encode(bundle)).digest() for bundle in bundles]
    while len(layer) > 1:
        odd = [layer[-1]] if len(layer) % 2 else []
        layer = [
            sha256(b"\x01" + left + right).digest() for left, right in zip(layer[::2], layer[1::2], strict=False)
        ] + odd
    return layer[0]
