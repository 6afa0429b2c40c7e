"""What one client seals to another, through the server: shares of its secrets, and its half of their pair secret.

Rules:

1. The key of a channel is derived from X25519 of the two channel keys and, in the hybrid suite, from a KEM secret that
   the sender encapsulates to the receiver's channel key. It seals this one message.
2. A mask must be known at both ends, and to the server once it has reconstructed the mask key of a client that
   dropped out. A KEM secret is neither: it is made by one end, at random. So in the hybrid suite each end u derives its
   *half* z_uv from its mask key's 32 bytes and sends it to v under a KEM secret that it encapsulates to v's mask key.
   The pair seed is derived from X25519 of the mask keys and both halves. From u's 32 bytes follow u's key pair, u's
   half and, with the stored ciphertext of v's half, v's half.
3. A commitment goes with each half. Its reader checks it before it masks, and the server when the owner dropped out and
   its half is derived: an owner that sealed another half is found out, and no wrong sum is released.
4. The shares' associated data covers round, KEM ciphertext and sealed half: a server that swaps one of them, or a
   half of another round, is noticed before anything is masked.

In the classical suite ciphertexts and halves are empty, and what is left is X25519 alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ClientId
from ..primitives import keys
from ..wire import COMMITMENT_BYTES, sealed_shares_bytes
from .rules import Rules


@dataclass(frozen=True, slots=True)
class Sealed:
    """The three parts of a sealed message.

    Attributes:
        ciphertext: carries the KEM secret of the channel; empty in the classical suite.
        shares: shares of two secrets and of the links of a chain, sealed.
        half: carries the sender's half of the pair secret, behind a commitment to it; empty in the classical suite.
    """

    ciphertext: bytes
    shares: bytes
    half: bytes

    @classmethod
    def of(cls, data: bytes, suite: keys.Suite, removable: int = 0) -> Sealed:
        """Splits bytes of the length that `wire` has checked."""
        end = suite.ciphertext_bytes + sealed_shares_bytes(removable)
        return cls(data[: suite.ciphertext_bytes], data[suite.ciphertext_bytes : end], data[end:])


def seal(
    rules: Rules, shares: bytes, *, sender: ClientId, receiver: ClientId, agreed: bytes, mask_secret: bytes
) -> bytes:
    """Seals shares to a neighbour, together with the sender's half of their pair secret.

    Args:
        rules: the round, with its keys bound.
        shares: the shares, encoded.
        sender: this client.
        receiver: the neighbour.
        agreed: X25519 of their channel keys.
        mask_secret: the 32 bytes that the sender's mask key follows from.
    """
    bundle, suite = rules.bundles[receiver], rules.suite
    half = b""
    if suite.ciphertext_bytes:
        secret, ciphertext = keys.encapsulate(bundle.mask_key, suite)
        plain = rules.pair_half(mask_secret, sender, receiver)
        sealed = keys.seal(rules.half_key(secret, sender, receiver), plain, associated=rules.context)
        half = rules.half_commitment(plain, sender, receiver) + ciphertext + sealed
    secret, ciphertext = keys.encapsulate(bundle.channel_key, suite)
    channel = rules.channel_key(agreed + secret, sender, receiver)
    return ciphertext + keys.seal(channel, shares, associated=rules.context + ciphertext + half) + half


def open_shares(
    rules: Rules, sealed: Sealed, *, sender: ClientId, receiver: ClientId, agreed: bytes, channel_key: keys.AgreementKey
) -> bytes:
    """What a neighbour sealed to this client: shares, encoded.

    Raises:
        ValueError: it does not open.
    """
    secret = channel_key.decapsulate(sealed.ciphertext)
    channel = rules.channel_key(agreed + secret, sender, receiver)
    return keys.unseal(channel, sealed.shares, associated=rules.context + sealed.ciphertext + sealed.half)


def open_half(rules: Rules, half: bytes, *, sender: ClientId, receiver: ClientId, mask_key: keys.AgreementKey) -> bytes:
    """The sender's half of a pair secret, opened by the receiver or by a server that reconstructed its mask key.

    Raises:
        ValueError: it does not open, or is not what its owner is committed to.
    """
    if not rules.suite.ciphertext_bytes:
        return b""
    end = COMMITMENT_BYTES + rules.suite.ciphertext_bytes
    commitment, ciphertext, sealed = half[:COMMITMENT_BYTES], half[COMMITMENT_BYTES:end], half[end:]
    key = rules.half_key(mask_key.decapsulate(ciphertext), sender, receiver)
    opened = keys.unseal(key, sealed, associated=rules.context)
    if rules.half_commitment(opened, sender, receiver) != commitment:
        raise ValueError("a half does not match its commitment")
    return opened
