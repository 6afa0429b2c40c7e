"""No keystream, nonce or masked vector serves twice: whoever subtracts two of them sees the difference of two secrets.

Tests listen where secrets meet a cipher (`seams`), over several rounds of the same clients, with crashes between.
"""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from hashlib import shake_256

import numpy as np
import pytest

from protocols import ClientId, LocalProtocolError, MalformedMessageError, Phase
from protocols.primitives import prg
from protocols.wire import ConsistencyCheck, MaskedInput, SealedShares, ShareKeys, Unmask
from tests.one_shot.game import Game
from tests.one_shot.game import round_config as one_shot_config
from tests.rounds import Round, Vector, kind_of, random_vectors, round_config
from tests.secagg.parties import Parties, plain_config, updates_for

from .hostile import assert_refused, ids, silencing, small_round, together
from .seams import Seams, Stream, listening

ALL = ids(1, 2, 3, 4)
LONG = prg.BLOCK_BYTES // 4 + 5000  # words: more than one piece of keystream


def named(seams: Seams, game: Round, number: int) -> Round:
    """A round whose streams are made in the name of (number of the round, client or "server")."""
    for client, session in game.clients.items():
        honest = session.contribute

        def contribute(vector: Vector, client: ClientId = client, honest: Callable[..., object] = honest) -> object:
            return seams.heard((number, client), lambda: honest(vector))

        session.contribute = contribute  # type: ignore[method-assign, assignment]
    close = game.server.close_phase
    game.server.close_phase = lambda: seams.heard((number, "server"), close)  # type: ignore[method-assign]
    return game


def rounds(seams: Seams, suite: int, *, length: int = 5) -> list[Round]:
    """Three rounds of the same four clients; in the second all crash after their vectors left, and start again."""
    games: list[Round] = []
    for number in range(3):
        last = games[-1] if games else None
        game = Round(
            round_config(4, threshold=3, length=length, suite=suite, model=bytes([number]) * 32),
            {client: np.zeros(length, dtype=np.uint32) for client in ALL},
            identities=last.identities if last else {},
            histories=dict(last.histories) if last else {},
        )
        named(seams, game, number)
        if number == 1:
            game.network = together(*(silencing(client, ConsistencyCheck, Unmask) for client in ALL))
        if number == 2:
            game.network = silencing(ClientId(4), MaskedInput, ConsistencyCheck, Unmask)
        game.play()
        games.append(game)
    assert [game.result is not None for game in games] == [True, False, True]
    return games


