"""Secret randomness and exact integer noise.

This module owns the one seam through which randomness enters `dp`, and the noise drawn from it. Its rules:

- Randomness is a `RandomBytes`: a callable that returns the next n bytes of a stream. In production it is
  `secure_random()`; tests pass any other.
- No float decides a draw. Noise comes from a table of 127-bit cumulative probabilities, built in Python integers and
  kept per law and variance. Each probability is off by less than 2⁻¹²⁷, so d draws are within d·(K + 1)·2⁻¹²⁷ of the
  law in total variation, where K, the largest draw, is about 14 standard deviations.
- Table look-ups are not constant-time: whoever can measure this process's cache or clock may learn about its own noise.
- Noise is never logged, stored or drawn twice from the same bytes.

Sources of the laws: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning",
NeurIPS 2021 (arXiv 2110.04995), with Bessel functions by Abramowitz and Stegun 9.6.26 (recurrence), 9.12 (run
downwards); Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020 (arXiv 2004.00010).

    >>> from fractions import Fraction
    >>> sample_skellam(3, variance=Fraction(4096**2), rand=secure_random()).dtype
    dtype('int64')
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Final, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

RandomBytes = Callable[[int], bytes]
"""The next n bytes of a random stream. Successive calls continue the stream, whatever the sizes asked for."""

Law = Callable[[Fraction], list[int]]
"""Integer weights of |k| = 0 … last, proportional to P(X = k), at a given variance."""

Int64Vector = NDArray[np.int64]
UInt32Vector = NDArray[np.uint32]
IntVector = NDArray[np.intp]
FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float64]

MAX_STDDEV: Final = 65536
"""Largest standard deviation served: finer steps buy nothing, and its table takes 0.5 s and 140 MB to build."""

_TAIL_BITS = 140  # probability mass beyond the last table entry: far below one unit of a threshold
_GUARD_BITS = 64  # precision of the least Bessel value: a floor division misplaces 2^-(64 + 140) of the mass or less
_GAUSSIAN_BITS = 320  # precision of discrete Gaussian weights; the recurrence loses 2^60 units over the longest table
_BLOCK = 1 << 15  # draws at a time: their temporaries fit a core's second-level cache
_GUIDE_SHIFT = 63 - 16  # the guide is indexed by the top 16 of 63 magnitude bits
_LAST_TOP = (1 << 63) - 1
_CACHED_TABLES = 32  # a process uses one variance per mechanism, or one per removable component: about 1 MB each


_generation = 0  # forks between this process and the first: process ids may recur, this cannot


def _after_fork() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


class _AesCtrStream:
    """AES-256-CTR keyed by the OS. A forked child starts a new key, so it shares no byte with its parent."""

    __slots__ = ("_generation", "_keystream")

    def __init__(self) -> None:
        self._generation = _generation
        self._keystream = _fresh_keystream()

    def __call__(self, size: int, /) -> bytes:
        if self._generation != _generation:
            self._generation = _generation
            self._keystream = _fresh_keystream()
        return self._keystream.update(bytes(size))

    def __repr__(self) -> str:
        return "secure_random()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret random stream cannot be pickled or copied: two holders would draw the same noise")


def _fresh_keystream() -> CipherContext:
    """A CTR encryptor, sole holder of its key. The counter may start at zero because no key is used twice."""
    return Cipher(AES256(os.urandom(32)), CTR(bytes(16))).encryptor()


def secure_random() -> RandomBytes:
    """Open a fresh cryptographic random stream: AES-256-CTR under a key that the operating system drew.

    The stream re-keys itself after a fork, shows nothing in its `repr`, and refuses to be pickled or copied. Use one
    stream per thread.

    Returns:
        A callable; `stream(n)` gives the next n bytes.
    """
    return _AesCtrStream()


def seeded_random(seed: bytes) -> RandomBytes:
    """The stream of a seed that was itself drawn from `secure_random` or the like: AES-256-CTR, the same for everybody.

    For noise that another party must be able to draw again.

    Raises:
        ValueError: the seed does not have 32 bytes.
    """
    if len(seed) != 32:
        raise ValueError(f"a seed must have 32 bytes, got {len(seed)}")
    keystream = Cipher(AES256(seed), CTR(bytes(16))).encryptor()
    return lambda size: keystream.update(bytes(size))


@dataclass(frozen=True, slots=True)
class _Table:
    """Cumulative law of |X|: threshold T_k = high[k]·2⁶⁴ + low[k] = ⌊2¹²⁷·P(|X| ≤ k)⌋ for k = 0 … last."""

    high: Int64Vector
    low: NDArray[np.uint64]
    guide: NDArray[np.intp]  # by top 16 bits: first k whose threshold can lie at or above such a draw

    @property
    def last(self) -> int:
        return self.high.size - 1


def poisson_draw(count: int, *, rate: Fraction, rand: RandomBytes) -> IntVector:
    """A secret Poisson sample: every one of `count` records is in it independently with probability `rate`.

    A record is drawn when its 64-bit word is below floor(rate * 2^64): with the rate, or less by under 2^-64.

    Args:
        count: Records to draw from.
        rate: Public rate in (0, 1].
        rand: Secure bytes; 8·count are consumed.

    Returns:
        int64[m], the drawn indices, increasing.
    """
    threshold = math.floor(rate * 2**64)
    words = np.frombuffer(rand(8 * count), dtype="<u8")
    return np.arange(count) if threshold == 2**64 else np.flatnonzero(words < np.uint64(threshold))


def sample_skellam(length: int, *, variance: Fraction, rand: RandomBytes) -> Int64Vector:
    """Draw independent symmetric Skellam noise: the difference of two Poisson variables of rate `variance`/2 each.

    P(X = k) = exp(-variance)·I_|k|(variance). Sums of independent draws are again Skellam, and their variances add.

    Args:
        length: Number of draws.
        variance: Variance of one draw, exact, in (0, 65536²].
        rand: Source of randomness. Every draw consumes 8 bytes; one in about 2⁶³/K, K ≈ 14 standard deviations,
            consumes 8 more.

    Returns:
        int64[length], mean 0.

    Raises:
        ValueError: `length` is negative or `variance` is out of range.
        TypeError: `variance` is not a Fraction; a float would not say which law was meant.
    """
    return _sample(_skellam_weights, length, variance=variance, rand=rand)


def sample_discrete_gaussian(length: int, *, variance: Fraction, rand: RandomBytes) -> Int64Vector:
    """Draw independent discrete Gaussian noise: P(X = k) is proportional to exp(-k²/(2·`variance`)).

    The law is not closed under addition; what a sum of draws is worth is accounted by `DiscreteGaussianEvent`.

    Args:
        length: Number of draws.
        variance: The parameter σ², exact, in (0, 65536²]. A draw's variance is below it, by less than 2⁻¹⁰⁰ of it from
            σ = 4 on.
        rand: Source of randomness, consumed as by `sample_skellam`.

    Returns:
        int64[length], mean 0.

    Raises:
        ValueError, TypeError: As `sample_skellam`.
    """
    return _sample(_gaussian_weights, length, variance=variance, rand=rand)


def _sample(law: Law, length: int, *, variance: Fraction, rand: RandomBytes) -> Int64Vector:
    """Draws of either law, block by block."""
    if length < 0:
        raise ValueError(f"length must be >= 0, got {length}")
    if not isinstance(variance, Fraction):
        raise TypeError(f"variance must be a Fraction, got {type(variance).__name__}")
    if not 0 < variance <= MAX_STDDEV**2:
        raise ValueError(f"variance must lie in (0, {MAX_STDDEV}**2], got {float(variance):g}")
    table = _table(law, variance)
    noise = np.empty(length, dtype=np.int64)
    for start in range(0, length, _BLOCK):
        block = noise[start : start + _BLOCK]
        block[:] = _draw(table, block.size, rand=rand)
    return noise


def _draw(table: _Table, size: int, *, rand: RandomBytes) -> Int64Vector:
    """Invert the cumulative law: |X| = #{k : T_k <= u}, u uniform on [0, 2¹²⁷), low 64 bits drawn only if needed."""
    words = _draw_words(size, rand=rand)
    # Signed on purpose: NumPy compares uint64 with int64 as float64, which would drop the low bits.
    top = (words >> np.uint64(1)).view(np.int64)
    magnitude = table.guide[top >> _GUIDE_SHIFT]
    unsure = np.flatnonzero(table.high[magnitude] <= top)
    wanted = top[unsure]
    found = np.searchsorted(table.high, wanted, side="left")
    magnitude[unsure] = found
    for tie in np.flatnonzero(table.high[found] == wanted):
        magnitude[unsure[tie]] = _break_tie(table, int(found[tie]), rand=rand)
    # Zero takes either sign without rejection, because the folded law counts P(X = 0) once, every other P(X = k) twice.
    sign: Int64Vector = -(words & np.uint64(1)).view(np.int64)
    signed: Int64Vector = (magnitude ^ sign) - sign
    return signed


