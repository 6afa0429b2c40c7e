"""Mechanisms: the noise that is drawn is the noise that is accounted, and calibration keeps its budget exactly."""

import copy
import dataclasses
import hashlib
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp.accounting import SkellamEvent, epsilon
from dp.encoding import MAX_INT_BOUND
from dp.errors import CapacityError, UnaccountableError, UnsafeUpdateError
from dp.mechanisms import SHARE_STDDEVS, DistributedSkellam, NoisedIntegers, calibrate
from dp.units import ClientLevel, RecordLevel

Int64Vector = NDArray[np.int64]


def stream(seed: str) -> Callable[[int], bytes]:
    """A deterministic byte stream: the same test sees the same noise every time."""
    counter = iter(range(10**9))

    def rand(length: int) -> bytes:
        return hashlib.shake_128(f"{seed}/{next(counter)}".encode()).digest(length)

    return rand


def skellam(**changes: Any) -> DistributedSkellam:
    plain: dict[str, Any] = {
        "int_bound": 300,
        "share_variance": Fraction(64**2),
        "dimension": 20_000,
        "clients": 10,
        "min_survivors": 6,
        "max_colluders": 2,
        "sampling_rate": Fraction(1),
    }
    return DistributedSkellam(**(plain | changes))


# --- noise ---


def has_claimed_variance(noise: Int64Vector, event: SkellamEvent) -> bool:
    """The sample variance lies within five of its standard errors of the event's variance."""
    measured = float(np.mean(noise.astype(np.float64) ** 2))
    return abs(measured / float(event.variance) - 1) <= 5 * math.sqrt(2 / len(noise))


def sum_of_shares(mechanism: DistributedSkellam, survivors: int, seed: str) -> Int64Vector:
    rand = stream(seed)
    return np.asarray(np.sum([mechanism.noise_share(rand=rand) for _ in range(survivors)], axis=0), dtype=np.int64)


@pytest.mark.parametrize("survivors", [6, 8, 10])
def test_the_summed_shares_have_the_variance_that_is_accounted(survivors: int) -> None:
    mechanism = skellam()
    noise = sum_of_shares(mechanism, survivors, f"sum {survivors}")
    assert noise.dtype == np.int64
    assert noise.shape == (mechanism.dimension,)
    assert has_claimed_variance(noise, mechanism.event(survivors=survivors, colluders=0))
    assert abs(noise.mean()) <= 5 * math.sqrt(survivors * 64**2 / mechanism.dimension)


def test_what_colluders_subtract_leaves_the_variance_that_is_accounted() -> None:
    mechanism = skellam()
    rand = stream("colluders")
    shares = [mechanism.noise_share(rand=rand) for _ in range(8)]
    known = shares[0] + shares[1]
    assert has_claimed_variance(np.sum(shares, axis=0) - known, mechanism.event(survivors=8))


def test_a_lost_share_is_visible_in_the_variance() -> None:
    mechanism = skellam()
    assert not has_claimed_variance(sum_of_shares(mechanism, 7, "lost"), mechanism.event(survivors=8, colluders=0))


def test_dividing_the_deviation_instead_of_the_variance_is_caught() -> None:
    """Mutant: each of n shares gets sigma / n instead of sigma / sqrt(n)."""
    unit = ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-5, rounds=20)
    claimed = calibrate(unit, dimension=20_000, clients=10, min_survivors=10, max_colluders=0)
    drawn = dataclasses.replace(claimed, share_variance=claimed.share_variance / 10)
    noise = sum_of_shares(drawn, 10, "sigma over n")
    assert not has_claimed_variance(noise, claimed.event(survivors=10))
    actual = dataclasses.replace(
        claimed.event(survivors=10), variance=Fraction(float(np.mean(noise.astype(np.float64) ** 2)))
    )
    assert epsilon({actual: unit.rounds}, delta=unit.delta) > 2 * unit.epsilon


def test_two_shares_are_independent_draws() -> None:
    mechanism = skellam()
    rand = stream("independent")
    first, second = mechanism.noise_share(rand=rand), mechanism.noise_share(rand=rand)
    correlation = float(np.corrcoef(first, second)[0, 1])
    assert abs(correlation) <= 5 / math.sqrt(mechanism.dimension)


# --- noised integers ---


def test_privatize_adds_exactly_one_share() -> None:
    mechanism = skellam(dimension=500)
    integers = np.arange(500, dtype=np.int64) - 250
    before = integers.copy()
    noised = mechanism.privatize(integers, rand=stream("one"))
    assert isinstance(noised, NoisedIntegers)
    assert noised.mechanism is mechanism
    assert np.array_equal(noised.vector - integers, mechanism.noise_share(rand=stream("one")))
    assert np.array_equal(integers, before)


