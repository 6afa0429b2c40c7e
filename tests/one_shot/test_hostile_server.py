"""A hostile server or network gets a typed refusal, and no honest member's answer."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from protocols import (
    ClientPolicy,
    InconsistentViewError,
    InvalidSignatureError,
    LocalProtocolError,
    MalformedMessageError,
    Phase,
    PolicyRefusal,
    ProtocolError,
    TooFewClientsError,
)
from protocols.one_shot.rules import Rules
from protocols.one_shot.wire import (
    Committee,
    SealedContribution,
    UnmaskRequest,
)
from protocols.primitives import keys
from protocols.wire import (
    SERVER,
)
from tests.classical import decode, encode

from .game import NO_LIMIT, Game, round_config, silencing
from .hostile import (
    FOUR,
    ONE,
    THREE,
    TWO,
    altered,
    ask,
    assert_member_complains,
    assert_member_refuses,
    at_unmask,
    members_of,
    rebundled,
    resigned,
    rewriting,
)


class TestCopies:
    """Correlated contributions (WillowFold, eprint 2026/264): no mask enters a sum twice, or under another name."""

    def test_the_server_rejects_a_copy(self) -> None:
        game = Game(network=silencing(TWO))
        game.advance(Phase.MASKED_INPUT)
        frame = game.parse(game.sent_by(ONE)[0])
        for changes in ({}, {"ephemeral_key": keys.AgreementKey(bytes(range(32)), keys.CLASSICAL).public}):
            copy = game.contribution(TWO, frame, sealed=frame.sealed, vector=bytes(frame.vector), **changes)
            game.to_server(TWO, copy)
            assert "copy" in game.rejected[-1].reason
        other_vector = game.contribution(TWO, frame, sealed=frame.sealed, vector=bytes(len(frame.vector)))
        game.to_server(TWO, other_vector)
        assert "copy" in game.rejected[-1].reason
        game.run()
        assert game.result is not None
        assert game.result.survivors == {ONE, THREE, FOUR}

    @pytest.mark.parametrize("alone", [False, True], ids=["beside the original", "instead of it"])
    @pytest.mark.parametrize("fresh", [(), ("vector",), ("ephemeral_key",), ("vector", "ephemeral_key")])
    def test_members_refuse_a_copy(self, fresh: tuple[str, ...], alone: bool) -> None:
        """Client 2 signs client 1's shares as its own, with or without a key and a vector of its own."""
        game, requests = at_unmask()
        values = {"vector": bytes(32), "ephemeral_key": keys.AgreementKey(bytes(range(32)), keys.CLASSICAL).public}
        for member, request in requests.items():
            first, _, *others = request.contributions
            copy = resigned(game, first, sender=TWO, **{name: values[name] for name in fresh})
            listed = (copy, *others) if alone else (first, copy, *others)
            asked = altered(request, contributions=listed)
            if alone or len(fresh) == 2:
                assert_member_complains(game, member, asked, {TWO}, "does not open")
            else:
                assert_member_refuses(game, member, asked, InconsistentViewError, "copy")

    def test_shares_of_one_member_do_not_open_at_another(self) -> None:
        game, requests = at_unmask()
        first, second = members_of(game)[:2]
        assert_member_refuses(
            game,
            first,
            altered(requests[first], contributions=requests[second].contributions),
            InconsistentViewError,
            "not the one that was signed",
        )

    def test_shares_of_an_older_round_do_not_open(self) -> None:
        old, old_requests = at_unmask()
        game, requests = at_unmask(Game(identities=old.identities))
        member = members_of(game)[0]
        replayed = old_requests[member].contributions
        assert_member_refuses(
            game, member, altered(requests[member], contributions=replayed), InconsistentViewError, "another round"
        )
        other = members_of(game)[1]
        renamed = tuple(resigned(game, one, context=game.server._rules.context) for one in replayed)
        # Whoever has all clients' signing keys can make it look so. Which of the members' shares it is does not matter.
        assert_member_refuses(
            game, other, altered(requests[other], contributions=renamed), InconsistentViewError, "not the one"
        )
        third = members_of(game)[2]
        own = tuple(
            resigned(game, one, context=game.server._rules.context) for one in old_requests[third].contributions
        )
        asked = altered(requests[third], contributions=own)
        assert_member_complains(game, third, asked, {ONE, TWO, THREE, FOUR}, "does not open")


