"""Floats to integers of bounded norm, and integers to the ring of the secure sum.

Rules:

- The privacy guarantee is `||q||² ≤ B²` on the integers that leave `IntegerEncoder`, checked after rounding. Float
  error in clipping and scaling can cost accuracy, never privacy.
- One privacy unit (a client's update, or one record's gradient) is clipped, rounded and checked on its own; only then
  may units be added.
- Rounding is stochastic, hence unbiased. Its coins depend on no data, and no coin outcome can break the bound.
- A ring that `required_bits` finds wide enough never wraps: a wrapped sum looks like any other.

Source: the sure and the probable norm of a stochastically rounded vector are those of Kairouz, Liu, Steinke, "The
Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", ICML 2021 (arXiv 2102.06387).
They repeat the rounding until it fits; here the clip leaves room for it and the rare excess is cut off.
"""

import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from .clipping import clip_by_l2, require_floats
from .errors import CapacityError
from .rotation import Rotation
from .samplers import FloatMatrix, FloatVector, Int64Vector, RandomBytes, UInt32Vector

MAX_INT_BOUND: Final = 1 << 26
"""Largest B: finer than a float32 gradient, and float64 still decides `||q||² ≤ B²` exactly, as B² < 2⁵³."""

_MAX_RECORDS = 1 << 26  # the sum of this many encoded records still is an exact float64
_CHUNK = 1 << 16  # coins at a time, so that they stay in cache
_OVERSHOOT = math.sqrt(2 * math.log(1e12))  # a vector clipped for it overshoots B with probability below 1e-12
_LEAST_KEPT = 0.9  # share of the clip norm that must be left when rounding has taken its room
_NOISE_REACH = Fraction(15, 2)  # ring head-room for noise, in standard deviations: 6e-14 per coordinate


def least_int_bound(dimension: int) -> int:
    """8·√d, rounded up: from here on, stochastic rounding adds about 0.2 % to the norm of a clipped unit."""
    return math.isqrt(max(64 * dimension - 1, 0)) + 1


