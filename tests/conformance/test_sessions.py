"""The contract of `protocols.session`, for every protocol: the exact sum over the survivors, or a typed abort."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols import (
    ClientId,
    ClientPolicy,
    Event,
    History,
    Identity,
    LocalProtocolError,
    PairwiseClient,
    PersistBeforeSend,
    Phase,
    ProtocolError,
    RemoteProtocolError,
    RoundConfig,
    SendMessage,
    TooFewClientsError,
)
from protocols.primitives.keys import AgreementKey
from protocols.primitives.packing import LANE_BITS, NATIVE_BITS, largest_entry
from protocols.session import CLIENT_TRANSITIONS, SERVER_TRANSITIONS
from protocols.wire import Message, Unmask
from tests.rounds import OVER, Implementation, Round, Vector, kind_of, random_vectors, round_config

from .faults import MESSAGES_EACH_WAY, Fault, FaultyNetwork, networks, rounds, silent

Setting = tuple[Implementation, bool]  # which sessions, and whether the graph is complete
SETTINGS: dict[str, Setting] = {
    "pairwise complete": (Implementation(), True),
    "pairwise ring": (Implementation(), False),
}
every_protocol = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
every_implementation = pytest.mark.parametrize("implementation", [Implementation()], ids=["pairwise"])


def check_master_property(game: Round) -> None:
    """The exact sum over the survivors or a typed abort, and one survivor set for everybody."""
    result = game.result
    if result is None:
        assert game.server_error is not None
        assert game.server.phase is Phase.ABORTED
    else:
        assert result.vector.dtype == np.uint32
        assert (result.vector == game.expected(result.survivors)).all()
        assert len(result.survivors) >= game.config.min_survivors
        assert game.server.phase is Phase.FINISHED
        assert set(game.agreed.values()) == {result.survivors}
        assert len(game.agreed) >= game.config.threshold
    assert len(set(game.agreed.values())) <= 1
    for survivors in game.agreed.values():
        assert len(survivors) >= game.config.min_survivors
    for client, session in game.clients.items():
        assert (session.phase is Phase.FINISHED) == (client in game.agreed)
        assert (session.phase is Phase.ABORTED) == (client in game.errors)
    sent = game.shares_sent()
    assert {holder for holder, _, _ in sent} <= set(game.agreed)
    assert len({(owner, name) for _, owner, name in sent}) == len({owner for _, owner, _ in sent})
    for client in game.clients.keys() - game.agreed.keys():
        assert Unmask not in game.kinds_sent(client)


class TestMasterProperty:
    @every_protocol
    @settings(max_examples=60)
    @given(data=st.data())
    def test_a_faithful_network_gives_the_sum_over_everybody(self, setting: Setting, data: st.DataObject) -> None:
        implementation, complete = setting
        config, vectors = data.draw(rounds(complete=complete))
        game = Round(config, vectors, implementation=implementation)
        game.run()
        check_master_property(game)
        assert game.result is not None
        assert game.result.survivors == set(vectors)
        assert set(game.agreed) == set(vectors)
        assert not game.rejected

    @settings(max_examples=100)
    @given(data=st.data())
    def test_silence_costs_the_silent_and_below_the_floor_the_round(self, data: st.DataObject) -> None:
        """On the complete graph the outcome follows from who was silent when, and nothing else."""
        config, vectors = data.draw(rounds(complete=True))
        after = {client: data.draw(st.sampled_from([0, 1, 2, 3, 4, 5, 5, 5])) for client in vectors}
        network = FaultyNetwork({k: v for client, sent in after.items() for k, v in silent(client, sent).items()})
        game = Round(config, vectors, network=network, late=network.late)
        error = game.play()
        check_master_property(game)
        heard = [frozenset(client for client, sent in after.items() if sent > phase) for phase in range(5)]
        floors = [config.min_survivors] * 3 + [config.threshold] * 2
        enough = [len(clients) >= floor for clients, floor in zip(heard, floors, strict=True)]
        if all(enough):
            assert game.result is not None
            assert game.result.survivors == heard[2]
            assert set(game.agreed) == heard[3]
        else:
            assert isinstance(error, TooFewClientsError)
            names = ["AdvertiseKeys", "ShareKeys", "MaskedInput", "ConsistencyCheck", "Unmask"]
            assert error.phase == names[enough.index(False)]
        assert not game.errors

    @every_protocol
    @settings(max_examples=80)
    @given(data=st.data())
    def test_any_silence(self, setting: Setting, data: st.DataObject) -> None:
        implementation, complete = setting
        config, vectors = data.draw(rounds(complete=complete))
        quiet = data.draw(
            st.dictionaries(st.sampled_from(sorted(vectors)), st.integers(0, MESSAGES_EACH_WAY - 1), max_size=4)
        )
        network = FaultyNetwork({k: v for client, after in quiet.items() for k, v in silent(client, after).items()})
        game = Round(config, vectors, network=network, late=network.late, implementation=implementation)
        game.play()
        check_master_property(game)
        if game.result is not None:
            assert game.result.survivors == {c for c in vectors if quiet.get(c, MESSAGES_EACH_WAY) > 2}

    @every_protocol
    @settings(max_examples=150)
    @given(data=st.data())
    def test_any_loss_delay_duplication_reordering_and_damage(self, setting: Setting, data: st.DataObject) -> None:
        implementation, complete = setting
        config, vectors = data.draw(rounds(complete=complete))
        network = data.draw(networks(config.cohort))
        game = Round(config, vectors, network=network, late=network.late, implementation=implementation)
        game.play()
        check_master_property(game)

    @every_implementation
    @settings(max_examples=100)
    @given(
        client=st.integers(1, 4).map(ClientId), number=st.integers(0, MESSAGES_EACH_WAY - 1), bit=st.integers(0, 2**14)
    )
    def test_a_flipped_bit_on_the_way_up_is_a_rejected_message(
        self, implementation: Implementation, client: ClientId, number: int, bit: int
    ) -> None:
        """Exactly as if it had been lost, plus one `PeerRejected`."""
        outcomes = []
        for fault in (Fault(flipped_bit=bit), Fault(copies=0)):
            network = FaultyNetwork({(client, True, number): fault})
            config = round_config(4, threshold=3, length=3, modulus_bits=16)
            vectors = random_vectors(4, 3, 16)
            game = Round(config, vectors, network=network, late=network.late, implementation=implementation)
            game.play()
            check_master_property(game)
            assert game.result is not None
            outcomes.append((game.result.survivors, game.result.vector.tolist(), set(game.agreed), set(game.errors)))
            assert [event.client for event in game.rejected] == [client] * (fault.copies > 0)
        assert outcomes[0] == outcomes[1]

    @every_implementation
    @settings(max_examples=100)
    @given(client=st.integers(1, 4).map(ClientId), number=st.integers(0, 3), bit=st.integers(0, 2**14))
    def test_a_flipped_bit_on_the_way_down_hurts_that_client_alone(
        self, implementation: Implementation, client: ClientId, number: int, bit: int
    ) -> None:
        network = FaultyNetwork({(client, False, number): Fault(flipped_bit=bit)})
        game = Round(
            round_config(4, threshold=3, length=3),
            random_vectors(4, 3),
            network=network,
            late=network.late,
            implementation=implementation,
        )
        game.play()
        check_master_property(game)
        assert game.result is not None
        assert game.errors.keys() <= {client}
        assert all(isinstance(error, RemoteProtocolError | TooFewClientsError) for error in game.errors.values())
        assert client not in game.agreed
        assert len(game.agreed) == 3

    @every_implementation
    def test_every_message_of_a_round_sent_twice(self, implementation: Implementation) -> None:
        """Upwards a copy is rejected; downwards it arrives in the wrong phase and ends that client's round."""
        up = FaultyNetwork({(c, True, i): Fault(copies=2) for c in map(ClientId, range(1, 5)) for i in range(5)})
        game = Round(round_config(4), random_vectors(4, 5), network=up, late=up.late, implementation=implementation)
        game.run()
        check_master_property(game)
        assert Counter(event.client for event in game.rejected) == dict.fromkeys(range(1, 5), 5)
        for number in range(4):
            down = FaultyNetwork({(ClientId(1), False, number): Fault(copies=2)})
            game = Round(round_config(4), random_vectors(4, 5), network=down, late=down.late)
            game.run()
            check_master_property(game)
            assert (ClientId(1) in game.agreed) == (number == 3)

    @every_implementation
    def test_a_late_masked_vector_changes_nothing(self, implementation: Implementation) -> None:
        for phases_late in (1, 2):
            network = FaultyNetwork({(ClientId(2), True, 2): Fault(phases_late=phases_late)})
            game = Round(round_config(4), random_vectors(4, 5), network=network, late=network.late)
            result = game.run()
            check_master_property(game)
            assert result.survivors == {1, 3, 4}
            assert [event.client for event in game.rejected] == [2]

    @pytest.mark.parametrize("bits", LANE_BITS)
    @every_implementation
    def test_the_largest_entries_of_everybody(self, implementation: Implementation, bits: int) -> None:
        length = 3 * 64 + 1
        vectors = {ClientId(i): np.full(length, largest_entry(bits, 7), dtype=np.uint32) for i in range(1, 8)}
        game = Round(round_config(7, length=length, modulus_bits=bits), vectors, implementation=implementation)
        game.run()
        check_master_property(game)

    @every_implementation
    def test_clients_beyond_the_cohort_are_turned_away(self, implementation: Implementation) -> None:
        game = Round(round_config(4), random_vectors(6, 5), implementation=implementation)
        result = game.run()
        assert result.survivors == {1, 2, 3, 4}
        assert [event.client for event in game.rejected] == [5, 6]
        assert (result.vector == game.expected(result.survivors)).all()


