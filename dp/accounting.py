"""What releases cost: Rényi curves of noised sums, their composition, and their conversion to epsilon.

Rules:

- An event states one release completely and never changes meaning. Events are kept; epsilons are views of them.
- Integer orders only. The Skellam bound is proved for integers, and the subsampling formula is exact for integers;
  between them nothing is claimed.
- Composition adds curves. The minimum over orders is taken once, at the end.
- The variance of an event is the noise that the adversary does *not* know: dropped clients and colluders never count.
- No cancellation: every sum has positive terms only, so small divergences keep ten digits. A rate that is no float is
  rounded up.

Sources:

- the curves: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS
  2021; Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
  Aggregation", ICML 2021; Mironov, "Rényi Differential Privacy", CSF 2017 (the continuous Gaussian);
- Poisson subsampling at integer orders, for noise whose law is symmetric about the middle of every shift: Mironov,
  Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", 2019;
- the conversion: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
  Proposition 12.

Example:
    >>> event = SkellamEvent(
    ...     l2_squared=Fraction(1000**2),
    ...     l1=Fraction(30_000),
    ...     variance=Fraction(4096**2),
    ...     dimension=900,
    ...     sampling_rate=Fraction(1, 10),
    ... )
    >>> round(epsilon({event: 100}, delta=1e-5), 3)
    1.052
"""

import functools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from .errors import UnaccountableError

if TYPE_CHECKING:
    from .mechanisms import DistributedNoise

IntVector = NDArray[np.int64]
RdpCurve = NDArray[np.float64]


def _orders() -> tuple[int, ...]:
    """Every integer where the optimum usually lies, then steps of a tenth: together they lose under one percent."""
    orders = list(range(2, 65))
    while orders[-1] < 4096:
        orders.append(min(4096, math.ceil(orders[-1] * 1.1)))
    return tuple(orders)


ORDERS: tuple[int, ...] = _orders()

# How the sum of clipped units becomes integers, in `SkellamEvent.rounding`.
ROUNDINGS = ("exact", "sum")

# A secret draw compares 64 random bits with floor(q * 2^64): a smaller rate never draws anything.
SMALLEST_RATE = Fraction(1, 2**64)
# Sensitivity and noise that differ by more than a factor 2^32 are a mistake; within it no float can overflow.
_LARGEST_RATIO = 2**64


LEAST_SHARE_STDDEV: Final = 4
"""Smallest discrete Gaussian share: from here on a sum of shares differs from the closed law by a factor 1 + 10⁻⁶⁰."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyEvent(ABC):
    """One release of a sum plus noise. Each kind states what else its curve depends on, in `Fraction` and int >= 1.

    Attributes:
        sampling_rate: rate in [2^-64, 1] at which each unit is included, by an independent draw that the adversary does
            not see. 1 means that no draw is made, or that the adversary knows it.
        rounding: how the sensitivities were ensured: "exact", each unit was rounded and checked on its own; "sum", the
            clipped units were summed in floats and rounded once, with a proven bound. For the record only: the
            sensitivities already count it.

    Raises:
        TypeError: a rational field is not a `Fraction`.
        ValueError: a value is outside its bound; the message names both.
    """

    sampling_rate: Fraction = Fraction(1)
    rounding: str = "exact"

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{entry.name} must be an int >= 1, got {value!r}")
            if entry.type is Fraction and not isinstance(value, Fraction):
                raise TypeError(f"{entry.name} must be a Fraction, got {value!r}")
        if not SMALLEST_RATE <= self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in [2^-64, 1], got {self.sampling_rate}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {ROUNDINGS}, got {self.rounding!r}")

    @property
    @abstractmethod
    def gaussian_multiplier(self) -> float:
        """Noise multiplier of the continuous Gaussian mechanism with as much noise for its sensitivity."""

    @abstractmethod
    def _unsampled(self, orders: IntVector) -> RdpCurve:
        """Rényi divergence bound at integer orders >= 2 if every unit is included."""

    def rdp(self) -> RdpCurve:
        """Rényi divergence bound of this release at each of `ORDERS`, in both directions of the neighbouring relation.

        Returns:
            float64[len(ORDERS)], >= 0.
        """
        rate = _float_above(self.sampling_rate)
        if rate >= 1:
            return self._unsampled(np.array(ORDERS, dtype=np.int64))
        return _subsample(self._unsampled(np.arange(2, ORDERS[-1] + 1)), rate)

    def to_dict(self) -> dict[str, str | int]:
        """Lossless plain form: rationals as "numerator/denominator" text, plus the kind of event."""
        plain = {
            name: value if isinstance(value, int | str) else f"{value.numerator}/{value.denominator}"
            for name, value in asdict(self).items()
            if (name, value) != ("rounding", "exact")  # as in ledgers that knew no other
        }
        return {"event": self.kind, **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Inverse of `to_dict`; accepts exactly what `to_dict` writes.

        Raises:
            UnaccountableError: another kind of event, a missing or unknown key, or a value that `to_dict` would not
                have written.
        """
        try:
            values: dict[str, Any] = {
                entry.name: _parse(data[entry.name], entry.type)
                for entry in fields(cls)
                if entry.name in data or entry.name != "rounding"
            }
            event = cls(**values)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UnaccountableError(f"not a readable {cls.kind} event: {error}") from error
        if event.to_dict() != data:
            raise UnaccountableError(f"not what a {cls.kind} event writes: {dict(data)!r}")
        return event


