"""What a release protects: the privacy unit, the neighbours it is indistinguishable from, the budget it may spend.

Rules:

- A unit is chosen, never inferred, and units never mix in one number: an epsilon for records says nothing about
  clients.
- The adjacency is part of the claim. The units here are of the *zero-out / add-remove* kind with sensitivity
  `int_bound`; replacing one client or record by another moves the sum by up to twice that.
- Every divisor is public. Dividing by a count that depends on the data is a release of its own, and nothing accounts
  for it.
- `delta` has no default. `NoPrivacy` has no epsilon to choose: it is infinite, and everything that prints it says so.
- Only records have a sampling rate. Amplification needs a draw that the adversary does not see; the server of a
  secure aggregation knows which clients took part, so a client-level rate would claim privacy that is not there, and no
  parameter exists for one. Nor is being available a draw: who is online depends on the person.

Example:
    >>> ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=10).unit
    'client'
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Final, Literal, Self

from .accounting import ROUNDINGS, SMALLEST_RATE
from .clipping import AdaptiveClipping

NO_CLIENT_RATE: Final = (
    "a client-level rate would claim privacy that is not there: the server of a secure aggregation knows which clients "
    "take part, and who is available is no random draw. Records that each client draws in secret are RecordLevel"
)
_RATES = ("sampling_rate", "sample_rate", "participation_rate", "client_rate", "q")


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
    adjacency: ClassVar[str] = (
        "one client's whole contribution is replaced by zero; the set of participating clients is public"
    )

    def __new__(cls, **arguments: object) -> Self:
        """Refuses a sampling rate with the reason, not as one more unknown name."""
        for name in _RATES:
            if name in arguments:
                raise TypeError(f"ClientLevel takes no {name}, got {arguments[name]!r}: {NO_CLIENT_RATE}")
        return object.__new__(cls)

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
        rounding: "exact": every record's gradient is clipped, rounded and checked in integers on its own. "sum": ghost
            clipping adds the clipped gradients in floats and rounds the sum once; far cheaper for large models, by a
            proven bound that rests on float arithmetic (see `dp.record_level.ghost`).

    Raises:
        ValueError: a value is outside its bound; the message names both.
    """

    clip_norm: float
    epsilon: float
    delta: float
    rounds: int
    sampling_rate: float
    records: int
    rounding: Literal["exact", "sum"] = "exact"

    unit: ClassVar[str] = "record"
    adjacency: ClassVar[str] = "one record is added or removed; the number that the sum is divided by is public"

    def __post_init__(self) -> None:
        _check_clip_norm(self.clip_norm)
        _check_budget(self.epsilon, self.delta, self.rounds)
        _check_draw(self.sampling_rate, self.records, self.rounding)

    @property
    def exact_rate(self) -> Fraction:
        """The rate that is accounted: the exact binary value of `sampling_rate`.

        A sampler that accepts when a uniform 64-bit word is below floor(q * 2^64) never exceeds it, whether it starts
        from the float or from this fraction. The decimal 1/10 would not do: it is smaller than the float 0.1.
        """
        return Fraction(float(self.sampling_rate))

    @property
    def releases(self) -> int:
        """Noised sums that the budget must carry."""
        return self.rounds

    @property
    def denominator(self) -> float:
        """Public divisor of the released sum: the expected number of sampled records over all clients."""
        return float(self.sampling_rate) * self.records


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRecordLevel:
    """Protects one record of a client over all rounds together, with no trust in anyone: ordinary DP-SGD at the client.

    Every round a client makes `local_steps` steps on its own records, each with all the noise that the budget needs,
    and sends the difference of models. Masking adds confidentiality only. Each client keeps the budget on its own; one
    with another number of records or another rate calibrates its own unit to the same epsilon and delta.

    Attributes:
        clip_norm: L2 bound of one client's update, for range only: privacy does not rest on it. Finite, > 0.
        record_clip_norm: L2 bound of one record's gradient, in units of the gradient. Finite, > 0.
        epsilon: total budget of one client over `rounds`. Finite, > 0.
        delta: failure probability of the guarantee, in (0, 1).
        rounds: rounds that the budget must carry, >= 1.
        local_steps: steps of one client in a round, >= 1.
        sampling_rate: public Poisson rate q of a client's batches, in [2^-64, 1].
        records: public, declared number of records of one client, >= 1. Only a divisor: privacy does not rest on it.
        rounding: as in `RecordLevel`.

    Raises:
        ValueError: a value is outside its bound; the message names both.
    """

    clip_norm: float
    record_clip_norm: float
    epsilon: float
    delta: float
    rounds: int
    local_steps: int
    sampling_rate: float
    records: int
    rounding: Literal["exact", "sum"] = "exact"

    unit: ClassVar[str] = "local_record"
    adjacency: ClassVar[str] = "one record of one client is added or removed; the number it divides by is public"

    def __post_init__(self) -> None:
        _check_clip_norm(self.clip_norm)
        _check_clip_norm(self.record_clip_norm, name="record_clip_norm")
        _check_budget(self.epsilon, self.delta, self.rounds)
        _check_count("local_steps", self.local_steps)
        _check_draw(self.sampling_rate, self.records, self.rounding)

    @property
    def exact_rate(self) -> Fraction:
        """As in `RecordLevel`."""
        return Fraction(float(self.sampling_rate))

    @property
    def releases(self) -> int:
        """Noised sums that the budget must carry."""
        return self.rounds * self.local_steps


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


PrivacyUnit = ClientLevel | RecordLevel | LocalRecordLevel | NoPrivacy


def _check_clip_norm(clip_norm: float, *, name: str = "clip_norm") -> None:
    """A clip norm is a finite positive length."""
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ValueError(f"{name} must be finite and > 0, got {clip_norm!r}")


def _check_draw(sampling_rate: float, records: int, rounding: str) -> None:
    """How records enter a noised sum."""
    if not SMALLEST_RATE <= sampling_rate <= 1:
        raise ValueError(f"sampling_rate must be in [2^-64, 1], got {sampling_rate!r}")
    _check_count("records", records)
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {ROUNDINGS}, got {rounding!r}")


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
