"""Removable noise: whoever drops out, exactly the accounted variance remains; the server draws what clients drew."""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.accounting import epsilon, ladder
from dp.mechanisms import DistributedDiscreteGaussian, DistributedSkellam, calibrate
from dp.samplers import seeded_random
from dp.units import ClientLevel


def stream(name: str) -> Callable[[int], bytes]:
    counter = iter(range(10**9))
    return lambda size: hashlib.shake_128(f"{name}/{next(counter)}".encode()).digest(size)


def mechanism(**changes: Any) -> DistributedSkellam:
    plain: dict[str, Any] = {
        "int_bound": 300,
        "share_variance": Fraction(64**2),
        "dimension": 20_000,
        "clients": 10,
        "min_survivors": 6,
        "max_colluders": 2,
        "sampling_rate": Fraction(1),
        "removable": True,
    }
    return DistributedSkellam(**(plain | changes))


def floors() -> st.SearchStrategy[tuple[int, int, int]]:
    """(clients, min_survivors, max_colluders)."""
    return st.integers(3, 300).flatmap(
        lambda clients: st.integers(2, clients - 1).flatmap(
            lambda fewest: st.tuples(st.just(clients), st.just(fewest), st.integers(0, fewest - 2))
        )
    )


@settings(max_examples=200)
@given(floors(), st.fractions(min_value=1, max_value=10**6), st.data())
def test_what_remains_is_exactly_the_target(
    floor: tuple[int, int, int], variance: Fraction, data: st.DataObject
) -> None:
    clients, fewest, colluders = floor
    noise = mechanism(clients=clients, min_survivors=fewest, max_colluders=colluders, share_variance=variance)
    target = (fewest - colluders) * variance
    components = noise.components
    assert len(components) == 1 + clients - fewest
    assert sum(components) == variance  # nobody adds more than without removal
    assert all(part > 0 for part in components)
    survivors = data.draw(st.integers(fewest, clients))
    # By the second route: what is not removed, of every survivor that does not collude.
    left = sum(components[: 1 + clients - survivors])
    assert noise.residual_variance(survivors) == left
    assert (survivors - colluders) * left == target
    assert noise.event(survivors=survivors) == noise.event(survivors=fewest)
    assert noise.event(survivors=survivors).variance == target  # type: ignore[attr-defined]
    assert noise.event(survivors=survivors, colluders=0).variance >= target  # type: ignore[attr-defined]


@pytest.mark.parametrize("survivors", [6, 7, 10])
def test_the_noise_that_is_left_has_the_variance_that_is_accounted(survivors: int) -> None:
    noise = mechanism()
    rand = stream(f"left {survivors}")
    seeds = [[rand(32) for _ in range(4)] for _ in range(survivors)]
    shares = [noise.noise_share(rand=rand, seeds=own) for own in seeds]
    before = np.sum(shares, axis=0)
    left = before - noise.surplus([own[10 - survivors :] for own in seeds])
    event: Any = noise.event(survivors=survivors, colluders=0)
    for measured, variance in (
        (left, float(event.variance)),
        (before, survivors * 64**2),
        (shares[0], 64**2),
    ):
        spread = float(np.mean(measured.astype(np.float64) ** 2)) / variance - 1
        assert abs(spread) <= 5 * math.sqrt(2 / noise.dimension)
    if survivors == 10:
        assert float(np.mean(left**2)) < 0.6 * float(np.mean(before**2))  # what it is for


def test_one_component_too_many_is_visible_in_the_variance() -> None:
    """Mutant: the server learns one link too early."""
    noise = mechanism()
    rand = stream("mutant")
    seeds = [[rand(32) for _ in range(4)] for _ in range(8)]
    left = np.sum([noise.noise_share(rand=rand, seeds=own) for own in seeds], axis=0)
    left -= noise.surplus([own[2:] for own in seeds])
    extra = sum(
        noise._draw(noise.components[2], rand=seeded_random(own[1])) for own in seeds
    )  # the last component that must stay
    event: Any = noise.event(survivors=8, colluders=0)
    spread = [
        float(np.mean(measured.astype(np.float64) ** 2)) / float(event.variance) - 1
        for measured in (left, left - extra)
    ]
    assert abs(spread[0]) <= 5 * math.sqrt(2 / noise.dimension) < abs(spread[1])


