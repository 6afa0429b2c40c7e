"""Ring-LWE masks A s + e modulo 2^32: a sum of masks is removed with the sum of their keys. Experimental.

Rules:

1. The ring is Z_q[x] / (x^N + 1) with N = 2048, q = 2^32. Block j of a vector is masked with A_j s + e_j. Key and error
   follow the centred binomial law with variance 20: the number of ones among 80 uniform bits, minus 40.
2. A is public: block j is two rows of N signed 16-bit words a0, a1 of the AES-256-CTR keystream of a seed, and A_j =
   a0 + 2^16 a1, which is uniform modulo 2^32.
3. Masks are added a few blocks at a time, so memory is O(1) beside the vector.
4. Products are exact integers for every key whose coefficients are centred elements of F_65521; keys too large for the
   proof below are refused.

Open points: the parameters need the lattice estimator (who opens a sum over h honest clients learns the sums of their
keys and errors; what is left to protect one of them has sqrt(1 - 1/h) of the standard deviation); the written argument
is under review; so are patents.

Why the floating-point products are exact. Let eps = 2^-53, M = N / 2 = 1024 = 2^10.

- The fold: x^N + 1 = (x^M - i)(x^M + i), so the product of real polynomials is read off modulo x^M - i: coefficients k
  and k + M form one complex number; times w^k with w = exp(i pi / N), they are multiplied cyclically, by a Fourier
  transform of length M. Folding keeps the 2-norm.
- One rounding of a complex sum errs by a factor 1 + eps at most, of a complex product by 1 + sqrt(5) eps (Brent,
  Percival, Zimmermann, "Error bounds on complex floating-point multiplication", Math. Comp. 76, 2007). Computed roots
  of unity are off by at most beta = 16 eps: that is the one fact about NumPy's transform that is assumed, and a test
  measures it on every path of the transform. One level of a fast Fourier transform is a product with a root and a sum,
  so each path through it errs by a factor 1 + delta at most, 1 + delta = (1 + eps)(1 + sqrt(5) eps)(1 + beta). A pass
  of radix 4 or 8 is two or three levels with fewer products.
- Every path from the two inputs x, y to an output crosses 10 levels for x, 10 for y, 10 back, two foldings, one
  pointwise product and one unfolding: 34 factors; the scale 1/M is a power of two. Forward errors are bounded in the
  2-norm, where a level is sqrt(2) times a unitary map; then the pointwise products in the 1-norm, by Cauchy-Schwarz;
  and an output is 1/M times a sum over them along single paths (the argument of Percival, "Rapid multiplication modulo
  the sum and difference of highly composite numbers", Math. Comp. 72, 2003). So every output errs by at most

      |x|_2 |y|_2 ((1 + delta)^34 - 1)  <=  sqrt(N) 2^15 * sqrt(N) max|s| * 680 eps,

  below 1/2 for max|s| up to 98,000; it is 0.17 at 32760. Then rounding to the nearest integer gives the true one.
- Such products are below 2^43: float64 and int64 hold them.

With 32-bit words in place of the halves the same bound is 13 for a single key: not proven, hence the halves.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from . import prg
from .packing import UInt32Vector

DEGREE = 2048  # N
MODULUS_BITS = 32  # q = 2^32
VARIANCE = 20  # of one coefficient of a key, and of one error
LARGEST_SAMPLE = 40
_HALF = DEGREE // 2
_LARGEST_HALF_WORD = 1 << 15
_RELATIVE_ERROR = 680 * 2.0**-53
_BLOCK_BYTES = 4 * DEGREE
_BLOCKS_AT_ONCE = 32  # measured optimum: 64 transforms of 16 KiB fit the L2 cache
_SAMPLES_AT_ONCE = 1 << 15

Coefficients = NDArray[np.int64]


def rounding_bound(largest_key: int) -> float:
    """How far a floating-point product with a key of coefficients up to `largest_key` can be from the true integer."""
    return DEGREE * _LARGEST_HALF_WORD * largest_key * _RELATIVE_ERROR


def sum_bound(clients: int) -> int:
    """How large a coefficient of a sum of `clients` keys, or of their errors, may be.

    Ten standard deviations, or the true maximum if that is less. By Hoeffding's inequality an honest sum passes it with
    probability below 2 exp(-50) = 2^-71.
    """
    return min(LARGEST_SAMPLE * clients, isqrt(100 * VARIANCE * clients) + 1)


def sample(count: int, *, seed: bytes) -> Coefficients:
    """`count` centred binomial samples from a seed that serves nothing else; int64[count] in [-40, 40]."""
    return np.concatenate([_samples(first, count, seed) for first in range(0, count, _SAMPLES_AT_ONCE)])


def add_errors(words: UInt32Vector, *, seed: bytes) -> None:
    """Adds one error, as of `sample(len(words), seed=seed)`, to every word, in place, modulo 2^32."""
    for first in range(0, len(words), _SAMPLES_AT_ONCE):
        block = words[first : first + _SAMPLES_AT_ONCE]
        np.add(block, _samples(first, len(words), seed).astype(np.uint32), out=block)


def add_mask(words: UInt32Vector, key: Coefficients, *, seed: bytes) -> None:
    """Adds A s to `words`, in place, modulo 2^32.

    Args:
        words: uint32, any length; the last block may be partial.
        key: s, or -s to remove a mask; int64[2048].
        seed: the public 32-byte seed of A.

    Raises:
        ValueError: the key has another shape, or coefficients for which exactness is not proven.
    """
    if key.shape != (DEGREE,):
        raise ValueError(f"a key has {DEGREE} coefficients, got {list(key.shape)}")
    largest = int(np.abs(key).max())
    if rounding_bound(largest) >= 0.5:
        raise ValueError(f"products with coefficients up to {largest} are not proven to be exact")
    twist = _twist()
    transformed = np.fft.fft(_fold(key, twist))
    step = _BLOCKS_AT_ONCE * DEGREE
    for first in range(0, len(words), step):
        part = words[first : first + step]
        product = _products(_matrix(first, len(part), seed), transformed, twist)
        np.add(part, product.ravel()[: len(part)], out=part)


def _matrix(first: int, length: int, seed: bytes) -> NDArray[np.int16]:
    """int16[blocks, 2, N]: the halves a0, a1 of the blocks of A that cover words `first` to `first + length`."""
    blocks = -(-length // DEGREE)
    halves = np.zeros((blocks, 2, DEGREE), dtype="<u2")
    prg.apply_masks(halves.reshape(-1), add=[seed], subtract=[], first_byte=first // DEGREE * _BLOCK_BYTES)
    return halves.view("<i2")


def _products(
    halves: NDArray[np.int16], transformed: NDArray[np.complex128], twist: NDArray[np.complex128]
) -> UInt32Vector:
    """uint32[blocks, N]: A_j s for the blocks of A whose halves are given."""
    folded = _fold(halves, twist)
    np.fft.fft(folded, out=folded)
    np.multiply(folded, transformed, out=folded)
    np.fft.ifft(folded, out=folded)
    np.multiply(folded, twist.conj(), out=folded)
    rounded = np.rint(folded.view(np.float64)).astype(np.int64).astype(np.uint32)
    words = rounded[:, 0] + (rounded[:, 1] << np.uint32(16))
    return np.ascontiguousarray(words.reshape(-1, _HALF, 2).swapaxes(1, 2))


def _twist() -> NDArray[np.complex128]:
    """complex128[N/2]: w^k."""
    powers: NDArray[np.complex128] = np.exp(1j * np.pi / DEGREE * np.arange(_HALF))
    return powers


def _fold(coefficients: NDArray[np.signedinteger], twist: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """complex128[..., N/2]: polynomials modulo x^N + 1 as twisted polynomials modulo y^(N/2) - 1."""
    folded = np.empty((*coefficients.shape[:-1], _HALF), dtype=np.complex128)
    folded.real = coefficients[..., :_HALF]
    folded.imag = coefficients[..., _HALF:]
    np.multiply(folded, twist, out=folded)
    return folded


def _samples(first: int, count: int, seed: bytes) -> Coefficients:
    """Samples `first` up to the end of their segment; segment i takes the i-th 10 * 2^15 bytes of the keystream."""
    size = min(_SAMPLES_AT_ONCE, count - first)
    raw = np.zeros(5 * _SAMPLES_AT_ONCE, dtype="<u2")
    prg.apply_masks(raw, add=[seed], subtract=[], first_byte=10 * first)
    wide, narrow = raw[: 4 * size].view("<u8"), raw[4 * size : 5 * size]
    ones: Coefficients = np.bitwise_count(wide).astype(np.int64) + np.bitwise_count(narrow)
    return ones - LARGEST_SAMPLE
