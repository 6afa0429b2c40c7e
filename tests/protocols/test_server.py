"""What the server needs: memory, workers, and one attempt."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from protocols import (
    AggregateReady,
    ClientId,
    ClientPolicy,
    ContributionNeeded,
    Event,
    History,
    Identity,
    LocalProtocolError,
    PairwiseClient,
    PairwiseServer,
    PersistBeforeSend,
    Phase,
    Roster,
    SendMessage,
)
from protocols.pairwise import server
from tests.rounds import OVER, Round, Vector, random_vectors, round_config


@pytest.mark.parametrize("bits", [32, 16, 21])
def test_workers_do_not_show_in_the_result(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: threads, or segments in another order; with dropouts, so that both signs occur."""
    monkeypatch.setattr(server, "SEGMENT_BYTES", 1024)
    length = 3_000
    vectors = random_vectors(5, length, bits, limit=2**bits // 5)
    segments: list[int] = []

    def backwards(function: Callable[[object], object], items: Iterable[object]) -> list[object]:
        todo = list(items)
        segments.append(len(todo))
        return [function(item) for item in reversed(todo)]

    results = []
    with ThreadPoolExecutor(3) as pool:
        for workers in (map, pool.map, backwards):
            config = round_config(5, threshold=3, length=length, modulus_bits=bits)
            game = Round(config, vectors, server_map=workers)
            game.network = lambda sender, _, data, game=game: (  # type: ignore[misc]
                [] if sender in (2, 4) and game.server.phase is Phase.MASKED_INPUT else [data]
            )
            result = game.run()
            assert result.survivors == {1, 3, 5}
            assert (result.vector == game.expected(result.survivors)).all()
            results.append(result.vector)
    assert segments[0] >= 6
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_workers_that_fail_end_the_round(fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some masks are off and some are not: unmasking again would give a wrong sum, so there is no again."""
    monkeypatch.setattr(server, "SEGMENT_BYTES", 1024)
    calls = 0

    def broken(function: Callable[[object], object], items: Iterable[object]) -> Iterable[object]:
        nonlocal calls
        for item in items:
            if calls == fails_at:
                calls += 1
                raise OSError("a worker is gone")
            calls += 1
            yield function(item)

    game = Round(round_config(3, length=2_000), random_vectors(3, 2_000), server_map=broken)
    game.advance(Phase.UNMASK)
    with pytest.raises(OSError, match="a worker is gone"):
        game.server.close_phase()
    assert game.server.phase is Phase.ABORTED
    assert game.server.waiting_for == frozenset()
    with pytest.raises(LocalProtocolError):
        game.server.close_phase()


@pytest.mark.parametrize(("suite", "bytes_per_pair"), [(1, 400), (2, 3000)])
def test_memory(suite: int, bytes_per_pair: int) -> None:
    """O(d + n k): the peak inside the server stays under 12 d and some bytes for each pair, and it keeps no vector.

    In the hybrid suite what is sealed takes 2344 bytes for each pair; it is there once, received or relayed.
    """
    n, length = 60, 200_000
    config = round_config(n, threshold=41, corrupt_holders=20, length=length, suite=suite)
    identities = {ClientId(i): Identity.generate() for i in range(1, n + 1)}
    roster = Roster({client: identity.public for client, identity in identities.items()})
    policy = ClientPolicy(min_survivors=41, corrupt_holders=20, suite=suite)
    clients = {
        client: PairwiseClient(config, client, identity=identity, roster=roster, policy=policy, history=History())
        for client, identity in identities.items()
    }
    vector = np.arange(length, dtype=np.uint32) * np.uint32(2**14)
    lost = {ClientId(i) for i in range(55, 61)}
    inbox: dict[ClientId, Callable[[], list[Event]]] = {c: session.start for c, session in clients.items()}
    result = None
    owned = peak = 0
    tracemalloc.start()
    try:

        def inside(call: Callable[[], list[Event]]) -> list[Event]:
            """Runs a call of the server: counts what it allocates and keeps, but not its input."""
            nonlocal owned, peak
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            events = call()
            after, highest = tracemalloc.get_traced_memory()
            peak = max(peak, owned + highest - before)
            owned += after - before
            return events

        server_session = PairwiseServer(config, roster=roster)
        while server_session.phase not in OVER:
            for client, action in inbox.items():
                for data in outgoing(clients[client], action, vector):
                    if client in lost and server_session.phase is Phase.MASKED_INPUT:
                        continue
                    references = sys.getrefcount(data)
                    assert inside(partial(server_session.receive, client, data)) == []
                    if server_session.phase is Phase.MASKED_INPUT:
                        assert sys.getrefcount(data) == references
            inbox = {}
            for event in inside(server_session.close_phase):
                if isinstance(event, SendMessage) and event.to is not None:
                    inbox[event.to] = partial(clients[event.to].receive, event.data)
                elif isinstance(event, AggregateReady):
                    result = event
    finally:
        tracemalloc.stop()
    assert result is not None
    assert result.survivors == clients.keys() - lost
    assert (result.vector == vector.astype(np.uint64) * 54 % 2**32).all()
    assert peak < 12 * length + bytes_per_pair * n * n, f"{peak / length:.1f} bytes per coordinate"
    assert peak > 4 * length, "the accumulator alone takes this much: the measurement saw nothing"


def outgoing(session: PairwiseClient, action: Callable[[], list[Event]], vector: Vector) -> list[bytes]:
    """Follows a client's events to the messages that it sends."""
    sent = []
    todo = list(action())
    while todo:
        match todo.pop(0):
            case PersistBeforeSend():
                todo += session.persisted()
            case ContributionNeeded():
                todo += session.contribute(vector)
            case SendMessage(data=data):
                sent.append(data)
    return sent
