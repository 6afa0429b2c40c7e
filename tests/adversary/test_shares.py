"""Shares that are swapped, reflected, wrong, or of something else."""

import msgspec
import numpy as np
import pytest

from protocols import ClientId, Phase, RemoteProtocolError, TooFewClientsError
from protocols.pairwise.sealed import seal
from protocols.primitives import shamir
from protocols.wire import ConsistencyCheck, MaskedInput, SealedShares, ShareKeys, Unmask
from tests.rounds import Round, random_vectors, round_config

from .hostile import (
    altered,
    assert_refused,
    ids,
    malicious_client,
    rewriting,
    silencing,
    small_round,
    together,
)

ALL = ids(1, 2, 3, 4)
LIAR = ClientId(4)


class TestRelay:
    """The server, or the network, cannot move a sealed share anywhere else."""

    def test_permuted(self) -> None:
        game = small_round()
        game.network = rewriting(SealedShares, lambda _, m: altered(m, sealed=m.sealed[1:] + m.sealed[:1]))
        game.play()
        assert_refused(game, RemoteProtocolError, match="does not open")

    def test_reflected(self) -> None:
        """What a client sealed to a peer comes back as that peer's."""
        game = small_round()
        sent: dict[ClientId, tuple[bytes, ...]] = {}

        def remember(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender is not None and game.server.phase is Phase.SHARE_KEYS:
                sent[sender] = msgspec.msgpack.decode(data[6:-64])[-1]
            return [data]

        game.network = together(remember, rewriting(SealedShares, lambda me, m: altered(m, sealed=tuple(sent[me]))))
        game.play()
        assert len(sent) == 4
        assert_refused(game, RemoteProtocolError, match="does not open")
        assert {error.client_id for error in game.errors.values()} <= set(ALL)

    def test_to_another_receiver(self) -> None:
        game = small_round()
        sealed: dict[ClientId, tuple[bytes, ...]] = {}

        def swap(me: ClientId, message: SealedShares) -> SealedShares:
            return altered(message, sealed=sealed[ClientId(me % 4 + 1)])

        game.advance(Phase.SHARE_KEYS)
        for client in ALL:
            peers = [peer for peer in ALL if peer != client]
            sealed[client] = tuple(game.server._sealed[client][peer] for peer in peers)
        game.network = rewriting(SealedShares, swap)
        game.play()
        assert_refused(game, RemoteProtocolError, match="does not open")

    @pytest.mark.parametrize("place", [0, 5, 71, 72, 87])
    def test_one_bit_damaged(self, place: int) -> None:
        """The error names sender and receiver, and blames the one whose share it was."""
        game = small_round()

        def damage(_: ClientId, message: SealedShares) -> SealedShares:
            first = bytearray(message.sealed[0])
            first[place] ^= 1
            return altered(message, sealed=(bytes(first), *message.sealed[1:]))

        game.network = rewriting(SealedShares, damage, to=ids(3))
        game.play()
        assert_refused(game, RemoteProtocolError, by=ids(3), match="from client 1 to client 3")
        assert game.errors[ClientId(3)].client_id == 1
        assert game.result is not None
        assert game.result.survivors == set(ids(1, 2, 4))


def resealed(game: Round, holder: ClientId, shares: bytes) -> bytes:
    """What the liar seals to a holder, with other shares in it."""
    secrets = game.clients[LIAR]._secrets
    assert secrets is not None
    return seal(
        game.server._rules,  # a client has forgotten its neighbours' keys by now
        shares,
        sender=LIAR,
        receiver=holder,
        agreed=secrets.channels[holder],
        mask_secret=secrets.mask_key.secret,
    )


def lying_dealer(game: Round, mask_key: bytes | None, self_seed: bytes | None) -> None:
    """Client 4 shares other secrets than it uses."""
    session = game.clients[LIAR]

    def change(message: ShareKeys) -> ShareKeys:
        secrets = session._secrets
        assert secrets is not None
        holders = session._rules.graph.holders(LIAR)
        shares = shamir.share(
            (mask_key or secrets.mask_key.secret, self_seed or secrets.self_seed),
            threshold=game.config.threshold,
            holders=len(holders),
            rand=np.random.default_rng(0).bytes,
        )
        sealed = tuple(
            resealed(game, holder, shares[slot].tobytes()) for slot, holder in enumerate(holders) if holder != LIAR
        )
        secrets.held[LIAR] = shares[holders.index(LIAR)].tobytes()
        return altered(message, sealed=sealed)

    game.network = together(game.network, malicious_client(game, LIAR, ShareKeys, change))


class TestLyingDealer:
    """Signatures do not make shares right: what is reconstructed must match what was advertised."""

    def test_shares_of_another_self_seed(self) -> None:
        game = small_round()
        lying_dealer(game, None, bytes(range(32)))
        game.play()
        assert game.result is None
        assert type(game.server_error) is RemoteProtocolError
        assert game.server_error.client_id == LIAR
        assert "do not match its commitment" in str(game.server_error)
        assert game.server.phase is Phase.ABORTED

    def test_shares_of_another_mask_key(self) -> None:
        game = small_round()
        game.network = silencing(LIAR, MaskedInput, ConsistencyCheck, Unmask)
        lying_dealer(game, bytes(range(32)), None)
        game.play()
        assert game.result is None
        assert type(game.server_error) is RemoteProtocolError
        assert game.server_error.client_id == LIAR
        assert "do not match its public key" in str(game.server_error)

    def test_a_lie_about_a_secret_that_is_not_needed_does_no_harm(self) -> None:
        game = small_round()
        lying_dealer(game, bytes(range(32)), None)
        game.play()
        assert game.result is not None
        assert (game.result.vector == game.expected(frozenset(ALL))).all()

    def test_another_commitment(self) -> None:
        game = small_round()
        game.network = malicious_client(game, LIAR, ShareKeys, lambda m: altered(m, seed_commitment=bytes(32)))
        game.play()
        assert game.result is None
        assert type(game.server_error) is RemoteProtocolError
        assert game.server_error.client_id == LIAR

    def test_elements_outside_the_field_inside_a_good_seal(self) -> None:
        game = small_round()

        def change(message: ShareKeys) -> ShareKeys:
            sealed = tuple(resealed(game, peer, b"\xff" * 72) for peer in ids(1, 2, 3))
            return altered(message, sealed=sealed)

        game.network = malicious_client(game, LIAR, ShareKeys, change)
        game.play()
        assert_refused(game, RemoteProtocolError, by=ids(1, 2, 3), match="from client 4 to client")
        assert all(game.errors[client].client_id == LIAR for client in ids(1, 2, 3))
        assert isinstance(game.server_error, TooFewClientsError)

    @pytest.mark.parametrize("change", [-1, 1])
    def test_another_number_of_shares_is_a_rejected_message(self, change: int) -> None:
        game = small_round()
        game.network = malicious_client(
            game,
            LIAR,
            ShareKeys,
            lambda m: altered(m, sealed=m.sealed[:change] if change < 0 else (*m.sealed, m.sealed[0])),
        )
        game.play()
        assert [event.client for event in game.rejected] == [LIAR]
        assert game.result is not None
        assert game.result.survivors == set(ids(1, 2, 3))


class TestLyingHolder:
    """A holder that gives wrong shares of others' secrets: the round ends, or the sum is exact, never wrong."""

    @staticmethod
    def with_share(game: Round, owner: int, limbs: dict[int, int]) -> None:
        """Client 1 (among the first t answers) adds to limbs of its share of one owner's secret."""

        def change(message: Unmask) -> Unmask:
            elements = np.frombuffer(message.shares, dtype="<u2").astype(np.int64)
            for limb, delta in limbs.items():
                place = 18 * (owner - 1) + limb
                elements[place] = (elements[place] + delta) % shamir.PRIME
            return altered(message, shares=elements.astype("<u2").tobytes())

        game.network = together(game.network, malicious_client(game, ClientId(1), Unmask, change))

    @pytest.mark.parametrize("owner", ALL)
    @pytest.mark.parametrize("limb", [0, 9, 17])
    def test_one_wrong_limb(self, owner: int, limb: int) -> None:
        """Whether or not it still interpolates to 32 bytes, the server names whose secret it could not rebuild."""
        for delta in (1, 2, 40_000, 65_520):
            game = small_round()
            self.with_share(game, owner, {limb: delta})
            game.play()
            assert game.result is None
            assert type(game.server_error) is RemoteProtocolError
            assert game.server_error.client_id == owner
            assert game.server_error.phase == "Unmask"
            assert game.server.phase is Phase.ABORTED

    @pytest.mark.parametrize("limb", range(18))
    def test_one_wrong_limb_of_a_mask_key(self, limb: int) -> None:
        """X25519 ignores five bits of a private key, in the first and last limbs: there, and only there, a lie may do
        no harm at all."""
        for delta in (1, 40_000):
            game = small_round()
            game.network = silencing(LIAR, MaskedInput, ConsistencyCheck, Unmask)
            self.with_share(game, LIAR, {limb: delta})
            game.play()
            if game.result is None:
                assert type(game.server_error) is RemoteProtocolError
                assert game.server_error.client_id == LIAR
            else:
                assert limb in (0, 16, 17)
                assert (game.result.vector == game.expected(frozenset(ids(1, 2, 3)))).all()

    def test_all_limbs_wrong_on_a_ring(self) -> None:
        game = Round(round_config(10, degree=4, threshold=4, min_survivors=10), random_vectors(10, 5))
        game.advance(Phase.UNMASK)
        liar = next(iter(game.clients))
        shares = game.server._shares[liar] ^ 1
        game.server._shares[liar] = np.minimum(shares, shamir.PRIME - 1).astype(np.uint16)
        held = game.server._held_by(liar)
        game.play()
        assert game.result is None
        assert type(game.server_error) is RemoteProtocolError
        assert game.server_error.client_id in held

    @pytest.mark.parametrize(
        "shares", [b"", bytes(36 * 3), bytes(36 * 5), bytes(36 * 4 - 1), b"\xf1\xff" + bytes(36 * 4 - 2)]
    )
    def test_shares_that_are_none_are_a_rejected_message(self, shares: bytes) -> None:
        """Wrong number, odd size, or an element at the prime: three good answers are enough."""
        game = small_round()
        game.network = malicious_client(game, ClientId(1), Unmask, lambda m: altered(m, shares=shares))
        game.play()
        assert [event.client for event in game.rejected] == [1]
        assert game.result is not None
        assert (game.result.vector == game.expected(frozenset(ALL))).all()

    def test_a_lie_after_the_first_t_answers_does_no_harm(self) -> None:
        game = small_round()
        game.network = malicious_client(game, LIAR, Unmask, lambda m: altered(m, shares=bytes(36 * 4)))
        game.play()
        assert game.result is not None
        assert (game.result.vector == game.expected(frozenset(ALL))).all()

    def test_another_view_is_a_rejected_message(self) -> None:
        game = small_round()
        game.network = malicious_client(game, LIAR, ConsistencyCheck, lambda m: altered(m, view=bytes(32)))
        game.play()
        assert [event.client for event in game.rejected] == [LIAR]
        assert "another cohort or other survivors" in game.rejected[0].reason
        assert game.result is not None
        assert (game.result.vector == game.expected(frozenset(ALL))).all()
