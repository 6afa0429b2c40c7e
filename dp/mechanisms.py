"""Distributed Skellam noise: every client adds a share, and the shares that survive sum to the noise of the release.

Rules:

- Integers carry the guarantee: `dp.encoding` has checked a unit's exact norm <= `int_bound` before a share is added.
- The law is closed under addition: independent Skellam shares sum to Skellam noise whose variance is the sum. Dropout
  and collusion change the variance and nothing else. A share is never a continuous sample that is rounded afterwards.
- Shares are sized for the worst round that is accepted: `min_survivors` contribute and `max_colluders` of them hand
  their shares to the adversary. Dividing by all clients instead would void the claim with the first dropout.
- Amplification only from a draw that stays inside the client (`RecordLevel`). The server of a secure aggregation knows
  the cohort, so `ClientLevel` is accounted at rate 1 and no parameter exists that could say otherwise.
- What leaves here is `NoisedIntegers`. It is built nowhere else, so a vector without noise cannot be passed where that
  type is asked for.

Source: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021.
"""

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from fractions import Fraction
from typing import NoReturn

import numpy as np

from .accounting import SMALLEST_RATE, SkellamEvent, epsilon
from .encoding import MAX_INT_BOUND, least_int_bound
from .errors import CapacityError, UnaccountableError, UnsafeUpdateError
from .samplers import MAX_STDDEV, Int64Vector, RandomBytes, sample_skellam
from .units import ClientLevel, RecordLevel

# Thousands of steps wide, a share loses nothing to the continuous law; wider ones only make room for longer vectors.
SHARE_STDDEVS = (4096, 8192, 16384, 32768, MAX_STDDEV)

