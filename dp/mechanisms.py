"""Distributed noise: every client adds a share, and the shares that survive sum to the noise of the release.

Rules:

- Integers carry the guarantee: `dp.encoding` has checked a unit's exact norm <= `int_bound` before a share is added.
- A share is drawn from an integer law, never a continuous sample that is rounded afterwards. Two laws are served, at
  the same epsilon to four digits. Skellam noise, the default, is closed under addition: dropout and collusion change
  the variance and nothing else. Sums of discrete Gaussians only come close to one, and pay for the difference.
- Shares are sized for the worst round that is accepted: `min_survivors` contribute and `max_colluders` of them hand
  their shares to the adversary. Dividing by all clients instead would void the claim with the first dropout.
- Amplification only from a draw that stays inside the client (`RecordLevel`). The server of a secure aggregation knows
  the cohort, so `ClientLevel` is accounted at rate 1 and no parameter exists that could say otherwise.
- Sizing for the worst round leaves more noise than needed in every better one. With `removable` noise a client's
  share is a sum of components, and the server is later given the seeds of those that only make up for dropouts that
  did not happen. Then every accepted round holds exactly the noise of the worst one. Only a law that is closed under
  addition can be cut so.
- What leaves here is `NoisedIntegers`. It is built nowhere else, so a vector without noise cannot be passed where that
  type is asked for.

Sources: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021;
Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation",
ICML 2021; for removable noise Jiang, Wang, Chen, "Efficient Federated Learning with Dropout-Resilient Differential
Privacy" (XNoise), EuroSys 2024, with the colluders taken off the counts instead of a factor on the variance.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import InitVar, dataclass, field
from fractions import Fraction
from typing import ClassVar, Final, NoReturn

import numpy as np

from .accounting import (
    LEAST_SHARE_STDDEV,
    SMALLEST_RATE,
    DiscreteGaussianEvent,
    PrivacyEvent,
    SkellamEvent,
    epsilon,
)
from .encoding import MAX_INT_BOUND, least_int_bound
from .errors import CapacityError, UnaccountableError, UnsafeUpdateError
from .samplers import (
    MAX_STDDEV,
    Int64Vector,
    RandomBytes,
    sample_discrete_gaussian,
    sample_skellam,
    seeded_random,
)
from .units import ClientLevel, LocalRecordLevel, RecordLevel

# Thousands of steps wide, a share loses nothing to the continuous law; wider ones only make room for longer vectors.
SHARE_STDDEVS = (4096, 8192, 16384, 32768, MAX_STDDEV)

_SEAL = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedNoise(ABC):
    """One round's release: a sum of bounded integer vectors plus one noise share per surviving client.

    Guarantee: what `event` states, against anybody who sees the sum and knows the shares of `max_colluders` survivors.

    Attributes:
        int_bound: L2 norm bound B of one unit's integer vector, >= 1.
        share_variance: variance per coordinate of one client's share, in (0, 65536^2].
        dimension: coordinates of the vector, >= 1.
        clients: clients invited to a round; 1 is local noise, all of it in one share.
        min_survivors: fewest contributions that a round accepts, <= `clients`.
        max_colluders: clients that may work with the adversary, >= 0; `min_survivors - max_colluders` >= 2, or
            with one client 1.
        sampling_rate: rate of the secret per-record draw inside each client, in [2^-64, 1]; 1 without one.
        rounding: what ensures `int_bound`, see `SkellamEvent`: "exact" or "sum".
        removable: whether shares are cut into `components`, of which the server takes out the surplus.

    Raises:
        TypeError: a rational field is not a `Fraction`, or `removable` is no bool.
        ValueError: a value is outside its bound; the message names both.
    """

    int_bound: int
    share_variance: Fraction
    dimension: int
    clients: int
    min_survivors: int
    max_colluders: int
    sampling_rate: Fraction
    rounding: str = "exact"
    removable: bool = False

    law: ClassVar[str]  # its name in configurations

    def __post_init__(self) -> None:
        least = {"int_bound": 1, "dimension": 1, "clients": 1, "min_survivors": 1, "max_colluders": 0}
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
        if self.min_survivors - self.max_colluders < min(2, self.clients):
            raise ValueError(
                f"min_survivors - max_colluders must be >= 2, got {self.min_survivors} - {self.max_colluders}: "
                "one honest client alone has nobody to share the noise with"
            )
        if not SMALLEST_RATE <= self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in [2^-64, 1], got {self.sampling_rate}")
        if type(self.removable) is not bool:
            raise TypeError(f"removable must be a bool, got {self.removable!r}")
        if self.removable and self.min_survivors == self.clients:
            raise ValueError(f"removable noise makes up for dropouts, and all {self.clients} clients must survive")

    @property
    def components(self) -> tuple[Fraction, ...]:
        """Variances of the independent parts of a share. The first always stays; k = 1, 2, ... stays if k clients drop.

        With h honest clients among all and the variance V that must remain, the first has V / h and component k
        V / ((h - k + 1) (h - k)). They telescope: if d clients drop, V / (h - d) is left with each survivor.
        """
        if not self.removable:
            return (self.share_variance,)
        honest, remaining = self.clients - self.max_colluders, self._guaranteed_variance
        rest = range(honest, self.min_survivors - self.max_colluders, -1)
        return (remaining / honest, *(remaining / (h * (h - 1)) for h in rest))

    def residual_variance(self, survivors: int) -> Fraction:
        """Variance of what remains of one share in the release over so many survivors."""
        if not self.removable:
            return self.share_variance
        return self._guaranteed_variance / (survivors - self.max_colluders)

    @property
    def _guaranteed_variance(self) -> Fraction:
        return (self.min_survivors - self.max_colluders) * self.share_variance

    @property
    def noise_multiplier(self) -> float:
        """Guaranteed standard deviation over `int_bound`, comparable to z of a central Gaussian mechanism."""
        return math.sqrt(self._guaranteed_variance) / self.int_bound

    @abstractmethod
    def _draw(self, variance: Fraction, *, rand: RandomBytes) -> Int64Vector:
        """int64[dimension] of the law."""

    @abstractmethod
    def event_with(self, *, honest: int, survivors: int | None = None) -> PrivacyEvent:
        """What-if: the release with `honest` (>= 1) shares unknown to the adversary, whether or not it is accepted.

        `survivors` contributed to it, without it `min_survivors`; only removable noise depends on that.
        """

    def noise_share(self, *, rand: RandomBytes, seeds: Sequence[bytes] = ()) -> Int64Vector:
        """One client's share, fresh for each release: int64[dimension], mean 0, `share_variance` per coordinate.

        Args:
            rand: secure bytes for what nobody takes out again.
            seeds: with removable noise the fresh 32-byte seeds of components 1, 2, ..., used for nothing else.

        Raises:
            ValueError: there is not one seed for each removable component.
        """
        stays, *others = self.components
        if len(seeds) != len(others):
            raise ValueError(f"seeds must be {len(others)}, one for each removable component, got {len(seeds)}")
        noise = self._draw(stays, rand=rand)
        for variance, seed in zip(others, seeds, strict=True):
            noise += self._draw(variance, rand=seeded_random(seed))
        return noise

    def surplus(self, removed: Collection[Sequence[bytes]]) -> Int64Vector:
        """What the server takes out of a sum.

        Args:
            removed: for each survivor the seeds of its components from 1 + the number of dropouts on.

        Returns:
            int64[dimension], the sum of all these components.

        Raises:
            ValueError: the seeds are not as many as so many survivors leave superfluous.
        """
        expected = len(removed) - self.min_survivors if self.removable else 0
        if any(len(seeds) != expected for seeds in removed):
            raise ValueError(f"{len(removed)} survivors leave {expected} superfluous components each, got other seeds")
        noise = np.zeros(self.dimension, dtype=np.int64)
        for place in range(1, max(expected, 0) + 1):  # one component of everybody at a time: they share a table
            for seeds in removed:
                noise += self._draw(self.components[-place], rand=seeded_random(seeds[-place]))
        return noise

    def privatize(
        self, integers: Int64Vector, *, rand: RandomBytes, seeds: Sequence[bytes] = (), seed: bytes = b""
    ) -> "NoisedIntegers":
        """Adds one noise share.

        Args:
            integers: int64[dimension], the encoded unit (or the sum of encoded records); left unchanged.
            rand: secure bytes for the share.
            seeds: as for `noise_share`.
            seed: public seed of the rotation that the units went through; empty without one.

        Returns:
            The sum, read-only.

        Raises:
            ValueError: there is not one seed for each removable component.
            UnsafeUpdateError: wrong dtype or shape, or an entry of magnitude >= 2^62, where adding noise might wrap.
        """
        if integers.dtype != np.int64 or integers.shape != (self.dimension,):
            raise UnsafeUpdateError(
                f"integers must be int64[{self.dimension}], got {integers.dtype}{list(integers.shape)}"
            )
        if integers.max() >= 2**62 or integers.min() <= -(2**62):
            raise UnsafeUpdateError("integers must have magnitude < 2^62")
        noised = integers + self.noise_share(rand=rand, seeds=seeds)
        return NoisedIntegers(vector=noised, mechanism=self, seed=seed, seal=_SEAL)

    def event(self, *, survivors: int, colluders: int | None = None) -> PrivacyEvent:
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
        return self.event_with(honest=survivors - colluders, survivors=survivors)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedSkellam(DistributedNoise):
    """Skellam shares: their sum is Skellam noise of the summed variance, exactly."""

    law: ClassVar[str] = "skellam"

    def _draw(self, variance: Fraction, *, rand: RandomBytes) -> Int64Vector:
        return sample_skellam(self.dimension, variance=variance, rand=rand)

    def event_with(self, *, honest: int, survivors: int | None = None) -> SkellamEvent:
        """See `DistributedNoise`."""
        return SkellamEvent(
            l2_squared=Fraction(self.int_bound**2),
            l1=Fraction(_l1_bound(self.int_bound, self.dimension)),
            variance=honest * self.residual_variance(self.min_survivors if survivors is None else survivors),
            dimension=self.dimension,
            sampling_rate=self.sampling_rate,
            rounding=self.rounding,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedDiscreteGaussian(DistributedNoise):
    """Discrete Gaussian shares of parameter σ² = `share_variance` >= 16: their sum is accounted as close to one."""

    law: ClassVar[str] = "discrete_gaussian"

    def __post_init__(self) -> None:
        DistributedNoise.__post_init__(self)  # super() is lost where slots rebuild the class
        if self.share_variance < LEAST_SHARE_STDDEV**2:
            raise ValueError(
                f"share_variance must be >= {LEAST_SHARE_STDDEV}^2, got {self.share_variance}: "
                "a sum of finer discrete Gaussian shares is far from a discrete Gaussian"
            )
        if self.removable:
            raise ValueError("removable noise needs a law that is closed under addition: take Skellam noise")

    def _draw(self, variance: Fraction, *, rand: RandomBytes) -> Int64Vector:
        return sample_discrete_gaussian(self.dimension, variance=variance, rand=rand)

    def event_with(self, *, honest: int, survivors: int | None = None) -> DiscreteGaussianEvent:
        """See `DistributedNoise`."""
        return DiscreteGaussianEvent(
            l2_squared=Fraction(self.int_bound**2),
            share_variance=self.share_variance,
            shares=honest,
            dimension=self.dimension,
            sampling_rate=self.sampling_rate,
            rounding=self.rounding,
        )


LAWS: Final = {mechanism.law: mechanism for mechanism in (DistributedSkellam, DistributedDiscreteGaussian)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NoisedIntegers:
    """An integer vector that carries its noise share. Only `privatize` of a mechanism makes one.

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
    mechanism: DistributedNoise
    seed: bytes = b""
    seal: InitVar[object]
    _taken: bool = field(default=False, init=False)

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("NoisedIntegers is built by a mechanism's privatize only")
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
    unit: ClientLevel | RecordLevel | LocalRecordLevel,
    *,
    dimension: int,
    clients: int,
    min_survivors: int,
    max_colluders: int,
    law: str = "skellam",
    removable: bool = False,
    share_stddevs: Sequence[int] = SHARE_STDDEVS,
    least: int | None = None,
) -> DistributedNoise:
    """The least noise whose guaranteed epsilon over `unit.rounds` stays within `unit.epsilon`.

    The share's standard deviation is the first of `share_stddevs` that leaves `int_bound` >= `least`, by default
    8 sqrt(dimension).
    `int_bound` is then the largest, up to the encoder's limit, that keeps the budget when only
    `min_survivors - max_colluders` shares are honest. The search is over integers: the budget is kept, not approached
    within a tolerance.

    Args:
        unit: what is protected, with its budget.
        dimension: coordinates of the vector.
        clients: clients invited to a round.
        min_survivors: fewest contributions that a round accepts.
        max_colluders: clients that may work with the adversary.
        law: of the shares: "skellam" or "discrete_gaussian".
        removable: whether the server takes out what only makes up for dropouts that did not happen. The worst accepted
            round is the same, and so is the noise found.
        share_stddevs: standard deviations of a share to choose from, rising.
        least: smallest `int_bound` that will do; without it 8 sqrt(dimension).

    Raises:
        ValueError: an argument is outside its bound, or `law` is unknown.
        CapacityError: no such `int_bound` within the largest share; the message names what would help.
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {sorted(LAWS)}, got {law!r}")
    rule = "8 sqrt(dimension) = " if least is None else ""
    least = least_int_bound(dimension) if least is None else least

    def release(int_bound: int, stddev: int) -> DistributedNoise:
        return LAWS[law](
            int_bound=int_bound,
            share_variance=Fraction(stddev**2),
            dimension=dimension,
            clients=clients,
            min_survivors=min_survivors,
            max_colluders=max_colluders,
            sampling_rate=Fraction(1) if isinstance(unit, ClientLevel) else unit.exact_rate,
            rounding="exact" if isinstance(unit, ClientLevel) else unit.rounding,
            removable=removable,
        )

    def within_budget(int_bound: int, stddev: int) -> bool:
        event = release(int_bound, stddev).event(survivors=min_survivors)
        return epsilon({event: releases}, delta=unit.delta) <= unit.epsilon

    # Rounding a sum takes sqrt(dimension) of the bound: prefer shares so fine that this is a twenty-fourth of it.
    fine = 3 * least if not isinstance(unit, ClientLevel) and unit.rounding == "sum" else least
    releases = unit.rounds if isinstance(unit, ClientLevel) else unit.releases
    for needed, stddev in dict.fromkeys((needed, stddev) for needed in (fine, least) for stddev in share_stddevs):
        if within_budget(needed, stddev):
            low, high = needed, MAX_INT_BOUND + 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if within_budget(middle, stddev) else (low, middle)
            return release(low, stddev)
    raise CapacityError(
        f"int_bound must be >= {rule}{least}, and no such bound keeps epsilon {unit.epsilon} over "
        f"{releases} rounds with {min_survivors - max_colluders} honest shares of stddev {share_stddevs[-1]}: "
        "raise epsilon or min_survivors, lower rounds, or train fewer parameters"
    )


def _l1_bound(int_bound: int, dimension: int) -> int:
    """Bound on the L1 norm of an integer vector with L2 norm <= B: sqrt(d) B, and B^2 since |x| <= x^2."""
    return min(math.isqrt(dimension * int_bound**2), int_bound**2)
