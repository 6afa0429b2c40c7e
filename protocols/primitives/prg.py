"""Mask expansion: AES-256-CTR keystreams added to, or subtracted from, a vector of words in place.

Rules:

1. One 256-bit seed, one keystream, one vector. The key is the seed and the counter block is 0 at byte 0 of the vector;
   a seed never serves two vectors, so no counter block is used twice.
2. Words are little-endian and unsigned; addition wraps in their own width (2^16, 2^32 or 2^64).
3. All seeds are applied to one block before the next block is touched: block and keystream stay in the cache, and
   memory is one block, whatever the number of seeds or the length of the vector.
4. The stream is seekable: workers may expand disjoint ranges of one vector (`first_byte`), with the same bits as one
   worker.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SEED_BYTES = 32
AES_BLOCK_BYTES = 16
BLOCK_BYTES = 256 * 1024  # measured optimum of AES + add: fits the L2 cache together with the words it is added to
SEEDS_AT_ONCE = 1024  # cipher contexts alive at a time: bounds memory for servers that expand 10^5 seeds

Words = NDArray[np.unsignedinteger]


def apply_masks(words: Words, *, add: Sequence[bytes], subtract: Sequence[bytes], first_byte: int = 0) -> None:
    """Adds and subtracts the keystreams of seeds to `words`, in place, modulo 2^(bits of a word).

    Args:
        words: contiguous, writable, little-endian unsigned words; a range of the whole vector.
        add: 32-byte seeds whose keystream is added.
        subtract: 32-byte seeds whose keystream is subtracted.
        first_byte: position of `words[0]` in the whole vector, in bytes; a multiple of 16.

    Raises:
        ValueError: a seed is not 32 bytes, or the range does not start on a cipher block.
    """
    if first_byte % AES_BLOCK_BYTES:
        raise ValueError(f"first_byte must be a multiple of {AES_BLOCK_BYTES}, got {first_byte}")
    signed_seeds = [(seed, np.add) for seed in add] + [(seed, np.subtract) for seed in subtract]
    if any(len(seed) != SEED_BYTES for seed, _ in signed_seeds):
        raise ValueError(f"every seed must have {SEED_BYTES} bytes")
    counter = modes.CTR((first_byte // AES_BLOCK_BYTES).to_bytes(AES_BLOCK_BYTES, "big"))
    zeros = bytes(BLOCK_BYTES)
    keystream = bytearray(BLOCK_BYTES)
    step = BLOCK_BYTES // words.itemsize
    for first_seed in range(0, len(signed_seeds), SEEDS_AT_ONCE):
        streams = [
            (Cipher(algorithms.AES(seed), counter).encryptor(), combine)
            for seed, combine in signed_seeds[first_seed : first_seed + SEEDS_AT_ONCE]
        ]
        for start in range(0, len(words), step):
            block = words[start : start + step]
            source = memoryview(zeros)[: block.nbytes]
            target = memoryview(keystream)[: block.nbytes]
            mask = np.frombuffer(target, dtype=words.dtype)
            for stream, combine in streams:
                stream.update_into(source, target)
                combine(block, mask, out=block)
