"""The server's part: it adds masked vectors as they arrive, and opens their sum with the members' answers.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.

It keeps one accumulator and the sealed key shares, never the vectors. Its checks protect the result, not the clients: a
bad message is rejected without effect, and the sum is either exact or not released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

import numpy as np

from ..errors import (
    BadShareError,
    ClientId,
    InconsistentViewError,
    LocalProtocolError,
    MalformedMessageError,
    RemoteProtocolError,
    TooFewClientsError,
)
from ..lifecycle import Lifecycle
from ..primitives import key_shares, keys, ring_mask
from ..primitives.packing import UInt32Vector
from ..roster import Roster
from ..session import AggregateReady, Event, PeerRejected, Phase, SendMessage
from ..wire import SERVER, Message, check_increasing, encode
from .rules import CANARIES, SERVER_TRANSITIONS, WORD, OneShotConfig, Rules, member_bundle_digest, signature_kind
from .wire import (
    Committee,
    Complaint,
    Contribution,
    MemberBundle,
    MemberKeys,
    PartialSum,
    SealedContribution,
    UnmaskRequest,
    decode,
    decode_contribution,
    decode_signed,
    says,
)

AnswerT = TypeVar("AnswerT", PartialSum, Complaint)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Received:
    """What is kept of a contribution."""

    contribution: Contribution
    digest: bytes
    signature: bytes
    sealed: tuple[bytes, ...]


class OneShotServer(Lifecycle):
    """The server's part in one round; keeps the `ServerSession` contract, with members in the first and last phase.

    Args:
        config: the round.
        roster: the pinned identities of all clients and members.
        bundles: what members sent in advance (`next_bundles` of earlier rounds); one that does not fit this round is
            left out, and a member may still advertise another key.
        serials: of the latest bundle of each member that any client was shown, from `serials` of the round before.

    Attributes:
        next_bundles: verified bundles for a later round, from the members that attached one to their answer.
        serials: the same, this round included. Clients refuse a round with a bundle that they have seen. So a member
            that lost its history, and counts from one again, is rejected here, and others go on.
    """

    def __init__(
        self,
        config: OneShotConfig,
        *,
        roster: Roster,
        bundles: Mapping[ClientId, MemberBundle] | None = None,
        serials: Mapping[ClientId, int] | None = None,
    ) -> None:
        self._rules = Rules(config, roster)
        self.serials = dict(serials or {})
        self._opening_context = self._rules.context  # before the members' keys are bound
        self._phase = Phase.ADVERTISE_KEYS
        self._expected: frozenset[ClientId] = frozenset(config.committee)
        self._answered: set[ClientId] = set()
        self._offered: dict[ClientId, MemberBundle] = {}
        self._received: dict[ClientId, _Received] = {}
        self._seen: set[bytes] = set()  # keys and vector digests of contributions
        self._answers: dict[ClientId, key_shares.Share] = {}
        self._complaints: list[tuple[ClientId, ClientId]] = []  # client, member
        self._words = np.zeros(0, dtype=WORD)
        self.next_bundles: dict[ClientId, MemberBundle] = {}
        for member, bundle in (bundles or {}).items():
            with suppress(RemoteProtocolError):
                self._offer(member, bundle)

    @property
    def waiting_for(self) -> frozenset[ClientId]:
        """Parties whose message of this phase is still missing."""
        there = self._offered.keys() if self._phase is Phase.ADVERTISE_KEYS else self._answered
        return self._expected - there

    def receive(self, sender: ClientId, data: bytes) -> list[Event]:
        """Takes one message; see `ServerSession.receive`."""
        handlers: dict[Phase, Callable[[ClientId, bytes], None]] = {
            Phase.ADVERTISE_KEYS: self._take_keys,
            Phase.MASKED_INPUT: self._take_contribution,
            Phase.UNMASK: self._take_answer,
        }
        handler = handlers.get(self._phase)
        if handler is None:
            raise LocalProtocolError("the round is over", phase=self._phase.value)
        try:
            if sender not in self._expected or sender in self._answered:
                raise RemoteProtocolError(f"nothing is expected from {sender} in phase {self._phase.value}")
            handler(sender, data)
        except RemoteProtocolError as error:
            return [PeerRejected(client=sender, reason=str(error))]
        self._answered.add(sender)
        return []

    def close_phase(self) -> list[Event]:
        """Goes on with those who answered; see `ServerSession.close_phase`."""
        steps: dict[Phase, Callable[[], list[Event]]] = {
            Phase.ADVERTISE_KEYS: self._close_keys,
            Phase.MASKED_INPUT: self._close_contributions,
            Phase.UNMASK: self._close_answers,
        }
        with self._guard():
            if self._phase not in steps:
                raise LocalProtocolError("the round is over", phase=self._phase.value)
            events = steps[self._phase]()
            self._phase = SERVER_TRANSITIONS[self._phase, "close_phase"]
            self._answered = set()
            if self._phase is Phase.FINISHED:
                self._erase()
            return events

    # One pair of steps for each phase: take a message, close the phase.

    def _take_keys(self, sender: ClientId, data: bytes) -> None:
        rules = self._rules
        message = decode(data, MemberKeys, suite=rules.suite, limit=rules.limits[MemberKeys])
        self._check_origin(message, sender)
        self._offer(sender, message.bundle)

    def _offer(self, member: ClientId, bundle: MemberBundle) -> None:
        """Takes a bundle into the round; a key that is there twice would void the round for all."""
        if member not in self._expected:
            raise RemoteProtocolError(f"{member} is not on the committee")
        self._check_bundle(member, bundle)
        others = [other.key for owner, other in self._offered.items() if owner != member]
        taken = {part for key in others for part in keys.parts(key)}
        if not taken.isdisjoint(keys.parts(bundle.key)):
            raise RemoteProtocolError(f"member {member} advertises another member's key")
        self._offered[member] = bundle

    def _check_bundle(self, member: ClientId, bundle: MemberBundle) -> None:
        """It is the member's own, newer than all that clients were shown, and holds a key that they can agree with."""
        rules = self._rules
        if bundle.member != member:
            raise MalformedMessageError(f"member {member} advertises a key of member {bundle.member}")
        if bundle.serial <= self.serials.get(member, 0):
            raise RemoteProtocolError(
                f"member {member} advertises bundle {bundle.serial} after bundle {self.serials[member]}: is its "
                "history lost?"
            )
        digest = member_bundle_digest(bundle, rules.roster, rules.suite)
        rules.roster.check_signature(member, signature_kind(MemberBundle), digest, bundle.signature)
        _check_public_key(bundle.key, rules.suite)

    def _close_keys(self) -> list[Event]:
        rules = self._rules
        bundles = tuple(self._offered[member] for member in sorted(self._offered))
        rules.check_members("advertised keys", self._offered, self._phase)
        frame = encode(Committee(context=rules.context, sender=SERVER, bundles=bundles), suite=rules.suite)
        rules.bind(bundles)
        self.serials |= {member: bundle.serial for member, bundle in rules.bundles.items()}
        self._words = np.zeros(rules.config.length + CANARIES, dtype=WORD)
        self._expected = frozenset(rules.roster)
        return [SendMessage(to=client, data=frame) for client in rules.roster]

    def _take_contribution(self, sender: ClientId, data: bytes) -> None:
        rules = self._rules
        if len(self._received) == rules.config.cohort:
            raise RemoteProtocolError(f"the cohort of {rules.config.cohort} is full")
        frame = decode_contribution(
            data,
            suite=rules.suite,
            limit=rules.limits[Contribution],
            sealed_bytes=rules.sealed_bytes,
            vector_bytes=self._words.nbytes,
        )
        self._check_origin(frame.message, sender)
        rules.roster.check_signature(sender, signature_kind(Contribution), frame.digest, frame.signature)
        rules.check_contribution(frame.message)
        _check_public_key(frame.message.ephemeral_key, keys.CLASSICAL)
        unique = {frame.message.ephemeral_key, frame.message.vector}
        if unique & self._seen:
            raise RemoteProtocolError(f"the contribution of {sender} is a copy of another one")
        np.add(self._words, np.frombuffer(frame.vector, dtype=WORD), out=self._words)
        self._seen |= unique
        self._received[sender] = _Received(
            contribution=frame.message, digest=frame.digest, signature=frame.signature, sealed=frame.sealed
        )

    def _close_contributions(self) -> list[Event]:
        rules = self._rules
        rules.check_floor(self._received, self._phase)
        bundles = tuple(rules.bundles.values())
        events: list[Event] = []
        for position, member in enumerate(rules.bundles):
            contributions = tuple(
                SealedContribution(contribution=one.contribution, signature=one.signature, share=one.sealed[position])
                for _, one in sorted(self._received.items())
            )
            request = UnmaskRequest(
                context=self._opening_context, sender=SERVER, bundles=bundles, contributions=contributions
            )
            events.append(SendMessage(to=member, data=encode(request, suite=rules.suite)))
        self._expected = frozenset(rules.bundles)
        return events

    def _take_answer(self, sender: ClientId, data: bytes) -> None:
        if says(data, Complaint):
            accused = self._answer(sender, data, Complaint).accused
            known = {client: received.digest for client, received in self._received.items()}
            if any(known.get(ClientId(one.client)) != one.contribution for one in accused):
                raise InconsistentViewError(f"member {sender} complains about what no survivor sent")
            check_increasing(tuple(one.client for one in accused))
            self._complaints += [(ClientId(one.client), sender) for one in accused]
            return
        answer = self._answer(sender, data, PartialSum)
        try:
            share = key_shares.decode_sum(answer.share)
        except ValueError as error:
            raise MalformedMessageError(str(error)) from None
        for bundle in answer.next_bundle:
            self._check_bundle(sender, bundle)
            self.next_bundles[sender] = bundle
        self._answers[sender] = share

    def _answer(self, sender: ClientId, data: bytes, kind: type[AnswerT]) -> AnswerT:
        rules = self._rules
        frame = decode_signed(data, kind, suite=rules.suite, limit=rules.limits[kind])
        self._check_origin(frame.message, sender)
        rules.roster.check_signature(sender, signature_kind(kind), frame.digest, frame.signature)
        if frame.message.view != self._rules.view(self._received):
            raise InconsistentViewError(f"member {sender} answered for other survivors")
        return frame.message

    def _close_answers(self) -> list[Event]:
        pairs = tuple(sorted(self._complaints))
        try:
            return self._open_sum()
        except (RemoteProtocolError, TooFewClientsError) as error:
            if not pairs:
                raise
            named = ", ".join(f"from client {client} to member {member}" for client, member in pairs)
            raise BadShareError(f"{error}; bad shares {named}", pairs=pairs) from None

    def _open_sum(self) -> list[Event]:
        rules = self._rules
        rules.check_members("answered", self._answers, self._phase)
        committee = rules.config.committee
        slots = [slot for slot, member in enumerate(committee) if member in self._answers]
        shares = [self._answers[committee[slot]] for slot in slots]
        try:
            key, wrong = key_shares.reconstruct(slots, shares, threshold=rules.config.threshold)
        except ValueError as error:
            raise RemoteProtocolError(f"the answers of the members do not fit together: {error}") from None
        events: list[Event] = [
            PeerRejected(client=committee[slot], reason="its answer is wrong") for slot in sorted(wrong)
        ]
        events += [
            PeerRejected(client=client, reason=f"its share to member {member} is bad, or that member lies")
            for client, member in sorted(self._complaints)
        ]
        vector = self._remove_masks(key)
        view = rules.view(self._received)
        transcript = sha256(b"secagg/v1/one_shot/transcript" + view + sha256(vector.data).digest()).digest()
        return [*events, AggregateReady(vector=vector, survivors=frozenset(self._received), transcript=transcript)]

    # What the steps share.

    def _remove_masks(self, key: ring_mask.Coefficients) -> UInt32Vector:
        """The sum of the vectors if `key` is the sum of the keys; any other key shows in the errors or the canaries."""
        config, words = self._rules.config, self._words
        bound = ring_mask.sum_bound(len(self._received))
        if int(np.abs(key).max()) > bound:
            raise RemoteProtocolError(f"the sum of the keys has a coefficient above {bound}: a share or a key is wrong")
        ring_mask.add_mask(words, -key, seed=self._rules.matrix_seed)
        half = 1 << (config.noise_bits - 1)
        np.add(words, np.uint32(half), out=words)
        errors = words & np.uint32(2 * half - 1)
        if int(errors.min()) < half - bound or int(errors.max()) > half + bound:
            raise RemoteProtocolError(f"the sum of the errors passes {bound}: a share, a key or a mask is wrong")
        np.right_shift(words, np.uint32(config.noise_bits), out=words)
        if words[config.length :].any():
            raise RemoteProtocolError("the canaries are not zero: a share, a key or a mask is wrong")
        return words[: config.length].astype(np.uint32, copy=False)

    def _check_origin(self, message: Message, sender: ClientId) -> None:
        if message.context != self._rules.context:
            raise InconsistentViewError("the message belongs to another round or another view of its keys")
        if message.sender != sender:
            raise MalformedMessageError(f"a message of {message.sender} came from {sender}")

    def _erase(self) -> None:
        self._received.clear()
        self._seen.clear()
        self._answers.clear()
        self._complaints.clear()
        self._words = np.zeros(0, dtype=WORD)
        self._expected = frozenset()


def _check_public_key(public: bytes, suite: keys.Suite) -> None:
    """Refuses a key that no peer can agree with: it would void the round for all of them."""
    try:
        keys.check_public_key(public, suite)
    except ValueError as error:
        raise MalformedMessageError(str(error)) from None
