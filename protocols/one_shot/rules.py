"""What all parties agree on before a one-shot round, and what they derive from it in exactly the same way.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

import msgspec
import numpy as np

from ..errors import ClientId, InconsistentViewError, MalformedMessageError, TooFewClientsError
from ..primitives import key_shares, keys, ring_mask, share_proof
from ..roster import Roster
from ..session import DIGEST_BYTES, MAX_COHORT, MAX_LENGTH, Phase, TransitionTable
from ..wire import VERSION, check_increasing
from .wire import Contribution, MemberBundle, limits, sealed_bytes

PROTOCOL = "one_shot"
CANARIES = 64  # coordinates behind the vector that every client leaves zero
WORD = np.dtype("<u4")

CLIENT_TRANSITIONS: TransitionTable = {
    (Phase.READY, "start"): Phase.ADVERTISE_KEYS,
    (Phase.ADVERTISE_KEYS, "Committee"): Phase.CONTRIBUTE,
    (Phase.CONTRIBUTE, "contribute"): Phase.FINISHED,
}

MEMBER_TRANSITIONS: TransitionTable = {
    (Phase.READY, "start"): Phase.ADVERTISE_KEYS,
    (Phase.ADVERTISE_KEYS, "UnmaskRequest"): Phase.FINISHED,
}

SERVER_TRANSITIONS: TransitionTable = {
    (Phase.ADVERTISE_KEYS, "close_phase"): Phase.MASKED_INPUT,
    (Phase.MASKED_INPUT, "close_phase"): Phase.UNMASK,
    (Phase.UNMASK, "close_phase"): Phase.FINISHED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OneShotConfig:
    """What all parties of a one-shot round agree on.

    Its digest enters every signature and every derived key, so any difference makes the round fail.

    Attributes:
        round_id: 32 bytes that no other round has.
        cohort: n, the largest number of clients whose vectors are summed.
        committee: ids of the members on the roster, increasing; member i of them is holder slot i of every key.
        threshold: t, how many members must answer to open the sum.
        min_survivors: the smallest number of clients whose sum may be revealed, at least c + 2. Masks of fewer than two
            honest clients hide nothing, whatever the lattice. Corrupt members are on the roster and can contribute too;
            clients that may collude beside them must be added by whoever chooses this number.
        corrupt_holders: c, how many members may collude with the server; 3t > 2m + c.
        length: d, coordinates of a vector.
        modulus_bits: b, bits of a coordinate; the sum is exact modulo 2^b. A masked coordinate has 32 bits, of which
            the other `noise_bits` = 32 - b keep the errors of the masks apart from the sum.
        model: SHA-256 digest of the model that every client starts from.
        binding: SHA-256 digest of everything above the protocol: application, layout, privacy configuration.
        suite: the number of the key-agreement suite: 2 is X25519 with ML-KEM-768, 1 is X25519 alone.
    """

    round_id: bytes
    cohort: int
    committee: tuple[ClientId, ...]
    threshold: int
    min_survivors: int
    corrupt_holders: int
    length: int
    modulus_bits: int
    model: bytes
    binding: bytes
    suite: int = keys.HYBRID.number

    def __post_init__(self) -> None:
        for name in ("round_id", "model", "binding"):
            if len(getattr(self, name)) != DIGEST_BYTES:
                raise ValueError(f"{name} must have {DIGEST_BYTES} bytes, got {len(getattr(self, name))}")
        if self.suite not in keys.SUITES:
            raise ValueError(f"suite must be one of {sorted(keys.SUITES)}, got {self.suite}")
        if not 2 <= self.cohort <= MAX_COHORT:
            raise ValueError(f"cohort must be from 2 to {MAX_COHORT}, got {self.cohort}")
        holders = len(self.committee)
        if not 3 <= holders <= MAX_COHORT:
            raise ValueError(f"the committee must have from 3 to {MAX_COHORT} members, got {holders}")
        if any(left >= right for left, right in pairwise(self.committee)):
            raise ValueError("ids of committee members must increase strictly")
        if not 0 <= self.corrupt_holders < holders:
            raise ValueError(f"corrupt_holders must be from 0 to {holders - 1}, got {self.corrupt_holders}")
        least = least_threshold(members=holders, corrupt=self.corrupt_holders)
        if not least <= self.threshold <= holders:
            raise ValueError(
                f"threshold must be from {least} to {holders} for {holders} members with {self.corrupt_holders} "
                f"corrupt, got {self.threshold}"
            )
        if not self.corrupt_holders + 2 <= self.min_survivors <= self.cohort:
            raise ValueError(
                f"min_survivors must be from corrupt_holders + 2 = {self.corrupt_holders + 2} to cohort = "
                f"{self.cohort}, got {self.min_survivors}: corrupt members can contribute too"
            )
        if not 1 <= self.length <= MAX_LENGTH:
            raise ValueError(f"length must be from 1 to {MAX_LENGTH}, got {self.length}")
        most = ring_mask.MODULUS_BITS - least_noise_bits(self.cohort)
        if not 1 <= self.modulus_bits <= most:
            raise ValueError(
                f"modulus_bits must be from 1 to {most} for {self.cohort} clients, got {self.modulus_bits}"
            )

    @property
    def noise_bits(self) -> int:
        """tau: a vector enters its mask times 2^tau."""
        return ring_mask.MODULUS_BITS - self.modulus_bits

    def digest(self) -> bytes:
        """SHA-256 over the canonical encoding of every field."""
        fields = [getattr(self, name) for name in self.__dataclass_fields__]
        return sha256(b"secagg/v1/one_shot/config" + msgspec.msgpack.encode(fields)).digest()


def least_threshold(*, members: int, corrupt: int) -> int:
    """The smallest t with 3t > 2m + c.

    Members answer with linear functions of short keys, so it is not enough that no second view reaches t answers: shown
    sets I, J and their union, none of which opens, three groups of members can still give away one weighted sum of the
    keys of I and J, and with it both sums. Let h = m - c, t' = t - c. What the server can combine is a polynomial Q_i
    of degree h - t' at most for each client i, which at each honest member is 0 or one common value. So Q_i Q_j (Q_i -
    Q_j) vanishes at h points, and with h > 3 (h - t') it is zero: all non-zero Q_i are one, and the server has one sum.
    """
    return max(3, (2 * members + corrupt) // 3 + 1)


def least_noise_bits(clients: int) -> int:
    """The smallest tau with 2^(tau - 1) above ten standard deviations of the summed errors of `clients` masks."""
    return (2 * ring_mask.sum_bound(clients)).bit_length()


def committee_digest(roster: Roster, committee: Sequence[ClientId]) -> bytes:
    """What a policy pins: the members and their identities, in increasing order of id.

    Raises:
        ValueError: somebody of the committee is not on the roster.
    """
    strangers = sorted(set(committee) - roster.keys())
    if strangers:
        raise ValueError(f"committee members {strangers} are not on the roster")
    members = [(member, roster[member]) for member in sorted(committee)]
    return sha256(b"secagg/v1/one_shot/committee" + msgspec.msgpack.encode(members)).digest()


def member_bundle_digest(bundle: MemberBundle, roster: Roster, suite: keys.Suite = keys.HYBRID) -> bytes:
    """The digest that a member bundle's signature covers: everything in it, and the roster, but no round."""
    where = (VERSION, suite.number, PROTOCOL, roster.digest)
    what = (bundle.member, bundle.serial, bundle.fresh, bundle.key)
    return sha256(b"secagg/v1/one_shot/member-bundle" + msgspec.msgpack.encode((*where, *what))).digest()


def signature_kind(kind: type[msgspec.Struct]) -> str:
    """The kind of statement that a signature on a message or bundle of this protocol names."""
    return f"{PROTOCOL}/{kind.__name__}"


class Rules:
    """What all parties derive from the agreed configuration and roster, in the same way."""

    def __init__(self, config: OneShotConfig, roster: Roster) -> None:
        if config.cohort > len(roster):
            raise ValueError(f"the cohort has {config.cohort} clients, the roster only {len(roster)}")
        self.committee = committee_digest(roster, config.committee)
        self.config = config
        self.roster = roster
        self.context = sha256(b"secagg/v1/one_shot/context0" + config.digest() + roster.digest).digest()
        self.suite = keys.SUITES[config.suite]
        keys.check_available(self.suite)
        self.limits = limits(
            cohort=config.cohort, committee=len(config.committee), threshold=config.threshold, suite=self.suite
        )
        self.bundles: dict[ClientId, MemberBundle] = {}

    def check_bundles(self, bundles: Sequence[MemberBundle], phase: Phase) -> None:
        """The bundles are those of enough members of the committee, and all different. Signatures are not looked at.

        Raises:
            MalformedMessageError: members are out of order.
            InconsistentViewError: somebody else is among them, or a key is there twice.
            TooFewClientsError: fewer than the threshold are there.
        """
        members = tuple(ClientId(bundle.member) for bundle in bundles)
        check_increasing(members)
        if not set(self.config.committee) >= set(members):
            raise InconsistentViewError("somebody outside the committee is shown as a member")
        public_keys = [part for bundle in bundles for part in keys.parts(bundle.key)]
        if len(set(public_keys)) != len(public_keys):
            raise InconsistentViewError("two members have the same key")
        self.check_members("are there", members, phase)

    def bind(self, bundles: Sequence[MemberBundle]) -> None:
        """Fixes the members' keys of the round: from here on the context covers them."""
        self.bundles = {ClientId(bundle.member): bundle for bundle in bundles}
        keys_of_round = msgspec.msgpack.encode(list(bundles))
        self.context = sha256(b"secagg/v1/one_shot/context" + self.context + sha256(keys_of_round).digest()).digest()

    @property
    def slots(self) -> list[int]:
        """The holder slots of the members that are there."""
        return [slot for slot, member in enumerate(self.config.committee) if member in self.bundles]

    @property
    def sealed_bytes(self) -> list[int]:
        """The size of the sealed key share of each member that is there."""
        return [
            sealed_bytes(key_shares.encoded_bytes(position, self.config.threshold), self.suite)
            for position in range(len(self.bundles))
        ]

    @property
    def matrix_seed(self) -> bytes:
        """The public seed of the matrix A."""
        return sha256(b"secagg/v1/one_shot/matrix" + self.context).digest()

    def view(self, survivors: Iterable[ClientId]) -> bytes:
        """The digest of round and survivors: members whose answers carry the same one answer the same question."""
        clients = msgspec.msgpack.encode(sorted(survivors))
        return sha256(b"secagg/v1/one_shot/view" + self.context + clients).digest()

    def channel(self, secret: bytes, client: ClientId, member: ClientId) -> bytes:
        """The key that seals the one key share from `client` to `member`."""
        return keys.derive(secret, context=self.context, usage=b"one_shot/channel", ids=(client, member))

    def associated(self, client: ClientId, member: ClientId, ephemeral_key: bytes, vector: bytes) -> bytes:
        """What a sealed share belongs to: round, client, member, the client's key, the digest of its masked vector."""
        return msgspec.msgpack.encode((self.context, client, member, ephemeral_key, vector))

    def challenge(self, client: ClientId, ephemeral_key: bytes, vector: bytes, sealed: Sequence[bytes]) -> bytes:
        """The challenge of a client's proof: of what the client says alone, so it is one for all members."""
        said = msgspec.msgpack.encode((client, ephemeral_key, vector, sealed))
        return sha256(b"secagg/v1/one_shot/challenge" + self.context + said).digest()

    def check_contribution(self, contribution: Contribution) -> None:
        """It has one share for each member that is there, and something that can be a proof.

        Raises:
            MalformedMessageError: it has not.
        """
        client, shares = ClientId(contribution.sender), len(contribution.sealed)
        if shares != len(self.bundles):
            raise MalformedMessageError(
                f"client {client} sealed {shares} shares to {len(self.bundles)} members", client_id=client
            )
        try:
            share_proof.check(contribution.proof, self.config.threshold)
        except ValueError as error:
            raise MalformedMessageError(f"the proof of client {client}: {error}", client_id=client) from None

    def check_floor(self, clients: Collection[ClientId], phase: Phase) -> None:
        """The sum is over enough clients."""
        floor = self.config.min_survivors
        if len(clients) < floor:
            raise TooFewClientsError(f"{len(clients)} clients contributed, the floor is {floor}", phase=phase.value)

    def check_members(self, what: str, members: Collection[ClientId], phase: Phase) -> None:
        """Enough members are left to open the sum."""
        threshold = self.config.threshold
        if len(members) < threshold:
            raise TooFewClientsError(f"{len(members)} members {what}, the threshold is {threshold}", phase=phase.value)
