"""Differential privacy for secure sums: floats in, noised integers out, epsilon kept.

Rules:

- `dp` knows floats, noise and epsilon; never keys, peers or messages.
- A guarantee rests on integers: exact norms before noise, exact noise laws, exact variances in the accounting.
- Importing `dp` stays light. Record-level training (`dp.record_level`) needs torch and is imported by name.

Example:
    >>> unit = ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=1)
    >>> mechanism = calibrate(unit, dimension=10_000, clients=20, min_survivors=15, max_colluders=2)
    >>> ladder(mechanism, rounds=1, delta=1e-6).guaranteed <= 4.0
    True
"""

from .accounting import (
    ORDERS,
    DiscreteGaussianEvent,
    EpsilonLadder,
    GaussianEvent,
    PrivacyEvent,
    RdpCurve,
    SkellamEvent,
    best_order,
    epsilon,
    epsilon_of_rdp,
    event_from_dict,
    ladder,
    rdp_budget,
)
from .central import CentralGaussian
from .clipping import AdaptiveClipping, clip_by_l2
from .comparison import ComparisonRow, compare
from .encoding import IntegerEncoder, from_ring, required_bits, to_ring
from .errors import (
    BudgetExceededError,
    CapacityError,
    LedgerError,
    PrivacyError,
    UnaccountableError,
    UnsafeUpdateError,
)
from .ledger import LedgerEntry, LedgerState, PrivacyBudget, PrivacyLedger, Reservation
from .local import LocalUpdate, local_epsilon, local_noise, planned_budget
from .mechanisms import (
    LAWS,
    DistributedDiscreteGaussian,
    DistributedNoise,
    DistributedSkellam,
    NoisedIntegers,
    calibrate,
)
from .samplers import (
    FloatMatrix,
    FloatVector,
    Int64Vector,
    RandomBytes,
    UInt32Vector,
    poisson_draw,
    sample_discrete_gaussian,
    sample_skellam,
    secure_random,
)
from .units import ClientLevel, LocalRecordLevel, NoPrivacy, PrivacyUnit, RecordLevel

__secagg_version__ = "0.1.0"

__all__ = [
    "LAWS",
    "ORDERS",
    "AdaptiveClipping",
    "BudgetExceededError",
    "CapacityError",
    "CentralGaussian",
    "ClientLevel",
    "ComparisonRow",
    "DiscreteGaussianEvent",
    "DistributedDiscreteGaussian",
    "DistributedNoise",
    "DistributedSkellam",
    "EpsilonLadder",
    "FloatMatrix",
    "FloatVector",
    "GaussianEvent",
    "Int64Vector",
    "IntegerEncoder",
    "LedgerEntry",
    "LedgerError",
    "LedgerState",
    "LocalRecordLevel",
    "LocalUpdate",
    "NoPrivacy",
    "NoisedIntegers",
    "PrivacyBudget",
    "PrivacyError",
    "PrivacyEvent",
    "PrivacyLedger",
    "PrivacyUnit",
    "RandomBytes",
    "RdpCurve",
    "RecordLevel",
    "Reservation",
    "SkellamEvent",
    "UInt32Vector",
    "UnaccountableError",
    "UnsafeUpdateError",
    "best_order",
    "calibrate",
    "clip_by_l2",
    "compare",
    "epsilon",
    "epsilon_of_rdp",
    "event_from_dict",
    "from_ring",
    "ladder",
    "local_epsilon",
    "local_noise",
    "planned_budget",
    "poisson_draw",
    "rdp_budget",
    "required_bits",
    "sample_discrete_gaussian",
    "sample_skellam",
    "secure_random",
    "to_ring",
]