@pytest.mark.parametrize("suite", [1, 2])
class TestMasks:
    def test_no_client_uses_a_stream_twice(self, suite: int) -> None:
        """Each seed is one stream from block 0 over the whole vector; a pair's two ends are all who share it."""
        with listening() as seams:
            rounds(seams, suite, length=LONG)
        by_clients = seams.made_by(*((number, client) for number in range(3) for client in ALL))
        assert len(by_clients) == 3 * 4 * 4  # in each round, of each client: its own and three pairs'
        assert all(stream.first_block == 0 for stream in by_clients)
        users: dict[bytes, list[tuple[int, ClientId]]] = {}
        for number in range(3):
            for client in ALL:
                for stream in seams.made_by((number, client)):
                    users.setdefault(stream.key, []).append((number, client))
        for who in users.values():
            assert len(who) == len(set(who)) <= 2
            assert len({number for number, _ in who}) == 1
        assert Counter(len(who) for who in users.values()) == {1: 3 * 4, 2: 3 * 6}
        by_server = seams.made_by(*((number, "server") for number in range(3)))
        assert {stream.key for stream in by_server} <= set(users)

    def test_no_block_of_a_mask_occurs_twice(self, suite: int) -> None:
        """Vectors of zeros show their masks: all cipher blocks of all uploads of all rounds are different."""
        with listening() as seams:
            games = rounds(seams, suite, length=LONG)
        seen: set[bytes] = set()
        count = 0
        for game in games:
            for _, _, data in game.sent:
                if kind_of(data) is MaskedInput:
                    mask = data[-64 - 4 * LONG : -64]
                    blocks = [mask[i : i + 16] for i in range(0, len(mask) - 15, 16)]
                    seen.update(blocks)
                    count += len(blocks)
        assert count == 3 * 4 * (4 * LONG // 16)
        assert len(seen) == count

    def test_workers_take_disjoint_ranges_of_a_stream(self, suite: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server removes masks in pieces, in any order: no piece of a stream is made twice."""
        step, length = 64, 70
        monkeypatch.setattr("protocols.pairwise.server.SEGMENT_BYTES", step)
        game = Round(round_config(4, threshold=3, length=length, suite=suite), random_vectors(4, length))
        game.server = type(game.server)(game.config, roster=game.roster, map=lambda f, x: [f(y) for y in x][::-1])
        with listening() as seams:
            named(seams, game, 0).run()
        pieces = Counter((stream.key, stream.first_block) for stream in seams.made_by((0, "server")))
        assert set(pieces.values()) == {1}
        starts = {first for _, first in pieces}
        assert starts == set(range(0, 4 * length // 16 + 1, step // 16))
        assert len(pieces) == 4 * len(starts)  # everybody lives: four self masks


@pytest.mark.parametrize("suite", [1, 2])
class TestSeals:
    def test_no_key_seals_twice(self, suite: int) -> None:
        """With one key for one message the constant nonce is no repetition."""
        with listening() as seams:
            rounds(seams, suite)
        assert len(seams.seals) == 3 * 4 * 3 * suite  # in the hybrid suite also the halves of pair secrets
        assert len({key for key, _ in seams.seals}) == len(seams.seals)
        assert {key for key, _ in seams.seals}.isdisjoint(stream.key for stream in seams.streams)


class TestOneShot:
    def test_no_secret_stream_and_no_sealing_key_serves_twice(self) -> None:
        """Of keys, errors and shares, over two rounds; the public matrix is the same for everybody."""
        seen: set[bytes] = set()
        sealed: set[bytes] = set()
        identities = Game().identities
        for _ in range(2):
            game = Game(one_shot_config(), identities=identities)
            with listening() as seams:
                for client, session in game.clients.items():
                    honest = session.contribute

                    def contribute(
                        vector: Vector, client: ClientId = client, honest: Callable[..., object] = honest
                    ) -> object:
                        return seams.heard(client, lambda: honest(vector))

                    session.contribute = contribute  # type: ignore[method-assign, assignment]
                game.run()
            matrix = game.server._rules.matrix_seed
            for client in game.clients:
                mine = [stream for stream in seams.made_by(client) if stream.key != matrix]
                assert len(mine) == len(set(mine))
                keys = {stream.key for stream in mine}
                # The key, the errors, the blinding; shares that are streams; and the challenge, which is public.
                assert len(keys) == 3 + game.config.threshold - 1 + 1
                assert keys.isdisjoint(seen)
                seen |= keys
            assert matrix not in seen
            used = [key for key, _ in seams.seals]
            assert len(used) == len(set(used)) == len(game.clients) * len(game.members)
            assert sealed.isdisjoint(used)
            sealed.update(used)
        assert seen.isdisjoint(sealed)


class TestOneUpload:
    def test_a_second_request_for_a_vector_ends_the_round(self) -> None:
        """The server shows the cohort again, or another one: no second upload leaves, and no share."""
        for smaller in (False, True):
            game = small_round(5)
            frames: dict[ClientId, bytes] = {}

            def network(
                _sender: ClientId | None, receiver: ClientId | None, data: bytes,
                frames: dict[ClientId, bytes] = frames,
            ) -> list[bytes]:  # fmt: skip
                if receiver is None or kind_of(data) is not SealedShares:
                    return [data]
                frames[receiver] = data
                return [data]

            game.network = network
            game.advance(Phase.MASKED_INPUT)
            for client in game.clients:
                other = frames[ClientId(client % 5 + 1)] if smaller else frames[client]
                game.to_client(client, other)
            assert_refused(game, MalformedMessageError)
            for client in game.clients:
                assert game.kinds_sent(client).count(MaskedInput) == 1
                with pytest.raises(LocalProtocolError):
                    game.clients[client].contribute(game.vectors[client])

    def test_a_second_vector_of_the_application_ends_the_round(self) -> None:
        """Two tensors are two entries of one vector, never two calls."""
        for phase in (Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK, Phase.UNMASK):
            game = small_round()
            game.advance(phase)
            before = len(game.sent)
            for client, session in game.clients.items():
                with pytest.raises(LocalProtocolError):
                    session.contribute(game.vectors[client])
                assert session._secrets is None
            assert len(game.sent) == before
        config = plain_config()
        parties = Parties(config)
        parties.open(updates_for(config))
        parties.advance(Phase.MASKED_INPUT)
        uploads = len(parties.sent)
        with pytest.raises(LocalProtocolError):
            parties.clients[1].contribute(updates_for(config)[1])
        assert len(parties.sent) == uploads

    def test_known_values_give_away_nothing_else(self) -> None:
        """Half of a vector is known (counts, padding): its mask is no mask of the other half, in any order or sign."""
        length = 4096
        game = Round(round_config(3, threshold=3, length=length), random_vectors(3, length))
        game.run()
        for client, vector in game.vectors.items():
            data = next(d for s, _, d in game.sent if s == client and kind_of(d) is MaskedInput)
            mask = np.frombuffer(data[-64 - 4 * length : -64], dtype="<u4") - vector
            known, unknown = mask[: length // 2], mask[length // 2 :]
            # 2048 words of 32 bits against 2048: one meets another by chance in one of a thousand runs.
            assert len(set(known.tolist()) & set(unknown.tolist())) <= 2
            assert len(set(known.tolist()) & set((-unknown).tolist())) <= 2


def repeating(client: ClientId) -> Callable[[int], bytes]:
    """A random source that starts again in each round, as after a restored image of a machine."""
    given = 0

    def rand(size: int) -> bytes:
        nonlocal given
        given += size
        return shake_256(bytes([client])).digest(given)[given - size :]

    return rand


class TestRepeatedRandomness:
    @pytest.mark.parametrize("suite", [1, 2])
    def test_another_round_has_other_masks_and_seals(self, suite: int) -> None:
        """Everybody draws the very same bytes in both rounds; the rounds differ in their id alone."""
        drawn: list[set[Stream]] = []
        sealed: list[set[bytes]] = []
        uploads: list[bytes] = []
        first = small_round(suite=suite)
        for _ in range(2):
            game = Round(
                round_config(4, threshold=3, suite=suite), first.vectors,
                identities=first.identities, rand={client: repeating(client) for client in ALL},
            )  # fmt: skip
            with listening() as seams:
                game.run()
            drawn.append({Stream(None, stream.key, 0) for stream in seams.streams})
            sealed.append({key for key, _ in seams.seals})
            uploads.append(next(d for s, _, d in game.sent if s == 1 and kind_of(d) is MaskedInput)[-84:-64])
            bundles = game.server._rules.bundles
            assert {bundle.serial for bundle in bundles.values()} == {1}
        assert drawn[0]
        assert drawn[0].isdisjoint(drawn[1])
        assert sealed[0].isdisjoint(sealed[1])
        assert uploads[0] != uploads[1]

    @pytest.mark.parametrize("keep", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_live_sessions_cannot_be_kept(self, keep: Callable[[object], object]) -> None:
        """In no phase: there is no state to restore twice. The refusal changes nothing."""
        for phase in (Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK, Phase.UNMASK):
            game = small_round()
            game.advance(phase)
            for session in game.clients.values():
                for kept in (session, session._secrets):
                    if kept is not None:
                        with pytest.raises(TypeError, match="cannot be pickled"):
                            keep(kept)
            game.run()
            assert game.result is not None
            assert all(ShareKeys in game.kinds_sent(client) for client in ALL)
