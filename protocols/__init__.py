"""Secure aggregation as sans-I/O state machines: integers modulo 2^b and adversaries, no floats and no epsilon.

Use it through `secagg`; import from here only to build another driver.
"""

from .errors import (
    ClientId,
    InconsistentViewError,
    InvalidSignatureError,
    LocalProtocolError,
    MalformedMessageError,
    PolicyRefusal,
    ProtocolError,
    RemoteProtocolError,
    TooFewClientsError,
)
from .graph import required_threshold
from .policy import BundlesSeen, ClientPolicy, History, KeysAdvertised, Record, SurvivorsSigned
from .roster import Identity, Roster
from .session import (
    AggregateReady,
    ClientSession,
    ContributionNeeded,
    Event,
    PeerRejected,
    PersistBeforeSend,
    Phase,
    RoundConfig,
    SendMessage,
    ServerSession,
    SurvivorsAgreed,
)

from .pairwise import PairwiseClient, PairwiseServer  # isort: skip

__secagg_version__ = "0.1.0"

__all__ = [
    "AggregateReady",
    "BundlesSeen",
    "ClientId",
    "ClientPolicy",
    "ClientSession",
    "ContributionNeeded",
    "Event",
    "History",
    "Identity",
    "InconsistentViewError",
    "InvalidSignatureError",
    "KeysAdvertised",
    "LocalProtocolError",
    "MalformedMessageError",
    "PairwiseClient",
    "PairwiseServer",
    "PeerRejected",
    "PersistBeforeSend",
    "Phase",
    "PolicyRefusal",
    "ProtocolError",
    "Record",
    "RemoteProtocolError",
    "Roster",
    "RoundConfig",
    "SendMessage",
    "ServerSession",
    "SurvivorsAgreed",
    "SurvivorsSigned",
    "TooFewClientsError",
    "required_threshold",
]
