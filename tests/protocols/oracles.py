"""Slow, obvious implementations to compare the library with: Python integers and the standard library only."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

FIELD_PRIME = 2**255 - 19
SHAMIR_PRIME = 65521


def load_vectors(name: str) -> Any:
    """A file of `tests/vectors`."""
    return json.loads((Path(__file__).parent.parent / "vectors" / name).read_text())


def digits_of(secret: bytes) -> list[int]:
    """18 digits of 15 bits, little end first."""
    number = int.from_bytes(secret, "little")
    return [number >> 15 * i & 0x7FFF for i in range(18)]


def evaluate(coefficients: list[int], x: int) -> int:
    """The polynomial's value over F_65521, constant term first."""
    return sum(c * pow(x, i, SHAMIR_PRIME) for i, c in enumerate(coefficients)) % SHAMIR_PRIME


def interpolate_at(x: int, points: Mapping[int, int]) -> int:
    """The value at x of the polynomial of least degree through the points, over F_65521."""
    total = 0
    for a, value in points.items():
        others = [b for b in points if b != a]
        numerator, denominator = prod(x - b for b in others), prod(a - b for b in others)
        total += value * numerator * pow(denominator, -1, SHAMIR_PRIME)
    return total % SHAMIR_PRIME


def x25519_ladder(scalar: bytes, u: bytes) -> bytes:
    """RFC 7748, section 5: clamped scalar times u; the top bit of u is ignored."""
    k = int.from_bytes(scalar, "little")
    k = (k & ~7 & ~(1 << 255)) | 1 << 254
    return montgomery_multiple(k, int.from_bytes(u, "little") & (2**255 - 1)).to_bytes(32, "little")


def montgomery_multiple(k: int, u: int) -> int:
    """The u coordinate of k times the point with coordinate u on Curve25519; 0 for the neutral element."""
    p = FIELD_PRIME
    x1, x2, z2, x3, z3 = u % p, 1, 0, u % p, 1
    for bit in reversed(range(255)):
        swap = k >> bit & 1
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a % p, c * b % p
        x3, z3 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p
        aa, bb = a * a % p, b * b % p
        e = (aa - bb) % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return x2 * pow(z2, -1, p) % p if z2 else 0


def hkdf_sha256(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2."""
    key = hmac.digest(salt or bytes(32), secret, sha256)
    block, out = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes((counter,)), sha256)
        out += block
    return out[:length]
