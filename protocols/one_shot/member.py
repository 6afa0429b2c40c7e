"""The committee member's part: it checks what it is asked to open, answers once, and erases.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256

from ..errors import ClientId, InconsistentViewError
from ..policy import ClientPolicy, History, KeysAdvertised, SurvivorsSigned
from ..primitives import key_shares, share_proof
from ..primitives.shamir import Field
from ..roster import Identity, Roster
from ..session import Event, PeerRejected, Phase, SendMessage
from ..wire import Message, check_increasing, encode
from .one_time_key import OneTimeKey
from .party import Party, RandomBytes, Secrets
from .rules import MEMBER_TRANSITIONS, OneShotConfig, signature_kind
from .sealed import unseal
from .wire import (
    Accusation,
    Complaint,
    Contribution,
    MemberBundle,
    MemberKeys,
    PartialSum,
    SealedContribution,
    UnmaskRequest,
)


class OneShotMember(Party):
    """One committee member's part in one round: `start`, `receive` and `persisted` of the `ClientSession` contract.

    A party that is client and member has a session and a history for each role. Shares that are bad are no error:
    `receive` gives a `PeerRejected` for each client that sealed one, and a complaint to send.

    Args:
        config: the round.
        party_id: this member.
        identity: its long-term signing key, pinned in `roster`.
        roster: the pinned identities of all clients and members.
        policy: its own floors.
        history: what it remembers of all earlier rounds in this role.
        key_in_advance: a key whose bundle the server has from an earlier round: this member then advertises none.
        next_key: a key for a later round; its bundle goes with this member's answer.
        rand: source of uniform bytes; the default is the operating system's.

    Raises:
        PolicyRefusal: the policy forbids this round, or pins another committee.
        ValueError: the identity is not the one pinned for this member; keys are for another member, roster or suite, or
            not of the serial they must have.
    """

    _transitions = MEMBER_TRANSITIONS
    _awaited = UnmaskRequest
    _bundle: MemberBundle

    def __init__(
        self,
        config: OneShotConfig,
        party_id: ClientId,
        *,
        identity: Identity,
        roster: Roster,
        policy: ClientPolicy,
        history: History,
        key_in_advance: OneTimeKey | None = None,
        next_key: OneTimeKey | None = None,
        rand: RandomBytes = os.urandom,
    ) -> None:
        super().__init__(config, party_id, identity=identity, roster=roster, policy=policy, history=history, rand=rand)
        self._key_in_advance = self._checked(key_in_advance, history.serial)
        self._next_key = self._checked(next_key, history.serial + (key_in_advance is None) + 1)

    def start(self) -> list[Event]:
        """Makes a fresh key and advertises it, unless the server has a bundle of this member.

        Raises:
            ValueError: this party is not on the committee.
        """
        if self._me not in self._rules.config.committee:
            raise ValueError(f"{self._me} is not on the committee")
        with self._step("start"):
            key = self._key_in_advance or self._fresh_key()
            self._bundle = key.bundle
            self._secrets = Secrets(key.take())
            message = MemberKeys(context=self._rules.context, sender=self._me, bundle=self._bundle)
            frame = encode(message, suite=self._rules.suite)
            events: list[Event] = [] if self._key_in_advance else [SendMessage(to=None, data=frame)]
            self._key_in_advance = None
            return self._persist(self._burned(self._bundle), lambda: events)

    def _take(self, message: UnmaskRequest) -> list[Event]:
        rules = self._rules
        rules.check_bundles(message.bundles, Phase.ADVERTISE_KEYS)
        if self._bundle not in message.bundles:
            raise InconsistentViewError("the server did not show this member's key to clients as it advertised it")
        rules.bind(message.bundles)
        survivors = self._check_contributions(message.contributions)
        record = SurvivorsSigned(model=rules.config.model, survivors=frozenset(survivors))
        self._policy.check_survivors(record.model, record.survivors, self._history)
        shares, problems = self._open_all(message.contributions)
        view = rules.view(survivors)
        if problems:
            frame = self._signed(
                Complaint(context=rules.context, sender=self._me, view=view, accused=self._accused(message, problems))
            )
            self._erase()
            rejected = [PeerRejected(client=client, reason=problem) for client, problem in problems.items()]
            return [*rejected, SendMessage(to=None, data=frame)]
        share = key_shares.add(shares)
        later = (self._next_key.bundle,) if self._next_key else ()
        answer = PartialSum(context=rules.context, sender=self._me, view=view, share=share, next_bundle=later)
        frame = self._signed(answer)
        self._erase()
        return self._persist(record, lambda: self._answer(frame, later))

    def _answer(self, frame: bytes, later: tuple[MemberBundle, ...]) -> list[Event]:
        """The answer; before a bundle for a later round leaves with it, its serial is durable too."""
        sending = SendMessage(to=None, data=frame)
        return self._persist(self._burned(later[0]), lambda: [sending]) if later else [sending]

    def _check_contributions(self, contributions: Sequence[SealedContribution]) -> tuple[ClientId, ...]:
        """All are of this round, of different enrolled clients, and as these signed them; returns the clients."""
        rules = self._rules
        survivors = tuple(ClientId(sealed.contribution.sender) for sealed in contributions)
        check_increasing(survivors)
        if len(survivors) > rules.config.cohort:
            raise InconsistentViewError(f"{len(survivors)} clients in a cohort of {rules.config.cohort}")
        rules.check_floor(survivors, self._phase)
        for name in ("ephemeral_key", "vector"):
            if len({getattr(sealed.contribution, name) for sealed in contributions}) != len(survivors):
                raise InconsistentViewError(f"two contributions have the same {name}: one is a copy")
        for client, sealed in zip(survivors, contributions, strict=True):
            if sealed.contribution.context != rules.context:
                raise InconsistentViewError(
                    f"client {client} contributed to another round, or saw other keys", client_id=client
                )
            digest = self._digest(sealed.contribution)
            rules.roster.check_signature(client, signature_kind(Contribution), digest, sealed.signature)
            rules.check_contribution(sealed.contribution)
            if sha256(sealed.share).digest() != sealed.contribution.sealed[self._position]:
                raise InconsistentViewError(
                    f"the share from client {client} to member {self._me} is not the one that was signed",
                    client_id=client,
                )
        return survivors

    def _open_all(
        self, contributions: Sequence[SealedContribution]
    ) -> tuple[list[key_shares.Share], dict[ClientId, str]]:
        """The shares, and what is wrong with those that are bad: their clients sealed them so, all else is verified."""
        rules = self._rules
        at = share_proof.weights(rules.slots, rules.slots[self._position], threshold=rules.config.threshold)
        shares: list[key_shares.Share] = []
        problems: dict[ClientId, str] = {}
        for sealed in contributions:
            client = ClientId(sealed.contribution.sender)
            try:
                shares.append(self._open(sealed, at))
            except ValueError as error:
                problems[client] = f"the share from client {client} to member {self._me}: {error}"
        return shares, problems

    def _open(self, sealed: SealedContribution, at: Field) -> key_shares.Share:
        rules, one = self._rules, sealed.contribution
        client = ClientId(one.sender)
        plain = unseal(
            rules,
            sealed.share,
            client=client,
            member=self._me,
            key=self._live().key,
            ephemeral_key=one.ephemeral_key,
            vector=one.vector,
        )
        share = key_shares.decode(plain)
        challenge = rules.challenge(client, one.ephemeral_key, one.vector, one.sealed)
        if not share_proof.fits(one.proof, share, challenge, at):
            raise ValueError("it is not on the polynomial of the client's proof")
        return share

    def _accused(self, message: UnmaskRequest, problems: Mapping[ClientId, str]) -> tuple[Accusation, ...]:
        return tuple(
            Accusation(client=sealed.contribution.sender, contribution=self._digest(sealed.contribution))
            for sealed in message.contributions
            if sealed.contribution.sender in problems
        )

    @property
    def _position(self) -> int:
        """Where this member is among those that are there."""
        return list(self._rules.bundles).index(self._me)

    def _fresh_key(self) -> OneTimeKey:
        rules = self._rules
        return OneTimeKey(
            self._me,
            identity=self._identity,
            roster=rules.roster,
            suite=rules.suite,
            history=self._history,
            rand=self._rand,
        )

    def _checked(self, key: OneTimeKey | None, serial: int) -> OneTimeKey | None:
        """A key made elsewhere must fit the round, and be this member's latest."""
        if key is None:
            return None
        made = (key.bundle.member, key.roster_digest, key.suite, key.bundle.serial)
        if made != (self._me, self._rules.roster.digest, self._rules.suite, serial):
            raise ValueError(
                f"the key of bundle {key.bundle.serial} of member {key.bundle.member} does not fit: needed is bundle "
                f"{serial} of member {self._me}, with this round's roster and suite"
            )
        return key

    def _burned(self, bundle: MemberBundle) -> KeysAdvertised:
        return KeysAdvertised(round_id=self._rules.config.round_id, serial=bundle.serial)

    def _erase(self) -> None:
        super()._erase()
        self._key_in_advance = self._next_key = None

    def _digest(self, contribution: Contribution) -> bytes:
        return sha256(encode(contribution, suite=self._rules.suite)).digest()

    def _signed(self, message: Message) -> bytes:
        covered = encode(message, suite=self._rules.suite)
        return covered + self._sign(signature_kind(type(message)), sha256(covered).digest())
