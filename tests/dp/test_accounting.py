"""Accounting: published figures, exact divergences computed independently, another library, and monotonicity."""

import dataclasses
import decimal
import json
import math
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp.accounting import (
    ORDERS,
    EpsilonLadder,
    SkellamEvent,
    best_order,
    epsilon,
    epsilon_of_rdp,
    ladder,
    rdp_budget,
)
from dp.errors import UnaccountableError
from dp.mechanisms import DistributedSkellam, calibrate
from dp.units import RecordLevel

FloatVector = NDArray[np.float64]


def event(
    l2_squared: int = 10**6, variance: int = 4096**2, rate: Fraction = Fraction(1), l1: int = 30_000
) -> SkellamEvent:
    return SkellamEvent(
        l2_squared=Fraction(l2_squared), l1=Fraction(l1), variance=Fraction(variance), dimension=900, sampling_rate=rate
    )


def events() -> st.SearchStrategy[SkellamEvent]:
    rationals = st.fractions(min_value=1, max_value=10**9)
    rates = st.fractions(min_value=Fraction(1, 2**40), max_value=1)
    return st.builds(
        SkellamEvent,
        l2_squared=rationals,
        l1=rationals,
        variance=rationals,
        dimension=st.integers(1, 10**9),
        sampling_rate=rates,
    )


# --- published figures ---


@pytest.mark.parametrize(
    ("variance", "expected"),
    [
        (1, [7, 9, 11]),  # a * 4 / 2 + 3 * 2 / 2: the second bound is the smaller one
        (10, [0.46, 0.68, 0.90]),  # a * 4 / 20 + ((2a - 1) * 4 + 12) / 400
    ],
)
def test_the_curve_by_hand(variance: int, expected: list[float]) -> None:
    assert event(l2_squared=4, l1=2, variance=variance).rdp()[:3] == pytest.approx(expected, rel=1e-15)


def paper_event(*, scale: float, clip: float, dimension: int, variance: float) -> SkellamEvent:
    """Conditional rounding of Agarwal, Kairouz, Liu 2021 with beta = e^-1/2, bounded as in their released code."""
    length, root = scale * clip, math.sqrt(dimension)
    l2_squared = min((length + root) ** 2, length**2 + dimension / 4 + math.sqrt(2 * 0.5) * (length + root / 2))
    l1 = min(root * math.sqrt(l2_squared), l2_squared)
    return SkellamEvent(
        l2_squared=Fraction(l2_squared), l1=Fraction(l1), variance=Fraction(variance), dimension=dimension
    )


def test_authors_answer_in_google_research_federated_issue_66() -> None:
    """Scale 350, clip 3, 16 clients, 150 rounds, noise per client before scaling 11.436: they aimed at epsilon 6."""
    release = paper_event(scale=350, clip=3, dimension=2**24, variance=16 * (350 * 11.43585395098052) ** 2)
    assert epsilon({release: 150}, delta=0.01) == pytest.approx(6.00000004, abs=5e-9)


@pytest.mark.parametrize(
    ("clients", "dimension", "clip", "bits", "rounds", "delta", "multiplier", "scale", "expected"),
    [
        (100, 2**20, 0.03, 16, 1, 1e-6, 0.8479, 319935, 6.316020),
        (100, 2**20, 0.03, 16, 1, 1e-6, 4.0, 68246.3, 1.181125),
        (100, 2**20, 1.0, 18, 10, 1e-6, 0.8479, 38392.3, 26.341532),
        (100, 2**20, 1.0, 18, 10, 1e-6, 4.0, 8189.56, 4.020450),
        (32, 2**16, 1.0, 20, 100, 1e-5, 0.8479, 152931, 149.222386),
        (32, 2**16, 1.0, 20, 100, 1e-5, 4.0, 32752, 14.177122),
    ],
)
def test_scale_and_epsilon_of_the_authors_code(
    clients: int,
    dimension: int,
    clip: float,
    bits: int,
    rounds: int,
    delta: float,
    multiplier: float,
    scale: float,
    expected: float,
) -> None:
    local = multiplier * clip / math.sqrt(clients)
    spread = clip**2 * clients**2 / dimension + clients * local**2
    fitted = math.sqrt(2 ** (2 * bits) - clients * 4**2) / (2 * 4 * math.sqrt(spread))
    assert fitted == pytest.approx(scale, rel=3e-6)
    release = paper_event(scale=fitted, clip=clip, dimension=dimension, variance=clients * (fitted * local) ** 2)
    assert epsilon({release: rounds}, delta=delta) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("rho", "expected"), [(0.1, 1.9142), (0.2, 2.8136), (0.5, 4.7284), (1.0, 7.0772), (2.0, 10.7248)]
)
def test_concentrated_privacy_converts_as_published(rho: float, expected: float) -> None:
    """The figures use real orders. Integers can only be above: by 0.8 % at most, where the optimum is a small order."""
    converted = epsilon_of_rdp(rho * np.array(ORDERS, dtype=np.float64), 1e-5)
    assert expected - 5e-5 <= converted <= expected * 1.008