def coarsest_int_bound(dimension: int) -> int:
    """Least B that is encoded at all: room for rounding costs at most a tenth of the clip norm, or B is 8·√d.

    Updates shorter than that are not touched: coarse steps narrow the clip, they do not bias what is inside. The bound
    is about 1.2·√d for large d.
    """
    root = math.sqrt(dimension)
    # kept_norm >= _LEAST_KEPT·B: the positive root of (1 - kept²)·B² - overshoot·B - (d/4 + overshoot·√d/2).
    lost = 1 - _LEAST_KEPT**2
    constant = dimension / 4 + _OVERSHOOT * root / 2
    probable = (_OVERSHOOT + math.sqrt(_OVERSHOOT**2 + 4 * lost * constant)) / (2 * lost)
    return min(least_int_bound(dimension), math.ceil(probable * (1 + 1e-12)))


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerEncoder:
    """Turns one privacy unit into integers whose L2 norm is at most `int_bound`, and decodes sums of such units.

    Sensitivity: adding or removing one unit moves the integer sum by at most `int_bound` in L2, exactly.

    Attributes:
        clip_norm: L2 norm, in units of the update, that is mapped to `int_bound`.
        int_bound: B, from 1 to 2²⁶. Encoding d coordinates needs B >= `coarsest_int_bound(d)`, or rounding error would
            eat the signal; from 8·√d on it does not matter.
    """

    clip_norm: float
    int_bound: int

    def __post_init__(self) -> None:
        if not 1 <= self.int_bound <= MAX_INT_BOUND:
            raise ValueError(f"int_bound must lie in [1, {MAX_INT_BOUND}], got {self.int_bound}")
        if not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise ValueError(f"clip_norm must be positive and finite, got {self.clip_norm}")
        if self.clip_norm / self.int_bound < sys.float_info.min:
            raise ValueError(f"clip_norm / int_bound must be a normal float, got {self.clip_norm} / {self.int_bound}")

    def encode(self, update: FloatVector, *, rand: RandomBytes, rotation: Rotation | None = None) -> Int64Vector:
        """Clip one unit, scale it by B / clip_norm and round it stochastically.

        Args:
            update: float64[d]; float32[d] is widened.
            rand: Source of the rounding coins; 4·d bytes are consumed whatever the data.
            rotation: Turns the clipped update before it is rounded; the sum is decoded with the same one.

        Returns:
            int64[d] with `||q||² ≤ B²` in exact integers. Its mean is the update in steps of clip_norm / B, clipped at
            about (1 - d/(8B²) - 4/B)·clip_norm, which leaves rounding the room it needs.

        Raises:
            UnsafeUpdateError: The update is not a finite float vector.
            CapacityError: `int_bound` is below `coarsest_int_bound(d)`.
        """
        require_floats(update, ndim=1)
        return self._encode_unit(update, rand=rand, rotation=rotation).astype(np.int64)

    def encode_records(
        self, records: FloatMatrix, *, rand: RandomBytes, rotation: Rotation | None = None
    ) -> Int64Vector:
        """Encode every row as a unit of its own and add the results.

        Row i is rounded with bytes 4·d·i to 4·d·(i + 1) of the stream, whatever the data. A record thus brings its own
        coins and takes them along when it is removed: with the others' coins unchanged, the sum moves by exactly that
        record's integers, at most B in L2.

        Args:
            records: float64[b, d] or float32[b, d]; b may be 0.
            rand: Source of the rounding coins.
            rotation: As for `encode`, of every row.

        Returns:
            int64[d], the sum over rows.

        Raises:
            UnsafeUpdateError: Not a matrix of floats. A row that is not finite counts as zero.
            CapacityError: `int_bound` is below `coarsest_int_bound(d)`.
        """
        require_floats(records, ndim=2)
        count, length = records.shape
        self.require_capacity(length)
        if count > _MAX_RECORDS:
            raise CapacityError(f"at most {_MAX_RECORDS} records fit one sum, got {count}")
        total = np.zeros(length, dtype=np.float64)
        for record in records:
            # A refusal would tell others about one record, so a record that is not finite counts as zero.
            usable = record if np.isfinite(record).all() else np.zeros_like(record)
            total += self._encode_unit(usable, rand=rand, rotation=rotation)
        return total.astype(np.int64)

    def decode(self, total: Int64Vector, *, denominator: float, rotation: Rotation | None = None) -> FloatVector:
        """Map a sum of encoded units back to floats and divide it.

        Args:
            total: int64[d], a sum of encoded units, with or without noise.
            denominator: What the sum is divided by: a public number, such as the count of survivors; never a count that
                depends on private data.
            rotation: The one that the units were encoded with.

        Returns:
            float64[d] in units of the update.

        Raises:
            ValueError: `denominator` is not positive and finite.
        """
        if not (denominator > 0 and math.isfinite(denominator)):
            raise ValueError(f"denominator must be positive and finite, got {denominator}")
        decoded: FloatVector = total.astype(np.float64)
        if rotation is not None:
            decoded = rotation.invert(decoded)
        decoded *= self.clip_norm / self.int_bound
        decoded /= denominator
        return decoded

    def require_capacity(self, length: int) -> None:
        """Refuse dimensions that need a larger bound.

        Raises:
            CapacityError: `int_bound` is below `coarsest_int_bound(length)`; names it.
        """
        needed = coarsest_int_bound(length)
        if self.int_bound < needed:
            raise CapacityError(
                f"int_bound {self.int_bound} is too small for {length} coordinates: "
                f"at least {needed} is needed, or rounding would take more than a tenth of the clip"
            )

    def first_clip(self, length: int) -> float:
        """Clip norm from which rounding does not lead beyond B: the better of the sure and the probable bound."""
        bound, root = self.int_bound, math.sqrt(length)
        probable = bound**2 - length / 4 - _OVERSHOOT * (bound + root / 2)
        return self.clip_norm / bound * max(bound - root, math.sqrt(max(probable, 0.0)))

    def _encode_unit(self, update: FloatVector, *, rand: RandomBytes, rotation: Rotation | None) -> FloatVector:
        """The integers of one unit, as float64."""
        self.require_capacity(update.size)
        encoded = clip_by_l2(update, clip_norm=self.first_clip(update.size))
        if rotation is not None:
            encoded = rotation.apply(encoded)
        scale = self.int_bound / self.clip_norm
        for start in range(0, encoded.size, _CHUNK):
            part = encoded[start : start + _CHUNK]
            # 32 bits are enough: their grid and the float addition bias a coordinate by less than 2⁻²⁶ of one step,
            # and the norm bound holds for every outcome, so privacy does not rest on the coins at all.
            coins = np.frombuffer(rand(4 * part.size), dtype="<u4", count=part.size)
            part *= scale
            part += coins * 2.0**-32
            np.floor(part, out=part)
        return lower_norm(encoded, bound=self.int_bound)


