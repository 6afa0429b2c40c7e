"""AggregationConfig: what is derived is tight, what contradicts itself is refused, and the digest misses nothing."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp import DistributedDiscreteGaussian, DistributedSkellam, from_ring, to_ring
from secagg import (
    AggregationConfig,
    BudgetExceededError,
    CapacityError,
    ClientLevel,
    NoPrivacy,
    PrivacyLedger,
    PrivateWeights,
    RecordLevel,
    privacy_unit,
)

LIKE = {"w": np.zeros((2, 5), np.float32)}
NONE = NoPrivacy(clip_norm=1.0)
CLIENT = ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=3)
RECORD = RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=3, sampling_rate=0.125, records=800)
UNITS = (NONE, CLIENT, RECORD)


def silo(
    privacy: object = NONE, *, like: dict[str, np.ndarray] = LIKE, clients: int = 8, **other: object
) -> AggregationConfig:
    arguments = {"max_dropouts": 2, "max_colluders": 1, **other}
    return AggregationConfig.cross_silo(like=like, clients=clients, privacy=privacy, **arguments)  # type: ignore[arg-type]


def smallest_threshold(clients: int, colluders: int) -> int:
    """The smallest t with 2t > n + A; never below 3, except between two clients."""
    floor = 2 if clients == 2 else 3
    return next(t for t in range(floor, 2 * clients + 2) if 2 * t > clients + colluders)


class TestLegality:
    def test_a_silo_is_accepted_exactly_if_enough_must_stay(self) -> None:
        for clients in range(2, 11):
            for colluders in range(-1, clients + 1):
                for dropouts in range(-1, clients + 1):
                    threshold = smallest_threshold(clients, max(colluders, 0))
                    legal = 0 <= colluders < clients and 0 <= dropouts <= clients - threshold
                    try:
                        config = silo(clients=clients, max_dropouts=dropouts, max_colluders=colluders)
                    except ValueError:
                        assert not legal, (clients, dropouts, colluders)
                    else:
                        assert legal, (clients, dropouts, colluders)
                        assert config.threshold == threshold
                        assert config.min_survivors == clients - dropouts

    def test_noise_needs_two_honest_survivors(self) -> None:
        """Between legal thresholds only one case has fewer: everybody but one client colludes."""
        for clients in range(3, 8):
            with pytest.raises(ValueError, match="min_survivors - max_colluders must be >= 2"):
                silo(CLIENT, clients=clients, max_dropouts=0, max_colluders=clients - 1)
            honest = silo(CLIENT, clients=clients, max_dropouts=0, max_colluders=clients - 2)
            assert honest.mechanism is not None

    @pytest.mark.parametrize("clients", [-5, 0, 1, 101])
    def test_a_silo_has_2_to_100_clients(self, clients: int) -> None:
        with pytest.raises(ValueError, match="2 to 100 clients"):
            silo(clients=clients, max_dropouts=0, max_colluders=0)

    def test_a_refusal_names_the_most_dropouts(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"max_dropouts up to 4; with max_dropouts = 5: no max_colluders",
        ):
            silo(clients=10, max_dropouts=5, max_colluders=1)
        silo(clients=10, max_dropouts=4, max_colluders=1)

    @pytest.mark.parametrize("clients", [-5, 0, 1, 65_521, 10**9])
    def test_a_device_cohort_has_bounds_too(self, clients: int) -> None:
        with pytest.raises(ValueError, match=r"clients|cohort"):
            AggregationConfig.cross_device(like=LIKE, clients=clients, max_dropouts=0, max_colluders=0, privacy=NONE)

    @pytest.mark.parametrize(("dropouts", "colluders"), [(-1, 5), (200, 5), (5, -1), (5, 200), (150, 100)])
    def test_numbers_of_a_device_cohort(self, dropouts: int, colluders: int) -> None:
        with pytest.raises(ValueError, match=r"\d"):
            AggregationConfig.cross_device(
                like=LIKE, clients=200, max_dropouts=dropouts, max_colluders=colluders, privacy=NONE
            )

    @pytest.mark.parametrize("name", ["clients", "max_dropouts", "max_colluders", "modulus_bits"])
    @pytest.mark.parametrize("change", [float, lambda value: value + 0.5, str, bool])
    @pytest.mark.parametrize("privacy", [NONE, CLIENT])
    def test_counts_are_integers(self, name: str, change: Callable[[int], object], privacy: object) -> None:
        arguments = {"clients": 8, "max_dropouts": 1, "max_colluders": 1, "modulus_bits": 32}
        with pytest.raises((ValueError, TypeError)):
            silo(privacy, **{**arguments, name: change(arguments[name])})  # type: ignore[arg-type]

    @pytest.mark.parametrize("privacy", [None, "client", {"unit": "none", "clip_norm": 1.0}, ClientLevel])
    def test_privacy_is_a_unit(self, privacy: object) -> None:
        with pytest.raises(ValueError, match="privacy must be one of"):
            silo(privacy)

    @pytest.mark.parametrize("bits", [0, 7, 9, 20, 24, 33, 64])
    def test_lanes(self, bits: int) -> None:
        with pytest.raises(ValueError, match="modulus_bits"):
            silo(modulus_bits=bits)


class TestNoiseLaw:
    def test_is_skellam_unless_asked(self) -> None:
        default, other = silo(CLIENT).mechanism, silo(CLIENT, noise_law="discrete_gaussian").mechanism
        assert isinstance(default, DistributedSkellam)
        assert isinstance(other, DistributedDiscreteGaussian)
        assert other.noise_multiplier == pytest.approx(default.noise_multiplier, rel=1e-3)

    def test_unknown_or_pointless_ones_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"noise_law must be one of .* got 'gaussian'"):
            silo(CLIENT, noise_law="gaussian")
        with pytest.raises(ValueError, match="'discrete_gaussian' has no meaning without privacy"):
            silo(NONE, noise_law="discrete_gaussian")


class TestDropoutNoise:
    def test_the_budgeted_claim_and_the_scale_are_the_same(self) -> None:
        worst, removable = silo(CLIENT), silo(CLIENT, dropout_noise="removable")
        assert worst.mechanism is not None
        assert removable.mechanism == replace(worst.mechanism, removable=True)
        assert (worst.removable, removable.removable) == (0, 2)
        assert removable.needed_bits == worst.needed_bits
        assert removable.relative_error == worst.relative_error
        assert removable.noise_stddev(6) == worst.noise_stddev(6)
        # 8 survivors, one of which may collude: what 6 - 1 shares hold, times 8 / (8 - 1).
        assert removable.noise_stddev(8) == pytest.approx(worst.noise_stddev(8) * math.sqrt(5 / 7))

    def test_the_ladder_has_the_exact_target_for_every_number_of_survivors(self) -> None:
        config = silo(CLIENT, dropout_noise="removable")
        ladders = [config.ladder(survivors=survivors) for survivors in (6, 7, 8)]
        for rungs in ladders:
            assert rungs is not None
            assert rungs.minus_colluders == rungs.guaranteed <= CLIENT.epsilon
            assert rungs == ladders[0]

    def test_unknown_pointless_or_impossible_ones_are_refused(self) -> None:
        for choice, config in (
            ("best_case", {}),
            ("removable", {"privacy": NONE}),
            ("removable", {"max_dropouts": 0}),
            ("removable", {"noise_law": "discrete_gaussian"}),
        ):
            with pytest.raises(ValueError, match=r"dropout_noise must be one of|no meaning|must survive|closed under"):
                silo(**{"privacy": CLIENT, "dropout_noise": choice, **config})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="need the complete graph"):
            AggregationConfig.cross_device(
                like=LIKE, clients=500, max_dropouts=25, max_colluders=5, privacy=CLIENT, dropout_noise="removable"
            )


class TestRing:
    @given(
        clients=st.integers(3, 12),
        unit=st.sampled_from((NONE, CLIENT, RECORD)),
        epsilon=st.sampled_from((0.5, 4.0, 50.0)),
        bits=st.sampled_from((16, 32)),
    )
    def test_needed_bits_hold_the_largest_sum_and_one_less_does_not(
        self, clients: int, unit: object, epsilon: float, bits: int
    ) -> None:
        unit = unit if isinstance(unit, NoPrivacy) else replace(unit, epsilon=epsilon)  # type: ignore[type-var]
        config = silo(
            unit,
            clients=clients,
            max_dropouts=0,
            max_colluders=0,
            modulus_bits=bits if isinstance(unit, NoPrivacy) else 32,
        )
        # Every unit puts its whole norm on one coordinate, and the noise of all clients is at 7.5 standard deviations.
        noise = 0.0 if config.mechanism is None else 7.5 * math.sqrt(clients * config.mechanism.share_variance)
        units = clients
        if isinstance(unit, RecordLevel):
            expected = unit.sampling_rate * unit.records
            units = min(unit.records, math.ceil(expected + 8 * math.sqrt(expected) + 16))
        largest = int(units * config.encoder.int_bound + noise)
        assert config.needed_bits <= config.modulus_bits

        def survives(bits: int) -> bool:
            sums = np.array([largest, -largest])
            return np.array_equal(from_ring(to_ring(sums, modulus_bits=bits), modulus_bits=bits), sums)

        assert survives(config.needed_bits)
        assert not survives(config.needed_bits - 1)

    @given(clients=st.integers(2, 100), bits=st.sampled_from((8, 10, 12, 16, 21, 32)))
    def test_without_noise_integers_are_as_fine_as_the_ring_allows(self, clients: int, bits: int) -> None:
        try:
            config = silo(like={"w": np.zeros(1)}, clients=clients, max_dropouts=0, max_colluders=0, modulus_bits=bits)
        except CapacityError:
            assert (2**bits - 1) // (2 * clients) < 8  # rounding would eat the signal
            return
        bound = config.encoder.int_bound
        assert clients * (bound + config.offset) <= 2**bits - 1
        if config.offset:  # lanes that share a word never go below zero
            assert config.offset >= bound
        else:
            assert clients * bound < 2 ** (bits - 1)
        assert bound == 2**26 or 2 * clients * (bound + 1) > 2**bits - 1

    def test_sixteen_bits_with_noise_take_coarser_steps_of_the_same_noise(self) -> None:
        fine, coarse = silo(CLIENT), silo(CLIENT, modulus_bits=16)
        assert fine.mechanism is not None
        assert coarse.mechanism is not None
        assert 16 < fine.needed_bits <= 32
        assert coarse.needed_bits <= 16
        assert coarse.mechanism.share_variance < fine.mechanism.share_variance
        assert coarse.mechanism.noise_multiplier == pytest.approx(fine.mechanism.noise_multiplier, rel=0.01)
        ladder = coarse.ladder()
        assert ladder is not None
        assert ladder.guaranteed <= CLIENT.epsilon

    def test_sixteen_bits_with_noise_are_refused_where_no_step_fits(self) -> None:
        with pytest.raises(CapacityError, match=r"16 bits cannot hold the sum: \d+ are needed"):
            silo(CLIENT, like={"w": np.broadcast_to(np.float32(0), (10_000_000,))}, modulus_bits=16)

    def test_large_cohorts_with_noise_fit_the_ring(self) -> None:
        config = AggregationConfig.cross_device(
            like=LIKE, clients=20_000, max_dropouts=2000, max_colluders=200, privacy=CLIENT
        )
        assert config.needed_bits <= 32

    def test_a_cohort_too_large_for_the_complete_graph_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no graph is safe"):
            AggregationConfig.cross_device(like=LIKE, clients=5000, max_dropouts=2000, max_colluders=1000, privacy=NONE)

    @settings(max_examples=30)
    @given(
        clients=st.sampled_from([4, 9, 60, 101, 300, 1500]),
        colluders=st.floats(0.0, 1.5),
        dropouts=st.floats(0.0, 1.5),
    )
    def test_a_refusal_names_what_is_just_possible(self, clients: int, colluders: float, dropouts: float) -> None:
        """What it names is accepted, and one more is not."""

        def accepted(max_colluders: int, max_dropouts: int) -> str | None:
            try:
                _ = AggregationConfig.cross_device(
                    like=LIKE, clients=clients, max_dropouts=max_dropouts, max_colluders=max_colluders, privacy=NONE
                )
            except ValueError as error:
                return str(error)
            return None

        most, lost = int(colluders * clients), int(dropouts * clients)
        refusal = accepted(most, lost)
        if refusal is None or "possible are" not in refusal:
            return
        for name in ("max_dropouts", "max_colluders"):
            named = re.search(rf"{name} up to (\d+)", refusal)
            if named is None:
                assert f"no {name} at all" in refusal
                value = -1
            else:
                value = int(named.group(1))
                within = accepted(most, value) if name == "max_dropouts" else accepted(value, lost)
                assert within is None
            beyond = accepted(most, value + 1) if name == "max_dropouts" else accepted(value + 1, lost)
            assert beyond is not None
            assert "possible are" in beyond

    def test_two_clients_cannot_share_noise(self) -> None:
        with pytest.raises(ValueError, match="between two clients"):
            silo(CLIENT, clients=2, max_dropouts=0, max_colluders=0)

    @pytest.mark.parametrize("privacy", [CLIENT, RECORD])
    def test_noise_never_shares_a_word(self, privacy: object) -> None:
        with pytest.raises(ValueError, match="bits"):
            silo(privacy, modulus_bits=21)

    @pytest.mark.parametrize(("bits", "clients"), [(8, 20), (10, 80), (12, 300)])
    def test_a_ring_too_coarse_for_the_model_is_refused_before_a_round(self, bits: int, clients: int) -> None:
        """`encode` would refuse, but only when the client has been asked for its update."""
        length = 50_000_000

        def with_bits(bits: int) -> AggregationConfig:
            return AggregationConfig.cross_device(
                like={"w": np.broadcast_to(np.float32(0), (length,))},
                clients=clients,
                max_dropouts=2,
                max_colluders=1,
                privacy=NONE,
                modulus_bits=bits,
            )

        with pytest.raises(CapacityError, match=f"{bits} bits") as caught:
            with_bits(bits)
        needed = int(str(caught.value).rsplit(": ", 1)[1].split()[0])
        lanes = (8, 10, 12, 16, 21, 32)
        assert needed in lanes
        for lane in lanes:
            if lane < needed:
                with pytest.raises(CapacityError):
                    with_bits(lane)
        enough = with_bits(needed)
        assert enough.encoder.first_clip(length) >= 0.9 * enough.privacy.clip_norm


class TestRotation:
    """Taken exactly where the lanes need it."""

    @pytest.mark.parametrize(
        ("privacy", "bits", "length", "rotation"),
        [
            (NONE, 32, 10**6, False),
            (NONE, 16, 1000, False),
            (NONE, 16, 10**6, True),
            (NONE, 10, 10**6, True),
            (CLIENT, 32, 10**6, False),
            (CLIENT, 16, 1000, False),
            (CLIENT, 16, 10**6, True),
            (RECORD, 32, 1000, False),
            (RECORD, 16, 1000, True),
        ],
    )
    def test_only_where_needed(self, privacy: object, bits: int, length: int, rotation: bool) -> None:
        config = silo(privacy, like={"w": np.broadcast_to(np.float32(0), (length,))}, modulus_bits=bits)
        assert config.rotation is rotation
        assert config.needed_bits <= bits
        assert config.encoder.first_clip(length) >= 0.9
        assert config.expected_wraps <= length * (1.01e-5 if rotation else 1e-12)
        if rotation:
            assert config.wrap_probability > 0.9e-5 or config.encoder.int_bound == 2**26  # as fine as the ring allows
        ladder = config.ladder()
        assert ladder is None or ladder.guaranteed <= 4.0
        assert config.to_dict()["rotation"] is rotation

    def test_sixteen_bits_keep_the_noise_multiplier_of_thirty_two(self) -> None:
        """Coarser steps of the same noise: the price of 16 bits is what Skellam loses against its limit."""
        fine, coarse = (
            silo(CLIENT, clients=100, like={"w": np.broadcast_to(np.float32(0), (10**6,))}, modulus_bits=bits)
            for bits in (32, 16)
        )
        assert fine.mechanism is not None
        assert coarse.mechanism is not None
        assert coarse.mechanism.noise_multiplier == pytest.approx(fine.mechanism.noise_multiplier, rel=0.01)
        assert coarse.upload_bytes == fine.upload_bytes / 2

    @settings(max_examples=20)
    @given(
        clients=st.integers(3, 100),
        length=st.integers(1, 10**6),
        epsilon=st.sampled_from((0.5, 4.0, 50.0)),
        unit=st.sampled_from((CLIENT, RECORD)),
    )
    def test_sixteen_bits_with_noise_fit_or_are_refused(
        self, clients: int, length: int, epsilon: float, unit: ClientLevel | RecordLevel
    ) -> None:
        arguments = {
            "like": {"w": np.broadcast_to(np.float32(0), (length,))},
            "clients": clients,
            "max_dropouts": 0,
            "max_colluders": 0,
        }
        try:
            config = silo(replace(unit, epsilon=epsilon), modulus_bits=16, **arguments)
        except CapacityError:
            return
        assert config.mechanism is not None
        assert config.needed_bits <= 16
        assert config.wrap_probability <= (1.01e-5 if config.rotation else 1e-12)
        ladder = config.ladder()
        assert ladder is not None
        assert ladder.guaranteed <= epsilon

    def test_the_seed_is_each_rounds_own_and_each_models_and_configurations(self) -> None:
        config = silo()
        seeds = {
            config.round_seed(round_id=bytes(32), model=bytes(32)),
            config.round_seed(round_id=b"\1" + bytes(31), model=bytes(32)),
            config.round_seed(round_id=bytes(32), model=b"\1" + bytes(31)),
            silo(application="other").round_seed(round_id=bytes(32), model=bytes(32)),
        }
        assert len(seeds) == 4


@pytest.mark.parametrize(
    "privacy", [NoPrivacy(clip_norm=1.0), ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=1)]
)
def test_every_client_demands_the_hybrid_suite(privacy: NoPrivacy | ClientLevel) -> None:
    subject = AggregationConfig.cross_silo(
        like={"w": np.zeros(3)}, clients=5, max_dropouts=1, max_colluders=1, privacy=privacy
    )
    assert subject.policy().suite == subject.round_config(round_id=bytes(32), model=bytes(32)).suite == 2


class TestDigest:
    def variants(self) -> dict[str, list[AggregationConfig]]:
        """For each field that is asked for, configurations that differ from `silo(RECORD)` in it (and what follows)."""
        return {
            "layout": [silo(RECORD, like={"w": np.zeros((5, 2), np.float32)})],
            "clients": [silo(RECORD, clients=9)],
            "max_dropouts": [silo(RECORD, max_dropouts=1)],
            "max_colluders": [silo(RECORD, max_colluders=2)],
            "modulus_bits": [silo(), silo(modulus_bits=16), silo(modulus_bits=21)],
            "noise_law": [silo(RECORD, noise_law="discrete_gaussian")],
            "dropout_noise": [silo(RECORD, dropout_noise="removable")],
            "application": [silo(RECORD, application="a"), silo(RECORD, application="b")],
            "riders": [
                silo(RECORD, metrics={"loss": (0.0, 1.0)}),
                silo(RECORD, metrics={"loss": (0.0, 2.0)}),
                silo(CLIENT, weights=PrivateWeights(largest=2.0)),
                silo(CLIENT, weights=PrivateWeights(largest=3.0)),
                silo(CLIENT, weights=dict.fromkeys(range(8), 1.0)),
                silo(CLIENT, weights={client: 1.0 + client for client in range(8)}),
            ],
            "privacy": [
                silo(CLIENT),
                silo(NoPrivacy(clip_norm=2.0)),
                *(
                    silo(replace(RECORD, **change))
                    for change in (
                        {"clip_norm": 2.0},
                        {"epsilon": 5.0},
                        {"delta": 1e-5},
                        {"rounds": 4},
                        {"sampling_rate": 0.25},
                        {"records": 801},
                    )
                ),
            ],
        }

    def test_changes_with_every_field(self) -> None:
        variants = self.variants()
        # What is derived follows from these.
        assert {field.name for field in dataclasses.fields(AggregationConfig) if field.init} == set(variants)
        configs = [silo(RECORD), *(config for same in variants.values() for config in same)]
        assert len({config.digest() for config in configs}) == len(configs)

    @pytest.mark.parametrize("unit", UNITS)
    def test_equal_configurations_have_equal_digests(self, unit: object) -> None:
        """Whether 1 or 1.0 was written in one party's file must not keep a round from completing."""
        integral = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in asdict(unit).items()  # type: ignore[call-overload]
        }
        other = silo(type(unit)(**integral))
        assert other == silo(unit)
        assert other.digest() == silo(unit).digest()

    def test_numpy_numbers_are_numbers(self) -> None:
        assert silo(NoPrivacy(clip_norm=np.float32(1.0))).digest() == silo(NONE).digest()  # type: ignore[arg-type]

    def test_is_the_same_in_another_process(self) -> None:
        program = (
            "import numpy as np, secagg\n"
            "print(secagg.AggregationConfig.cross_silo(like={'w': np.zeros((2, 5), np.float32)}, clients=8,"
            " max_dropouts=2, max_colluders=1, privacy=secagg.NoPrivacy(clip_norm=1.0)).digest().hex())"
        )
        environment = {**os.environ, "PYTHONHASHSEED": "7"}
        root = Path(__file__).parents[2]
        printed = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, env=environment
        )
        assert printed.stdout.strip() == silo().digest().hex()

    def test_enters_the_round(self) -> None:
        rounds = {
            silo(application=name).round_config(round_id=bytes(32), model=bytes(32)).digest() for name in ("a", "b")
        }
        assert len(rounds) == 2