# --- exact divergences ---


def log_skellam(variance: float, reach: int) -> FloatVector:
    """Log probabilities on -reach..reach, from the continued fraction of Bessel ratios: no tail underflows."""
    ratio, logs = 0.0, np.zeros(reach + 1)
    for k in range(reach + 400 + int(4 * math.sqrt(variance)), 0, -1):
        ratio = 1 / (2 * k / variance + ratio)
        if k <= reach:
            logs[k] = math.log(ratio)
    tail = np.cumsum(logs)
    both = np.concatenate([tail[:0:-1], tail])
    return np.asarray(both - np.logaddexp.reduce(both))


def mixture(rate: Fraction, shifted: FloatVector, base: FloatVector) -> FloatVector:
    return shifted if rate == 1 else np.logaddexp(math.log(rate) + shifted, math.log(1 - rate) + base)


def renyi(p: FloatVector, q: FloatVector, order: int) -> float:
    return float(np.logaddexp.reduce(order * p + (1 - order) * q, axis=None)) / (order - 1)


def check_dominates(release: SkellamEvent, p: FloatVector, q: FloatVector) -> int:
    curve = release.rdp()
    orders = (2, 3, 4, 6, 8, 16, 32, 64)
    for order in orders:
        exact = max(renyi(p, q, order), renyi(q, p, order))
        assert exact <= curve[ORDERS.index(order)] * (1 + 1e-9), (release, order)
    return len(orders)


def test_the_oracle_is_the_skellam_law() -> None:
    from scipy.special import ive  # type: ignore[import-untyped]

    for variance in (0.5, 10.0, 1000.0):
        reach = int(50 + 14 * math.sqrt(variance))
        index = np.arange(-20, 21)
        assert np.exp(log_skellam(variance, reach)[index + reach]) == pytest.approx(
            ive(np.abs(index), variance), rel=1e-12
        )


def test_the_curve_dominates_the_exact_divergence_in_both_directions() -> None:
    cases = 0
    for variance in (0.05, 0.5, 1, 3, 20, 300, 10_000):
        for shift in (1, 2, 5, 20):
            reach = int(60 + 12 * math.sqrt(variance) + 70 * shift)
            law = log_skellam(variance, reach)
            shifted, base = law[:-shift], law[shift:]
            for rate in (Fraction(1), Fraction(1, 2), Fraction(1, 10), Fraction(1, 1000)):
                release = SkellamEvent(
                    l2_squared=Fraction(shift**2),
                    l1=Fraction(shift),
                    variance=Fraction(variance),
                    dimension=1,
                    sampling_rate=rate,
                )
                cases += check_dominates(release, mixture(rate, shifted, base), base)
    assert cases == 7 * 4 * 4 * 8


def test_the_curve_dominates_the_exact_divergence_in_two_dimensions() -> None:
    """Sampling correlates the coordinates, so a product of lines would not do."""
    for variance in (1, 4, 50):
        law = log_skellam(variance, 260)
        for first, second in ((1, 1), (2, 1), (4, 3)):
            size = 2 * 260 + 1 - 2 * max(first, second)
            shifted = law[:size, None] + law[None, :size]
            base = law[first : first + size, None] + law[None, second : second + size]
            for rate in (Fraction(1), Fraction(1, 5)):
                release = SkellamEvent(
                    l2_squared=Fraction(first**2 + second**2),
                    l1=Fraction(first + second),
                    variance=Fraction(variance),
                    dimension=2,
                    sampling_rate=rate,
                )
                for order in (2, 3, 8):
                    p = mixture(rate, shifted, base)
                    exact = max(renyi(p, base, order), renyi(base, p, order))
                    assert exact <= release.rdp()[ORDERS.index(order)] * (1 + 1e-9)


