"""The data path: `prepare` turns an update into ring words, `finish` turns the ring sum back.

update -> flat floats -> clip -> [rotate] -> round, check (integers of bounded norm) -> + noise share -> ring ->
[masked sum] -> integers -> [rotate back] -> mean

The rotation is there where a small ring needs it (`AggregationConfig.rotation`). Its seed is public, and each round's
own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dp import NoisedIntegers, RecordLevel, UnsafeUpdateError, from_ring, poisson_draw, to_ring
from dp.clipping import with_indicator
from dp.samplers import Int64Vector, RandomBytes, UInt32Vector

from .config import AggregationConfig
from .layout import Arrays

Update = Arrays | NoisedIntegers


def prepare(update: Update, config: AggregationConfig, *, rand: RandomBytes, seed: bytes = b"") -> UInt32Vector:
    """One client's contribution, ready to be masked.

    Args:
        update: with `ClientLevel` and `NoPrivacy` the named arrays of one update. With `RecordLevel` named arrays of
            the gradients of *all* the client's records, each with one leading record axis (which may be empty): the
            secret Poisson draw is made here. Or `NoisedIntegers` of the configuration's own mechanism, used once.
        config: the agreed configuration.
        rand: secure bytes for rounding and noise.
        seed: the round's public seed (`config.round_seed`); needed if `config.rotation`.

    Returns:
        uint32[length], entries below 2^modulus_bits.

    Raises:
        UnsafeUpdateError: not finite, wrong names, shapes or dtypes, or noised by another mechanism or in another
            rotation; nothing left this function.
        ValueError: the configuration rotates, and there is no seed.
    """
    rotation = config.rotation_of(seed)
    if isinstance(update, NoisedIntegers):
        if update.mechanism != config.mechanism:
            raise UnsafeUpdateError("these integers were noised by another mechanism than the configuration's")
        if update.seed != (seed if config.rotation else b""):
            raise UnsafeUpdateError("these integers are not in this round's rotation")
        integers: Int64Vector = update.take()
    else:
        if isinstance(config.privacy, RecordLevel):
            records = config.layout.flatten_records(update)
            drawn = poisson_draw(len(records), rate=config.privacy.exact_rate, rand=rand)
            integers = config.encoder.encode_records(records[drawn], rand=rand, rotation=rotation)
        else:
            vector = config.layout.flatten(update)
            if config.adaptive is not None:
                reach = config.encoder.first_clip(config.length)
                vector = with_indicator(vector, clip_norm=reach, indicator=config.indicator * config.clip_norm)
            integers = config.encoder.encode(vector, rand=rand, rotation=rotation)
        if config.mechanism is not None:
            integers = config.mechanism.privatize(integers, rand=rand).vector
    if config.offset:
        # Lanes that share a word must not carry. Only a rotated coordinate can pass the offset; the norm falls further.
        np.clip(integers, -config.offset, config.offset, out=integers)
    return to_ring(integers + config.offset, modulus_bits=config.modulus_bits)


def lift(words: UInt32Vector, config: AggregationConfig, *, survivors: int) -> Int64Vector:
    """The integers of a ring sum over `survivors` clients: int64[length]."""
    if config.offset:
        return words.astype(np.int64) - survivors * config.offset
    return from_ring(words, modulus_bits=config.modulus_bits)


def finish(
    words: UInt32Vector, config: AggregationConfig, *, survivors: int, seed: bytes = b""
) -> tuple[Int64Vector, dict[str, NDArray[np.floating]]]:
    """The integer sum and the mean of a ring sum over `survivors` clients.

    Args:
        words: uint32[length], the exact sum of contributions modulo 2^modulus_bits.
        config: the agreed configuration.
        survivors: how many contributions are in it.
        seed: the round's public seed; needed if `config.rotation`.

    Returns:
        int64[length], the sum; and the named arrays of the mean, divided by a public number.

    Raises:
        ValueError: the configuration rotates, and there is no seed.
    """
    total = lift(words, config, survivors=survivors)
    mean = config.encoder.decode(total, denominator=config.denominator(survivors), rotation=config.rotation_of(seed))
    return total, config.layout.unflatten(mean[: config.layout.length])


def unclipped_fraction(
    total: Int64Vector, config: AggregationConfig, *, survivors: int, seed: bytes = b""
) -> float | None:
    """The noised fraction of survivors whose update was not clipped; None if the clip norm is fixed.

    Noise may lead it out of [0, 1].
    """
    if config.adaptive is None:
        return None
    mean = config.encoder.decode(total, denominator=survivors, rotation=config.rotation_of(seed))
    return 0.5 + float(mean[-1]) / (2 * config.indicator * config.clip_norm)


def near_limit(total: Int64Vector, config: AggregationConfig) -> int:
    """How many coordinates of a sum lie beyond three quarters of the range.

    Where there are many, some may have wrapped. A wrapped sum looks like any other: there is no other sign.
    """
    return int(np.count_nonzero(4 * np.abs(total) > 3 * config.ring.half_range))
