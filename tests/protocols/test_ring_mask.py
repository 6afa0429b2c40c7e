"""Ring-LWE masks against Python integers of any size, on the worst inputs that the proof allows."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from math import comb, isqrt, sqrt

import mpmath
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocols.primitives import ring_mask
from protocols.primitives.ring_mask import DEGREE

Integers = NDArray[np.int64]
EPS = Fraction(1, 2**53)
ROOT_ERROR = 16 * EPS  # beta
DELTA = (1 + EPS) * (1 + Fraction(22361, 10000) * EPS) * (1 + ROOT_ERROR) - 1
SEED = bytes(range(32))
LARGEST = 32760  # the centred elements of F_65521
HALF_WORDS = (-(2**15), 2**15 - 1)


def keystream(seed: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def packed(coefficients: Integers) -> int:
    """The polynomial's value at 2^64."""
    shifted = int.from_bytes((coefficients + 2**62).astype("<u8").tobytes(), "little")
    return shifted - int.from_bytes(np.full(len(coefficients), 2**62, dtype="<u8").tobytes(), "little")


def negacyclic(a: Integers, b: Integers) -> Integers:
    """a b modulo x^N + 1 over the integers, by one product of two long integers (Kronecker substitution)."""
    n = len(a)
    offset = int.from_bytes(np.full(2 * n, 2**62, dtype="<u8").tobytes(), "little")
    raw = (packed(a) * packed(b) + offset).to_bytes(16 * n, "little")
    digits = np.frombuffer(raw, dtype="<u8").astype(np.int64) - 2**62
    return digits[:n] - digits[n:]


def schoolbook(a: Integers, b: Integers) -> Integers:
    n = len(a)
    result = [0] * n
    for i in range(n):
        for j in range(n):
            result[(i + j) % n] += int(a[i]) * int(b[j]) * (1 if i + j < n else -1)
    return np.array(result, dtype=np.int64)


