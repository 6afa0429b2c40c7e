"""The data path: `prepare` turns an update into ring words, `finish` turns the ring sum back.

update -> flat floats -> clip, round, check (integers of bounded norm) -> + noise share -> ring -> [masked sum] ->
integers -> mean
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dp import NoisedIntegers, RecordLevel, UnsafeUpdateError, from_ring, poisson_draw, to_ring
from dp.samplers import Int64Vector, RandomBytes, UInt32Vector

from .config import AggregationConfig
from .layout import Arrays

Update = Arrays | NoisedIntegers


def prepare(update: Update, config: AggregationConfig, *, rand: RandomBytes) -> UInt32Vector:
    """One client's contribution, ready to be masked.

    Args:
        update: with `ClientLevel` and `NoPrivacy` the named arrays of one update. With `RecordLevel` named arrays of
            the gradients of *all* the client's records, each with one leading record axis (which may be empty): the
            secret Poisson draw is made here. Or `NoisedIntegers` of the configuration's own mechanism, used once.
        config: the agreed configuration.
        rand: secure bytes for rounding and noise.

    Returns:
        uint32[length], entries below 2^modulus_bits.

    Raises:
        UnsafeUpdateError: not finite, wrong names, shapes or dtypes, or noised by another mechanism; nothing left this
            function.
    """
    if isinstance(update, NoisedIntegers):
        if update.mechanism != config.mechanism:
            raise UnsafeUpdateError("these integers were noised by another mechanism than the configuration's")
        integers: Int64Vector = update.take()
    else:
        if isinstance(config.privacy, RecordLevel):
            records = config.layout.flatten_records(update)
            drawn = poisson_draw(len(records), rate=config.privacy.exact_rate, rand=rand)
            integers = config.encoder.encode_records(records[drawn], rand=rand)
        else:
            integers = config.encoder.encode(config.layout.flatten(update), rand=rand)
        if config.mechanism is not None:
            integers = config.mechanism.privatize(integers, rand=rand).vector
    return to_ring(integers + config.offset, modulus_bits=config.modulus_bits)


def finish(
    words: UInt32Vector, config: AggregationConfig, *, survivors: int
) -> tuple[Int64Vector, dict[str, NDArray[np.floating]]]:
    """The integer sum and the mean of a ring sum over `survivors` clients.

    Args:
        words: uint32[length], the exact sum of contributions modulo 2^modulus_bits.
        config: the agreed configuration.
        survivors: how many contributions are in it.

    Returns:
        int64[length], the sum; and the named arrays of the mean, divided by a public number.
    """
    if config.offset:
        total = words.astype(np.int64) - survivors * config.offset
    else:
        total = from_ring(words, modulus_bits=config.modulus_bits)
    mean = config.encoder.decode(total, denominator=config.denominator(survivors))
    return total, config.layout.unflatten(mean)
