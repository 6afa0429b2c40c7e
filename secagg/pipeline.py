"""The data path: `prepare` turns an update into ring words, `finish` turns the ring sum back.

update -> weigh, clip, append riders -> round, check (integers of bounded norm) -> + noise share -> ring ->
[masked sum] -> integers -> mean
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp import NoisedIntegers, RecordLevel, UnsafeUpdateError, clip_by_l2, from_ring, poisson_draw, to_ring
from dp.samplers import FloatVector, Int64Vector, RandomBytes, UInt32Vector

from .config import AggregationConfig
from .layout import Arrays
from .riders import Contribution

Update = Arrays | Contribution | NoisedIntegers


def prepare(update: Update, config: AggregationConfig, *, rand: RandomBytes, client: int | None = None) -> UInt32Vector:
    """One client's contribution, ready to be masked.

    Args:
        update: with `ClientLevel` and `NoPrivacy` the named arrays of one update. With `RecordLevel` named arrays of
            the gradients of *all* the client's records, each with one leading record axis (which may be empty): the
            secret Poisson draw is made here. Either may come in a `Contribution` with its weight and metrics. Or
            `NoisedIntegers` of the configuration's own mechanism, used once.
        config: the agreed configuration.
        rand: secure bytes for rounding and noise.
        client: whose it is; needed with public weights.

    Returns:
        uint32[config.length], entries below 2^modulus_bits.

    Raises:
        UnsafeUpdateError: not finite, wrong names, shapes or dtypes, or noised by another mechanism; nothing left this
            function.
    """
    if isinstance(update, NoisedIntegers):
        if update.mechanism != config.mechanism or config.riders.count:
            raise UnsafeUpdateError("these integers were noised by another mechanism than the configuration's")
        integers: Int64Vector = update.take()
    else:
        given = update if isinstance(update, Contribution) else Contribution(update=update)
        if isinstance(config.privacy, RecordLevel):
            integers = _encode_drawn_records(given, config, config.privacy, rand=rand)
        else:
            integers = config.encoder.encode(_with_riders(given, config, client), rand=rand)
        if config.mechanism is not None:
            integers = config.mechanism.privatize(integers, rand=rand).vector
    return to_ring(integers + config.offset, modulus_bits=config.modulus_bits)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Released:
    """What a ring sum says.

    Attributes:
        total: int64[config.length], the integer sum.
        mean: the named arrays of the (weighted) mean.
        weight: the sum of weights that it was divided by, noised if they are private; None without weights.
        metrics: the (weighted) mean of each metric.
    """

    total: Int64Vector
    mean: dict[str, NDArray[np.floating]]
    weight: float | None
    metrics: dict[str, float]


def finish(words: UInt32Vector, config: AggregationConfig, *, survivors: Collection[int]) -> Released:
    """The mean of a ring sum over `survivors`.

    Args:
        words: uint32[config.length], the exact sum of contributions modulo 2^modulus_bits.
        config: the agreed configuration.
        survivors: the clients whose contributions are in it.
    """
    count = len(survivors)
    if config.offset:
        total = words.astype(np.int64) - count * config.offset
    else:
        total = from_ring(words, modulus_bits=config.modulus_bits)
    decoded = config.encoder.decode(total, denominator=1.0)
    divisor, weight, metrics = config.riders.read(
        decoded[config.layout.length :],
        survivors=survivors,
        denominator=config.denominator(count),
        clip_norm=config.privacy.clip_norm,
        stddev=max(config.noise_stddev(count), config.encoder.clip_norm / config.encoder.int_bound),
    )
    mean = config.layout.unflatten(decoded[: config.layout.length] / divisor)
    return Released(total=total, mean=mean, weight=weight, metrics=metrics)


def _with_riders(given: Contribution, config: AggregationConfig, client: int | None) -> FloatVector:
    """(w u, v w, v w m): weight first, clip after."""
    riders, clip_norm = config.riders, config.privacy.clip_norm
    weight = riders.share_of(client, given.weight)
    update = config.layout.flatten(given.update)
    positions = riders.positions(given.metrics, ())
    if riders.weights is not None:
        update *= weight
    if not riders.count:
        return update
    own = [1.0] if riders.count > len(positions) else []
    riding = riders.unit(clip_norm) * weight * np.array([*own, *positions])
    return np.concatenate([clip_by_l2(update, clip_norm=clip_norm), riding])


def _encode_drawn_records(
    given: Contribution, config: AggregationConfig, privacy: RecordLevel, *, rand: RandomBytes
) -> Int64Vector:
    """The sum of the encoded records of one secret draw, each with its metrics."""
    riders, clip_norm = config.riders, privacy.clip_norm
    riders.share_of(None, given.weight)
    records = config.layout.flatten_records(given.update)
    positions = riders.positions(given.metrics, (len(records),))
    drawn = poisson_draw(len(records), rate=privacy.exact_rate, rand=rand)
    records = records[drawn]
    if riders.count:
        riding = riders.unit(clip_norm) * np.column_stack(positions)[drawn]
        # A record that is not finite counts as zero, its metrics included: the encoder sees to it.
        clipped = [row if not np.isfinite(row).all() else clip_by_l2(row, clip_norm=clip_norm) for row in records]
        records = np.column_stack([np.reshape(clipped, records.shape), riding])
    return config.encoder.encode_records(records, rand=rand)
