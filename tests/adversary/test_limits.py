"""Where masking ends: attacks on what the sum says. Tests show how far they get, and what a client refuses anyway.

Each of these succeeds against any secure aggregation without noise. They stand here so that nobody takes the protocol
for more than it is.
"""

from __future__ import annotations

import numpy as np
import pytest

import secagg
from protocols import ClientId, ClientPolicy, Identity, PolicyRefusal
from protocols.wire import MaskedInput
from tests.rounds import Round, Vector, kind_of, random_vectors, round_config

from .hostile import assert_refused, ids, silencing, together

CLIENTS, LENGTH, VICTIM = 8, 400, 3


def planted(privacy: secagg.NoPrivacy | secagg.ClientLevel) -> tuple[np.ndarray, secagg.AggregationResult]:
    """A model that lets one client's update through and silences all others: its update, and the released round."""
    config = secagg.AggregationConfig.cross_silo(
        like={"w": np.zeros(LENGTH)}, clients=CLIENTS, max_dropouts=1, max_colluders=1, privacy=privacy
    )
    imprinted = np.random.default_rng(7).normal(size=LENGTH)
    imprinted /= np.linalg.norm(imprinted)
    updates = {i: {"w": imprinted if i == VICTIM else np.zeros(LENGTH)} for i in range(1, CLIENTS + 1)}
    return imprinted, secagg.simulate(updates, config)


def likeness(result: secagg.AggregationResult, update: np.ndarray) -> float:
    """The cosine between what was released and what the attacker looks for."""
    mean = result.mean["w"]
    return float(mean @ update / (np.linalg.norm(mean) * np.linalg.norm(update)))


class TestPlantedModel:
    """The model is the same for all, so binding it stops nothing: all gradients but one's are zero."""

    def test_the_exact_sum_is_the_victims_update(self) -> None:
        update, result = planted(secagg.NoPrivacy(clip_norm=1.0))
        assert likeness(result, update) > 0.9999
        np.testing.assert_allclose(result.mean["w"] * CLIENTS, update, atol=1e-5)
        assert "infinite" in result.statement()

    def test_noise_covers_it(self) -> None:
        """At epsilon 2 the released vector points hardly more towards the victim's update than a random one does."""
        update, result = planted(secagg.ClientLevel(clip_norm=1.0, epsilon=2.0, delta=1e-6, rounds=1))
        assert abs(likeness(result, update)) < 0.35  # a random direction: 0.05 in the mean
        assert result.epsilon <= 2.0
        off = result.mean["w"] * CLIENTS - update
        assert np.std(off) > 5 * np.std(update)


class TestSybils:
    def test_all_others_together_see_the_last_one(self) -> None:
        """A real round of one honest client and three who tell the server what they sent."""
        game = Round(round_config(4, threshold=3), random_vectors(4, 5))
        result = game.run()
        others = sum((game.vectors[client] for client in ids(2, 3, 4)), np.zeros(5, dtype=np.uint32))
        assert (result.vector - others == game.vectors[ClientId(1)]).all()

    def test_a_client_that_fears_them_refuses_the_round(self) -> None:
        """Its own floors were fixed when it was enrolled: more colluders, more survivors than the server proposes."""
        config = round_config(6, threshold=4, min_survivors=4)
        for policy in (
            ClientPolicy(min_survivors=4, corrupt_holders=3),
            ClientPolicy(min_survivors=6, corrupt_holders=0),
        ):
            with pytest.raises(PolicyRefusal, match="this client's policy demands"):
                Round(config, random_vectors(6, 5), policies={ClientId(1): policy})

    def test_noise_is_not_promised_beyond_the_colluders_it_was_made_for(self) -> None:
        """The ladder falls with each colluder that knows its own noise, and a claim for all but one is refused."""
        privacy = secagg.ClientLevel(clip_norm=1.0, epsilon=2.0, delta=1e-6, rounds=1)
        spread = [
            secagg.AggregationConfig.cross_silo(
                like={"w": np.zeros(4)}, clients=8, max_dropouts=0, max_colluders=colluders, privacy=privacy
            ).relative_error
            or 0.0
            for colluders in (0, 2, 4, 6)
        ]
        assert spread == sorted(spread)
        assert spread[-1] > 1.5 * spread[0]
        with pytest.raises(ValueError, match="min_survivors - max_colluders must be >= 2"):
            secagg.AggregationConfig.cross_silo(
                like={"w": np.zeros(4)}, clients=8, max_dropouts=0, max_colluders=7, privacy=privacy
            )


