"""Client and Server: refusals come before anything is sent, and the budget holds what really happened."""

from __future__ import annotations

import math
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dp.ledger_sqlite
from dp import PrivacyBudget, epsilon
from protocols import ClientId, SurvivorsSigned
from protocols.wire import AdvertiseKeys, decode
from secagg import (
    AggregationConfig,
    BudgetExceededError,
    Client,
    ClientHistory,
    ContributionNeeded,
    Identity,
    InconsistentViewError,
    LedgerError,
    LocalProtocolError,
    MalformedMessageError,
    MemoryHistory,
    NoPrivacy,
    PeerRejected,
    Phase,
    PolicyRefusal,
    PrivacyLedger,
    ProtocolError,
    RecordLevel,
    Roster,
    Server,
    TooFewClientsError,
    UnsafeUpdateError,
)
from secagg.server import threaded_map

from .parties import SERVER_PHASES, Parties, fates, memory_ledger, plain_config, private_config, updates_for


def cost(config: AggregationConfig, survivors: int) -> int:
    """What one round over so many survivors costs a ledger, in its own integer units."""
    assert config.mechanism is not None
    ledger = memory_ledger(config)
    assert ledger is not None
    return ledger.reserve(config.mechanism.event(survivors=survivors), request_id="price").amount


def worst(config: AggregationConfig) -> int:
    return cost(config, config.min_survivors)


