"""Privacy bugs on purpose: what a client would run if it had one. Each must fail the audit, by the check it names.

They are the mistakes that implementations of distributed privacy make. An audit that passes one of them says nothing
about the code that it passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from dp import IntegerEncoder, RecordLevel, clip_by_l2, poisson_draw, to_ring
from dp.samplers import Int64Vector, RandomBytes, UInt32Vector

from .audit import Path, honest_path, noise_of
from .config import AggregationConfig
from .pipeline import Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One bug.

    Attributes:
        name: what is wrong.
        path: what a client with the bug runs.
        detector: the check that must fail.
        records: whether it is a bug of record-level privacy alone.
    """

    name: str
    path: Path
    detector: str
    records: bool = False


def defects_of(config: AggregationConfig) -> list[Defect]:
    """The bugs that a configuration could have."""
    return [defect for defect in DEFECTS if isinstance(config.privacy, RecordLevel) or not defect.records]


def _less_noise(fraction: Callable[[AggregationConfig], Fraction]) -> Path:
    """Each share has that fraction of its variance."""

    def path(update: Update, config: AggregationConfig, rand: RandomBytes) -> UInt32Vector:
        integers = _encoded(update, config, config.encoder, rand)
        return _noised(integers, config, rand, fraction(config))

    return path


def _honest(config: AggregationConfig) -> int:
    return config.min_survivors - config.max_colluders


def _unclipped(update: Update, config: AggregationConfig, rand: RandomBytes) -> UInt32Vector:
    """The update is scaled as agreed and never cut: the canary comes five times too long."""
    encoder = config.encoder
    loose = IntegerEncoder(clip_norm=5 * encoder.clip_norm, int_bound=5 * encoder.int_bound)
    return _noised(_encoded({"w": 5 * _array(update)}, config, loose, rand), config, rand)


def _repeated_noise() -> Path:
    """One key for all contributions."""
    key: list[bytes] = []

    def path(update: Update, config: AggregationConfig, rand: RandomBytes) -> UInt32Vector:
        def same(count: int) -> bytes:
            while sum(map(len, key)) < count:
                key.append(rand(count))
            return b"".join(key)[:count]

        return honest_path(update, config, same)

    return path


def _overflowing(update: Update, config: AggregationConfig, rand: RandomBytes) -> UInt32Vector:
    """More in each coordinate than the ring has room for, once all clients send it."""
    integers = _encoded(update, config, config.encoder, rand)
    return to_ring(integers + 2 ** (config.modulus_bits - 2), modulus_bits=config.modulus_bits)


def _rounded_once(update: Update, config: AggregationConfig, rand: RandomBytes) -> UInt32Vector:
    """Records are clipped, added, and only their sum is rounded; the rounding is not counted."""
    rows = _drawn(update, config, rand)
    scale = config.encoder.int_bound / config.encoder.clip_norm
    clipped = [clip_by_l2(row, clip_norm=config.encoder.clip_norm) for row in rows]
    coins = np.frombuffer(b"".join(rand(4 * rows.shape[1]) for _ in rows), dtype="<u4").reshape(rows.shape)
    shared = (coins.sum(axis=0, dtype=np.uint32) if len(rows) else np.zeros(rows.shape[1])) * 2.0**-32
    total = np.sum(clipped, axis=0) * scale if len(rows) else np.zeros(rows.shape[1])
    return _noised(np.floor(total + shared).astype(np.int64), config, rand)


def _fixed_size(update: Update, config: AggregationConfig, rand: RandomBytes) -> UInt32Vector:
    """A batch of fixed size instead of a coin for each record."""
    rows = _array(update)
    words = np.frombuffer(rand(8 * len(rows)), dtype="<u8")
    size = math.ceil(_unit(config).sampling_rate * len(rows))
    chosen = np.sort(np.argsort(words, kind="stable")[:size])
    return _noised(config.encoder.encode_records(rows[chosen], rand=rand), config, rand)


def _own_divisor(update: Update, config: AggregationConfig, rand: RandomBytes) -> UInt32Vector:
    """The sum is divided by how many records were drawn, a number that depends on the data."""
    drawn = _drawn(update, config, rand)
    integers = config.encoder.encode_records(drawn, rand=rand)
    expected = max(_unit(config).sampling_rate * len(_array(update)), 1.0)
    scaled = np.rint(integers * (expected / max(len(drawn), 1))).astype(np.int64)
    return _noised(scaled, config, rand)


def _array(update: Update) -> np.ndarray:
    return np.asarray(update["w"], dtype=np.float64)  # type: ignore[index]


def _drawn(update: Update, config: AggregationConfig, rand: RandomBytes) -> np.ndarray:
    rows = _array(update)
    return np.asarray(rows[poisson_draw(len(rows), rate=_unit(config).exact_rate, rand=rand)])


def _unit(config: AggregationConfig) -> RecordLevel:
    if not isinstance(config.privacy, RecordLevel):
        raise TypeError(f"a bug of record-level privacy, not of {config.privacy.unit!r}")
    return config.privacy


def _encoded(update: Update, config: AggregationConfig, encoder: IntegerEncoder, rand: RandomBytes) -> Int64Vector:
    if isinstance(config.privacy, RecordLevel):
        return encoder.encode_records(_drawn(update, config, rand), rand=rand)
    return encoder.encode(_array(update), rand=rand)


def _noised(
    integers: Int64Vector, config: AggregationConfig, rand: RandomBytes, fraction: Fraction = Fraction(1)
) -> UInt32Vector:
    mechanism = noise_of(config)
    mechanism = replace(mechanism, share_variance=mechanism.share_variance * fraction)
    return to_ring(mechanism.privatize(integers, rand=rand).vector, modulus_bits=config.modulus_bits)


DEFECTS = (
    Defect(
        name="noise divided by the number of clients",
        path=_less_noise(lambda config: Fraction(1, _honest(config))),
        detector="epsilon",
    ),
    Defect(name="no clipping", path=_unclipped, detector="epsilon"),
    Defect(
        name="one share lost with a dropout",
        path=_less_noise(lambda config: Fraction(_honest(config) - 1, _honest(config))),
        detector="variance",
    ),
    Defect(name="half the noise variance", path=_less_noise(lambda config: Fraction(1, 2)), detector="variance"),
    Defect(name="one noise for all contributions", path=_repeated_noise(), detector="streams"),
    Defect(name="more than the ring holds", path=_overflowing, detector="sum"),
    Defect(name="rounding that is not counted", path=_rounded_once, detector="sensitivity", records=True),
    Defect(name="batches of fixed size", path=_fixed_size, detector="sensitivity", records=True),
    Defect(name="division by the drawn records", path=_own_divisor, detector="sensitivity", records=True),
)
