"""A contributor that breaks the arithmetic of masks: the server ends in a typed error, and members have said no more.

A member answers once, for one set of clients, with the sum of its shares. Whatever one of these clients sealed, the
answer is about the sum alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from protocols import Event, Phase, ProtocolError, RemoteProtocolError, SurvivorsSigned
from protocols.primitives import key_shares, packing, ring_mask
from protocols.primitives.ring_mask import Coefficients
from protocols.primitives.shamir import PRIME

from .game import Game, random_vectors
from .hostile import ONE, members_of

FUNCTIONS = {"sample": ring_mask, "add_errors": ring_mask, "share": key_shares}


def with_liar(replaced: dict[str, Callable[..., object]], vector: np.ndarray | None = None) -> Game:
    """Client 1 runs with functions of its primitives replaced, from its contribution on."""
    game = Game()
    if vector is not None:
        game.vectors[ONE] = vector
    honest = game.clients[ONE].contribute

    def contribute(vector: packing.UInt32Vector) -> list[Event]:
        with pytest.MonkeyPatch.context() as patch:
            for name, function in replaced.items():
                patch.setattr(FUNCTIONS[name], name, function)
            return honest(vector)

    game.clients[ONE].contribute = contribute  # type: ignore[method-assign]
    return game


def assert_members_said_no_more(game: Game) -> None:
    """Each member answered once, for all clients, and has nothing left with which to answer again."""
    for member in members_of(game):
        assert len(game.sent_by(member)) == 2  # its key, its answer
        (record,) = [record for record in game.records[member] if isinstance(record, SurvivorsSigned)]
        assert record.survivors == set(game.vectors)
        assert game.members[member].phase is Phase.FINISHED
        assert game.members[member]._secrets is None


def assert_void(game: Game, error: ProtocolError | None, match: str) -> None:
    assert type(error) is RemoteProtocolError
    assert match in str(error)
    assert game.result is None
    assert game.server.phase is Phase.ABORTED
    assert_members_said_no_more(game)


@pytest.mark.parametrize("size", [200, 1000, PRIME // 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_key_that_is_too_large_voids_the_round(size: int, sign: int) -> None:
    """The sum of the keys passes its bound, or the half of the field, where it would come out with the other sign."""
    honest = ring_mask.sample

    def large(count: int, *, seed: bytes) -> Coefficients:
        key = honest(count, seed=seed)
        key[:3] = sign * size
        return key

    game = with_liar({"sample": large})
    assert_void(game, game.play(), "sum of the keys")


def test_shares_of_another_key_than_the_masks_void_the_round() -> None:
    """In range, and on a polynomial: only errors and canaries can tell."""
    honest = key_shares.share

    def shifted(key: Coefficients, *arguments: object, **options: object) -> tuple[list[bytes], list[key_shares.Share]]:
        other = key.copy()
        other[0] += 1
        return honest(other, *arguments, **options)  # type: ignore[arg-type]

    game = with_liar({"share": shifted})
    assert_void(game, game.play(), "sum of the errors")


def test_a_key_that_overflows_the_field_is_its_residue() -> None:
    """Shares are of residues: a key moved by the field's prime is the same key to members, another one in the mask."""
    honest = ring_mask.sample

    def moved(count: int, *, seed: bytes) -> Coefficients:
        key = honest(count, seed=seed)
        key[5] += PRIME
        return key

    game = with_liar({"sample": moved})
    assert_void(game, game.play(), "sum of the errors")


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("odd", [False, True])
def test_another_scale_is_another_vector_or_no_sum(shift: int, odd: bool) -> None:
    """A vector times a smaller power of two is a smaller vector, if it divides; else what is left is a large error.

    In no case does the sum of the others come out with anything but some vector of the liar's added.
    """
    vector = np.array([2**shift * 3, 0, 2**shift, 0, 2**shift * 100], dtype=np.uint32)
    if odd:
        vector[1] = 1
    honest = ring_mask.add_errors

    def rescaled(words: packing.UInt32Vector, *, seed: bytes) -> None:
        words >>= np.uint32(shift)
        honest(words, seed=seed)

    game = with_liar({"add_errors": rescaled}, vector)
    error = game.play()
    if odd:
        # 2^(tau - shift) is left over: 128 or more, where the errors of four clients may sum to 90.
        assert_void(game, error, "sum of the errors")
        return
    assert error is None
    assert game.result is not None
    game.vectors[ONE] = vector >> np.uint32(shift)
    assert (game.result.vector == game.expected(frozenset(game.vectors))).all()
    assert_members_said_no_more(game)


def test_a_larger_scale_is_a_larger_vector() -> None:
    """Times a larger power of two: the liar's entries are larger, modulo the ring, and nobody else's are touched."""
    honest = ring_mask.add_errors

    def rescaled(words: packing.UInt32Vector, *, seed: bytes) -> None:
        words <<= np.uint32(3)
        honest(words, seed=seed)

    game = with_liar({"add_errors": rescaled})
    assert game.play() is None
    assert game.result is not None
    game.vectors[ONE] = random_vectors(4)[ONE] << np.uint32(3)
    assert (game.result.vector == game.expected(frozenset(game.vectors))).all()
    assert_members_said_no_more(game)
