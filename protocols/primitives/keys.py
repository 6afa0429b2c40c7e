"""Key agreement, key derivation, sealing and signatures: thin, single-purpose wrappers over `cryptography`.

Rules:

1. Every derived key is HKDF-SHA256 with salt = round context and info = `secagg/v1/<usage>` followed by the ids it is
   for. No usage string serves twice.
2. X25519 public keys are accepted in canonical form only (u < 2^255 - 19); points of low order are refused.
3. A sealing key encrypts exactly one message, so the AES-GCM nonce is constant.
4. Private keys never appear in a repr and cannot be pickled.
"""

from __future__ import annotations

import struct
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PUBLIC_KEY_BYTES = 32
PRIVATE_KEY_BYTES = 32
SIGNATURE_BYTES = 64
SEAL_OVERHEAD_BYTES = 16
LABEL = b"secagg/v1/"
_FIELD_PRIME = 2**255 - 19
# The points whose order divides 8: with them the shared secret is zero, whatever the private key.
_LOW_ORDER = {
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    _FIELD_PRIME - 1,
}
_NONCE = bytes(12)


class Unprintable:
    """Mixin for objects that hold secrets: the repr is the type alone, and pickling is refused."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds secrets and cannot be pickled")


class AgreementKey(Unprintable):
    """An X25519 key pair (RFC 7748).

    Args:
        private: the 32 secret bytes, uniform.
    """

    __slots__ = ("_key", "private", "public")

    def __init__(self, private: bytes) -> None:
        self.private = private
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    def agree(self, peer_public: bytes) -> bytes:
        """The 32-byte shared secret with a peer.

        Raises:
            ValueError: the peer's key is not canonical or has low order.
        """
        check_public_key(peer_public)
        return self._key.exchange(X25519PublicKey.from_public_bytes(peer_public))


def check_public_key(public: bytes) -> None:
    """Refuses X25519 public keys that nobody should agree with.

    Raises:
        ValueError: wrong length, not the canonical encoding of a field element (u >= 2^255 - 19), or a point of low
            order.
    """
    u = int.from_bytes(public, "little")
    if len(public) != PUBLIC_KEY_BYTES or u >= _FIELD_PRIME:
        raise ValueError("an X25519 public key must be the canonical 32 bytes of u < 2^255 - 19")
    if u in _LOW_ORDER:
        raise ValueError("the X25519 public key is a point of low order")


def derive(secret: bytes, *, context: bytes, usage: bytes, ids: tuple[int, ...] = ()) -> bytes:
    """A 32-byte key for one usage between the named ids, in one round."""
    info = LABEL + usage + struct.pack(f">{len(ids)}I", *ids)
    return HKDF(algorithm=SHA256(), length=32, salt=context, info=info).derive(secret)


def seal(key: bytes, plaintext: bytes, *, associated: bytes) -> bytes:
    """AES-256-GCM under a key that seals this one message."""
    return AESGCM(key).encrypt(_NONCE, plaintext, associated)


def unseal(key: bytes, ciphertext: bytes, *, associated: bytes) -> bytes:
    """Opens what `seal` made.

    Raises:
        ValueError: the ciphertext, the key or the associated data is not the sealed one.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, ciphertext, associated)
    except InvalidTag:
        raise ValueError("a sealed message does not open") from None


class SigningKey(Unprintable):
    """An Ed25519 key pair (RFC 8032).

    Args:
        private: the 32 secret bytes, uniform.
    """

    __slots__ = ("_key", "public")

    def __init__(self, private: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature."""
        return self._key.sign(message)


def verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the holder of `public`'s signature over `message`. Never ignore the answer."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True
