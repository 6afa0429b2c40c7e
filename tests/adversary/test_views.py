"""A server that shows impossible or different views of who takes part and who survived."""

from collections.abc import Collection
from itertools import combinations, product

import pytest

from protocols import (
    ClientId,
    InconsistentViewError,
    LocalProtocolError,
    MalformedMessageError,
    PeerRejected,
    Phase,
    TooFewClientsError,
    required_threshold,
)
from protocols.wire import ConsistencyCheck, MaskedInput, SealedShares, SurvivorList, SurvivorSignatures, encode
from tests.rounds import Round, random_vectors, round_config

from .hostile import ForkingServer, altered, assert_refused, ids, rewriting, signed, small_round, together

ALL = ids(1, 2, 3, 4)


class TestSurvivorList:
    """Alive and dead are one list; a client cannot even be named both."""

    @pytest.mark.parametrize(
        "survivors", [ids(1, 2, 2, 3, 4), ids(1, 1, 2, 3, 4), ids(2, 1, 3, 4), ids(4, 3, 2, 1), ids(1, 2, 3, 4, 4)]
    )
    def test_a_client_named_twice_or_out_of_order(self, survivors: tuple[ClientId, ...]) -> None:
        game = small_round()
        game.network = rewriting(SurvivorList, lambda _, message: altered(message, survivors=survivors))
        game.play()
        assert_refused(game, MalformedMessageError, match="increase strictly")
        assert isinstance(game.server_error, TooFewClientsError)

    @pytest.mark.parametrize("dead", [ids(4), ids(), ids(1, 2)])
    def test_a_second_list_of_the_dead_does_not_decode(self, dead: tuple[ClientId, ...]) -> None:
        """One field more than a SurvivorList has: the array says five, the schema four."""

        def change(_: ClientId, message: SurvivorList) -> bytes:
            frame = bytearray(encode(message))
            assert frame[6] == 0x94
            frame[6] = 0x95
            return bytes(frame) + bytes((0x90 + len(dead), *dead))

        game = small_round()
        game.network = rewriting(SurvivorList, change)
        game.play()
        assert_refused(game, MalformedMessageError)

    def test_survivors_outside_the_cohort(self) -> None:
        """Also one that advertised keys, but shared none."""
        game = Round(round_config(5, threshold=3), random_vectors(5, 5))

        def network(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender == 5 and game.server.phase is Phase.SHARE_KEYS:
                return []
            return rewriting(SurvivorList, lambda _, m: altered(m, survivors=ids(1, 2, 3, 4, 5)))(
                sender, receiver, data
            )

        game.network = network
        game.play()
        assert game.server._cohort == ALL
        assert_refused(game, InconsistentViewError, by=ALL)

    def test_survivors_that_nobody_knows(self) -> None:
        game = small_round()
        game.network = rewriting(SurvivorList, lambda _, m: altered(m, survivors=ids(1, 2, 3, 4, 99)))
        game.play()
        assert_refused(game, InconsistentViewError)

    def test_a_client_that_is_left_out_itself(self) -> None:
        game = small_round()
        game.network = rewriting(SurvivorList, lambda me, m: altered(m, survivors=tuple(c for c in ALL if c != me)))
        game.play()
        assert_refused(game, InconsistentViewError, match="must hold this client")

    def test_fewer_than_the_floor(self) -> None:
        game = small_round(5, min_survivors=4)
        game.network = rewriting(
            SurvivorList, lambda me, m: altered(m, survivors=tuple(sorted({me, *ids(1, 2, 3)}))[:3]), to=ids(1, 2, 3)
        )
        game.play()
        assert_refused(game, TooFewClientsError, by=ids(1, 2, 3), match="the floor is 4")

    def test_fewer_holders_than_the_threshold(self) -> None:
        """On a ring the floor may hold while a client's own neighbours are gone."""
        game = Round(round_config(12, degree=4, threshold=5, min_survivors=6), random_vectors(12, 5))
        game.advance(Phase.MASKED_INPUT)
        holders = {client: set(game.server._rules.graph.holders(client)) for client in game.clients}

        def change(me: ClientId, message: SurvivorList) -> SurvivorList:
            gone = min(holders[me] - {me})
            return altered(message, survivors=tuple(c for c in message.survivors if c != gone))

        game.network = rewriting(SurvivorList, change)
        game.play()
        assert_refused(game, TooFewClientsError, match="the threshold is 5")


def shrunk(
    message: SealedShares, me: ClientId, gone: Collection[ClientId], peers: Collection[ClientId]
) -> SealedShares:
    """The same without some clients, and without what they sealed to `me`: in itself a perfect message."""
    senders = [client for client in message.cohort if client != me and client in peers]
    sealed = tuple(one for sender, one in zip(senders, message.sealed, strict=True) if sender not in gone)
    return altered(message, cohort=tuple(client for client in message.cohort if client not in gone), sealed=sealed)


class TestCohort:
    @pytest.mark.parametrize("cohort", [ids(1, 2, 2, 3, 4), ids(2, 1, 3, 4), ids(4, 3, 2, 1)])
    def test_a_client_named_twice_or_out_of_order(self, cohort: tuple[ClientId, ...]) -> None:
        game = small_round()
        game.network = rewriting(SealedShares, lambda _, m: altered(m, cohort=cohort))
        game.play()
        assert_refused(game, MalformedMessageError, match="increase strictly")

    @pytest.mark.parametrize("stranger", [5, 99])
    def test_a_client_that_advertised_no_keys(self, stranger: int) -> None:
        """Even if nothing is missing and nothing is said to come from it."""
        game = small_round()
        game.network = rewriting(SealedShares, lambda _, m: altered(m, cohort=(*m.cohort, ClientId(stranger))))
        game.play()
        assert_refused(game, InconsistentViewError, match="only clients that advertised keys")

    def test_fewer_than_the_floor(self) -> None:
        """Three are enough to reconstruct, but not to hide among."""
        game = small_round(5, min_survivors=4)
        game.network = rewriting(SealedShares, lambda me, m: shrunk(m, me, ids(4, 5), game.clients), to=ids(1, 2, 3))
        game.play()
        assert_refused(game, TooFewClientsError, by=ids(1, 2, 3), match="3 clients shared keys, the floor is 4")

    def test_fewer_holders_than_the_threshold(self) -> None:
        """On a ring the floor may hold while a client's own neighbours are gone."""
        game = Round(round_config(12, degree=4, threshold=5, min_survivors=6), random_vectors(12, 5))
        game.advance(Phase.SHARE_KEYS)
        holders = {client: set(game.server._rules.graph.holders(client)) for client in game.clients}

        def change(me: ClientId, message: SealedShares) -> SealedShares:
            return shrunk(message, me, [min(holders[me] - {me})], holders[me])

        game.network = rewriting(SealedShares, change)
        game.play()
        assert_refused(game, TooFewClientsError, match="4 holders of a secret are left, the threshold is 5")
        assert all(MaskedInput not in game.kinds_sent(client) for client in game.clients)

    def test_a_client_that_is_left_out_itself(self) -> None:
        game = small_round()
        game.network = rewriting(SealedShares, lambda me, m: altered(m, cohort=tuple(c for c in ALL if c != me)))
        game.play()
        assert_refused(game, InconsistentViewError, match="must hold this client")

    @pytest.mark.parametrize("change", [-1, 1])
    def test_another_number_of_shares(self, change: int) -> None:
        game = small_round()
        game.network = rewriting(
            SealedShares, lambda _, m: altered(m, sealed=m.sealed[:change] if change < 0 else (*m.sealed, m.sealed[0]))
        )
        game.play()
        assert_refused(game, InconsistentViewError, match="sealed shares for 3 neighbours")

    @pytest.mark.parametrize("hidden", [1, 2, 3])
    def test_a_smaller_cohort_for_one_client_never_makes_a_wrong_sum(self, hidden: int) -> None:
        """Client 4 is made to mask with fewer peers: its vector must not enter a sum that others unmask."""
        victim = ClientId(4)

        game = small_round()
        game.network = rewriting(
            SealedShares, lambda me, m: shrunk(m, me, [ClientId(hidden)], game.clients), to=[victim]
        )
        game.play()
        if game.result is not None:
            assert (game.result.vector == game.expected(game.result.survivors)).all()
            assert victim not in game.result.survivors
            assert [event.client for event in game.rejected] == [victim]
        assert victim not in game.agreed

    def test_two_cohorts_shown_to_two_groups(self) -> None:
        """Nobody finishes: each group sees too few signatures on its own view."""
        game = Round(round_config(6, threshold=4, min_survivors=4), random_vectors(6, 5))
        group = ids(1, 2, 3)

        def change(_: ClientId, message: SealedShares) -> SealedShares:
            return altered(message, cohort=message.cohort[:-1], sealed=message.sealed[:-1])

        shown = rewriting(SealedShares, change, to=group)
        survivors = rewriting(SurvivorList, lambda _, m: altered(m, survivors=ids(1, 2, 3, 4, 5)), to=group)
        game.network = together(shown, survivors)
        game.play()
        assert game.result is None
        assert not game.agreed
        assert not game.shares_sent()


def assert_never_both(server: ForkingServer, threshold: int) -> None:
    """The server never has t shares of both secrets of one client."""
    for owner in server.cohort:
        shares = server.shares_of(owner)
        assert min(len(holders) for holders in shares.values()) < threshold


class TestForks:
    """Two survivor sets, shown to two groups, every split; the server gives each group all signatures it can get."""

    @pytest.mark.parametrize("n", [3, 4, 5])
    def test_every_split_without_colluders(self, n: int) -> None:
        everyone, victim = ids(*range(1, n + 1)), ClientId(n)
        threshold = required_threshold(holders=n, corrupt_holders=0)
        for mask in product([False, True], repeat=n - 1):
            config = round_config(n, threshold=threshold, min_survivors=threshold)
            game = Round(config, random_vectors(n, 5))
            server = ForkingServer(game)
            dead = frozenset(everyone) - {victim}
            views = {c: dead if without else frozenset(everyone) for c, without in zip(everyone, mask, strict=False)}
            views[victim] = frozenset(everyone)
            server.fork(views)
            assert_never_both(server, threshold)
            sizes = {view: sum(v == view for v in views.values()) for view in (dead, frozenset(everyone))}
            for client, view in views.items():
                expected = sizes[view] >= threshold and len(view) >= threshold
                assert (client in game.agreed) == expected, (mask, client)
            assert len(set(game.agreed.values())) <= 1

    @pytest.mark.parametrize(("n", "corrupt"), [(4, 1), (5, 1), (5, 2), (6, 2)])
    def test_every_split_with_colluders(self, n: int, corrupt: int) -> None:
        """Colluders sign both views and hand over both kinds of share."""
        everyone = ids(*range(1, n + 1))
        colluders, victim = everyone[:corrupt], everyone[-1]
        threshold = required_threshold(holders=n, corrupt_holders=corrupt)
        honest = everyone[corrupt:]
        for mask in product([False, True], repeat=len(honest) - 1):
            config = round_config(n, threshold=threshold, min_survivors=threshold, corrupt_holders=corrupt)
            server = ForkingServer(Round(config, random_vectors(n, 5)), colluders)
            dead = frozenset(everyone) - {victim}
            views = {c: dead if without else frozenset(everyone) for c, without in zip(honest, mask, strict=False)}
            views[victim] = frozenset(everyone)
            server.fork(views)
            assert_never_both(server, threshold)

    @pytest.mark.parametrize("n", [4, 5])
    def test_as_many_views_as_clients(self, n: int) -> None:
        """Everybody is told that somebody else is dead."""
        everyone = ids(*range(1, n + 1))
        game = Round(round_config(n, threshold=3, min_survivors=3), random_vectors(n, 5))
        server = ForkingServer(game)
        server.fork({client: frozenset(everyone) - {everyone[client % n]} for client in everyone})
        assert_refused(game, TooFewClientsError)

    def test_signatures_on_the_other_view_do_not_count(self) -> None:
        """The server hands one group the signatures of the other on its own view, padded to the threshold."""
        game = Round(round_config(5, threshold=3), random_vectors(5, 5))
        server = ForkingServer(game)
        everyone, four = frozenset(ids(1, 2, 3, 4, 5)), frozenset(ids(1, 2, 3, 4))
        signatures = {client: server.ask_to_sign(client, four if client <= 2 else everyone) for client in everyone}
        shown = {client: signature for client, signature in signatures.items() if signature and client in four}
        assert set(shown) == four
        for client in ids(1, 2):
            assert not server.ask_to_unmask(client, shown)
        assert_refused(game, InconsistentViewError, by=ids(1, 2), match="did not sign this view")

    def test_every_pair_of_survivor_sets(self) -> None:
        """Any two sets that a server may invent, half of the clients each."""
        n, everyone = 5, ids(1, 2, 3, 4, 5)
        sets = [frozenset(s) for size in (3, 4, 5) for s in combinations(everyone, size)]
        for one, other in combinations(sets, 2):
            game = Round(round_config(n, threshold=3), random_vectors(n, 5))
            server = ForkingServer(game)
            views = {}
            for place, client in enumerate(sorted(one | other)):
                preferred = (one, other) if place % 2 else (other, one)
                views[client] = next(view for view in preferred if client in view)
            server.fork(views)
            assert_never_both(server, 3)
            assert len(set(game.agreed.values())) <= 1


class TestSignatures:
    """What a client accepts as agreement."""

    def forged(self, change: str) -> Round:
        game = small_round(5, min_survivors=4)
        other = game.identities[ClientId(5)]

        def rewrite(me: ClientId, message: SurvivorSignatures) -> SurvivorSignatures:
            signers, signatures = list(message.signers), list(message.signatures)
            match change:
                case "none":
                    signers, signatures = [], []
                case "below the threshold":
                    signers, signatures = signers[:2], signatures[:2]
                case "forged":
                    signatures[0] = bytes(64)
                case "signed by another identity":
                    signatures[0] = other.sign(b"anything")
                case "permuted":
                    signatures = signatures[1:] + signatures[:1]
                case "one for two":
                    signatures[1] = signatures[0]
                case "repeated":
                    signers, signatures = [signers[0], *signers], [signatures[0], *signatures]
                case "out of order":
                    signers, signatures = signers[::-1], signatures[::-1]
                case "one signature too few":
                    signatures = signatures[:-1]
                case "of somebody dead":
                    signers, signatures = [*signers, 5], [*signatures, signatures[0]]
                case "of somebody dead, in truth":
                    view = game.server._rules.view(game.server._cohort, ids(1, 2, 3, 4))
                    check = ConsistencyCheck(context=message.context, sender=5, view=view)
                    signers, signatures = [*signers, 5], [*signatures, signed(other, check)[-64:]]
                case "of nobody":
                    signers, signatures = [*signers, 77], [*signatures, signatures[0]]
            return altered(message, signers=tuple(signers), signatures=tuple(signatures))

        lost = lambda sender, _, data: [] if sender == 5 and game.server.phase is Phase.MASKED_INPUT else [data]  # noqa: E731
        game.network = together(lost, rewriting(SurvivorSignatures, rewrite))
        game.play()
        return game

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ("none", TooFewClientsError),
            ("below the threshold", TooFewClientsError),
            ("forged", InconsistentViewError),
            ("signed by another identity", InconsistentViewError),
            ("permuted", InconsistentViewError),
            ("one for two", InconsistentViewError),
            ("repeated", MalformedMessageError),
            ("out of order", MalformedMessageError),
            ("one signature too few", MalformedMessageError),
            ("of somebody dead", InconsistentViewError),
            ("of somebody dead, in truth", InconsistentViewError),
            ("of nobody", InconsistentViewError),
        ],
    )
    def test_bad_evidence(self, change: str, error: type[Exception]) -> None:
        game = self.forged(change)
        assert_refused(game, error, by=ids(1, 2, 3, 4))  # type: ignore[arg-type]
        assert isinstance(game.server_error, TooFewClientsError)

    def test_the_same_evidence_unchanged_is_accepted(self) -> None:
        game = self.forged("nothing")
        assert set(game.agreed) == set(ids(1, 2, 3, 4))

    def test_strangers_on_a_ring_do_not_count(self) -> None:
        """Only a client's own holders can say that its secrets are safe; valid signatures of others are not enough."""
        config = round_config(12, degree=4, threshold=5, min_survivors=12)
        game = Round(config, random_vectors(12, 5))
        game.advance(Phase.CONSISTENCY_CHECK)
        graph, known = game.server._rules.graph, dict(game.server._signatures)
        for client in game.clients:
            strangers = [c for c in sorted(known) if c not in graph.holders(client)]
            keep = sorted([*strangers, *graph.holders(client)[1:]])
            frame = SurvivorSignatures(
                context=game.server._rules.context,
                sender=0,
                signers=tuple(keep),
                signatures=tuple(known[c] for c in keep),
            )
            game.to_client(client, encode(frame))
        assert_refused(game, TooFewClientsError, match="4 holders")


