"""Shares that do not open, or do not fit: who sealed what to whom is named, and no honest share is opened by it."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from types import ModuleType

import msgspec
import numpy as np
import pytest

from protocols import ClientId, Event, PeerRejected, Phase, RemoteProtocolError, TooFewClientsError
from protocols.errors import BadShareError
from protocols.one_shot import client as client_module
from protocols.one_shot.rules import signature_kind
from protocols.one_shot.sealed import seal
from protocols.one_shot.wire import Complaint, Contribution, PartialSum
from protocols.primitives import key_shares, packing
from protocols.primitives.shamir import PRIME
from protocols.roster import signed_text
from protocols.wire import encode
from tests.classical import decode_signed

from .game import NO_LIMIT, Game, members, random_vectors, round_config, signed, silencing
from .hostile import ONE, THREE, TWO, altered, ask, assert_member_complains, at_unmask, members_of, resigned

M1, M2, M3, M4, M5 = members(5)


def off_by_one(encoded: bytes) -> bytes:
    """The share with one element moved, or another seed: still in the field, and on no common polynomial."""
    if len(encoded) == 32:
        return encoded[::-1]
    share = key_shares.decode(encoded).astype(np.int64)
    share[7] += 1
    return (share % PRIME).astype("<u2").tobytes()


def with_bad_dealer(*positions: int, suite: int = 1, liars: tuple[ClientId, ...] = (ONE,)) -> Game:
    """Clients that share inconsistently: their shares at these positions are moved."""
    honest = key_shares.share

    def broken(*args: object, **options: object) -> tuple[list[bytes], list[key_shares.Share]]:
        encoded, first = honest(*args, **options)  # type: ignore[arg-type]
        moved = [off_by_one(one) if i in positions else one for i, one in enumerate(encoded)]
        return moved, [key_shares.decode(one) for one in moved[: len(first)]]

    game = Game(round_config(4, suite=suite), random_vectors(4))
    for liar in liars:
        replacing(game, liar, key_shares, "share", broken)
    return game


def with_bad_sealer(*positions: int, suite: int = 1, **options: object) -> Game:
    """Client 1 seals what nobody can open to the members at these positions; its proof is for what it sealed."""
    game = Game(round_config(4, suite=suite, **options), random_vectors(4))  # type: ignore[arg-type]
    sealing_badly(game, *(members_of(game)[position] for position in positions))
    return game


def sealing_badly(game: Game, *bad: ClientId) -> None:
    """Client 1 of this game does."""

    def garbled(*args: object, member: ClientId, **options: object) -> bytes:
        sealed = seal(*args, member=member, **options)  # type: ignore[arg-type]
        return bytes(len(sealed)) if member in bad else sealed

    replacing(game, ONE, client_module, "seal", garbled)


def replacing(game: Game, liar: ClientId, module: ModuleType, name: str, function: Callable[..., object]) -> None:
    """From its contribution on, a client runs with a function replaced."""
    contribute = game.clients[liar].contribute

    def malicious(vector: packing.UInt32Vector) -> list[Event]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, function)
            return contribute(vector)

    game.clients[liar].contribute = malicious  # type: ignore[method-assign]


def complaints(game: Game) -> dict[ClientId, list[ClientId]]:
    """Member -> the clients that it named."""
    return {member: [event.client for event in rejected] for member, rejected in game.refused.items() if rejected}


class TestNamed:
    @pytest.mark.parametrize("suite", [1, 2])
    @pytest.mark.parametrize("position", [0, 4])
    def test_one_bad_share_costs_one_answer(self, position: int, suite: int) -> None:
        """Four of five answers are enough; the fifth is a complaint, and the sum is exact."""
        game = with_bad_sealer(position, suite=suite)
        member = members_of(game)[position]
        assert game.play() is None
        assert game.result is not None
        assert np.array_equal(game.result.vector, game.expected(frozenset(game.vectors)))
        assert complaints(game) == {member: [ONE]}
        assert [rejection.client for rejection in game.rejected] == [ONE]
        assert f"member {member}" in game.rejected[0].reason

    @pytest.mark.parametrize("positions", [(3, 4), (0, 1), (0, 4), (0, 1, 2, 3, 4)])
    def test_more_than_are_spare_end_the_round_and_name_every_pair(self, positions: tuple[int, ...]) -> None:
        game = with_bad_sealer(*positions)
        error = game.play()
        assert isinstance(error, BadShareError)
        assert isinstance(error, RemoteProtocolError)
        assert error.pairs == tuple((ONE, members_of(game)[position]) for position in positions)
        assert error.client_id == ONE
        assert error.phase == "Unmask"
        assert all(f"from client 1 to member {member}" in str(error) for _, member in error.pairs)
        assert game.result is None
        assert game.server.phase is Phase.ABORTED

    @pytest.mark.parametrize("suite", [1, 2])
    @pytest.mark.parametrize("position", range(5))
    def test_a_share_off_the_polynomial_is_noticed(self, position: int, suite: int) -> None:
        """The proof speaks of the polynomial through the first four shares. Whichever is moved, the last one is off it.

        If it is the last one that was moved, the others give the right key, else a wrong one: the pair is named.
        """
        game = with_bad_dealer(position, suite=suite)
        error = game.play()
        assert complaints(game) == {M5: [ONE]}
        assert "not on the polynomial" in game.refused[M5][0].reason
        if position == 4:
            assert error is None
            assert game.result is not None
            assert np.array_equal(game.result.vector, game.expected(frozenset(game.vectors)))
        else:
            assert isinstance(error, BadShareError)
            assert error.pairs == ((ONE, M5),)
            assert "the sum of the " in str(error)

    def test_two_liars_are_both_named(self) -> None:
        game = with_bad_dealer(4, liars=(ONE, THREE))
        game.network = silencing(M1, after=1)
        error = game.play()
        assert isinstance(error, BadShareError)
        assert error.pairs == ((ONE, M5), (THREE, M5))
        assert error.client_id is None

    def test_silence_without_complaints_is_nobody_s_fault(self) -> None:
        game = Game(network=silencing(M1, M2, after=1))
        assert isinstance(game.play(), TooFewClientsError)

    def test_a_retry_without_the_client_succeeds(self) -> None:
        """A driver that leaves out the named client gets the sum of the others, in a new round on another model.

        On the same one the members that have answered would refuse, unless distributed noise is charged.
        """
        game = with_bad_sealer(0, 1, min_survivors=3)
        error = game.play()
        assert isinstance(error, BadShareError)
        retry = Game(
            round_config(4, min_survivors=3, model=bytes([1]) * 32),
            identities=game.identities,
            histories=game.histories,
            network=silencing(*{sender for sender, _ in error.pairs}),
            serials=game.server.serials,
        )
        assert retry.play() is None
        assert retry.result is not None
        assert retry.result.survivors == set(game.vectors) - {ONE}


class TestEvidence:
    """What a complaint proves: two signed statements that cannot both be honest."""

    def test_client_and_member_signed_what_contradicts(self) -> None:
        game, requests = at_unmask()
        request = requests[M1]
        first, *rest = request.contributions
        bad = resigned(game, first, share=bytes(len(first.share)))
        complaint = assert_member_complains(
            game, M1, altered(request, contributions=(bad, *rest)), {ONE}, "does not open"
        )
        (accusation,) = complaint.accused
        covered = encode(bad.contribution, suite=game.server._rules.suite)
        assert accusation.contribution == sha256(covered).digest()
        game.roster.check_signature(ONE, signature_kind(Contribution), sha256(covered).digest(), bad.signature)
        assert bad.contribution.sealed[0] == sha256(bad.share).digest()
        answer = game.sent_by(M1)[-1]
        frame = decode_signed(answer, Complaint, limit=NO_LIMIT)
        game.roster.check_signature(M1, signature_kind(Complaint), frame.digest, frame.signature)

    def test_the_server_cannot_make_a_member_accuse_an_honest_client(self) -> None:
        """Whatever it exchanges, other bytes than the client signed are the server's fault, and no share leaves."""
        game, requests = at_unmask()
        for member, request in requests.items():
            first, second, *rest = request.contributions
            for share in (second.share, bytes(len(first.share)), first.share[:-1] + b"\0"):
                session = game.members[member]
                changed = altered(request, contributions=(altered(first, share=share), second, *rest))
                if session.phase is Phase.ADVERTISE_KEYS:
                    assert ask(game, member, changed) is None
                    assert "not the one that was signed" in str(game.errors[member])
        assert not complaints(game)

    def test_a_complaint_says_nothing_about_any_share(self) -> None:
        """Same round, same bad client, other keys and vectors of all others: the complaint differs in digests."""
        said = []
        for seed in range(2):
            game, requests = at_unmask(Game(vectors=random_vectors(4, seed=seed)))
            first, *rest = requests[M1].contributions
            bad = resigned(game, first, share=bytes(len(first.share)))
            answer = ask(game, M1, altered(requests[M1], contributions=(bad, *rest)))
            assert answer is not None
            message = decode_signed(answer, Complaint, limit=NO_LIMIT).message
            rules = game.server._rules
            assert (message.context, message.view) == (rules.context, rules.view(game.vectors))
            said.append((message.sender, [one.client for one in message.accused], len(answer)))
        assert said[0] == said[1]

    def test_a_false_complaint_costs_its_member_s_answer_and_opens_nothing(self) -> None:
        game, requests = at_unmask()
        game.network = lambda *_: []
        answers = {member: ask(game, member, request) for member, request in requests.items()}
        contribution = requests[M1].contributions[0].contribution
        view = game.server._rules.view(game.vectors)
        accusation = {
            "client": ONE,
            "contribution": sha256(encode(contribution, suite=game.server._rules.suite)).digest(),
        }
        lie = msgspec.convert([21, game.server._rules.context, int(M1), view, [[*accusation.values()]]], type=Complaint)
        answers[M1] = signed(game.identities[M1], lie)
        for member, answer in answers.items():
            assert answer is not None
            assert game.server.receive(member, answer) == []
        game.step()
        assert game.result is not None
        assert np.array_equal(game.result.vector, game.expected(frozenset(game.vectors)))
        assert [rejection.client for rejection in game.rejected] == [ONE]
        assert f"or that member {M1}" in game.rejected[0].reason or f"member {M1}" in game.rejected[0].reason


