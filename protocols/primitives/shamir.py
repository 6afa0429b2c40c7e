"""Shamir secret sharing of 32-byte secrets over F_65521, for many secrets and holders in one matrix product.

Rules:

1. A secret is 18 digits of 15 bits, little end first; each digit is the constant term of its own polynomial of degree t
   - 1 with uniform coefficients (by rejection, from `rand`). Fewer than t shares are uniform and independent of the
   secret, whatever the adversary's power.
2. Holder slot i (0, 1, ...) evaluates at x = i + 1. x is never transmitted: a share belongs to the slot of the party
   that holds it.
3. A share is 18 field elements, 36 bytes, little-endian. Elements at or above 65521 are refused.
4. Products run in float64 and are exact: t * 65520^2 < 2^53 for every t that the field allows.

Source: Shamir, "How to share a secret", CACM 22 (1979). The oracle in the tests is plain integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PRIME = 65521
MAX_HOLDERS = PRIME - 1
SECRET_BYTES = 32
DIGIT_BITS = 15
DIGITS = 18  # 18 * 15 = 270 >= 256
SHARE_BYTES = 2 * DIGITS
_ELEMENT = np.dtype("<u2")
_PLACE_VALUES = 1 << np.arange(DIGIT_BITS, dtype=np.int64)

Shares = NDArray[np.uint16]
Field = NDArray[np.float64]


def share(secrets: Sequence[bytes], *, threshold: int, holders: int, rand: Callable[[int], bytes]) -> Shares:
    """Shares every secret among the same holders.

    Args:
        secrets: m secrets of 32 bytes.
        threshold: t, how many shares reconstruct; 1 <= t <= holders.
        holders: number of shares of each secret, at most 65520.
        rand: source of uniform bytes.

    Returns:
        uint16[holders, m, 18]; row i belongs to holder slot i.

    Raises:
        ValueError: a size is out of range.
    """
    if not 1 <= threshold <= holders <= MAX_HOLDERS:
        raise ValueError(f"need 1 <= threshold <= holders <= {MAX_HOLDERS}, got {threshold} of {holders}")
    if any(len(secret) != SECRET_BYTES for secret in secrets):
        raise ValueError(f"every secret must have {SECRET_BYTES} bytes")
    digits = _to_digits(secrets).ravel()
    coefficients = np.empty((threshold, digits.size))
    coefficients[0] = digits
    coefficients[1:] = _uniform((threshold - 1) * digits.size, rand).reshape(threshold - 1, digits.size)
    values = _powers(holders, threshold) @ coefficients % PRIME
    return values.astype(_ELEMENT).reshape(holders, len(secrets), DIGITS)


def reconstruct(slots: Sequence[int], shares: Shares) -> list[bytes | None]:
    """Interpolates the secrets from the shares of t holders.

    Args:
        slots: the t distinct holder slots, in the order of `shares`.
        shares: uint16[t, m, 18].

    Returns:
        The m secrets; None where the shares do not interpolate to 32 bytes, since one of them is wrong.

    Raises:
        ValueError: slots repeat or are out of range.
    """
    if len(set(slots)) != len(slots) or len(slots) != len(shares):
        raise ValueError(f"need one distinct slot for each share, got {len(slots)} slots for {len(shares)} shares")
    if not all(0 <= slot < MAX_HOLDERS for slot in slots):
        raise ValueError(f"a slot must be from 0 to {MAX_HOLDERS - 1}: x = 0 would be the secret itself")
    weights = _lagrange_at_zero(tuple(slots))
    digits = weights @ shares.reshape(len(slots), -1).astype(np.float64) % PRIME
    return _from_digits(digits.reshape(-1, DIGITS).astype(np.int64))


def decode_shares(data: bytes | memoryview, count: int) -> Shares:
    """Reads `count` shares of 36 bytes; uint16[count, 18].

    Raises:
        ValueError: the length is wrong or an element is not in the field.
    """
    if len(data) != count * SHARE_BYTES:
        raise ValueError(f"{count} shares take {count * SHARE_BYTES} bytes, got {len(data)}")
    elements = np.frombuffer(data, dtype=_ELEMENT).reshape(count, DIGITS)
    if (elements >= PRIME).any():
        raise ValueError(f"a share has an element outside the field of {PRIME} elements")
    return elements


def _to_digits(secrets: Sequence[bytes]) -> NDArray[np.int64]:
    """int64[m, 18], little end first."""
    raw = np.frombuffer(b"".join(secrets), dtype=np.uint8).reshape(len(secrets), SECRET_BYTES)
    bits = np.zeros((len(secrets), DIGITS * DIGIT_BITS), dtype=np.int64)
    bits[:, : 8 * SECRET_BYTES] = np.unpackbits(raw, axis=1, bitorder="little")
    return bits.reshape(len(secrets), DIGITS, DIGIT_BITS) @ _PLACE_VALUES


def _from_digits(digits: NDArray[np.int64]) -> list[bytes | None]:
    """The inverse of `_to_digits`; None for digits that no 32-byte secret has."""
    bits = (digits[:, :, None] >> np.arange(DIGIT_BITS)) & 1
    flat = bits.reshape(len(digits), -1)
    wrong = np.any(digits >> DIGIT_BITS, axis=1) | np.any(flat[:, 8 * SECRET_BYTES :], axis=1)
    packed = np.packbits(flat[:, : 8 * SECRET_BYTES].astype(np.uint8), axis=1, bitorder="little")
    return [None if bad else row.tobytes() for row, bad in zip(packed, wrong.tolist(), strict=True)]


def _uniform(count: int, rand: Callable[[int], bytes]) -> Field:
    """`count` uniform field elements; 15 of 65536 draws are rejected."""
    elements = np.empty(0, dtype=_ELEMENT)
    while elements.size < count:
        drawn = np.frombuffer(rand(2 * (count - elements.size)), dtype=_ELEMENT)
        elements = np.concatenate([elements, drawn[drawn < PRIME]])
    return elements.astype(np.float64)


@lru_cache(maxsize=8)
def _powers(holders: int, threshold: int) -> Field:
    """float64[holders, threshold]: x^j mod p for x = 1..holders."""
    x = np.arange(1, holders + 1, dtype=np.int64)
    powers = np.empty((holders, threshold))
    column = np.ones(holders, dtype=np.int64)
    for j in range(threshold):
        powers[:, j] = column
        column = column * x % PRIME
    powers.setflags(write=False)
    return powers


@lru_cache(maxsize=1024)
def _lagrange_at_zero(slots: tuple[int, ...]) -> Field:
    """float64[t]: w_i with f(0) = sum w_i f(x_i), x_i = slot_i + 1; w_i = prod over j != i of x_j / (x_j - x_i)."""
    x = np.array(slots, dtype=np.int64) + 1
    numerator = np.ones_like(x)
    denominator = np.ones_like(x)
    for j, x_j in enumerate(x):
        others = np.arange(len(x)) != j
        numerator[others] = numerator[others] * x_j % PRIME
        denominator[others] = denominator[others] * (x_j - x[others]) % PRIME
    inverse = np.array([pow(int(value), -1, PRIME) for value in denominator], dtype=np.int64)
    return (numerator * inverse % PRIME).astype(np.float64)