def test_noised_integers_are_read_only_and_print_nothing() -> None:
    noised = skellam(dimension=4).privatize(np.array([7, 8, 9, 10]), rand=stream("print"))
    with pytest.raises(ValueError, match="read-only"):
        noised.vector[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        noised.vector = np.zeros(4, dtype=np.int64)  # type: ignore[misc]
    assert repr(noised) == str(noised) == "NoisedIntegers"


def test_nothing_without_noise_becomes_noised_integers() -> None:
    mechanism = skellam(dimension=4)
    noised = mechanism.privatize(np.zeros(4, dtype=np.int64), rand=stream("forge"))
    plain = np.zeros(4, dtype=np.int64)
    with pytest.raises(TypeError):
        NoisedIntegers(vector=plain, mechanism=mechanism)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="built by a mechanism's privatize only"):
        NoisedIntegers(vector=plain, mechanism=mechanism, seal=object())
    with pytest.raises(ValueError, match="seal"):
        dataclasses.replace(noised, vector=plain)  # type: ignore[call-arg]


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_noised_integers_are_neither_pickled_nor_copied(duplicate: Callable[[NoisedIntegers], object]) -> None:
    noised = skellam(dimension=4).privatize(np.zeros(4, dtype=np.int64), rand=stream("copy"))
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        duplicate(noised)


@pytest.mark.parametrize(
    "integers",
    [
        np.zeros(4),
        np.zeros(4, dtype=np.int32),
        np.zeros(5, dtype=np.int64),
        np.zeros((2, 2), dtype=np.int64),
        np.array([0, 0, 0, 2**62]),
        np.array([0, 0, 0, -(2**63)]),
    ],
)
def test_privatize_refuses_what_it_cannot_add_noise_to(integers: Any) -> None:
    def never(length: int) -> bytes:
        raise AssertionError(f"{length} bytes drawn for a refused vector")

    with pytest.raises(UnsafeUpdateError):
        skellam(dimension=4).privatize(integers, rand=never)


# --- events ---


def test_an_event_counts_the_honest_survivors_only() -> None:
    mechanism = skellam()
    assert mechanism.event(survivors=9).variance == 7 * 64**2
    assert mechanism.event(survivors=9, colluders=0).variance == 9 * 64**2
    assert mechanism.event(survivors=9, colluders=5) == mechanism.event_with(honest=4)
    assert mechanism.event(survivors=6).l2_squared == 300**2


@given(st.integers(1, 200), st.lists(st.integers(-50, 50), min_size=1, max_size=40))
def test_the_accounted_l1_norm_bounds_every_integer_vector_within_the_l2_bound(
    int_bound: int, entries: list[int]
) -> None:
    assume(sum(entry**2 for entry in entries) <= int_bound**2)
    event = skellam(int_bound=int_bound, dimension=len(entries)).event(survivors=6)
    assert sum(map(abs, entries)) <= event.l1 <= int_bound**2


def test_a_void_round_has_no_event() -> None:
    with pytest.raises(UnaccountableError, match="survivors must be >= min_survivors = 6, got 5"):
        skellam().event(survivors=5)


@pytest.mark.parametrize(
    ("survivors", "colluders", "message"),
    [
        (11, 0, "survivors must be <= clients = 10, got 11"),
        (6, 6, "colluders must be in"),
        (6, -1, "colluders must be in"),
    ],
)
def test_an_impossible_round_has_no_event(survivors: int, colluders: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        skellam().event(survivors=survivors, colluders=colluders)


def test_without_an_honest_share_there_is_no_event() -> None:
    with pytest.raises(ValueError, match="variance must be > 0"):
        skellam().event_with(honest=0)


def test_the_noise_multiplier_is_the_guaranteed_one() -> None:
    assert skellam().noise_multiplier == pytest.approx(math.sqrt(4) * 64 / 300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"int_bound": 0}, "int_bound must be an int >= 1, got 0"),
        ({"int_bound": 3.0}, r"int_bound must be an int >= 1, got 3\.0"),
        ({"int_bound": True}, "int_bound must be an int >= 1, got True"),
        ({"dimension": 0}, "dimension must be an int >= 1, got 0"),
        ({"clients": 0}, "clients must be an int >= 1, got 0"),
        ({"max_colluders": -1}, "max_colluders must be an int >= 0, got -1"),
        ({"share_variance": Fraction(0)}, "share_variance must be in .*got 0"),
        ({"share_variance": Fraction(2**32 + 1)}, "share_variance must be in .*got 4294967297"),
        ({"min_survivors": 11}, "min_survivors must be <= clients = 10, got 11"),
        ({"max_colluders": 5}, "min_survivors - max_colluders must be >= 2, got 6 - 5"),
        ({"sampling_rate": Fraction(0)}, "sampling_rate must be in .*got 0"),
        ({"sampling_rate": Fraction(3, 2)}, "sampling_rate must be in .*got 3/2"),
    ],
)
def test_a_mechanism_outside_its_bounds_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        skellam(**changes)


# --- calibration ---


def units() -> st.SearchStrategy[ClientLevel | RecordLevel]:
    shared: dict[str, Any] = {
        "clip_norm": st.just(1.0),
        "epsilon": st.floats(0.1, 50),
        "delta": st.floats(1e-10, 1e-3),
        "rounds": st.integers(1, 2000),
    }
    return st.builds(ClientLevel, **shared) | st.builds(
        RecordLevel, **shared, sampling_rate=st.floats(1e-4, 1), records=st.integers(1, 10**6)
    )


