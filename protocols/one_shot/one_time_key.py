"""A committee member's key for one round, made when the round starts, or before. Experimental.

Rules:

1. A bundle names no round, so it can be made in advance: attached to the answer of one round, it saves the next one the
   trip to the committee before clients are asked.
2. A key serves one round. It is taken once, and its bundle's serial is burned in the member's history before the bundle
   leaves; clients refuse a serial that they have seen.
3. It lives in memory alone. A member that lost it advertises a fresh one, and the server forgets the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from ..errors import ClientId, LocalProtocolError
from ..policy import History
from ..primitives import keys
from ..roster import Identity, Roster, signed_text
from ..wire import FRESH_BYTES
from .rules import member_bundle_digest, signature_kind
from .wire import MemberBundle


class OneTimeKey(keys.Unprintable):
    """A key pair and the signed bundle of its public half.

    Args:
        member: whose key this is.
        identity: its long-term signing key.
        roster: the pinned identities; the signature covers them.
        suite: the suite of the round that the key is for.
        history: what the member remembers; the bundle's serial is the next one.
        rand: source of uniform bytes.

    Attributes:
        bundle: what the server may show to everybody.
    """

    def __init__(
        self,
        member: ClientId,
        *,
        identity: Identity,
        roster: Roster,
        suite: keys.Suite,
        history: History,
        rand: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._key: keys.AgreementKey | None = keys.AgreementKey(rand(keys.SECRET_KEY_BYTES), suite)
        self.suite = suite
        self.roster_digest = roster.digest
        unsigned = MemberBundle(
            member=member,
            serial=history.serial + 1,
            fresh=rand(FRESH_BYTES),
            key=self._key.public,
            signature=bytes(keys.SIGNATURE_BYTES),
        )
        text = signed_text(signature_kind(MemberBundle), member_bundle_digest(unsigned, roster, suite))
        self.bundle = msgspec.structs.replace(unsigned, signature=identity.sign(text))

    def take(self) -> keys.AgreementKey:
        """The key, once.

        Raises:
            LocalProtocolError: it was taken before.
        """
        if self._key is None:
            raise LocalProtocolError(f"the key of bundle {self.bundle.serial} served a round before")
        key, self._key = self._key, None
        return key
