"""Members' keys in advance: a round without the trip to the committee before it, and keys that serve once."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from protocols import (
    ClientId,
    History,
    Identity,
    KeysAdvertised,
    LocalProtocolError,
    PersistBeforeSend,
    Phase,
    PolicyRefusal,
    Roster,
    SendMessage,
    SurvivorsSigned,
)
from protocols.one_shot import OneShotMember, OneTimeKey
from protocols.one_shot.wire import MemberBundle, PartialSum
from protocols.primitives.keys import CLASSICAL, HYBRID, Suite
from protocols.wire import encode
from tests.classical import decode_signed

from .game import NO_LIMIT, Game, members, round_config, signed, silencing
from .hostile import ask, at_unmask, members_of, rebundled
from .test_blame import with_bad_sealer

M1, M2, M3, M4, M5 = members(5)
Keys = dict[ClientId, OneTimeKey]


def key_for(game: Game, member: ClientId, *, ahead: int = 0, suite: Suite = CLASSICAL) -> OneTimeKey:
    """A key of the member, made when its history is as it is plus `ahead` bundles."""
    history = game.histories.get(member, History())
    later = history.after(KeysAdvertised(round_id=bytes(32), serial=history.serial + ahead))
    return OneTimeKey(member, identity=game.identities[member], roster=game.roster, suite=suite, history=later)


def first_round(*, attaching: tuple[ClientId, ...] = members(5), suite: int = 1) -> tuple[Game, Keys]:
    """A finished round in which these members attached a key for the next one; and the keys."""
    draft = Game(round_config(4, suite=suite))
    kind = HYBRID if suite == 2 else CLASSICAL
    keys = {member: key_for(draft, member, ahead=1, suite=kind) for member in attaching}
    game = Game(draft.config, identities=draft.identities, next_keys=keys)
    game.run()
    assert set(game.server.next_bundles) == set(attaching)
    return game, keys


def next_round(game: Game, keys: Keys, **options: object) -> Game:
    return Game(
        round_config(4, suite=game.config.suite),
        identities=game.identities,
        histories=dict(game.histories),
        serials=game.server.serials,
        bundles=game.server.next_bundles,
        keys_in_advance=keys,
        **options,  # type: ignore[arg-type]
    )


class TestRounds:
    @pytest.mark.parametrize("suite", [1, 2])
    def test_a_round_without_a_trip_to_the_committee(self, suite: int) -> None:
        game, keys = first_round(suite=suite)
        second = next_round(game, keys)
        assert second.server.waiting_for == frozenset()
        result = second.run()
        assert np.array_equal(result.vector, second.expected(frozenset(second.vectors)))
        assert not second.errors
        assert not second.rejected
        assert all(len(second.sent_by(member)) == 1 for member in members_of(second))
        assert {second.histories[member].serial for member in members_of(second)} == {2}
        assert second.server.serials == dict.fromkeys(members_of(second), 2)

    def test_some_in_advance_and_some_not(self) -> None:
        game, keys = first_round(attaching=(M1, M4))
        second = next_round(game, keys)
        assert second.server.waiting_for == {M2, M3, M5}
        result = second.run()
        assert np.array_equal(result.vector, second.expected(frozenset(second.vectors)))
        assert [len(second.sent_by(member)) for member in members_of(second)] == [1, 2, 2, 1, 2]

    def test_a_member_that_lost_its_key_advertises_another_one(self) -> None:
        game, keys = first_round()
        del keys[M2]
        second = next_round(game, keys)
        second.start()
        assert second.server._offered[M2].serial == 3
        second.run()
        assert not second.errors
        assert second.server.serials[M2] == 3

    def test_three_rounds_in_a_row(self) -> None:
        game, keys = first_round()
        for _ in range(2):
            later = {member: key_for(game, member) for member in keys}
            game = next_round(game, keys, next_keys=later)
            game.run()
            assert not game.errors
            keys = later
        assert {game.histories[member].serial for member in keys} == {4}

    def test_a_member_that_complains_attaches_nothing(self) -> None:
        """Its next bundle is fresh: it never left, so its serial is not burned."""

        game = with_bad_sealer(0)
        late = key_for(game, M1, ahead=1)
        game.next_keys = {M1: late}
        game.members[M1] = game.session(OneShotMember, M1)
        game.sessions = [*game.clients.values(), *game.members.values()]
        assert game.play() is None
        assert M1 not in game.server.next_bundles
        assert game.histories[M1].serial == 1


class TestOnce:
    def test_a_key_is_taken_once(self) -> None:
        key = key_for(Game(), M1)
        key.take().wipe()
        with pytest.raises(LocalProtocolError, match="served a round before"):
            key.take()

    def test_the_same_key_does_not_serve_two_rounds(self) -> None:
        """Not even if the driver restores the history: the key is gone."""
        game, keys = first_round()
        second = next_round(game, keys)
        second.run()
        again = next_round(game, keys)
        for session in again.members.values():
            with pytest.raises(LocalProtocolError, match="served a round before"):
                session.start()
            assert session.phase is Phase.ABORTED

    def test_clients_refuse_a_bundle_that_served_before(self) -> None:
        """A server that shows an old bundle again, with the member's help: the serial was seen."""
        game, keys = first_round()
        second = next_round(game, keys)
        second.run()
        third = Game(
            round_config(4),
            identities=second.identities,
            histories={party: history for party, history in second.histories.items() if party in second.clients},
            bundles=game.server.next_bundles,
            network=silencing(*members(5)),
        )
        assert third.play() is not None
        assert {type(third.errors[client]) for client in third.clients} == {PolicyRefusal}

    def test_the_serial_is_durable_before_the_bundle_leaves(self) -> None:
        draft = Game()
        game = Game(draft.config, identities=draft.identities, next_keys={M1: key_for(draft, M1, ahead=1)})
        game, requests = at_unmask(game)
        member = game.members[M1]
        (first,) = member.receive(encode(requests[M1], suite=CLASSICAL))
        assert isinstance(first, PersistBeforeSend)
        assert isinstance(first.record, SurvivorsSigned)
        (second,) = member.persisted()
        assert second == PersistBeforeSend(record=KeysAdvertised(round_id=game.config.round_id, serial=2))
        assert member._secrets is None
        (sending,) = member.persisted()
        assert isinstance(sending, SendMessage)
        answer = decode_signed(sending.data, PartialSum, limit=NO_LIMIT).message
        assert [bundle.serial for bundle in answer.next_bundle] == [2]
        with pytest.raises(LocalProtocolError):
            member.persisted()

    @pytest.mark.parametrize("what", ["member", "roster", "suite", "older", "newer"])
    @pytest.mark.parametrize("when", ["in advance", "next"])
    def test_keys_that_do_not_fit_are_refused_at_the_door(self, what: str, when: str) -> None:
        game = Game()
        ahead = 0 if when == "in advance" else 2
        owner, suite = M1, CLASSICAL
        match what:
            case "member":
                owner = M2
            case "suite":
                suite = HYBRID
            case "older":
                ahead -= 1
            case "newer":
                ahead += 1
        history = History(serial=3)
        roster = game.roster
        if what == "roster":
            roster = Roster({**game.roster, ClientId(50): Identity.generate().public})
        made = OneTimeKey(
            owner,
            identity=game.identities[owner],
            roster=roster,
            suite=suite,
            history=History(serial=history.serial + ahead - 1),
        )
        game.histories = {M1: history}
        if when == "in advance":
            game.keys_in_advance = {M1: made}
        else:
            game.next_keys = {M1: made}
        with pytest.raises(ValueError, match="does not fit"):
            game.session(OneShotMember, M1)

    def test_a_key_that_does_fit(self) -> None:
        game = Game()
        game.histories = {M1: History(serial=2)}
        game.keys_in_advance, game.next_keys = {M1: key_for(game, M1)}, {M1: key_for(game, M1, ahead=1)}
        game.histories = {M1: History(serial=3)}
        assert game.session(OneShotMember, M1).phase is Phase.READY

    def test_it_is_not_printed_or_pickled(self) -> None:
        key = key_for(Game(), M1)
        assert repr(key) == "<OneTimeKey>"
        with pytest.raises(TypeError):
            key.__reduce__()