@pytest.mark.parametrize("order", [2, 5, 64, 440])
@pytest.mark.parametrize("rate", [Fraction(1, 10**6), Fraction(1, 10), Fraction(9, 10), Fraction(1, 3)])
@pytest.mark.parametrize("variance", [10**6, 10**9])
def test_subsampling_agrees_with_the_binomial_sum_in_fifty_digits(order: int, rate: Fraction, variance: int) -> None:
    nearest = next(known for known in ORDERS if known >= order)
    unsampled, sampled = event(variance=variance), event(variance=variance, rate=rate)
    l2, l1, mu = Fraction(unsampled.l2_squared), Fraction(unsampled.l1), Fraction(variance)

    def exact(value: Fraction) -> Decimal:
        return Decimal(value.numerator) / Decimal(value.denominator)

    with decimal.localcontext(prec=50):
        q, total = exact(rate), Decimal(0)
        for k in range(nearest + 1):
            curve = k * l2 / (2 * mu) + min(((2 * k - 1) * l2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
            growth = exact((k - 1) * curve).exp() if k >= 2 else Decimal(1)
            total += math.comb(nearest, k) * (1 - q) ** (nearest - k) * q**k * growth
        expected = total.ln() / (nearest - 1)
    assert sampled.rdp()[ORDERS.index(nearest)] == pytest.approx(float(expected), rel=1e-10)


# --- another library ---


def test_conversion_agrees_with_dp_accounting_on_gaussian_curves() -> None:
    from dp_accounting import rdp

    for multiplier in (0.3, 0.8, 2.0, 7.0, 40.0):
        for delta in (1e-3, 1e-6, 1e-10):
            curve = np.array(ORDERS) / (2 * multiplier**2)
            theirs, order = rdp.compute_epsilon(ORDERS, curve, delta)
            assert epsilon_of_rdp(curve, delta) == pytest.approx(theirs, rel=1e-12)
            assert rdp_budget(int(order), theirs, delta) == pytest.approx(curve[ORDERS.index(order)], rel=1e-9)


def test_wide_skellam_noise_agrees_with_dp_accounting_on_the_sampled_gaussian() -> None:
    """At 2^20 steps per unit of sensitivity the lattice is invisible, so curves must agree with the continuous ones."""
    import dp_accounting
    from dp_accounting import rdp

    for multiplier, rate in ((0.8, 0.005), (1.5, 0.04), (4.0, 0.01), (1.0, 0.5), (2.0, 1.0)):
        release = SkellamEvent(
            l2_squared=Fraction(2**40),
            l1=Fraction(2**20),
            variance=2**40 * Fraction(multiplier) ** 2,
            dimension=1,
            sampling_rate=Fraction(rate),
        )
        accountant = rdp.RdpAccountant(orders=[float(order) for order in ORDERS if order <= 512])
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier)), 1000)
        assert epsilon({release: 1000}, delta=1e-6) == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-6)


# --- composition and conversion ---


def test_nothing_released_costs_nothing() -> None:
    assert epsilon([], delta=1e-300) == 0.0
    assert epsilon({event(): 0}, delta=1e-300) == 0.0
    assert epsilon([event()], delta=1e-300) > 0.0


def test_a_list_and_a_count_mean_the_same() -> None:
    one, other = event(), event(variance=10**8)
    expected = epsilon_of_rdp(2 * one.rdp() + 3 * other.rdp(), 1e-6)
    assert epsilon([one, other, other, one, other], delta=1e-6) == pytest.approx(expected, rel=1e-12)
    assert epsilon({one: 2, other: 3}, delta=1e-6) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(events(), st.integers(1, 10**4))
def test_more_of_anything_that_hurts_costs_more(release: SkellamEvent, rounds: int) -> None:
    curve = release.rdp()
    assert np.all(curve > 0)
    assert np.all(dataclasses.replace(release, variance=2 * release.variance).rdp() < curve)
    assert np.all(dataclasses.replace(release, l2_squared=2 * release.l2_squared).rdp() > curve)
    assert np.all(dataclasses.replace(release, l1=2 * release.l1).rdp() >= curve)
    assert np.all(dataclasses.replace(release, sampling_rate=release.sampling_rate / 2).rdp() < curve)
    assert epsilon({release: rounds}, delta=1e-6) <= epsilon({release: rounds + 1}, delta=1e-6)
    assert epsilon({release: rounds}, delta=1e-6) <= epsilon({release: rounds}, delta=1e-7)


def test_a_rate_too_close_to_one_for_a_float_counts_as_one() -> None:
    almost = event(rate=1 - Fraction(1, 2**60))
    assert np.array_equal(almost.rdp(), event().rdp())


