"""The contract of `test_sessions`, kept by the one-shot protocol: the exact sum over survivors, or a typed abort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import (
    ClientId,
    Event,
    LocalProtocolError,
    PersistBeforeSend,
    Phase,
    ProtocolError,
    RemoteProtocolError,
    SendMessage,
    SurvivorsSigned,
    TooFewClientsError,
)
from protocols.one_shot import OneShotClient, OneShotConfig, OneShotMember
from protocols.one_shot.rules import CLIENT_TRANSITIONS, MEMBER_TRANSITIONS, SERVER_TRANSITIONS, least_noise_bits
from protocols.one_shot.wire import PartialSum, says
from tests.one_shot.game import Game, Vector, members, random_vectors, round_config

from .faults import Fault, FaultyNetwork, faults

OVER = (Phase.FINISHED, Phase.ABORTED)
LENGTH = 3
Session = OneShotClient | OneShotMember


@st.composite
def rounds(draw: st.DrawFn) -> tuple[OneShotConfig, dict[ClientId, Vector]]:
    """Any small round: sizes, thresholds, floors, widths, suites; and its vectors, extremes included."""
    cohort, holders = draw(st.integers(2, 5)), draw(st.integers(3, 6))
    bits = draw(st.integers(1, 32 - least_noise_bits(cohort)))
    corrupt = draw(st.integers(0, min(holders - 1, cohort - 2)))
    config = round_config(
        cohort,
        committee=members(holders),
        corrupt_holders=corrupt,
        min_survivors=draw(st.integers(corrupt + 2, cohort)),
        length=LENGTH,
        modulus_bits=bits,
        suite=draw(st.sampled_from([1, 1, 2])),
    )
    entries = st.integers(0, 2**bits - 1) | st.sampled_from([0, 2**bits - 1])
    vectors = {
        ClientId(i): np.array(draw(st.lists(entries, min_size=LENGTH, max_size=LENGTH)), dtype=np.uint32)
        for i in range(1, cohort + 1)
    }
    return config, vectors


def parties_of(config: OneShotConfig) -> list[ClientId]:
    return [*map(ClientId, range(1, config.cohort + 1)), *config.committee]


def played(
    config: OneShotConfig, vectors: dict[ClientId, Vector], network: FaultyNetwork, **options: object
) -> tuple[Game, ProtocolError | None]:
    game = Game(config, vectors, network, late=network.late, **options)  # type: ignore[arg-type]
    return game, game.play()


def check_master_property(game: Game, error: ProtocolError | None) -> None:
    """The exact sum over the survivors or a typed abort, and at most one answer of each member, for one set."""
    result = game.result
    if result is None:
        assert error is not None
        assert game.server.phase is Phase.ABORTED
    else:
        assert error is None
        assert result.vector.dtype == np.uint32
        assert (result.vector == game.expected(result.survivors)).all()
        assert len(result.survivors) >= game.config.min_survivors
        assert game.server.phase is Phase.FINISHED
    signed = {
        member: [record.survivors for record in game.records[member] if isinstance(record, SurvivorsSigned)]
        for member in game.members
    }
    assert all(len(sets) <= 1 for sets in signed.values())
    assert len({sets[0] for sets in signed.values() if sets}) <= 1
    for member, session in game.members.items():
        answers = [data for data in game.sent_by(member) if says(data, PartialSum)]
        assert len(answers) == len(signed[member])
        assert (session.phase is Phase.FINISHED) == bool(answers)
    for client, client_session in game.clients.items():
        assert len(game.sent_by(client)) == (client_session.phase is Phase.FINISHED)
    for session_of in game.sessions:
        assert (session_of.phase is Phase.ABORTED) == (session_of._me in game.errors)
        if session_of.phase in OVER:
            assert session_of._secrets is None
            assert session_of._after_persist is None


class TestMasterProperty:
    @settings(max_examples=25)
    @given(data=st.data())
    def test_a_faithful_network_gives_the_sum_over_everybody(self, data: st.DataObject) -> None:
        config, vectors = data.draw(rounds())
        game, error = played(config, vectors, FaultyNetwork({}))
        check_master_property(game, error)
        assert game.result is not None
        assert game.result.survivors == set(vectors)
        assert not game.rejected
        assert not game.errors

    @settings(max_examples=40)
    @given(data=st.data())
    def test_silence_costs_the_silent_and_below_the_floors_the_round(self, data: st.DataObject) -> None:
        """The outcome follows from who was silent when, and nothing else."""
        config, vectors = data.draw(rounds())
        silent = {
            party: data.draw(st.sampled_from([0, 1] if party in vectors else [0, 1, 2, 2]))
            for party in parties_of(config)
        }
        network = FaultyNetwork(
            {(party, True, number): Fault(copies=0) for party, after in silent.items() for number in range(after, 2)}
        )
        game, error = played(config, vectors, network)
        check_master_property(game, error)
        heard = {
            Phase.ADVERTISE_KEYS: (sum(silent[one] > 0 for one in config.committee), config.threshold),
            Phase.MASKED_INPUT: (sum(silent[one] > 0 for one in vectors), config.min_survivors),
            Phase.UNMASK: (sum(silent[one] > 1 for one in config.committee), config.threshold),
        }
        missed = [phase.value for phase, (there, floor) in heard.items() if there < floor]
        if missed:
            assert isinstance(error, TooFewClientsError)
            assert error.phase == missed[0]
        else:
            assert game.result is not None
            assert game.result.survivors == {client for client in vectors if silent[client]}
        assert not game.errors

    @settings(max_examples=60)
    @given(data=st.data())
    def test_any_loss_delay_duplication_reordering_and_damage(self, data: st.DataObject) -> None:
        config, vectors = data.draw(rounds())
        addresses = st.tuples(st.sampled_from(parties_of(config)), st.booleans(), st.integers(0, 1))
        network = FaultyNetwork(
            faults=data.draw(st.dictionaries(addresses, faults, max_size=6)), order=data.draw(st.integers(0, 9))
        )
        game, error = played(config, vectors, network)
        check_master_property(game, error)

    @settings(max_examples=40)
    @given(party=st.sampled_from([(1, 0), (3, 0), (101, 0), (101, 1), (105, 1)]), bit=st.integers(0, 2**17))
    def test_a_flipped_bit_on_the_way_up_is_a_rejected_message(self, party: tuple[int, int], bit: int) -> None:
        """Exactly as if it had been lost, plus one `PeerRejected`."""
        outcomes, (who, number) = [], party
        for fault in (Fault(flipped_bit=bit), Fault(copies=0)):
            network = FaultyNetwork({(ClientId(who), True, number): fault})
            game, error = played(round_config(4), random_vectors(4), network)
            check_master_property(game, error)
            assert game.result is not None
            outcomes.append((game.result.survivors, game.result.vector.tolist(), set(game.errors)))
            assert [event.client for event in game.rejected] == [who] * (fault.copies > 0)
        assert outcomes[0] == outcomes[1]

    @settings(max_examples=40)
    @given(party=st.sampled_from([1, 3, 101, 105]), bit=st.integers(0, 2**17))
    def test_a_flipped_bit_on_the_way_down_hurts_that_party_alone(self, party: int, bit: int) -> None:
        network = FaultyNetwork({(ClientId(party), False, 0): Fault(flipped_bit=bit)})
        game, error = played(round_config(4), random_vectors(4), network)
        check_master_property(game, error)
        assert game.result is not None
        assert set(game.errors) == {party}
        assert isinstance(game.errors[ClientId(party)], RemoteProtocolError | TooFewClientsError)
        assert not game.refused.get(ClientId(party))  # damage is nobody's bad share
        assert game.result.survivors == {1, 2, 3, 4} - {party}

    def test_every_message_of_a_round_sent_twice(self) -> None:
        """Upwards a copy is rejected; downwards it finds a session that is at its end."""
        config = round_config(4)
        up = FaultyNetwork({(one, True, i): Fault(copies=2) for one in parties_of(config) for i in range(2)})
        game, error = played(config, random_vectors(4), up)
        check_master_property(game, error)
        assert game.result is not None
        counts = Counter(event.client for event in game.rejected)
        assert counts == dict.fromkeys(game.clients, 1) | dict.fromkeys(game.members, 2)
        down = FaultyNetwork({(one, False, 0): Fault(copies=2) for one in parties_of(config)})
        game, error = played(config, random_vectors(4), down)
        check_master_property(game, error)
        assert game.result is not None
        assert not game.errors

    @pytest.mark.parametrize("phases_late", [1, 2])
    def test_a_late_contribution_changes_nothing(self, phases_late: int) -> None:
        network = FaultyNetwork({(ClientId(2), True, 0): Fault(phases_late=phases_late)})
        game, error = played(round_config(4), random_vectors(4), network)
        check_master_property(game, error)
        assert game.result is not None
        assert game.result.survivors == {1, 3, 4}
        assert [event.client for event in game.rejected] == [2] * (phases_late == 1)

    @pytest.mark.parametrize("bits", [1, 8, 16, 22, 24])
    def test_the_largest_entries_of_everybody(self, bits: int) -> None:
        vectors = {ClientId(i): np.full(130, 2**bits - 1, dtype=np.uint32) for i in range(1, 5)}
        game, error = played(round_config(4, length=130, modulus_bits=bits), vectors, FaultyNetwork({}))
        check_master_property(game, error)
        assert game.result is not None

    def test_a_bad_message_may_be_followed_by_a_good_one(self) -> None:
        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            return [data[:-1], b"", data, data] if sender is not None else [data]

        game = Game(round_config(3), random_vectors(3), network)
        error = game.play()
        check_master_property(game, error)
        assert game.result is not None
        assert len(game.rejected) == (3 + 5 * 2) * 3


# What may be called when.

CLIENT, MEMBER = ClientId(2), ClientId(102)
TRIGGERS = {
    **{("client", phase): trigger for phase, trigger in CLIENT_TRANSITIONS},
    **{("member", phase): trigger for phase, trigger in MEMBER_TRANSITIONS},
}
STATES = [
    (role, phase)
    for role, table in (("client", CLIENT_TRANSITIONS), ("member", MEMBER_TRANSITIONS))
    for phase in (*(phase for phase, _ in table), Phase.FINISHED)
]
ids = [f"{role}, {phase.value}" for role, phase in STATES]


def whole_round() -> tuple[Game, dict[ClientId, bytes]]:
    """A finished round, and what the server said to each party."""
    said: dict[ClientId, bytes] = {}

    def network(_sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        if receiver is not None:
            said[receiver] = data
        return [data]

    game = Game(network=network)
    game.run()
    return game, said


def driven_to(role: str, phase: Phase, *, persisted: bool = True) -> tuple[Game, Session, bytes]:
    """A round in which one party has just reached a phase, and the message that the server has for it then or later."""
    held: dict[ClientId, bytes] = {}
    party = CLIENT if role == "client" else MEMBER

    def network(_sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        if receiver is not None:
            held[receiver] = data
        return [] if receiver == party else [data]

    game = Game(network=network)
    session: Session = game.clients[party] if role == "client" else game.members[party]
    for other in game.sessions:
        game.call(other, other.start)
    while party not in held:
        game.step()
    if phase is Phase.READY:
        game.histories.pop(party)
        session = game.session(type(session), party)
        return game, session, held[party]
    if phase is Phase.ADVERTISE_KEYS:
        if not persisted:
            game.histories.pop(party)
            session = game.session(type(session), party)
            session.start()
        return game, session, held[party]
    events = session.receive(held[party])
    assert isinstance(events[0], PersistBeforeSend)
    if persisted or (role == "client" and phase is Phase.FINISHED):
        session.persisted()
    if role == "client" and phase is Phase.FINISHED:
        session.contribute(game.vectors[party])  # type: ignore[union-attr]
    assert session.phase is phase
    return game, session, held[party]


def calls(session: Session, vector: Vector, data: bytes) -> dict[str, Callable[[], list[Event]]]:
    named: dict[str, Callable[[], list[Event]]] = {
        "start": session.start, "persisted": session.persisted, "receive": lambda: session.receive(data),
    }  # fmt: skip
    if isinstance(session, OneShotClient):
        named["contribute"] = lambda: session.contribute(vector)
    return named


def assert_dead(session: Session, vector: Vector, data: bytes) -> None:
    """Every call raises `LocalProtocolError`, and nothing brings the session back."""
    ended = session.phase
    assert ended in OVER
    for call in calls(session, vector, data).values():
        with pytest.raises(LocalProtocolError) as caught:
            call()
        assert caught.value.client_id == session._me
        assert caught.value.phase == ended.value
        assert session.phase is ended
    assert session._secrets is None
    assert session._after_persist is None


class TestOrderOfCalls:
    @pytest.mark.parametrize(("role", "phase"), STATES, ids=ids)
    @pytest.mark.parametrize("name", ["start", "contribute", "persisted"])
    def test_calls_out_of_order_kill_the_session(self, role: str, phase: Phase, name: str) -> None:
        if TRIGGERS.get((role, phase)) == name or (role == "member" and name == "contribute"):
            return
        game, session, data = driven_to(role, phase)
        vector = random_vectors(4)[CLIENT]
        with pytest.raises(LocalProtocolError) as caught:
            calls(session, vector, data)[name]()
        assert (caught.value.client_id, caught.value.phase) == (session._me, phase.value)
        assert session.phase is (Phase.FINISHED if phase is Phase.FINISHED else Phase.ABORTED)
        assert_dead(session, vector, data)
        assert game.config.cohort == 4

    @pytest.mark.parametrize(("role", "phase"), STATES, ids=ids)
    def test_messages_out_of_order_kill_the_session(self, role: str, phase: Phase) -> None:
        """Also messages that are right in another phase, or for another role, of this very round."""
        for right in (True, False):
            game, session, data = driven_to(role, phase)
            other = whole_round()[1][MEMBER if role == "client" else CLIENT]
            frame = data if right else other
            in_order = right and TRIGGERS.get((role, phase)) in ("Committee", "UnmaskRequest")
            if in_order:
                assert session.receive(frame)
                continue
            expected = LocalProtocolError if phase in (Phase.READY, Phase.FINISHED) else RemoteProtocolError
            with pytest.raises(expected) as caught:
                session.receive(frame)
            assert caught.value.phase == phase.value
            assert_dead(session, game.vectors[CLIENT], frame)

    @pytest.mark.parametrize(
        ("role", "phase"),
        [
            ("client", Phase.ADVERTISE_KEYS),
            ("client", Phase.CONTRIBUTE),
            ("member", Phase.ADVERTISE_KEYS),
            ("member", Phase.FINISHED),
        ],
    )
    def test_other_calls_before_the_record_is_durable_kill_the_session(self, role: str, phase: Phase) -> None:
        for name in ("start", "contribute", "receive"):
            game, session, data = driven_to(role, phase, persisted=False)
            named = calls(session, game.vectors[CLIENT], data)
            if name not in named:
                continue
            with pytest.raises(
                RemoteProtocolError if name == "receive" and phase is not Phase.FINISHED else LocalProtocolError
            ):
                named[name]()
            assert_dead(session, game.vectors[CLIENT], data)

    def test_what_leaves_once_the_record_is_durable(self) -> None:
        for role, phase, kinds in (
            ("client", Phase.ADVERTISE_KEYS, []),
            ("member", Phase.ADVERTISE_KEYS, [16]),
            ("member", Phase.FINISHED, [20]),
        ):
            game, session, data = driven_to(role, phase, persisted=False)
            sent = [event.data[7] for event in session.persisted() if isinstance(event, SendMessage)]
            assert sent == kinds
            with pytest.raises(LocalProtocolError):
                session.persisted()
            assert_dead(session, game.vectors[CLIENT], data)

    @pytest.mark.parametrize("phase", [*[phase for phase, _ in SERVER_TRANSITIONS], Phase.FINISHED])
    def test_the_server_may_be_closed_early_and_is_dead_after_its_end(self, phase: Phase) -> None:
        game = Game()
        game.advance(phase)
        server = game.server
        if phase is not Phase.FINISHED:
            server.close_phase()  # what arrived already is enough, or it is not
            while server.phase not in OVER:
                with pytest.raises(TooFewClientsError):
                    server.close_phase()
                assert server.phase is Phase.ABORTED
        ended = server.phase
        assert server.waiting_for == frozenset()
        for call in (server.close_phase, lambda: server.receive(ClientId(1), b"")):
            with pytest.raises(LocalProtocolError) as caught:
                call()
            assert caught.value.phase == ended.value

    def test_the_server_says_for_whom_it_waits(self) -> None:
        silent = FaultyNetwork({(ClientId(4), True, 0): Fault(copies=0), (ClientId(105), True, 0): Fault(copies=0)})
        game = Game(network=silent, late=silent.late)
        waited = []
        game.start()
        while game.result is None:
            waited.append(set(game.server.waiting_for))
            game.step()
        committee = set(game.config.committee)
        assert waited == [committee, set(game.vectors) | committee, committee - {105}]


class TestTransitionTables:
    def test_an_honest_round_walks_through_every_line(self) -> None:
        game = Game()
        seen: dict[str, set[tuple[tuple[Phase, str], Phase]]] = {"client": set(), "member": set(), "server": set()}
        original = game.call

        def call(session: Session, action: Callable[[], list[Event]]) -> None:
            before, role = session.phase, "client" if isinstance(session, OneShotClient) else "member"
            trigger = TRIGGERS.get((role, before), "")

            def watched() -> list[Event]:
                events = action()
                if session.phase is not before:
                    seen[role].add(((before, trigger), session.phase))
                return events

            original(session, watched)

        game.call = call  # type: ignore[method-assign]
        game.start()
        while game.result is None:
            before = game.server.phase
            game.step()
            seen["server"].add(((before, "close_phase"), game.server.phase))
        assert seen["client"] == set(CLIENT_TRANSITIONS.items())
        assert seen["member"] == set(MEMBER_TRANSITIONS.items())
        assert seen["server"] == set(SERVER_TRANSITIONS.items())