@every_implementation
class TestConstruction:
    def test_a_client_needs_the_identity_that_is_pinned_for_it(self, implementation: Implementation) -> None:
        game = Round(round_config(3), random_vectors(3, 5), implementation=implementation)
        policy = ClientPolicy(min_survivors=3, corrupt_holders=0)
        for client, identity in [(1, game.identities[ClientId(2)]), (1, Identity.generate()), (9, Identity.generate())]:
            with pytest.raises(ValueError, match=f"pins another identity for client {client}"):
                implementation.client(
                    game.config,
                    ClientId(client),
                    identity=identity,
                    roster=game.roster,
                    policy=policy,
                    history=History(),
                )

    def test_a_cohort_needs_a_roster_that_holds_it(self, implementation: Implementation) -> None:
        game = Round(round_config(3), random_vectors(3, 5), implementation=implementation)
        with pytest.raises(ValueError, match="the cohort has 4 clients, the roster only 3"):
            implementation.server(round_config(4), roster=game.roster)


# What may be called when.

Call = Callable[[PairwiseClient], list[Event]]
CLIENT = ClientId(2)


def driven_to(phase: Phase, implementation: Implementation, *, persisted: bool = True) -> tuple[Round, list[bytes]]:
    """A round of four in which client 2 has just reached `phase`, and all messages that the server would send it.

    The server's messages come from a twin of the client's own round, so each is valid for it in its phase.
    """
    inbox: list[bytes] = []
    stopped = False

    def network(_sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        nonlocal stopped
        if receiver == CLIENT:
            inbox.append(data)
            stopped = stopped or game.clients[CLIENT].phase is phase
            return [] if stopped else [data]
        return [data]

    game = Round(round_config(4, threshold=3), random_vectors(4, 5), network=network, implementation=implementation)
    original = game.follow

    def follow(client: ClientId, event: Event) -> None:
        nonlocal stopped
        if client == CLIENT and game.clients[CLIENT].phase is phase:
            waits_here = not persisted and isinstance(event, PersistBeforeSend)
            if waits_here or (phase is Phase.CONTRIBUTE):
                stopped = True
                return
        original(client, event)

    game.follow = follow  # type: ignore[method-assign]
    if phase is Phase.READY:
        for other in game.clients:
            if other != CLIENT:
                game.call(other, game.clients[other].start)
    else:
        game.start()
    while game.server.phase not in OVER:
        try:
            game.step()
        except TooFewClientsError:
            break
    assert game.clients[CLIENT].phase is phase
    return game, inbox


CLIENT_PHASES = [
    Phase.READY,
    Phase.ADVERTISE_KEYS,
    Phase.SHARE_KEYS,
    Phase.CONTRIBUTE,
    Phase.MASKED_INPUT,
    Phase.CONSISTENCY_CHECK,
    Phase.FINISHED,
]
TRIGGER_OF: dict[Phase, str] = {phase: trigger for (phase, trigger), _ in CLIENT_TRANSITIONS.items()}


def assert_dead(session: PairwiseClient, vector: Vector, data: bytes) -> None:
    """Every call raises `LocalProtocolError`, and nothing brings the session back."""
    ended = session.phase
    assert ended in OVER
    for call in (session.start, session.persisted, lambda: session.contribute(vector), lambda: session.receive(data)):
        with pytest.raises(LocalProtocolError) as caught:
            call()
        assert caught.value.client_id == CLIENT
        assert caught.value.phase == ended.value
        assert session.phase is ended
    assert session._secrets is None
    assert session._after_persist is None


@every_implementation
class TestOrderOfCalls:
    @pytest.mark.parametrize(
        ("phase", "name"),
        [
            (phase, name)
            for phase in CLIENT_PHASES
            for name in ("start", "contribute", "persisted")
            if TRIGGER_OF.get(phase) != name
        ],
    )
    def test_calls_out_of_order_kill_the_session(self, implementation: Implementation, phase: Phase, name: str) -> None:
        game, _ = driven_to(phase, implementation)
        session, vector = game.clients[CLIENT], game.vectors[CLIENT]
        arguments = (vector,) if name == "contribute" else ()
        with pytest.raises(LocalProtocolError) as caught:
            getattr(session, name)(*arguments)
        assert (caught.value.client_id, caught.value.phase) == (CLIENT, phase.value)
        assert_dead(session, vector, b"")
        assert session.phase is (Phase.FINISHED if phase is Phase.FINISHED else Phase.ABORTED)

    @pytest.mark.parametrize("phase", CLIENT_PHASES)
    def test_messages_out_of_order_kill_the_session(self, implementation: Implementation, phase: Phase) -> None:
        """Also messages that would be right in another phase of this very round."""
        kinds: set[type[Message]] = set()
        in_order = None
        number = 0
        while True:
            game, inbox = driven_to(phase, implementation)
            whole = twin_inbox(game, inbox)
            if number == len(whole):
                break
            session, data = game.clients[CLIENT], whole[number]
            number += 1
            kinds.add(kind_of(data))
            if TRIGGER_OF.get(phase) == kind_of(data).__name__:
                in_order = kind_of(data)
                assert session.receive(data)
                continue
            expected = LocalProtocolError if phase in (Phase.READY, Phase.FINISHED) else RemoteProtocolError
            with pytest.raises(expected) as caught:
                session.receive(data)
            assert caught.value.phase == phase.value
            assert_dead(session, game.vectors[CLIENT], data)
        assert len(kinds) >= 1
        assert (in_order is not None) == (phase in (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT,
                                                    Phase.CONSISTENCY_CHECK))  # fmt: skip

    @pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.CONSISTENCY_CHECK])
    def test_nothing_leaves_or_happens_before_the_record_is_durable(
        self, implementation: Implementation, phase: Phase
    ) -> None:
        game, _ = driven_to(phase, implementation, persisted=False)
        session, vector = game.clients[CLIENT], game.vectors[CLIENT]
        number_sent = len(game.kinds_sent(CLIENT))
        assert number_sent == {Phase.ADVERTISE_KEYS: 0, Phase.SHARE_KEYS: 1, Phase.CONSISTENCY_CHECK: 3}[phase]
        (event,) = session.persisted()
        assert isinstance(event, SendMessage)
        assert (
            kind_of(event.data).__name__
            == {
                Phase.ADVERTISE_KEYS: "AdvertiseKeys",
                Phase.SHARE_KEYS: "ShareKeys",
                Phase.CONSISTENCY_CHECK: "ConsistencyCheck",
            }[phase]
        )
        with pytest.raises(LocalProtocolError):
            session.persisted()
        assert_dead(session, vector, b"")

    @pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.CONSISTENCY_CHECK])
    @pytest.mark.parametrize("name", ["start", "contribute", "receive"])
    def test_other_calls_before_the_record_is_durable_kill_the_session(
        self, implementation: Implementation, phase: Phase, name: str
    ) -> None:
        game, inbox = driven_to(phase, implementation, persisted=False)
        session, vector = game.clients[CLIENT], game.vectors[CLIENT]
        arguments = {"start": (), "contribute": (vector,), "receive": (inbox[-1] if inbox else b"",)}
        with pytest.raises(RemoteProtocolError if name == "receive" else LocalProtocolError):
            getattr(session, name)(*arguments[name])
        assert_dead(session, vector, b"")

    @pytest.mark.parametrize(
        "vector",
        [
            np.zeros(4, dtype=np.uint32),
            np.zeros(6, dtype=np.uint32),
            np.zeros((1, 5), dtype=np.uint32),
            np.zeros(5, dtype=np.int64),
            np.zeros(5, dtype=np.float64),
            np.zeros(5, dtype=np.dtype(">u4")),
            np.zeros(0, dtype=np.uint32),
        ],
        ids=lambda v: f"{v.dtype}{list(v.shape)}",
    )
    def test_a_bad_vector_changes_nothing(self, implementation: Implementation, vector: Vector) -> None:
        game, _ = driven_to(Phase.CONTRIBUTE, implementation)
        session = game.clients[CLIENT]
        with pytest.raises(ValueError, match=r"must be uint32\[5\]"):
            session.contribute(vector)
        assert session.phase is Phase.CONTRIBUTE
        assert [type(event) for event in session.contribute(game.vectors[CLIENT])] == [SendMessage]

    @pytest.mark.parametrize("bits", [bits for bits in LANE_BITS if bits != 32])
    def test_an_entry_too_large_changes_nothing(self, implementation: Implementation, bits: int) -> None:
        """The largest entry passes, one more does not, and after it the round still gives the exact sum."""
        config = round_config(4, modulus_bits=bits)
        limit = largest_entry(bits, 4)
        assert limit == 2**bits - 1 or bits not in NATIVE_BITS
        game = Round(config, random_vectors(4, 5, limit=limit), implementation=implementation)
        original, refused = game.follow, []

        def follow(client: ClientId, event: Event) -> None:
            if game.clients[client].phase is Phase.CONTRIBUTE:
                for place in (0, 4):
                    bad = game.vectors[client].copy()
                    bad[place] = limit + 1
                    with pytest.raises(ValueError, match=f"at most {limit} in lanes of {bits} bits, got {limit + 1}"):
                        game.clients[client].contribute(bad)
                    refused.append(client)
            original(client, event)

        game.follow = follow  # type: ignore[method-assign]
        game.run()
        check_master_property(game)
        assert Counter(refused) == dict.fromkeys(game.clients, 2)

    def test_the_vector_of_the_caller_is_left_alone(self, implementation: Implementation) -> None:
        game = Round(round_config(3), random_vectors(3, 5), implementation=implementation)
        before = {client: vector.copy() for client, vector in game.vectors.items()}
        for vector in game.vectors.values():
            vector.setflags(write=False)
        game.run()
        assert all((game.vectors[client] == before[client]).all() for client in before)

    @pytest.mark.parametrize("phase", [*[phase for phase, _ in SERVER_TRANSITIONS], Phase.FINISHED])
    def test_the_server_may_be_closed_early_and_is_dead_after_its_end(
        self, implementation: Implementation, phase: Phase
    ) -> None:
        game = Round(round_config(4), random_vectors(4, 5), implementation=implementation)
        game.advance(phase)
        server = game.server
        if phase is not Phase.FINISHED:
            server.close_phase()  # what arrived already is enough, or it is not
            while server.phase not in OVER:
                with pytest.raises(TooFewClientsError):
                    server.close_phase()
                assert server.phase is Phase.ABORTED
        ended = server.phase
        assert ended in OVER
        assert server.waiting_for == frozenset()
        for call in (server.close_phase, lambda: server.receive(ClientId(1), b"")):
            with pytest.raises(LocalProtocolError) as caught:
                call()
            assert caught.value.phase == ended.value
            assert server.phase is ended

    def test_the_server_says_for_whom_it_waits(self, implementation: Implementation) -> None:
        network = FaultyNetwork(silent(ClientId(4), 2))
        game = Round(
            round_config(4, threshold=3),
            random_vectors(4, 5),
            network=network,
            late=network.late,
            implementation=implementation,
        )
        waited = []
        game.start()
        while game.result is None:
            waited.append(set(game.server.waiting_for))
            game.step()
        assert waited == [{1, 2, 3, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}, {1, 2, 3}, {1, 2, 3}]
        assert game.server.waiting_for == frozenset()

    def test_a_bad_message_may_be_followed_by_a_good_one(self, implementation: Implementation) -> None:
        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            return [data[:-1], b"", data, data] if sender is not None else [data]

        game = Round(round_config(3), random_vectors(3, 5), network=network, implementation=implementation)
        game.run()
        check_master_property(game)
        assert len(game.rejected) == 3 * 5 * 3
        assert all("client" in event.reason or event.reason for event in game.rejected)


