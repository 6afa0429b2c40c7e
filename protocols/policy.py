"""What a client will not do, whatever the server proposes.

Rules, each enforced by the client session:

1. No round below the client's own floors: survivors, tolerated colluders, threshold, suite. Where few parties hold
   shares of all clients' keys (`one_shot`), only the committee that the client pinned.
2. A key bundle serves one round: own serials are burned before first use, a peer's serial that was seen before is
   refused.
3. A round id is joined once.
4. Differencing. Two sums over nearly equal groups, on the same model, give away the difference. Unless distributed
   noise is charged for each attempt (`noised=True`), a survivor set is signed only if, against every set signed before
   on the same model, it is equal or differs in at least `min_survivors` clients. This is hygiene: groups can be
   differenced in more than one step, and only noise bounds what then leaks.

A `History` is what the rules remember. It grows by `Record`s that the driver makes durable (`PersistBeforeSend`) before
the session acts on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, assert_never

from .errors import ClientId, PolicyRefusal
from .primitives.keys import CLASSICAL, HYBRID


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysAdvertised:
    """The client opens `round_id` with its key bundle number `serial`."""

    round_id: bytes
    serial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlesSeen:
    """The client is about to use these peers' key bundles: serial by peer."""

    serials: Mapping[ClientId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorsSigned:
    """The client is about to sign this survivor set on this model."""

    model: bytes
    survivors: frozenset[ClientId]


Record = KeysAdvertised | BundlesSeen | SurvivorsSigned


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a client remembers of all its rounds.

    Attributes:
        serial: the highest serial of the client's own bundles; 0 before the first.
        rounds: ids of the rounds it opened.
        peers: the highest serial seen of each peer.
        signed: survivor sets it signed, by model digest.
    """

    serial: int = 0
    rounds: frozenset[bytes] = frozenset()
    peers: Mapping[ClientId, int] = field(default_factory=lambda: MappingProxyType({}))
    signed: Mapping[bytes, tuple[frozenset[ClientId], ...]] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def of(records: Iterable[Record]) -> History:
        """Replays records, oldest first."""
        history = History()
        for record in records:
            history = history.after(record)
        return history

    def after(self, record: Record) -> History:
        """The history with one more record."""
        serial, rounds, peers, signed = self.serial, self.rounds, self.peers, self.signed
        match record:
            case KeysAdvertised():
                serial, rounds = max(serial, record.serial), rounds | {record.round_id}
            case BundlesSeen():
                peers = {**peers, **{peer: max(new, peers.get(peer, 0)) for peer, new in record.serials.items()}}
            case SurvivorsSigned():
                signed = {**signed, record.model: (*signed.get(record.model, ()), record.survivors)}
            case _:
                assert_never(record)
        return History(serial=serial, rounds=rounds, peers=peers, signed=signed)


class Proposal(Protocol):
    """What a policy looks at in the configuration of a round, whatever the protocol."""

    @property
    def round_id(self) -> bytes:
        """32 bytes that no other round has."""

    @property
    def min_survivors(self) -> int:
        """The smallest number of clients whose sum may be revealed."""

    @property
    def corrupt_holders(self) -> int:
        """How many holders of one secret may collude with the server."""

    @property
    def suite(self) -> int:
        """The number of the key-agreement suite; a higher one withstands more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """A client's own floors, fixed when it is enrolled.

    Attributes:
        min_survivors: the smallest group in whose sum this client takes part.
        corrupt_holders: how many holders of its secrets the threshold must withstand.
        suite: the weakest key agreement that this client accepts: 2 is X25519 with ML-KEM-768, 1 is X25519 alone, whose
            recorded traffic opens to a quantum computer.
        noised: each attempt carries and is charged its own distributed noise, so repeating a round needs no
            differencing rule.
        committee: `one_shot.committee_digest` of the only members, with their identities, that may hold shares of this
            client's keys; without it the client joins no round with a committee.
    """

    min_survivors: int
    corrupt_holders: int
    suite: int = HYBRID.number
    noised: bool = False
    committee: bytes | None = None

    def __post_init__(self) -> None:
        for name, least in (("min_survivors", 2), ("corrupt_holders", 0), ("suite", CLASSICAL.number)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.committee is not None and len(self.committee) != 32:
            raise ValueError(f"committee must be a digest of 32 bytes, got {len(self.committee)}")

    def check_round(self, config: Proposal, history: History) -> None:
        """Refuses rounds below the floors, and rounds joined before.

        Raises:
            PolicyRefusal: names the value and the floor.
        """
        if config.round_id in history.rounds:
            raise PolicyRefusal("this round id was used before")
        for name in ("min_survivors", "corrupt_holders", "suite"):
            proposed, floor = getattr(config, name), getattr(self, name)
            if proposed < floor:
                raise PolicyRefusal(f"the round's {name} is {proposed}; this client's policy demands at least {floor}")

    def check_committee(self, digest: bytes) -> None:
        """Refuses a committee that is not the pinned one: whoever chooses its members opens every key.

        Raises:
            PolicyRefusal: names both digests.
        """
        if self.committee is None:
            raise PolicyRefusal("the round has a committee; this client's policy pins none")
        if digest != self.committee:
            raise PolicyRefusal(
                f"the round's committee is {digest.hex()[:16]}; this client's policy pins {self.committee.hex()[:16]}"
            )

    def check_bundles(self, serials: Mapping[ClientId, int], history: History) -> None:
        """Refuses key bundles seen before.

        Raises:
            PolicyRefusal: names the peer.
        """
        for peer, serial in serials.items():
            if serial <= history.peers.get(peer, 0):
                raise PolicyRefusal(f"key bundle {serial} of client {peer} was seen before", client_id=peer)

    def check_survivors(self, model: bytes, survivors: frozenset[ClientId], history: History) -> None:
        """Refuses a survivor set that could be differenced with one signed before.

        Raises:
            PolicyRefusal: names how many clients the sets differ in, and the floor.
        """
        if self.noised:
            return
        for earlier in history.signed.get(model, ()):
            difference = len(earlier ^ survivors)
            if 0 < difference < self.min_survivors:
                raise PolicyRefusal(
                    f"this survivor set differs in {difference} clients from one signed on the same model; "
                    f"at least {self.min_survivors} are needed, or distributed noise, or a new model"
                )
