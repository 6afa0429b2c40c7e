"""Discrete Gaussian shares: the law that is drawn, what sums of it lose, and that the accounting covers it.

Oracles: the exact sampler of Canonne, Kamath, Steinke 2020 in rational arithmetic; mpmath; and sums of shares by
convolution of exact probabilities.
"""

import dataclasses
import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache, reduce
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from dp.accounting import (
    ORDERS,
    DiscreteGaussianEvent,
    GaussianEvent,
    SkellamEvent,
    epsilon,
    event_from_dict,
    ladder,
    sum_of_gaussians_excess,
)
from dp.errors import UnaccountableError
from dp.mechanisms import LAWS, DistributedDiscreteGaussian, DistributedNoise, DistributedSkellam, calibrate
from dp.samplers import MAX_STDDEV, RandomBytes, _gaussian_weights, _table, _thresholds, sample_discrete_gaussian
from dp.units import ClientLevel, RecordLevel

FloatVector = NDArray[np.float64]
UNIT = 2**127
SLACK = 2**-12  # of one unit: the 140-bit tail is cut off
SEEDS = 20


def fixed_stream(key: int = 0) -> RandomBytes:
    keystream = Cipher(AES256(key.to_bytes(32, "big")), CTR(bytes(16))).encryptor()
    return lambda size: keystream.update(bytes(size))


def script(*words: int) -> Callable[[int], bytes]:
    """Hands out these words and nothing more."""
    left = bytearray(b"".join(word.to_bytes(8, "little") for word in words))

    def rand(size: int) -> bytes:
        taken = bytes(left[:size])
        del left[:size]
        return taken

    return rand


# --- the law in the table ---


@pytest.mark.parametrize("variance", [Fraction(1, 500), Fraction(1, 4), Fraction(7, 3), Fraction(16), Fraction(90**2)])
def test_every_threshold_is_the_true_cumulative_probability_rounded_down(variance: Fraction) -> None:
    thresholds = _thresholds(_gaussian_weights, variance)
    with mpmath.workdps(90):
        v = mpmath.mpf(variance.numerator) / variance.denominator
        weights = [mpmath.exp(-(k**2) / (2 * v)) for k in range(2 * len(thresholds) + 5)]
        total = 2 * mpmath.fsum(weights) - 1
        cumulative = -mpmath.mpf(1)
        for k, threshold in enumerate(thresholds[:-1]):
            cumulative += 2 * weights[k]
            assert -SLACK <= cumulative / total * UNIT - threshold < 1 + SLACK, k