@dataclass(frozen=True, slots=True, kw_only=True)
class SkellamEvent(PrivacyEvent):
    """One release of an integer sum plus Skellam noise, in integer units.

    Adding or removing one unit moves the sum by an integer vector whose squared L2 norm and L1 norm are bounded.

    Attributes:
        l2_squared: squared L2 sensitivity, >= 1.
        l1: L1 sensitivity, >= 1.
        variance: variance per coordinate of the noise that the adversary does not know; both sensitivities over it must
            lie in [2^-64, 2^64].
        dimension: number of coordinates, >= 1. Recorded so that the event is complete; the curve depends on it only
            through `l1`.
    """

    l2_squared: Fraction
    l1: Fraction
    variance: Fraction
    dimension: int

    kind: ClassVar[str] = "skellam"

    def __post_init__(self) -> None:
        PrivacyEvent.__post_init__(self)  # super() is lost where slots rebuild the class
        if self.variance <= 0:
            raise ValueError(f"variance must be > 0, got {self.variance}")
        for name in ("l2_squared", "l1"):
            _check_sensitivity(name, getattr(self, name), self.variance)

    @property
    def gaussian_multiplier(self) -> float:
        """Standard deviation over L2 sensitivity."""
        return math.sqrt(self.variance / self.l2_squared)

    def _unsampled(self, orders: IntVector) -> RdpCurve:
        """Agarwal, Kairouz, Liu 2021, the multi-dimensional Skellam bound, at integer orders >= 2."""
        l2_ratio = float(self.l2_squared / self.variance)
        l1_ratio = float(self.l1 / self.variance)
        precision = float(1 / self.variance)
        excess = np.minimum(((2 * orders - 1) * l2_ratio + 6 * l1_ratio) * precision / 4, 1.5 * l1_ratio)
        return np.asarray(orders * l2_ratio / 2 + excess, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscreteGaussianEvent(PrivacyEvent):
    """One release of an integer sum plus a sum of independent discrete Gaussian shares, in integer units.

    Attributes:
        l2_squared: squared L2 sensitivity to one unit, >= 1; over the variance of all shares it must lie in
            [2^-64, 2^64].
        share_variance: parameter σ² of each share, >= 16. Finer shares do not add up to anything near a discrete
            Gaussian.
        shares: how many shares the adversary does not know.
        dimension: number of coordinates.
    """

    l2_squared: Fraction
    share_variance: Fraction
    shares: int
    dimension: int

    kind: ClassVar[str] = "discrete_gaussian"

    def __post_init__(self) -> None:
        PrivacyEvent.__post_init__(self)
        if self.share_variance < LEAST_SHARE_STDDEV**2:
            raise ValueError(f"share_variance must be >= {LEAST_SHARE_STDDEV}^2, got {self.share_variance}")
        _check_sensitivity("l2_squared", self.l2_squared, self.variance)

    @property
    def variance(self) -> Fraction:
        """Parameter σ² of the one discrete Gaussian that the shares together come close to."""
        return self.shares * self.share_variance

    @property
    def gaussian_multiplier(self) -> float:
        """Standard deviation over L2 sensitivity."""
        return math.sqrt(self.variance / self.l2_squared)

    def _unsampled(self, orders: IntVector) -> RdpCurve:
        """Kairouz, Liu, Steinke 2021, Proposition 14, the first of its three bounds: a D²/2 + τ d.

        The other two only pay where τ d is comparable to D²; with the least share, τ is below 10⁻⁶⁰ per share.
        """
        excess = sum_of_gaussians_excess(self.shares, self.share_variance) * self.dimension
        return np.asarray(orders * float(self.l2_squared / self.variance) / 2 + excess, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianEvent(PrivacyEvent):
    """One release of a sum of reals plus continuous Gaussian noise that one party adds, as textbooks have it.

    Attributes:
        noise_multiplier: standard deviation over L2 sensitivity, in [2^-32, 2^32].
    """

    noise_multiplier: Fraction

    kind: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        PrivacyEvent.__post_init__(self)
        if not 1 <= self.noise_multiplier * 2**32 <= _LARGEST_RATIO:
            raise ValueError(f"noise_multiplier must be in [2^-32, 2^32], got {self.noise_multiplier}")

    @property
    def gaussian_multiplier(self) -> float:
        """The noise multiplier itself."""
        return float(self.noise_multiplier)

    def _unsampled(self, orders: IntVector) -> RdpCurve:
        """Mironov 2017, Corollary 3."""
        return np.asarray(orders * float(1 / (2 * self.noise_multiplier**2)), dtype=np.float64)


_KINDS: Final = {event.kind: event for event in (SkellamEvent, DiscreteGaussianEvent, GaussianEvent)}


def event_from_dict(data: object) -> PrivacyEvent:
    """The event of any kind whose `to_dict` wrote `data`.

    Raises:
        UnaccountableError: no known kind of event wrote it.
    """
    kind = data.get("event") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(kind, str) or kind not in _KINDS:
        raise UnaccountableError(f"an event is a mapping whose key event is one of {sorted(_KINDS)}, got {data!r}")
    return _KINDS[kind].from_dict(data)


def sum_of_gaussians_excess(shares: int, share_variance: Fraction) -> float:
    """τ: what a sum of discrete Gaussians may lose, per coordinate, to one discrete Gaussian of the summed parameter.

    Kairouz, Liu, Steinke 2021, Theorem 1: τ = 10 Σ_{k=1}^{shares-1} exp(-2π² σ² k/(k + 1)). Every k/(k + 1) is at
    least 1/2 and 9.8696 is below π², so the result is above τ, its own rounding included.
    """
    if shares == 1:
        return 0.0
    return math.nextafter(math.exp(math.log(10 * (shares - 1)) - 9.8696 * float(share_variance)), math.inf)


Events = Iterable[PrivacyEvent] | Mapping[PrivacyEvent, int]
"""Releases one by one, or a mapping from a release to how often it was made."""


def counted(events: Events) -> Mapping[PrivacyEvent, int]:
    """How often each release was made; `ValueError` if a count is negative."""
    counts = events if isinstance(events, Mapping) else Counter(events)
    for count in counts.values():
        if count < 0:
            raise ValueError(f"an event count must be >= 0, got {count}")
    return counts


def epsilon(events: Events, *, delta: float) -> float:
    """Epsilon of releasing all `events`, one after another, each with fresh noise.

    Args:
        events: the releases, or a mapping from a release to how often it was made.
        delta: failure probability, in (0, 1).

    Returns:
        The smallest epsilon >= 0 over `ORDERS`; 0 when nothing was released.

    Raises:
        ValueError: `delta` is not in (0, 1), or a count is negative.
    """
    return epsilon_of_rdp(_compose(events), delta)


def epsilon_of_rdp(curve: RdpCurve, delta: float) -> float:
    """Converts a Rényi curve over `ORDERS` to epsilon (Canonne, Kamath, Steinke 2020, Proposition 12), never below 0.

    Raises:
        ValueError: the curve does not have one value >= 0 per order, or `delta` is not in (0, 1).
    """
    if curve.shape != (len(ORDERS),) or not np.all(curve >= 0):
        raise ValueError(f"a curve needs {len(ORDERS)} values >= 0, got shape {curve.shape}")
    converted = max(0.0, float(np.min(curve + _conversion_cost(delta))))
    return converted if curve.any() else 0.0


def best_order(events: Events, delta: float) -> int:
    """The order at which `events` convert to the smallest epsilon: the one to fix when a budget for them is opened."""
    return ORDERS[int(np.argmin(_compose(events) + _conversion_cost(delta)))]


def rdp_budget(order: int, epsilon: float, delta: float) -> float:
    """The Rényi divergence at `order` that converts to exactly `epsilon`.

    Stopping before the summed divergence at one order, fixed in advance, passes this value keeps an adaptively chosen
    sequence of releases (epsilon, delta)-private (Feldman, Zrnic 2021).

    Raises:
        ValueError: `order` is not in `ORDERS`, `delta` is not in (0, 1), or `order` cannot certify `epsilon` even for
            no release.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of the integers in ORDERS, got {order!r}")
    cost = float(_conversion_cost(delta)[ORDERS.index(order)])
    if not math.isfinite(epsilon) or epsilon <= cost:
        raise ValueError(f"epsilon must be finite and > {cost:.6g} at order {order} and delta {delta}, got {epsilon!r}")
    return epsilon - cost


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonLadder:
    """One release plan, read under falling trust; each value is the epsilon after all rounds at one delta.

    Attributes:
        all_honest: every client contributes and keeps its noise to itself.
        after_dropout: only the survivors contribute; all of them honest.
        minus_colluders: the survivors, of whom the assumed number of colluders hand their noise to the adversary.
        guaranteed: the fewest survivors that a round accepts, minus the colluders. This is the budgeted claim.
        local_only: one honest client alone; what remains if everybody else colludes.

    Raises:
        ValueError: a rung is below the one before it.
    """

    all_honest: float
    after_dropout: float
    minus_colluders: float
    guaranteed: float
    local_only: float

    def __post_init__(self) -> None:
        rungs = astuple(self)
        if not all(more_trust <= less_trust for more_trust, less_trust in pairwise(rungs)):
            raise ValueError(f"epsilon must not fall with trust, got {rungs}")

    def to_dict(self) -> dict[str, float]:
        """The rungs by name, most trust first. Values may be `math.inf`."""
        return asdict(self)


def ladder(mechanism: "DistributedNoise", *, rounds: int, delta: float, survivors: int | None = None) -> EpsilonLadder:
    """Epsilons of `rounds` equal releases of `mechanism` under falling trust.

    Args:
        mechanism: the release of one round.
        rounds: how many rounds, >= 0.
        delta: failure probability, in (0, 1).
        survivors: clients that contributed to each round. Without it, the fewest that a round accepts.

    Raises:
        ValueError: `survivors` exceeds the clients, or an argument is out of its range.
        UnaccountableError: `survivors` is below what a round accepts.
    """
    survivors = mechanism.min_survivors if survivors is None else survivors

    def cost(event: PrivacyEvent) -> float:
        return epsilon({event: rounds}, delta=delta)

    all_honest = cost(mechanism.event(survivors=mechanism.clients, colluders=0))
    return EpsilonLadder(
        all_honest=all_honest,
        # Where the surplus of noise is taken out, dropouts may even leave a little more: no rung claims that.
        after_dropout=max(all_honest, cost(mechanism.event(survivors=survivors, colluders=0))),
        minus_colluders=cost(mechanism.event(survivors=survivors)),
        guaranteed=cost(mechanism.event(survivors=mechanism.min_survivors)),
        # All others together hold every removable secret of the one: what stays is what nobody ever gives up.
        local_only=cost(mechanism.event_with(honest=1, survivors=mechanism.clients)),
    )


def _compose(events: Events) -> RdpCurve:
    """Sum of curves; equal events are evaluated once."""
    total = np.zeros(len(ORDERS))
    for event, count in counted(events).items():
        total += count * event.rdp()
    return total


def _conversion_cost(delta: float) -> RdpCurve:
    """What the conversion adds to the divergence at each order (Canonne, Kamath, Steinke 2020, Proposition 12)."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta!r}")
    orders = np.array(ORDERS, dtype=np.float64)
    return np.asarray((-math.log(delta) - np.log(orders)) / (orders - 1) + np.log1p(-1 / orders), dtype=np.float64)


def _subsample(curve: RdpCurve, rate: float) -> RdpCurve:
    """Poisson subsampling at integer orders, from the unsampled curve at orders 2, 3, ..., ORDERS[-1].

    exp((a-1) R_q(a)) = sum_k Binomial(a, rate)(k) exp((k-1) R(k)), with the terms k = 0, 1 equal to their
    probabilities. Subtracting the total probability 1 leaves positive terms only, so small divergences keep their
    digits.
    """
    sampled, kept_out, log_binomial, starts = _binomial_terms()
    growth = np.arange(1, len(curve) + 1) * curve
    log_expm1 = growth + np.log(-np.expm1(-growth))
    terms = log_binomial + kept_out * math.log1p(-rate) + sampled * math.log(rate) + log_expm1[sampled - 2]
    peak = np.maximum.reduceat(terms, starts)
    shifted = np.exp(terms - np.repeat(peak, np.diff(starts, append=len(terms))))
    log_excess = peak + np.log(np.add.reduceat(shifted, starts))
    return np.asarray(np.logaddexp(0, log_excess) / (np.array(ORDERS) - 1), dtype=np.float64)


@functools.cache
def _binomial_terms() -> tuple[IntVector, IntVector, RdpCurve, IntVector]:
    """All (a, k) with a in ORDERS, 2 <= k <= a, laid end to end: k, a - k, log C(a, k), and where each a begins."""
    log_factorial = np.array([math.lgamma(k + 1) for k in range(ORDERS[-1] + 1)])
    sampled = np.concatenate([np.arange(2, order + 1) for order in ORDERS])
    lengths = np.array(ORDERS) - 1
    order = np.repeat(np.array(ORDERS), lengths)
    log_binomial = log_factorial[order] - log_factorial[sampled] - log_factorial[order - sampled]
    return sampled, order - sampled, log_binomial, np.cumsum(lengths) - lengths


def _float_above(value: Fraction) -> float:
    """The nearest float that is not below `value`."""
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def _check_sensitivity(name: str, sensitivity: Fraction, variance: Fraction) -> None:
    """Neighbouring integer sums that differ at all differ by at least one step, and by no absurd multiple of noise."""
    if sensitivity < 1:
        raise ValueError(f"{name} must be >= 1, got {sensitivity}")
    if not Fraction(1, _LARGEST_RATIO) <= sensitivity / variance <= _LARGEST_RATIO:
        raise ValueError(f"{name} / variance must be in [2^-64, 2^64], got {sensitivity} / {variance}")


def _parse(value: object, kind: object) -> Fraction | int | str:
    """Reads an int, a word, or "numerator/denominator"; other spellings of a number are refused."""
    if kind is int:
        if not isinstance(value, int):
            raise TypeError(f"must be an int, got {value!r}")
        return value
    if not isinstance(value, str):
        raise TypeError(f"must be text, got {value!r}")
    if kind is str:
        return value
    numerator, denominator = value.split("/")
    return Fraction(int(numerator), int(denominator))