class TestAskedTwice:
    def test_a_second_survivor_list_ends_the_round(self) -> None:
        game = small_round()
        lists: dict[ClientId, bytes] = {}

        def network(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
            if receiver is not None and game.server.phase is Phase.CONSISTENCY_CHECK:
                smaller = SurvivorList(
                    context=game.server._rules.context,
                    sender=0,
                    survivors=tuple(c for c in ALL if c != (1 if receiver != 1 else 2)),
                )
                lists[receiver] = data
                return [data, encode(smaller)]
            return [data]

        game.network = network
        game.play()
        assert len(lists) == 4
        assert_refused(game, MalformedMessageError)

    def test_the_very_same_survivor_list_again_ends_the_round(self) -> None:
        game = small_round()
        game.network = lambda _sender, receiver, data: (
            [data] * (2 if receiver is not None and game.server.phase is Phase.CONSISTENCY_CHECK else 1)
        )
        game.play()
        assert_refused(game, MalformedMessageError)

    def test_after_the_answer_nothing_is_answered(self) -> None:
        """A re-request "after a timeout", with the same or another view, finds no secrets and gets no bytes."""
        game = small_round()
        game.run()
        before = list(game.sent)
        for client, data in list(game.received):
            session = game.clients[client]
            with pytest.raises(LocalProtocolError, match="no message is expected"):
                session.receive(data)
            assert session._secrets is None
        assert game.sent == before


class TestLateVector:
    def test_a_vector_after_unmasking_stays_masked(self) -> None:
        """Declared dead, then delivered: the server knows all its pair masks, but not one share of its self seed."""
        held_back: list[bytes] = []
        game = small_round()
        late = ClientId(4)

        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender == late and game.server.phase is Phase.MASKED_INPUT:
                held_back.append(data)
                return []
            return [data]

        game.network = network
        game.advance(Phase.UNMASK)
        (rejection,) = game.server.receive(late, held_back[0])
        assert isinstance(rejection, PeerRejected)
        game.step()
        assert game.result is not None
        assert game.result.survivors == set(ids(1, 2, 3))
        assert (game.result.vector == game.expected(game.result.survivors)).all()
        given = {(holder, name) for holder, owner, name in game.shares_sent() if owner == late}
        assert given == {(holder, "mask key") for holder in ids(1, 2, 3)}
