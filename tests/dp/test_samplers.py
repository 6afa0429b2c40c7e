import copy
import os
import pickle
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import mpmath
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from dp.samplers import (
    MAX_STDDEV,
    RandomBytes,
    _skellam_weights,
    _table,
    _thresholds,
    sample_skellam,
    secure_random,
)

UNIT = 2**127
SLACK = 2**-12  # of one unit: the 140-bit tail is cut off


def fixed_stream(key: int = 0) -> RandomBytes:
    """The same bytes in every run, so that statistical tests are deterministic."""
    keystream = Cipher(AES256(key.to_bytes(32, "big")), CTR(bytes(16))).encryptor()
    return lambda size: keystream.update(bytes(size))


class Script:
    """Hands out prepared words, exactly as asked for, and counts the bytes."""

    def __init__(self, *words: int) -> None:
        self.left = b"".join(word.to_bytes(8, "little") for word in words)

    def __call__(self, size: int) -> bytes:
        taken, self.left = self.left[:size], self.left[size:]
        return taken


def inverted(thresholds: Sequence[int], word: int, low: int = 0) -> int:
    """Independent inversion: all 127 bits compared at once in Python integers."""
    magnitude = bisect_right(thresholds, (word >> 1 << 64) + low)
    return -magnitude if word & 1 else magnitude


# The law in the table


@pytest.mark.parametrize("variance", [Fraction(1, 10**6), Fraction(1, 4), Fraction(7, 3), Fraction(4), Fraction(30**2)])
def test_every_threshold_is_the_true_cumulative_probability_rounded_down(variance):
    with mpmath.workdps(80):
        v = mpmath.mpf(variance.numerator) / variance.denominator
        mass = [mpmath.besseli(k, v) * mpmath.exp(-v) for k in range(len(_thresholds(_skellam_weights, variance)) - 1)]
        cumulative = mass[0]
        for k, threshold in enumerate(_thresholds(_skellam_weights, variance)[:-1]):
            cumulative += 2 * mass[k] if k else 0
            assert -SLACK <= cumulative * UNIT - threshold < 1 + SLACK, k


@pytest.mark.parametrize("stddev", [100, 4096, MAX_STDDEV])
def test_thresholds_agree_with_the_characteristic_function(stddev):
    # φ(t) = exp(v(cos t - 1)), inverted by a Fourier sum over so long a period that only 2^-170 folds back.
    period = 30 * stddev
    thresholds = _thresholds(_skellam_weights, Fraction(stddev**2))
    with mpmath.workdps(70):
        angles = [mpmath.pi * j / period for j in range(1, 101)]
        weights = [2 * mpmath.exp(-2 * stddev**2 * mpmath.sin(t) ** 2) / mpmath.sin(t) for t in angles]
        for k in (0, 1, stddev // 2, stddev, 3 * stddev, 6 * stddev, 9 * stddev, 13 * stddev):
            kernel = (weight * mpmath.sin((2 * k + 1) * t) for weight, t in zip(weights, angles, strict=True))
            cumulative = (2 * k + 1 + mpmath.fsum(kernel)) / period
            assert -SLACK <= cumulative * UNIT - thresholds[k] < 1 + SLACK, k


@pytest.mark.parametrize("variance", [Fraction(1, 10**400), Fraction(1, 3), Fraction(4), Fraction(1000**2)])
def test_table_reaches_the_140_bit_tail_and_ends_at_certainty(variance):
    thresholds = _thresholds(_skellam_weights, variance)
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] == UNIT
    assert UNIT - thresholds[-2] <= 1


def test_table_is_built_once_per_variance_and_cannot_be_written():
    table = _table(_skellam_weights, Fraction(4))
    assert _table(_skellam_weights, Fraction(8, 2)) is table
    for array in (table.high, table.low, table.guide):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# The draws


@pytest.mark.parametrize(
    "variance", [Fraction(1, 4), Fraction(4), Fraction(100**2), Fraction(4096**2), Fraction(50_000**2) / 7]
)
def test_draws_fit_the_skellam_law(variance):
    draws = 1_000_000
    noise = sample_skellam(draws, variance=variance, rand=fixed_stream())
    reach = int(8 * float(variance) ** 0.5) + 20
    cumulative = np.cumsum(special.ive(np.abs(np.arange(-reach, reach + 1)), float(variance)))
    # Up to 200 cells, cut at quantiles of the law.
    cuts = np.unique(np.searchsorted(cumulative, np.linspace(0.005, 0.995, 199)))
    expected = np.diff(cumulative[cuts], prepend=0.0, append=1.0) * draws
    observed = np.bincount(np.searchsorted(cuts - reach, noise, side="left"), minlength=expected.size)
    assert expected.min() > 100
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("stddev", [2, 100, 4096])
def test_mean_variance_and_kurtosis(stddev):
    noise = sample_skellam(1_000_000, variance=Fraction(stddev**2), rand=fixed_stream(1)).astype(float)
    assert abs(noise.mean()) < 5 * stddev / 1000
    assert noise.var() == pytest.approx(stddev**2, rel=5 * 2**0.5 / 1000)
    assert stats.kurtosis(noise) == pytest.approx(1 / stddev**2, abs=5 * 24**0.5 / 1000)


def test_shares_add_up_to_the_law_of_their_total_variance():
    shares = [sample_skellam(300_000, variance=Fraction(2, 3), rand=fixed_stream(key)) for key in range(3)]
    whole = sum(shares)
    support = np.arange(-4, 5)
    observed = [int((whole == k).sum()) for k in support]
    expected = special.ive(np.abs(support), 2.0) * whole.size
    assert (
        stats.chisquare([*observed, whole.size - sum(observed)], [*expected, whole.size - expected.sum()]).pvalue > 1e-3
    )