class TestServer:
    """Complaints that the server rejects: they have no effect, and the member may still answer."""

    @pytest.mark.parametrize(
        ("what", "reason"),
        [
            ("view", "other survivors"),
            ("stranger", "no survivor sent"),
            ("digest", "no survivor sent"),
            ("unsorted", "increase"),
            ("nobody", "at least 1|length >= 1"),
            ("signer", "does not verify"),
            ("sender", "came from"),
            ("context", "another round"),
        ],
    )
    def test_rejects(self, what: str, reason: str) -> None:
        game, requests = at_unmask()
        game.network = lambda *_: []
        answers = {member: ask(game, member, request) for member, request in requests.items()}
        rules = game.server._rules
        digests = {
            one.contribution.sender: sha256(encode(one.contribution, suite=rules.suite)).digest()
            for one in requests[M1].contributions
        }
        accused = [[1, digests[1]], [2, digests[2]]]
        fields = {"context": rules.context, "sender": int(M1), "view": rules.view(game.vectors), "accused": accused}
        match what:
            case "view" | "context":
                fields[what] = bytes(32)
            case "sender":
                fields["sender"] = int(M2)
            case "stranger":
                fields["accused"] = [[9, digests[1]]]
            case "digest":
                fields["accused"] = [[1, digests[2]]]
            case "unsorted":
                fields["accused"] = accused[::-1]
            case "nobody":
                fields["accused"] = []
        body = msgspec.msgpack.encode([21, *fields.values()])
        covered = b"SAGG\x01\x01" + body
        signer = M2 if what in ("signer", "sender") else M1
        text = signed_text(signature_kind(Complaint), sha256(covered).digest())
        (rejection,) = game.server.receive(M1, covered + game.identities[signer].sign(text))
        assert isinstance(rejection, PeerRejected)
        assert any(one in rejection.reason for one in reason.split("|")), rejection.reason
        for member, answer in answers.items():
            assert answer is not None
            assert game.server.receive(member, answer) == []
        game.step()
        assert game.result is not None
        assert [event for event in game.rejected if isinstance(event, PeerRejected)] == []

    def test_a_member_says_one_thing(self) -> None:
        """A complaint after an answer, or an answer after a complaint, is not taken."""
        game = with_bad_dealer(4)
        game.advance(Phase.UNMASK)
        (complaint,) = [data for data in game.sent_by(M5) if data[7] == 21]
        again = game.server.receive(M5, complaint)
        assert "nothing is expected" in again[0].reason  # type: ignore[union-attr]
        assert PartialSum.__struct_config__.tag == 20


