"""What releases cost: Rényi curves of Skellam noise, their composition, and their conversion to epsilon.

Rules:

- An event states one release completely and never changes meaning. Events are kept; epsilons are views of them.
- Integer orders only. The Skellam bound is proved for integers, and the subsampling formula is exact for integers;
  between them nothing is claimed.
- Composition adds curves. The minimum over orders is taken once, at the end.
- The variance of an event is the noise that the adversary does *not* know: dropped clients and colluders never count.
- No cancellation: every sum has positive terms only, so small divergences keep ten digits. A rate that is no float is
  rounded up.

Sources:

- the curve: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021;
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
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import UnaccountableError

if TYPE_CHECKING:
    from .mechanisms import DistributedSkellam

IntVector = NDArray[np.int64]
RdpCurve = NDArray[np.float64]


def _orders() -> tuple[int, ...]:
    """Every integer where the optimum usually lies, then steps of a tenth: together they lose under one percent."""
    orders = list(range(2, 65))
    while orders[-1] < 4096:
        orders.append(min(4096, math.ceil(orders[-1] * 1.1)))
    return tuple(orders)


ORDERS: tuple[int, ...] = _orders()

# A secret draw compares 64 random bits with floor(q * 2^64): a smaller rate never draws anything.
SMALLEST_RATE = Fraction(1, 2**64)
# Sensitivity and noise that differ by more than a factor 2^32 are a mistake; within it no float can overflow.
_LARGEST_RATIO = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class SkellamEvent:
    """One release of an integer sum plus Skellam noise, in integer units.

    Adding or removing one unit moves the sum by an integer vector whose squared L2 norm and L1 norm are bounded.

    Attributes:
        l2_squared: squared L2 sensitivity, >= 1.
        l1: L1 sensitivity, >= 1.
        variance: variance per coordinate of the noise that the adversary does not know; both sensitivities over it must
            lie in [2^-64, 2^64].
        dimension: number of coordinates, >= 1. Recorded so that the event is complete; the curve depends on it only
            through `l1`.
        sampling_rate: rate in [2^-64, 1] at which each unit is included, by an independent draw that the adversary does
            not see. 1 means that no draw is made, or that the adversary knows it.

    Raises:
        TypeError: a rational field is not a `Fraction`.
        ValueError: a value is outside its bound; the message names both.
    """

    l2_squared: Fraction
    l1: Fraction
    variance: Fraction
    dimension: int
    sampling_rate: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        for name in ("l2_squared", "l1", "variance", "sampling_rate"):
            if not isinstance(getattr(self, name), Fraction):
                raise TypeError(f"{name} must be a Fraction, got {getattr(self, name)!r}")
        # Neighbouring integer sums that differ at all differ by at least one step.
        for name in ("l2_squared", "l1"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.variance <= 0:
            raise ValueError(f"variance must be > 0, got {self.variance}")
        for name in ("l2_squared", "l1"):
            if not Fraction(1, _LARGEST_RATIO) <= getattr(self, name) / self.variance <= _LARGEST_RATIO:
                raise ValueError(
                    f"{name} / variance must be in [2^-64, 2^64], got {getattr(self, name)} / {self.variance}"
                )
        if type(self.dimension) is not int or self.dimension < 1:
            raise ValueError(f"dimension must be an int >= 1, got {self.dimension!r}")
        if not SMALLEST_RATE <= self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in [2^-64, 1], got {self.sampling_rate}")

    def rdp(self) -> RdpCurve:
        """Rényi divergence bound of this release at each of `ORDERS`, in both directions of the neighbouring relation.

        Returns:
            float64[len(ORDERS)], >= 0.
        """
        rate = _float_above(self.sampling_rate)
        if rate >= 1:
            return self._unsampled(np.array(ORDERS, dtype=np.int64))
        return _subsample(self._unsampled(np.arange(2, ORDERS[-1] + 1)), rate)

    def _unsampled(self, orders: IntVector) -> RdpCurve:
        """Agarwal, Kairouz, Liu 2021, the multi-dimensional Skellam bound, at integer orders >= 2."""
        l2_ratio = float(self.l2_squared / self.variance)
        l1_ratio = float(self.l1 / self.variance)
        precision = float(1 / self.variance)
        excess = np.minimum(((2 * orders - 1) * l2_ratio + 6 * l1_ratio) * precision / 4, 1.5 * l1_ratio)
        return np.asarray(orders * l2_ratio / 2 + excess, dtype=np.float64)

    def to_dict(self) -> dict[str, str | int]:
        """Lossless plain form: rationals as "numerator/denominator" text, plus the kind of event."""
        plain = {
            name: value if isinstance(value, int) else f"{value.numerator}/{value.denominator}"
            for name, value in asdict(self).items()
        }
        return {"event": "skellam", **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "SkellamEvent":
        """Inverse of `to_dict`; accepts exactly what `to_dict` writes.

        Raises:
            UnaccountableError: another kind of event, a missing or unknown key, or a value that `to_dict` would not
                have written.
        """
        try:
            dimension = data["dimension"]
            if not isinstance(dimension, int):
                raise TypeError(f"dimension must be an int, got {dimension!r}")
            event = cls(
                l2_squared=_parse_fraction(data["l2_squared"]),
                l1=_parse_fraction(data["l1"]),
                variance=_parse_fraction(data["variance"]),
                dimension=dimension,
                sampling_rate=_parse_fraction(data["sampling_rate"]),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UnaccountableError(f"not a readable Skellam event: {error}") from error
        if event.to_dict() != data:
            raise UnaccountableError(f"not what a Skellam event writes: {dict(data)!r}")
        return event


PrivacyEvent: TypeAlias = SkellamEvent  # of the kinds that a ledger may hold


def event_from_dict(data: Mapping[str, object]) -> PrivacyEvent:
    """The event of any kind that `to_dict` wrote: its key "event" names the kind.

    Raises:
        UnaccountableError: an unknown kind, or not what that kind writes.
    """
    kinds = {"skellam": SkellamEvent}
    try:
        kind = kinds[str(data["event"])]
    except (KeyError, TypeError) as error:
        raise UnaccountableError(f"no event of the kinds {sorted(kinds)}: {data!r}") from error
    return kind.from_dict(data)


def epsilon(events: Iterable[SkellamEvent] | Mapping[SkellamEvent, int], *, delta: float) -> float:
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


def best_order(events: Iterable[SkellamEvent] | Mapping[SkellamEvent, int], delta: float) -> int:
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


def ladder(
    mechanism: "DistributedSkellam", *, rounds: int, delta: float, survivors: int | None = None
) -> EpsilonLadder:
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

    def cost(event: SkellamEvent) -> float:
        return epsilon({event: rounds}, delta=delta)

    return EpsilonLadder(
        all_honest=cost(mechanism.event(survivors=mechanism.clients, colluders=0)),
        after_dropout=cost(mechanism.event(survivors=survivors, colluders=0)),
        minus_colluders=cost(mechanism.event(survivors=survivors)),
        guaranteed=cost(mechanism.event(survivors=mechanism.min_survivors)),
        local_only=cost(mechanism.event_with(honest=1)),
    )


def _compose(events: Iterable[SkellamEvent] | Mapping[SkellamEvent, int]) -> RdpCurve:
    """Sum of curves; equal events are evaluated once."""
    total = np.zeros(len(ORDERS))
    for event, count in (events if isinstance(events, Mapping) else Counter(events)).items():
        if count < 0:
            raise ValueError(f"an event count must be >= 0, got {count}")
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


def _parse_fraction(text: object) -> Fraction:
    """Reads "numerator/denominator"; other spellings of a number are refused."""
    if not isinstance(text, str):
        raise TypeError(f"a rational must be text, got {text!r}")
    numerator, denominator = text.split("/")
    return Fraction(int(numerator), int(denominator))