def test_a_component_follows_from_its_seed_alone() -> None:
    noise = mechanism(dimension=50)
    seeds = [bytes([i]) * 32 for i in range(4)]
    share = noise.noise_share(rand=stream("a"), seeds=seeds)
    parts = [noise._draw(noise.components[0], rand=stream("a"))]
    parts += [
        noise._draw(part, rand=seeded_random(seed)) for part, seed in zip(noise.components[1:], seeds, strict=True)
    ]
    assert np.array_equal(share, np.sum(parts, axis=0))
    assert len({part.tobytes() for part in parts}) == 5


def test_a_seeded_stream_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5 has another counter; this is FIPS 197, C.3 with the all-zero block."""
    assert seeded_random(bytes(32))(16).hex() == "dc95c078a2408989ad48a21492842087"
    whole, parts = seeded_random(bytes(32)), seeded_random(bytes(32))
    assert whole(100) == parts(1) + parts(60) + parts(39)
    with pytest.raises(ValueError, match="a seed must have 32 bytes, got 31"):
        seeded_random(bytes(31))


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_seeds_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"seeds must be 4, one for each removable component, got {count}"):
        mechanism(dimension=3).privatize(np.zeros(3, dtype=np.int64), rand=stream("b"), seeds=[bytes(32)] * count)
    plain = mechanism(dimension=3, removable=False)
    with pytest.raises(ValueError, match="seeds must be 0, one for each removable component, got 1"):
        plain.noise_share(rand=stream("b"), seeds=[bytes(32)])


@pytest.mark.parametrize(("survivors", "each"), [(6, 1), (7, 0), (7, 2), (10, 3), (5, 0)])
def test_a_surplus_that_the_survivors_do_not_leave_is_refused(survivors: int, each: int) -> None:
    with pytest.raises(ValueError, match=f"{survivors} survivors leave {survivors - 6} superfluous components each"):
        mechanism(dimension=3).surplus([[bytes(32)] * each] * survivors)
    assert not mechanism(dimension=3).surplus([()] * 6).any()


def test_only_a_law_that_is_closed_under_addition_can_be_cut() -> None:
    with pytest.raises(ValueError, match="closed under addition"):
        DistributedDiscreteGaussian(**dataclasses.asdict(mechanism()))
    with pytest.raises(ValueError, match="all 10 clients must survive"):
        mechanism(min_survivors=10)
    with pytest.raises(TypeError, match="removable must be a bool, got 1"):
        mechanism(removable=1)


def test_calibration_and_the_budgeted_claim_are_the_same_with_and_without() -> None:
    unit = ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=20)
    floor = {"dimension": 1000, "clients": 20, "min_survivors": 12, "max_colluders": 3}
    plain, cut = (calibrate(unit, removable=removable, **floor) for removable in (False, True))
    assert dataclasses.replace(plain, removable=True) == cut
    for survivors in range(12, 21):
        with_removal = ladder(cut, rounds=20, delta=1e-6, survivors=survivors)
        without = ladder(plain, rounds=20, delta=1e-6, survivors=survivors)
        assert with_removal.guaranteed == with_removal.minus_colluders == without.guaranteed
        assert without.minus_colluders <= with_removal.minus_colluders
    # Whoever works with all others has all links of the one: only the first component counts for it.
    alone = epsilon({cut.event_with(honest=1, survivors=20): 20}, delta=1e-6)
    assert ladder(cut, rounds=20, delta=1e-6).local_only == alone
    assert cut.event_with(honest=1, survivors=20).variance == cut.components[0]  # type: ignore[attr-defined]
