"""Graphs, and the degree that is enough: exact fractions instead of logarithms."""

from fractions import Fraction
from hashlib import sha256
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import ClientId
from protocols.graph import COMPLETE_UP_TO, CORRECTNESS, SECURITY, Degree, NeighbourGraph, choose_degree

rings = st.integers(4, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 10**6), min_size=n, max_size=n, unique=True).map(sorted),
        st.integers(1, (n - 2) // 2).map(lambda half: 2 * half),
        st.binary(min_size=32, max_size=32),
    )
)


class TestNeighbourGraph:
    @given(rings)
    def test_a_ring_is_regular_symmetric_and_connected(self, ring: tuple[list[ClientId], int, bytes]) -> None:
        members, degree, seed = ring
        graph = NeighbourGraph(members, degree=degree, seed=seed)
        holders = {client: graph.holders(client) for client in members}
        for client in members:
            assert client in holders[client]
            assert list(holders[client]) == sorted(set(holders[client]))
            assert len(holders[client]) == degree + 1
            assert all(client in holders[peer] for peer in holders[client])
        # Connected, which regularity alone is not.
        reached, front = {members[0]}, [members[0]]
        while front:
            front = [peer for client in front for peer in holders[client] if peer not in reached]
            reached |= set(front)
        assert reached == set(members)

    @given(st.integers(2, 20), st.integers(0, 5), st.binary(min_size=32, max_size=32))
    def test_complete_from_n_minus_one_neighbours_on(self, n: int, more: int, seed: bytes) -> None:
        members = [ClientId(3 * i + 1) for i in range(n)]
        graph = NeighbourGraph(members, degree=n - 1 + more, seed=seed)
        assert all(graph.holders(client) == tuple(members) for client in members)

    @given(rings)
    def test_the_seed_decides(self, ring: tuple[list[ClientId], int, bytes]) -> None:
        members, degree, seed = ring
        same = NeighbourGraph(tuple(members), degree=degree, seed=seed)
        again = NeighbourGraph(members, degree=degree, seed=seed)
        assert all(same.holders(client) == again.holders(client) for client in members)

    def test_every_pair_is_about_equally_often_adjacent(self) -> None:
        """Nobody's place is predictable from its id: 400 seeds, 12 clients, k = 4."""
        members = [ClientId(i) for i in range(1, 13)]
        seeds = [sha256(bytes((i // 256, i % 256))).digest() for i in range(400)]
        graphs = [NeighbourGraph(members, degree=4, seed=seed) for seed in seeds]
        for a in members:
            for b in members[a:]:
                times = sum(b in graph.holders(a) for graph in graphs)
                # Binomial(400, 4/11), standard deviation 9.6: 66 pairs within 4.5 deviations.
                assert abs(times - 400 * 4 / 11) < 4.5 * 9.7


def tail(population: int, marked: int, draws: int, least: int) -> Fraction:
    """P[X >= least] for X hypergeometric."""
    ways = sum(comb(marked, x) * comb(population - marked, draws - x) for x in range(max(least, 0), draws + 1))
    return Fraction(ways, comb(population, draws))


def corrupt_bound(n: int, k: int, colluders: int, dropouts: int) -> int:
    """c: what no neighbourhood exceeds, nor two runs of k/2 both, with D honest clients left out."""
    rare, others = Fraction(1, 2**SECURITY), n - dropouts - 1
    x = next(x for x in range(k + 1) if n * tail(others, colluders, k, x + 1) <= rare)
    h = next(h for h in range(k // 2 + 1) if (n * tail(others, colluders, k // 2, h + 1)) ** 2 <= rare)
    return max(x, 2 * h + 1)


def enough(n: int, k: int, colluders: int, dropouts: int) -> bool:
    """The conditions of the module, exactly."""
    threshold = max(3, (k + 1 + corrupt_bound(n, k, colluders, dropouts)) // 2 + 1)
    return threshold <= k and n * tail(n - 1, dropouts, k, k - threshold + 1) <= Fraction(1, 2**CORRECTNESS)


class TestChooseDegree:
    @pytest.mark.parametrize(
        ("n", "colluders", "dropouts"),
        [(101, 1, 2), (150, 5, 5), (200, 0, 0), (200, 20, 10), (300, 15, 15), (300, 30, 30), (1000, 50, 50)],
    )
    def test_the_smallest_that_meets_all_conditions(self, n: int, colluders: int, dropouts: int) -> None:
        chosen = choose_degree(clients=n, max_colluders=colluders, max_dropouts=dropouts)
        assert chosen.degree % 2 == 0
        assert chosen.corrupt_holders == corrupt_bound(n, chosen.degree, colluders, dropouts)
        assert enough(n, chosen.degree, colluders, dropouts)
        for smaller in range(max(2, chosen.degree - 10), chosen.degree, 2):
            assert not enough(n, smaller, colluders, dropouts)

    @pytest.mark.parametrize("n", [2, 3, 50, COMPLETE_UP_TO])
    def test_small_cohorts_are_complete(self, n: int) -> None:
        assert choose_degree(clients=n, max_colluders=1, max_dropouts=0) == Degree(degree=n - 1, corrupt_holders=1)

    @pytest.mark.parametrize(("n", "colluders", "dropouts"), [(110, 50, 50), (200, 10, 150), (400, 250, 100)])
    def test_complete_where_no_ring_is_enough(self, n: int, colluders: int, dropouts: int) -> None:
        chosen = choose_degree(clients=n, max_colluders=colluders, max_dropouts=dropouts)
        assert chosen == Degree(degree=n - 1, corrupt_holders=colluders)

    @settings(max_examples=15)
    @given(n=st.integers(101, 400), colluders=st.integers(0, 20), dropouts=st.integers(0, 20))
    def test_more_enemies_never_need_fewer_neighbours(self, n: int, colluders: int, dropouts: int) -> None:
        chosen = choose_degree(clients=n, max_colluders=colluders, max_dropouts=dropouts)
        worse = choose_degree(clients=n, max_colluders=colluders + 10, max_dropouts=dropouts + 10)
        assert chosen.degree <= worse.degree <= n - 1