_SEAL = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedSkellam:
    """One round's release: a sum of bounded integer vectors plus one Skellam share per surviving client.

    Guarantee: what `event` states, against anybody who sees the sum and knows the shares of `max_colluders` survivors.

    Attributes:
        int_bound: L2 norm bound B of one unit's integer vector, >= 1.
        share_variance: variance per coordinate of one client's share, in (0, 65536^2].
        dimension: coordinates of the vector, >= 1.
        clients: clients invited to a round.
        min_survivors: fewest contributions that a round accepts, <= `clients`.
        max_colluders: clients that may work with the adversary, >= 0; `min_survivors - max_colluders` >= 2.
        sampling_rate: rate of the secret per-record draw inside each client, in [2^-64, 1]; 1 without one.

    Raises:
        TypeError: a rational field is not a `Fraction`.
        ValueError: a value is outside its bound; the message names both.
    """

    int_bound: int
    share_variance: Fraction
    dimension: int
    clients: int
    min_survivors: int
    max_colluders: int
    sampling_rate: Fraction

    def __post_init__(self) -> None:
        least = {"int_bound": 1, "dimension": 1, "clients": 2, "min_survivors": 2, "max_colluders": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < bound:
                raise ValueError(f"{name} must be an int >= {bound}, got {value!r}")
        for name in ("share_variance", "sampling_rate"):
            if not isinstance(getattr(self, name), Fraction):
                raise TypeError(f"{name} must be a Fraction, got {getattr(self, name)!r}")
        if not 0 < self.share_variance <= MAX_STDDEV**2:
            raise ValueError(f"share_variance must be in (0, {MAX_STDDEV}^2], got {self.share_variance}")
        if self.min_survivors > self.clients:
            raise ValueError(f"min_survivors must be <= clients = {self.clients}, got {self.min_survivors}")
        if self.min_survivors - self.max_colluders < 2:
            raise ValueError(
                f"min_survivors - max_colluders must be >= 2, got {self.min_survivors} - {self.max_colluders}: "
                "one honest client alone has nobody to share the noise with"
            )
        if not SMALLEST_RATE <= self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in [2^-64, 1], got {self.sampling_rate}")

    @property
    def noise_multiplier(self) -> float:
        """Guaranteed standard deviation over `int_bound`, comparable to z of a central Gaussian mechanism."""
        return math.sqrt((self.min_survivors - self.max_colluders) * self.share_variance) / self.int_bound

    def noise_share(self, *, rand: RandomBytes) -> Int64Vector:
        """One client's share, fresh for each release: int64[dimension], mean 0, `share_variance` per coordinate."""
        return sample_skellam(self.dimension, variance=self.share_variance, rand=rand)

    def privatize(self, integers: Int64Vector, *, rand: RandomBytes, seed: bytes = b"") -> "NoisedIntegers":
        """Adds one noise share.

        Args:
            integers: int64[dimension], the encoded unit (or the sum of encoded records); left unchanged.
            rand: secure bytes for the share.
            seed: public seed of the rotation that the units went through; empty without one.

        Returns:
            The sum, read-only.

        Raises:
            UnsafeUpdateError: wrong dtype or shape, or an entry of magnitude >= 2^62, where adding noise might wrap.
        """
        if integers.dtype != np.int64 or integers.shape != (self.dimension,):
            raise UnsafeUpdateError(
                f"integers must be int64[{self.dimension}], got {integers.dtype}{list(integers.shape)}"
            )
        if integers.max() >= 2**62 or integers.min() <= -(2**62):
            raise UnsafeUpdateError("integers must have magnitude < 2^62")
        return NoisedIntegers(vector=integers + self.noise_share(rand=rand), mechanism=self, seed=seed, seal=_SEAL)

    def event(self, *, survivors: int, colluders: int | None = None) -> SkellamEvent:
        """The release of a round to which `survivors` contributed, some of them with shares known to the adversary.

        Args:
            survivors: how many contributed, in [min_survivors, clients].
            colluders: how many of them collude. Without it, `max_colluders`.

        Raises:
            UnaccountableError: fewer survivors than a round accepts.
            ValueError: more survivors than clients, or `colluders` not in [0, survivors).
        """
        colluders = self.max_colluders if colluders is None else colluders
        if survivors < self.min_survivors:
            raise UnaccountableError(
                f"survivors must be >= min_survivors = {self.min_survivors}, got {survivors}: the round is void"
            )
        if survivors > self.clients:
            raise ValueError(f"survivors must be <= clients = {self.clients}, got {survivors}")
        if not 0 <= colluders < survivors:
            raise ValueError(f"colluders must be in [0, survivors = {survivors}), got {colluders}")
        return self.event_with(honest=survivors - colluders)

    def event_with(self, *, honest: int) -> SkellamEvent:
        """What-if: the release with `honest` (>= 1) shares unknown to the adversary, whether or not it is accepted."""
        return SkellamEvent(
            l2_squared=Fraction(self.int_bound**2),
            l1=Fraction(_l1_bound(self.int_bound, self.dimension)),
            variance=honest * self.share_variance,
            dimension=self.dimension,
            sampling_rate=self.sampling_rate,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NoisedIntegers:
    """An integer vector that carries its noise share. Only `DistributedSkellam.privatize` makes one.

    It prints as its type alone, cannot be pickled or copied, and can be taken once: the same noise in two rounds would
    protect neither.

    Attributes:
        vector: int64[dimension], read-only.
        mechanism: the mechanism whose share was added.
        seed: public seed of the rotation that the integers are in; empty without one.

    Raises:
        TypeError: built outside `privatize`, or pickled.
    """

    vector: Int64Vector
    mechanism: DistributedSkellam
    seed: bytes = b""
    seal: InitVar[object]
    _taken: bool = field(default=False, init=False)

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("NoisedIntegers is built by DistributedSkellam.privatize only")
        self.vector.setflags(write=False)

    def take(self) -> Int64Vector:
        """The vector, to be masked and sent, once.

        Raises:
            UnsafeUpdateError: it was taken before.
        """
        if self._taken:
            raise UnsafeUpdateError("this contribution was used in a round already: its noise cannot serve again")
        object.__setattr__(self, "_taken", True)
        return self.vector

    def __repr__(self) -> str:
        return "NoisedIntegers"

    def __reduce__(self) -> NoReturn:
        raise TypeError("NoisedIntegers cannot be pickled or copied")


def calibrate(
    unit: ClientLevel | RecordLevel,
    *,
    dimension: int,
    clients: int,
    min_survivors: int,
    max_colluders: int,
    share_stddevs: Sequence[int] = SHARE_STDDEVS,
    least: int | None = None,
) -> DistributedSkellam:
    """The least noise whose guaranteed epsilon over `unit.rounds` stays within `unit.epsilon`.

    The share's standard deviation is the first of `share_stddevs` that leaves `int_bound` >= `least`, by default
    8 sqrt(dimension).
    `int_bound` is then the largest, up to the encoder's limit, that keeps the budget when only
    `min_survivors - max_colluders` shares are honest. The search is over integers: the budget is kept, not approached
    within a tolerance.

    Raises:
        ValueError: an argument is outside its bound.
        CapacityError: no such `int_bound` within the largest share; the message names what would help.
    """
    needed = least_int_bound(dimension) if least is None else least

    def release(int_bound: int, stddev: int) -> DistributedSkellam:
        return DistributedSkellam(
            int_bound=int_bound,
            share_variance=Fraction(stddev**2),
            dimension=dimension,
            clients=clients,
            min_survivors=min_survivors,
            max_colluders=max_colluders,
            sampling_rate=unit.exact_rate if isinstance(unit, RecordLevel) else Fraction(1),
        )

    def within_budget(int_bound: int, stddev: int) -> bool:
        event = release(int_bound, stddev).event(survivors=min_survivors)
        return epsilon({event: unit.rounds}, delta=unit.delta) <= unit.epsilon

    for stddev in share_stddevs:
        if within_budget(needed, stddev):
            low, high = needed, MAX_INT_BOUND + 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if within_budget(middle, stddev) else (low, middle)
            return release(low, stddev)
    rule = "8 sqrt(dimension) = " if least is None else ""
    raise CapacityError(
        f"int_bound must be >= {rule}{needed}, and no such bound keeps epsilon {unit.epsilon} over "
        f"{unit.rounds} rounds with {min_survivors - max_colluders} honest shares of stddev {share_stddevs[-1]}: "
        "raise epsilon or min_survivors, lower rounds, or train fewer parameters"
    )


def _l1_bound(int_bound: int, dimension: int) -> int:
    """Bound on the L1 norm of an integer vector with L2 norm <= B: sqrt(d) B, and B^2 since |x| <= x^2."""
    return min(math.isqrt(dimension * int_bound**2), int_bound**2)
