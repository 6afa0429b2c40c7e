"""The committee member's part: it checks what it is asked to open, answers once, and erases.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import msgspec

from ..errors import ClientId, InconsistentViewError, RemoteProtocolError
from ..policy import KeysAdvertised, SurvivorsSigned
from ..primitives import key_shares, keys
from ..session import Event, Phase, SendMessage
from ..wire import FRESH_BYTES, check_increasing, encode
from .party import Party, Secrets
from .rules import MEMBER_TRANSITIONS, member_bundle_digest, signature_kind
from .sealed import unseal
from .wire import Contribution, MemberBundle, MemberKeys, PartialSum, SealedContribution, UnmaskRequest


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
        share = key_shares.add(self._open(sealed) for sealed in message.contributions)
        answer = PartialSum(context=rules.context, sender=self._me, view=rules.view(survivors), share=share)
        covered = encode(answer, suite=rules.suite)
        frame = covered + self._sign(signature_kind(PartialSum), sha256(covered).digest())
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
            digest = sha256(encode(sealed.contribution, suite=rules.suite)).digest()
            rules.roster.check_signature(client, signature_kind(Contribution), digest, sealed.signature)
        return survivors

    def _open(self, sealed: SealedContribution) -> key_shares.Share:
        rules, contribution = self._rules, sealed.contribution
        client = ClientId(contribution.sender)
        problem = ""  # raised outside the handler: an error that remembers another one remembers its keys
        try:
            plain = unseal(
                rules,
                sealed.share,
                client=client,
                member=self._me,
                key=self._live().key,
                ephemeral_key=contribution.ephemeral_key,
                vector=contribution.vector,
            )
            share = key_shares.decode(plain)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise RemoteProtocolError(
                f"the share from client {client} to member {self._me}: {problem}", client_id=client
            )
        return share
