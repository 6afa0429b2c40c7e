"""The published scale to the digits, bounds that dominate exact tails, and a tightness that says they are not idle."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, skellam

from dp import CapacityError, SkellamEvent, epsilon
from dp.rotation import Rotation, spread
from dp.wrapping import deviations_for, finest_scale, wrap_probability

# The published set-up: clients n, padded dimension, population, rounds, central z, and by bits the epsilon that it
# ends at; sigma_int at 16 and 20 bits. 4 deviations, conditional rounding at beta = exp(-1/2), delta = 1 / population.
PUBLISHED = [
    (100, 2**20, 3400, 1500, 1.6136377, {12: 10.0, 14: 3.35, 16: 3.02, 18: 3.001, 20: 3.000}, 818, 13083),
    (100, 2**20, 3400, 1500, 0.8479323, {12: 19.8, 14: 10.8, 16: 10.05, 18: 10.00, 20: 10.00}, 814, 13021),
    (100, 2**22, 342477, 1600, 0.3949809, {12: 16.2, 14: 11.5, 16: 10.22, 18: 10.01, 20: 10.00}, 813, 13008),
    (1000, 2**22, 342477, 1600, 0.4985494, {12: 1296, 14: 12.6, 16: 10.37, 18: 10.02, 20: 10.00}, 185, 2961),
]


@pytest.mark.parametrize(
    ("clients", "dimension", "clip_norm", "bits", "multiplier", "scale"),
    [
        (100, 2**20, 0.03, 16, 0.8479, 319935),
        (100, 2**20, 0.03, 16, 4, 68246.3),
        (100, 2**20, 1, 18, 0.8479, 38392.3),
        (100, 2**20, 1, 18, 4, 8189.56),
        (32, 2**16, 1, 20, 0.8479, 152931),
        (32, 2**16, 1, 20, 4, 32752),
    ],
)
def test_the_scale_is_the_published_one(clients, dimension, clip_norm, bits, multiplier, scale):
    ours = finest_scale(
        limit=2 ** (bits - 1),
        units=clients,
        clip_norm=clip_norm,
        noise_stddev=multiplier * clip_norm,
        spread=dimension,
        deviations=4,
    )
    assert ours == pytest.approx(scale, rel=5e-6)


@pytest.mark.parametrize(("clients", "dimension", "population", "rounds", "z", "rows", "at_16", "at_20"), PUBLISHED)
def test_bits_against_epsilon_as_published(clients, dimension, population, rounds, z, rows, at_16, at_20):
    for bits, published in rows.items():
        scale = finest_scale(
            limit=2 ** (bits - 1), units=clients, clip_norm=1, noise_stddev=z, spread=dimension, deviations=4
        )
        stddev = scale * z / math.sqrt(clients)
        l2_squared = min(
            (scale + math.sqrt(dimension)) ** 2, scale**2 + dimension / 4 + scale + math.sqrt(dimension) / 2
        )
        event = SkellamEvent(
            l2_squared=Fraction(l2_squared),
            l1=Fraction(min(math.sqrt(dimension * l2_squared), l2_squared)),
            variance=Fraction(clients * stddev**2),
            dimension=dimension,
            sampling_rate=Fraction(clients, population),
        )
        digits = len(str(published).partition(".")[2])
        spent = epsilon({event: rounds}, delta=1 / population)
        assert spent == pytest.approx(published, abs=0.51 * 10**-digits + 0.002 * (published > 100))
        if bits in (16, 20):
            assert round(stddev) == (at_16 if bits == 16 else at_20)


def test_a_limit_below_the_rounding_error_is_refused_by_number():
    with pytest.raises(CapacityError, match=r"up to 64 at 4\.0 deviations, the limit is 63"):
        finest_scale(limit=63, units=1000, clip_norm=1, noise_stddev=1, spread=100, deviations=4)
    assert finest_scale(limit=64, units=1000, clip_norm=1, noise_stddev=1, spread=100, deviations=4) > 0


@settings(deadline=None)
@given(
    st.floats(2, 1e5),
    st.integers(1, 10**4),
    st.floats(0, 10),
    st.sampled_from([1, 64, 2**20]),
    st.floats(2, 8),
)
def test_the_scale_fills_the_limit(limit, units, noise, size, deviations):
    try:
        scale = finest_scale(
            limit=limit, units=units, clip_norm=1.5, noise_stddev=noise, spread=size, deviations=deviations
        )
    except CapacityError:
        assert limit <= deviations * math.sqrt(units) / 2
        return
    variance = (units * scale * 1.5) ** 2 / size + units / 4 + (noise * scale) ** 2
    assert deviations * math.sqrt(variance) == pytest.approx(limit, rel=1e-9)


@settings(deadline=None)
@given(st.floats(1e-30, 1.0))
def test_deviations_meet_the_probability(probability):
    assert 2 * math.exp(-(deviations_for(probability) ** 2) / 2) == pytest.approx(probability, rel=1e-9)


@settings(deadline=None)
@given(st.floats(0.1, 12), st.floats(0, 1e6), st.floats(1, 1e8))
def test_the_bound_dominates_the_exact_tail(deviations, proxy, variance):
    """Gaussian signal of that very proxy, and Skellam noise: by SciPy alone, and each."""
    limit = deviations * math.sqrt(proxy + variance)
    bound = wrap_probability(limit=limit, proxy=proxy, noise_variance=variance)
    alone = wrap_probability(limit=limit, proxy=0, noise_variance=variance)
    assert alone <= bound * (1 + 1e-9)
    reached = math.ceil(limit)
    assert 2 * skellam.sf(reached - 1, variance / 2, variance / 2) <= alone * (1 + 1e-6) + 1e-30
    # A Gaussian of the same variance is a lower end for any such bound, and it is not far.
    total = 2 * norm.sf(limit / math.sqrt(proxy + variance))
    assert total <= bound * 1.001 + 1e-300


def test_the_bound_is_hoeffding_without_noise_and_close_to_gaussian_with_it():
    assert wrap_probability(limit=6, proxy=1, noise_variance=0) == pytest.approx(2 * math.exp(-18))
    assert wrap_probability(limit=6e4, proxy=0, noise_variance=1e8) == pytest.approx(2 * math.exp(-18), rel=1e-4)
    assert wrap_probability(limit=0.1, proxy=1, noise_variance=1) == 1.0
    assert wrap_probability(limit=5, proxy=0, noise_variance=0) == 0.0


def test_rotated_sums_pass_the_limit_no_more_often_than_stated():
    """Thirty units in one direction, rounded after the rotation: few enough deviations that it does happen."""
    length, units, bound, rounds = 600, 30, 400, 60
    limit = 1.8 * units * bound / math.sqrt(spread(length))
    stated = wrap_probability(limit=limit, proxy=(units * bound) ** 2 / spread(length) + units / 4, noise_variance=0)
    random = np.random.default_rng(5)
    direction = random.normal(size=length) ** 3
    direction /= np.linalg.norm(direction)
    passed = 0
    for number in range(rounds):
        steps = bound * Rotation(length, seed=number.to_bytes(2, "big")).apply(direction)
        total = np.floor(steps + random.random((units, length))).sum(0)
        passed += np.count_nonzero(np.abs(total) >= limit)
    assert 0.01 < passed / (rounds * length) <= stated