class TestBudget:
    def test_two_planned_rounds_and_the_server_opens_no_third(self) -> None:
        config = private_config(rounds=2)
        parties = Parties(config)
        for _ in range(2):
            parties.run(updates_for(config), silent={5: Phase.MASKED_INPUT})
        assert parties.server_ledger is not None
        before = parties.server_ledger.state()
        with pytest.raises(BudgetExceededError, match="Rounds left at this cost: 0"):
            parties.server.begin()
        assert parties.server.phase is Phase.READY
        assert parties.server_ledger.state() == before
        assert parties.server.waiting_for == frozenset()

    def test_a_client_refuses_whatever_the_server_keeps(self) -> None:
        """A server without a memory of its own gains nothing: each client counts for itself."""
        config = private_config(rounds=2)
        parties = Parties(config)
        updates = updates_for(config)
        for number in range(1, 3):  # silent before the survivors are known: charged at the worst case
            parties.server = Server(config, roster=parties.roster, ledger=memory_ledger(config))
            parties.open(updates, silent=dict.fromkeys(range(1, 6), Phase.CONSISTENCY_CHECK))
            parties.advance(Phase.CONSISTENCY_CHECK)
            assert {client for client, phase, _ in parties.sent if phase is Phase.MASKED_INPUT} == {1, 2, 3, 4, 5}
            assert parties.histories[1].history.serial == number
        parties.server = Server(config, roster=parties.roster, ledger=memory_ledger(config))
        parties.reset(updates)
        for message in parties.server.begin():
            assert message.to is not None
            client = parties.clients[message.to]
            with pytest.raises(BudgetExceededError, match="Rounds left at this cost: 0"):
                client.begin(message.data)
            assert client.phase is Phase.READY
            assert parties.histories[message.to].history.serial == 2  # not even a key bundle was spent
            assert fates(parties.ledger(message.to)) == [("commit", worst(config))] * 2
            with pytest.raises(LocalProtocolError):
                client.contribute(updates[message.to])
        assert parties.sent == []

    def test_planned_rounds_always_fit(self) -> None:
        config = private_config(rounds=6)
        parties = Parties(config)
        for _ in range(6):
            result = parties.run(updates_for(config), silent={2: Phase.MASKED_INPUT})
        assert result.epsilon <= config.privacy.epsilon
        assert parties.ledger(1).state().rounds_committed == 6
        with pytest.raises(BudgetExceededError):
            parties.server.begin()

    def test_epsilon_adds_up_at_the_survivors_that_were_verified(self) -> None:
        config = private_config(rounds=3)
        assert config.mechanism is not None
        parties = Parties(config)
        events = []
        for silent in ({}, {3: Phase.MASKED_INPUT}, {3: Phase.UNMASK}):
            result = parties.run(updates_for(config), silent=silent)
            events.append(config.mechanism.event(survivors=len(result.survivors), colluders=1))
            expected = epsilon(events, delta=1e-6)
            assert result.epsilon == pytest.approx(expected, rel=1e-12)
            assert parties.ledger(1).state().epsilon == pytest.approx(expected, rel=1e-12)
            assert result.ladder is not None
            assert result.ladder.minus_colluders == pytest.approx(epsilon(events[-1:], delta=1e-6))
            assert f"spent       epsilon {expected:.3f}" in result.statement()
            assert result.to_dict()["epsilon"] == result.epsilon
        assert fates(parties.ledger(3))[2] == ("reserve", worst(config))  # it never saw the others' signatures

    @pytest.mark.parametrize("change", [{"epsilon": 4.5}, {"delta": 1e-5}, {"unit": "record"}])
    def test_a_ledger_of_another_budget_is_refused(self, change: dict[str, object]) -> None:
        config = private_config()
        own = config.budget()
        assert own is not None
        fields = {name: getattr(own, name) for name in ("epsilon", "delta", "unit", "order")}
        other = PrivacyLedger.create(":memory:", budget=PrivacyBudget(**{**fields, **change}))
        parties = Parties(config)
        with pytest.raises(ValueError, match="the ledger keeps epsilon"):
            Server(config, roster=parties.roster, ledger=other)
        parties.ledgers[1] = other
        with pytest.raises(ValueError, match="the ledger keeps epsilon"):
            parties.client(1)

    def test_without_a_ledger_the_budget_is_kept_in_memory(self) -> None:
        """Forgetting the argument must not mean that nobody counts."""
        config = private_config(rounds=2)
        assert config.mechanism is not None
        parties = Parties(config, ledger=None, ledgers=lambda client: None)
        for number in range(1, 3):
            result = parties.run(updates_for(config), silent={5: Phase.MASKED_INPUT})
            events = [config.mechanism.event(survivors=4)] * number
            assert result.epsilon == pytest.approx(epsilon(events, delta=1e-6), rel=1e-12)
        with pytest.raises(BudgetExceededError):
            parties.server.begin()
        parties.server = Server(config, roster=parties.roster)
        for message in parties.server.begin():
            if message.to in {1, 2, 3, 4}:
                with pytest.raises(BudgetExceededError):
                    parties.clients[message.to].begin(message.data)

    def test_without_privacy_no_ledger_can_help(self) -> None:
        parties = Parties(plain_config())
        parties.ledgers[1] = memory_ledger(private_config())
        with pytest.raises(ValueError, match="without privacy"):
            parties.client(1)
        assert math.isinf(parties.run(updates_for(parties.config)).epsilon)

    def test_two_applications_with_one_budget_never_share_a_reservation(self) -> None:
        """The server chooses the round id: sent to both, it must not make two releases cost one."""
        config = private_config(rounds=4)
        parties = Parties(config)
        other = Client(
            config,
            1,
            identity=parties.identities[1],
            roster=parties.roster,
            history=MemoryHistory(),
            ledger=parties.ledger(1),
        )
        invitation = parties.server.begin()[0].data
        parties.clients[1].begin(invitation)
        other.begin(invitation)
        assert [fate for fate, _ in fates(parties.ledger(1))] == ["reserve", "reserve"]


