"""Vectors at the wrong time or under the wrong name: late ones after their sender was declared dead, and copies."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest

from protocols import ClientId, LocalProtocolError, PeerRejected, Phase, TooFewClientsError
from protocols.primitives import packing, prg
from protocols.roster import signed_text
from protocols.wire import ConsistencyCheck, MaskedInput, SurvivorList, SurvivorSignatures, Unmask, encode
from tests.rounds import Round, Vector, kind_of, random_vectors, round_config

from .hostile import ids, small_round

ALL = ids(1, 2, 3, 4)
LATE = ClientId(4)


def with_late_vector() -> tuple[Round, bytes]:
    """A round at its end: client 4 was declared dead, all others answered, and now its vector is there."""
    held_back: list[bytes] = []
    game = small_round()

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        if sender == LATE and kind_of(data) is MaskedInput:
            held_back.append(data)
            return []
        return [data]

    game.network = network
    game.advance(Phase.UNMASK)
    return game, held_back[0]


class TestLateVector:
    def test_the_late_client_is_brought_back_to_nobody(self) -> None:
        """Server and late client together ask those who answered again, with everybody alive: not a byte comes back."""
        game, late = with_late_vector()
        rules = game.server._rules
        (rejected,) = game.server.receive(LATE, late)
        assert isinstance(rejected, PeerRejected)
        everybody = SurvivorList(context=rules.context, sender=0, survivors=ALL)
        view = rules.view(ALL, ALL)
        message = encode(ConsistencyCheck(context=rules.context, sender=LATE, view=view))
        signature = game.identities[LATE].sign(signed_text("ConsistencyCheck", sha256(message).digest()))
        evidence = SurvivorSignatures(
            context=rules.context, sender=0, signers=ALL, signatures=tuple(signature for _ in ALL)
        )
        before = list(game.sent)
        for client in ids(1, 2, 3):
            for asked in (encode(everybody), encode(evidence)):
                with pytest.raises(LocalProtocolError, match="no message is expected"):
                    game.clients[client].receive(asked)
            assert game.clients[client]._secrets is None
        assert game.sent == before
        assert {name for _, owner, name in game.shares_sent() if owner == LATE} == {"mask key"}
        assert game.run().survivors == set(ids(1, 2, 3))

    @pytest.mark.parametrize("evidence", ["its own", "the others'", "both"])
    def test_the_late_client_itself_refuses(self, evidence: str) -> None:
        """It is told that everybody lives; but all other signatures are on the view in which it is dead."""
        game, _ = with_late_vector()
        rules, session = game.server._rules, game.clients[LATE]
        game.to_client(LATE, encode(SurvivorList(context=rules.context, sender=0, survivors=ALL)))
        own = next(d[-64:] for s, _, d in game.sent if s == LATE and kind_of(d) is ConsistencyCheck)
        known = {**game.server._signatures, LATE: own}
        signers = {"its own": (LATE,), "the others'": ids(1, 2, 3), "both": ALL}[evidence]
        frame = SurvivorSignatures(
            context=rules.context, sender=0, signers=signers, signatures=tuple(known[c] for c in signers)
        )
        game.to_client(LATE, encode(frame))
        assert session.phase is Phase.ABORTED
        assert session._secrets is None
        assert type(game.errors[LATE]).__name__ == (
            "TooFewClientsError" if evidence == "its own" else "InconsistentViewError"
        )
        assert Unmask not in game.kinds_sent(LATE)
        assert LATE not in game.agreed

    def test_it_is_told_that_it_is_dead(self) -> None:
        """The honest list does not hold it: it refuses as well, and keeps what it holds of others."""
        game, _ = with_late_vector()
        frame = SurvivorList(context=game.server._rules.context, sender=0, survivors=ids(1, 2, 3))
        game.to_client(LATE, encode(frame))
        assert "must hold this client" in str(game.errors[LATE])
        assert game.kinds_sent(LATE)[-1] is MaskedInput

    def test_with_fewer_survivors_than_the_floor_nobody_is_unmasked_at_all(self) -> None:
        game = small_round(4, min_survivors=4)
        held_back: list[bytes] = []

        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender == LATE and kind_of(data) is MaskedInput:
                held_back.append(data)
                return []
            return [data]

        game.network = network
        assert isinstance(game.play(), TooFewClientsError)
        assert not game.shares_sent()


def words_of(data: bytes, length: int) -> Vector:
    return np.frombuffer(data[-64 - 4 * length : -64], dtype="<u4")


class TestCopiedVector:
    def test_a_copy_in_a_colluders_name_does_not_double_the_victim(self) -> None:
        """Client 4 signs client 1's masked vector as its own, and tells the server all its own secrets.

        The masks of 1 with 2 and 3 are then in the sum twice, those of 4 not at all. The server removes what it knows:
        every mask of the colluder, and all self masks. What is left over is as large as the ring.
        """
        length = 256
        game = Round(
            round_config(4, threshold=3, min_survivors=3, length=length), random_vectors(4, length, limit=1000)
        )
        victim, colluder = ids(1, 4)
        uploads: dict[ClientId, bytes] = {}
        known: dict[str, bytes] = {}

        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender is None or kind_of(data) is not MaskedInput:
                return [data]
            uploads[sender] = data
            if sender != colluder:
                return [data]
            message = MaskedInput(
                context=game.server._rules.context, sender=colluder, cohort=game.server._cohort_digest
            )
            covered = encode(message) + uploads[victim][-64 - 4 * length : -64]
            return [covered + game.identities[sender].sign(signed_text("MaskedInput", sha256(covered).digest()))]

        game.network = network
        honest = game.clients[colluder].contribute

        def contribute(vector: Vector) -> object:
            secrets = game.clients[colluder]._secrets
            assert secrets is not None
            known["self"] = game.server._rules.self_mask_seed(colluder, secrets.self_seed)
            known.update({str(peer): seed for peer, seed in secrets.pair_seeds.items()})
            return honest(vector)

        game.clients[colluder].contribute = contribute  # type: ignore[method-assign, assignment]
        # The victim's self seed comes out for its own vector, and so takes its mask off the copy as well.
        victims = game.clients[victim]
        honest_victim = victims.contribute

        def contribute_victim(vector: Vector) -> object:
            secrets = victims._secrets
            assert secrets is not None
            known["victim"] = game.server._rules.self_mask_seed(victim, secrets.self_seed)
            return honest_victim(vector)

        victims.contribute = contribute_victim  # type: ignore[method-assign, assignment]
        result = game.run()
        assert not game.rejected
        wanted = game.expected(frozenset(ids(1, 2, 3))) + game.vectors[victim]
        best = packing.pack(result.vector, 32)
        # Server: minus the colluder's self mask, though it is not in there. Attacker: plus it, minus the victim's once
        # more, and the colluder's pair masks: peers of a lower id add them, and the copy holds that of client 1 again.
        pairs = [known[str(peer)] for peer in ids(1, 2, 3)]
        prg.apply_masks(best, add=[known["self"]], subtract=[known["victim"], *pairs, known["1"]])
        for guess in (best, result.vector):
            off = (guess - wanted).astype(np.int32)
            assert np.median(np.abs(off)) > 2**28
            assert len(set(off.tolist())) > length - 2

    def test_the_attackers_arithmetic_is_right(self) -> None:
        """With the two pair masks that it lacks the doubled sum would come out: they are what protects the victim."""
        length = 64
        game = Round(round_config(4, threshold=3, length=length), random_vectors(4, length, limit=1000))
        uploads: dict[ClientId, bytes] = {}
        seeds: dict[tuple[int, int], bytes] = {}
        own: dict[int, bytes] = {}

        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender is not None and kind_of(data) is MaskedInput:
                uploads[sender] = data
            return [data]

        game.network = network
        for client, session in game.clients.items():
            honest = session.contribute

            def contribute(vector: Vector, client: ClientId = client, honest: object = honest) -> object:
                secrets = game.clients[client]._secrets
                assert secrets is not None
                own[client] = game.server._rules.self_mask_seed(client, secrets.self_seed)
                seeds.update({(client, peer): seed for peer, seed in secrets.pair_seeds.items()})
                return honest(vector)  # type: ignore[operator]

            session.contribute = contribute  # type: ignore[method-assign, assignment]
        game.run()
        total = sum((words_of(uploads[client], length) for client in ids(1, 2, 3)), np.zeros(length, dtype="<u4"))
        total = total + words_of(uploads[ClientId(1)], length)
        removed = [own[1], own[2], own[3], own[1], seeds[1, 4], seeds[2, 4], seeds[3, 4], seeds[1, 4]]
        prg.apply_masks(total, add=[], subtract=removed)
        wanted = game.expected(frozenset(ids(1, 2, 3))) + game.vectors[ClientId(1)]
        assert (total != wanted).all()
        prg.apply_masks(total, add=[], subtract=[seeds[1, 2], seeds[1, 3]])
        assert (total == wanted).all()
