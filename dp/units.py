"""What a release protects: the privacy unit, the neighbours it is indistinguishable from, the budget it may spend.

Rules:

- A unit is chosen, never inferred, and units never mix in one number: an epsilon for records says nothing about
  clients.
- The adjacency is part of the claim. Both units here are of the *zero-out / add-remove* kind with sensitivity
  `int_bound`; replacing one client or record by another moves the sum by up to twice that.
- Every divisor is public. Dividing by a count that depends on the data is a release of its own, and nothing accounts
  for it.
- `delta` has no default. `NoPrivacy` has no epsilon to choose: it is infinite, and everything that prints it says so.
- Only `RecordLevel` has a sampling rate. Amplification needs a draw that the adversary does not see; the server of a
  secure aggregation knows which clients took part, so a client-level rate would claim privacy that is not there, and no
  parameter exists for one.

Example:
    >>> ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=10).unit
    'client'
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from .accounting import SMALLEST_RATE
from .clipping import AdaptiveClipping


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLevel:
    """Protects everything one client holds, over all rounds together, against the server and the configured colluders.

    Attributes:
        clip_norm: L2 bound of one client's update, in units of the update. Finite, > 0. Or `AdaptiveClipping`, at the
            same epsilon.
        epsilon: total budget over `rounds`. Finite, > 0.
        delta: failure probability of the guarantee, in (0, 1).
        rounds: number of releases that the budget must carry, >= 1. Every client is taken to contribute to every one of
            them.

    Raises:
        ValueError: a value is outside its bound; the message names both.
    """

    clip_norm: float | AdaptiveClipping
    epsilon: float
    delta: float
    rounds: int

    unit: ClassVar[str] = "client"
    adjacency: ClassVar[str] = "one client's update is replaced by zero; the set of participating clients is public"

    def __post_init__(self) -> None:
        if not isinstance(self.clip_norm, AdaptiveClipping):
            _check_clip_norm(self.clip_norm)
        _check_budget(self.epsilon, self.delta, self.rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLevel:
    """Protects one record, over all rounds together; each round is one step on per-record gradients.

    Each client includes each of its records independently with probability `sampling_rate`, drawn from its own secure
    generator and never disclosed; an empty draw still sends its noise. The rate is the same public number for
    everybody.

    Attributes:
        clip_norm: L2 bound of one record's gradient, in units of the gradient. Finite, > 0.
        epsilon: total budget over `rounds`. Finite, > 0.
        delta: failure probability of the guarantee, in (0, 1).
        rounds: number of releases that the budget must carry, >= 1.
        sampling_rate: public Poisson rate q, in [2^-64, 1].
        records: public, declared total number of records over all clients, >= 1. Only a divisor: privacy does not rest
            on it.

    Raises:
        ValueError: a value is outside its bound; the message names both.
    """

    clip_norm: float
    epsilon: float
    delta: float
    rounds: int
    sampling_rate: float
    records: int

    unit: ClassVar[str] = "record"
    adjacency: ClassVar[str] = "one record is added or removed; the number that the sum is divided by is public"

    def __post_init__(self) -> None:
        _check_clip_norm(self.clip_norm)
        _check_budget(self.epsilon, self.delta, self.rounds)
        if not SMALLEST_RATE <= self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in [2^-64, 1], got {self.sampling_rate!r}")
        _check_count("records", self.records)

    @property
    def exact_rate(self) -> Fraction:
        """The rate that is accounted: the exact binary value of `sampling_rate`.

        A sampler that accepts when a uniform 64-bit word is below floor(q * 2^64) never exceeds it, whether it starts
        from the float or from this fraction. The decimal 1/10 would not do: it is smaller than the float 0.1.
        """
        return Fraction(float(self.sampling_rate))

    @property
    def denominator(self) -> float:
        """Public divisor of the released sum: the expected number of sampled records over all clients."""
        return float(self.sampling_rate) * self.records


@dataclass(frozen=True, slots=True, kw_only=True)
class NoPrivacy:
    """No noise: masking hides who sent what, and nothing bounds what the exact sum reveals.

    Attributes:
        clip_norm: L2 bound of one client's update, for range only. Finite, > 0.

    Raises:
        ValueError: `clip_norm` is not finite and positive.
    """

    clip_norm: float

    unit: ClassVar[str] = "none"
    adjacency: ClassVar[str] = "none: the exact sum is released"
    epsilon: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        _check_clip_norm(self.clip_norm)


PrivacyUnit = ClientLevel | RecordLevel | NoPrivacy


def _check_clip_norm(clip_norm: float) -> None:
    """A clip norm is a finite positive length."""
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ValueError(f"clip_norm must be finite and > 0, got {clip_norm!r}")


def _check_budget(epsilon: float, delta: float, rounds: int) -> None:
    """A budget is a finite positive epsilon, a delta strictly between 0 and 1, and at least one round."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be finite and > 0, got {epsilon!r}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta!r}")
    _check_count("rounds", rounds)


def _check_count(name: str, value: int) -> None:
    """A count is a Python int of at least one."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be an int >= 1, got {value!r}")