class TestServer:
    @pytest.mark.parametrize("what", ["owner", "signer", "low order", "serial", "stranger", "taken", "suite"])
    def test_bundles_in_advance_that_are_bad_are_left_out(self, what: str) -> None:
        game, keys = first_round()
        good = dict(game.server.next_bundles)
        bad: MemberBundle = {
            "owner": rebundled(game, good[M1], member=M2),
            "signer": rebundled(game, good[M1], by=M2),
            "low order": rebundled(game, good[M1], key=bytes(32)),
            "serial": rebundled(game, good[M1], serial=1),
            "stranger": good[M1],
            "taken": rebundled(game, good[M1], key=good[M2].key),
            "suite": rebundled(game, good[M1], key=bytes(1216)),
        }[what]
        bundles = {M2: good[M2], (ClientId(1) if what == "stranger" else M1): bad}
        second = Game(
            round_config(4),
            identities=game.identities,
            histories=dict(game.histories),
            serials=game.server.serials,
            bundles=bundles,
            keys_in_advance={M2: keys[M2]},
        )
        assert second.server.waiting_for == {M1, M3, M4, M5}
        second.run()
        assert not second.errors

    @pytest.mark.parametrize("what", ["owner", "signer", "low order", "serial", "two"])
    def test_an_answer_with_a_bad_bundle_is_rejected(self, what: str) -> None:
        draft = Game()
        game = Game(draft.config, identities=draft.identities, next_keys={M1: key_for(draft, M1, ahead=1)})
        game, requests = at_unmask(game)
        game.network = lambda *_: []
        answers = {member: ask(game, member, request) for member, request in requests.items()}
        assert answers[M1] is not None
        message = decode_signed(answers[M1], PartialSum, limit=NO_LIMIT).message
        (bundle,) = message.next_bundle
        bad = {
            "owner": (rebundled(game, bundle, member=M2),),
            "signer": (rebundled(game, bundle, by=M2),),
            "low order": (rebundled(game, bundle, key=bytes(32)),),
            "serial": (rebundled(game, bundle, serial=1),),
            "two": (bundle, bundle),
        }[what]
        forged = signed(game.identities[M1], msgspec.structs.replace(message, next_bundle=bad))
        (rejection,) = game.server.receive(M1, forged)
        assert rejection.client == M1  # type: ignore[union-attr]
        assert not game.server.next_bundles
        assert not game.server._answers
        for member, answer in answers.items():
            assert answer is not None
            assert game.server.receive(member, answer) == []
        game.step()
        assert game.result is not None
        assert set(game.server.next_bundles) == {M1}
