"""Rounds that a client refuses because of what it remembers, or what it never accepts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from protocols import (
    ClientId,
    ClientPolicy,
    History,
    KeysAdvertised,
    PolicyRefusal,
    SurvivorsSigned,
    TooFewClientsError,
)
from protocols.wire import ConsistencyCheck, MaskedInput
from tests.rounds import Round, random_vectors, round_config

from .hostile import assert_refused, ids, silencing, together

ALL = ids(1, 2, 3, 4, 5, 6)


def a_round(
    earlier: Round | None = None,
    *,
    without: Collection[ClientId] = (),
    model: bytes = bytes(32),
    noised: bool = False,
    forget: bool = False,
) -> Round:
    """A round of six, after an earlier one, in which some vectors never arrive."""
    policy = ClientPolicy(min_survivors=3, corrupt_holders=0, noised=noised)
    histories = {}
    if earlier is not None and not forget:
        # What a driver has after a restart: the records that it made durable, replayed.
        histories = {client: History.of(records) for client, records in earlier.records.items()}
    game = Round(
        round_config(6, threshold=4, min_survivors=4, model=model),
        random_vectors(6, 5),
        histories=histories,
        identities=earlier.identities if earlier else {},
        policies=dict.fromkeys(ALL, policy),
        network=together(*(silencing(client, MaskedInput) for client in without)),
    )
    game.play()
    return game


class TestDifferencing:
    def test_everybody_and_everybody_but_one(self) -> None:
        """The second sum would give away the missing client: all refuse before they sign."""
        first = a_round()
        assert first.result is not None
        game = a_round(first, without=ids(6))
        assert_refused(game, PolicyRefusal, by=ids(1, 2, 3, 4, 5), match="differs in 1 clients")
        assert isinstance(game.server_error, TooFewClientsError)
        for client in ids(1, 2, 3, 4, 5):
            assert ConsistencyCheck not in game.kinds_sent(client)

    def test_the_other_way_round(self) -> None:
        game = a_round(a_round(without=ids(6)))
        assert_refused(game, PolicyRefusal, by=ids(1, 2, 3, 4, 5))

    def test_two_clients_are_still_too_few(self) -> None:
        game = a_round(a_round(without=ids(6)), without=ids(5))
        assert_refused(game, PolicyRefusal, by=ids(1, 2, 3, 4), match="differs in 2 clients")

    def test_the_same_set_again(self) -> None:
        """A retry whose result was lost reveals nothing new."""
        for without in (ids(), ids(6)):
            game = a_round(a_round(without=without), without=without)
            assert game.result is not None
            assert set(game.agreed) == set(ALL) - set(without)

    def test_far_enough(self) -> None:
        """{1, 2, 3, 4} and {3, 4, 5, 6} differ in four clients."""
        game = a_round(a_round(without=ids(5, 6)), without=ids(1, 2))
        assert game.result is not None
        assert game.result.survivors == set(ids(3, 4, 5, 6))

    def test_another_model(self) -> None:
        game = a_round(a_round(), without=ids(6), model=b"\x01" * 32)
        assert game.result is not None

    def test_with_noise_that_is_charged_each_time(self) -> None:
        game = a_round(a_round(), without=ids(6), noised=True)
        assert game.result is not None

    def test_an_aborted_round_counts(self) -> None:
        """What was signed may have been answered by others: the record is made before the signature."""
        policy = ClientPolicy(min_survivors=3, corrupt_holders=0)
        first = Round(
            round_config(6, threshold=4),
            random_vectors(6, 5),
            policies=dict.fromkeys(ALL, policy),
            network=together(*(silencing(client, ConsistencyCheck) for client in ids(1, 2, 3))),
        )
        first.play()
        assert first.result is None
        assert all(isinstance(records[-1], SurvivorsSigned) for records in first.records.values())
        assert_refused(a_round(first, without=ids(6)), PolicyRefusal, by=ids(1, 2, 3, 4, 5))

    def test_only_the_memory_prevents_it(self) -> None:
        """With the records deleted the attack goes through: keeping them is the driver's duty."""
        game = a_round(a_round(), without=ids(6), forget=True)
        assert game.result is not None
        assert game.result.survivors == set(ids(1, 2, 3, 4, 5))


class TestFloors:
    @pytest.mark.parametrize(
        "policy",
        [ClientPolicy(min_survivors=5, corrupt_holders=0), ClientPolicy(min_survivors=4, corrupt_holders=1)],
    )
    def test_a_round_below_a_clients_own_floors_is_never_opened(self, policy: ClientPolicy) -> None:
        config = round_config(6, threshold=4, min_survivors=4)
        with pytest.raises(PolicyRefusal, match="demands at least"):
            Round(config, random_vectors(6, 5), policies=dict.fromkeys(ALL, policy))

    def test_the_classical_suite_is_for_those_who_allow_it(self) -> None:
        config = round_config(4, threshold=3, suite=1)
        usual = ClientPolicy(min_survivors=3, corrupt_holders=0)
        with pytest.raises(PolicyRefusal, match="suite is 1; this client's policy demands at least 2"):
            Round(config, random_vectors(4, 5), policies={ClientId(2): usual})
        game = Round(config, random_vectors(4, 5), policies={ClientId(2): replace(usual, suite=1)})
        assert game.run().survivors == set(game.clients)

    def test_a_round_id_is_joined_once(self) -> None:
        first = a_round()
        with pytest.raises(PolicyRefusal, match="used before"):
            Round(first.config, random_vectors(6, 5), histories=first.histories, identities=first.identities)

    def test_also_if_it_broke_off_at_once(self) -> None:
        game = Round(round_config(4, threshold=3), random_vectors(4, 5))
        game.start()
        (record,) = game.records[ClientId(1)]
        assert record == KeysAdvertised(round_id=game.config.round_id, serial=1)
        with pytest.raises(PolicyRefusal, match="used before"):
            Round(game.config, random_vectors(4, 5), histories=game.histories, identities=game.identities)

    def test_serials_increase_from_round_to_round(self) -> None:
        first = a_round()
        second = a_round(first)
        for client in ALL:
            serials = [
                r.serial for game in (first, second) for r in game.records[client] if isinstance(r, KeysAdvertised)
            ]
            assert serials == [1, 2]