@pytest.mark.parametrize("stddev", [4096, MAX_STDDEV])
def test_wide_tables_agree_with_the_theta_function(stddev: int) -> None:
    """The normaliser is σ sqrt(2π) up to 2 exp(-2π²σ²); the cumulative law is a Euler-Maclaurin sum from there."""
    thresholds = _thresholds(_gaussian_weights, Fraction(stddev**2))
    with mpmath.workdps(90):
        sigma = mpmath.mpf(stddev)

        def density(x: float) -> Any:
            return mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * sigma**2))

        for k in (0, 1, stddev // 2, stddev, 3 * stddev, 9 * stddev, 13 * stddev):
            integral = sigma * mpmath.sqrt(2 * mpmath.pi) * mpmath.erf(k / sigma / mpmath.sqrt(2))
            corrections = [  # B_2j / (2j)! times the odd derivatives at k, twice: the sum runs over both signs
                2 * mpmath.bernoulli(2 * j) / mpmath.factorial(2 * j) * derivative(k, sigma, 2 * j - 1)
                for j in range(1, 9)
            ]
            cumulative = (integral + density(k) + mpmath.fsum(corrections)) / (sigma * mpmath.sqrt(2 * mpmath.pi))
            assert -SLACK <= cumulative * UNIT - thresholds[k] < 1 + SLACK, k


def derivative(k: int, sigma: Any, order: int) -> Any:
    """Of exp(-x²/(2σ²)) at k: a Hermite polynomial times the density."""
    x = k / sigma
    before, now = mpmath.mpf(1), x
    for n in range(1, order):
        before, now = now, x * now - n * before
    return (-1) ** order * now * mpmath.exp(-(x**2) / 2) / sigma**order


# --- the draws ---


def cells(variance: Fraction, draws: int) -> tuple[NDArray[np.int64], FloatVector]:
    """Integers at which the law is cut, and the expected number of draws up to each and beyond the last."""
    reach = int(8 * math.sqrt(variance)) + 5
    support = np.arange(-reach, reach + 1)
    weights = np.exp(-(support**2) / (2 * float(variance)))
    cumulative = np.cumsum(weights / weights.sum())
    cuts = np.unique(np.searchsorted(cumulative, np.linspace(0.02, 0.98, 49)))
    return support[cuts], np.diff(cumulative[cuts], prepend=0.0, append=1.0) * draws


def p_value(noise: NDArray[np.int64], variance: Fraction) -> float:
    cuts, expected = cells(variance, len(noise))
    observed = np.bincount(np.searchsorted(cuts, noise, side="left"), minlength=len(expected))
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(16), Fraction(300**2) / 7, Fraction(4096**2)])
def test_draws_fit_the_law_for_twenty_seeds(variance: Fraction) -> None:
    values = [
        p_value(sample_discrete_gaussian(100_000, variance=variance, rand=fixed_stream(seed)), variance)
        for seed in range(SEEDS)
    ]
    assert min(values) > 1e-3 / SEEDS  # Bonferroni
    assert stats.kstest(values, "uniform").pvalue > 1e-3  # nor too good to be true


def test_draws_of_another_variance_do_not_fit() -> None:
    noise = sample_discrete_gaussian(100_000, variance=Fraction(21, 20) * 16, rand=fixed_stream())
    assert p_value(noise, Fraction(16)) < 1e-3 / SEEDS


class Exact:
    """Canonne, Kamath, Steinke 2020, Algorithms 1 to 3, on uniform integers: no float anywhere."""

    def __init__(self, rand: RandomBytes) -> None:
        self.rand = rand

    def below(self, bound: int) -> int:
        while True:
            word = int.from_bytes(self.rand(8), "little")
            if word < 2**64 - 2**64 % bound:
                return word % bound

    def bernoulli(self, p: Fraction) -> bool:
        return self.below(p.denominator) < p.numerator

    def bernoulli_exp(self, gamma: Fraction) -> bool:
        while gamma > 1:
            if not self.bernoulli_exp(Fraction(1)):
                return False
            gamma -= 1
        k = 1
        while self.bernoulli(gamma / k):
            k += 1
        return k % 2 == 1

    def laplace(self, scale: int) -> int:
        while True:
            u = self.below(scale)
            if not self.bernoulli_exp(Fraction(u, scale)):
                continue
            v = 0
            while self.bernoulli_exp(Fraction(1)):
                v += 1
            negative, magnitude = self.below(2), u + scale * v
            if not (negative and magnitude == 0):
                return -magnitude if negative else magnitude

    def gaussian(self, variance: Fraction) -> int:
        scale = math.isqrt(math.floor(variance)) + 1
        while True:
            y = self.laplace(scale)
            if self.bernoulli_exp((abs(y) - variance / scale) ** 2 / (2 * variance)):
                return y


