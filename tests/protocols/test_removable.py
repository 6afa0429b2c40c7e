"""Removable components: the server learns the seeds that the survivor count calls for, and never another one."""

import dataclasses
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import ClientId, LocalProtocolError, Phase, RoundConfig, required_threshold
from protocols.pairwise import removable
from protocols.wire import HYBRID, MaskedInput, ShareKeys, encode, message_limit, sealed_bytes
from tests.rounds import Round, kind_of, random_vectors, round_config

ORDER = (Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK, Phase.UNMASK)


def removable_round(n: int, floor: int, *, silent: Mapping[ClientId, Phase] | None = None, suite: int = 1) -> Round:
    """Clients fall silent from the phase on that they are listed with."""
    threshold = required_threshold(holders=n, corrupt_holders=0)
    game = Round(
        round_config(n, threshold=threshold, min_survivors=floor, suite=suite, removable=True), random_vectors(n, 5)
    )
    lost = dict(silent or {})

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        gone = sender in lost and ORDER.index(game.server.phase) >= ORDER.index(lost[sender])
        return [] if gone else [data]

    def network_from_second_phase(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        return [data] if game.server.phase is Phase.ADVERTISE_KEYS else network(sender, receiver, data)

    game.network = network_from_second_phase
    return game


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_server_gets_the_seeds_that_the_survivors_call_for(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 8))
    threshold = required_threshold(holders=n, corrupt_holders=0)
    floor = data.draw(st.integers(threshold, n - 1)) if n > threshold else n
    dropouts = data.draw(st.integers(0, n - floor))
    early = {ClientId(c): data.draw(st.sampled_from(ORDER[:2])) for c in range(1, dropouts + 1)}
    # Who falls silent after the survivors are known is still in the sum, and its components come from its holders.
    late = {
        ClientId(c): data.draw(st.sampled_from(ORDER[2:]))
        for c in range(dropouts + 1, dropouts + 1 + data.draw(st.integers(0, n - dropouts - threshold)))
    }
    suite = data.draw(st.sampled_from([1, 2]))
    game = removable_round(n, floor, silent=early | late, suite=suite)
    result = game.run()
    survivors = frozenset(game.clients) - early.keys()
    assert result.survivors == survivors
    assert (result.vector == game.expected(survivors)).all()
    kept = n - len(survivors)
    if kept == n - floor:
        assert result.removed == {}
    else:
        assert result.removed == {client: game.seeds[client][kept:] for client in survivors}
    links = {(owner, name) for _, owner, name in game.shares_sent() if name.startswith("link")}
    expected = {(client, f"link {kept + 1}") for client in survivors} if result.removed else set()
    assert links == expected


def test_seeds_are_fresh_and_of_the_right_number() -> None:
    game = removable_round(6, 4)
    game.run()
    every = [seed for seeds in game.seeds.values() for seed in seeds]
    assert {len(seeds) for seeds in game.seeds.values()} == {2}
    assert len(set(every)) == 12
    assert {len(seed) for seed in every} == {32}


def test_a_later_link_says_nothing_but_later_seeds() -> None:
    game = removable_round(7, 4)
    game.advance(Phase.SHARE_KEYS)
    rules, client = game.server._rules, ClientId(1)
    chain = removable.links(rules, client, bytes(32))
    assert len(chain) == rules.config.removable + 1 == 4
    for start in (1, 2, 3, 4):
        assert removable.links(rules, client, chain[start - 1], start=start) == chain[start - 1 :]
    seeds = removable.seeds(rules, client, chain)
    assert not set(seeds) & set(chain)
    assert removable.links(rules, ClientId(2), bytes(32))[1:] != chain[1:]


def test_without_them_nothing_is_shared_or_said() -> None:
    plain, other = round_config(5, min_survivors=4), round_config(5, min_survivors=4, removable=True)
    assert plain.removable == 0
    assert other.removable == 1
    game = Round(plain, random_vectors(5, 5))
    assert game.run().removed == {}
    assert set(game.seeds.values()) == {()}


def test_own_links_are_erased_with_the_vector() -> None:
    game = removable_round(5, 4)
    game.advance(Phase.CONSISTENCY_CHECK)
    for session in game.clients.values():
        assert session._secrets is not None
        assert set(session._secrets.__dict__) == {"held"}


def test_seeds_are_there_only_while_the_vector_is_awaited() -> None:
    game = removable_round(5, 4)
    session = game.clients[ClientId(1)]
    for phase in (Phase.READY, Phase.ADVERTISE_KEYS):
        assert session.phase is phase
        with pytest.raises(LocalProtocolError, match=f"no contribution is expected in phase {phase.value}"):
            _ = session.removable_seeds
        game.start_once()
    game.run()
    with pytest.raises(LocalProtocolError, match="phase Finished"):
        _ = session.removable_seeds


def test_configurations_differ_by_them() -> None:
    config = round_config(5, min_survivors=4, round_id=bytes(32))
    other = round_config(5, min_survivors=4, round_id=bytes(32), removable=True)
    assert config.digest() != other.digest()


def test_clients_that_expect_other_components_cannot_take_part() -> None:
    config = round_config(5, min_survivors=4, removable=True)
    plain = round_config(5, min_survivors=4, round_id=config.round_id)
    game = Round(config, random_vectors(5, 5), configs={ClientId(2): plain})
    result = game.run()
    assert result.survivors == frozenset(game.clients) - {2}


@pytest.mark.parametrize("count", [-1, 1, 3])
def test_another_number_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"removable must be 0 or cohort - min_survivors = 2, got {count}"):
        changed(round_config(6, min_survivors=4), removable=count)


def test_a_ring_has_none() -> None:
    ring = round_config(12, degree=4, min_survivors=8)
    with pytest.raises(ValueError, match="need the complete graph, got degree 4"):
        changed(ring, removable=4)


def changed(config: RoundConfig, **changes: int) -> RoundConfig:
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("suite", [1, 2])
def test_sizes_grow_by_one_share_for_each_component_and_holder(suite: int) -> None:
    sizes = {}
    for with_components in (False, True):
        config = round_config(9, min_survivors=5, suite=suite, removable=with_components)
        game = Round(config, random_vectors(9, 5))
        game.run()
        limit = message_limit(9, game.server._rules.suite, config.removable)
        for sender, _, data in game.sent:
            assert len(data) <= limit + 64
            if sender == 1 and kind_of(data) is not MaskedInput:
                sizes[with_components, kind_of(data).__name__] = len(data)
    grown = {name: sizes[True, name] - sizes[False, name] for (there, name) in sizes if there}
    # 8 peers x 4 shares of 36 bytes, an end of the chain, and length prefixes; 9 shares more in the answer.
    assert 8 * 4 * 36 + 32 <= grown["ShareKeys"] <= 8 * 4 * 36 + 32 + 16
    assert grown["Unmask"] == 9 * 36
    assert grown["AdvertiseKeys"] == grown["ConsistencyCheck"] == 0
    assert sealed_bytes(HYBRID, 3) == sealed_bytes(HYBRID) + 3 * 36
    assert encode(ShareKeys(context=bytes(32), sender=1, seed_commitment=bytes(64), sealed=()))