def expected_mask(key: Integers, length: int, seed: bytes = SEED) -> NDArray[np.uint32]:
    """A s by the documented definition of A."""
    blocks = -(-length // DEGREE)
    halves = (
        np.frombuffer(keystream(seed, 4 * DEGREE * blocks), dtype="<i2").reshape(blocks, 2, DEGREE).astype(np.int64)
    )
    products = [negacyclic(low + 65536 * high, key) for low, high in halves]
    return np.concatenate(products)[:length].astype(np.uint32)


def patterns(low: int, high: int) -> dict[str, Integers]:
    """Polynomials that stress a Fourier transform: constant, oscillating, spiked, flat and peaked in the spectrum."""
    k = np.arange(DEGREE)
    spike, two_spikes = np.zeros((2, DEGREE), dtype=np.int64)
    spike[DEGREE - 1] = low
    two_spikes[[0, DEGREE // 2]] = low, high
    signs = np.random.default_rng(7).integers(0, 2, DEGREE)
    waves = {
        f"wave {frequency}": np.where(np.cos(np.pi * (2 * frequency + 1) * k / DEGREE) < 0, low, high)
        for frequency in (0, 1, 511, 1023)
    }
    return {
        "smallest": np.full(DEGREE, low),
        "largest": np.full(DEGREE, high),
        "alternating": np.where(k % 2, low, high),
        "pairs": np.where(k // 2 % 2, low, high),
        "halves": np.where(k < DEGREE // 2, low, high),
        "spike": spike,
        "two spikes": two_spikes,
        "random signs": np.where(signs, low, high),
        "chirp": np.where(np.cos(np.pi * k * k / DEGREE) < 0, low, high),
        "ramp": low + (high - low) * k // (DEGREE - 1),
        **waves,
    }


A_PATTERNS = patterns(*HALF_WORDS)
KEY_PATTERNS = patterns(-LARGEST, LARGEST)


class TestOracle:
    def test_agrees_with_the_schoolbook(self) -> None:
        rng = np.random.default_rng(0)
        for n in (1, 2, 7, 32):
            a, b = rng.integers(-(2**31), 2**31, (2, n))
            b %= 2**15
            assert np.array_equal(negacyclic(a, b), schoolbook(a, b))


class TestProof:
    def test_constants_cover_the_bound(self) -> None:
        """34 factors of 1 + delta err by at most 680 eps."""
        assert (1 + DELTA) ** 34 - 1 <= 680 * EPS
        assert Fraction(22361, 10000) ** 2 > 5
        assert 2 ** (DEGREE // 2).bit_length() == DEGREE  # ten levels
        assert ring_mask.rounding_bound(LARGEST) == DEGREE * 2**15 * LARGEST * 680 / 2**53 < 0.17

    def test_unproven_keys_are_refused(self) -> None:
        key = np.zeros(DEGREE, dtype=np.int64)
        words = np.zeros(4, dtype=np.uint32)
        key[5] = -98_689
        assert ring_mask.rounding_bound(98_689) < 0.5 <= ring_mask.rounding_bound(98_690)
        ring_mask.add_mask(words, key, seed=SEED)
        assert np.array_equal(words, expected_mask(key, 4))
        key[5] = -98_690
        with pytest.raises(ValueError, match="98690"):
            ring_mask.add_mask(words, key, seed=SEED)
        with pytest.raises(ValueError, match="2048"):
            ring_mask.add_mask(words, key[1:], seed=SEED)

    def test_roots_of_unity_on_every_path_of_the_transform(self) -> None:
        """The one assumption about NumPy: an impulse shows the product of roots on each path from input to output."""
        size = DEGREE // 2
        with mpmath.workdps(40):
            exact = [mpmath.expjpi(mpmath.mpf(2 * k) / size) for k in range(size)]
            high = np.array([complex(root) for root in exact])
            low = np.array([complex(root - mpmath.mpc(near)) for root, near in zip(exact, high, strict=True)])
        identity = np.eye(size, dtype=np.complex128)
        power = np.outer(np.arange(size), np.arange(size)) % size
        for computed, index in ((np.fft.fft(identity), -power % size), (size * np.fft.ifft(identity), power)):
            error = np.abs((computed - high[index]) - low[index])
            assert error.max() <= float(ROOT_ERROR)

    def test_roots_of_unity_of_the_fold(self) -> None:
        with mpmath.workdps(40):
            errors = [abs(mpmath.expjpi(mpmath.mpf(k) / DEGREE) - complex(w)) for k, w in enumerate(ring_mask._twist())]
        assert len(errors) == DEGREE // 2
        assert max(errors) <= float(ROOT_ERROR)


class TestProducts:
    @pytest.mark.parametrize("name", KEY_PATTERNS)
    def test_are_exact_for_the_worst_inputs(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every pattern of A, in both halves, against a key with all coefficients at the limit."""
        key = KEY_PATTERNS[name]
        matched = np.where(np.concatenate([key[:1], -key[:0:-1]]) < 0, *HALF_WORDS)  # the largest possible coefficient
        rows = [*A_PATTERNS.values(), matched]
        halves = np.array([[row, rows[(i + 3) % len(rows)]] for i, row in enumerate(rows)])
        unrounded: list[NDArray[np.float64]] = []

        def rint(values: NDArray[np.float64]) -> NDArray[np.float64]:
            unrounded.append(values.copy())
            return rounded(values)

        rounded = np.rint
        monkeypatch.setattr(np, "rint", rint)
        monkeypatch.setattr(ring_mask, "_matrix", lambda *_: halves.astype(np.int16))
        words = np.zeros(DEGREE * len(rows), dtype=np.uint32)
        ring_mask.add_mask(words, key, seed=SEED)
        products = [[negacyclic(half, key) for half in block] for block in halves]
        exact = np.concatenate([low + 65536 * high for low, high in products])
        assert np.array_equal(words, exact.astype(np.uint32))
        assert int(np.abs(products).max()) > 2**29
        (values,) = unrounded
        interleaved = np.array(products).reshape(*halves.shape[:2], 2, -1).swapaxes(2, 3).reshape(values.shape)
        assert np.abs(values - interleaved).max() <= ring_mask.rounding_bound(LARGEST)

    @given(st.integers(0, 2**32), st.integers(1, LARGEST), st.binary(min_size=32, max_size=32))
    @settings(max_examples=15)
    def test_are_exact_for_random_inputs(self, random: int, largest: int, seed: bytes) -> None:
        rng = np.random.default_rng(random)
        key = rng.integers(-largest, largest + 1, DEGREE)
        words = start = rng.integers(0, 2**32, 2 * DEGREE + 3, dtype=np.uint64).astype(np.uint32)
        words = start.copy()
        ring_mask.add_mask(words, key, seed=seed)
        assert np.array_equal(words - start, expected_mask(key, len(words), seed))
        ring_mask.add_mask(words, -key, seed=seed)
        assert np.array_equal(words, start)

    @pytest.mark.parametrize("length", [1, 2047, 2048, 2049, 32 * 2048 - 1, 32 * 2048, 32 * 2048 + 1])
    def test_any_length(self, length: int) -> None:
        key = KEY_PATTERNS["random signs"]
        words = np.zeros(length, dtype=np.uint32)
        ring_mask.add_mask(words, key, seed=SEED)
        assert np.array_equal(words, expected_mask(key, length))

    def test_masks_add_like_their_keys(self) -> None:
        keys = [ring_mask.sample(DEGREE, seed=bytes([i]) * 32) for i in range(20)]
        together, apart = np.zeros((2, 5000), dtype=np.uint32)
        for key in keys:
            ring_mask.add_mask(together, key, seed=SEED)
        ring_mask.add_mask(apart, np.sum(keys, axis=0), seed=SEED)
        assert np.array_equal(together, apart)
        other = np.zeros(5000, dtype=np.uint32)
        ring_mask.add_mask(other, keys[0], seed=SEED[::-1])
        assert not np.array_equal(other, expected_mask(keys[0], 5000))

    def test_memory_does_not_grow_with_the_vector(self) -> None:
        words = np.zeros(2_000_000, dtype=np.uint32)
        key = ring_mask.sample(DEGREE, seed=SEED)
        tracemalloc.start()
        ring_mask.add_errors(words, seed=SEED)
        ring_mask.add_mask(words, key, seed=SEED)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < words.nbytes


class TestSamples:
    def test_follow_the_documented_layout(self) -> None:
        """Sample i of a full segment: the ones of the 64-bit word i and of the 16-bit word i behind all of those."""
        raw = keystream(SEED, 20 * 2**15)
        samples = ring_mask.sample(2**15 + 7, seed=SEED)
        for start, count, index in ((0, 2**15, 0), (0, 2**15, 12_345), (2**15, 7, 0), (2**15, 7, 6)):
            segment = raw[10 * start :]
            wide = segment[8 * index : 8 * index + 8]
            narrow = segment[8 * count + 2 * index : 8 * count + 2 * index + 2]
            assert samples[start + index] == int.from_bytes(wide + narrow, "little").bit_count() - 40

    def test_follow_the_binomial_law(self) -> None:
        count = 400_000
        samples = ring_mask.sample(count, seed=SEED)
        assert samples.dtype == np.int64
        assert abs(samples.mean()) < 5 * sqrt(20 / count)
        assert abs(samples.var() / ring_mask.VARIANCE - 1) < 5 * sqrt(2 / count)
        observed = np.bincount(samples + 40, minlength=81)
        law = np.array([comb(80, ones) / 2**80 for ones in range(81)]) * count
        frequent = law > 20
        statistic = ((observed - law)[frequent] ** 2 / law[frequent]).sum()
        assert statistic < frequent.sum() + 5 * sqrt(2 * frequent.sum())
        assert observed[~frequent].sum() < law[~frequent].sum() + 5 * sqrt(law[~frequent].sum()) + 1

    def test_errors_are_samples(self) -> None:
        words = np.full(40_000, 5, dtype=np.uint32)
        ring_mask.add_errors(words, seed=SEED)
        assert np.array_equal(words.view(np.int32) - 5, ring_mask.sample(40_000, seed=SEED))

    @given(st.integers(1, 70_000))
    def test_sums_stay_within_their_bound(self, clients: int) -> None:
        """Hoeffding: the bound is ten standard deviations, or what no sum can pass."""
        bound = ring_mask.sum_bound(clients)
        assert bound >= 40 * clients or bound**2 >= 100 * ring_mask.VARIANCE * clients
        assert bound <= isqrt(2000 * clients) + 1