def twin_inbox(game: Round, inbox: list[bytes]) -> list[bytes]:
    """The messages of a whole round: those that this client got, then those of a later phase that others got."""
    later = {kind_of(data): data for client, data in game.received if client != CLIENT}
    got = {kind_of(data) for data in inbox}
    return [*inbox, *(data for kind, data in later.items() if kind not in got)]


class TestTransitionTables:
    @every_implementation
    def test_an_honest_round_walks_through_every_line(self, implementation: Implementation) -> None:
        """What sessions do is what the tables say: no line is dead, and no step is missing from them."""
        game = Round(round_config(4), random_vectors(4, 5), implementation=implementation)
        seen: set[tuple[tuple[Phase, str], Phase]] = set()
        seen_server: set[tuple[tuple[Phase, str], Phase]] = set()
        session = game.clients[CLIENT]

        def watch(name: str, action: Callable[[], list[Event]]) -> list[Event]:
            before = session.phase
            events = action()
            if session.phase is not before:
                seen.add(((before, name), session.phase))
            return events

        original = game.call

        def call(client: ClientId, action: Callable[[], list[Event]]) -> None:
            if client != CLIENT:
                return original(client, action)
            before = session.phase
            name = {Phase.READY: "start", Phase.CONTRIBUTE: "contribute"}.get(before)
            name = name or (kind_of(game.received[-1][1]).__name__ if game.received else "persisted")
            return original(client, lambda: watch(name, action))

        game.call = call  # type: ignore[method-assign]
        game.start()
        while game.result is None:
            before = game.server.phase
            game.step()
            seen_server.add(((before, "close_phase"), game.server.phase))
        assert seen == set(CLIENT_TRANSITIONS.items())
        assert seen_server == set(SERVER_TRANSITIONS.items())


