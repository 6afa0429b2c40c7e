"""A server that cuts the ring of SecAgg+: it knows every neighbour, and chooses who is dead.

Pair masks exist between neighbours only. If two runs of k/2 places fall out, by being declared dead or by colluding,
no pair mask joins the two arcs between them any more, and each arc's sum could be unmasked alone.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

from protocols import ClientId, Phase, ProtocolError
from protocols.primitives import keys, packing, prg, shamir
from protocols.wire import ConsistencyCheck, MaskedInput, Unmask
from tests.rounds import Round, Vector, kind_of, random_vectors, round_config

from .hostile import silencing, together


class CuttingServer:
    """Declares all honest clients of two runs dead, and keeps every message."""

    def __init__(self, n: int, degree: int, corrupt_holders: int, colluders_in_a_run: int, arc: int) -> None:
        config = round_config(
            n,
            degree=degree,
            corrupt_holders=corrupt_holders,
            min_survivors=n - degree + 2 * colluders_in_a_run,
            suite=1,
        )
        self.game = Round(config, random_vectors(n, 5))
        self.vectors: dict[ClientId, bytes] = {}
        self.game.advance(Phase.SHARE_KEYS)
        ring = self.game.server._rules.graph._ring
        run = degree // 2
        first, second = ring[:run], ring[run + arc : 2 * run + arc]
        self.arc = ring[run : run + arc]
        self.other_arc = ring[2 * run + arc :]
        self.colluders = frozenset([*first[:colluders_in_a_run], *second[:colluders_in_a_run]])
        self.dead = frozenset([*first, *second]) - self.colluders

        def listen(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender is not None and kind_of(data) is MaskedInput:
                self.vectors[sender] = data
            return [data]

        dead = [silencing(client, MaskedInput, ConsistencyCheck, Unmask) for client in self.dead]
        self.game.network = together(listen, *dead)
        self.mask_keys: dict[ClientId, keys.AgreementKey] = {}

    def play(self) -> None:
        """Goes on whatever the honest server code would say: it is the attacker's own."""
        game = self.game
        game.advance(Phase.SHARE_KEYS)
        for client in self.colluders:
            secrets = game.clients[client]._secrets
            assert secrets is not None
            self.mask_keys[client] = keys.AgreementKey(secrets.mask_key.secret, game.server._rules.suite)
        try:
            game.advance(Phase.UNMASK)
        except ProtocolError:
            game.server._survivors = tuple(sorted(set(game.clients) - self.dead))

    def secret(self, owner: ClientId, name: str) -> bytes | None:
        """One secret, from shares that honest clients sent and those that colluders hold."""
        game = self.game
        holders = game.server._rules.graph.holders(owner)
        given = {holder for holder, whose, what in game.shares_sent() if (whose, what) == (owner, name)}
        given |= self.colluders & set(holders)
        slots = [slot for slot, holder in enumerate(holders) if holder in given][: game.config.threshold]
        if len(slots) < game.config.threshold:
            return None
        part = slice(0, 36) if name == "mask key" else slice(36, 72)
        shares = [shamir.decode_shares(game.held[holders[slot]][owner][part], 1) for slot in slots]
        return shamir.reconstruct(slots, np.stack(shares))[0]

    def sum_over(self, group: Collection[ClientId]) -> Vector | None:
        """The plain sum over a group, if everything that masks it is known."""
        game, rules = self.game, self.game.server._rules
        total = np.zeros(game.config.length, dtype=np.uint32)
        add: list[bytes] = []
        subtract: list[bytes] = []
        for client in group:
            seed = self.secret(client, "self seed")
            if seed is None:
                return None
            total += np.frombuffer(self.vectors[client][-64 - total.nbytes : -64], dtype="<u4")
            subtract.append(rules.self_mask_seed(client, seed))
            for peer in rules.graph.holders(client):
                if peer == client or peer in group:
                    continue
                if peer not in self.mask_keys:
                    private = self.secret(peer, "mask key")
                    if private is None:
                        return None
                    self.mask_keys[peer] = keys.AgreementKey(private, rules.suite)
                agreed = self.mask_keys[peer].agree(rules.bundles[client].mask_key)
                halves = {one: rules.pair_half(b"", one, one) for one in (peer, client)}  # empty in this suite
                pair = rules.pair_mask_seed(agreed, halves)
                (subtract if peer > client else add).append(pair)
        prg.apply_masks(total, add=add, subtract=subtract)
        return packing.unpack(total, game.config.length, 32)


def test_the_ring_follows_from_the_keys() -> None:
    """Nobody chooses it: with other fresh bytes the same clients form another ring; all sides see the same one."""
    config = round_config(20, degree=4)
    first = Round(config, random_vectors(20, 5))
    rings = []
    for game in (first, Round(config, random_vectors(20, 5), identities=first.identities)):
        game.advance(Phase.SHARE_KEYS)
        graph = game.server._rules.graph
        rings.append(graph._ring)
        for client, session in game.clients.items():
            assert session._rules.graph.holders(client) == graph.holders(client)
    assert rings[0] != rings[1]


@pytest.mark.parametrize(("n", "degree", "colluders"), [(12, 4, 0), (20, 6, 0), (20, 6, 1), (34, 10, 1), (34, 10, 2)])
@pytest.mark.parametrize("arc", [3, 4, 5])
def test_an_arc_cannot_be_unmasked_alone(n: int, degree: int, colluders: int, arc: int) -> None:
    """No sum over fewer clients than the floor, whoever is declared dead, with as many colluders as are assumed."""
    server = CuttingServer(n, degree, 2 * colluders + 1, colluders, max(arc, degree // 2))
    server.play()
    for group in (server.arc, server.other_arc):
        assert 0 < len(group) < server.game.config.min_survivors
        assert server.sum_over(group) is None


@pytest.mark.parametrize(("n", "degree", "colluders"), [(12, 4, 1), (20, 6, 1), (34, 10, 2)])
def test_one_colluder_more_in_each_run_would_cut_the_ring(n: int, degree: int, colluders: int) -> None:
    """The threshold is tight, and this is what it prevents: missed by one, the attack works."""
    server = CuttingServer(n, degree, 2 * colluders - 1, colluders, degree // 2 + 1)
    server.play()
    stolen = server.sum_over(server.arc)
    assert stolen is not None
    assert len(server.arc) < server.game.config.min_survivors
    assert (stolen == server.game.expected(frozenset(server.arc))).all()


def test_an_agreed_sum_is_what_the_attacker_can_compute() -> None:
    """The computation of this module finds the sum that the protocol does release."""
    server = CuttingServer(12, 4, 1, 0, 4)
    game = server.game
    heard: dict[ClientId, bytes] = {}

    def listen(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        if sender is not None and kind_of(data) is MaskedInput:
            heard[sender] = data
        return [data]

    game.network = listen
    server.vectors = heard
    game.advance(Phase.UNMASK)
    everybody = frozenset(game.clients)
    total = server.sum_over(everybody)
    assert total is not None
    assert (total == game.expected(everybody)).all()
    assert server.sum_over(everybody - {ClientId(1)}) is None