class TestConsistency:
    """`dataclasses.replace` is how people vary a frozen object: it must not leave the old noise behind."""

    @pytest.mark.parametrize(
        "change",
        [
            {"max_dropouts": 1},
            {"privacy": replace(CLIENT, epsilon=1.0)},
            {"privacy": replace(CLIENT, rounds=30)},
            {"privacy": NONE},
            {"privacy": RECORD},
            {"layout": silo(like={"w": np.zeros(40)}).layout},
            {"max_colluders": 2},
            {"max_colluders": 0},
            {"clients": 9, "degree": 8},
        ],
    )
    def test_the_mechanism_follows_or_the_change_is_refused(self, change: dict[str, object]) -> None:
        try:
            config = replace(silo(CLIENT), **change)  # type: ignore[arg-type]
        except ValueError:
            return
        fresh = AggregationConfig.cross_silo(
            like={entry.name: np.zeros(entry.shape, entry.dtype) for entry in config.layout.entries},
            clients=config.clients, max_dropouts=config.max_dropouts, max_colluders=config.max_colluders,
            privacy=config.privacy,
        )  # fmt: skip
        assert config.mechanism == fresh.mechanism
        assert config.corrupt_holders >= config.max_colluders

    def test_noise_cannot_be_left_out(self) -> None:
        with pytest.raises((ValueError, TypeError)):
            replace(silo(CLIENT), mechanism=None)


