"""What fits into the lanes of a masked vector, as it is and after a random rotation.

- Native lanes (16, 32 bits) each are a ring of their own: what counts is the sum over all clients.
- Packed lanes share a word and must never carry: what counts is one client's coordinate, at most 1/clients of a lane.
- Without a rotation one coordinate may carry the whole norm of every unit, and the signal never wraps. With one, all
  coordinates are alike, the same norm needs far fewer bits, and a coordinate wraps with a probability of at most
  `WRAP_PROBABILITY`. A wrap is an error of the whole range, about ten standard deviations of the sum; the inverse
  rotation spreads it over all coordinates. So wraps add 0.1 % to the squared error at most: rarer ones are not worth
  coarser steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from dp import CapacityError, required_bits
from dp.encoding import MAX_INT_BOUND, coarsest_int_bound
from dp.rotation import spread
from dp.wrapping import deviations_for, finest_scale, wrap_probability
from protocols.primitives.packing import LANE_BITS, NATIVE_BITS, largest_entry

WRAP_PROBABILITY = 1e-5  # of one coordinate of a rotated sum, at most
_WIDEST = 64  # bits at which the search for enough of them ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """The lanes of one configuration.

    Attributes:
        modulus_bits: bits of a lane.
        length: coordinates of a vector.
        clients: vectors in a sum.
        units: clipped and rounded units in a sum: clients, or a generous bound on records.
    """

    modulus_bits: int
    length: int
    clients: int
    units: int

    @property
    def native(self) -> bool:
        """Whether every lane is a ring of its own."""
        return self.modulus_bits in NATIVE_BITS

    @property
    def room(self) -> int:
        """The largest integer norm, without noise, at which lanes hold all clients' sum, of either sign."""
        return min(((1 << self.modulus_bits) - 1) // (2 * self.clients), MAX_INT_BOUND)

    @property
    def offset(self) -> int:
        """Added to each coordinate before it enters a lane that must not go below zero; also its largest magnitude."""
        return 0 if self.native else largest_entry(self.modulus_bits, self.clients) // 2

    @property
    def half_range(self) -> int:
        """The magnitude that no coordinate of a full sum may reach."""
        return 1 << (self.modulus_bits - 1) if self.native else self.clients * self.offset + 1

    def rotated_bound(self) -> int:
        """The largest integer norm, without noise, of rotated units; 0 if even rounding does not fit."""
        limit, units = (float(self.half_range), self.units) if self.native else (float(self.offset), 1)
        return min(int(self._scale(limit, units=units, clip_norm=1.0, noise_stddev=0.0)), MAX_INT_BOUND)

    def require_rotated_bound(self) -> None:
        """Refuses lanes in which, without noise, even rotated units are too coarse.

        Raises:
            CapacityError: names the lanes that would do, or what else would.
        """
        least = coarsest_int_bound(self.length)
        if self.rotated_bound() < least:
            enough = [bits for bits in LANE_BITS if replace(self, modulus_bits=bits).rotated_bound() >= least]
            advice = f"{enough[0]} bits are needed" if enough else "train fewer parameters or ask fewer clients"
            raise CapacityError(
                f"{self.modulus_bits} bits cannot hold {self.length} coordinates of {self.clients} clients: {advice}"
            )

    def rotated_share(self, *, int_bound: int, share_variance: Fraction) -> int:
        """The largest standard deviation of a client's noise share at which the sum of rotated, noised units fits.

        Norm bound and share grow together with the fineness of the steps; what the budget fixes is their ratio.

        Args:
            int_bound: norm bound at some finer steps.
            share_variance: variance of the share there. No larger one is returned.

        Raises:
            CapacityError: the steps would be too coarse for the vector; names the bits needed.
        """
        finest = math.sqrt(share_variance)
        ratio = int_bound / finest

        def share(bits: int) -> int:
            limit, noise = 2.0 ** (bits - 1), math.sqrt(self.clients)
            return int(min(finest, self._scale(limit, units=self.units, clip_norm=ratio, noise_stddev=noise)))

        least = coarsest_int_bound(self.length)
        if ratio * share(self.modulus_bits) < least:
            wider = range(self.modulus_bits + 1, _WIDEST)
            needed = next((bits for bits in wider if ratio * share(bits) >= least), _WIDEST)
            raise CapacityError(
                f"{self.modulus_bits} bits cannot hold the sum: {needed} are needed, even after a rotation, for "
                f"{self.units} units of {self.length} coordinates at this budget"
            )
        return share(self.modulus_bits)

    def needed_bits(self, *, int_bound: int, variance: float, rotated: bool) -> int:
        """The smallest native ring that holds the sum of units of norm `int_bound` with noise of `variance` in it.

        Without a rotation the signal cannot wrap in it, noise at 7.5 standard deviations included.
        """
        if not rotated:
            return required_bits(units=self.units, int_bound=int_bound, stddev=math.sqrt(variance))
        reach = self._deviations() * math.sqrt(self._proxy(self.units, int_bound) + variance)
        return math.ceil(math.log2(reach)) + 1

    def wrap_probability(self, *, int_bound: int, variance: float, rotated: bool) -> float:
        """Bound on the chance that one coordinate of a sum wraps, or, in packed lanes, is cut off at a client."""
        if not rotated:
            room = self.half_range - self.units * int_bound
            return wrap_probability(limit=room, proxy=0.0, noise_variance=variance)
        if self.native:
            proxy = self._proxy(self.units, int_bound)
            return wrap_probability(limit=self.half_range, proxy=proxy, noise_variance=variance)
        one = wrap_probability(limit=self.offset, proxy=self._proxy(1, int_bound), noise_variance=0.0)
        return min(1.0, self.clients * one)

    def _proxy(self, units: int, int_bound: int) -> float:
        """Variance proxy per coordinate of so many rotated and rounded units, all in the worst direction."""
        return (units * int_bound) ** 2 / spread(self.length) + units / 4

    def _scale(self, limit: float, *, units: int, clip_norm: float, noise_stddev: float) -> float:
        """Integer steps per unit at which coordinates pass `limit` as rarely as promised; 0 if there are none."""
        try:
            return finest_scale(
                limit=limit,
                units=units,
                clip_norm=clip_norm,
                noise_stddev=noise_stddev,
                spread=spread(self.length),
                deviations=self._deviations(),
            )
        except CapacityError:
            return 0.0

    def _deviations(self) -> float:
        return deviations_for(WRAP_PROBABILITY if self.native else WRAP_PROBABILITY / self.clients)
