"""The committee member's part: it checks what it is asked to open, answers once, and erases.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import msgspec

from ..errors import ClientId, InconsistentViewError
from ..policy import KeysAdvertised, SurvivorsSigned
from ..primitives import key_shares, keys, share_proof
from ..primitives.shamir import Field
from ..session import Event, PeerRejected, Phase, SendMessage
from ..wire import FRESH_BYTES, Message, check_increasing, encode
from .party import Party, Secrets
from .rules import MEMBER_TRANSITIONS, member_bundle_digest, signature_kind
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

    Args and errors are those of `Party`. A party that is client and member has a session and a history for each role.
    """

    _transitions = MEMBER_TRANSITIONS
    _awaited = UnmaskRequest
    _bundle: MemberBundle

    def start(self) -> list[Event]:
        """Makes a fresh key and advertises it.

        Raises:
            ValueError: this party is not on the committee.
        """
        if self._me not in self._rules.config.committee:
            raise ValueError(f"{self._me} is not on the committee")
        with self._step("start"):
            self._secrets = Secrets(self._rand, self._rules.suite)
            serial = self._history.serial + 1
            unsigned = MemberBundle(
                member=self._me,
                serial=serial,
                fresh=self._rand(FRESH_BYTES),
                key=self._secrets.key.public,
                signature=bytes(keys.SIGNATURE_BYTES),
            )
            digest = member_bundle_digest(unsigned, self._rules.roster, self._rules.suite)
            signature = self._sign(signature_kind(MemberBundle), digest)
            self._bundle = msgspec.structs.replace(unsigned, signature=signature)
            message = MemberKeys(context=self._rules.context, sender=self._me, bundle=self._bundle)
            frame = encode(message, suite=self._rules.suite)
            record = KeysAdvertised(round_id=self._rules.config.round_id, serial=serial)
            return self._persist(record, lambda: [SendMessage(to=None, data=frame)])

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
        frame = self._signed(PartialSum(context=rules.context, sender=self._me, view=view, share=share))
        self._erase()
        return self._persist(record, lambda: [SendMessage(to=None, data=frame)])

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
        if not share_proof.fits(
            one.proof, share, rules.challenge(client, one.ephemeral_key, one.vector, one.sealed), at
        ):
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

    def _digest(self, contribution: Contribution) -> bytes:
        return sha256(encode(contribution, suite=self._rules.suite)).digest()

    def _signed(self, message: Message) -> bytes:
        covered = encode(message, suite=self._rules.suite)
        return covered + self._sign(signature_kind(type(message)), sha256(covered).digest())