class TestBudget:
    @pytest.mark.parametrize("unit", [CLIENT, RECORD])
    @pytest.mark.parametrize("rounds", [1, 2, 25])
    @pytest.mark.parametrize("epsilon", [0.5, 8.0])
    def test_a_ledger_carries_exactly_the_planned_rounds(self, unit: object, rounds: int, epsilon: float) -> None:
        config = silo(replace(unit, rounds=rounds, epsilon=epsilon))  # type: ignore[type-var]
        budget = config.budget()
        assert budget is not None
        assert config.mechanism is not None
        worst = config.mechanism.event(survivors=config.min_survivors)
        with PrivacyLedger.create(":memory:", budget=budget) as ledger:
            for number in range(rounds):
                ledger.charge(ledger.reserve(worst, request_id=f"round {number}"))
            with pytest.raises(BudgetExceededError):
                ledger.reserve(worst, request_id="one more")
            assert ledger.state().epsilon <= epsilon

    @pytest.mark.parametrize("unit", [CLIENT, RECORD])
    def test_the_ladder_ends_at_the_budget(self, unit: ClientLevel | RecordLevel) -> None:
        ladder = silo(unit).ladder()
        assert ladder is not None
        assert 0.99 * unit.epsilon < ladder.guaranteed <= unit.epsilon
        assert ladder.minus_colluders == ladder.guaranteed  # without survivors named, the fewest
        better = silo(unit).ladder(survivors=8, rounds=1)
        assert better is not None
        assert better.minus_colluders < ladder.minus_colluders

    def test_without_privacy_there_is_nothing_to_keep(self) -> None:
        config = silo()
        assert (config.mechanism, config.budget(), config.ladder(), config.relative_error) == (None, None, None, None)

    def test_the_divisor_is_public(self) -> None:
        assert silo(CLIENT).denominator(6) == silo().denominator(6) == 6
        assert silo(RECORD).denominator(8) == 0.125 * 800
        assert silo(RECORD).denominator(6) == 0.125 * 800 * 6 / 8


