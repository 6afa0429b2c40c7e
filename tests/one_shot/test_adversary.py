"""A hostile server, client, member or network gets a typed refusal, and no honest member's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from types import ModuleType

import msgspec
import numpy as np
import pytest

from protocols import (
    ClientId,
    ClientPolicy,
    Event,
    InconsistentViewError,
    InvalidSignatureError,
    LocalProtocolError,
    MalformedMessageError,
    Phase,
    PolicyRefusal,
    ProtocolError,
    RemoteProtocolError,
    SurvivorsSigned,
    TooFewClientsError,
)
from protocols.one_shot.rules import CANARIES, Rules, member_bundle_digest, signature_kind
from protocols.one_shot.wire import (
    Committee,
    Contribution,
    MemberBundle,
    MemberKeys,
    PartialSum,
    SealedContribution,
    UnmaskRequest,
)
from protocols.primitives import key_shares, keys, packing, ring_mask
from protocols.roster import signed_text
from protocols.wire import SERVER, Message, decode, decode_signed, encode

from .game import NO_LIMIT, Game, Network, changing, round_config, signed, silencing

ONE, TWO, THREE, FOUR = (ClientId(i) for i in range(1, 5))


def members_of(game: Game) -> tuple[ClientId, ...]:
    return game.config.committee


def at_unmask(game: Game | None = None) -> tuple[Game, dict[ClientId, UnmaskRequest]]:
    """A round whose members are about to be asked, and what an honest server would ask."""
    game = game or Game()
    game.advance(Phase.MASKED_INPUT)
    events = game.server.close_phase()
    return game, {event.to: decode(event.data, UnmaskRequest, limit=NO_LIMIT) for event in events}  # type: ignore[union-attr, misc]


def ask(game: Game, member: ClientId, request: Message | bytes) -> bytes | None:
    """The member's answer, if it gives one."""
    before = len(game.sent)
    data = request if isinstance(request, bytes) else encode(request)
    session = game.members[member]
    game.call(session, lambda: session.receive(data))
    new = [data for _, data in game.sent[before:]]
    return new[0] if new else None


def assert_member_refuses(
    game: Game, member: ClientId, request: Message | bytes, error: type[ProtocolError], match: str = ""
) -> None:
    assert ask(game, member, request) is None
    assert type(game.errors[member]) is error, game.errors[member]
    assert match in str(game.errors[member])
    session = game.members[member]
    assert session.phase is Phase.ABORTED
    assert session._secrets is None
    assert session._after_persist is None
    assert not any(isinstance(record, SurvivorsSigned) for record in game.records[member])


def altered(request: UnmaskRequest, **changes: object) -> UnmaskRequest:
    return msgspec.structs.replace(request, **changes)


def resigned(
    game: Game, sealed: SealedContribution, share: bytes | None = None, **changes: object
) -> SealedContribution:
    """The contribution with other fields, signed by whom it then names."""
    contribution = msgspec.structs.replace(sealed.contribution, **changes)
    signature = signed(game.identities[ClientId(contribution.sender)], contribution)[-64:]
    return SealedContribution(contribution=contribution, signature=signature, share=share or sealed.share)


