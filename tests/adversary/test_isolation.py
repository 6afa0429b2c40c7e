"""A server that would have one client alone: by its neighbours, by the graph, or by people whom it invented.

On a ring a vector is masked with few others. Whoever has a victim's self seed and the mask keys of all its neighbours
has its vector.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from protocols import ClientId, Phase, RemoteProtocolError, TooFewClientsError, required_threshold
from protocols.graph import NeighbourGraph, choose_degree
from protocols.wire import KeyBundles
from tests.rounds import Round, random_vectors, round_config

from .hostile import ForkingServer, assert_refused, ids, rewriting


class IsolatingServer(ForkingServer):
    """Tells some clients that all neighbours of client 1 are dead, and the others that everybody lives."""

    def __init__(self, n: int, degree: int, corrupt_holders: int, colluders: int = 0) -> None:
        config = round_config(n, degree=degree, corrupt_holders=corrupt_holders, min_survivors=n - degree)
        super().__init__(Round(config, random_vectors(n, 5)))
        self.victim = ClientId(1)
        graph = self.game.server._rules.graph
        self.holders = {client: frozenset(graph.holders(client)) for client in self.game.clients}
        self.neighbours = self.holders[self.victim] - {self.victim}
        self.others = frozenset(self.game.clients) - self.holders[self.victim]
        near = {other for peer in self.neighbours for other in self.holders[peer]} & self.others
        self.corrupt = frozenset(sorted(near)[:colluders])

    def isolate(self, told: Collection[ClientId]) -> None:
        """`told` are those to whom the neighbours are dead."""
        everybody = frozenset(self.game.clients)
        small = everybody - self.neighbours
        self.fork({client: small if client in told else everybody for client in sorted(everybody - self.corrupt)})

    def assert_victim_is_safe(self) -> None:
        """No neighbour's mask key can be rebuilt beside the victim's self seed, nor both secrets of anybody."""
        threshold = self.game.config.threshold
        for client in self.game.clients:
            assert min(len(holders) for holders in self.shares_of(client).values()) < threshold
        if len(self.shares_of(self.victim)["self seed"]) >= threshold:
            assert all(len(self.shares_of(peer)["mask key"]) < threshold for peer in self.neighbours)


SHAPES = [(14, 4, 1, 0), (16, 4, 2, 1), (24, 6, 1, 0), (36, 10, 3, 1)]


class TestVictim:
    @pytest.mark.parametrize(("n", "degree", "corrupt", "colluders"), SHAPES)
    def test_the_neighbours_are_dead_to_all_others(self, n: int, degree: int, corrupt: int, colluders: int) -> None:
        """The victim may answer, and those far away may; those at the edge, whose shares it would take, refuse."""
        server = IsolatingServer(n, degree, corrupt, colluders)
        server.isolate(server.others)
        server.assert_victim_is_safe()
        threshold = server.game.config.threshold
        edge = {
            client for client in server.others - server.corrupt
            if len(server.holders[client] - server.neighbours) < threshold
        }  # fmt: skip
        assert edge
        assert_refused(server.game, TooFewClientsError, by=edge, match="the threshold is")
        for peer in server.neighbours:
            assert len(server.shares_of(peer)["mask key"]) < threshold
        # Far from the victim the small view has its quorum: two views are answered, each about other secrets.
        assert len(set(server.game.agreed.values())) == 2

    @pytest.mark.parametrize(("n", "degree", "corrupt", "colluders"), SHAPES[:2])
    def test_any_part_of_the_others_is_told_so(self, n: int, degree: int, corrupt: int, colluders: int) -> None:
        """Whoever is told: the run on one side, every second one, all of them, and the victim too."""
        sample = IsolatingServer(n, degree, corrupt, colluders)
        count = len(sample.others)
        choices = [range(count // 2), range(count // 2, count), range(0, count, 2), range(1, count, 2), range(count)]
        for chosen in choices:
            for with_victim in (False, True):
                server = IsolatingServer(n, degree, corrupt, colluders)
                ring = [c for c in server.game.server._rules.graph._ring if c in server.others]
                told = {ring[i] for i in chosen} | ({server.victim} if with_victim else set())
                server.isolate(told)
                server.assert_victim_is_safe()
                if with_victim:
                    assert_refused(server.game, TooFewClientsError, by=[server.victim], match="1 holders")


class TestGraph:
    def test_a_graph_of_the_server_opens_nothing(self) -> None:
        """It routes shares along a ring of its own; on the ring that clients compute, nothing opens."""
        game = Round(round_config(20, degree=4), random_vectors(20, 5))

        def change(_: ClientId, message: KeyBundles) -> KeyBundles:
            rules = game.server._rules
            rules.graph = NeighbourGraph(tuple(rules.bundles), degree=4, seed=bytes(32))
            return message

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert game.result is None
        assert_refused(game, RemoteProtocolError, match="does not open")

    def test_every_bundle_moves_the_ring(self) -> None:
        """All that a server can try is another set of bundles, and any such set is another draw of the whole ring."""
        game = Round(round_config(20, degree=4, min_survivors=18), random_vectors(20, 5))
        game.advance(Phase.SHARE_KEYS)
        rules = game.server._rules
        rings = {tuple(rules.graph._ring)}
        for left_out in game.clients:
            other = Round(game.config, random_vectors(20, 5), identities=game.identities).server._rules
            other.bind([bundle for client, bundle in rules.bundles.items() if client != left_out])
            rings.add(tuple(other.graph._ring))
        assert len(rings) == 21
        neighbours = {frozenset(ring[(ring.index(ClientId(1)) + step) % len(ring)] for step in (-2, -1, 1, 2))
                      for ring in rings if ClientId(1) in ring}  # fmt: skip
        assert len(neighbours) > 10

    @pytest.mark.parametrize("n", [200, 1000])
    def test_nine_sybils_in_ten_leave_no_sparse_graph(self, n: int) -> None:
        """If that many colluders are declared, a client masks with more than half of all, or with everybody."""
        few, many = (choose_degree(clients=n, max_colluders=a, max_dropouts=0) for a in (n // 100, n * 9 // 10))
        assert few.degree < n // 20
        assert many.degree > n // 2
        assert 2 * required_threshold(holders=(many.degree + 1), corrupt_holders=many.corrupt_holders) > (
            (many.degree + 1) + many.corrupt_holders
        )

    def test_ids_are_not_the_order(self) -> None:
        """Neighbours by id would be chosen by whoever gives out the ids."""
        game = Round(round_config(20, degree=4), random_vectors(20, 5))
        game.advance(Phase.SHARE_KEYS)
        by_id = {client: set(ids(*((client + step - 1) % 20 + 1 for step in range(-2, 3)))) for client in game.clients}
        graph = game.server._rules.graph
        assert any(set(graph.holders(client)) != by_id[client] for client in game.clients)
