"""explain(): every derived number is there, once, with its value and a reason."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest

from secagg import AggregationConfig, ClientLevel, NoPrivacy, RecordLevel

LIKE = {"w": np.zeros(50, np.float32)}
UNITS = {
    "none": NoPrivacy(clip_norm=1.0),
    "client": ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=3),
    "record": RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=3, sampling_rate=0.125, records=800),
}
ALWAYS = {
    *("degree", "corrupt_holders", "threshold", "min_survivors", "modulus_bits", "int_bound", "upload_bytes"),
    *("clip_norm", "rotation", "wrap_probability", "expected_wraps"),
}
NOISED = {"noise_law", "dropout_noise", "share_stddev", "noise_multiplier", "expected_relative_error"} | {
    f"ladder.{rung}" for rung in ("all_honest", "after_dropout", "minus_colluders", "guaranteed", "local_only")
}
EXPECTED = {"none": ALWAYS | {"epsilon"}, "client": ALWAYS | NOISED, "record": ALWAYS | NOISED | {"denominator"}}


def config(unit: str, *, clients: int = 8) -> AggregationConfig:
    preset = AggregationConfig.cross_silo if clients <= 100 else AggregationConfig.cross_device
    return preset(like=LIKE, clients=clients, max_dropouts=2, max_colluders=1, privacy=UNITS[unit])  # type: ignore[arg-type]


@pytest.mark.parametrize("clients", [8, 120])
@pytest.mark.parametrize("unit", UNITS)
class TestExplain:
    def test_every_number_once_with_a_reason(self, unit: str, clients: int) -> None:
        lines = config(unit, clients=clients).explain()
        assert sorted(line.name for line in lines) == sorted(EXPECTED[unit])
        for line in lines:
            assert len(line.reason) > 20
            assert "\n" not in line.reason

    def test_values_are_those_in_use(self, unit: str, clients: int) -> None:
        subject = config(unit, clients=clients)
        values = {line.name: line.value for line in subject.explain()}
        for name in ALWAYS - {"int_bound"}:
            assert values[name] == getattr(subject, name)
        assert values["int_bound"] == subject.encoder.int_bound
        if subject.mechanism is None:
            assert values["epsilon"] == math.inf
            return
        deviation = math.sqrt(subject.mechanism.share_variance)
        assert values["share_stddev"] == pytest.approx(deviation)
        honest = subject.min_survivors - subject.max_colluders
        assert values["noise_multiplier"] == pytest.approx(deviation * math.sqrt(honest) / subject.encoder.int_bound)
        assert values["expected_relative_error"] == subject.relative_error
        assert values["noise_law"] == subject.noise_law == "skellam"
        ladder = subject.ladder()
        assert ladder is not None
        assert {name: value for name, value in values.items() if name.startswith("ladder.")} == {
            f"ladder.{name}": value for name, value in ladder.to_dict().items()
        }

    def test_nothing_derived_is_left_out(self, unit: str, clients: int) -> None:
        """Fields that no argument of a preset sets are derived, whoever adds them."""
        asked = set(inspect.signature(AggregationConfig.cross_silo).parameters)
        derived = (
            {field.name for field in dataclasses.fields(AggregationConfig)}
            - asked
            - {"layout", "mechanism", "riders", "_digest"}
        )
        assert derived <= {line.name for line in config(unit, clients=clients).explain()}

    def test_the_bits_that_would_do_are_named(self, unit: str, clients: int) -> None:
        subject = config(unit, clients=clients)
        reason = next(line.reason for line in subject.explain() if line.name == "modulus_bits")
        assert f"{subject.needed_bits} bits would do" in reason


def test_degree_says_which_graph() -> None:
    complete, ring = (
        next(line.reason for line in config("none", clients=clients).explain() if line.name == "degree")
        for clients in (8, 120)
    )
    assert "every other" in complete
    assert "2^-40" in ring
