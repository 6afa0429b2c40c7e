"""Errors of the protocol side: who is to blame decides the class.

- `LocalProtocolError`: you called a session out of order.
- `RemoteProtocolError`: the peer sent something it must not; its subclasses say what kind.
- `PolicyRefusal`: the peer's proposal is well formed, but your own policy forbids it.
- `TooFewClientsError`: nobody lied, too many are missing.

Bad *arguments* (a vector of the wrong length, a threshold out of range) are plain `ValueError`s and change no state.
Messages carry ids, counts and bounds, never keys, shares, seeds or vectors.
"""

from __future__ import annotations

from typing import NewType

ClientId = NewType("ClientId", int)


class ProtocolError(Exception):
    """Base of all protocol failures.

    Attributes:
        client_id: the client the failure is about, if there is one.
        phase: the phase in which it was noticed, if a session noticed it.
    """

    def __init__(self, message: str, *, client_id: ClientId | None = None, phase: str | None = None) -> None:
        super().__init__(message)
        self.client_id = client_id
        self.phase = phase


class LocalProtocolError(ProtocolError):
    """This side used the session out of order; the session is dead and its secrets are erased."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; nothing of this side's secrets was released because of it."""


class MalformedMessageError(RemoteProtocolError):
    """Bytes that are not the canonical encoding of the expected message."""


class InvalidSignatureError(RemoteProtocolError):
    """A signature does not verify under the pinned identity of the named client."""


class InconsistentViewError(RemoteProtocolError):
    """The server shows views that cannot all be true: of the round, the keys, the cohort or the survivors."""


class BadShareError(RemoteProtocolError):
    """Shares that do not open, or that are on no polynomial, leave too few to open the sum.

    Attributes:
        pairs: (sender, receiver) of each. One of the two lies, and the driver may leave out either. Where more
            receivers than may be corrupt name one sender, it is the sender.
    """

    def __init__(self, message: str, *, pairs: tuple[tuple[ClientId, ClientId], ...]) -> None:
        senders = {sender for sender, _ in pairs}
        super().__init__(message, client_id=senders.pop() if len(senders) == 1 else None)
        self.pairs = pairs


class TooFewClientsError(ProtocolError):
    """Fewer clients than the round's floor are left; the round ends without a result."""


class PolicyRefusal(ProtocolError):
    """The client's own policy forbids what the server proposes."""
