"""The data path: `prepare` turns an update into ring words, `finish` turns the ring sum back.

update -> weigh, clip, append riders -> [rotate] -> round, check (integers of bounded norm) -> + noise share -> ring ->
[masked sum] -> - surplus noise, if it is removable -> integers -> [rotate back] -> mean

The rotation is there where a small ring needs it (`AggregationConfig.rotation`). Its seed is public, and each round's
own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dp import (
    LocalRecordLevel,
    LocalUpdate,
    NoisedIntegers,
    RecordLevel,
    UnsafeUpdateError,
    clip_by_l2,
    from_ring,
    poisson_draw,
    to_ring,
)
from dp.clipping import with_indicator
from dp.samplers import FloatMatrix, FloatVector, Int64Vector, RandomBytes, UInt32Vector
from protocols import ClientId

from .config import AggregationConfig
from .layout import Arrays
from .riders import Contribution

Update = Arrays | Contribution | NoisedIntegers | LocalUpdate


def prepare(
    update: Update,
    config: AggregationConfig,
    *,
    rand: RandomBytes,
    client: int | None = None,
    seeds: Sequence[bytes] = (),
    seed: bytes = b"",
) -> UInt32Vector:
    """One client's contribution, ready to be masked.

    Args:
        update: with `ClientLevel` and `NoPrivacy` the named arrays of one update. With `RecordLevel` named arrays of
            the gradients of *all* the client's records, each with one leading record axis (which may be empty): the
            secret Poisson draw is made here. Either may come in a `Contribution` with its weight and metrics. Or
            `NoisedIntegers` of the configuration's own mechanism, used once. With `LocalRecordLevel` a `LocalUpdate`.
        config: the agreed configuration.
        rand: secure bytes for rounding and noise.
        client: whose it is; needed with public weights.
        seed: the round's public seed (`config.round_seed`); needed if `config.rotation`.
        seeds: with removable noise the session's `removable_seeds`.

    Returns:
        uint32[config.length], entries below 2^modulus_bits.

    Raises:
        UnsafeUpdateError: not finite, wrong names, shapes or dtypes, or noised by another mechanism or in another
            rotation; nothing left this function.
        ValueError: the configuration rotates, and there is no seed.
    """
    rotation = config.rotation_of(seed)
    if isinstance(update, NoisedIntegers):
        if config.removable:
            raise UnsafeUpdateError("removable noise comes from the round's own seeds: integers cannot bring theirs")
        if update.mechanism != config.mechanism or config.riders.count:
            raise UnsafeUpdateError("these integers were noised by another mechanism than the configuration's")
        if update.seed != (seed if config.rotation else b""):
            raise UnsafeUpdateError("these integers are not in this round's rotation")
        integers: Int64Vector = update.take()
    else:
        if isinstance(config.privacy, LocalRecordLevel) or isinstance(update, LocalUpdate):
            update = _paid_at_home(update, config)
        given = update if isinstance(update, Contribution) else Contribution(update=update)
        if isinstance(config.privacy, RecordLevel):
            records = _drawn_records(given, config, config.privacy, rand=rand)
            integers = config.encoder.encode_records(records, rand=rand, rotation=rotation)
        else:
            integers = config.encoder.encode(_with_riders(given, config, client), rand=rand, rotation=rotation)
        if config.mechanism is not None:
            integers = config.mechanism.privatize(integers, rand=rand, seeds=seeds).vector
    if config.offset:
        # Lanes that share a word must not carry. Only a rotated coordinate can pass the offset; the norm falls further.
        np.clip(integers, -config.offset, config.offset, out=integers)
    return to_ring(integers + config.offset, modulus_bits=config.modulus_bits)


def _paid_at_home(update: object, config: AggregationConfig) -> Arrays:
    """The arrays of an update that carries its own noise, by a budget no larger than the agreed one."""
    if not isinstance(update, LocalUpdate):
        raise UnsafeUpdateError(
            f"with LocalRecordLevel an update must be a LocalUpdate, got {type(update).__name__}: make the local steps "
            "with SecurePrivacyEngine, and send optimizer.local_update(module)"
        )
    agreed = config.privacy
    if not isinstance(agreed, LocalRecordLevel):
        raise UnsafeUpdateError(f"a LocalUpdate carries no noise for unit {agreed.unit!r}")
    if update.unit.epsilon > agreed.epsilon or update.unit.delta > agreed.delta:
        raise UnsafeUpdateError(
            f"this client keeps epsilon {update.unit.epsilon:g} at delta {update.unit.delta:g}, agreed are "
            f"{agreed.epsilon:g} at {agreed.delta:g}"
        )
    if update.unit.rounding != "exact" == agreed.rounding:
        raise UnsafeUpdateError(
            f'this client\'s steps have rounding {update.unit.rounding!r}, which rests on floats: agreed is "exact"'
        )
    return update.arrays


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Released:
    """What a ring sum says.

    Attributes:
        total: int64[config.length], the integer sum; rotated, if `config.rotation`.
        mean: the named arrays of the (weighted) mean.
        weight: the sum of weights that it was divided by, noised if they are private; None without weights.
        metrics: the (weighted) mean of each metric.
        unclipped: noised fraction of survivors whose update was not clipped, which noise may lead out of [0, 1]; None
            unless the clip norm is adaptive.
        near_limit: coordinates of `total` beyond three quarters of the range. A wrapped sum looks like any other, so
            this is the one sign that there may be some.
    """

    total: Int64Vector
    mean: dict[str, NDArray[np.floating]]
    weight: float | None
    metrics: dict[str, float]
    unclipped: float | None
    near_limit: int


def finish(
    words: UInt32Vector,
    config: AggregationConfig,
    *,
    survivors: Collection[int],
    removed: Mapping[ClientId, Sequence[bytes]] = MappingProxyType({}),
    seed: bytes = b"",
) -> Released:
    """The mean of a ring sum over `survivors`.

    Args:
        words: uint32[config.length], the exact sum of contributions modulo 2^modulus_bits.
        config: the agreed configuration.
        survivors: the clients whose contributions are in it.
        removed: with removable noise the seeds that `AggregateReady` brings.
        seed: the round's public seed; needed if `config.rotation`.

    Raises:
        ValueError: there are not seeds of all survivors, as many as their number asks for; or the configuration
            rotates, and there is no seed.
    """
    count, length = len(survivors), config.layout.length
    if config.mechanism is not None and count > config.min_survivors and config.removable:
        if removed.keys() != set(survivors):
            raise ValueError(f"noise must be removed of {count} survivors, got seeds of {len(removed)}")
        surplus = config.mechanism.surplus([removed[ClientId(client)] for client in sorted(survivors)])
        words = to_ring(words.astype(np.int64) - surplus, modulus_bits=config.modulus_bits)
    total = lift(words, config, survivors=count)
    decoded = config.encoder.decode(total, denominator=1.0, rotation=config.rotation_of(seed))
    divisor, weight, metrics = config.riders.read(
        decoded[length : length + config.riders.count],
        survivors=survivors,
        denominator=config.denominator(count),
        clip_norm=config.clip_norm,
        stddev=max(config.noise_stddev(count), config.encoder.clip_norm / config.encoder.int_bound),
    )
    return Released(
        total=total,
        mean=config.layout.unflatten(decoded[:length] / divisor),
        weight=weight,
        metrics=metrics,
        unclipped=None if config.adaptive is None else 0.5 + float(decoded[-1]) / count / (2 * _indicator(config)),
        near_limit=int(np.count_nonzero(4 * np.abs(total) > 3 * config.ring.half_range)),
    )


def lift(words: UInt32Vector, config: AggregationConfig, *, survivors: int) -> Int64Vector:
    """The integers of a ring sum over so many clients: int64[config.length]."""
    if config.offset:
        return words.astype(np.int64) - survivors * config.offset
    return from_ring(words, modulus_bits=config.modulus_bits)


def _with_riders(given: Contribution, config: AggregationConfig, client: int | None) -> FloatVector:
    """(w u, v w, v w m, h): weight first, clip after; h says whether the clip did anything."""
    riders, clip_norm = config.riders, config.clip_norm
    weight = riders.share_of(client, given.weight)
    update = config.layout.flatten(given.update)
    positions = riders.positions(given.metrics, ())
    if riders.weights is not None:
        update *= weight
    own = [1.0] if riders.count > len(positions) else []
    riding = riders.unit(clip_norm) * weight * np.array([*own, *positions]) if riders.count else np.empty(0)
    if config.adaptive is not None:
        told = with_indicator(update, clip_norm=clip_norm, indicator=_indicator(config))
        return np.concatenate([told[:-1], riding, told[-1:]])
    return np.concatenate([clip_by_l2(update, clip_norm=clip_norm), riding]) if riders.count else update


def _indicator(config: AggregationConfig) -> float:
    """h, in units of the update."""
    return config.indicator * config.encoder.clip_norm


def _drawn_records(
    given: Contribution, config: AggregationConfig, privacy: RecordLevel, *, rand: RandomBytes
) -> FloatMatrix:
    """The records of one secret draw, each with its metrics."""
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
    return records
