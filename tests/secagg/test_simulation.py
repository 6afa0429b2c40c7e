"""simulate: the exact sum over the survivors or a typed abort, whoever falls silent when; ledgers that tell it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp import clip_by_l2
from protocols import ClientId
from secagg import (
    AggregationConfig,
    BudgetExceededError,
    ClientLevel,
    NoPrivacy,
    Phase,
    PolicyRefusal,
    PrivacyLedger,
    RecordLevel,
    Simulation,
    TooFewClientsError,
    UnsafeUpdateError,
    simulate,
)

from .parties import SERVER_PHASES, fates

UNITS = ("none 32", "none 16", "none 21", "none 12", "client", "gaussian", "removable", "record")
ADVERTISE, SHARE, MASKED, CHECK, UNMASK = SERVER_PHASES


@cache
def config(unit: str, clients: int, dropouts: int, colluders: int, length: int, rounds: int = 1) -> AggregationConfig:
    kind, _, bits = unit.partition(" ")
    units: dict[str, NoPrivacy | ClientLevel | RecordLevel] = {
        "none": NoPrivacy(clip_norm=2.0),
        "client": ClientLevel(clip_norm=2.0, epsilon=4.0, delta=1e-6, rounds=rounds),
        "gaussian": ClientLevel(clip_norm=2.0, epsilon=4.0, delta=1e-6, rounds=rounds),
        "removable": ClientLevel(clip_norm=2.0, epsilon=4.0, delta=1e-6, rounds=rounds),
        "record": RecordLevel(
            clip_norm=2.0, epsilon=4.0, delta=1e-6, rounds=rounds, sampling_rate=0.5, records=5 * clients
        ),
    }
    return AggregationConfig.cross_silo(
        like={"w": np.zeros(length)}, clients=clients, max_dropouts=dropouts, max_colluders=colluders,
        privacy=units[kind], modulus_bits=int(bits or 32),
        noise_law="discrete_gaussian" if kind == "gaussian" else "skellam",
        dropout_noise="removable" if kind == "removable" and dropouts else "worst_case",
    )  # fmt: skip


def test_clients_have_one_copy_of_what_grows_with_their_number() -> None:
    simulation = Simulation(config("none 32", 6, 1, 1, 9), clients=range(1, 7))
    simulation.round({client: {"w": np.full(9, 0.1)} for client in range(1, 7)}, drop=[2])
    clients = simulation._clients
    groups = [group for one in clients.values() for sets in one._history.history.signed.values() for group in sets]
    assert len(groups) == 5
    assert all(group is groups[0] for group in groups)
    assert [one for one in clients.values() if one.prepared is not None] == []


@dataclass(frozen=True)
class Plan:
    """One round: who takes part, what is protected, and who falls silent when."""

    config: AggregationConfig
    silent: Mapping[int, Phase]
    seed: int
    clients: range = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clients", range(1, self.config.clients + 1))

    def until(self, phase: Phase) -> set[int]:
        """Clients that the server still hears in `phase`."""
        gone = SERVER_PHASES[: SERVER_PHASES.index(phase) + 1]
        return {client for client in self.clients if self.silent.get(client) not in gone}

    def reached(self) -> Phase:
        """Where the round ends: the phase in which too few answer, or `FINISHED`."""
        floors = {
            ADVERTISE: self.config.min_survivors,
            SHARE: self.config.min_survivors,
            MASKED: self.config.min_survivors,
            CHECK: self.config.threshold,
            UNMASK: self.config.threshold,
        }
        return next((phase for phase in SERVER_PHASES if len(self.until(phase)) < floors[phase]), Phase.FINISHED)

    def updates(self) -> dict[int, dict[str, np.ndarray]]:
        """Some within the clip, some beyond."""
        rng = np.random.default_rng(self.seed)
        shape = (self.config.layout.length,)
        records = isinstance(self.config.privacy, RecordLevel)
        return {
            client: {
                "w": rng.normal(scale=rng.choice((0.1, 3.0)), size=(rng.integers(0, 4), *shape) if records else shape)
            }
            for client in self.clients
        }


@st.composite
def plans(draw: st.DrawFn, units: tuple[str, ...] = UNITS) -> Plan:
    unit = draw(st.sampled_from(units))
    noised = not unit.startswith("none")
    clients = draw(st.integers(3 if noised else 2, 8))
    colluders = draw(st.integers(0, max(0, clients - 2) if noised else clients - 1))
    threshold = max(2 if clients == 2 else 3, (clients + colluders) // 2 + 1)
    dropouts = draw(st.integers(0, clients - threshold))
    length = draw(st.integers(1, 3 if unit == "none 12" else 40))
    silent = draw(
        st.dictionaries(st.integers(1, clients), st.sampled_from(SERVER_PHASES), max_size=min(clients, dropouts + 1))
    )
    return Plan(config(unit, clients, dropouts, colluders, length), silent, draw(st.integers(0, 2**32 - 1)))


def cost(subject: AggregationConfig, survivors: int) -> int:
    assert subject.mechanism is not None
    budget = subject.budget()
    assert budget is not None
    with PrivacyLedger.create(":memory:", budget=budget) as ledger:
        return ledger.reserve(subject.mechanism.event(survivors=survivors), request_id="price").amount


class TestEveryPatternOfSilence:
    @settings(max_examples=150)
    @given(plan=plans())
    def test_the_exact_sum_over_the_survivors_or_too_few(self, plan: Plan) -> None:
        updates = plan.updates()
        simulation = Simulation(plan.config, clients=updates)
        if plan.reached() is not Phase.FINISHED:
            with pytest.raises(TooFewClientsError) as caught:
                simulation.round(updates, drop=plan.silent)
            assert caught.value.phase == plan.reached().value
            assert simulation.exact_sums == 0
            return
        result = simulation.round(updates, drop=plan.silent)
        assert result.survivors == plan.until(MASKED)
        assert simulation.exact_sums == 1  # the simulation itself compared with the plain integers
        if not isinstance(plan.config.privacy, NoPrivacy):
            assert result.epsilon <= plan.config.privacy.epsilon
            return
        assert math.isinf(result.epsilon)
        # And here with the plain floats: each vector is off by less than a step for rounding; one that is clipped also
        # by the room that the encoder leaves for rounding, d / (8 B^2) + 4 / B of its length.
        encoder, length = plan.config.encoder, plan.config.layout.length
        clipped = [clip_by_l2(updates[client]["w"], clip_norm=2.0) for client in sorted(result.survivors)]
        step = 2.0 / encoder.int_bound
        room = 2.0 * (length / (8 * encoder.int_bound**2) + 8 / encoder.int_bound)
        np.testing.assert_allclose(result.mean["w"], np.mean(clipped, axis=0), atol=step + room, rtol=0)

    @settings(max_examples=25)
    @given(plan=plans(units=("client", "gaussian", "removable", "record")))
    def test_ledgers_tell_what_happened(self, plan: Plan) -> None:
        with tempfile.TemporaryDirectory() as folder:
            simulation = Simulation(plan.config, clients=plan.clients, ledger_directory=folder)
            try:
                simulation.round(plan.updates(), drop=plan.silent)
            except TooFewClientsError:
                pass
            finally:
                simulation.close()
            expected = self.expected(plan)
            for path in Path(folder).glob("*.ledger"):
                with PrivacyLedger.open(path) as ledger:
                    ledger.verify()
                    assert fates(ledger) == expected.pop(path.stem), path.stem
                    state = ledger.state()
                    assert state.filter_spent <= state.filter_limit
                    assert state.epsilon <= plan.config.privacy.epsilon
            assert not expected

    def expected(self, plan: Plan) -> dict[str, list[tuple[str, int]]]:
        """Server: free if nobody was asked to unmask. Client: charged if its vector left; less if it saw proof."""
        free, worst = ("release", 0), ("commit", cost(plan.config, plan.config.min_survivors))
        ended = [*SERVER_PHASES, Phase.FINISHED].index(plan.reached())
        asked_to_unmask = ended >= SERVER_PHASES.index(UNMASK)
        agreed = ("commit", cost(plan.config, len(plan.until(MASKED)))) if asked_to_unmask else worst
        fates = {"server": [agreed if plan.reached() is Phase.FINISHED else worst if asked_to_unmask else free]}
        for client in plan.clients:
            if client not in plan.until(ADVERTISE):
                fates[f"client-{client}"] = []  # it never opened the round
            elif ended < SERVER_PHASES.index(MASKED) or client not in plan.until(MASKED):
                fates[f"client-{client}"] = [free]
            elif asked_to_unmask and client in plan.until(UNMASK):
                fates[f"client-{client}"] = [agreed]
            else:
                fates[f"client-{client}"] = [worst]
        return fates


class TestManyRounds:
    def test_budgets_go_on_where_they_stopped(self, tmp_path: Path) -> None:
        subject = config("client", 5, 1, 1, 4, rounds=4)
        updates = {client: {"w": np.zeros(4)} for client in range(1, 6)}
        spent = []
        for _ in range(2):
            simulation = Simulation(subject, clients=updates, ledger_directory=tmp_path / "ledgers")
            spent += [simulation.round(updates, drop={1}).epsilon for _ in range(2)]
            simulation.close()
        assert spent == sorted(set(spent))
        assert spent[-1] <= 4.0
        simulation = Simulation(subject, clients=updates, ledger_directory=tmp_path / "ledgers")
        with pytest.raises(BudgetExceededError):
            simulation.round(updates)
        simulation.close()

    def test_a_round_without_noise_needs_a_new_model_to_lose_other_clients(self) -> None:
        subject = config("none 32", 5, 1, 1, 4)
        updates = {client: {"w": np.full(4, client / 10)} for client in range(1, 6)}
        simulation = Simulation(subject, clients=updates)
        simulation.round(updates)
        with pytest.raises(PolicyRefusal, match="differs in 1 clients"):
            simulation.round(updates, drop={3})
        result = simulation.round(updates, drop={3}, model={"w": np.ones(4)})
        assert sorted(result.survivors) == [1, 2, 4, 5]
        assert simulation.exact_sums == 2

    def test_a_failed_round_leaves_nothing_behind(self) -> None:
        subject = config("none 32", 5, 1, 1, 4)
        updates = {client: {"w": np.full(4, client / 10)} for client in range(1, 6)}
        simulation = Simulation(subject, clients=updates)
        with pytest.raises(TooFewClientsError):
            simulation.round(updates, drop={1, 2, 3})
        with pytest.raises(UnsafeUpdateError):
            simulation.round({**updates, 4: {"w": np.full(4, math.nan)}})
        assert len(simulation.round(updates).survivors) == 5
        assert simulation.exact_sums == 1

    @pytest.mark.parametrize("update", [{"w": np.full(4, math.nan)}, None])
    def test_a_mistake_of_the_caller_costs_nobody_anything(self, tmp_path: Path, update: object) -> None:
        """Nothing left that client, and nobody was asked to unmask: ledgers on disk must not keep the reservation."""
        subject = config("client", 5, 1, 1, 4, rounds=2)
        updates: dict[int, object] = {client: {"w": np.zeros(4)} for client in range(1, 6)}
        simulation = Simulation(subject, clients=updates, ledger_directory=tmp_path)
        with pytest.raises(UnsafeUpdateError):
            simulation.round({**updates, 1: update})  # type: ignore[dict-item]
        simulation.close()
        for path in tmp_path.glob("*.ledger"):
            with PrivacyLedger.open(path) as ledger:
                assert fates(ledger) == [("release", 0)], path.stem


class TestArguments:
    subject = config("none 32", 4, 1, 0, 2)
    updates: Mapping[int, dict[str, np.ndarray]] = MappingProxyType(
        {client: {"w": np.full(2, client / 10)} for client in (3, 5, 8, 2**31 - 1)}  # ids are free
    )

    def test_updates_may_be_computed_when_asked(self) -> None:
        asked: list[int] = []

        def compute(client: int) -> dict[str, np.ndarray]:
            asked.append(client)
            return self.updates[client]

        result = Simulation(self.subject, clients=self.updates).round(compute, drop={5: MASKED})
        assert result.survivors == {3, 8, 2**31 - 1}
        assert asked == [3, 8, 2**31 - 1]  # not the one whose vector would not have arrived

    def test_a_set_falls_silent_after_sharing_keys(self) -> None:
        assert simulate(self.updates, self.subject, drop=[5]).survivors == {3, 8, 2**31 - 1}

    def test_tap_sees_every_message_and_the_announced_size(self) -> None:
        seen: list[tuple[int, Phase, bytes]] = []
        simulation = Simulation(self.subject, clients=self.updates)
        simulation.round(self.updates, drop={5: MASKED}, tap=lambda *message: seen.append(message))
        for phase in SERVER_PHASES:
            senders = [client for client, when, _ in seen if when is phase]
            assert senders == ([3, 5, 8, 2**31 - 1] if phase in (ADVERTISE, SHARE) else [3, 8, 2**31 - 1])

    @pytest.mark.parametrize("bits", [8, 10, 12, 16, 21, 32])
    def test_upload_is_what_was_planned(self, bits: int) -> None:
        subject = AggregationConfig.cross_silo(
            like={"w": np.zeros(31 if bits > 10 else 1)}, clients=3, max_dropouts=0, max_colluders=0,
            privacy=NoPrivacy(clip_norm=1.0), modulus_bits=bits,
        )  # fmt: skip
        seen: list[int] = []
        updates = {client: {"w": np.zeros(subject.layout.length)} for client in (1, 2, 3)}

        def tap(client: int, phase: Phase, data: bytes) -> None:
            if phase is MASKED:
                seen.append(len(data))

        Simulation(subject, clients=updates).round(updates, tap=tap)
        assert len(seen) == 3
        assert all(0 < size - subject.upload_bytes < 150 for size in seen)  # header, round, sender, signature

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"updates": {1: {"w": np.zeros(2)}}}, "for 4 clients, got 1"),
            ({"drop": {4}}, r"clients \[4\] of the drop plan"),
            ({"drop": {3: Phase.CONTRIBUTE}}, "client 3 cannot fall silent in"),
            ({"drop": {3: Phase.FINISHED}}, "client 3 cannot fall silent in"),
        ],
    )
    def test_that_make_no_sense(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            simulate(**{"updates": self.updates, "config": self.subject, **arguments})  # type: ignore[arg-type]

    @pytest.mark.parametrize("client", [0, -1, 2**31])
    def test_ids_out_of_range(self, client: int) -> None:
        with pytest.raises(ValueError, match="client ids are from 1"):
            simulate({**dict(list(self.updates.items())[:3]), client: {"w": np.zeros(2)}}, self.subject)


@pytest.mark.parametrize("bits", [10, 12])
def test_rotated_rounds_are_exact_and_give_the_mean(bits: int) -> None:
    """Over bytes: every party derives the round's rotation by itself."""
    length = 30_000
    subject = AggregationConfig.cross_silo(
        like={"w": np.zeros(length)},
        clients=5,
        max_dropouts=1,
        max_colluders=1,
        privacy=NoPrivacy(clip_norm=2.0),
        modulus_bits=bits,
    )
    assert subject.rotation
    updates = {client: {"w": np.eye(1, length, client)[0]} for client in range(1, 6)}
    simulation = Simulation(subject, clients=updates)
    for _ in range(2):
        result = simulation.round(updates, drop={2})
        assert result.near_limit == 0
        expected = np.mean([updates[client]["w"] for client in (1, 3, 4, 5)], axis=0)
        step = 2.0 / subject.encoder.int_bound
        np.testing.assert_allclose(result.mean["w"], expected, atol=4 * step)
    assert simulation.exact_sums == 2