def test_a_rate_that_is_no_float_is_rounded_up() -> None:
    third = Fraction(1, 3)
    assert Fraction(float(third)) < third
    assert np.array_equal(event(rate=third).rdp(), event(rate=Fraction(math.nextafter(float(third), 1))).rdp())


def test_extreme_events_stay_finite() -> None:
    for release in (
        SkellamEvent(l2_squared=Fraction(2**64), l1=Fraction(2**64), variance=Fraction(1), dimension=1),
        SkellamEvent(l2_squared=Fraction(1), l1=Fraction(1), variance=Fraction(2**64), dimension=1),
    ):
        for rate in (Fraction(1), Fraction(1, 2), Fraction(1, 2**64)):
            curve = dataclasses.replace(release, sampling_rate=rate).rdp()
            assert np.all(np.isfinite(curve) & (curve >= 0))


def test_one_order_is_a_filter_at_the_same_epsilon() -> None:
    release = event(rate=Fraction(1, 10))
    order = best_order({release: 100}, 1e-5)
    spent = 100 * release.rdp()[ORDERS.index(order)]
    assert spent == pytest.approx(rdp_budget(order, epsilon({release: 100}, delta=1e-5), 1e-5), rel=1e-12)
    assert best_order([release] * 100, 1e-5) == order


@given(st.sampled_from(ORDERS), st.floats(1e-12, 0.5), st.floats(1e-3, 100))
def test_a_budget_at_one_order_never_exceeds_its_epsilon(order: int, delta: float, target: float) -> None:
    try:
        budget = rdp_budget(order, target, delta)
    except ValueError as refusal:
        assert f"at order {order}" in str(refusal)  # noqa: PT017 - only the refusal of this order is allowed
        return
    curve = np.full(len(ORDERS), np.inf)
    curve[ORDERS.index(order)] = budget
    assert epsilon_of_rdp(curve, delta) == pytest.approx(target, rel=1e-9, abs=1e-12)


def test_orders_are_the_promised_grid() -> None:
    assert ORDERS[:63] == tuple(range(2, 65))
    assert ORDERS[-1] == 4096
    assert all(1 < after / before <= 1.12 for before, after in pairwise(ORDERS[63:]))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_outside_the_open_unit_interval_is_refused(delta: float) -> None:
    for call in (
        lambda: epsilon([event()], delta=delta),
        lambda: best_order([event()], delta),
        lambda: rdp_budget(2, 1.0, delta),
        lambda: epsilon_of_rdp(event().rdp(), delta),
    ):
        with pytest.raises(ValueError, match="delta must be in"):
            call()


def test_curves_counts_and_orders_outside_their_domain_are_refused() -> None:
    with pytest.raises(ValueError, match="a curve needs 106 values"):
        epsilon_of_rdp(np.ones(3), 1e-5)
    with pytest.raises(ValueError, match="a curve needs 106 values >= 0"):
        epsilon_of_rdp(np.full(len(ORDERS), np.nan), 1e-5)
    with pytest.raises(ValueError, match="count must be >= 0, got -1"):
        epsilon({event(): -1}, delta=1e-5)
    with pytest.raises(ValueError, match="order must be one of"):
        rdp_budget(65, 1.0, 1e-5)
    with pytest.raises(ValueError, match="epsilon must be finite and > "):
        rdp_budget(2, math.inf, 1e-5)
    with pytest.raises(ValueError, match=r"epsilon must be finite and > 10\.1.* at order 2"):
        rdp_budget(2, 0.5, 1e-5)


# --- events as records ---


@given(events())
def test_an_event_survives_json_without_loss(release: SkellamEvent) -> None:
    assert SkellamEvent.from_dict(json.loads(json.dumps(release.to_dict()))) == release


@pytest.mark.parametrize(
    "change",
    [
        {"event": "gaussian"},
        {"extra": 1},
        {"variance": "2/2"},
        {"variance": " 16777216/1"},
        {"variance": "16777216"},
        {"variance": "1/0"},
        {"variance": "1e3/1"},
        {"variance": "-1/1"},
        {"variance": 16777216},
        {"variance": "9" * 5000 + "/1"},
        {"dimension": "900"},
        {"dimension": 900.0},
        {"dimension": True},
        {"sampling_rate": "2/1"},
    ],
)
def test_a_record_that_no_event_wrote_is_unaccountable(change: dict[str, Any]) -> None:
    with pytest.raises(UnaccountableError):
        SkellamEvent.from_dict(event().to_dict() | change)