class TestSeparation:
    """What a key, a mask or an answer belongs to is in what it is derived from."""

    def test_a_sealed_share_belongs_to_round_client_member_key_and_vector(self) -> None:
        first, second = Game(), Game()
        for game in (first, second):
            game.advance(Phase.MASKED_INPUT)
        rules, other = first.server._rules, second.server._rules
        secret = bytes(range(32))
        channels = [
            rules.channel(secret, ONE, TWO),
            rules.channel(secret, TWO, ONE),
            rules.channel(secret, ONE, THREE),
            rules.channel(secret[::-1], ONE, TWO),
            other.channel(secret, ONE, TWO),
        ]
        assert len(set(channels)) == len(channels)
        belongs = [
            rules.associated(ONE, TWO, bytes(32), bytes(32)),
            rules.associated(TWO, TWO, bytes(32), bytes(32)),
            rules.associated(ONE, ONE, bytes(32), bytes(32)),
            rules.associated(ONE, TWO, secret, bytes(32)),
            rules.associated(ONE, TWO, bytes(32), secret),
            other.associated(ONE, TWO, bytes(32), bytes(32)),
        ]
        assert len(set(belongs)) == len(belongs)

    def test_two_rounds_have_no_mask_and_no_view_in_common(self) -> None:
        identities = Game().identities
        games = [Game(round_config(4, round_id=bytes(32)), identities=identities) for _ in range(2)]
        for game in games:
            game.advance(Phase.MASKED_INPUT)
        rules, other = (game.server._rules for game in games)
        assert rules.context != other.context  # the members' fresh bytes
        assert rules.matrix_seed != other.matrix_seed
        views = [rules.view([ONE, TWO]), rules.view([ONE]), rules.view([ONE, THREE]), other.view([ONE, TWO])]
        assert len(set(views)) == len(views)
        assert rules.view([TWO, ONE]) == views[0]


