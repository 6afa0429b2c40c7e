"""The contract every secure-aggregation protocol keeps: sessions that take bytes and give events.

Theory of operation:

- A session is one party's part in one round. It has no clock, socket, file or thread; the *driver* moves bytes and
  decides when to stop waiting.
- The server proposes, the client enforces. `ClientSession` checks everything the server says before it answers; the
  server's own checks only protect the result. Whatever the server does, a client releases at most what adds up to one
  sum over at least `min_survivors` clients.
- A round ends with the exact sum over the survivors, or with a typed error. Then the session is dead: its secrets are
  erased, and every further call raises `LocalProtocolError`.
- A call out of order kills the session. A bad argument (`ValueError`) changes nothing and may be corrected.
- Any exception from `receive` that is not a `ProtocolError` is a bug of this library.
- `PersistBeforeSend` is the only durability rule: make the record durable, then call `persisted()`; only then does the
  session answer.

The transition tables are data: (phase, trigger) -> next phase. Whatever is not in the table is refused. Pictures in the
documentation are drawn from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from typing import Protocol

import msgspec

from .errors import ClientId
from .graph import required_threshold
from .policy import Record
from .primitives.keys import HYBRID, SUITES
from .primitives.packing import LANE_BITS, NATIVE_BITS, UInt32Vector

MAX_CLIENT_ID = 2**31 - 1
MAX_LENGTH = 2**31  # coordinates: lengths are announced before vectors, so a bound keeps allocations finite
MAX_COHORT = 65_520  # holder slots are non-zero elements of F_65521
DIGEST_BYTES = 32


class Phase(Enum):
    """Where a session stands. Phases carry the names of the papers' rounds (Bonawitz et al., CCS 2017, figure 4)."""

    READY = "Ready"
    ADVERTISE_KEYS = "AdvertiseKeys"
    SHARE_KEYS = "ShareKeys"
    CONTRIBUTE = "Contribute"
    MASKED_INPUT = "MaskedInput"
    CONSISTENCY_CHECK = "ConsistencyCheck"
    UNMASK = "Unmask"
    FINISHED = "Finished"
    ABORTED = "Aborted"


TransitionTable = Mapping[tuple[Phase, str], Phase]

CLIENT_TRANSITIONS: TransitionTable = {
    (Phase.READY, "start"): Phase.ADVERTISE_KEYS,
    (Phase.ADVERTISE_KEYS, "KeyBundles"): Phase.SHARE_KEYS,
    (Phase.SHARE_KEYS, "SealedShares"): Phase.CONTRIBUTE,
    (Phase.CONTRIBUTE, "contribute"): Phase.MASKED_INPUT,
    (Phase.MASKED_INPUT, "SurvivorList"): Phase.CONSISTENCY_CHECK,
    (Phase.CONSISTENCY_CHECK, "SurvivorSignatures"): Phase.FINISHED,
}

