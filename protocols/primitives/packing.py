"""b-bit lanes in machine words: vectors are packed, then masked, so mask bytes and wire bytes shrink together.

Two kinds of lane, decided by the number of bits alone:

- *native* (16, 32 bits): each lane is its own word and its own ring modulo 2^b. A wrap touches one coordinate only.
- *packed* (8, 10, 12, 21 bits): floor(64 / b) lanes share a 64-bit word that is masked modulo 2^64. Lanes cannot carry
  into each other only while every lane of the *sum* stays below 2^b. That is enforced where a vector enters: no entry
  may exceed (2^b - 1) // clients.

Packed lanes lie in planar order: lane j of word i is coordinate j * words + i, so packing is a few whole-array shifts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .prg import Words

UInt32Vector = NDArray[np.uint32]

NATIVE_BITS: dict[int, np.dtype[np.unsignedinteger]] = {16: np.dtype("<u2"), 32: np.dtype("<u4")}
PACKED_BITS = (8, 10, 12, 21)
LANE_BITS = tuple(sorted((*NATIVE_BITS, *PACKED_BITS)))
_WORD: np.dtype[np.unsignedinteger] = np.dtype("<u8")


def word_dtype(bits: int) -> np.dtype[np.unsignedinteger]:
    """The dtype of the words that carry `bits`-bit lanes."""
    return NATIVE_BITS.get(bits, _WORD)


def word_count(length: int, bits: int) -> int:
    """How many words carry `length` lanes."""
    return length if bits in NATIVE_BITS else -(-length // (64 // bits))


def packed_bytes(length: int, bits: int) -> int:
    """How many bytes carry `length` lanes of `bits` bits."""
    return word_count(length, bits) * word_dtype(bits).itemsize


def largest_entry(bits: int, clients: int) -> int:
    """The largest entry a vector may hold so that lanes of a sum over `clients` vectors never carry into each other."""
    return (1 << bits) - 1 if bits in NATIVE_BITS else ((1 << bits) - 1) // clients


def pack(vector: UInt32Vector, bits: int) -> Words:
    """Lays `vector` (uint32[length], entries < 2^bits) into a new array of `word_count(length, bits)` words."""
    if bits in NATIVE_BITS:
        return vector.astype(NATIVE_BITS[bits])
    words = np.zeros(word_count(len(vector), bits), dtype=_WORD)
    planes = len(words)
    for lane in range(64 // bits):
        plane = vector[lane * planes : (lane + 1) * planes]
        words[: len(plane)] |= plane.astype(_WORD) << np.uint64(lane * bits)
    return words


def unpack(words: Words, length: int, bits: int) -> UInt32Vector:
    """The inverse of `pack`: uint32[length]; for 32-bit lanes the words themselves."""
    if bits in NATIVE_BITS:
        return words.astype(np.uint32, copy=False)
    mask = np.uint64((1 << bits) - 1)
    planes = [(words >> np.uint64(lane * bits)) & mask for lane in range(64 // bits)]
    return np.concatenate(planes)[:length].astype(np.uint32)