def test_draws_and_the_exact_sampler_of_canonne_kamath_steinke_are_one_law() -> None:
    variance, draws = Fraction(16), 20_000
    exact = Exact(fixed_stream(99))
    theirs = Counter(exact.gaussian(variance) for _ in range(draws))
    ours = Counter(sample_discrete_gaussian(draws, variance=variance, rand=fixed_stream(98)).tolist())
    table = [[counts[k] for k in range(-10, 11)] for counts in (theirs, ours)]
    table = [[*row, draws - sum(row)] for row in table]
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("k", [0, 1, 7, 30])
def test_a_tie_is_settled_by_the_low_bits(k: int, sign: int) -> None:
    high, low = divmod(_thresholds(_gaussian_weights, Fraction(16))[k], 2**64)
    for forged, magnitude in ((low - 1, k), (low, k + 1), (0, k), (2**64 - 1, k + 1)):
        noise = sample_discrete_gaussian(1, variance=Fraction(16), rand=script(high << 1 | sign, forged))
        assert noise.tolist() == [-magnitude if sign else magnitude]


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(-1, 1), st.integers(0, 1), st.integers(0, 2**64 - 1))
def test_any_draw_equals_the_inversion_in_python_integers(index: int, shift: int, sign: int, low: int) -> None:
    thresholds = _thresholds(_gaussian_weights, Fraction(16))
    high = min(max((thresholds[index % len(thresholds)] >> 64) + shift, 0), 2**63 - 1)
    magnitude = bisect_right(thresholds, (high << 64) + low)
    noise = sample_discrete_gaussian(1, variance=Fraction(16), rand=script(high << 1 | sign, low))
    assert noise.tolist() == [-magnitude if sign else magnitude]


def test_the_two_laws_of_one_variance_have_their_own_tables() -> None:
    assert _table(_gaussian_weights, Fraction(25)) is _table(_gaussian_weights, Fraction(50, 2))
    mechanisms = [law(**PLAIN) for law in LAWS.values()]
    noises = [mechanism.noise_share(rand=fixed_stream()) for mechanism in mechanisms]
    assert not np.array_equal(*noises)
    assert mechanisms[0] != mechanisms[1]


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(-1), Fraction(MAX_STDDEV**2) + Fraction(1, 10**9)])
def test_variance_out_of_range(variance: Fraction) -> None:
    with pytest.raises(ValueError, match="variance must lie in"):
        sample_discrete_gaussian(1, variance=variance, rand=fixed_stream())


def test_variance_must_be_exact() -> None:
    with pytest.raises(TypeError, match="variance must be a Fraction, got float"):
        sample_discrete_gaussian(1, variance=16.0, rand=fixed_stream())  # type: ignore[arg-type]


# --- what a sum of shares loses ---


def log_gaussian(variance: float, reach: int) -> FloatVector:
    """Log probabilities of one discrete Gaussian on -reach..reach."""
    logs = -(np.arange(-reach, reach + 1, dtype=np.float64) ** 2) / (2 * variance)
    return np.asarray(logs - np.logaddexp.reduce(logs))


@cache
def log_sum(shares: int, variance: float, reach: int) -> FloatVector:
    """Log probabilities of the sum, by convolution in 60 digits where floats would lose the tail."""
    one = log_gaussian(variance, reach)

    def convolve(p: FloatVector, q: FloatVector) -> FloatVector:
        size = len(p) + len(q) - 1
        total = np.full(size, -np.inf)
        for shift, weight in enumerate(q):
            total[shift : shift + len(p)] = np.logaddexp(total[shift : shift + len(p)], p + weight)
        return total

    return reduce(convolve, [one] * shares)


def middle(law: FloatVector, reach: int) -> FloatVector:
    centre = len(law) // 2
    return law[centre - reach : centre + reach + 1]


@pytest.mark.parametrize(("stddev", "shares"), [(0.5, 2), (0.5, 5), (0.7, 2), (0.8, 4), (1.0, 2), (1.0, 6), (1.3, 3)])
def test_the_sum_differs_from_one_discrete_gaussian_by_less_than_the_accounted_excess(
    stddev: float, shares: int
) -> None:
    """At shares far finer than are served, where the difference can be seen: the largest log-ratio is below τ/2."""
    reach = math.ceil(6 * stddev * math.sqrt(shares))
    exact = middle(log_sum(shares, stddev**2, 12 + 3 * reach), reach)
    closed = middle(log_gaussian(shares * stddev**2, 12 + 9 * reach), reach)
    excess = sum_of_gaussians_excess(shares, Fraction(stddev**2))
    difference = float(np.max(np.abs(exact - closed)))
    assert difference <= excess / 2
    if stddev <= 1:
        assert difference > 1e-5 * excess  # the check can see something