def cost(unit: ClientLevel | RecordLevel, mechanism: DistributedSkellam) -> float:
    return epsilon({mechanism.event(survivors=mechanism.min_survivors): unit.rounds}, delta=unit.delta)


@settings(max_examples=40, deadline=None)
@given(units(), st.integers(1, 10**6), st.integers(2, 500), st.data())
def test_calibration_finds_the_largest_bound_within_the_budget(
    unit: ClientLevel | RecordLevel, dimension: int, clients: int, data: st.DataObject
) -> None:
    min_survivors = data.draw(st.integers(2, clients))
    max_colluders = data.draw(st.integers(0, min_survivors - 2))
    floor = {"dimension": dimension, "clients": clients, "min_survivors": min_survivors, "max_colluders": max_colluders}
    needed = math.ceil(math.sqrt(64 * dimension))
    rate = unit.exact_rate if isinstance(unit, RecordLevel) else Fraction(1)

    def with_share(stddev: int, int_bound: int) -> DistributedSkellam:
        return DistributedSkellam(share_variance=Fraction(stddev**2), int_bound=int_bound, sampling_rate=rate, **floor)

    try:
        found = calibrate(unit, **floor)
    except CapacityError as refusal:
        assert f"= {needed}," in str(refusal)  # noqa: PT017 - the refusal must also be true
        assert cost(unit, with_share(SHARE_STDDEVS[-1], needed)) > unit.epsilon
        return
    stddev = math.isqrt(int(found.share_variance))
    assert stddev in SHARE_STDDEVS
    assert found == with_share(stddev, found.int_bound)
    assert found.int_bound >= needed
    assert cost(unit, found) <= unit.epsilon < cost(unit, with_share(stddev, found.int_bound + 1))
    if stddev > SHARE_STDDEVS[0]:
        assert cost(unit, with_share(stddev // 2, needed)) > unit.epsilon


def test_calibration_of_a_tight_client_level_run_takes_a_wider_share() -> None:
    unit = ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-5, rounds=100)
    found = calibrate(unit, dimension=1_200_000, clients=100, min_survivors=80, max_colluders=10)
    assert found.share_variance == 16384**2
    assert found.noise_multiplier == pytest.approx(11.58, abs=0.01)  # the exact Gaussian needs 10.81


def test_calibration_that_cannot_succeed_names_the_ways_out() -> None:
    unit = ClientLevel(clip_norm=1.0, epsilon=0.5, delta=1e-6, rounds=1000)
    with pytest.raises(
        CapacityError, match=r"= 8000, .*epsilon 0\.5 over 1000 rounds with 3 honest.*raise epsilon or min_survivors"
    ):
        calibrate(unit, dimension=10**6, clients=5, min_survivors=4, max_colluders=1)


def test_calibration_stops_at_the_largest_bound_that_the_encoder_takes() -> None:
    unit = ClientLevel(clip_norm=1.0, epsilon=1e15, delta=1e-6, rounds=1)
    assert calibrate(unit, dimension=1, clients=2, min_survivors=2, max_colluders=0).int_bound == MAX_INT_BOUND


def test_a_float_is_no_rational() -> None:
    with pytest.raises(TypeError, match="share_variance must be a Fraction, got 16"):
        skellam(share_variance=16)
    with pytest.raises(TypeError, match=r"sampling_rate must be a Fraction, got 0\.1"):
        skellam(sampling_rate=0.1)


def test_calibration_ignores_how_many_clients_are_invited() -> None:
    """Only the worst accepted round counts: more invitations must not buy less noise."""
    unit = ClientLevel(clip_norm=1.0, epsilon=2.0, delta=1e-6, rounds=5)
    floor = {"dimension": 100, "min_survivors": 20, "max_colluders": 5}
    assert calibrate(unit, clients=20, **floor).int_bound == calibrate(unit, clients=1000, **floor).int_bound


@pytest.mark.parametrize(
    ("min_survivors", "max_colluders", "message"),
    [(11, 0, "min_survivors must be <= clients = 10"), (6, 5, "min_survivors - max_colluders must be >= 2")],
)
def test_calibration_refuses_an_impossible_trust_model(min_survivors: int, max_colluders: int, message: str) -> None:
    unit = ClientLevel(clip_norm=1.0, epsilon=2.0, delta=1e-6, rounds=5)
    with pytest.raises(ValueError, match=message):
        calibrate(unit, dimension=100, clients=10, min_survivors=min_survivors, max_colluders=max_colluders)


def test_calibration_refuses_an_empty_vector() -> None:
    unit = ClientLevel(clip_norm=1.0, epsilon=2.0, delta=1e-6, rounds=5)
    with pytest.raises(ValueError, match="dimension must be an int >= 1, got 0"):
        calibrate(unit, dimension=0, clients=10, min_survivors=8, max_colluders=1)
