"""Who wants more components of the noise than the dropouts permit gets none, and lies about them void the round."""

from itertools import combinations

import msgspec
import numpy as np
import pytest

from protocols import ClientId, InconsistentViewError, Phase, RemoteProtocolError
from protocols.pairwise.sealed import seal
from protocols.primitives import shamir
from protocols.wire import ConsistencyCheck, MaskedInput, ShareKeys, SurvivorList, Unmask
from tests.rounds import Round, random_vectors, round_config

from .hostile import (
    ForkingServer,
    altered,
    assert_refused,
    ids,
    malicious_client,
    rewriting,
    signed,
    silencing,
    together,
)

LIAR = ClientId(4)


def removable_round(n: int = 5, *, min_survivors: int = 3, corrupt: int = 0) -> Round:
    """T = n - min_survivors components."""
    return Round(
        round_config(
            n, min_survivors=max(min_survivors, (n + corrupt) // 2 + 1), corrupt_holders=corrupt, removable=True
        ),
        random_vectors(n, 5),
    )


def links_by_holder(game: Round, owner: ClientId) -> dict[str, set[ClientId]]:
    """Who gave a share of which link of an owner's chain."""
    found: dict[str, set[ClientId]] = {}
    for holder, whose, name in game.shares_sent():
        if whose == owner and name.startswith("link"):
            found.setdefault(name, set()).add(holder)
    return found


class TestTwoIndexes:
    @pytest.mark.parametrize(("n", "corrupt"), [(5, 0), (6, 1), (7, 2), (9, 3)])
    def test_no_two_links_of_one_client_are_ever_answered_often_enough(self, n: int, corrupt: int) -> None:
        """The server splits the honest clients between a larger and a smaller survivor set, in every proportion."""
        threshold = (n + corrupt) // 2 + 1
        liars = frozenset(ids(*range(1, corrupt + 1)))
        honest = ids(*range(corrupt + 1, n + 1))
        for first in range(len(honest) + 1):
            game = removable_round(n, corrupt=corrupt)
            server = ForkingServer(game, corrupt=liars)
            everybody = frozenset(game.clients)
            fewer = everybody - {honest[0]}  # more components of each must stay
            views = dict.fromkeys(honest[:first], everybody) | {
                client: fewer if client in fewer else everybody for client in honest[first:]
            }
            server.fork(views)
            for owner in honest:
                counts = {name: len(holders) for name, holders in links_by_holder(game, owner).items()}
                answered = [name for name, count in counts.items() if count + corrupt >= threshold]
                assert len(answered) <= 1
                assert set(counts) <= {"link 1", "link 2"}
                assert len(counts) <= 1  # whoever found too few signatures on its view said nothing at all

    def test_one_client_is_told_of_more_survivors(self) -> None:
        """It would give up component 1, which must stay: it finds no signatures on that set, and says nothing."""
        game = removable_round(5)
        server = ForkingServer(game)
        fewer = frozenset(ids(1, 2, 3, 4))
        signatures = {client: server.ask_to_sign(client, fewer) for client in ids(1, 3, 4)}
        assert server.ask_to_sign(ClientId(2), frozenset(game.clients))
        assert not server.ask_to_unmask(ClientId(2), {c: s for c, s in signatures.items() if s})
        assert_refused(game, InconsistentViewError, by=ids(2))
        for client in ids(1, 3, 4):
            assert server.ask_to_unmask(client, {c: s for c, s in signatures.items() if s})
        assert {name for owner in game.clients for name in links_by_holder(game, owner)} == {"link 2"}

    def test_everybody_is_told_of_a_survivor_that_there_is_not(self) -> None:
        """Then its vector is missing in the sum, which stays masked: its pairs' keys are never said."""
        game = removable_round(5)
        game.network = together(
            silencing(ClientId(5), MaskedInput, ConsistencyCheck),
            rewriting(SurvivorList, lambda _, m: altered(m, survivors=(1, 2, 3, 4, 5))),
        )
        game.play()
        assert game.result is None  # this server notices; one that lies has a sum under the masks with client 5
        names = {name for _, owner, name in game.shares_sent() if owner == 5}
        assert "mask key" not in names

    def test_a_second_request_gets_nothing(self) -> None:
        game = removable_round(5)
        server = ForkingServer(game)
        everybody = frozenset(game.clients)
        server.fork(dict.fromkeys(game.clients, everybody))
        before = len(game.sent)
        for client in game.clients:
            server.ask_to_sign(client, everybody - {ClientId(5)})
        assert len(game.sent) == before

    def test_nothing_of_a_dropouts_chain_is_ever_said(self) -> None:
        for gone in combinations(range(1, 6), 2):
            game = removable_round(5)
            game.network = together(*(silencing(ClientId(client), MaskedInput) for client in gone))
            game.play()
            assert all(not links_by_holder(game, ClientId(client)) for client in gone)


class TestLies:
    def test_shares_of_another_chain(self) -> None:
        game = removable_round(5)
        session = game.clients[LIAR]

        def change(message: ShareKeys) -> ShareKeys:
            secrets = session._secrets
            assert secrets is not None
            rand = np.random.default_rng(0).bytes
            shares = shamir.share(
                (secrets.mask_key.secret, secrets.self_seed, *(rand(32) for _ in range(2))),
                threshold=game.config.threshold,
                holders=5,
                rand=rand,
            )
            sealed = tuple(
                seal(
                    game.server._rules,
                    shares[slot].tobytes(),
                    sender=LIAR,
                    receiver=holder,
                    agreed=secrets.channels[holder],
                    mask_secret=secrets.mask_key.secret,
                )
                for slot, holder in enumerate(game.clients)
                if holder != LIAR
            )
            secrets.held[LIAR] = shares[3].tobytes()
            return altered(message, sealed=sealed)

        game.network = changing_share_keys(game, change)
        game.play()
        assert game.result is None
        assert type(game.server_error) is RemoteProtocolError
        assert game.server_error.client_id == LIAR
        assert "chain do not match its end" in str(game.server_error)

    def test_another_end(self) -> None:
        game = removable_round(5)
        game.network = changing_share_keys(
            game, lambda m: altered(m, seed_commitment=m.seed_commitment[:32] + bytes(32))
        )
        game.play()
        assert type(game.server_error) is RemoteProtocolError
        assert game.server_error.client_id == LIAR

    @pytest.mark.parametrize("size", [32, 33, 63])
    def test_a_missing_end_is_a_rejected_message(self, size: int) -> None:
        game = removable_round(5)
        game.network = changing_share_keys(game, lambda m: altered(m, seed_commitment=m.seed_commitment[:size]))
        game.play()
        assert [event.client for event in game.rejected] == [LIAR]
        assert game.result is not None
        assert game.result.removed.keys() == set(ids(1, 2, 3, 5))

    def test_an_end_where_there_is_no_chain_is_a_rejected_message(self) -> None:
        game = Round(round_config(5, min_survivors=4), random_vectors(5, 5))
        game.network = changing_share_keys(game, lambda m: altered(m, seed_commitment=m.seed_commitment + bytes(32)))
        game.play()
        assert [event.client for event in game.rejected] == [LIAR]

    @pytest.mark.parametrize("owner", [1, 3, 5])
    def test_a_wrong_share_of_a_link_voids_the_round(self, owner: int) -> None:
        """Never another noise than that of the chain: the server names whose link it could not rebuild."""
        game = removable_round(5)

        def change(message: Unmask) -> Unmask:
            elements = np.frombuffer(message.shares, dtype="<u2").astype(np.int64)
            place = 18 * (5 + owner - 1)
            elements[place] = (elements[place] + 1) % shamir.PRIME
            return altered(message, shares=elements.astype("<u2").tobytes())

        game.network = malicious_client(game, ClientId(1), Unmask, change)
        game.play()
        assert game.result is None
        assert type(game.server_error) is RemoteProtocolError
        assert game.server_error.client_id == owner

    @pytest.mark.parametrize("count", [0, 5, 9, 11])
    def test_too_few_or_too_many_shares_are_a_rejected_message(self, count: int) -> None:
        game = removable_round(5)
        game.network = malicious_client(
            game, ClientId(1), Unmask, lambda m: altered(m, shares=(m.shares + m.shares)[: 36 * count])
        )
        game.play()
        assert [event.client for event in game.rejected] == [1]
        assert game.result is not None
        assert game.result.removed == {client: game.seeds[client] for client in game.clients}


def changing_share_keys(game: Round, change: object) -> object:
    """A network on which the liar's shares are rewritten, and signed by the liar itself."""

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        if sender != LIAR or game.server.phase is not Phase.SHARE_KEYS:
            return [data]
        message = change(msgspec.msgpack.decode(data[6:-64], type=ShareKeys))  # type: ignore[operator]
        return [signed(game.identities[LIAR], message)]

    return network