@given(st.integers(2, 3000), st.fractions(Fraction(1, 4), 10**6))
def test_the_accounted_excess_is_never_below_the_published_sum(shares: int, variance: Fraction) -> None:
    with mpmath.workdps(40):
        v = mpmath.mpf(variance.numerator) / variance.denominator
        terms = (mpmath.exp(-2 * mpmath.pi**2 * v * k / (k + 1)) for k in range(1, min(shares, 40)))
        published = 10 * (mpmath.fsum(terms) + max(0, shares - 40) * mpmath.exp(-2 * mpmath.pi**2 * v * 40 / 41))
        accounted = sum_of_gaussians_excess(shares, variance)
        assert accounted >= published
        if variance < 70:
            assert accounted <= 1.01 * (shares - 1) * 10 * mpmath.exp(-(mpmath.pi**2) * v) * mpmath.exp(5e-6 * v)


@pytest.mark.parametrize(("stddev", "published"), [(1.0, 5e-4), (math.sqrt(2), 2.7e-8), (2.0, 7e-17)])
def test_the_published_sum_for_ten_shares(stddev: float, published: float) -> None:
    exact = 10 * sum(math.exp(-2 * math.pi**2 * stddev**2 * k / (k + 1)) for k in range(1, 10))
    assert exact == pytest.approx(published, rel=0.1)
    assert exact <= sum_of_gaussians_excess(10, Fraction(stddev**2)) <= 9.01 * exact


def test_from_the_least_share_on_the_excess_is_nothing() -> None:
    assert sum_of_gaussians_excess(1, Fraction(16)) == 0
    assert 0 < sum_of_gaussians_excess(2, Fraction(MAX_STDDEV**2)) < sum_of_gaussians_excess(2, Fraction(16)) < 1e-66
    assert 10**9 * sum_of_gaussians_excess(10**6, Fraction(16)) < 1e-50


# --- the curve ---


def gaussian(l2_squared: int = 10**6, shares: int = 10, stddev: int = 400, **other: Any) -> DiscreteGaussianEvent:
    return DiscreteGaussianEvent(
        l2_squared=Fraction(l2_squared),
        share_variance=Fraction(stddev**2),
        shares=shares,
        **({"dimension": 900} | other),
    )


def renyi(p: FloatVector, q: FloatVector, order: int) -> float:
    return float(np.logaddexp.reduce(order * p + (1 - order) * q, axis=None)) / (order - 1)


def test_the_curve_dominates_the_exact_divergence_of_summed_shares() -> None:
    """Sums of one to three shares, shifts up to the standard deviation, both directions, with and without sampling."""
    cases = 0
    for shares in (1, 2, 3):
        for variance in (16.0, 30.25):
            law = log_sum(shares, variance, 220)
            for shift in (1, 3, 6):
                shifted, base = law[:-shift], law[shift:]
                for rate in (Fraction(1), Fraction(1, 2), Fraction(1, 10), Fraction(1, 1000)):
                    release = DiscreteGaussianEvent(
                        l2_squared=Fraction(shift**2),
                        share_variance=Fraction(variance),
                        shares=shares,
                        dimension=1,
                        sampling_rate=rate,
                    )
                    mixed = shifted
                    if rate < 1:
                        mixed = np.logaddexp(math.log(rate) + shifted, math.log(1 - rate) + base)
                    for order in (2, 3, 4, 8, 16):
                        exact = max(renyi(mixed, base, order), renyi(base, mixed, order))
                        bound = release.rdp()[ORDERS.index(order)]
                        assert exact <= bound * (1 + 1e-9) + 1e-14, (release, order)  # without sampling they are equal
                        assert exact >= 0.5 * bound or rate < 1  # and it is no wild overestimate
                        cases += 1
    assert cases == 3 * 2 * 3 * 4 * 5


