"""Lanes: packing is lossless, and sums of packed words are sums of lanes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.primitives.packing import (
    LANE_BITS,
    NATIVE_BITS,
    PACKED_BITS,
    largest_entry,
    pack,
    packed_bytes,
    unpack,
    word_count,
    word_dtype,
)


def packed(vector: np.ndarray, bits: int) -> np.ndarray:
    words = pack(vector, bits)
    assert (words.shape, words.dtype) == ((word_count(len(vector), bits),), word_dtype(bits))
    return words


def vectors(bits: int, limit: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.integers(0, limit), min_size=1, max_size=40).map(lambda v: np.array(v, dtype=np.uint32))


def test_the_lanes_are_those_of_the_design() -> None:
    assert LANE_BITS == (8, 10, 12, 16, 21, 32)
    assert set(LANE_BITS) == {*NATIVE_BITS, *PACKED_BITS}


@pytest.mark.parametrize("bits", LANE_BITS)
class TestLanes:
    @settings(max_examples=50)
    @given(data=st.data())
    def test_round_trip(self, bits: int, data: st.DataObject) -> None:
        vector = data.draw(vectors(bits, 2**bits - 1))
        words = packed(vector, bits)
        assert words.nbytes == packed_bytes(len(vector), bits)
        back = unpack(words, len(vector), bits)
        assert back.dtype == np.uint32
        assert (back == vector).all()

    @pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7, 8, 9, 1001])
    def test_all_lanes_full(self, bits: int, length: int) -> None:
        vector = np.full(length, 2**bits - 1, dtype=np.uint32)
        assert (unpack(packed(vector, bits), length, bits) == vector).all()

    @settings(max_examples=50)
    @given(data=st.data(), clients=st.integers(1, 50))
    def test_sums_of_words_are_sums_of_lanes(self, bits: int, data: st.DataObject, clients: int) -> None:
        limit = largest_entry(bits, clients)
        length = data.draw(st.integers(1, 30))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        plain = rng.integers(0, limit + 1, size=(clients, length), dtype=np.uint64).astype(np.uint32)
        plain[:, 0] = limit  # the worst case is always there
        total = sum((packed(vector, bits) for vector in plain), np.zeros(word_count(length, bits), word_dtype(bits)))
        expected = [sum(int(x) for x in column) % 2**bits for column in plain.T]
        assert unpack(total, length, bits).tolist() == expected

    def test_sizes(self, bits: int) -> None:
        lanes = 1 if bits in NATIVE_BITS else 64 // bits
        for length in (1, lanes, lanes + 1, 10 * lanes - 1, 10 * lanes):
            assert word_count(length, bits) == (length + lanes - 1) // lanes
        assert packed_bytes(840, bits) == {8: 840, 10: 1120, 12: 1344, 16: 1680, 21: 2240, 32: 3360}[bits]


@pytest.mark.parametrize("bits", PACKED_BITS)
@given(clients=st.integers(1, 200))
def test_largest_entry_is_the_largest_that_cannot_carry(bits: int, clients: int) -> None:
    largest = largest_entry(bits, clients)
    assert largest * clients < 2**bits <= (largest + 1) * clients


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_one_more_would_carry_into_the_next_lane(bits: int) -> None:
    """The bound is not caution: beyond it, a neighbour coordinate is wrong."""
    clients, lanes = 3, 64 // bits
    vector = np.zeros(lanes, dtype=np.uint32)
    vector[0] = largest_entry(bits, clients) + 1
    total = sum((packed(vector, bits) for _ in range(clients)), np.zeros(1, word_dtype(bits)))
    assert unpack(total, lanes, bits)[1] == 1


@pytest.mark.parametrize("bits", [16, 32])
def test_native_lanes_wrap_alone(bits: int) -> None:
    a, b = (np.array([2**bits - 1, 5], dtype=np.uint32), np.array([3, 6], dtype=np.uint32))
    assert unpack(packed(a, bits) + packed(b, bits), 2, bits).tolist() == [2, 11]


def test_words_are_little_endian_and_planes_are_planar() -> None:
    vector = np.arange(1, 17, dtype=np.uint32)
    assert packed(vector, 8).tobytes() == bytes([1, 3, 5, 7, 9, 11, 13, 15, 2, 4, 6, 8, 10, 12, 14, 16])
    assert packed(np.array([0x0102], dtype=np.uint32), 16).tobytes() == b"\x02\x01"
    assert packed(np.array([0x01020304], dtype=np.uint32), 32).tobytes() == b"\x04\x03\x02\x01"
    assert packed(np.array([1, 2, 3], dtype=np.uint32), 21).tobytes() == (1 | 2 << 21 | 3 << 42).to_bytes(8, "little")
