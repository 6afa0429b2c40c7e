"""A dealer's proof that its shares of a key are on polynomials of degree t - 1. Experimental.

Rules:

1. The dealer shares eight uniform elements r beside its key s. A challenge rho, eight rows of N elements, follows from
   a digest of everything that it sealed. It publishes z = rho s + r, a polynomial of degree t - 1 in each row, by its
   values at the holders of the first t shares.
2. A holder checks that z, at its own slot, is rho times its share plus its share of r.
3. If the shares of the honest holders are on no such polynomials, one of them notices, but for a chance of p^-8, about
   2^-128, for each challenge that the dealer tries: what it sealed fixes rho before it can know rho.
4. z is uniform and independent of the key and of up to t - 1 shares, since r serves this once; and it is the same in
   every view that anybody has of the round. A challenge that depended on more than the dealer's own message would be
   answered differently in different views, and the difference of two answers is about one dealer's key alone.

Source: the random-oracle proof of Atapoor, Baghery, Cozzo and Pedersen, "VSS from distributed ZK proofs and
applications", ASIACRYPT 2023, for many secrets at once. Sealed shares stand for their commitments: what opens at an
honest holder is fixed by its key and the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .key_shares import BLINDING, Share, elements, lagrange, uniform
from .ring_mask import DEGREE
from .shamir import PRIME, Field

_ELEMENT = np.dtype("<u2")


def proof_bytes(threshold: int) -> int:
    """The size of a proof for that threshold."""
    return 2 * BLINDING * threshold


def challenge(digest: bytes) -> Field:
    """float64[8, N]: the rows rho that a digest of 32 bytes stands for."""
    return uniform(digest, BLINDING * DEGREE).reshape(BLINDING, DEGREE).astype(np.float64)


def prove(shares: Sequence[Share], digest: bytes) -> bytes:
    """The values of z at the holders of the first t shares.

    Args:
        shares: these shares, decoded.
        digest: of all that the dealer sealed; the challenge follows from it.
    """
    rho = challenge(digest)
    return b"".join(_value(share, rho).astype(_ELEMENT).tobytes() for share in shares)


def check(proof: bytes, threshold: int) -> None:
    """Refuses bytes that are no proof, whatever the shares.

    Raises:
        ValueError: another length, or an element outside the field.
    """
    if len(proof) != proof_bytes(threshold):
        raise ValueError(f"a proof takes {proof_bytes(threshold)} bytes for threshold {threshold}, got {len(proof)}")
    elements(proof)


def weights(slots: Sequence[int], slot: int, *, threshold: int) -> Field:
    """float64[1, t]: what takes the values of a polynomial at the first t of `slots` to its value at `slot`."""
    first = list(slots[:threshold])
    if slot in first:
        return np.eye(threshold)[[first.index(slot)]]
    return lagrange([one + 1 for one in first], [slot + 1])


def fits(proof: bytes, share: Share, digest: bytes, at: Field) -> bool:
    """Whether a holder's share is on the polynomials that the proof speaks of.

    Args:
        proof: of the right size, `check`.
        share: the holder's share, decoded.
        digest: of all that the dealer sealed.
        at: `weights` of the holder's slot.
    """
    values = elements(proof).astype(np.float64).reshape(-1, BLINDING)
    return np.array_equal((at @ values)[0] % PRIME, _value(share, challenge(digest)))


def _value(share: Share, rho: Field) -> Field:
    """float64[8]: rho s + r at one holder; sums stay below 2^44, so they are exact."""
    one = share.astype(np.float64)
    return (rho @ one[:DEGREE] + one[DEGREE:]) % PRIME