def _break_tie(table: _Table, first: int, *, rand: RandomBytes) -> int:
    """The draw's high bits equal those of threshold `first`: compare the low bits too, in Python integers."""
    low = int(_draw_words(1, rand=rand)[0])
    index = first
    while index < table.last and table.high[index] == table.high[first] and int(table.low[index]) <= low:
        index += 1
    return index


def _draw_words(count: int, *, rand: RandomBytes) -> NDArray[np.uint64]:
    """Uniform 64-bit words; a source that returns too few bytes is a ValueError, never a repeated draw."""
    return np.frombuffer(rand(8 * count), dtype="<u8", count=count)


@lru_cache(maxsize=_CACHED_TABLES)
def _table(law: Law, variance: Fraction) -> _Table:
    """Build the read-only table of one law and variance."""
    packed = b"".join(threshold.to_bytes(16, "little") for threshold in _thresholds(law, variance))
    halves = np.frombuffer(packed, dtype="<u8").reshape(-1, 2)
    # The last threshold, 2¹²⁷, has one bit too many. Capped, it still ends every search, and `_break_tie` stops at it.
    high = np.minimum(halves[:, 1], np.uint64(_LAST_TOP)).astype(np.int64)
    low = halves[:, 0].astype(np.uint64)
    buckets = np.arange(1 << 16, dtype=np.int64) << _GUIDE_SHIFT
    guide = np.searchsorted(high, buckets, side="left")
    for array in (high, low, guide):
        array.setflags(write=False)
    return _Table(high, low, guide)


