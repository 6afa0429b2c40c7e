"""A round ends with the exact sum over the clients whose message arrived, or with a typed error."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import (
    AggregateReady,
    BundlesSeen,
    ClientId,
    ClientPolicy,
    History,
    Identity,
    KeysAdvertised,
    LocalProtocolError,
    PersistBeforeSend,
    Phase,
    ProtocolError,
    RemoteProtocolError,
    Roster,
    SurvivorsSigned,
    TooFewClientsError,
)
from protocols.one_shot import OneShotClient, OneShotMember, OneShotServer, committee_digest
from protocols.one_shot.rules import CLIENT_TRANSITIONS, MEMBER_TRANSITIONS, SERVER_TRANSITIONS, least_noise_bits

from .game import Game, changing, flipped, members, random_vectors, round_config, silencing

ONE, TWO = ClientId(1), ClientId(2)
M1, M2, M3, M4, M5 = members(5)


def assert_exact(game: Game, survivors: set[ClientId]) -> None:
    assert game.result is not None
    assert game.result.survivors == survivors
    assert game.result.vector.dtype == np.uint32
    assert np.array_equal(game.result.vector, game.expected(game.result.survivors))


class TestExactness:
    @given(
        st.integers(2, 8),
        st.integers(3, 8),
        st.data(),
        st.sampled_from([1, 7, 2047, 2048, 4096]),
        st.integers(0, 2**32),
    )
    @settings(max_examples=40)
    def test_everybody_arrives(self, cohort: int, holders: int, data: st.DataObject, length: int, seed: int) -> None:
        corrupt = data.draw(st.integers(0, min(holders - 1, cohort - 2)))
        bits = data.draw(st.integers(1, 32 - least_noise_bits(cohort)))
        config = round_config(
            cohort, committee=members(holders), corrupt_holders=corrupt, length=length, modulus_bits=bits
        )
        game = Game(config, random_vectors(cohort, length, bits, seed=seed))
        game.run()
        assert_exact(game, set(game.vectors))
        assert not game.errors
        assert not game.rejected

    @pytest.mark.parametrize("fill", [0, 2**22 - 1])
    def test_extreme_vectors(self, fill: int) -> None:
        game = Game(round_config(4), {ClientId(i): np.full(5, fill, dtype=np.uint32) for i in range(1, 5)})
        game.run()
        assert_exact(game, set(game.vectors))

    def test_a_member_may_be_a_client(self) -> None:
        game = Game(round_config(5), random_vectors(4) | {M1: np.arange(5, dtype=np.uint32)})
        game.run()
        assert_exact(game, {*random_vectors(4), M1})

    def test_transcript_names_round_survivors_and_sum(self) -> None:
        game = Game(network=silencing(TWO))
        result = game.run()
        view = game.server._rules.view([ClientId(4), ONE, ClientId(3)])
        parts = b"secagg/v1/one_shot/transcript" + view + sha256(result.vector.tobytes()).digest()
        assert result.transcript == sha256(parts).digest()


class TestFaults:
    @given(st.data())
    @settings(max_examples=60)
    def test_any_silence_and_damage(self, data: st.DataObject) -> None:
        """Each party may be silent, damaged or heard twice, in each of its messages."""
        game = Game(round_config(4, corrupt_holders=0, min_survivors=3))
        parties = [*game.clients, *game.members]
        fates = st.sampled_from(["heard", "heard", "heard", "silent", "damaged", "twice"])
        fate = {(party, turn): data.draw(fates) for party, turn in product(parties, range(2))}
        turns = dict.fromkeys(parties, 0)

        def network(sender: ClientId | None, _receiver: ClientId | None, message: bytes) -> list[bytes]:
            if sender is None:
                return [message]
            turns[sender] += 1
            match fate[sender, turns[sender] - 1]:
                case "silent":
                    return []
                case "damaged":
                    return [flipped(message, data.draw(st.integers(0, 8 * len(message) - 1)))]
                case "twice":
                    return [message, message]
            return [message]

        game.network = network
        error = game.play()
        arrived = {client for client in game.clients if fate[client, 0] in ("heard", "twice")}
        there = {member for member in game.members if fate[member, 0] in ("heard", "twice")}
        answering = {member for member in there if fate[member, 1] in ("heard", "twice")}
        if error is None:
            assert_exact(game, arrived)
        else:
            assert isinstance(error, TooFewClientsError)
            assert len(arrived) < 3 or len(answering) < game.config.threshold
            assert game.server.phase is Phase.ABORTED
        assert not game.errors
        assert_nothing_left(game)

    @pytest.mark.parametrize("absent", [1, 2])
    def test_absent_members(self, absent: int) -> None:
        """Fewer members than configured: the slots of the others do not move."""
        committee = tuple(ClientId(101 + i) for i in range(7 if absent == 2 else 5))
        silent = silencing(M2, M4) if absent == 2 else silencing(M1)
        game = Game(round_config(4, committee=committee, corrupt_holders=0), network=silent)
        game.run()
        assert_exact(game, set(game.vectors))

    @pytest.mark.parametrize("after", [0, 1])
    def test_too_few_members(self, after: int) -> None:
        game = Game(round_config(4), network=silencing(M1, M3, after=after))
        assert isinstance(game.play(), TooFewClientsError)
        assert game.result is None
        assert_nothing_left(game)

    def test_too_few_clients(self) -> None:
        game = Game(round_config(4, min_survivors=3), network=silencing(ONE, TWO))
        assert isinstance(game.play(), TooFewClientsError)
        assert not any(isinstance(record, SurvivorsSigned) for m in game.members for record in game.records[m])
        assert_nothing_left(game)

    def test_a_late_contribution_is_not_in_the_sum(self) -> None:
        game = Game(network=silencing(ONE))
        game.advance(Phase.UNMASK)
        (late,) = game.sent_by(ONE)
        game.to_server(ONE, late)
        assert [rejection.client for rejection in game.rejected] == [ONE]
        game.run()
        assert_exact(game, set(game.vectors) - {ONE})

    def test_a_full_cohort_takes_nobody_else(self) -> None:
        game = Game(round_config(3), random_vectors(4))
        game.run()
        assert_exact(game, {ClientId(1), ClientId(2), ClientId(3)})
        assert "full" in game.rejected[0].reason

    @pytest.mark.parametrize("cut", [0, 1, 63, 64, 100])
    def test_a_short_contribution_is_rejected(self, cut: int) -> None:
        game = Game(network=changing(ONE, lambda data: data[:cut]))
        game.run()
        assert_exact(game, set(game.vectors) - {ONE})

    def test_a_damaged_bit_anywhere_in_a_contribution_is_a_rejection(self) -> None:
        game = Game(network=silencing(*random_vectors(4)))
        game.advance(Phase.MASKED_INPUT)
        for client in game.clients:
            (message,) = game.sent_by(client)
            for bit in range(client, 8 * len(message), 8 * 61):
                (rejection,) = game.server.receive(client, flipped(message, bit))
                assert rejection.client == client  # type: ignore[union-attr]
            assert game.server.receive(client, message) == []
        game.run()
        assert_exact(game, set(game.vectors))


class TestSessions:
    def test_memory_is_one_accumulator(self) -> None:
        """Beside the vector being added: sealed shares, and at the end the errors."""
        cohort, length = 6, 1_000_000
        game = Game(round_config(cohort, length=length), random_vectors(cohort, length), network=silencing(*range(7)))
        game.advance(Phase.MASKED_INPUT)
        sent = {client: game.sent_by(client)[0] for client in game.clients}
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        game.server._words = game.server._words.copy()
        for client, data in sent.items():
            assert game.server.receive(client, data) == []
        requests = game.server.close_phase()
        answers = []
        for request in requests:
            member = game.members[request.to]  # type: ignore[union-attr, index]
            member.receive(request.data)  # type: ignore[union-attr]
            answers.append((request.to, member.persisted()[0].data))  # type: ignore[union-attr]
        for to, answer in answers:
            game.server.receive(to, answer)  # type: ignore[arg-type]
        *_, result = game.server.close_phase()
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        assert isinstance(result, AggregateReady)
        assert np.array_equal(result.vector, game.expected(result.survivors))
        assert peak < 12 * length

    def test_records_are_durable_before_anything_leaves(self) -> None:
        game = Game()
        client, member = game.clients[ONE], game.members[M1]
        (event,) = client.start()
        assert event == PersistBeforeSend(record=KeysAdvertised(round_id=game.config.round_id, serial=1))
        assert client.persisted() == []
        (event,) = member.start()
        assert event == PersistBeforeSend(record=KeysAdvertised(round_id=game.config.round_id, serial=1))
        (sending,) = member.persisted()
        game.to_server(M1, sending.data)  # type: ignore[union-attr]
        for other in (M2, M3, M4):
            game.call(game.members[other], game.members[other].start)
        frames = {event.to: event.data for event in game.server.close_phase()}  # type: ignore[union-attr]
        (event,) = client.receive(frames[ONE])
        assert event == PersistBeforeSend(record=BundlesSeen(serials={M1: 1, M2: 1, M3: 1, M4: 1}))
        with pytest.raises(LocalProtocolError):
            client.contribute(game.vectors[ONE])

    def test_a_member_answers_only_after_its_record(self) -> None:
        game = Game()
        game.advance(Phase.MASKED_INPUT)
        requests = {event.to: event.data for event in game.server.close_phase()}  # type: ignore[union-attr]
        (event,) = game.members[M1].receive(requests[M1])
        record = SurvivorsSigned(model=game.config.model, survivors=frozenset(game.vectors))
        assert event == PersistBeforeSend(record=record)
        assert game.members[M1]._secrets is None
        (answer,) = game.members[M1].persisted()
        assert game.server.receive(M1, answer.data) == []  # type: ignore[union-attr]

    def test_serials_go_up(self) -> None:
        first = Game()
        first.run()
        second = Game(round_config(4), identities=first.identities, histories=first.histories)
        second.run()
        assert second.histories[M1].serial == 2
        assert second.histories[ONE].peers == dict.fromkeys(second.config.committee, 2)
        assert_exact(second, set(second.vectors))

    @pytest.mark.parametrize(
        "vector",
        [np.zeros(4, np.uint32), np.zeros((5, 1), np.uint32), np.zeros(5, np.int64), np.full(5, 2**22, np.uint32)],
        ids=["short", "shape", "dtype", "range"],
    )
    def test_a_bad_vector_changes_nothing(self, vector: np.ndarray) -> None:
        game = Game()
        refused: list[str] = []
        client = game.clients[ONE]
        contribute = client.contribute

        def first_badly(good: np.ndarray) -> list[object]:
            with pytest.raises(ValueError) as caught:
                contribute(vector)
            refused.append(str(caught.value))
            return contribute(good)  # type: ignore[return-value]

        client.contribute = first_badly  # type: ignore[method-assign, assignment]
        game.run()
        assert len(refused) == 1
        assert any(word in refused[0] for word in ("uint32[5]", "2^22"))
        assert_exact(game, set(game.vectors))

    def test_wrong_parties_are_refused_at_the_door(self) -> None:
        game = Game()
        pinned = committee_digest(game.roster, game.config.committee)
        policy = ClientPolicy(min_survivors=2, corrupt_holders=0, suite=1, committee=pinned)
        with pytest.raises(ValueError, match="another identity"):
            OneShotClient(
                game.config, ONE, identity=Identity.generate(), roster=game.roster, policy=policy, history=History()
            )
        with pytest.raises(ValueError, match="not on the committee"):
            OneShotMember(
                game.config, ONE, identity=game.identities[ONE], roster=game.roster, policy=policy, history=History()
            ).start()
        few = Roster({party: game.roster[party] for party in (*game.config.committee[1:], ONE)})
        with pytest.raises(ValueError, match="not on the roster"):
            OneShotServer(game.config, roster=few)
        with pytest.raises(ValueError, match="the roster only 9"):
            OneShotServer(round_config(10), roster=game.roster)

    def test_out_of_order_calls_kill_the_session(self) -> None:
        vector = random_vectors(1)[ONE]
        game = Game()
        client, member = game.clients, game.members
        calls: dict[OneShotClient | OneShotMember, Callable[[], object]] = {
            client[ONE]: lambda: client[ONE].receive(b""),
            client[TWO]: client[TWO].persisted,
            client[ClientId(3)]: lambda: client[ClientId(3)].contribute(vector),
            member[M1]: lambda: member[M1].receive(b""),
            member[M2]: member[M2].persisted,
        }
        for session, call in calls.items():
            with pytest.raises(LocalProtocolError):
                call()
            assert session.phase is Phase.ABORTED
            assert_erased(session)
        session = client[ClientId(4)]
        session.start()
        with pytest.raises(LocalProtocolError):
            session.start()
        assert_erased(session)

    def test_a_message_before_the_record_is_durable_is_the_server_s_fault(self) -> None:
        game = Game()
        game.clients[ONE].start()
        with pytest.raises(RemoteProtocolError):
            game.clients[ONE].receive(b"")
        assert_erased(game.clients[ONE])

    def test_a_dead_server_stays_dead(self) -> None:
        for game in (Game(), Game(network=silencing(*members(5)))):
            game.play()
            assert game.server.waiting_for == frozenset()
            with pytest.raises(LocalProtocolError):
                game.server.receive(ONE, b"")
            with pytest.raises(LocalProtocolError):
                game.server.close_phase()
            assert game.server.phase is Phase.ABORTED or game.result is not None

    def test_an_unexpected_failure_erases_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        game = Game()
        game.advance(Phase.UNMASK)

        def broken(*_: object, **__: object) -> None:
            raise MemoryError

        monkeypatch.setattr("protocols.primitives.ring_mask.add_mask", broken)
        with pytest.raises(MemoryError):
            game.step()
        assert_nothing_left(game)

    def test_the_phases_are_those_of_the_tables(self) -> None:
        for table, sessions in (
            (CLIENT_TRANSITIONS, Game().clients.values()),
            (MEMBER_TRANSITIONS, Game().members.values()),
        ):
            assert all(session.phase in {phase for phase, _ in table} for session in sessions)
            assert Phase.FINISHED in table.values()
        game = Game()
        seen = [game.server.phase]
        game.start()
        while game.server.phase is not Phase.FINISHED:
            game.step()
            assert SERVER_TRANSITIONS[seen[-1], "close_phase"] is game.server.phase
            seen.append(game.server.phase)

    def test_nothing_secret_is_printed_or_pickled(self) -> None:
        game = Game()
        game.start()
        for session in (*game.sessions, game.server):
            assert repr(session) == f"<{type(session).__name__}>"
            with pytest.raises(TypeError):
                session.__reduce__()


def assert_erased(session: OneShotClient | OneShotMember) -> None:
    assert session._secrets is None
    assert session._after_persist is None


def assert_nothing_left(game: Game) -> None:
    """Of parties that are at an end; a party that hears nothing more is dropped by its driver."""
    for session in game.sessions:
        if session.phase in (Phase.FINISHED, Phase.ABORTED):
            assert_erased(session)
    assert game.server.phase in (Phase.FINISHED, Phase.ABORTED)
    server = game.server
    assert not any(map(len, (server._received, server._seen, server._answers, server._words)))


def test_errors_name_the_phase() -> None:
    game = Game(network=silencing(*members(5)))
    error = game.play()
    assert isinstance(error, ProtocolError)
    assert error.phase == "AdvertiseKeys"
