"""Who the members are is the client's choice; what a message may weigh follows from who reads it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocols import ClientId, ClientPolicy, History, Identity, MalformedMessageError, Phase, PolicyRefusal, Roster
from protocols.one_shot import OneShotClient, OneShotMember, OneShotServer, committee_digest
from protocols.one_shot.wire import Committee, Complaint, Contribution, MemberKeys, PartialSum, UnmaskRequest

from .game import Game, members, random_vectors, round_config, silencing
from .hostile import ONE, members_of


class TestPin:
    @pytest.mark.parametrize("role", [OneShotClient, OneShotMember])
    @pytest.mark.parametrize("what", ["other members", "fewer", "more", "another identity", "no pin"])
    def test_another_committee_is_refused_before_anything_leaves(
        self, what: str, role: type[OneShotClient | OneShotMember]
    ) -> None:
        pinned = round_config(4, committee=members(6)[:5])
        identities = Game().identities | {ClientId(i): Identity.generate() for i in (106, 107)}
        roster = Roster({party: identity.public for party, identity in identities.items()})
        policy = ClientPolicy(
            min_survivors=2,
            corrupt_holders=1,
            suite=pinned.suite,
            committee=committee_digest(roster, pinned.committee),
        )
        config = pinned
        match what:
            case "other members":
                config = replace(pinned, committee=members(6)[1:])
            case "fewer":
                config = replace(pinned, committee=members(4), threshold=4)
            case "more":
                config = replace(pinned, committee=members(6), threshold=5)
            case "another identity":
                # The server, or whoever distributes rosters, puts a key of its own in a member's place.
                roster = Roster({**roster, ClientId(105): Identity.generate().public})
            case "no pin":
                policy = replace(policy, committee=None)
        party = ONE if role is OneShotClient else ClientId(102)
        with pytest.raises(PolicyRefusal, match="committee"):
            role(config, party, identity=identities[party], roster=roster, policy=policy, history=History())

    def test_the_pin_is_of_members_alone(self) -> None:
        """Clients may come and go without another pin; the order in which members are written does not matter."""
        game = Game()
        larger = Roster({**game.roster, ClientId(50): Identity.generate().public})
        committee = game.config.committee
        assert committee_digest(larger, committee) == committee_digest(game.roster, committee)
        assert committee_digest(game.roster, committee[::-1]) == committee_digest(game.roster, committee)
        others = {committee_digest(game.roster, committee[:i]) for i in range(1, 6)}
        assert len(others) == 5

    def test_strangers_have_no_digest(self) -> None:
        with pytest.raises(ValueError, match=r"\[99\] are not on the roster"):
            committee_digest(Game().roster, (ClientId(99),))


class TestLostHistory:
    def forgetful(self, count: int) -> tuple[Game, Game]:
        """Two rounds; before the second, `count` members lose their histories."""
        first = Game()
        first.run()
        lost = members_of(first)[:count]
        histories = {party: history for party, history in first.histories.items() if party not in lost}
        second = Game(round_config(4), identities=first.identities, histories=histories, serials=first.server.serials)
        return first, second

    def test_the_server_goes_on_without_the_member(self) -> None:
        first, second = self.forgetful(1)
        lost = members_of(first)[0]
        result = second.run()
        assert np.array_equal(result.vector, second.expected(frozenset(second.vectors)))
        assert [rejection.client for rejection in second.rejected] == [lost]
        assert "history" in second.rejected[0].reason
        assert not any(party in second.errors for party in second.clients)
        assert second.server.serials == {lost: 1} | dict.fromkeys(members_of(first)[1:], 2)

    def test_the_member_s_key_is_not_shown_and_is_erased_with_its_session(self) -> None:
        _, second = self.forgetful(1)
        lost = members_of(second)[0]
        second.run()
        assert lost not in second.server._rules.bundles
        assert second.members[lost].phase is Phase.ADVERTISE_KEYS  # it hears no more; its driver drops it
        assert len(second.sent_by(lost)) == 1

    def test_too_many_such_members_end_the_round(self) -> None:
        _, second = self.forgetful(2)
        error = second.play()
        assert error is not None
        assert "3 members advertised keys, the threshold is 4" in str(error)

    def test_a_server_that_forgets_is_stopped_by_the_clients(self) -> None:
        _, second = self.forgetful(1)
        second.server = OneShotServer(second.config, roster=second.roster)
        assert second.play() is not None
        assert {type(second.errors[client]) for client in second.clients} == {PolicyRefusal}
        assert not any(second.sent_by(client) for client in second.clients)


class TestLimits:
    """A message larger than its reader can need is refused before it is parsed."""

    @pytest.mark.parametrize("suite", [1, 2])
    def test_each_kind_has_its_own(self, suite: int) -> None:
        game = Game(round_config(4, suite=suite), random_vectors(4))
        limits = game.server._rules.limits
        assert sorted(kind.__name__ for kind in limits) == sorted(
            kind.__name__ for kind in (MemberKeys, Committee, Contribution, UnmaskRequest, PartialSum, Complaint)
        )
        client, member = game.clients[ONE], game.members[ClientId(101)]
        for session, kind in ((client, Committee), (member, UnmaskRequest)):
            session.start()
            session.persisted()
            with pytest.raises(MalformedMessageError, match=f"at most {limits[kind]} are allowed"):
                session.receive(bytes(limits[kind] + 1))
        assert limits[Committee] < limits[UnmaskRequest]
        game.to_server(ClientId(102), bytes(limits[MemberKeys] + 1))
        assert f"at most {limits[MemberKeys]}" in game.rejected[-1].reason

    def test_the_server_s_grow_with_nothing_but_the_committee(self) -> None:
        """A client or member cannot make the server parse more because the cohort is large."""
        small, large = (Game(round_config(n), random_vectors(n), network=silencing()) for n in (3, 40))
        for kind in (MemberKeys, Contribution, PartialSum, Committee):
            assert small.server._rules.limits[kind] == large.server._rules.limits[kind]
