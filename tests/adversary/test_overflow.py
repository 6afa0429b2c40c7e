"""A client that is not bound by its session sends words of its own: lanes run over, and only the sum is spoilt."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest

from protocols import ClientId
from protocols.primitives import packing
from protocols.primitives.packing import PACKED_BITS
from protocols.roster import signed_text
from protocols.wire import MaskedInput, Unmask
from tests.rounds import Round, kind_of, random_vectors, round_config

LIAR = ClientId(4)


def with_words_added(bits: int, extra: dict[int, int]) -> Round:
    """A round in which the liar adds to words of its masked vector, and signs the result."""
    length = 40
    vectors = random_vectors(4, length, limit=packing.largest_entry(bits, 4) + 1)
    game = Round(round_config(4, threshold=3, length=length, modulus_bits=bits), vectors)
    dtype = packing.word_dtype(bits)
    size = packing.word_count(length, bits) * dtype.itemsize

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        if sender != LIAR or kind_of(data) is not MaskedInput:
            return [data]
        words = np.frombuffer(data[-64 - size : -64], dtype=dtype).copy()
        for place, value in extra.items():
            words[place : place + 1] += dtype.type(value)  # an array wraps in silence, a scalar warns
        covered = data[: -64 - size] + words.tobytes()
        return [covered + game.identities[LIAR].sign(signed_text("MaskedInput", sha256(covered).digest()))]

    game.network = network
    return game


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_a_client_that_overflows_its_lane_spoils_the_sum_and_learns_nothing(bits: int) -> None:
    """It fills the first lane of the first word: the next lane gets the carry, no other coordinate changes.

    Privacy is as before: everybody answers once, for one set, with shares of self seeds alone.
    """
    game = with_words_added(bits, {0: 2**bits - 1})
    result = game.run()
    assert not game.rejected
    expected = game.expected(frozenset(game.clients))
    wrong = np.flatnonzero(result.vector != expected)
    assert 1 <= len(wrong) <= 64 // bits + 1
    assert set(game.agreed) == set(game.clients)
    assert {name for _, _, name in game.shares_sent()} == {"self seed"}
    assert all(game.kinds_sent(client).count(Unmask) == 1 for client in game.clients)


@pytest.mark.parametrize("bits", [16, 32])
def test_native_lanes_wrap_alone(bits: int) -> None:
    """Where every word is a ring of its own, a lie stays in its coordinate."""
    game = with_words_added(bits, {7: 2 ** (bits - 1)})
    result = game.run()
    assert np.flatnonzero(result.vector != game.expected(frozenset(game.clients))).tolist() == [7]


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_an_honest_session_refuses_its_own_lane_to_run_over(bits: int) -> None:
    """The refusal is before anything is masked, changes nothing, and a right vector may follow."""
    game = Round(round_config(4, threshold=3, modulus_bits=bits), random_vectors(4, 5, limit=2))
    largest = packing.largest_entry(bits, 4)
    honest = game.clients[LIAR].contribute

    def contribute(vector: np.ndarray) -> object:
        for entry in (largest + 1, 2**bits - 1, 2**bits, 2**32 - 1):
            with pytest.raises(ValueError, match=f"entries must be at most {largest}"):
                honest(np.array([0, 0, entry, 0, 0], dtype=np.uint32))
        return honest(np.full(5, largest, dtype=np.uint32))

    game.clients[LIAR].contribute = contribute  # type: ignore[method-assign, assignment]
    result = game.run()
    game.vectors[LIAR] = np.full(5, largest, dtype=np.uint32)
    assert (result.vector == game.expected(frozenset(game.clients))).all()