def lower_norm(integers: FloatVector, *, bound: int) -> FloatVector:
    """Bring integers, held as float64, to `||q||² ≤ bound²`, in place.

    The comparison is exact for any `bound` up to 2²⁶: sums of squares below 2⁵³ are exact in any order, and rounding
    cannot bring a larger one back below 2⁵³. One pass is enough, since truncation only shortens and 2⁻²⁰ outweighs
    every float error of the factor. Were it not, the loop would still end: each pass takes at least 1 from every
    non-zero magnitude, down to the zero vector.
    """
    while (squared := float(np.dot(integers, integers))) > bound**2:
        integers *= bound / math.sqrt(squared) * (1 - 2.0**-20)
        np.trunc(integers, out=integers)
    return integers


def to_ring(integers: Int64Vector, *, modulus_bits: int) -> UInt32Vector:
    """Reduce integers modulo 2^modulus_bits, in two's complement; values outside the centred range wrap.

    Args:
        integers: int64[d].
        modulus_bits: b, from 2 to 32.

    Returns:
        uint32[d] in [0, 2^b).

    Raises:
        ValueError: `modulus_bits` is out of range.
    """
    _require_modulus_bits(modulus_bits)
    return (integers & np.int64((1 << modulus_bits) - 1)).astype(np.uint32)


def from_ring(words: UInt32Vector, *, modulus_bits: int) -> Int64Vector:
    """Lift ring elements to the centred range [-2^(b-1), 2^(b-1)): the inverse of `to_ring` there.

    Args:
        words: uint32[d], each below 2^b.
        modulus_bits: b, from 2 to 32.

    Returns:
        int64[d].

    Raises:
        ValueError: `modulus_bits` is out of range, or a word is not an element of the ring.
    """
    _require_modulus_bits(modulus_bits)
    if int(words.max(initial=0)) >> modulus_bits:
        raise ValueError(f"a word lies outside the ring of {modulus_bits} bits")
    half = np.int64(1 << (modulus_bits - 1))
    lifted: Int64Vector = words.astype(np.int64)
    lifted ^= half
    lifted -= half
    return lifted


def required_bits(*, units: int, int_bound: int, stddev: float) -> int:
    """Smallest ring in which a noised sum of encoded units cannot wrap: least b with 2^(b-1) > units·B + 7.5·stddev.

    All units may put their whole norm on one and the same coordinate and still fit; only noise beyond 7.5 standard
    deviations can wrap, with probability below 1e-13 per coordinate.

    Args:
        units: Number of units in the sum, at most.
        int_bound: B of their encoder.
        stddev: Standard deviation per coordinate of all noise in the sum, in integer steps; 0 for none.

    Returns:
        b. It may exceed 32, the widest ring there is: the caller then has to lower B.

    Raises:
        ValueError: An argument is out of range.
    """
    if units < 1:
        raise ValueError(f"units must be >= 1, got {units}")
    if int_bound < 1:
        raise ValueError(f"int_bound must be >= 1, got {int_bound}")
    if not (stddev >= 0 and math.isfinite(stddev)):
        raise ValueError(f"stddev must be >= 0 and finite, got {stddev}")
    reach = units * int_bound + _NOISE_REACH * Fraction(stddev)
    return math.floor(reach).bit_length() + 1


def _require_modulus_bits(modulus_bits: int) -> None:
    if not 2 <= modulus_bits <= 32:
        raise ValueError(f"modulus_bits must lie in [2, 32], got {modulus_bits}")