class TestProof:
    def test_a_contribution_without_a_proof_for_its_shares_is_rejected_by_the_server(self) -> None:
        for proof in (b"", bytes(2 * 8 * 3), b"\xff" * 64):
            game = Game(network=silencing(ONE))
            game.advance(Phase.MASKED_INPUT)
            frame = game.parse(game.sent_by(ONE)[0])
            data = game.contribution(ONE, frame, sealed=frame.sealed, vector=bytes(frame.vector), proof=proof)
            game.to_server(ONE, data)
            assert [rejection.client for rejection in game.rejected] == [ONE]
            assert game.server._received.keys() == set(game.vectors) - {ONE}

    def test_the_challenge_is_of_one_round_client_key_vector_and_shares(self) -> None:
        game, other = Game(), Game()
        for one in (game, other):
            one.advance(Phase.MASKED_INPUT)
        rules = game.server._rules
        said = [bytes([i]) * 32 for i in range(4)]
        challenges = [
            rules.challenge(ONE, said[0], said[1], said[2:]),
            rules.challenge(TWO, said[0], said[1], said[2:]),
            rules.challenge(ONE, said[1], said[1], said[2:]),
            rules.challenge(ONE, said[0], said[0], said[2:]),
            rules.challenge(ONE, said[0], said[1], said[:2]),
            rules.challenge(ONE, said[0], said[1], said[2:3]),
            other.server._rules.challenge(ONE, said[0], said[1], said[2:]),
        ]
        assert len(set(challenges)) == len(challenges)

    def test_every_member_is_challenged_alike_whatever_else_it_is_shown(self) -> None:
        """A proof is the client's own: a member that is shown fewer clients checks, and answers, the same of each."""
        game, requests = at_unmask()
        for member, request in requests.items():
            less = altered(request, contributions=request.contributions[int(member) % 2 :])
            answer = ask(game, member, less)
            assert answer is not None
            assert answer[7] == 20
        assert not complaints(game)