class TestClientLedger:
    @pytest.mark.parametrize(
        ("silent_from", "fate"),
        [
            (Phase.SHARE_KEYS, "release"),
            (Phase.MASKED_INPUT, "release"),
            (Phase.CONSISTENCY_CHECK, "worst"),
            (Phase.UNMASK, "worst"),
            (None, "agreed"),
        ],
    )
    @pytest.mark.parametrize("how", ["abandon", "begin"])
    def test_charged_exactly_if_the_masked_vector_left(self, silent_from: Phase | None, fate: str, how: str) -> None:
        config = private_config(rounds=4)
        parties = Parties(config)
        parties.run(updates_for(config), silent={2: silent_from} if silent_from else {})
        assert parties.result is not None
        left = 2 in {client for client, phase, _ in parties.sent if phase is Phase.MASKED_INPUT}
        assert left == (fate != "release")
        if how == "abandon":
            parties.clients[2].abandon()
            parties.clients[2].abandon()  # twice is once
        else:
            parties.run(updates_for(config))
        amount = {"release": 0, "worst": worst(config), "agreed": cost(config, 5)}[fate]
        expected = ("release" if fate == "release" else "commit", amount)
        assert fates(parties.ledger(2))[0] == expected
        parties.ledger(2).verify()

    @pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS])
    def test_a_lying_server_costs_nothing_before_the_vector_left(self, phase: Phase) -> None:
        config = private_config()
        parties = Parties(config)
        parties.open(
            updates_for(config), silent={2: Phase.SHARE_KEYS if phase is Phase.ADVERTISE_KEYS else Phase.MASKED_INPUT}
        )
        parties.advance(Phase.SHARE_KEYS if phase is Phase.ADVERTISE_KEYS else Phase.MASKED_INPUT)
        assert parties.clients[2].phase is phase
        with pytest.raises(ProtocolError):
            parties.clients[2].receive(b"SAGG nonsense")
        assert fates(parties.ledger(2)) == [("release", 0)]
        assert parties.clients[2].phase is Phase.READY

    def test_a_lying_server_costs_the_worst_case_after_it_left(self) -> None:
        config = private_config()
        parties = Parties(config)
        parties.open(updates_for(config))
        parties.advance(Phase.MASKED_INPUT)
        with pytest.raises(ProtocolError):
            parties.clients[2].receive(b"SAGG nonsense")
        assert fates(parties.ledger(2)) == [("commit", worst(config))]

    def test_a_crash_after_the_vector_left_stays_charged_and_the_next_round_works(self, tmp_path: Path) -> None:
        config = private_config(rounds=3)
        budget = config.budget()
        assert budget is not None
        before, after = tmp_path / "before", tmp_path / "after"
        before.mkdir()
        parties = Parties(
            config,
            histories=lambda client: ClientHistory.enrol(before / f"h{client}") if client == 2 else MemoryHistory(),
            ledgers=lambda client: PrivacyLedger.create(before / "l" if client == 2 else ":memory:", budget=budget),
        )
        parties.open(updates_for(config), silent={2: Phase.CONSISTENCY_CHECK})
        parties.advance(Phase.CONSISTENCY_CHECK)
        assert parties.clients[2].phase is Phase.MASKED_INPUT
        shutil.copytree(before, after)  # what a crash at this moment leaves on disk
        first = decode(parties.sent[1][2], AdvertiseKeys, limit=10_000).bundle

        parties.histories[2] = ClientHistory(after / "h2")
        parties.ledgers[2] = PrivacyLedger.open(after / "l")
        parties.clients[2] = parties.client(2)
        assert fates(parties.ledger(2)) == [("reserve", worst(config))]
        assert parties.ledger(2).state().filter_spent == worst(config)
        with pytest.raises(PolicyRefusal, match="used before"):
            parties.clients[2].begin(parties.invitation)
        result = parties.run(updates_for(config))
        assert 2 in result.survivors
        second = decode(parties.sent[1][2], AdvertiseKeys, limit=10_000).bundle
        assert (first.client, second.client, second.serial) == (2, 2, first.serial + 1)
        assert fates(parties.ledger(2)) == [("reserve", worst(config)), ("commit", cost(config, 5))]
        parties.ledger(2).verify()

    @pytest.mark.parametrize("damage", ["missing", "garbage", "truncated"])
    @pytest.mark.parametrize("kind", ["history", "ledger"])
    def test_damaged_memory_stops_the_client(self, tmp_path: Path, kind: str, damage: str) -> None:
        config = private_config()
        budget = config.budget()
        assert budget is not None
        parties = Parties(
            config,
            histories=lambda client: ClientHistory.enrol(tmp_path / "history") if client == 2 else MemoryHistory(),
            ledgers=lambda client: PrivacyLedger.create(
                tmp_path / "ledger" if client == 2 else ":memory:", budget=budget
            ),
        )
        parties.run(updates_for(config))
        parties.histories[2].close()  # type: ignore[attr-defined]
        parties.ledger(2).close()
        path = tmp_path / kind
        match damage:
            case "missing":
                path.unlink()
            case "garbage":
                path.write_bytes(path.read_bytes()[:100] + bytes(range(256)) * 40)
            case "truncated":
                path.write_bytes(path.read_bytes()[:6000])

        def restart() -> Client:
            parties.histories[2] = ClientHistory(tmp_path / "history")
            parties.ledgers[2] = PrivacyLedger.open(tmp_path / "ledger")
            return parties.client(2)

        with pytest.raises(LedgerError if kind == "ledger" else PolicyRefusal):
            restart()

    def test_a_history_that_cannot_be_written_lets_nothing_out(self, tmp_path: Path) -> None:
        history = ClientHistory.enrol(tmp_path / "h")
        config = private_config()
        parties = Parties(config, histories=lambda client: history if client == 2 else MemoryHistory())
        history.close()
        parties.open(updates_for(config))
        assert 2 not in {client for client, _, _ in parties.sent}
        assert isinstance(parties.errors[2], PolicyRefusal)
        assert fates(parties.ledger(2)) == [("release", 0)]

    def test_a_ledger_that_cannot_be_written_lets_nothing_out(self) -> None:
        config = private_config()
        parties = Parties(config)
        parties.ledger(2).close()
        invitations = {message.to: message.data for message in parties.server.begin()}
        with pytest.raises(LedgerError):
            parties.clients[2].begin(invitations[ClientId(2)])
        assert parties.histories[2].history.serial == 0