def test_blocks_join_without_gap_and_consume_eight_bytes_a_draw():
    length = 40_000  # more than one block, and no tie in it
    words = np.frombuffer(fixed_stream(2)(8 * length), dtype="<u8").tolist()
    thresholds = _thresholds(_skellam_weights, Fraction(50**2))
    noise = sample_skellam(length, variance=Fraction(50**2), rand=fixed_stream(2))
    assert noise.tolist() == [inverted(thresholds, word) for word in words]


def test_no_draw_consumes_nothing():
    noise = sample_skellam(0, variance=Fraction(4), rand=Script())
    assert noise.shape == (0,)
    assert noise.dtype == np.int64


# Forged randomness: the paths that honest bytes never reach


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("k", [0, 1, 7, 20])
def test_a_tie_is_settled_by_the_low_bits(k, sign):
    thresholds = _thresholds(_skellam_weights, Fraction(4))
    high, low = divmod(thresholds[k], 2**64)
    for forged, magnitude in ((low - 1, k), (low, k + 1), (0, k), (2**64 - 1, k + 1)):
        script = Script(high << 1 | sign, forged)
        assert sample_skellam(1, variance=Fraction(4), rand=script).tolist() == [-magnitude if sign else magnitude]
        assert not script.left


def test_near_a_threshold_no_low_bits_are_drawn():
    high = _thresholds(_skellam_weights, Fraction(4))[5] >> 64
    for near, magnitude in ((high - 1, 5), (high + 1, 6)):
        assert sample_skellam(1, variance=Fraction(4), rand=Script(near << 1)).tolist() == [magnitude]


def test_the_largest_draw_stops_at_the_last_index():
    thresholds = _thresholds(_skellam_weights, Fraction(4))
    last = len(thresholds) - 1
    assert sample_skellam(1, variance=Fraction(4), rand=Script(2**64 - 2, 2**64 - 1)).tolist() == [last]
    assert sample_skellam(1, variance=Fraction(4), rand=Script(2**64 - 1, 2**64 - 1)).tolist() == [-last]
    assert inverted(thresholds, 2**64 - 2, 2**64 - 1) == last


def test_zero_takes_either_sign():
    assert sample_skellam(2, variance=Fraction(4), rand=Script(0, 1)).tolist() == [0, 0]


def test_ties_in_one_block_read_their_low_bits_in_order():
    thresholds = _thresholds(_skellam_weights, Fraction(4))
    high, low = divmod(thresholds[3], 2**64)
    script = Script(high << 1, 0, high << 1 | 1, low - 1, low)
    assert sample_skellam(3, variance=Fraction(4), rand=script).tolist() == [3, 0, -4]


@cache
def thresholds_of(stddev: int) -> list[int]:
    return _thresholds(_skellam_weights, Fraction(stddev**2))


@settings(deadline=None)
@given(st.sampled_from([1, 30, 1000]), st.integers(0), st.integers(-1, 1), st.integers(0, 1), st.integers(0, 2**64 - 1))
def test_any_draw_equals_the_independent_inversion(stddev, index, shift, sign, low):
    thresholds = thresholds_of(stddev)
    high = min(max((thresholds[index % len(thresholds)] >> 64) + shift, 0), 2**63 - 1)
    word = high << 1 | sign
    noise = sample_skellam(1, variance=Fraction(stddev**2), rand=Script(word, low))
    assert noise.tolist() == [inverted(thresholds, word, low)]


# Refusals


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(-1), Fraction(MAX_STDDEV**2) + Fraction(1, 10**9)])
def test_variance_out_of_range(variance):
    with pytest.raises(ValueError, match="variance"):
        sample_skellam(1, variance=variance, rand=fixed_stream())


def test_variance_must_be_exact():
    with pytest.raises(TypeError, match="Fraction"):
        sample_skellam(1, variance=4.0, rand=fixed_stream())


def test_negative_length():
    with pytest.raises(ValueError, match="length"):
        sample_skellam(-1, variance=Fraction(4), rand=fixed_stream())


def test_a_source_that_runs_dry_gives_an_error_and_not_repeated_noise():
    with pytest.raises(ValueError, match="buffer"):
        sample_skellam(100, variance=Fraction(4), rand=lambda size: bytes(8))
    tie = _thresholds(_skellam_weights, Fraction(4))[3] >> 64 << 1
    with pytest.raises(ValueError, match="buffer"):
        sample_skellam(1, variance=Fraction(4), rand=Script(tie))


# The secure stream


def test_streams_are_independent_and_never_repeat():
    stream, other = secure_random(), secure_random()
    seen = {stream(32), stream(32), other(32), other(32)}
    assert len(seen) == 4
    assert {len(block) for block in seen} == {32}
    assert stream(0) == b""


def test_a_long_stream_has_no_equal_blocks_and_balanced_bits():
    data = secure_random()(1 << 20)
    assert len({data[i : i + 16] for i in range(0, len(data), 16)}) == len(data) // 16
    ones = int(np.unpackbits(np.frombuffer(data, dtype=np.uint8)).sum())
    assert abs(ones - 4 * len(data)) < 8 * (2 * len(data)) ** 0.5  # 8 standard deviations


def test_a_stream_cannot_be_copied_pickled_or_read():
    stream = secure_random()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            duplicate(stream)
    assert repr(stream) == "secure_random()"
    assert not hasattr(stream, "__dict__")


def test_parent_and_forked_child_draw_different_bytes():
    stream = secure_random()
    stream(32)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn when any thread exists
        child = os.fork()
    if child == 0:
        os.write(writer, stream(32))
        os._exit(0)
    os.waitpid(child, 0)
    from_child = os.read(reader, 32)
    os.close(reader)
    os.close(writer)
    assert len(from_child) == 32
    assert from_child != stream(32)