ROSTER = ids(*range(1, 10))


def a_round(members: tuple[ClientId, ...], earlier: Round | None) -> Round:
    """A round on the same model among some of nine enrolled clients, who remember the earlier ones."""
    identities = earlier.identities if earlier else {client: Identity.generate() for client in ROSTER}
    every = random_vectors(9, 5)
    game = Round(
        round_config(len(members), min_survivors=len(members)),
        {client: every[client] for client in members},
        identities=identities,
        histories=dict(earlier.histories) if earlier else {},
        policies=dict.fromkeys(members, ClientPolicy(min_survivors=4, corrupt_holders=0)),
    )
    game.play()
    return game


class TestDifferencing:
    def test_three_sets_far_apart_isolate_a_client_all_the_same(self) -> None:
        """{1..4} + {5..9} - {1..8} = {9}: each two sets differ in four clients or more, so every one is signed."""
        sums: list[Vector] = []
        game: Round | None = None
        for members in (ids(1, 2, 3, 4), ids(5, 6, 7, 8, 9), ids(*range(1, 9))):
            game = a_round(members, game)
            assert game.result is not None
            sums.append(game.result.vector)
        assert (sums[0] + sums[1] - sums[2] == random_vectors(9, 5)[ClientId(9)]).all()

    def test_the_direct_way_is_refused(self) -> None:
        """{1..9} - {1..8}, in either order: those who took part in both refuse, before they sign."""
        for first, second in ((ROSTER, ids(*range(1, 9))), (ids(*range(1, 9)), ROSTER)):
            game = a_round(second, a_round(first, None))
            assert_refused(game, PolicyRefusal, by=ids(*range(1, 9)), match="differs in 1 clients")
            assert game.result is None


class TestSum:
    def test_a_coordinate_that_one_client_has_is_in_the_sum(self) -> None:
        """Rare features belong to few: their coordinates are somebody's own values, whatever the cohort's size."""
        vectors = {client: np.zeros(5, dtype=np.uint32) for client in ids(*range(1, 13))}
        vectors[ClientId(7)][2] = 1234
        game = Round(round_config(12), vectors)
        assert game.run().vector.tolist() == [0, 0, 1234, 0, 0]

    @pytest.mark.parametrize("bits", [8, 16, 32])
    def test_an_upload_does_not_show_where_an_update_is_zero(self, bits: int) -> None:
        """One size, and masked words everywhere: the sparse client's upload looks like the dense one's."""
        length = 4000
        dense = np.full(length, 2**bits // 8, dtype=np.uint32)
        sparse = np.zeros(length, dtype=np.uint32)
        sparse[17] = 1
        game = Round(
            round_config(4, threshold=3, length=length, modulus_bits=bits),
            {client: sparse if client == 1 else dense for client in ids(1, 2, 3, 4)},
        )
        game.run()
        uploads = {s: d for s, _, d in game.sent if kind_of(d) is MaskedInput}
        assert len({len(data) for data in uploads.values()}) == 1
        for data in uploads.values():
            masked = np.frombuffer(data[-64 - length * bits // 8 : -64], dtype=np.uint8)
            counts = np.bincount(masked, minlength=256)
            expected = len(masked) / 256
            # 255 degrees of freedom, deviation sqrt(510): 12 deviations above the mean never happen by chance.
            assert ((counts - expected) ** 2 / expected).sum() < 255 + 12 * 510**0.5

    def test_silence_is_not_hidden(self) -> None:
        """Who took part and who fell out is known to everybody."""
        game = Round(round_config(4, threshold=3), random_vectors(4, 5))
        game.network = together(silencing(ClientId(4), MaskedInput))
        game.run()
        assert set(game.agreed.values()) == {frozenset(ids(1, 2, 3))}