SERVER_TRANSITIONS: TransitionTable = {
    (Phase.ADVERTISE_KEYS, "close_phase"): Phase.SHARE_KEYS,
    (Phase.SHARE_KEYS, "close_phase"): Phase.MASKED_INPUT,
    (Phase.MASKED_INPUT, "close_phase"): Phase.CONSISTENCY_CHECK,
    (Phase.CONSISTENCY_CHECK, "close_phase"): Phase.UNMASK,
    (Phase.UNMASK, "close_phase"): Phase.FINISHED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig:
    """What all parties of a round agree on.

    Its digest enters every signature and every derived key, so any difference makes the round fail.

    Attributes:
        round_id: 32 bytes that no other round has.
        cohort: n, the number of clients invited.
        threshold: t, how many of the holders of a secret must answer to reconstruct it.
        min_survivors: the smallest number of clients whose sum may be revealed.
        degree: k, how many neighbours a client shares masks with; n - 1 is the complete graph (SecAgg), less is
            SecAgg+.
        corrupt_holders: how many holders of one secret may collude with the server.
        length: d, coordinates of a vector.
        modulus_bits: b, bits of a lane; the sum is exact modulo 2^b.
        model: SHA-256 digest of the model that every client starts from.
        binding: SHA-256 digest of everything above the protocol: application, layout, privacy configuration.
        suite: the number of the key-agreement suite: 2 is X25519 with ML-KEM-768, 1 is X25519 alone.
        removable: T, components of each vector that the server may take out if fewer clients drop out; 0, or
            cohort - min_survivors on the complete graph.
    """

    round_id: bytes
    cohort: int
    threshold: int
    min_survivors: int
    degree: int
    corrupt_holders: int
    length: int
    modulus_bits: int
    model: bytes
    binding: bytes
    suite: int = HYBRID.number
    removable: int = 0

    def __post_init__(self) -> None:
        for name in ("round_id", "model", "binding"):
            if len(getattr(self, name)) != DIGEST_BYTES:
                raise ValueError(f"{name} must have {DIGEST_BYTES} bytes, got {len(getattr(self, name))}")
        if self.suite not in SUITES:
            raise ValueError(f"suite must be one of {sorted(SUITES)}, got {self.suite}")
        if not 2 <= self.cohort <= MAX_COHORT:
            raise ValueError(f"cohort must be from 2 to {MAX_COHORT}, got {self.cohort}")
        if not 1 <= self.degree < self.cohort or (self.degree % 2 and self.degree != self.cohort - 1):
            raise ValueError(
                f"degree must be even and below cohort - 1, or cohort - 1 = {self.cohort - 1}, got {self.degree}"
            )
        fewest = 0 if self.degree == self.cohort - 1 else 1  # a ring must not be cut even without colluders
        if not fewest <= self.corrupt_holders < self.holders:
            raise ValueError(f"corrupt_holders must be from {fewest} to {self.holders - 1}, got {self.corrupt_holders}")
        least = required_threshold(holders=self.holders, corrupt_holders=self.corrupt_holders)
        if not least <= self.threshold <= self.holders:
            raise ValueError(
                f"threshold must be from {least} to {self.holders} for {self.holders} holders with "
                f"{self.corrupt_holders} corrupt, got {self.threshold}"
            )
        if not self.threshold <= self.min_survivors <= self.cohort:
            raise ValueError(
                f"min_survivors must be from threshold = {self.threshold} to cohort = {self.cohort}, "
                f"got {self.min_survivors}"
            )
        if self.degree < self.cohort - 1 and self.min_survivors <= self.holders:
            raise ValueError(
                f"a ring of degree {self.degree} needs min_survivors above {self.holders}, got {self.min_survivors}: "
                "use the complete graph"
            )
        if not 1 <= self.length <= MAX_LENGTH:
            raise ValueError(f"length must be from 1 to {MAX_LENGTH}, got {self.length}")
        if self.modulus_bits not in LANE_BITS:
            raise ValueError(f"modulus_bits must be one of {LANE_BITS}, got {self.modulus_bits}")
        if self.modulus_bits not in NATIVE_BITS and 2**self.modulus_bits <= self.cohort:
            raise ValueError(f"lanes of {self.modulus_bits} bits cannot hold a sum over {self.cohort} clients")

        if self.removable not in (0, self.cohort - self.min_survivors):
            raise ValueError(
                f"removable must be 0 or cohort - min_survivors = {self.cohort - self.min_survivors}, "
                f"got {self.removable}"
            )
        if self.removable and self.degree < self.cohort - 1:
            raise ValueError(f"removable components need the complete graph, got degree {self.degree}")

    @property
    def holders(self) -> int:
        """How many parties hold a share of one client's secrets: its neighbours and itself."""
        return self.degree + 1

    def first_removed(self, survivors: int) -> int:
        """The first component that is taken out of a sum over so many clients; `removable` + 1 if none is."""
        return self.cohort - survivors + 1

    def digest(self) -> bytes:
        """SHA-256 over the canonical encoding of every field."""
        fields = [getattr(self, name) for name in self.__dataclass_fields__]
        if not self.removable:
            fields.pop()  # so that rounds without such components are what they were before there were any
        return sha256(b"secagg/v1/pairwise/config" + msgspec.msgpack.encode(fields)).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SendMessage:
    """Deliver `data` to `to` (None: the server)."""

    to: ClientId | None
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistBeforeSend:
    """Make `record` durable, then call `persisted()`: only then does the session answer."""

    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionNeeded:
    """Call `contribute` now. `cohort` are the clients with whom the vector will be masked."""

    cohort: frozenset[ClientId]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorsAgreed:
    """At least `threshold` signatures on this survivor set were verified; the sum will be over these clients."""

    survivors: frozenset[ClientId]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRejected:
    """A message was refused and had no effect. `client` may send a good one while its phase lasts."""

    client: ClientId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AggregateReady:
    """The exact sum over the survivors.

    Attributes:
        vector: uint32[length], the sum modulo 2^modulus_bits.
        survivors: whose vectors are in it.
        transcript: SHA-256 over context, cohort, survivors and sum.
        removed: with removable components, the seeds of those of each survivor that must now be taken out of the sum,
            in increasing order of component.
    """

    vector: UInt32Vector
    survivors: frozenset[ClientId]
    transcript: bytes
    removed: Mapping[ClientId, tuple[bytes, ...]] = field(default_factory=dict, repr=False)


Event = SendMessage | PersistBeforeSend | ContributionNeeded | SurvivorsAgreed | PeerRejected | AggregateReady


class ClientSession(Protocol):
    """One client's part in one round."""

    @property
    def phase(self) -> Phase:
        """Where the session stands."""

    def start(self) -> list[Event]:
        """Opens the round."""

    def receive(self, data: bytes) -> list[Event]:
        """Takes one message of the server.

        Raises:
            RemoteProtocolError: the message breaks the protocol; the session is dead.
            PolicyRefusal: the client's policy forbids to go on; the session is dead.
            TooFewClientsError: fewer clients than the floor are left; the session is dead.
        """

    def contribute(self, vector: UInt32Vector) -> list[Event]:
        """Masks and sends the client's vector, uint32[length], once."""

    def persisted(self) -> list[Event]:
        """The record of the last `PersistBeforeSend` is durable."""


class ServerSession(Protocol):
    """The server's part in one round."""

    @property
    def phase(self) -> Phase:
        """Where the session stands."""

    @property
    def waiting_for(self) -> frozenset[ClientId]:
        """Clients whose message of this phase is still missing."""

    def receive(self, sender: ClientId, data: bytes) -> list[Event]:
        """Takes one message; a bad one becomes `PeerRejected` and changes nothing."""

    def close_phase(self) -> list[Event]:
        """Stops waiting and goes on with those who answered.

        Raises:
            TooFewClientsError: fewer than the floor answered; the session is dead.
        """