class TestServerLedger:
    @pytest.mark.parametrize("reached", SERVER_PHASES)
    @pytest.mark.parametrize("how", ["abandon", "begin"])
    def test_free_exactly_if_no_unmask_request_was_sent(self, reached: Phase, how: str) -> None:
        config = private_config(rounds=4)
        parties = Parties(config)
        parties.open(updates_for(config))
        parties.advance(reached)
        assert parties.server_ledger is not None
        assert fates(parties.server_ledger) == [("reserve", worst(config))]
        if how == "abandon":
            parties.server.abandon()
            parties.server.abandon()
        else:
            parties.server.begin()
        asked = reached is Phase.UNMASK
        assert fates(parties.server_ledger)[0] == (("commit", worst(config)) if asked else ("release", 0))

    @pytest.mark.parametrize("silent_from", SERVER_PHASES)
    def test_a_round_that_fails_for_silence(self, silent_from: Phase) -> None:
        config = private_config()
        parties = Parties(config)
        parties.open(updates_for(config), silent=dict.fromkeys((1, 2, 3), silent_from))
        with pytest.raises(TooFewClientsError):
            parties.advance(Phase.FINISHED)
        assert parties.server_ledger is not None
        asked = silent_from is Phase.UNMASK
        assert fates(parties.server_ledger) == [("commit", worst(config)) if asked else ("release", 0)]
        assert parties.server.phase is Phase.READY
        with pytest.raises(LocalProtocolError):
            parties.server.close_phase()

    def test_a_released_sum_is_never_free(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process holds the ledger just when the sum is to be booked; later all is well again."""
        monkeypatch.setattr(dp.ledger_sqlite, "LOCK_TIMEOUT_SECONDS", 0.05)
        config = private_config()
        budget = config.budget()
        assert budget is not None
        ledger = PrivacyLedger.create(tmp_path / "server", budget=budget)
        parties = Parties(config, ledger=ledger)
        parties.open(updates_for(config))
        parties.advance(Phase.UNMASK)
        other = sqlite3.connect(tmp_path / "server", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError):
            parties.step()
        other.execute("ROLLBACK")
        other.close()
        parties.server.abandon()
        assert fates(ledger) == [("commit", worst(config))]

    def test_a_worker_that_fails_never_leads_to_a_wrong_sum(self) -> None:
        config = plain_config()
        calls: list[object] = []

        def unreliable(function: Callable[[object], object], items: Iterable[object], /) -> Iterable[object]:
            for item in items:
                yield function(item)
                calls.append(item)
                if len(calls) == 1:
                    raise OSError("the worker is gone")

        parties = Parties(config, map=unreliable)
        updates = updates_for(config)
        parties.open(updates)
        parties.advance(Phase.UNMASK)
        with pytest.raises(OSError, match="worker"):
            parties.step()
        try:  # half of the masks are gone already: going on must not take the rest for a sum
            parties.step()
        except ProtocolError:
            assert parties.result is None
        else:
            assert parties.result is not None
            expected = np.mean([update["w"] for update in updates.values()], axis=0)
            np.testing.assert_allclose(parties.result.mean["w"], expected, atol=1e-3)

    def test_after_the_round_it_is_over(self) -> None:
        parties = Parties(plain_config())
        parties.run(updates_for(parties.config))
        assert parties.server.waiting_for == frozenset()
        with pytest.raises(LocalProtocolError):
            parties.server.close_phase()


class TestBegin:
    def test_another_model(self) -> None:
        config = private_config()
        model = {"w": np.arange(4.0)}
        parties = Parties(config)
        invitation = parties.server.begin(model)[1].data
        for other in (None, {"w": np.array([0.0, 1.0, 2.0, 3.5])}):
            with pytest.raises(InconsistentViewError, match="another model"):
                parties.clients[2].begin(invitation, model=other)
        self.unharmed(parties)
        assert parties.clients[2].begin(invitation, model=model)

    @pytest.mark.parametrize(
        "other",
        [
            private_config(application="another"),
            private_config(rounds=3),
            private_config(epsilon=4.5),
            private_config(clients=6),
        ],
    )
    def test_another_configuration(self, other: AggregationConfig) -> None:
        parties = Parties(private_config())
        roster = parties.roster
        if other.clients > len(roster):
            roster = Roster({**roster, ClientId(6): Identity.generate().public})
        server = Server(other, roster=roster, ledger=memory_ledger(other))
        with pytest.raises(InconsistentViewError, match="configuration or roster"):
            parties.clients[2].begin(server.begin()[1].data)
        self.unharmed(parties)

    def test_another_roster(self) -> None:
        config = private_config()
        parties = Parties(config)
        swapped = Roster({**parties.roster, ClientId(4): Identity.generate().public})
        server = Server(config, roster=swapped, ledger=memory_ledger(config))
        with pytest.raises(InconsistentViewError, match="configuration or roster"):
            parties.clients[2].begin(server.begin()[1].data)
        self.unharmed(parties)

    @settings(max_examples=50)
    @given(data=st.binary(max_size=200), prefix=st.integers(0, 120))
    def test_bytes_that_are_no_invitation(self, data: bytes, prefix: int) -> None:
        parties = Parties(private_config())
        invitation = parties.server.begin()[1].data
        spoilt = invitation[:prefix] + data
        if spoilt == invitation:
            return
        with pytest.raises((MalformedMessageError, InconsistentViewError)):
            parties.clients[2].begin(spoilt)
        self.unharmed(parties)

    def test_bytes_that_are_no_invitation_leave_the_present_round_alone(self) -> None:
        parties = Parties(private_config())
        parties.clients[2].begin(parties.server.begin()[1].data)
        with pytest.raises(MalformedMessageError):
            parties.clients[2].begin(b"nonsense")
        assert parties.clients[2].phase is Phase.ADVERTISE_KEYS

    def test_a_round_is_joined_once(self) -> None:
        parties = Parties(private_config())
        invitation = parties.server.begin()[1].data
        parties.clients[2].begin(invitation)
        with pytest.raises(PolicyRefusal, match="used before"):
            parties.clients[2].begin(invitation)
        assert parties.ledger(2).state().rounds_committed == 0
        assert len(fates(parties.ledger(2))) == 1

    def test_a_model_that_does_not_fit(self) -> None:
        parties = Parties(private_config())
        with pytest.raises(UnsafeUpdateError):
            parties.server.begin({"w": np.zeros(5)})
        assert parties.server.phase is Phase.READY
        assert parties.server_ledger is not None
        assert fates(parties.server_ledger) == []

    def unharmed(self, parties: Parties) -> None:
        assert fates(parties.ledger(2)) == []
        assert parties.histories[2].history.serial == 0
        assert parties.clients[2].phase is Phase.READY

    def test_too_few_on_the_roster(self) -> None:
        config = private_config()
        identities = {ClientId(client): Identity.generate().public for client in range(1, 5)}
        with pytest.raises(ValueError, match="needs 5 clients, the roster has 4"):
            Server(config, roster=Roster(identities), ledger=memory_ledger(config))

    def test_more_on_the_roster_than_a_round_takes(self) -> None:
        """All are invited, the first `clients` to answer take part; the others stay free of charge."""
        config = private_config()
        parties = Parties(config)
        extra = Identity.generate()
        roster = Roster({**parties.roster, ClientId(6): extra.public})
        parties.roster = roster
        parties.identities[6] = extra
        parties.histories[6], parties.ledgers[6] = MemoryHistory(), memory_ledger(config)
        parties.server = Server(config, roster=roster, ledger=memory_ledger(config))
        parties.clients = {client: parties.client(client) for client in range(1, 7)}
        result = parties.run(updates_for(config))
        assert sorted(result.survivors) == [1, 2, 3, 4, 5]
        assert [event.client for event in parties.rejected] == [6]
        parties.clients[6].abandon()
        assert fates(parties.ledger(6)) == [("release", 0)]

    def test_an_identity_that_is_not_pinned(self) -> None:
        parties = Parties(plain_config())
        parties.identities[2] = Identity.generate()
        with pytest.raises(ValueError, match="another identity for client 2"):
            parties.client(2)
        parties.identities[9] = Identity.generate()
        parties.histories[9], parties.ledgers[9] = MemoryHistory(), None
        with pytest.raises(ValueError, match="client 9"):
            parties.client(9)


class TestContribute:
    def at_contribution(self, config: AggregationConfig) -> Parties:
        """A round in which client 2 is asked and has not answered."""
        parties = Parties(config)
        parties.open(updates_for(config))
        for event in parties.server.close_phase():
            parties.call(event.to, partial(parties.clients[event.to].receive, event.data))  # type: ignore[union-attr, arg-type, index]
        for event in parties.server.close_phase():
            if event.to == 2:  # type: ignore[union-attr]
                asked = parties.clients[2].receive(event.data)  # type: ignore[union-attr]
                assert [type(event) for event in asked] == [ContributionNeeded]
            else:
                parties.call(event.to, partial(parties.clients[event.to].receive, event.data))  # type: ignore[union-attr, arg-type, index]
        return parties

    @pytest.mark.parametrize(
        "bad",
        [
            {"w": np.array([1.0, math.nan, 0.0, 0.0])},
            {"w": np.array([1.0, math.inf, 0.0, 0.0])},
            {"w": np.zeros(5)},
            {"w": np.zeros(4, np.float32)},
            {"v": np.zeros(4)},
            {},
            np.zeros(4),
        ],
    )
    @pytest.mark.parametrize("private", [False, True])
    def test_a_bad_update_costs_nothing_and_a_mended_one_may_follow(self, bad: object, private: bool) -> None:
        config = private_config() if private else plain_config()
        parties = self.at_contribution(config)
        for _ in range(2):
            with pytest.raises(UnsafeUpdateError):
                parties.clients[2].contribute(bad)  # type: ignore[arg-type]
        assert parties.clients[2].phase is Phase.CONTRIBUTE
        if private:
            assert fates(parties.ledger(2)) == [("reserve", worst(config))]
        parties.call(2, partial(parties.clients[2].contribute, parties.updates[2]))  # type: ignore[arg-type]
        parties.advance(Phase.FINISHED)
        assert parties.result is not None
        assert sorted(parties.result.survivors) == list(range(1, config.clients + 1))
        if private:
            assert fates(parties.ledger(2)) == [("commit", cost(config, 5))]
        else:
            expected = np.mean([update["w"] for update in parties.updates.values()], axis=0)  # type: ignore[index]
            np.testing.assert_allclose(parties.result.mean["w"], expected, atol=1e-3)

    def test_once(self) -> None:
        config = private_config()
        parties = self.at_contribution(config)
        update = parties.updates[2]
        parties.call(2, partial(parties.clients[2].contribute, update))  # type: ignore[arg-type]
        sent = len(parties.sent)
        with pytest.raises(LocalProtocolError, match="no contribution is expected in phase MaskedInput"):
            parties.clients[2].contribute(update)  # type: ignore[arg-type]
        assert len(parties.sent) == sent
        parties.advance(Phase.FINISHED)  # the mistake did not cost the round
        assert fates(parties.ledger(2)) == [("commit", cost(config, 5))]

    def test_not_in_another_round_than_it_was_asked_in(self) -> None:
        """Preparing takes time; meanwhile the server may have opened the next round."""
        config = private_config(rounds=4)
        parties = self.at_contribution(config)
        server = Server(config, roster=parties.roster, ledger=memory_ledger(config))
        invitation = server.begin()[1].data

        class Slow(dict[str, np.ndarray]):
            def __getitem__(self, name: str) -> np.ndarray:
                if parties.clients[2].phase is Phase.CONTRIBUTE:
                    parties.clients[2].begin(invitation)
                return super().__getitem__(name)

        with pytest.raises(LocalProtocolError, match="another round"):
            parties.clients[2].contribute(Slow(parties.updates[2]))  # type: ignore[call-overload]
        assert [fate for fate, _ in fates(parties.ledger(2))] == ["release", "reserve"]

    @pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.CONSISTENCY_CHECK, Phase.FINISHED])
    def test_not_out_of_turn(self, phase: Phase) -> None:
        config = private_config()
        parties = Parties(config)
        parties.open(updates_for(config))
        while parties.clients[2].phase is not phase:
            parties.step()
        with pytest.raises(LocalProtocolError, match=phase.value):
            parties.clients[2].contribute(parties.updates[2])  # type: ignore[arg-type]
        assert parties.clients[2].phase is phase

    def test_not_without_a_round(self) -> None:
        parties = Parties(plain_config())
        with pytest.raises(LocalProtocolError, match="no round is open"):
            parties.clients[2].contribute({"w": np.zeros(4)})
        with pytest.raises(LocalProtocolError, match="no round is open"):
            parties.clients[2].receive(b"")
        (late,) = parties.server.receive(2, b"")  # the network may deliver long after the round
        assert isinstance(late, PeerRejected)
        assert late.reason == "no round is open"
        assert parties.clients[2].phase is parties.server.phase is Phase.READY

    def test_records_and_an_empty_batch(self) -> None:
        privacy = RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=2, sampling_rate=0.5, records=40)
        config = AggregationConfig.cross_silo(
            like={"w": np.zeros(4)}, clients=4, max_dropouts=1, max_colluders=1, privacy=privacy
        )
        parties = Parties(config)
        result = parties.run({client: {"w": np.zeros((client - 1, 4))} for client in range(1, 5)})
        assert sorted(result.survivors) == [1, 2, 3, 4]
        assert result.total.any()
        assert {fate for client in range(1, 5) for fate in fates(parties.ledger(client))} == {
            ("commit", cost(config, 4))
        }


class TestServer:
    @pytest.mark.parametrize("private", [False, True])
    def test_a_liar_costs_itself_its_place_only(self, private: bool) -> None:
        config = private_config() if private else plain_config()
        parties = Parties(config)
        parties.open(updates_for(config), silent={2: Phase.MASKED_INPUT})
        parties.advance(Phase.MASKED_INPUT)
        vector = next(data for client, phase, data in parties.sent if (client, phase) == (1, Phase.MASKED_INPUT))
        for nonsense in (b"", b"SAGG", vector, vector[:-1], bytes(len(vector))):
            assert [event.client for event in parties.server.receive(2, nonsense)] == [2]  # type: ignore[union-attr]
        assert [event.client for event in parties.server.receive(77, vector)] == [77]  # type: ignore[union-attr]
        assert parties.server.waiting_for == {2}
        parties.advance(Phase.FINISHED)
        assert parties.result is not None
        assert sorted(parties.result.survivors) == [client for client in range(1, config.clients + 1) if client != 2]
        if not private:
            expected = np.mean([update["w"] for client, update in parties.updates.items() if client != 2], axis=0)  # type: ignore[index]
            np.testing.assert_allclose(parties.result.mean["w"], expected, atol=1e-3)

    def test_vectors_longer_than_one_segment(self) -> None:
        """The unmasking is split over threads; each part must meet its own keystream."""
        length = 1_200_000
        config = AggregationConfig.cross_silo(
            like={"w": np.zeros(length)}, clients=3, max_dropouts=0, max_colluders=0, privacy=NoPrivacy(clip_norm=1e6)
        )
        parties = Parties(config)
        rng = np.random.default_rng(1)
        updates = {client: {"w": rng.uniform(-1, 1, size=length)} for client in range(1, 4)}
        result = parties.run(updates)
        expected = np.mean([update["w"] for update in updates.values()], axis=0)
        np.testing.assert_allclose(result.mean["w"], expected, atol=1e6 / config.encoder.int_bound * 1.001)

    @pytest.mark.parametrize("count", [0, 1, 2, 50])
    def test_threads_take_every_item_once(self, count: int) -> None:
        taken: list[int] = []
        assert len(list(threaded_map(taken.append, range(count)))) == count
        assert sorted(taken) == list(range(count))

    @pytest.mark.parametrize("count", [1, 5])
    def test_an_error_in_a_thread_is_not_lost(self, count: int) -> None:
        def fail(item: int) -> None:
            raise OSError(f"item {item}")

        with pytest.raises(OSError, match="item 0"):
            list(threaded_map(fail, range(count)))


class TestDifferencing:
    """Without noise, two sums over nearly the same clients on one model give away the difference."""

    def test_another_survivor_set_on_the_same_model_is_refused_by_every_client(self) -> None:
        parties = Parties(plain_config(clients=5, max_dropouts=2))
        updates = updates_for(parties.config)
        model = {"w": np.arange(4.0)}
        parties.run(updates, model=model)
        parties.open(updates, model=model, silent={5: Phase.MASKED_INPUT})
        with pytest.raises(TooFewClientsError):
            parties.advance(Phase.FINISHED)
        assert sorted(parties.errors) == [1, 2, 3, 4]
        assert all(isinstance(error, PolicyRefusal) for error in parties.errors.values())
        assert {phase for _, phase, _ in parties.sent} == {Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT}
        # The refused set was not recorded: the first one still passes, and so does any set on the next model.
        assert sorted(parties.run(updates, model=model).survivors) == [1, 2, 3, 4, 5]
        later = {"w": np.arange(4.0) + 1}
        assert sorted(parties.run(updates, model=later, silent={5: Phase.MASKED_INPUT}).survivors) == [1, 2, 3, 4]

    def test_with_noise_each_attempt_is_charged_instead(self) -> None:
        config = private_config(rounds=2)
        parties = Parties(config)
        parties.run(updates_for(config))
        parties.run(updates_for(config), silent={5: Phase.MASKED_INPUT})
        assert fates(parties.ledger(1)) == [("commit", cost(config, 5)), ("commit", cost(config, 4))]

    def test_the_record_outlives_the_process(self, tmp_path: Path) -> None:
        config = plain_config(clients=5, max_dropouts=2)
        parties = Parties(config, histories=lambda client: ClientHistory.enrol(tmp_path / str(client)))
        updates = updates_for(config)
        parties.run(updates)
        for client, history in parties.histories.items():
            history.close()  # type: ignore[attr-defined]
            parties.histories[client] = reopened = ClientHistory(tmp_path / str(client))
            assert reopened.history.signed == {config.layout.model_digest(None): (frozenset(range(1, 6)),)}
            parties.clients[client] = parties.client(client)
        parties.open(updates, silent={5: Phase.MASKED_INPUT})
        with pytest.raises(TooFewClientsError):
            parties.advance(Phase.FINISHED)
        assert {type(error) for error in parties.errors.values()} == {PolicyRefusal}

    def test_only_what_was_signed_is_in_the_record(self) -> None:
        parties = Parties(plain_config())
        parties.open(updates_for(parties.config))
        parties.advance(Phase.MASKED_INPUT)
        assert parties.histories[1].history.signed == {}
        parties.step()
        record = SurvivorsSigned(
            model=parties.config.layout.model_digest(None), survivors=frozenset(map(ClientId, range(1, 5)))
        )
        assert parties.histories[1].history.signed == {record.model: (record.survivors,)}
