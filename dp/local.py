"""Local noise: a client pays for privacy at home, step by step, and what it sends needs no noise of others.

Rules:

- `LocalRecordLevel` is ordinary DP-SGD at one client: every local step releases its own noised sum, with the whole
  noise in one share. What follows from it, the model, the update, any aggregate, is post-processing.
- So the claim needs no trust in the server or in other clients, and the noise of others adds nothing to it: later steps
  start from what this client's own noise made, which composes without anybody else's.
- An update that claims to be paid for is a `LocalUpdate`. It is built nowhere but by the optimizer that made the steps.
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from functools import lru_cache
from typing import Any, NoReturn

from .accounting import best_order, epsilon
from .ledger import PrivacyBudget
from .mechanisms import DistributedNoise, calibrate
from .units import LocalRecordLevel, RecordLevel

_SEAL = object()


@lru_cache(maxsize=8)
def local_noise(unit: LocalRecordLevel, *, dimension: int) -> DistributedNoise:
    """The release of one local step: the whole noise in the share of one client.

    Raises:
        CapacityError: no noise keeps the budget at this dimension; the message names what would help.
    """
    return calibrate(unit, dimension=dimension, clients=1, min_survivors=1, max_colluders=0)


def local_epsilon(unit: LocalRecordLevel, *, dimension: int, rounds: int) -> float:
    """Epsilon of one client's records against everybody else, after `rounds` rounds of local steps."""
    event = local_noise(unit, dimension=dimension).event(survivors=1)
    return epsilon({event: rounds * unit.local_steps}, delta=unit.delta)


def planned_budget(unit: RecordLevel | LocalRecordLevel, mechanism: DistributedNoise) -> PrivacyBudget:
    """The budget of a client's ledger, at the one Renyi order that carries all planned releases."""
    planned = {mechanism.event(survivors=mechanism.min_survivors): unit.releases}
    order = best_order(planned, unit.delta)
    return PrivacyBudget(epsilon=unit.epsilon, delta=unit.delta, unit=unit.unit, order=order)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LocalUpdate:
    """A difference of models between which every step carried its own noise.

    Attributes:
        arrays: the named differences.
        unit: what the steps protect, and the budget that this client keeps.

    Raises:
        TypeError: built outside `SecureDPOptimizer.local_update`, or pickled.
    """

    arrays: Mapping[str, Any]
    unit: LocalRecordLevel
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("LocalUpdate is built by SecureDPOptimizer.local_update only")

    def __repr__(self) -> str:
        return "LocalUpdate"

    def __reduce__(self) -> NoReturn:
        raise TypeError("LocalUpdate cannot be pickled or copied")
