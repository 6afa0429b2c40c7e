"""Secure aggregation and distributed differential privacy for federated learning: the server learns only a noised sum.

Example:
    >>> import numpy as np, secagg
    >>> updates = {i: {"w": np.full(4, float(i))} for i in range(1, 6)}
    >>> config = secagg.AggregationConfig.cross_silo(
    ...     like=updates[1], clients=5, max_dropouts=1, max_colluders=1, privacy=secagg.NoPrivacy(clip_norm=20.0)
    ... )
    >>> result = secagg.simulate(updates, config, drop={5})
    >>> result.mean["w"].round(3).tolist(), sorted(result.survivors)
    ([2.5, 2.5, 2.5, 2.5], [1, 2, 3, 4])
"""

from ._siblings import VERSION, check_siblings

check_siblings()

from dp import (  # noqa: E402 - only after the guard
    AdaptiveClipping,
    BudgetExceededError,
    CapacityError,
    ClientLevel,
    EpsilonLadder,
    LedgerError,
    LocalRecordLevel,
    LocalUpdate,
    NoPrivacy,
    PrivacyBudget,
    PrivacyError,
    PrivacyLedger,
    RecordLevel,
    UnaccountableError,
    UnsafeUpdateError,
)
from protocols import (  # noqa: E402
    AggregateReady,
    ContributionNeeded,
    Identity,
    InconsistentViewError,
    InvalidSignatureError,
    LocalProtocolError,
    MalformedMessageError,
    PeerRejected,
    Phase,
    PolicyRefusal,
    ProtocolError,
    RemoteProtocolError,
    Roster,
    SendMessage,
    SurvivorsAgreed,
    TooFewClientsError,
)

from .client import Client  # noqa: E402
from .config import AggregationConfig  # noqa: E402
from .explain import Explanation  # noqa: E402
from .history import ClientHistory, MemoryHistory  # noqa: E402
from .layout import Layout  # noqa: E402
from .privacy import privacy_unit  # noqa: E402
from .riders import Contribution, PrivateWeights  # noqa: E402
from .server import AggregationResult, Server  # noqa: E402
from .simulation import Simulation, simulate  # noqa: E402
from .statement import statement, statement_dict  # noqa: E402

__version__ = VERSION

__all__ = [
    "AdaptiveClipping", "AggregateReady", "AggregationConfig", "AggregationResult", "BudgetExceededError",
    "CapacityError", "Client", "ClientHistory", "ClientLevel", "Contribution", "ContributionNeeded", "EpsilonLadder",
    "Explanation", "Identity", "InconsistentViewError", "InvalidSignatureError", "Layout", "LedgerError",
    "LocalProtocolError", "LocalRecordLevel", "LocalUpdate", "MalformedMessageError", "MemoryHistory", "NoPrivacy",
    "PeerRejected", "Phase", "PolicyRefusal", "PrivacyBudget", "PrivacyError", "PrivacyLedger", "PrivateWeights",
    "ProtocolError", "RecordLevel", "RemoteProtocolError", "Roster", "SendMessage", "Server", "Simulation",
    "SurvivorsAgreed", "TooFewClientsError", "UnaccountableError", "UnsafeUpdateError", "privacy_unit", "simulate",
    "statement", "statement_dict",
]  # fmt: skip
