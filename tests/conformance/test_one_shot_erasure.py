"""What is left of a one-shot round when a party's part is over, however it ended: nothing secret."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols import ClientId, Phase
from tests.one_shot.game import Game, random_vectors, round_config

from .faults import Fault, FaultyNetwork
from .test_one_shot_sessions import CLIENT, Session, parties_of
from .test_sessions import Watched, secrets_in


def watched_round(network: FaultyNetwork, suite: int = 1) -> tuple[Game, dict[ClientId, Watched]]:
    config = round_config(4, suite=suite)
    rand = {party: Watched() for party in parties_of(config)}
    return Game(config, random_vectors(4), network, late=network.late, rand=rand), rand


def secrets_of(game: Game, party: ClientId, rand: Watched) -> list[bytes]:
    """All that it drew, without what it published."""
    public = b"".join(data for _, data in game.sent)
    return [draw for draw in rand.drawn if draw not in public]


class TestErasure:
    @pytest.mark.parametrize("suite", [1, 2])
    def test_the_walk_finds_secrets_while_they_live(self, suite: int) -> None:
        game, rand = watched_round(FaultyNetwork({}), suite)
        game.advance(Phase.MASKED_INPUT)
        for member, session in game.members.items():
            secrets = secrets_of(game, member, rand[member])
            assert len(secrets) == 1
            assert secrets_in([session], secrets, [rand[member]])

    @pytest.mark.parametrize("suite", [1, 2])
    def test_nothing_is_left_after_a_finished_round(self, suite: int) -> None:
        game, rand = watched_round(FaultyNetwork({}), suite)
        game.run()
        for session in game.sessions:
            secrets = secrets_of(game, session._me, rand[session._me])
            # A client's key, the seeds of its mask, errors, blinding and shares; a member's key.
            assert len(secrets) == (4 + 3 if session._me in game.clients else 1)
            assert secrets_in([session], secrets, [rand[session._me]]) == []
        server = game.server
        assert not any(map(len, (server._received, server._seen, server._answers, server._words, server._complaints)))

    @settings(max_examples=40)
    @given(bit=st.integers(0, 2**15), party=st.sampled_from([1, 2, 101, 104]).map(ClientId))
    def test_nothing_is_left_after_an_abort_not_even_in_the_error(self, bit: int, party: ClientId) -> None:
        game, rand = watched_round(FaultyNetwork({(party, False, 0): Fault(flipped_bit=bit)}))
        game.play()
        assume(party in game.errors)
        session: Session = game.clients.get(party) or game.members[party]
        secrets = secrets_of(game, party, rand[party])
        assert secrets
        assert secrets_in([session], secrets, [rand[party]]) == []
        frames, traceback = [], game.errors[party].__traceback__
        while traceback is not None:
            file = traceback.tb_frame.f_code.co_filename
            if "/protocols/" in file and "/tests/" not in file:
                frames.append(traceback.tb_frame)
            traceback = traceback.tb_next
        roots = [local for frame in frames for local in frame.f_locals.values()]
        assert roots, "the session's own frames are in the traceback"
        left = [one for one in secrets_in(roots, secrets, [rand[party]]) if isinstance(one, bytes)]
        assert left == []

    @pytest.mark.parametrize("draws", range(7))
    def test_a_failing_source_of_randomness_ends_the_round(self, draws: int) -> None:
        """Not a protocol error, but no reason to keep a half-made round alive."""

        class Broken(Watched):
            def __call__(self, size: int) -> bytes:
                if len(self.drawn) >= draws:
                    raise OSError("no randomness")
                return super().__call__(size)

        source = Broken()
        game = Game(rand={CLIENT: source})
        with pytest.raises(OSError, match="no randomness"):
            game.play()
        session = game.clients[CLIENT]
        assert session.phase is Phase.ABORTED
        assert secrets_in([session], source.drawn, [source]) == []

    def test_errors_and_events_carry_no_secrets(self) -> None:
        flips = {(ClientId(party), False, 0): Fault(flipped_bit=500) for party in (1, 101)}
        game, rand = watched_round(FaultyNetwork(flips))
        game.play()
        assert set(game.errors) == {1, 101}
        secrets = [one for source in rand.values() for one in source.drawn]
        for error in game.errors.values():
            text = str(error) + repr(error.args)
            assert all(secret.hex() not in text and repr(secret)[2:-1] not in text for secret in secrets)
            assert len(text) < 500
