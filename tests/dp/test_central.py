"""Central Gaussian noise: its law, its event, and that nobody can mistake it for a distributed mechanism."""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from scipy import stats  # type: ignore[import-untyped]

from dp.accounting import GaussianEvent, epsilon
from dp.central import CentralGaussian
from dp.errors import UnsafeUpdateError
from dp.mechanisms import LAWS

CENTRAL = CentralGaussian(noise_multiplier=1.5, clip_norm=2.0)


def fixed_stream(key: int = 0) -> Callable[[int], bytes]:
    keystream = Cipher(AES256(key.to_bytes(32, "big")), CTR(bytes(16))).encryptor()
    return lambda size: keystream.update(bytes(size))


@pytest.mark.parametrize("length", [100_000, 99_999])
def test_the_noise_is_normal_with_the_stated_deviation(length: int) -> None:
    total = np.linspace(-5, 5, length)
    before = total.copy()
    noise = CENTRAL.release(total, rand=fixed_stream()) - total
    assert np.array_equal(total, before)
    assert noise.shape == (length,)
    assert stats.kstest(noise / 3.0, "norm").pvalue > 1e-3
    halves = noise[: length // 2], noise[-(length // 2) :]
    assert abs(np.corrcoef(*halves)[0, 1]) < 5 / math.sqrt(length // 2)


def test_extreme_bytes_give_finite_noise() -> None:
    for byte in (b"\0", b"\xff"):
        assert np.isfinite(CENTRAL.release(np.zeros(5), rand=lambda size, byte=byte: byte * size)).all()  # type: ignore[misc]


def test_its_event_is_the_gaussian_one() -> None:
    assert CENTRAL.event() == GaussianEvent(noise_multiplier=Fraction(3, 2))
    sampled = dataclasses.replace(CENTRAL, sampling_rate=0.25)
    assert sampled.event() == GaussianEvent(noise_multiplier=Fraction(3, 2), sampling_rate=Fraction(1, 4))
    assert epsilon([sampled.event()], delta=1e-6) < epsilon([CENTRAL.event()], delta=1e-6)


def test_the_statement_says_that_the_server_sees_the_exact_sum() -> None:
    statement = CENTRAL.statement()
    assert "for comparison only" in statement
    assert "The server sees the exact sum" in statement
    assert "deviation 3 " in statement
    assert "against the server, and whoever breaks into it, it is infinite" in statement


def test_no_configuration_can_select_it() -> None:
    assert CentralGaussian not in LAWS.values()
    assert "gaussian" not in LAWS


@pytest.mark.parametrize("name", ["noise_multiplier", "clip_norm", "sampling_rate"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_bad_value_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be "):
        dataclasses.replace(CENTRAL, **{name: value})


@pytest.mark.parametrize("total", [[1.0], np.zeros(3, dtype=np.int64), np.zeros((2, 2))])
def test_what_is_no_float_vector_is_refused(total: object) -> None:
    with pytest.raises(UnsafeUpdateError):
        CENTRAL.release(total, rand=fixed_stream())  # type: ignore[arg-type]


def test_a_source_that_runs_dry_gives_an_error() -> None:
    with pytest.raises(ValueError, match="buffer"):
        CENTRAL.release(np.zeros(100), rand=lambda size: bytes(8))
