"""Privacy units: what they claim, and that nothing outside its bounds can be claimed."""

import copy
import dataclasses
import math
import pickle
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp.units import ClientLevel, LocalRecordLevel, NoPrivacy, RecordLevel

CLIENT = ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=10)
RECORD = RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=10, sampling_rate=0.1, records=5000)
LOCAL = LocalRecordLevel(
    clip_norm=5.0,
    record_clip_norm=1.0,
    epsilon=4.0,
    delta=1e-6,
    rounds=10,
    local_steps=3,
    sampling_rate=0.1,
    records=500,
)
NONE = NoPrivacy(clip_norm=1.0)


def test_each_unit_names_itself_and_its_neighbours() -> None:
    assert [unit.unit for unit in (CLIENT, RECORD, LOCAL, NONE)] == ["client", "record", "local_record", "none"]
    assert len({unit.adjacency for unit in (CLIENT, RECORD, LOCAL, NONE)}) == 4
    assert "replaced by zero" in CLIENT.adjacency
    assert "added or removed" in RECORD.adjacency


def test_no_privacy_has_infinite_epsilon() -> None:
    assert NONE.epsilon == math.inf


@pytest.mark.parametrize("unit", [CLIENT, RECORD, LOCAL, NONE])
def test_units_are_frozen_and_hashable(unit: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        unit.clip_norm = 2.0
    assert {unit: 1}[dataclasses.replace(unit)] == 1


def test_only_the_record_level_has_a_sampling_rate() -> None:
    assert not hasattr(CLIENT, "sampling_rate")


@pytest.mark.parametrize("name", ["sampling_rate", "sample_rate", "participation_rate", "client_rate", "q"])
def test_a_client_level_rate_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(TypeError, match=rf"takes no {name}, got 0\.1: .*knows which clients take part.*no random draw"):
        ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=1, **{name: 0.1})  # type: ignore[arg-type]


def test_a_mistyped_argument_is_an_ordinary_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilom'"):
        ClientLevel(clip_norm=1.0, epsilom=4.0, delta=1e-6, rounds=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda unit: pickle.loads(pickle.dumps(unit))])
@pytest.mark.parametrize("unit", [CLIENT, RECORD, LOCAL, NONE])
def test_units_can_be_copied_and_pickled(unit: Any, duplicate: Any) -> None:
    assert duplicate(unit) == unit


@pytest.mark.parametrize("unit", [RECORD, LOCAL])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling_rate", 0.0), ("sampling_rate", 1.5), ("sampling_rate", math.nan), ("records", 0), ("records", 1.5),
        ("rounding", "nearest"), ("rounds", 0), ("epsilon", 0.0), ("delta", 1.0), ("clip_norm", math.inf),
    ],
)  # fmt: skip
def test_units_of_records_name_what_is_out_of_bounds(unit: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(unit, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("record_clip_norm", 0.0), ("record_clip_norm", math.nan), ("local_steps", 0)]
)
def test_local_units_name_what_is_out_of_bounds(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(LOCAL, **{name: value})


def test_releases_are_what_the_budget_carries() -> None:
    assert RECORD.releases == 10
    assert LOCAL.releases == 30
    assert LOCAL.exact_rate == RECORD.exact_rate == Fraction(0.1)


BAD_BUDGET: list[tuple[str, Any]] = [
    *[("clip_norm", value) for value in (0.0, -1.0, math.inf, math.nan)],
    *[("epsilon", value) for value in (0.0, -1.0, math.inf, math.nan)],
    *[("delta", value) for value in (0.0, 1.0, -1e-9, 2.0, math.nan)],
    *[("rounds", value) for value in (0, -1, 1.5, True)],
]
BAD_RECORD: list[tuple[str, Any]] = [
    *[("sampling_rate", value) for value in (0.0, -0.1, 1.0000001, 2.0**-65, math.nan)],
    *[("records", value) for value in (0, -5, 10.0, True)],
]


@pytest.mark.parametrize(("name", "value"), BAD_BUDGET)
@pytest.mark.parametrize("unit", [CLIENT, RECORD])
def test_a_bad_budget_is_refused_by_name(unit: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*got "):
        dataclasses.replace(unit, **{name: value})


@pytest.mark.parametrize(("name", "value"), BAD_RECORD)
def test_a_bad_record_sampling_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*got "):
        dataclasses.replace(RECORD, **{name: value})


def test_no_privacy_still_needs_a_clip_norm() -> None:
    with pytest.raises(ValueError, match="clip_norm must be finite and > 0, got nan"):
        NoPrivacy(clip_norm=math.nan)


@given(st.floats(min_value=2.0**-64, max_value=1.0))
def test_the_accounted_rate_is_never_below_the_drawn_one(rate: float) -> None:
    accounted = dataclasses.replace(RECORD, sampling_rate=rate).exact_rate
    assert accounted >= Fraction(math.floor(rate * 2**64), 2**64)
    assert accounted >= Fraction(math.floor(accounted * 2**64), 2**64)
    assert float(accounted) == rate


def test_the_decimal_rate_would_be_below_the_drawn_one() -> None:
    """Why the rate is the float's binary value: 1/10 undercounts a sampler that starts from 0.1."""
    assert Fraction(1, 10) < Fraction(math.floor(0.1 * 2**64), 2**64) <= RECORD.exact_rate


def test_the_denominator_is_the_public_expected_count() -> None:
    assert RECORD.denominator == 500.0