class TestRing:
    """A cohort above a hundred: each client shares masks with a few neighbours only."""

    def test_the_exact_sum_with_dropouts_in_every_phase(self) -> None:
        clients = 110
        subject = AggregationConfig.cross_device(
            like={"w": np.zeros(5)}, clients=clients, max_dropouts=8, max_colluders=5, privacy=NoPrivacy(clip_norm=2.0)
        )
        assert subject.degree < clients - 1
        rng = np.random.default_rng(5)
        updates = {client: {"w": rng.uniform(-0.4, 0.4, size=5)} for client in range(1, clients + 1)}
        silent = {1: ADVERTISE, 20: SHARE, 21: SHARE, 40: MASKED, 60: MASKED, 110: MASKED, 70: CHECK, 80: UNMASK}
        result = simulate(updates, subject, drop=silent)
        survivors = set(updates) - {1, 20, 21, 40, 60, 110}
        assert result.survivors == set(map(ClientId, survivors))
        expected = np.mean([updates[client]["w"] for client in survivors], axis=0)
        np.testing.assert_allclose(result.mean["w"], expected, atol=2.0 / subject.encoder.int_bound)

    def test_too_few(self) -> None:
        clients = 104
        subject = AggregationConfig.cross_device(
            like={"w": np.zeros(1)}, clients=clients, max_dropouts=2, max_colluders=1, privacy=NoPrivacy(clip_norm=2.0)
        )
        updates = {client: {"w": np.zeros(1)} for client in range(1, clients + 1)}
        with pytest.raises(TooFewClientsError, match="101 clients survived, the floor is 102"):
            simulate(updates, subject, drop={5, 50, 90})
