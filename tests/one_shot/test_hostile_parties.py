"""What clients and members may do to the result: a rejection or a typed abort, never a wrong sum."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from types import ModuleType

import msgspec
import numpy as np
import pytest

from protocols import (
    ClientId,
    Event,
    Phase,
    ProtocolError,
    RemoteProtocolError,
)
from protocols.one_shot.rules import CANARIES, signature_kind
from protocols.one_shot.wire import (
    Contribution,
    MemberKeys,
    PartialSum,
)
from protocols.primitives import packing, ring_mask
from protocols.roster import signed_text
from tests.classical import decode, decode_signed, encode

from .game import NO_LIMIT, Game, changing, round_config, signed, silencing
from .hostile import (
    FOUR,
    ONE,
    THREE,
    TWO,
    altered,
    ask,
    at_unmask,
    members_of,
    rebundled,
)


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
        """Seven members, threshold five: up to one liar is named, more void the round."""
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
        assert ("sum of the keys" if abs(shift) > 200 else "sum of the errors") in str(error)
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
            words[game.config.length + at :][:1] += np.uint32(1 << game.config.noise_bits)

        self.corrupt_client(game, ring_mask, "add_errors", one_more, monkeypatch)
        error = game.play()
        assert isinstance(error, RemoteProtocolError)
        assert "canaries" in str(error)
        assert game.result is None

    @pytest.mark.parametrize("error_of_one", [200, 512, 2**32 - 200])
    def test_errors_that_are_too_large_void_the_round(self, error_of_one: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Four clients: the bound is 90, half of the room 512."""
        game = Game()

        def large(words: packing.UInt32Vector, **_: bytes) -> None:
            words += np.uint32(error_of_one)

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
                        "owner": rebundled(game, bundle, by=other, member=member),
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
