"""Servers that lie, and nodes and apps that are not what they should be: refused, by name, and nothing leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.serverapp.strategy import FedAvg

from protocols import TooFewClientsError
from secagg import BudgetExceededError, PrivacyLedger
from secagg.adapters.flower import SecAggGrid, SecAggMod, UnsupportedStrategyError
from tests.flower.apps import (
    MODEL,
    PLAIN,
    PRIVATE,
    STAGES,
    Federation,
    Stage,
    app_of,
    averaging,
    client_of,
    record,
    stage_of,
    task,
    train,
)


class TestLyingServer:
    def test_a_contribution_is_asked_for_in_its_own_stage(self, nodes: Path) -> None:
        """Sealed shares sent as another stage: the train function does not run, the round is over for the node."""
        ran: list[int] = []

        def counted(message: Message, context: Context) -> Message:
            ran.append(client_of(context))
            return train(message, context)

        def before(message: Message) -> Message:
            if stage_of(message) is Stage.CONTRIBUTE and message.metadata.dst_node_id == 900:
                message.content["secagg"]["stage"] = "check"
            return message

        federation = Federation(nodes, averaging(), PLAIN, function=counted)
        federation.grid.before = before
        federation.start()
        assert sorted(ran) == list(range(2, 9))
        assert "asks for a contribution in stage 'check'" in federation.secure.failures[0].reason

    def test_a_round_is_over_when_the_session_says_so(self, nodes: Path) -> None:
        """Whatever the server calls its message: the budget of a round is not settled before its survivors are."""

        def before(message: Message) -> Message:
            if message.metadata.dst_node_id == 900 and stage_of(message) is Stage.CHECK:
                message.content["secagg"]["stage"] = "unmask"
            return message

        federation = Federation(nodes, averaging(), PRIVATE)
        federation.grid.before = before
        federation.start(rounds=2)
        assert federation.secure.failures == []
        with PrivacyLedger.open(nodes / "client-1" / "ledger.sqlite") as ledger:
            assert (ledger.state().rounds_committed, ledger.state().rounds_reserved) == (2, 0)

    @pytest.mark.parametrize("entry", ["stage", "invitation", "agreement", "layout", "instructions", "clip-norm"])
    @pytest.mark.parametrize("value", [None, 7, "nonsense", b"nonsense"])
    def test_damaged_records_are_refused(self, entry: str, value: object, nodes: Path) -> None:
        def before(message: Message) -> Message:
            if message.metadata.dst_node_id == 900 and entry in message.content["secagg"]:
                if value is None:
                    del message.content["secagg"][entry]
                else:
                    message.content["secagg"][entry] = value
            return message

        federation = Federation(nodes, averaging(), PLAIN)
        federation.grid.before = before
        federation.start()
        (answer,) = [reply for reply in federation.grid.replies if reply.metadata.src_node_id == 900][:1]
        assert answer.has_error()
        assert answer.error.code == 6  # a refusal, not an exception
        assert 1 not in federation.secure.results[0].survivors

    @pytest.mark.parametrize(
        ("key", "value"),
        [("secagg-max-dropouts", 3), ("secagg-max-colluders", 0), ("secagg-clip-norm", 25.0)],
    )
    def test_other_terms_are_refused_and_the_server_hears_which(self, key: str, value: float, nodes: Path) -> None:
        Federation(nodes, averaging(), PLAIN)
        lowered = Federation(nodes, averaging(), {**PLAIN, key: value})
        with pytest.raises(TooFewClientsError, match=f"PolicyRefusal: .*{key} = {value}") as info:
            lowered.start()
        assert f"agreed: {PLAIN[key]}" in str(info.value)

    def test_terms_that_differ_from_what_it_says_are_refused(self, nodes: Path) -> None:
        """It claims the agreed terms, but opens the round on others."""
        Federation(nodes, averaging(), PLAIN)
        liar = Federation(nodes, averaging(), {**PLAIN, "secagg-max-dropouts": 3})
        honest = Federation(nodes, averaging(), PLAIN).secure._agreement.to_text()

        def before(message: Message) -> Message:
            if "agreement" in message.content["secagg"]:
                message.content["secagg"]["agreement"] = honest
            return message

        liar.grid.before = before
        with pytest.raises(TooFewClientsError, match="InconsistentViewError: the server's configuration or roster"):
            liar.start()

    def test_instructions_for_one_client_alone_are_refused(self, nodes: Path) -> None:
        """Told not to train, all others send zeros, and the sum is the victim's update."""

        def train_as_told(message: Message, context: Context) -> Message:
            return train(message, context) if message.content["config"].get("steps", 1) else 1 / 0  # type: ignore[return-value]

        def before(message: Message) -> Message:
            if stage_of(message) is Stage.CONTRIBUTE and message.metadata.dst_node_id != 900:
                message.content["config"] = ConfigRecord({**dict(message.content["config"]), "steps": 0})
            return message

        federation = Federation(nodes, averaging(), PLAIN, function=train_as_told)
        federation.grid.before = before
        with pytest.raises(TooFewClientsError, match="other instructions than those that the round was opened with"):
            federation.start()

    def test_a_strategy_with_instructions_for_single_clients_is_refused(self, nodes: Path) -> None:
        class Personal(FedAvg):
            def configure_train(self, *arguments):  # type: ignore[no-untyped-def]
                messages = list(super().configure_train(*arguments))
                messages[3].content = RecordDict({**dict(messages[3].content), "config": ConfigRecord({"steps": 0})})
                return messages

        with pytest.raises(UnsupportedStrategyError, match="different instructions to different clients"):
            Federation(nodes, Personal(fraction_evaluate=0.0), PLAIN).start()

    def test_another_model_than_announced_is_refused(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)

        def before(message: Message) -> Message:
            if message.content.array_records:
                planted = {name: array.copy() for name, array in MODEL.items()}
                planted["b"][message.metadata.dst_node_id % 7] = 100.0
                message.content["arrays"] = record(planted)
            return message

        federation.grid.before = before
        with pytest.raises(TooFewClientsError, match="InconsistentViewError: the server sends another model"):
            federation.start()

    @pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.value)
    def test_a_message_twice_gets_one_answer(self, stage: Stage, nodes: Path) -> None:
        """A state that was used is gone: the second time there is an error, and never a second vector."""
        federation = Federation(nodes, averaging(), PLAIN)
        answers: list[Message] = []

        def before(message: Message) -> Message:
            if stage_of(message) is stage and message.metadata.dst_node_id == 900:
                saved = federation.grid.contexts[900].SerializeToString()
                answers.append(federation.grid.handle(message))
                federation.grid.contexts[900].ParseFromString(saved)  # the old state comes back with the old message
            return message

        federation.grid.before = before
        federation.start()
        assert not answers[0].has_error()
        failures = [failure for failure in federation.secure.failures if failure.client in (None, 1)]
        assert failures
        assert failures[0].stage == stage.value
        reasons = "used before" if stage is not Stage.ADVERTISE else "round id was used before"
        assert reasons in failures[0].reason

    def test_an_old_state_does_not_come_back(self, nodes: Path) -> None:
        """The context of a finished round, put back, opens nothing."""
        federation = Federation(nodes, averaging(), PLAIN)
        saved: list[bytes] = []

        def before(message: Message) -> Message:
            if stage_of(message) is Stage.CHECK and message.metadata.dst_node_id == 900:
                saved.append(federation.grid.contexts[900].SerializeToString())
            return message

        federation.grid.before = before
        federation.start()
        federation.grid.before = lambda message: message
        federation.grid.contexts[900].ParseFromString(saved[0])
        (check,) = [
            message for message in federation.grid.sent
            if message.metadata.dst_node_id == 900 and stage_of(message) is Stage.CHECK
        ]  # fmt: skip
        answer = federation.grid.handle(check)
        assert answer.has_error()
        assert "was used before, or was never made here" in answer.error.reason

    @pytest.mark.parametrize("entry", ["layout", "instructions", "session"])
    def test_a_state_that_was_changed_does_not_open(self, entry: str, nodes: Path) -> None:
        """What Flower keeps of a session names the configuration it was opened under: another one does not go on."""

        def before(message: Message) -> Message:
            if message.metadata.dst_node_id == 900 and stage_of(message) is Stage.CONTRIBUTE:
                context = context_from_proto(federation.grid.contexts[900])
                kept = context.state.config_records["secagg"]
                if entry == "session":
                    kept[entry] = bytes(kept[entry])[:-1] + b"\x00\x00"
                elif entry == "layout":
                    kept[entry] = str(kept[entry]).replace("50", "25").replace("float32", "float64")
                else:
                    kept[entry] = "0" * 64
                federation.grid.contexts[900] = context_to_proto(context)
            return message

        federation = Federation(nodes, averaging(), PLAIN)
        federation.grid.before = before
        federation.start()
        (failure,) = federation.secure.failures
        assert (failure.client, failure.stage) == (1, "contribute")
        assert "does not open" in failure.reason

    def test_a_node_cannot_answer_for_another(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        original = federation.grid.handle

        def handle(message: Message) -> Message:
            reply = original(message)
            if message.metadata.dst_node_id == 901 and not reply.has_error():
                reply.content["secagg"]["client"] = 5
            return reply

        federation.grid.handle = handle  # type: ignore[method-assign]
        federation.start()
        (failure,) = [failure for failure in federation.secure.failures if failure.node == 901]
        assert failure.stage == "advertise"
        assert federation.secure.results[0].survivors == frozenset({1, 3, 4, 5, 6, 7, 8})


class TestNodesWithoutAgreement:
    def test_a_node_without_a_directory_takes_part_in_nothing(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        federation.grid._make_app = lambda: app_of(SecAggMod())
        with pytest.raises(TooFewClientsError, match="this node has no secagg directory"):
            federation.start()

    def test_an_app_without_the_mod_gets_nothing_out(self, nodes: Path) -> None:
        """Its train function fails on the record that it does not know; nothing of it enters a sum."""
        federation = Federation(nodes, averaging(), PLAIN)
        federation.grid._make_app = app_of
        with pytest.raises(TooFewClientsError, match="0 clients advertised keys"):
            federation.start()

    def test_an_app_without_the_mod_that_answers_anything_is_named(self, nodes: Path) -> None:
        def answers(message: Message, context: Context) -> Message:
            return Message(RecordDict({"arrays": record(MODEL)}), reply_to=message)

        federation = Federation(nodes, averaging(), PLAIN)
        federation.grid._make_app = lambda: app_of(function=answers)
        with pytest.raises(TooFewClientsError, match=r"has its ClientApp the SecAggMod\?"):
            federation.start()

    def test_too_few_nodes_are_not_asked(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        for node in range(905, 908):
            del federation.grid.contexts[node]
        with pytest.raises(TooFewClientsError, match="asks 5 nodes, the floor is 6"):
            federation.start()
        assert federation.grid.sent == []

    def test_a_missing_node_is_a_dropout(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        del federation.grid.contexts[907]
        federation.start()
        assert federation.secure.results[0].survivors == frozenset(range(1, 8))

    def test_a_roster_of_another_size_is_refused(self, nodes: Path) -> None:
        Federation(nodes, averaging(), PLAIN)
        with pytest.raises(ValueError, match="7 clients are agreed, the roster has 8"):
            Federation(nodes, averaging(), {**PLAIN, "secagg-clients": 7})

    def test_no_statement_before_a_round(self, nodes: Path) -> None:
        with pytest.raises(ValueError, match="no round was completed"):
            Federation(nodes, averaging(), PLAIN).secure.statement()

    def test_a_server_keeps_its_budget_over_runs(self, nodes: Path) -> None:
        ledger = nodes.parent / "server.ledger"
        Federation(nodes, averaging(), PRIVATE, ledger=ledger).start()
        again = Federation(nodes, averaging(), PRIVATE, ledger=ledger)
        again.start()
        with pytest.raises(BudgetExceededError):
            again.start()
        with PrivacyLedger.open(ledger) as opened:
            assert opened.state().rounds_committed == 2

    def test_the_grid_sends_whole_rounds_only(self, nodes: Path) -> None:
        secure: SecAggGrid = Federation(nodes, averaging(), PLAIN).secure
        with pytest.raises(UnsupportedStrategyError):
            secure.push_messages([])
        with pytest.raises(UnsupportedStrategyError):
            secure.pull_messages([])
        assert secure.send_and_receive([]) == []

    def test_integer_arrays_are_named(self, nodes: Path) -> None:
        federation = Federation(nodes, averaging(), PLAIN)
        counted = {**MODEL, "batches": np.zeros(1, np.int64)}
        with task(), pytest.raises(ValueError, match="array 'batches' has dtype int64"):
            averaging().start(grid=federation.secure, initial_arrays=record(counted), num_rounds=1)
