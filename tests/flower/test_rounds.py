"""Unmodified strategies and train functions on masked rounds: exact means, nothing in clear, dropouts, budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import message_size_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    QFedAvg,
)

from protocols import TooFewClientsError
from secagg import BudgetExceededError, PrivacyLedger
from secagg.adapters.flower import SecAggMod, UnsupportedStrategyError
from secagg.adapters.flower.records import Stage
from tests.flower.apps import (
    ADAPTIVE,
    MODEL,
    PLAIN,
    PRIVATE,
    STAGES,
    WEIGHTED,
    Federation,
    LocalGrid,
    app_of,
    averaging,
    client_of,
    examples_of,
    numpy_of,
    record,
    silence,
    stage_of,
    task,
    train,
    update_of,
)


def step(settings: dict[str, object]) -> float:
    """The error that encoding adds to each coordinate of a mean is below one integer step, whatever the weights."""
    from secagg.adapters.flower import Agreement
    from secagg.layout import Layout

    encoder = Agreement.of(settings).config(Layout.of(MODEL)).encoder
    return encoder.clip_norm / encoder.int_bound


class TestUnmodifiedStrategies:
    @pytest.mark.parametrize("kind", [FedAvg, FedAvgM, FedProx, FedAdagrad, FedAdam, FedYogi])
    def test_get_what_they_get_without_masks(self, kind: type[FedAvg], nodes: Path) -> None:
        options = {"proximal_mu": 0.1} if kind is FedProx else {}
        federation = Federation(nodes, kind(fraction_evaluate=0.0, **options), WEIGHTED)  # type: ignore[arg-type]
        masked = federation.start(rounds=2)
        plain = LocalGrid(app_of, nodes=8)
        with task():
            strategy = kind(fraction_evaluate=0.0, **options)  # type: ignore[arg-type]
            expected = strategy.start(grid=plain, initial_arrays=record(MODEL), num_rounds=2)
        assert federation.secure.failures == []
        for name, array in numpy_of(expected.arrays).items():
            np.testing.assert_allclose(numpy_of(masked.arrays)[name], array, rtol=0, atol=2e-6)
        for number in (1, 2):
            losses = [
                result.train_metrics_clientapp[number]["train_loss"]  # type: ignore[index]
                for result in (masked, expected)
            ]
            assert losses[0] == pytest.approx(losses[1], abs=1e-6)

    def test_the_mean_is_weighted_by_examples(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), WEIGHTED)
        result = federation.start()
        shares = np.array([examples_of(client) for client in range(1, 9)]) / 360
        for name, array in numpy_of(result.arrays).items():
            mean = sum(share * update_of(client, 1)[name].astype(np.float64)
                       for client, share in enumerate(shares, start=1))  # fmt: skip
            error = np.abs(array - (MODEL[name] + mean)).max()
            # The sum of n rounding errors over the least sum of weights, and float32 on the way in and out.
            assert error <= 8 * step(WEIGHTED) / (360 / 80) + 1e-6
        assert federation.secure.results[0].weight == pytest.approx(360, rel=1e-5)

    def test_public_weights(self, nodes: Path) -> None:
        weights = " ".join(f"{client}:{examples_of(client)}" for client in range(1, 9))
        federation = Federation(nodes, averaging(), {**PLAIN, "secagg-public-weights": weights})
        got = numpy_of(federation.start().arrays)["w"]
        mean = sum(examples_of(client) / 360 * update_of(client, 1)["w"].astype(np.float64) for client in range(1, 9))
        np.testing.assert_allclose(got, MODEL["w"] + mean, rtol=0, atol=2e-6)

    @pytest.mark.parametrize("kind", [Krum, FedMedian, FedTrimmedAvg, QFedAvg])
    def test_that_look_at_single_clients_are_refused(self, kind: type[FedAvg], nodes: Path) -> None:
        options = {"client_learning_rate": 0.1} if kind is QFedAvg else {}
        with pytest.raises(UnsupportedStrategyError, match=f"{kind.__name__} looks at the updates of single clients"):
            Federation(nodes, kind(fraction_evaluate=0.0, **options), PLAIN)  # type: ignore[arg-type]

    def test_of_ones_own_that_look_at_single_clients_are_refused(self, nodes: Path) -> None:
        class Own(FedAvg):
            def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
                return super().aggregate_train(server_round, replies)

        with pytest.raises(UnsupportedStrategyError, match="Own looks at"):
            Federation(nodes, Own(fraction_evaluate=0.0), PLAIN)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"fraction_evaluate": 1.0}, "fraction_evaluate=0.0"),
            ({"fraction_evaluate": 0.0, "fraction_train": 0.5}, "fraction_train=1.0"),
            ({"fraction_evaluate": 0.0, "weighted_by_key": "rows"}, "weighs by 'rows'"),
        ],
    )
    def test_that_ask_for_more_are_told_what_to_set(self, options: dict, reason: str, nodes: Path) -> None:
        with pytest.raises(UnsupportedStrategyError, match=reason):
            Federation(nodes, FedAvg(**options), PLAIN)

    def test_evaluation_in_clear_is_refused_on_both_sides(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        with task():
            content = RecordDict({"arrays": record(MODEL), "config": ConfigRecord()})
            question = Message(content, dst_node_id=900, message_type="evaluate")
            with pytest.raises(UnsupportedStrategyError, match="in clear"):
                federation.secure.send_and_receive([question])
            (answer,) = federation.grid.send_and_receive([question])
        assert answer.has_error()
        assert "in clear" in answer.error.reason

    def test_a_plain_train_message_gets_no_update(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        with task():
            content = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})})
            (answer,) = federation.grid.send_and_receive([Message(content, dst_node_id=900, message_type="train")])
        assert answer.has_error()
        assert "PolicyRefusal" in answer.error.reason

    def test_different_models_for_different_clients_are_refused(self, nodes: Path) -> None:
        class Personal(FedAvg):
            def configure_train(self, *arguments):  # type: ignore[no-untyped-def]
                messages = list(super().configure_train(*arguments))
                other = {name: array + 1 for name, array in MODEL.items()}
                messages[3].content = RecordDict({**dict(messages[3].content), "arrays": record(other)})
                return messages

        with pytest.raises(UnsupportedStrategyError, match="different models"):
            Federation(nodes, Personal(fraction_evaluate=0.0), PLAIN).start()


class TestOtherMods:
    def test_mods_inside_see_a_plain_app(self, nodes: Path) -> None:
        """Mods after ours see Flower's own records alone, and may change the update before it is clipped."""
        seen: list[list[str]] = []

        def halving(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            seen.append(list(message.content))
            reply = call_next(message, context)
            old, new = numpy_of(message.content["arrays"]), numpy_of(reply.content["arrays"])
            reply.content["arrays"] = record({name: old[name] + (new[name] - old[name]) / 2 for name in old})
            return reply

        federation = Federation(nodes, averaging(), PLAIN)
        federation.grid._make_app = lambda: app_of(SecAggMod(simulation=nodes), message_size_mod, halving)
        got = numpy_of(federation.start().arrays)
        assert seen == [["arrays", "config"]] * 8
        mean = np.mean([update_of(client, 1)["w"] for client in range(1, 9)], axis=0)
        np.testing.assert_allclose(got["w"], MODEL["w"] + mean / 2, rtol=0, atol=2e-6)


class TestExchanges:
    def test_a_steady_state_has_four(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        federation.start(rounds=3)
        stages = [stage_of(message) for message in federation.grid.sent[::8]]
        assert stages == [*STAGES, *STAGES[1:], *STAGES[1:]]

    def test_the_model_travels_once_a_round(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        federation.start(rounds=2)
        with_model = [stage_of(message) for message in federation.grid.sent if message.content.array_records]
        assert with_model == [Stage.CONTRIBUTE] * 16

    def test_nothing_of_an_answer_is_in_clear(self, nodes: Path) -> None:
        """The reply holds one record of two entries; the update is not in its bytes, nor are the numbers."""
        federation = Federation(nodes, averaging(), WEIGHTED)
        federation.start()
        for reply in federation.grid.replies:
            assert list(reply.content) == ["secagg"]
            assert set(reply.content["secagg"]) == {"client", "data"}
            client = int(reply.content["secagg"]["client"])
            assert update_of(client, 1)["w"].tobytes()[:8] not in bytes(reply.content["secagg"]["data"])

    def test_the_context_keeps_nothing_that_opens_without_the_vault(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        federation.start()
        for number in range(1, 9):
            (nodes / f"client-{number}" / "vault.sqlite").unlink()
        with pytest.raises(TooFewClientsError, match=r"the vault .* is missing"):
            federation.start()


class TestDropouts:
    @pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.value)
    def test_the_mean_is_exact_over_the_survivors(self, stage: Stage, nodes: Path) -> None:
        """A node that vanishes at any point of the first round, and is back in the second."""
        federation = Federation(nodes, averaging(), PLAIN)
        silence(federation, client=3, stage=stage)
        result = federation.start(rounds=2)
        first, second = federation.secure.results
        there = stage in (Stage.CHECK, Stage.UNMASK)  # its vector is in the sum already
        assert (3 in first.survivors) is there
        assert len(first.survivors) == 7 + there
        assert len(second.survivors) == 8
        assert [(failure.round, failure.stage) for failure in federation.secure.failures] == [(1, stage.value)]
        expected = {name: array.astype(np.float64) for name, array in MODEL.items()}
        for number, survivors in ((1, first.survivors), (2, second.survivors)):
            for name in expected:
                expected[name] += np.mean([update_of(client, number)[name] for client in survivors], axis=0)
        for name, array in numpy_of(result.arrays).items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=2e-6)

    def test_a_node_that_lost_its_state_misses_one_round(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        model = numpy_of(federation.start().arrays)
        federation.grid.contexts[902].state.Clear()
        model = numpy_of(federation.start(model=model).arrays)
        assert [failure.reason for failure in federation.secure.failures] == [
            "PolicyRefusal: this node has lost the keys that it had sent in advance"
        ]
        federation.start(model=model)
        assert [len(result.survivors) for result in federation.secure.results] == [8, 7, 8]

    def test_a_round_after_one_that_broke_off_has_fresh_keys(self, nodes: Path) -> None:
        """Keys that were sent in advance have served the round that broke off, and nobody asks for them again."""

        def fails_in_round_two(message: Message, context: Context) -> Message:
            if client_of(context) <= 3 and message.content["config"]["server-round"] == 2:
                raise RuntimeError
            return train(message, context)

        federation = Federation(nodes, averaging(), PLAIN, function=fails_in_round_two)
        with pytest.raises(TooFewClientsError):
            federation.start(rounds=2)
        asked = len(federation.grid.sent)
        federation.start(model={name: array + 1 for name, array in MODEL.items()})
        assert [len(result.survivors) for result in federation.secure.results] == [8, 8]
        assert stage_of(federation.grid.sent[asked]) is Stage.ADVERTISE

    def test_too_few_is_a_typed_error_with_reasons(self, nodes: Path) -> None:
        def fails(message: Message, context: Context) -> Message:
            if client_of(context) <= 3:
                raise KeyError("patient Smith")
            return train(message, context)

        federation = Federation(nodes, averaging(), PLAIN, function=fails)
        with pytest.raises(
            TooFewClientsError, match=r"5 clients survived, the floor is 6; client 1, client 2, client 3 in"
        ) as info:
            federation.start()
        assert "training failed on this node; its log says why" in str(info.value)
        assert "Smith" not in str(info.value)
        for reply in federation.grid.replies:
            assert not reply.has_error() or "Smith" not in reply.error.reason

    def test_a_value_that_is_not_usable_is_not_quoted(self, nodes: Path) -> None:
        def odd(message: Message, context: Context) -> Message:
            reply = train(message, context)
            if client_of(context) == 2:
                reply.content["metrics"] = MetricRecord({"num-examples": -77.5, "train_loss": 0.0})
            if client_of(context) == 3:
                reply.content["arrays"] = record({**MODEL, "b": np.full(7, np.nan, np.float32)})
            return reply

        federation = Federation(nodes, averaging(), WEIGHTED, function=odd)
        federation.start()
        assert {failure.client for failure in federation.secure.failures} == {2, 3}
        for failure in federation.secure.failures:
            assert failure.reason == "UnsafeUpdateError: the update of this node is not usable; its log says why"


class TestBudget:
    def test_is_charged_on_the_nodes_and_ends_the_training(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PRIVATE, ledger=nodes.parent / "server.ledger")
        with pytest.raises(BudgetExceededError):
            federation.start(rounds=4)
        assert len(federation.secure.results) == 2
        assert federation.secure.results[-1].epsilon <= 8.0
        assert "epsilon 8" in federation.secure.statement()
        for client in range(1, 6):
            with PrivacyLedger.open(nodes / f"client-{client}" / "ledger.sqlite") as ledger:
                assert ledger.state().rounds_committed == 2
                assert ledger.state().rounds_reserved == 0

    def test_a_server_that_forgets_its_own_is_refused_by_the_nodes(self, nodes: Path) -> None:
        Federation(nodes, averaging(), PRIVATE).start(rounds=2)
        with pytest.raises(TooFewClientsError, match=r"BudgetExceededError: request .* is refused"):
            Federation(nodes, averaging(), PRIVATE).start()

    @pytest.mark.parametrize("stage", STAGES[1:], ids=lambda stage: stage.value)
    def test_a_round_that_broke_off_is_charged_only_if_the_vector_may_have_left(
        self, stage: Stage, nodes: Path
    ) -> None:
        federation = Federation(nodes, averaging(), PRIVATE)
        silence(federation, client=2, stage=stage)
        federation.start()
        ledger_path = nodes / "client-2" / "ledger.sqlite"
        with PrivacyLedger.open(ledger_path) as ledger:
            assert ledger.state().rounds_reserved == 1
        federation.start()  # settles what was left behind
        with PrivacyLedger.open(ledger_path) as ledger:
            state = ledger.state()
        sent = stage in (Stage.CHECK, Stage.UNMASK)
        assert (state.rounds_reserved, state.rounds_committed, state.rounds_released) == (0, 1 + sent, 1 - sent)

    def test_a_train_function_that_fails_costs_nothing(self, nodes: Path) -> None:
        def fails(message: Message, context: Context) -> Message:
            return train(message, context) if client_of(context) != 2 else 1 / 0  # type: ignore[return-value]

        Federation(nodes, averaging(), PRIVATE, function=fails).start()
        with PrivacyLedger.open(nodes / "client-2" / "ledger.sqlite") as ledger:
            state = ledger.state()
        assert (state.rounds_reserved, state.rounds_committed, state.rounds_released) == (0, 0, 1)


class TestRemovableNoise:
    def test_survives_processes_and_dropouts(self, nodes: Path) -> None:
        """What a client would let go of moves with its session; too much or too little of it would show as noise."""
        settings = {**PRIVATE, "secagg-dropout-noise": "removable", "secagg-clip-norm": 50.0, "secagg-epsilon": 400.0,
                    "secagg-rounds": 2}  # fmt: skip
        federation = Federation(nodes, averaging(), settings)
        silence(federation, client=3, stage=Stage.CONTRIBUTE, server_round=2)
        result = federation.start(rounds=2)
        first, second = federation.secure.results
        assert [len(first.survivors), len(second.survivors)] == [5, 4]
        expected = MODEL["w"].astype(np.float64)
        for number, one in ((1, first), (2, second)):
            expected = expected + np.mean([update_of(client, number)["w"] for client in one.survivors], axis=0)
        stddev = sum((one.config.noise_stddev(4) / len(one.survivors)) ** 2 for one in (first, second)) ** 0.5
        error = numpy_of(result.arrays)["w"] - expected
        assert 0.5 * stddev < error.std() < 1.5 * stddev  # fifty coordinates


class TestAdaptiveClipping:
    def test_the_norm_moves_and_the_nodes_follow(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), ADAPTIVE)
        federation.start(rounds=3)
        assert federation.secure.failures == []
        norms = [message.content["secagg"]["clip-norm"] for message in federation.grid.sent
                 if "invitation" in message.content["secagg"]]  # fmt: skip
        assert norms[0] == 0.5
        assert len(set(norms)) == 3
        assert norms == [norm for norm in dict.fromkeys(norms) for _ in range(5)]  # the same for all five nodes

    def test_a_norm_beyond_any_honest_course_is_refused(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), ADAPTIVE)

        def before(message: Message) -> Message:
            if "clip-norm" in message.content["secagg"]:
                message.content["secagg"]["clip-norm"] = 1000.0
            return message

        federation.grid.before = before
        with pytest.raises(TooFewClientsError, match="the clip norm can only come to lie in"):
            federation.start()

    def test_a_fixed_norm_does_not_move(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PRIVATE)

        def before(message: Message) -> Message:
            if "clip-norm" in message.content["secagg"]:
                message.content["secagg"]["clip-norm"] = 0.9
            return message

        federation.grid.before = before
        with pytest.raises(TooFewClientsError, match="the clip norm is fixed at 1"):
            federation.start()


def test_arrays_keep_names_shapes_and_dtypes(nodes: Path) -> None:
    result: ArrayRecord = Federation(nodes, averaging(), PLAIN).start().arrays
    for name, array in numpy_of(result).items():
        assert (array.shape, array.dtype) == (MODEL[name].shape, MODEL[name].dtype)