def test_the_curve_by_hand() -> None:
    """a D²/2 with D² = 10^6 / (10 * 400^2)."""
    assert gaussian().rdp()[:3] == pytest.approx([0.625, 0.9375, 1.25], rel=1e-15)


def test_epsilon_is_that_of_the_gaussian_of_equal_variance_and_below_skellam() -> None:
    release = gaussian()
    multiplier = Fraction(math.sqrt(1.6))
    assert release.gaussian_multiplier == pytest.approx(float(multiplier), rel=1e-15)
    assert release.rdp() == pytest.approx(GaussianEvent(noise_multiplier=multiplier).rdp(), rel=1e-12)
    skellam = SkellamEvent(l2_squared=release.l2_squared, l1=Fraction(30_000), variance=release.variance, dimension=900)
    for rate in (Fraction(1), Fraction(1, 10)):
        ours, theirs = (dataclasses.replace(event, sampling_rate=rate) for event in (release, skellam))
        assert np.all(ours.rdp() <= theirs.rdp())
        assert epsilon({ours: 50}, delta=1e-6) == pytest.approx(epsilon({theirs: 50}, delta=1e-6), rel=1e-3)


@pytest.mark.parametrize(
    ("clients", "dimension", "clip", "rounds", "delta", "multiplier", "scale", "expected"),
    [
        (100, 2**20, 0.03, 1, 1e-6, 0.8479, 319935, 6.316020),
        (100, 2**20, 0.03, 1, 1e-6, 4.0, 68246.3, 1.181125),
        (100, 2**20, 1.0, 10, 1e-6, 0.8479, 38392.3, 26.341532),
        (100, 2**20, 1.0, 10, 1e-6, 4.0, 8189.56, 4.020450),
        (32, 2**16, 1.0, 100, 1e-5, 0.8479, 152931, 149.222386),
        (32, 2**16, 1.0, 100, 1e-5, 4.0, 32752, 14.177122),
    ],
)
def test_epsilon_of_the_authors_code(
    clients: int,
    dimension: int,
    clip: float,
    rounds: int,
    delta: float,
    multiplier: float,
    scale: float,
    expected: float,
) -> None:
    """Kairouz, Liu, Steinke 2021 and Agarwal, Kairouz, Liu 2021 give one epsilon in these settings."""
    length, root = scale * clip, math.sqrt(dimension)
    release = DiscreteGaussianEvent(
        l2_squared=Fraction(min((length + root) ** 2, length**2 + dimension / 4 + length + root / 2)),
        share_variance=Fraction((scale * multiplier * clip) ** 2) / clients,
        shares=clients,
        dimension=dimension,
    )
    assert epsilon({release: rounds}, delta=delta) == pytest.approx(expected, rel=4e-6)


# --- events as records, and what is refused ---


def all_events() -> list[Any]:
    skellam = SkellamEvent(l2_squared=Fraction(9), l1=Fraction(9), variance=Fraction(7, 3), dimension=4)
    return [skellam, gaussian(), GaussianEvent(noise_multiplier=Fraction(13, 10), sampling_rate=Fraction(1, 100))]


@pytest.mark.parametrize("release", all_events(), ids=lambda event: event.kind)
def test_every_kind_of_event_survives_json_without_loss(release: Any) -> None:
    record = json.loads(json.dumps(release.to_dict()))
    assert event_from_dict(record) == release == type(release).from_dict(record)
    for missing in record:
        with pytest.raises(UnaccountableError):
            event_from_dict({key: value for key, value in record.items() if key != missing})
    for key in record:
        with pytest.raises(UnaccountableError):
            event_from_dict(record | {key: "no"})
    with pytest.raises(UnaccountableError, match="not what"):
        event_from_dict(record | {"extra": 1})