# What is left when a round is over.


def reachable(roots: Iterable[object], skip: Iterable[object]) -> Iterable[object]:
    """Everything that can be reached from the roots through attributes, containers, closures and slots."""
    seen = {id(thing) for thing in skip}
    front = list(roots)
    keep = []
    while front:
        thing = front.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType | BuiltinFunctionType):
            continue
        seen.add(id(thing))
        keep.append(thing)
        if isinstance(thing, FunctionType):
            front += [cell.cell_contents for cell in thing.__closure__ or ()]
        else:
            front += gc.get_referents(thing)
    return keep


def secrets_in(roots: Iterable[object], secrets: Iterable[bytes], skip: Iterable[object]) -> list[object]:
    found: list[object] = []
    for thing in reachable(roots, skip):
        if isinstance(thing, AgreementKey):
            found.append(thing)
        elif isinstance(thing, bytes | bytearray | memoryview | np.ndarray):
            data = bytes(thing)
            found += [data for secret in secrets if secret in data]
    return found


class Watched:
    """A source of randomness that remembers what it gave."""

    def __init__(self) -> None:
        self.drawn: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        self.drawn.append(os.urandom(size))
        return self.drawn[-1]


def watched_round(config: RoundConfig, network: FaultyNetwork) -> tuple[Round, dict[ClientId, Watched]]:
    rand = {ClientId(i): Watched() for i in range(1, config.cohort + 1)}
    vectors = random_vectors(config.cohort, config.length)
    return Round(config, vectors, network=network, late=network.late, rand=rand), rand