class TestCrossDevice:
    def device(self, clients: int, dropouts: int, colluders: int) -> AggregationConfig:
        return AggregationConfig.cross_device(
            like=LIKE, clients=clients, max_dropouts=dropouts, max_colluders=colluders, privacy=NONE
        )

    @pytest.mark.parametrize("clients", [101, 200, 1000, 5000])
    def test_is_a_ring_above_a_hundred(self, clients: int) -> None:
        config = self.device(clients, clients // 20, clients // 20)
        assert config.degree < clients - 1
        assert config.degree % 2 == 0
        assert 2 * config.threshold > config.degree + 1 + config.corrupt_holders
        assert config.corrupt_holders < config.degree

    @pytest.mark.parametrize("clients", [3, 50, 100])
    def test_is_the_complete_graph_below(self, clients: int) -> None:
        assert self.device(clients, 0, 1) == silo(clients=clients, max_dropouts=0, max_colluders=1)

    @pytest.mark.parametrize(("clients", "dropouts", "colluders"), [(101, 20, 20), (150, 40, 40), (300, 100, 30)])
    def test_what_it_derives_the_protocol_accepts(self, clients: int, dropouts: int, colluders: int) -> None:
        """Ring or, where no ring is safe, the complete graph."""
        config = self.device(clients, dropouts, colluders)
        assert config.round_config(round_id=bytes(32), model=bytes(32)).degree == config.degree
        assert config.threshold <= config.min_survivors

    def test_more_colluders_need_more_neighbours(self) -> None:
        degrees = [self.device(500, 25, colluders).degree for colluders in (0, 5, 25, 100)]
        assert degrees == sorted(degrees)
        assert degrees[0] < degrees[-1]


class TestToml:
    TEXT = """
        kind = "cross_silo"
        clients = 8
        max_dropouts = 2
        max_colluders = 1
        application = "hospital"
        [privacy]
        unit = "record"
        clip_norm = 1
        epsilon = 4
        delta = 1e-6
        rounds = 3
        sampling_rate = 0.125
        records = 800
    """

    def read(self, folder: Path, text: str | bytes) -> AggregationConfig:
        path = folder / "agreed.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return AggregationConfig.from_toml(path, like=LIKE)

    def test_equals_the_call(self, tmp_path: Path) -> None:
        config = self.read(tmp_path, self.TEXT)
        called = silo(RECORD, application="hospital")
        assert config == called
        assert config.digest() == called.digest()

    def test_noise_law(self, tmp_path: Path) -> None:
        config = self.read(tmp_path, self.TEXT.replace("[privacy]", 'noise_law = "discrete_gaussian"\n[privacy]'))
        assert config == silo(RECORD, application="hospital", noise_law="discrete_gaussian")

    def test_devices(self, tmp_path: Path) -> None:
        text = self.TEXT.replace("cross_silo", "cross_device").replace("clients = 8", "clients = 120")
        assert self.read(tmp_path, text).degree < 119

    @pytest.mark.parametrize("unit", UNITS)
    def test_units(self, unit: object) -> None:
        assert privacy_unit({"unit": type(unit).unit, **asdict(unit)}) == unit  # type: ignore[call-overload, attr-defined]

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("hospital", "h\xf4pital", "UTF-8"),
            ("clients = 8", "clients = ", "UTF-8 TOML"),
            ('kind = "cross_silo"', "", "kind must be one of .* got None"),
            ('"cross_silo"', '"silo"', "kind must be one of .* got 'silo'"),
            ('"cross_silo"', '["cross_silo"]', "kind must be one of"),
            ("clients = 8", "", "clients"),
            ("clients = 8", "clients = 8\ncleints = 9", "cleints"),
            ("clients = 8", "clients = 8\nlike = 9", "like"),
            ("clients = 8", 'clients = "8"', "str"),
            ("clients = 8", "clients = 8.0", "int"),
            ("max_dropouts = 2", "max_dropouts = 7", "max_dropouts up to"),
            ('"record"', '"records"', "privacy unit must be one of .* got 'records'"),
            ('"record"', '["record"]', "privacy unit must be one of"),
            ('unit = "record"', "", "privacy unit must be one of .* got None"),
            ('"record"', '"client"', "unknown .*sampling_rate.*: .* knows which clients take part"),
            ("delta = 1e-6", "", "delta"),
            ("delta = 1e-6", "delta = 1e-6\ndetla = 1", "detla"),
            ("delta = 1e-6", "delta = 2", "delta must be in"),
            ("delta = 1e-6", "delta = nan", "delta must be in"),
            ("epsilon = 4", "epsilon = inf", "epsilon must be finite"),
            ("rounds = 3", "rounds = 3.0", "rounds must be an int"),
            ("rounds = 3", "rounds = true", "rounds must be an int"),
        ],
    )
    def test_refusals_say_which_entry(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        assert old in self.TEXT
        with pytest.raises(ValueError, match=message) as caught:
            self.read(tmp_path, self.TEXT.replace(old, new).encode("latin-1"))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", ['privacy = "none"', "privacy = 3", "privacy = []"])
    def test_privacy_is_a_table(self, tmp_path: Path, text: str) -> None:
        top = self.TEXT.partition("[privacy]")[0]
        with pytest.raises(ValueError, match="privacy"):
            self.read(tmp_path, top + text)

    def test_a_missing_file_is_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nothing\.toml"):
            AggregationConfig.from_toml(tmp_path / "nothing.toml", like=LIKE)


def test_colluders_have_no_default() -> None:
    """It is a claim about people: nobody may make it by saying nothing."""
    for preset in (AggregationConfig.cross_silo, AggregationConfig.cross_device):
        parameters = inspect.signature(preset).parameters
        for name in ("clients", "max_dropouts", "max_colluders", "privacy"):
            assert parameters[name].default is inspect.Parameter.empty
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
