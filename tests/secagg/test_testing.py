"""`secagg.testing`: honest clients survive every lie, careless ones are found out, and plans end as they say."""

from __future__ import annotations

import doctest
from collections.abc import Iterable

import numpy as np
import pytest

import secagg
from protocols import ProtocolError
from protocols.wire import Unmask, decode_signed
from secagg import AggregationConfig, NoPrivacy, RecordLevel, TooFewClientsError, simulate, testing
from secagg.testing import (
    LIES,
    Federation,
    Outcome,
    assert_plain_mean,
    dropout_plans,
    fatal_dropouts,
    play_lie,
    updates_for,
)

from .parties import plain_config, private_config

REFUSALS = {
    "another configuration": {"InconsistentViewError"},
    "another model": {"InconsistentViewError"},
    "another round": {"InconsistentViewError"},
    "swapped key": {"InvalidSignatureError"},
    "permuted shares": {"RemoteProtocolError"},
    "damaged shares": {"RemoteProtocolError"},
    "too few survivors": {"TooFewClientsError"},
    "forked survivors": {"TooFewClientsError"},
    "second question": {"LocalProtocolError"},
    "replayed round": {"PolicyRefusal"},
}


def test_examples_run() -> None:
    outcome = doctest.testmod(testing)
    assert outcome.attempted > 0
    assert outcome.failed == 0


class TestLies:
    def test_every_lie_has_its_refusal_here(self) -> None:
        assert set(REFUSALS) == set(LIES)

    @pytest.mark.parametrize("lie", LIES)
    @pytest.mark.parametrize("config", [plain_config(5), private_config(5)], ids=["plain", "private"])
    def test_clients_of_the_library_refuse(self, lie: str, config: AggregationConfig) -> None:
        federation = Federation(config)
        outcome = play_lie(lie, config, federation.roster, federation.send)
        outcome.assert_safe()
        assert len(outcome.refusals) == (4 if lie == "forked survivors" else 5)
        assert {type(error).__name__ for error in outcome.refusals.values()} == REFUSALS[lie]

    @pytest.mark.parametrize("lie", ["another model", "forked survivors", "replayed round"])
    def test_a_model_may_be_agreed(self, lie: str) -> None:
        config = plain_config(5)
        model = updates_for(config, seed=9)[1]
        federation = Federation(config, model=model)
        outcome = play_lie(lie, config, federation.roster, federation.send, model=model)
        outcome.assert_safe()
        assert {type(error).__name__ for error in outcome.refusals.values()} == REFUSALS[lie]

    def test_a_client_that_answers_twice_is_found_out(self) -> None:
        """An application that keeps its answers and repeats them on request."""
        config = plain_config(4)
        federation = Federation(config)
        kept: dict[tuple[int, bytes], list[bytes]] = {}

        def repeating(client: int, data: bytes) -> list[bytes]:
            if (client, data) not in kept:
                kept[client, data] = federation.send(client, data)
            return kept[client, data]

        outcome = play_lie("second question", config, federation.roster, repeating)
        assert outcome.exposed == {1, 2, 3, 4}
        with pytest.raises(AssertionError, match=r"got shares from clients \[1, 2, 3, 4\]"):
            outcome.assert_safe()

    def test_swallowed_errors_are_safe_but_no_refusals(self) -> None:
        config = plain_config(4)
        federation = Federation(config)

        def quiet(client: int, data: bytes) -> Iterable[bytes]:
            try:
                return federation.send(client, data)
            except ProtocolError:
                return []

        outcome = play_lie("forked survivors", config, federation.roster, quiet)
        outcome.assert_safe()
        assert outcome.refusals == {}

    def test_answers_that_count_as_shares_are_shares(self) -> None:
        config = plain_config(4)
        federation = Federation(config)
        last: dict[int, bytes] = {}

        def recording(client: int, data: bytes) -> list[bytes]:
            answers = federation.send(client, data)
            last.update(dict.fromkeys([client], answers[-1]) if answers else {})
            return answers

        play_lie("second question", config, federation.roster, recording)
        for answer in last.values():
            assert decode_signed(answer, Unmask, limit=10_000).message.shares

    def test_an_unknown_lie(self) -> None:
        federation = Federation(plain_config(4))
        with pytest.raises(ValueError, match="there is no lie 'a white one'"):
            play_lie("a white one", federation.config, federation.roster, federation.send)

    def test_an_outcome_without_exposure_is_safe(self) -> None:
        Outcome(lie="swapped key", refusals={}, exposed=frozenset()).assert_safe()


class TestPlans:
    @pytest.mark.parametrize("dropouts", [0, 1, 2])
    def test_allowed_dropouts_leave_a_mean_and_one_more_does_not(self, dropouts: int) -> None:
        config = plain_config(6, max_dropouts=dropouts)
        updates = updates_for(config)
        plans, fatal = list(dropout_plans(config)), list(fatal_dropouts(config))
        assert len(plans) == (7 if dropouts else 1)
        assert len(fatal) == 3
        for plan in plans:
            assert_plain_mean(simulate(updates, config, drop=plan), updates)
        for plan in fatal:
            assert len(plan) == dropouts + 1
            with pytest.raises(TooFewClientsError):
                simulate(updates, config, drop=plan)


class TestUpdates:
    def test_are_the_same_for_the_same_seed_and_within_the_clip_norm(self) -> None:
        config = plain_config(5)
        first, again, other = updates_for(config), updates_for(config), updates_for(config, seed=1)
        for client in first:
            np.testing.assert_array_equal(first[client]["w"], again[client]["w"])
            assert not np.array_equal(first[client]["w"], other[client]["w"])
            assert 0 < np.linalg.norm(first[client]["w"]) <= config.clip_norm

    def test_records_have_an_axis_of_their_own(self) -> None:
        config = AggregationConfig.cross_silo(
            like={"w": np.zeros((2, 3), np.float32)}, clients=4, max_dropouts=1, max_colluders=0,
            privacy=RecordLevel(clip_norm=1.0, epsilon=8.0, delta=1e-5, rounds=1, sampling_rate=0.5, records=12),
        )  # fmt: skip
        updates = updates_for(config)
        assert updates[1]["w"].shape == (testing.RECORDS, 2, 3)
        assert simulate(updates, config).epsilon <= 8.0

    def test_a_wrong_mean_is_noticed(self) -> None:
        config = plain_config(5)
        updates = updates_for(config)
        result = simulate(updates, config)
        assert_plain_mean(result, updates)
        wrong = {client: {"w": update["w"] + (client == 2) * 1e-3} for client, update in updates.items()}
        with pytest.raises(AssertionError, match="off by"):
            assert_plain_mean(result, wrong)

    def test_noise_and_weights_have_no_plain_mean(self) -> None:
        config = private_config(5)
        with pytest.raises(ValueError, match="without noise"):
            assert_plain_mean(simulate(updates_for(config), config), updates_for(config))
        weighed = AggregationConfig.cross_silo(
            like={"w": np.zeros(4)}, clients=5, max_dropouts=1, max_colluders=0, privacy=NoPrivacy(clip_norm=1.0),
            weights=dict.fromkeys(range(1, 6), 2.0),
        )  # fmt: skip
        with pytest.raises(ValueError, match="without weights"):
            assert_plain_mean(simulate(updates_for(weighed), weighed), updates_for(weighed))


def test_is_not_imported_by_the_library() -> None:
    assert not hasattr(secagg, "Federation")
