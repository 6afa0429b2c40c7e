"""A public random rotation that spreads a vector evenly over its coordinates, so that a smaller ring holds a sum.

Rules:

- Nothing is padded. With N the largest power of two <= d, a window of N coordinates at the front and one of N at the
  back are each multiplied by random signs and by the orthonormal Walsh-Hadamard matrix; if N = d, one window is all.
  The windows overlap, so every coordinate is in at least one.
- Each step is orthogonal: norms stay, sums of rotated vectors are rotated sums, and the inverse is the transpose.
- A vector chosen without knowledge of the signs is spread: each coordinate of the result is sub-Gaussian with variance
  proxy norm²/N, that is P(|coordinate| >= t) <= 2·exp(-t²·N / (2·norm²)), and N > d/2. Proof: a coordinate of a window
  is a sum of entries with independent signs over √N (Hoeffding 1963, Theorem 2), and the window's norm is at most the
  vector's, whatever the other window did before.
- The signs are AES-256-CTR under SHA-256(label, seed): equal at all parties, public, fresh for each round. They save
  bits and protect nothing. Who knows them first can aim at one coordinate, and gains what any client has anyway: to
  spoil a sum that it is part of.

Source: the flattening of Kairouz, Liu, Steinke, ICML 2021 (arXiv 2102.06387), section 4, which pads to a power of two.
"""

from functools import lru_cache
from hashlib import sha256

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from .samplers import FloatVector

LABEL = b"secagg/v1/rotation"
_RADIX = 5  # bits of a butterfly: products with 32 x 32 matrices are bound by memory, no longer by instructions
_TILE = (
    256  # columns of one product: it stays in cache, and is too small for BLAS to wake its threads, which costs more
)


def spread(length: int) -> int:
    """N: over how many coordinates a rotation of `length` coordinates spreads each; more than half of them.

    Raises:
        ValueError: `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"length must be >= 1, got {length}")
    return 1 << (length.bit_length() - 1)


class Rotation:
    """The rotation of one round.

    Args:
        length: d, coordinates of the vectors, at least 1.
        seed: public bytes that all parties of the round share.

    Raises:
        ValueError: `length` is below 1.
    """

    def __init__(self, length: int, *, seed: bytes) -> None:
        window = spread(length)
        self._length = length
        self._windows = (slice(0, window),) if window == length else (slice(0, window), slice(length - window, length))
        keystream = Cipher(AES256(sha256(LABEL + seed).digest()), CTR(bytes(16))).encryptor()
        self._signs: list[FloatVector] = []
        for _ in self._windows:
            bits = np.unpackbits(np.frombuffer(keystream.update(bytes(-(-window // 8))), dtype=np.uint8), count=window)
            self._signs.append(1.0 - 2.0 * bits.astype(np.float64))

    def apply(self, vector: FloatVector) -> FloatVector:
        """The rotated vector, a new float64[d] of the same norm up to float rounding.

        Raises:
            ValueError: the vector is not of `length`.
        """
        rotated = self._copy(vector)
        for window, signs in zip(self._windows, self._signs, strict=True):
            rotated[window] = _hadamard(rotated[window] * signs)
        return rotated

    def invert(self, vector: FloatVector) -> FloatVector:
        """The vector that `apply` turned into this one: float64[d].

        Raises:
            ValueError: the vector is not of `length`.
        """
        restored = self._copy(vector)
        for window, signs in zip(reversed(self._windows), reversed(self._signs), strict=True):
            restored[window] = _hadamard(restored[window]) * signs
        return restored

    def _copy(self, vector: FloatVector) -> FloatVector:
        if vector.shape != (self._length,):
            raise ValueError(f"the rotation is for {self._length} coordinates, got shape {vector.shape}")
        return vector.astype(np.float64)


def _hadamard(vector: FloatVector) -> FloatVector:
    """The product with the orthonormal Walsh-Hadamard matrix of the vector's size, a power of two.

    The matrix is the Kronecker product of small ones, so the vector is taken as an array of many short axes, and each
    axis is multiplied by its own small matrix.
    """
    bits, size = vector.size.bit_length() - 1, vector.size
    current, spare, left = vector.copy(), np.empty_like(vector), 1
    while bits:
        step = min(bits, _RADIX)
        rows, right = 1 << step, size // left >> step
        if right == 1:
            narrow = (-1, min(left, _TILE), rows)
            np.matmul(current.reshape(narrow), _matrix(step), out=spare.reshape(narrow))
        else:
            wide = (left, rows, -1, min(right, _TILE))
            np.matmul(_matrix(step), current.reshape(wide).swapaxes(1, 2), out=spare.reshape(wide).swapaxes(1, 2))
        current, spare, left, bits = spare, current, left << step, bits - step
    return current


@lru_cache(maxsize=_RADIX)
def _matrix(bits: int) -> FloatVector:
    """The orthonormal Walsh-Hadamard matrix of 2^bits rows (Sylvester's construction)."""
    matrix = np.ones((1, 1))
    for _ in range(bits):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix *= 2.0 ** (-bits / 2)
    matrix.setflags(write=False)
    return matrix
