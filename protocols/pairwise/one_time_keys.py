"""A client's keys for one round, made when the round starts, or before.

Rules:

1. A bundle names no round (`roster`), so it can be made in advance: attached to the last message of one round, it saves
   the next one the round trip in which keys are advertised.
2. Keys serve one round. They are taken once, and a bundle's serial is burned in the client's history before the bundle
   leaves; peers refuse a serial that they have seen.
3. They live in memory alone. A client that lost them advertises fresh ones, and the server forgets the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from ..errors import ClientId, LocalProtocolError
from ..policy import History
from ..primitives import keys
from ..roster import Identity, Roster, bundle_digest, signed_text
from ..wire import FRESH_BYTES, KeyBundle


class OneTimeKeys(keys.Unprintable):
    """Two key pairs and the signed bundle of their public halves.

    Args:
        client_id: whose keys these are.
        identity: its long-term signing key.
        roster: the pinned identities; the signature covers them.
        suite: the suite of the round that the keys are for.
        history: what the client remembers; the bundle's serial is the next one.
        rand: source of uniform bytes.

    Attributes:
        bundle: what the server may show to everybody.
    """

    def __init__(
        self,
        client_id: ClientId,
        *,
        identity: Identity,
        roster: Roster,
        suite: keys.Suite,
        history: History,
        rand: Callable[[int], bytes] = os.urandom,
    ) -> None:
        channel_key = keys.AgreementKey(rand(keys.SECRET_KEY_BYTES), suite)
        mask_key = keys.AgreementKey(rand(keys.SECRET_KEY_BYTES), suite)
        self._pair: tuple[keys.AgreementKey, keys.AgreementKey] | None = (channel_key, mask_key)
        self.suite = suite
        self.roster_digest = roster.digest
        unsigned = KeyBundle(
            client=client_id,
            serial=history.serial + 1,
            fresh=rand(FRESH_BYTES),
            channel_key=channel_key.public,
            mask_key=mask_key.public,
            signature=bytes(keys.SIGNATURE_BYTES),
        )
        signature = identity.sign(signed_text("KeyBundle", bundle_digest(unsigned, roster, suite)))
        self.bundle = msgspec.structs.replace(unsigned, signature=signature)

    def take(self) -> tuple[keys.AgreementKey, keys.AgreementKey]:
        """The channel key and the mask key, once.

        Raises:
            LocalProtocolError: they were taken before.
        """
        if self._pair is None:
            raise LocalProtocolError(f"the keys of bundle {self.bundle.serial} served a round before")
        pair, self._pair = self._pair, None
        return pair