def rewriting(change: Callable[[Committee], Message], *, to: ClientId) -> Network:
    """A network that rewrites the server's message to one client."""

    def network(_sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        return [encode(change(decode(data, Committee, limit=NO_LIMIT)))] if receiver == to else [data]

    return network


def rebundled(game: Game, bundle: MemberBundle, *, by: ClientId | None = None, **changes: object) -> MemberBundle:
    """The bundle with other fields, signed by its member or by somebody else."""
    changed = msgspec.structs.replace(bundle, **changes)
    identity = game.identities[by or ClientId(changed.member)]
    signature = identity.sign(signed_text(signature_kind(MemberBundle), member_bundle_digest(changed, game.roster)))
    return msgspec.structs.replace(changed, signature=signature)


class TestCopies:
    """Correlated contributions (WillowFold, eprint 2026/264): no mask enters a sum twice, or under another name."""

    def test_the_server_rejects_a_copy(self) -> None:
        game = Game(network=silencing(TWO))
        game.advance(Phase.MASKED_INPUT)
        frame = game.parse(game.sent_by(ONE)[0])
        for changes in ({}, {"ephemeral_key": keys.AgreementKey(bytes(range(32))).public}):
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
        values = {"vector": bytes(32), "ephemeral_key": keys.AgreementKey(bytes(range(32))).public}
        for member, request in requests.items():
            first, _, *others = request.contributions
            copy = resigned(game, first, sender=TWO, **{name: values[name] for name in fresh})
            listed = (copy, *others) if alone else (first, copy, *others)
            unmarked = alone or len(fresh) == 2
            error = RemoteProtocolError if unmarked else InconsistentViewError
            match = "does not open" if unmarked else "copy"
            assert_member_refuses(game, member, altered(request, contributions=listed), error, match)

    def test_shares_of_one_member_do_not_open_at_another(self) -> None:
        game, requests = at_unmask()
        first, second = members_of(game)[:2]
        assert_member_refuses(
            game, first, altered(requests[first], contributions=requests[second].contributions), RemoteProtocolError
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
        assert_member_refuses(
            game, other, altered(requests[other], contributions=renamed), RemoteProtocolError, "does not open"
        )


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
        bundles, error = {
            "missing": ((second, *rest), InconsistentViewError),
            "changed": ((rebundled(game, own, fresh=bytes(32)), second, *rest), InconsistentViewError),
            "foreign": ((own, rebundled(game, second, key=own.key), *rest), InconsistentViewError),
            "doubled": ((own, own, second, *rest), MalformedMessageError),
            "unsorted": ((second, own, *rest), MalformedMessageError),
            "few": ((own, second), TooFewClientsError),
            "strange": ((rebundled(game, second, member=ONE), own, *rest), InconsistentViewError),
        }[what]
        assert_member_refuses(game, member, altered(requests[member], bundles=bundles), error)

    def test_refuse_other_keys_of_their_colleagues_by_context(self) -> None:
        """A member does not look at the others' signatures: another key gives another context, and nothing opens."""
        game, requests = at_unmask()
        member = members_of(game)[0]
        own, second, *rest = requests[member].bundles
        bundles = (own, rebundled(game, second, by=ONE, fresh=bytes(32)), *rest)
        assert_member_refuses(game, member, altered(requests[member], bundles=bundles), InconsistentViewError)

    @pytest.mark.parametrize("what", ["unsorted", "doubled", "below the floor", "unsigned", "stranger", "swapped"])
    def test_refuse_wrong_survivors(self, what: str) -> None:
        game, requests = at_unmask(Game(round_config(4, min_survivors=3)))
        member = members_of(game)[0]
        first, second, *rest = requests[member].contributions
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
            "swapped": ((msgspec.structs.replace(first, share=second.share), second, *rest), RemoteProtocolError),
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
        assert_member_refuses(
            game, member, altered(requests[member], contributions=contributions), RemoteProtocolError, "client 1"
        )

    def test_refuse_a_share_outside_the_field(self) -> None:
        """A malicious client seals 0xffff: its name is in the error."""
        game, requests = at_unmask()
        member = members_of(game)[-1]
        first, *rest = requests[member].contributions
        own = keys.AgreementKey(bytes(range(32)))
        rules = game.server._rules
        channel = rules.channel(own.agree(rules.bundles[member].key), ONE, member)
        share = keys.seal(channel, b"\xff" * 4096, associated=rules.associated(ONE, member, own.public, bytes(32)))
        bad = resigned(game, first, share, ephemeral_key=own.public, vector=bytes(32))
        assert_member_refuses(
            game,
            member,
            altered(requests[member], contributions=(bad, *rest)),
            RemoteProtocolError,
            "outside the field",
        )
        assert game.errors[member].client_id == ONE

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
        policy = replace(ClientPolicy(min_survivors=3, corrupt_holders=1), **floor)
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
            own = keys.AgreementKey(bytes(range(32))).public
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


class TestServer:
    """What clients, members and the network may do to the result: a rejection or a typed abort, never a wrong sum."""

    def finish(self, game: Game, answers: dict[ClientId, bytes]) -> ProtocolError | None:
        for member, answer in answers.items():
            game.to_server(member, answer)
        return game.play()

    def lie(self, game: Game, answer: bytes, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
        """The answer with other shares, signed by its member."""
        message = decode_signed(answer, PartialSum, limit=NO_LIMIT).message
        share = change(np.frombuffer(message.share, dtype="<u2").astype(np.int64)) % 65521
        forged = msgspec.structs.replace(message, share=share.astype("<u2").tobytes())
        return signed(game.identities[ClientId(message.sender)], forged)

    def answered(self, **config: object) -> tuple[Game, dict[ClientId, bytes]]:
        game, requests = at_unmask(Game(round_config(4, **config)))  # type: ignore[arg-type]
        answers = {}
        game.network = lambda *_: []
        for member, request in requests.items():
            answer = ask(game, member, request)
            assert answer is not None
            answers[member] = answer
        return game, answers

    @pytest.mark.parametrize("liars", [0, 1, 2])
    def test_lying_members_are_located_while_there_are_spare_answers(self, liars: int) -> None:
        """Seven members, threshold four, corrupt one: up to one liar is named, more void the round."""
        committee = tuple(ClientId(101 + i) for i in range(7))
        game, answers = self.answered(committee=committee, corrupt_holders=0)
        named = committee[2 : 2 + liars]
        for member in named:
            answers[member] = self.lie(game, answers[member], lambda share: share + member)  # noqa: B023 - used at once
        error = self.finish(game, answers)
        if liars < 2:
            assert error is None
            assert game.result is not None
            assert np.array_equal(game.result.vector, game.expected(frozenset(game.vectors)))
            assert [rejection.client for rejection in game.rejected] == list(named)
        else:
            assert isinstance(error, RemoteProtocolError)
            assert game.result is None

    @pytest.mark.parametrize("shift", [1, -1, 2**9, 2**10, 2**14, 30_000])
    @pytest.mark.parametrize("everywhere", [False, True])
    def test_a_wrong_key_never_gives_a_sum(self, shift: int, everywhere: bool) -> None:
        """All members move the key by a constant, which is a polynomial too: key, errors and canaries must tell."""
        game, answers = self.answered()
        delta = np.zeros(2048, dtype=np.int64)
        delta[:: 1 if everywhere else 2048] = shift
        forged = {member: self.lie(game, answer, lambda share: share + delta) for member, answer in answers.items()}
        error = self.finish(game, forged)
        assert isinstance(error, RemoteProtocolError)
        assert "wrong" in str(error)
        assert game.result is None
        assert game.server.phase is Phase.ABORTED

    @pytest.mark.parametrize("at", [0, CANARIES - 1])
    def test_canaries_see_a_client_that_writes_behind_its_vector(
        self, at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        game = Game()
        honest = ring_mask.add_errors

        def one_more(words: packing.UInt32Vector, *, seed: bytes) -> None:
            honest(words, seed=seed)
            words[game.config.length + at] += np.uint32(1 << game.config.noise_bits)

        self.corrupt_client(game, ring_mask, "add_errors", one_more, monkeypatch)
        error = game.play()
        assert isinstance(error, RemoteProtocolError)
        assert "canaries" in str(error)
        assert game.result is None

    def test_errors_that_are_too_large_void_the_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        game = Game()

        def large(words: packing.UInt32Vector, **_: bytes) -> None:
            words += np.uint32(1 << (game.config.noise_bits - 1))

        self.corrupt_client(game, ring_mask, "add_errors", large, monkeypatch)
        error = game.play()
        assert isinstance(error, RemoteProtocolError)
        assert "errors" in str(error)

    def corrupt_client(
        self, game: Game, module: ModuleType, name: str, replacement: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Client 1 runs with one function of a module replaced."""
        contribute = game.clients[ONE].contribute

        def malicious(vector: packing.UInt32Vector) -> list[Event]:
            with monkeypatch.context() as patch:
                patch.setattr(module, name, replacement)
                return contribute(vector)

        game.clients[ONE].contribute = malicious  # type: ignore[method-assign]

    @pytest.mark.parametrize("spare", [False, True])
    def test_shares_that_fit_no_polynomial(self, spare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A malicious client seals one wrong share: located with two spare answers, else a typed abort."""
        committee = tuple(ClientId(101 + i) for i in range(6 if spare else 5))
        game = Game(round_config(4, committee=committee, corrupt_holders=0 if spare else 1))
        honest = key_shares.share

        def broken(*args: object, **options: object) -> list[bytes]:
            encoded = honest(*args, **options)  # type: ignore[arg-type]
            first = np.frombuffer(encoded[-1], dtype="<u2").astype(np.int64) + 1
            return [*encoded[:-1], (first % 65521).astype("<u2").tobytes()]

        self.corrupt_client(game, key_shares, "share", broken, monkeypatch)
        error = game.play()
        if spare:
            assert error is None
            assert game.result is not None
            assert np.array_equal(game.result.vector, game.expected(frozenset(game.vectors)))
            assert [rejection.client for rejection in game.rejected] == [committee[-1]]
        else:
            assert isinstance(error, RemoteProtocolError)
            assert game.result is None

    def test_a_client_whose_shares_do_not_open_voids_the_round_and_is_named(self) -> None:
        game = Game()

        def garble(contribution: bytes) -> bytes:
            frame = game.parse(contribution)
            sealed = tuple(bytes(len(one)) for one in frame.sealed)
            return game.contribution(ONE, frame, sealed=sealed, vector=bytes(frame.vector))

        game.network = changing(ONE, garble)
        assert isinstance(game.play(), TooFewClientsError)
        assert {game.errors[member].client_id for member in members_of(game)} == {ONE}

    @pytest.mark.parametrize(
        ("what", "reason"),
        [
            ("view", "other survivors"),
            ("element", "outside the field"),
            ("signer", "does not verify"),
            ("sender", "came from"),
            ("context", "another round"),
            ("flip", ""),
        ],
    )
    def test_rejects_bad_answers(self, what: str, reason: str) -> None:
        game, answers = self.answered()
        member, other = members_of(game)[:2]
        message = decode_signed(answers[member], PartialSum, limit=NO_LIMIT).message
        identity = game.identities[member]
        bad = {
            "view": signed(identity, msgspec.structs.replace(message, view=bytes(32))),
            "element": signed(identity, msgspec.structs.replace(message, share=b"\xff" * 4096)),
            "signer": signed(game.identities[other], message),
            "sender": answers[other],
            "context": signed(identity, msgspec.structs.replace(message, context=bytes(32))),
            "flip": answers[member][:-1] + bytes([answers[member][-1] ^ 1]),
        }[what]
        game.to_server(member, bad)
        assert [rejection.client for rejection in game.rejected] == [member]
        assert reason in game.rejected[0].reason
        assert self.finish(game, answers) is None
        assert game.result is not None
        game.network = lambda *_: []

    def test_takes_one_answer_of_each_member(self) -> None:
        game, answers = self.answered()
        member = members_of(game)[0]
        game.to_server(member, answers[member])
        game.to_server(member, answers[member])
        assert [rejection.client for rejection in game.rejected] == [member]

    @pytest.mark.parametrize("what", ["owner", "signer", "low order", "taken", "sender", "no member"])
    def test_rejects_bad_member_keys(self, what: str) -> None:
        game = Game()
        member, other = members_of(game)[:2]

        def change(data: bytes) -> bytes:
            message = decode(data, MemberKeys, limit=NO_LIMIT)
            bundle = message.bundle
            taken = game.server._offered[member].key if what == "taken" else bytes(32)
            return encode(
                msgspec.structs.replace(
                    message,
                    sender=member if what == "sender" else other,
                    bundle={
                        "owner": rebundled(game, bundle, member=member),
                        "signer": rebundled(game, bundle, by=ONE),
                        "low order": rebundled(game, bundle, key=bytes(32)),
                        "taken": rebundled(game, bundle, key=taken),
                    }.get(what, bundle),
                )
            )

        game.network = changing(other, change)
        if what == "no member":
            game.network = lambda *_: [_[2]]
            game.to_server(ONE, b"")
        game.start()
        assert [rejection.client for rejection in game.rejected] == [ONE if what == "no member" else other]
        assert game.server.waiting_for == (frozenset() if what == "no member" else {other})
        game.run()
        assert game.result is not None

    @pytest.mark.parametrize("what", ["signer", "sender", "low order"])
    def test_rejects_bad_contributions(self, what: str) -> None:
        game = Game(network=silencing(ONE))
        game.advance(Phase.MASKED_INPUT)
        good = game.sent_by(ONE)[0]
        frame = game.parse(good)
        sealed, vector = frame.sealed, bytes(frame.vector)
        bad = {
            "signer": game.contribution(TWO, frame, sealed=sealed, vector=vector, sender=ONE),
            "sender": game.contribution(TWO, frame, sealed=sealed, vector=vector),
            "low order": game.contribution(ONE, frame, sealed=sealed, vector=vector, ephemeral_key=bytes(32)),
        }[what]
        if what == "signer":
            start = len(bad) - len(vector) - sum(map(len, sealed))
            covered = bad[: start - 64]
            digest = sha256(covered).digest()
            signature = game.identities[TWO].sign(signed_text(signature_kind(Contribution), digest))
            bad = covered + signature + bad[start:]
        game.to_server(ONE, bad)
        assert [rejection.client for rejection in game.rejected] == [ONE]
        game.to_server(ONE, good)
        game.run()
        assert game.result is not None
        assert ONE in game.result.survivors

    def test_two_servers_cannot_both_finish(self) -> None:
        """A server that forks itself after the contributions gets its members' answers for one of the two sums only."""
        game, requests = at_unmask(Game(round_config(4, min_survivors=3)))
        views: list[frozenset[ClientId]] = [frozenset({ONE, TWO, THREE, FOUR}), frozenset({TWO, THREE, FOUR})]
        got: list[int] = [0, 0]
        for i, (member, request) in enumerate(requests.items()):
            for view in (i % 2, 1 - i % 2):
                listed = tuple(one for one in request.contributions if one.contribution.sender in views[view])
                got[view] += ask(game, member, altered(request, contributions=listed)) is not None
        assert sum(got) == len(requests)
        assert min(got) < game.config.threshold