@pytest.mark.parametrize("missing", ["event", "l2_squared", "l1", "variance", "dimension", "sampling_rate"])
def test_a_record_with_a_missing_key_is_unaccountable(missing: str) -> None:
    record = event().to_dict()
    del record[missing]
    with pytest.raises(UnaccountableError):
        SkellamEvent.from_dict(record)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("l2_squared", Fraction(1, 2)),
        ("l2_squared", Fraction(2**64 * 4096**2 + 1)),
        ("l1", Fraction(0)),
        ("l1", Fraction(2**64 * 4096**2 + 1)),
        ("variance", Fraction(0)),
        ("variance", Fraction(-1)),
        ("variance", Fraction(10**40)),
        ("dimension", 0),
        ("dimension", 1.5),
        ("dimension", True),
        ("sampling_rate", Fraction(0)),
        ("sampling_rate", Fraction(3, 2)),
        ("sampling_rate", Fraction(1, 2**65)),
    ],
)
def test_an_event_outside_its_bounds_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}.* must be "):
        dataclasses.replace(event(), **{name: value})


def test_a_float_is_no_rational() -> None:
    with pytest.raises(TypeError, match=r"variance must be a Fraction, got 2\.0"):
        dataclasses.replace(event(), variance=2.0)  # type: ignore[arg-type]


# --- the ladder ---

UNIT = RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-5, rounds=200, sampling_rate=0.1, records=1437)


@pytest.fixture(scope="module")
def mechanism() -> DistributedSkellam:
    return calibrate(UNIT, dimension=650, clients=20, min_survivors=15, max_colluders=3)


def test_the_ladder_of_twenty_clients(mechanism: DistributedSkellam) -> None:
    """Figures of a digits classifier with 650 parameters over 200 rounds, calibrated to epsilon 4 at 15 - 3 clients."""
    assert mechanism.noise_multiplier == pytest.approx(1.886, abs=1.5e-3)
    full = ladder(mechanism, rounds=200, delta=1e-5, survivors=20).to_dict()
    expected = {
        "all_honest": 2.85,
        "after_dropout": 2.85,
        "minus_colluders": 3.16,
        "guaranteed": 4.00,
        "local_only": 59.8,
    }
    assert list(full) == list(expected)
    assert full == pytest.approx(expected, rel=5e-3)
    worst = ladder(mechanism, rounds=200, delta=1e-5)
    assert worst.after_dropout == pytest.approx(3.44, rel=5e-3)
    assert worst.minus_colluders == worst.guaranteed <= 4.0

    def what_if(honest: int) -> float:
        return epsilon({mechanism.event_with(honest=honest): 200}, delta=1e-5)

    assert [what_if(9), what_if(7)] == pytest.approx([4.89, 5.93], rel=5e-3)


def test_the_ladder_falls_with_trust_and_rises_with_survivors(mechanism: DistributedSkellam) -> None:
    ladders = [ladder(mechanism, rounds=50, delta=1e-5, survivors=survivors) for survivors in range(15, 21)]
    for rungs in ladders:
        assert rungs.all_honest <= rungs.after_dropout < rungs.minus_colluders <= rungs.guaranteed < rungs.local_only
    for fewer, more in pairwise(ladders):
        assert more.after_dropout < fewer.after_dropout
        assert more.minus_colluders < fewer.minus_colluders
        assert more.guaranteed == fewer.guaranteed
    assert ladder(mechanism, rounds=51, delta=1e-5).guaranteed > ladders[0].guaranteed


@pytest.mark.parametrize("rungs", [(1, 2, 3, 2, 9), (1, 2, math.nan, 4, 5)])
def test_a_ladder_that_falls_is_refused(rungs: tuple[float, ...]) -> None:
    names = ("all_honest", "after_dropout", "minus_colluders", "guaranteed", "local_only")
    with pytest.raises(ValueError, match="epsilon must not fall with trust"):
        EpsilonLadder(**dict(zip(names, rungs, strict=True)))


def test_a_ladder_without_noise_is_infinite_throughout() -> None:
    endless = dict.fromkeys(("all_honest", "after_dropout", "minus_colluders", "guaranteed", "local_only"), math.inf)
    assert EpsilonLadder(**endless).to_dict() == endless


def test_a_round_that_was_void_has_no_ladder(mechanism: DistributedSkellam) -> None:
    with pytest.raises(UnaccountableError, match="survivors must be >= min_survivors = 15, got 14"):
        ladder(mechanism, rounds=1, delta=1e-5, survivors=14)