def _thresholds(law: Law, variance: Fraction) -> list[int]:
    """⌊2¹²⁷·P(|X| ≤ k)⌋ for k = 0 … last, the last one forced to 2¹²⁷."""
    weights = law(variance)
    total = 2 * sum(weights) - weights[0]
    cumulative = -weights[0]
    thresholds = []
    for value in weights[:-1]:
        cumulative += 2 * value
        thresholds.append((cumulative << 127) // total)
    return [*thresholds, 1 << 127]


def _skellam_weights(variance: Fraction) -> list[int]:
    """Multiples of P(X = k) for k = 0 … last."""
    # Bernstein: P(|X| > k) <= 2·exp(-k²/(2(v + k/3))), solved for 2^-_TAIL_BITS.
    exponent = (_TAIL_BITS + 1) * math.log(2)
    last = math.ceil(exponent / 3 + math.sqrt(exponent**2 / 9 + 2 * exponent * float(variance)))
    # I_(k-1) = I_(k+1) + (2k/v)·I_k, run downwards from I_last = 1, I_(last+1) = 0. This wrong start adds a multiple of
    # the other solution K_k, which falls on the way down: all in all about as much as the mass beyond `last`.
    bessel = [0] * (last + 2)
    bessel[last] = 1 << _GUARD_BITS
    for k in range(last, 0, -1):
        bessel[k - 1] = bessel[k + 1] + 2 * k * variance.denominator * bessel[k] // variance.numerator
    return bessel[: last + 1]


def _gaussian_weights(variance: Fraction) -> list[int]:
    """2^_GAUSSIAN_BITS·exp(-k²/(2v)) for k = 0 … last, within 2^60 units in all."""
    # The law is sub-Gaussian: P(|X| > k) <= 2·exp(-k²/(2v)), solved for 2^-_TAIL_BITS.
    last = math.ceil(math.sqrt(2 * (_TAIL_BITS + 1) * math.log(2) * float(variance)))
    # The ratio of neighbours, exp(-(2k + 1)/(2v)), itself falls by the factor exp(-1/v) from each to the next.
    step = _exp_minus(1 / variance)
    ratio = _exp_minus(1 / (2 * variance))
    weights = [1 << _GAUSSIAN_BITS]
    for _ in range(last):
        weights.append(weights[-1] * ratio >> _GAUSSIAN_BITS)
        ratio = ratio * step >> _GAUSSIAN_BITS
    return weights


def _exp_minus(exponent: Fraction) -> int:
    """2^_GAUSSIAN_BITS·exp(-exponent), within one unit."""
    # `decimal` rounds its exponential correctly; 110 digits are 45 bits more than are kept.
    context = Context(prec=110)
    power = context.divide(Decimal(-exponent.numerator), Decimal(exponent.denominator)).exp(context)
    return int(context.multiply(power, Decimal(1 << _GAUSSIAN_BITS)))