@pytest.mark.parametrize("data", [None, "skellam", 3, [], {}, {"event": []}, {"event": None}, {"event": "laplace"}])
def test_what_no_event_wrote_is_unaccountable(data: object) -> None:
    with pytest.raises(UnaccountableError, match="whose key event is one of"):
        event_from_dict(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share_variance": Fraction(16) - Fraction(1, 10**9)}, r"share_variance must be >= 4\^2"),
        ({"l2_squared": Fraction(1, 2)}, "l2_squared must be >= 1"),
        ({"l2_squared": Fraction(2**64 * 1_600_001)}, "l2_squared / variance must be in"),
        ({"shares": 0}, "shares must be an int >= 1, got 0"),
        ({"shares": 2.0}, r"shares must be an int >= 1, got 2\.0"),
        ({"dimension": True}, "dimension must be an int >= 1, got True"),
        ({"sampling_rate": Fraction(3, 2)}, "sampling_rate must be in"),
    ],
)
def test_an_event_outside_its_bounds_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(gaussian(), **changes)


@pytest.mark.parametrize("multiplier", [Fraction(0), Fraction(1, 2**33), Fraction(2**33), Fraction(-1)])
def test_a_gaussian_event_outside_its_bounds_is_refused(multiplier: Fraction) -> None:
    with pytest.raises(ValueError, match="noise_multiplier must be in"):
        GaussianEvent(noise_multiplier=multiplier)


# --- the mechanism ---

PLAIN: dict[str, Any] = {
    "int_bound": 300,
    "share_variance": Fraction(64**2),
    "dimension": 20_000,
    "clients": 10,
    "min_survivors": 6,
    "max_colluders": 2,
    "sampling_rate": Fraction(1),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("survivors", [6, 10])
def test_the_summed_shares_have_the_variance_that_is_accounted(law: str, survivors: int) -> None:
    mechanism = LAWS[law](**PLAIN)
    rand = fixed_stream(survivors)
    noise = np.sum([mechanism.noise_share(rand=rand) for _ in range(survivors)], axis=0)
    event: Any = mechanism.event(survivors=survivors, colluders=0)
    measured = float(np.mean(noise.astype(np.float64) ** 2))
    assert abs(measured / float(event.variance) - 1) <= 5 * math.sqrt(2 / mechanism.dimension)


def test_an_event_counts_the_honest_survivors_only() -> None:
    mechanism = DistributedDiscreteGaussian(**PLAIN)
    assert mechanism.event(survivors=9) == mechanism.event_with(honest=7)
    assert mechanism.event_with(honest=7).shares == 7
    assert mechanism.event_with(honest=7).variance == 7 * 64**2


def test_fine_shares_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share_variance must be >= 4\^2, got 15"):
        DistributedDiscreteGaussian(**PLAIN | {"share_variance": Fraction(15)})
    assert DistributedDiscreteGaussian(**PLAIN | {"share_variance": Fraction(16)}).event(survivors=6)


def test_an_unknown_law_is_refused() -> None:
    unit = ClientLevel(clip_norm=1.0, epsilon=2.0, delta=1e-6, rounds=5)
    with pytest.raises(ValueError, match=r"law must be one of \['discrete_gaussian', 'skellam'\], got 'gaussian'"):
        calibrate(unit, dimension=100, clients=10, min_survivors=8, max_colluders=1, law="gaussian")


def test_the_base_of_the_laws_is_no_mechanism() -> None:
    with pytest.raises(TypeError, match="abstract"):
        DistributedNoise(**PLAIN)  # type: ignore[abstract]


def test_both_laws_calibrate_to_the_same_noise() -> None:
    unit = RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-5, rounds=200, sampling_rate=0.1, records=1437)
    both = [calibrate(unit, dimension=650, clients=20, min_survivors=15, max_colluders=3, law=law) for law in LAWS]
    assert [type(mechanism) for mechanism in both] == [DistributedSkellam, DistributedDiscreteGaussian]
    assert both[0].noise_multiplier == pytest.approx(both[1].noise_multiplier, rel=1e-3)
    ladders = [ladder(mechanism, rounds=200, delta=1e-5, survivors=20).to_dict() for mechanism in both]
    assert ladders[0] == pytest.approx(ladders[1], rel=1e-3)