class TestMembers:
    def test_answer_once(self) -> None:
        game, requests = at_unmask()
        for member, request in requests.items():
            assert ask(game, member, request) is not None
            for again in (request, altered(request, contributions=request.contributions[1:])):
                with pytest.raises(LocalProtocolError):
                    game.members[member].receive(encode(again))
            assert len(game.sent_by(member)) == 2

    def test_do_not_answer_when_the_record_was_overtaken(self) -> None:
        """A second request before the first is durable: neither is answered."""
        game, requests = at_unmask()
        member = members_of(game)[0]
        session = game.members[member]
        session.receive(encode(requests[member]))
        with pytest.raises(LocalProtocolError):
            session.receive(encode(altered(requests[member], contributions=requests[member].contributions[1:])))
        with pytest.raises(LocalProtocolError):
            session.persisted()
        assert session._after_persist is None

    @pytest.mark.parametrize("name", ["model", "binding", "round_id"])
    def test_refuse_contributions_to_another_context(self, name: str) -> None:
        """The server runs client 1 on another model, with the same members' keys, and mixes it in."""
        config = round_config(4)
        other = replace(config, **{name: bytes([7]) * 32})  # type: ignore[arg-type]
        game = Game(config, configs={ONE: other})
        game.start()
        plan = {event.to: event.data for event in game.server.close_phase()}  # type: ignore[union-attr]
        committee = decode(plan[ONE], Committee, limit=NO_LIMIT)
        for client in (TWO, THREE, FOUR):
            game.to_party(game.clients[client], plan[client])
        wrong_rules = Rules(other, game.roster)
        game.to_party(game.clients[ONE], encode(msgspec.structs.replace(committee, context=wrong_rules.context)))
        contribution = game.sent_by(ONE)[0]
        assert "another round" in game.rejected[0].reason
        frame = game.parse(contribution)
        events = game.server.close_phase()
        for position, event in enumerate(events):
            request = decode(event.data, UnmaskRequest, limit=NO_LIMIT)  # type: ignore[union-attr]
            planted_one = SealedContribution(
                contribution=frame.message, signature=frame.signature, share=frame.sealed[position]
            )
            mixed = altered(request, contributions=(planted_one, *request.contributions))
            assert_member_refuses(game, event.to, mixed, InconsistentViewError, "another round")  # type: ignore[union-attr, arg-type]

    def test_refuse_a_client_that_was_shown_another_committee(self) -> None:
        """Client 1 sees one member less, so its context is another one."""
        game = Game(
            round_config(4, corrupt_holders=0),
            network=rewriting(lambda shown: msgspec.structs.replace(shown, bundles=shown.bundles[1:]), to=ONE),
        )
        game.advance(Phase.MASKED_INPUT)
        assert ONE not in game.errors
        assert [rejection.client for rejection in game.rejected] == [ONE]

    @pytest.mark.parametrize("what", ["missing", "changed", "foreign", "doubled", "unsorted", "few", "strange"])
    def test_refuse_a_wrong_committee(self, what: str) -> None:
        game, requests = at_unmask()
        member = members_of(game)[0]
        own, second, *rest = requests[member].bundles
        bundles, error, match = {
            "missing": ((second, *rest), InconsistentViewError, "as it advertised it"),
            "changed": (
                (rebundled(game, own, fresh=bytes(32)), second, *rest),
                InconsistentViewError,
                "as it advertised",
            ),
            "foreign": ((own, rebundled(game, second, key=own.key), *rest), InconsistentViewError, "the same key"),
            "doubled": ((own, own, second, *rest), MalformedMessageError, "increase"),
            "unsorted": ((second, own, *rest), MalformedMessageError, "increase"),
            "few": ((own, second), TooFewClientsError, "2 members"),
            "strange": ((rebundled(game, second, member=ONE), own, *rest), InconsistentViewError, "outside"),
        }[what]
        assert_member_refuses(game, member, altered(requests[member], bundles=bundles), error, match)

    def test_refuse_other_keys_of_their_colleagues_by_context(self) -> None:
        """A member does not look at the others' signatures: another key gives another context, and nothing opens."""
        game, requests = at_unmask()
        member = members_of(game)[0]
        own, second, *rest = requests[member].bundles
        bundles = (own, rebundled(game, second, by=ONE, fresh=bytes(32)), *rest)
        assert_member_refuses(game, member, altered(requests[member], bundles=bundles), InconsistentViewError)

    @pytest.mark.parametrize(
        "what",
        ["unsorted", "doubled", "below the floor", "unsigned", "stranger", "swapped", "few shares", "short proof",
         "bad proof"],
    )  # fmt: skip
    def test_refuse_wrong_survivors(self, what: str) -> None:
        game, requests = at_unmask(Game(round_config(4, min_survivors=3)))
        member = members_of(game)[0]
        first, second, *rest = requests[member].contributions
        others, signed = (second, *rest), first.contribution
        stranger = msgspec.structs.replace(rest[-1].contribution, sender=50, vector=bytes(32), ephemeral_key=bytes(32))
        unknown = SealedContribution(contribution=stranger, signature=rest[-1].signature, share=rest[-1].share)
        contributions, error = {
            "unsorted": ((second, first, *rest), MalformedMessageError),
            "doubled": ((first, first, second, *rest), MalformedMessageError),
            "below the floor": ((first, second), TooFewClientsError),
            "unsigned": (
                (msgspec.structs.replace(first, signature=second.signature), second, *rest),
                InvalidSignatureError,
            ),
            "stranger": ((first, second, rest[0], unknown), InvalidSignatureError),
            "swapped": ((msgspec.structs.replace(first, share=second.share), second, *rest), InconsistentViewError),
            "few shares": (
                (resigned(game, first, sealed=signed.sealed[1:]), *others),
                MalformedMessageError,
            ),
            "short proof": (
                (resigned(game, first, proof=signed.proof[:-1]), *others),
                MalformedMessageError,
            ),
            "bad proof": ((resigned(game, first, proof=b"\xff" * 64), *others), MalformedMessageError),
        }[what]
        assert_member_refuses(game, member, altered(requests[member], contributions=tuple(contributions)), error)

    def test_refuse_more_clients_than_the_round_has(self) -> None:
        """Errors would no longer fit below the sum."""
        game, requests = at_unmask(Game(round_config(4)))
        member = members_of(game)[0]
        extra = resigned(
            game,
            requests[member].contributions[0],
            sender=members_of(game)[1],
            vector=bytes(32),
            ephemeral_key=bytes(32),
        )
        contributions = (*requests[member].contributions, extra)
        assert_member_refuses(
            game, member, altered(requests[member], contributions=contributions), InconsistentViewError, "cohort of 4"
        )

    @pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32], ids=["low order", "not canonical"])
    def test_refuse_a_client_key_that_nobody_should_use(self, key: bytes) -> None:
        game, requests = at_unmask()
        member = members_of(game)[0]
        first, *rest = requests[member].contributions
        contributions = (resigned(game, first, ephemeral_key=key), *rest)
        asked = altered(requests[member], contributions=contributions)
        assert_member_complains(game, member, asked, {ONE}, "X25519 public key")

    def test_refuse_a_share_outside_the_field(self) -> None:
        """A malicious client seals 0xffff: its name is in the error."""
        game, requests = at_unmask()
        member = members_of(game)[-1]
        first, *rest = requests[member].contributions
        own = keys.AgreementKey(bytes(range(32)), keys.CLASSICAL)
        rules = game.server._rules
        channel = rules.channel(own.agree(rules.bundles[member].key), ONE, member)
        share = keys.seal(channel, b"\xff" * 4112, associated=rules.associated(ONE, member, own.public, bytes(32)))
        bad = resigned(game, first, share, ephemeral_key=own.public, vector=bytes(32))
        asked = altered(requests[member], contributions=(bad, *rest))
        assert_member_complains(game, member, asked, {ONE}, "outside the field")

    @pytest.mark.parametrize("damage", ["sender", "context", "kind", "bytes"])
    def test_refuse_what_is_not_a_request(self, damage: str) -> None:
        game, requests = at_unmask()
        member = members_of(game)[0]
        request = requests[member]
        data, error = {
            "sender": (altered(request, sender=1), MalformedMessageError),
            "context": (altered(request, context=bytes(32)), InconsistentViewError),
            "kind": (Committee(context=request.context, sender=SERVER, bundles=request.bundles), MalformedMessageError),
            "bytes": (b"\x00" * 100, MalformedMessageError),
        }[damage]
        assert_member_refuses(game, member, data, error)  # type: ignore[arg-type]


