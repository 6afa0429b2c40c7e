"""Key agreement, key derivation, sealing and signatures: thin, single-purpose wrappers over `cryptography`.

Rules:

1. There are two suites, and a round has one of them: X25519 alone, and X25519 with ML-KEM-768 (FIPS 203), where a key
   stays secret if either of the two does. Whatever the suite, a key pair follows from 32 secret bytes.
2. A KEM is no key exchange: somebody must send a ciphertext. So a shared secret has two halves, `agree` from the two
   public keys, and `encapsulate` / `decapsulate` from a ciphertext on the way. With X25519 alone the second half and
   the ciphertext are empty.
3. Every derived key is HKDF-SHA256 with salt = round context and info = `secagg/v1/<usage>` followed by the ids it is
   for. No usage string serves twice.
4. Public keys are accepted in canonical form only; X25519 points of low order are refused.
5. A sealing key encrypts exactly one message, so the AES-GCM nonce is constant.
6. Private keys never appear in a repr and cannot be pickled.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECRET_KEY_BYTES = 32
IDENTITY_BYTES = 32  # an Ed25519 public key
SIGNATURE_BYTES = 64
SEAL_OVERHEAD_BYTES = 16
LABEL = b"secagg/v1/"
_X25519_BYTES = 32
_ML_KEM_PUBLIC_BYTES = 1184
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


@dataclass(frozen=True, slots=True)
class Suite:
    """How two parties of a round come to a common secret.

    Attributes:
        number: the suite byte of every frame.
        public_key_bytes: size of a public key.
        ciphertext_bytes: size of what `encapsulate` sends.
    """

    number: int
    public_key_bytes: int
    ciphertext_bytes: int


CLASSICAL = Suite(number=1, public_key_bytes=_X25519_BYTES, ciphertext_bytes=0)
HYBRID = Suite(number=2, public_key_bytes=_X25519_BYTES + _ML_KEM_PUBLIC_BYTES, ciphertext_bytes=1088)
SUITES = {suite.number: suite for suite in (CLASSICAL, HYBRID)}


@cache
def check_available(suite: Suite) -> None:
    """Refuses a suite that this installation cannot compute: nobody falls back to another one silently.

    Raises:
        ValueError: the OpenSSL behind `cryptography` has no ML-KEM-768.
    """
    try:
        AgreementKey(bytes(SECRET_KEY_BYTES), suite)
    except UnsupportedAlgorithm:
        raise ValueError(
            f"suite {suite.number} needs ML-KEM-768, which this build of cryptography lacks: install a newer wheel"
        ) from None


class AgreementKey(Unprintable):
    """A key pair of either suite: X25519 (RFC 7748), or X25519 and ML-KEM-768 (FIPS 203) from the same 32 bytes.

    Args:
        secret: 32 uniform bytes, from which all else follows.
        suite: the suite of the round.

    Attributes:
        secret: the same bytes.
        public: the X25519 key, followed by the ML-KEM encapsulation key if the suite has one.
    """

    __slots__ = ("_kem", "_x25519", "public", "secret")

    def __init__(self, secret: bytes, suite: Suite) -> None:
        self.secret = secret
        self._kem: MLKEM768PrivateKey | None = None
        if not suite.ciphertext_bytes:
            self._x25519: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(secret)
            self.public = self._x25519.public_key().public_bytes_raw()
            return
        private = derive(secret, context=b"", usage=b"key/x25519")
        self._x25519 = X25519PrivateKey.from_private_bytes(private)
        self._kem = MLKEM768PrivateKey.from_seed_bytes(derive(secret, context=b"", usage=b"key/ml-kem-768", length=64))
        self.public = self._x25519.public_key().public_bytes_raw() + self._kem.public_key().public_bytes_raw()

    def wipe(self) -> None:
        """Empties the object, for whoever still refers to it: an error's traceback, say."""
        self.secret, self._x25519, self._kem = b"", None, None

    def agree(self, peer_public: bytes) -> bytes:
        """The half of a shared secret that needs no ciphertext, 32 bytes, the same from both ends.

        Raises:
            ValueError: the peer's X25519 key is not canonical or has low order.
        """
        point = peer_public[:_X25519_BYTES]
        _check_point(point)
        if self._x25519 is None:
            raise ValueError("the key was wiped")
        return self._x25519.exchange(X25519PublicKey.from_public_bytes(point))

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The half that a peer encapsulated to this key: 32 bytes, or none if the suite has no KEM.

        A ciphertext that is not a peer's gives another secret, not an error: whatever is sealed under it does not open.

        Raises:
            ValueError: the ciphertext has not the length of the suite.
        """
        if self._kem is not None:
            return self._kem.decapsulate(ciphertext)
        if ciphertext:
            raise ValueError(f"this suite has no ciphertexts, got {len(ciphertext)} bytes")
        return b""


def encapsulate(peer_public: bytes, suite: Suite) -> tuple[bytes, bytes]:
    """The half of a shared secret that a ciphertext carries to a peer; its randomness is OpenSSL's generator.

    Returns:
        The secret, 32 bytes, and its ciphertext; both empty if the suite has no KEM.

    Raises:
        ValueError: the peer's encapsulation key is not canonical.
    """
    if not suite.ciphertext_bytes:
        return b"", b""
    return MLKEM768PublicKey.from_public_bytes(peer_public[_X25519_BYTES:]).encapsulate()


def check_public_key(public: bytes, suite: Suite) -> None:
    """Refuses public keys that nobody should agree with.

    Raises:
        ValueError: wrong length; an X25519 key that is not the canonical encoding of a field element (u >= 2^255 - 19),
            or a point of low order; an ML-KEM key with a coefficient that is not reduced (FIPS 203, 7.2).
    """
    if len(public) != suite.public_key_bytes:
        raise ValueError(f"a public key of suite {suite.number} has {suite.public_key_bytes} bytes, got {len(public)}")
    _check_point(public[:_X25519_BYTES])
    if suite.ciphertext_bytes:
        try:
            MLKEM768PublicKey.from_public_bytes(public[_X25519_BYTES:])
        except ValueError:
            raise ValueError("the ML-KEM-768 public key is not canonical") from None


def parts(public: bytes) -> tuple[bytes, ...]:
    """The X25519 key and, if the suite has one, the ML-KEM key of a public key."""
    return tuple(part for part in (public[:_X25519_BYTES], public[_X25519_BYTES:]) if part)


def all_distinct(publics: Sequence[bytes]) -> bool:
    """Whether no two public keys of one suite have a part in common; see `parts`.

    Honest parts differ in their first 32 bytes already; whole ones are compared where those do not.
    """
    for start, end in ((0, _X25519_BYTES), (_X25519_BYTES, None)):
        if len({public[start : start + _X25519_BYTES] for public in publics}) < len(publics):
            whole = [part for public in publics if (part := public[start:end])]
            if len(set(whole)) < len(whole):
                return False
    return True


def _check_point(public: bytes) -> None:
    u = int.from_bytes(public, "little")
    if u >= _FIELD_PRIME:
        raise ValueError("an X25519 public key must be the canonical 32 bytes of u < 2^255 - 19")
    if u in _LOW_ORDER:
        raise ValueError("the X25519 public key is a point of low order")


def derive(secret: bytes, *, context: bytes, usage: bytes, ids: tuple[int, ...] = (), length: int = 32) -> bytes:
    """A key of `length` bytes for one usage between the named ids, in one round."""
    info = LABEL + usage + struct.pack(f">{len(ids)}I", *ids)
    return HKDF(algorithm=SHA256(), length=length, salt=context, info=info).derive(secret)


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