def own_and_held_secrets(game: Round, client: ClientId, rand: Watched) -> list[bytes]:
    """Private keys and self seed (the 32-byte draws, without the public fresh bytes), and the shares it held."""
    public = b"".join(data for _, _, data in game.sent)
    own = [draw for draw in rand.drawn if len(draw) == 32 and draw not in public]
    others = [pair for peer, pair in game.held[client].items()]
    return [*own, *others]


class TestErasure:
    def test_the_walk_finds_secrets_while_they_live(self) -> None:
        game, rand = watched_round(round_config(3), FaultyNetwork({}))
        game.advance(Phase.CONSISTENCY_CHECK)
        for client, session in game.clients.items():
            secrets = own_and_held_secrets(game, client, rand[client])
            assert len(secrets) == 3 + 3
            found = {bytes(one) for one in secrets_in([session], secrets, [rand[client]]) if isinstance(one, bytes)}
            assert found == set(secrets[3:])  # its own are gone with its vector

    def test_the_walk_finds_own_secrets_until_the_vector_leaves(self) -> None:
        game, rand = watched_round(round_config(3), FaultyNetwork({}))
        game.advance(Phase.SHARE_KEYS)
        for client, session in game.clients.items():
            secrets = own_and_held_secrets(game, client, rand[client])
            found = secrets_in([session], secrets, [rand[client]])
            assert {bytes(one) for one in found if isinstance(one, bytes)} >= set(secrets[:3])
            assert sum(isinstance(one, AgreementKey) for one in found) == 2

    def test_nothing_is_left_after_a_finished_round(self) -> None:
        game, rand = watched_round(round_config(4), FaultyNetwork({}))
        game.run()
        for client, session in game.clients.items():
            assert session.phase is Phase.FINISHED
            assert secrets_in([session], own_and_held_secrets(game, client, rand[client]), [rand[client]]) == []
        assert game.server._shares == {}
        assert game.server._words.nbytes == 0
        assert not game.server._sealed

    @settings(max_examples=60)
    @given(number=st.integers(0, 3), bit=st.integers(0, 2**13), client=st.integers(1, 4).map(ClientId))
    def test_nothing_is_left_after_an_abort_not_even_in_the_error(
        self, number: int, bit: int, client: ClientId
    ) -> None:
        """Drivers log errors and keep them: a traceback must not keep a round's secrets alive."""
        network = FaultyNetwork({(client, False, number): Fault(flipped_bit=bit)})
        game, rand = watched_round(round_config(4, threshold=3), network)
        game.play()
        assume(client in game.errors)
        session, error = game.clients[client], game.errors[client]
        secrets = own_and_held_secrets(game, client, rand[client])
        assert len(secrets) >= 3
        assert secrets_in([session], secrets, [rand[client]]) == []
        frames, traceback = [], error.__traceback__
        while traceback is not None:
            file = traceback.tb_frame.f_code.co_filename
            if "/protocols/" in file and "/tests/" not in file:
                frames.append(traceback.tb_frame)
            traceback = traceback.tb_next
        roots = [local for frame in frames for local in frame.f_locals.values()]
        assert roots, "the session's own frames are in the traceback"
        assert secrets_in(roots, secrets, [rand[client]]) == []

    @pytest.mark.parametrize("phase", CLIENT_PHASES)
    def test_nothing_is_left_after_a_call_out_of_order(self, phase: Phase) -> None:
        game, _ = driven_to(phase, Implementation())
        session = game.clients[CLIENT]
        with pytest.raises(LocalProtocolError):
            session.persisted()
        assert session._secrets is None
        assert session._after_persist is None

    def test_a_failing_source_of_randomness_ends_the_round(self) -> None:
        """Not a protocol error, but no reason to keep a half-made round alive."""

        class Broken(Watched):
            def __call__(self, size: int) -> bytes:
                if len(self.drawn) >= 4:
                    raise OSError("no randomness")
                return super().__call__(size)

        rand = Broken()
        game = Round(round_config(3), random_vectors(3, 5), rand={CLIENT: rand})
        game.start()
        with pytest.raises(OSError, match="no randomness"):
            game.step()
        session = game.clients[CLIENT]
        assert secrets_in([session], own_and_held_secrets(game, CLIENT, rand), [rand]) == []
        assert_dead(session, game.vectors[CLIENT], b"")

    def test_sessions_are_neither_printed_nor_pickled(self) -> None:
        game = Round(round_config(3), random_vectors(3, 5))
        game.advance(Phase.MASKED_INPUT)
        for session in (*game.clients.values(), game.server):
            assert repr(session) == f"<{type(session).__name__}>"
            with pytest.raises(TypeError, match="secrets"):
                session.__reduce__()

    def test_errors_and_events_carry_no_secrets(self) -> None:
        network = FaultyNetwork({(ClientId(c), False, c - 1): Fault(flipped_bit=500) for c in range(1, 5)})
        game, rand = watched_round(round_config(5, threshold=3), network)
        game.play()
        assert game.errors
        for error in game.errors.values():
            text = str(error) + repr(error.args)
            secrets = [one for source in rand.values() for one in source.drawn]
            assert all(secret.hex() not in text and repr(secret)[2:-1] not in text for secret in secrets)
            assert isinstance(error, ProtocolError)
            assert len(text) < 500