class TestPolicy:
    def test_differencing_two_rounds_on_one_model(self) -> None:
        first = Game(round_config(4, min_survivors=3))
        first.run()
        for silent, error in (((), None), ((ONE,), TooFewClientsError)):
            second = Game(
                round_config(4, min_survivors=3),
                identities=first.identities,
                histories=dict(first.histories),
                network=silencing(*silent),
            )
            end = second.play()
            assert (type(end) if end else None) is error
            if error is not None:
                for member in members_of(second):
                    assert isinstance(second.errors[member], PolicyRefusal)
                    assert second.records[member][-1].serial == 2  # type: ignore[union-attr]
                    assert second.members[member]._secrets is None
        on_another_model = Game(
            round_config(4, min_survivors=3, model=bytes([1]) * 32),
            identities=first.identities,
            histories=first.histories,
            network=silencing(ONE),
        )
        assert on_another_model.play() is None

    @pytest.mark.parametrize("floor", [{"min_survivors": 4}, {"corrupt_holders": 2}])
    def test_rounds_below_a_party_s_floors(self, floor: dict[str, int]) -> None:
        policy = replace(ClientPolicy(min_survivors=3, corrupt_holders=1, suite=1), **floor)  # type: ignore[arg-type]
        for party in (ONE, members_of(Game())[0]):
            with pytest.raises(PolicyRefusal, match=next(iter(floor))):
                Game(round_config(4, min_survivors=3), policies={party: policy})

    def test_a_round_is_joined_once(self) -> None:
        first = Game()
        first.run()
        for party in (ONE, members_of(first)[0]):
            with pytest.raises(PolicyRefusal, match="used before"):
                Game(first.config, identities=first.identities, histories={party: first.histories[party]})


class TestClients:
    """What a server may do to the keys that a client sees."""

    @pytest.mark.parametrize(
        ("what", "error"),
        [
            ("swapped key", InvalidSignatureError),
            ("key of the server's own", InvalidSignatureError),
            ("stranger", InconsistentViewError),
            ("doubled", MalformedMessageError),
            ("same key", InconsistentViewError),
            ("few", TooFewClientsError),
            ("low order", MalformedMessageError),
            ("context", InconsistentViewError),
            ("sender", MalformedMessageError),
        ],
    )
    def test_refuse_wrong_members(self, what: str, error: type[ProtocolError]) -> None:
        game = Game()

        def change(shown: Committee) -> Committee:
            first, second, *rest = shown.bundles
            own = keys.AgreementKey(bytes(range(32)), keys.CLASSICAL).public
            changed = {
                "swapped key": (msgspec.structs.replace(first, key=own), second, *rest),
                "key of the server's own": (rebundled(game, first, by=TWO, key=own), second, *rest),
                "stranger": (rebundled(game, first, member=TWO), second, *rest),
                "doubled": (first, first, *rest),
                "same key": (first, rebundled(game, second, key=first.key), *rest),
                "few": (first, second),
                "low order": (rebundled(game, first, key=bytes(32)), second, *rest),
            }.get(what, shown.bundles)
            context = bytes(32) if what == "context" else shown.context
            sender = 3 if what == "sender" else SERVER
            return Committee(context=context, sender=sender, bundles=changed)

        game.network = rewriting(change, to=ONE)
        game.run()
        assert type(game.errors[ONE]) is error, game.errors[ONE]
        assert game.clients[ONE].phase is Phase.ABORTED
        assert game.clients[ONE]._secrets is None
        assert game.sent_by(ONE) == []
        assert game.result is not None
        assert game.result.survivors == {TWO, THREE, FOUR}

    def test_refuse_a_member_s_bundle_seen_before(self) -> None:
        first = Game()
        first.run()
        histories = {party: first.histories[party] for party in first.clients}
        second = Game(
            round_config(4), identities=first.identities, histories=histories
        )  # members forgot: serial 1 again
        assert isinstance(second.play(), TooFewClientsError)
        assert {type(second.errors[client]) for client in second.clients} == {PolicyRefusal}
        assert not any(second.sent_by(client) for client in second.clients)
