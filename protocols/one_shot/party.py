"""What client and member have in common: one message to take, one durable record at a time, erasure at any end.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from ..errors import (
    ClientId,
    InconsistentViewError,
    LocalProtocolError,
    MalformedMessageError,
    RemoteProtocolError,
)
from ..lifecycle import Lifecycle
from ..policy import ClientPolicy, History, Record
from ..primitives import keys
from ..roster import Identity, Roster, signed_text
from ..session import Event, PersistBeforeSend, Phase, TransitionTable
from ..wire import SERVER, Message
from .rules import OneShotConfig, Rules
from .wire import decode

RandomBytes = Callable[[int], bytes]


class Secrets(keys.Unprintable):
    """All that must be erased when a party's round ends, in one place."""

    def __init__(self, key: keys.AgreementKey) -> None:
        self.key = key
        self.channels: dict[ClientId, bytes] = {}  # a client's: member -> X25519 of its key and the member's

    def wipe(self) -> None:
        """Empties the object and its key, for whoever still refers to them: an error's traceback, say."""
        self.key.wipe()
        self.channels.clear()


class Party(Lifecycle):
    """One party's part in one round, apart from the server's.

    Args:
        config: the round.
        party_id: this party.
        identity: its long-term signing key, pinned in `roster`.
        roster: the pinned identities of all clients and members.
        policy: its own floors.
        history: what it remembers of all earlier rounds in the same role.
        rand: source of uniform bytes; the default is the operating system's.

    Raises:
        PolicyRefusal: the policy forbids this round, or pins another committee.
        ValueError: the identity is not the one pinned for this party.
    """

    _transitions: ClassVar[TransitionTable]
    _awaited: ClassVar[type[Message]]  # what the server sends to this party

    def __init__(
        self,
        config: OneShotConfig,
        party_id: ClientId,
        *,
        identity: Identity,
        roster: Roster,
        policy: ClientPolicy,
        history: History,
        rand: RandomBytes = os.urandom,
    ) -> None:
        if roster.get(party_id) != identity.public:
            raise ValueError(f"the roster pins another identity for {party_id}")
        policy.check_round(config, history)
        self._rules = Rules(config, roster)
        policy.check_committee(self._rules.committee)
        self._me = party_id
        self._identity = identity
        self._policy = policy
        self._history = history
        self._rand = rand
        self._phase = Phase.READY
        self._secrets: Secrets | None = None
        self._after_persist: Callable[[], list[Event]] | None = None

    def receive(self, data: bytes) -> list[Event]:
        """Takes the one message of the server; see `ClientSession.receive`."""
        if self._phase is not Phase.ADVERTISE_KEYS or self._after_persist is not None:
            with self._guard():
                error = (
                    LocalProtocolError
                    if self._phase in (Phase.READY, Phase.FINISHED, Phase.ABORTED)
                    else RemoteProtocolError
                )
                raise error(f"no message is expected in phase {self._phase.value}", client_id=self._me)
        with self._step(self._awaited.__name__):
            limit = self._rules.limits[self._awaited]
            message = decode(data, self._awaited, suite=self._rules.suite, limit=limit)
            if message.context != self._rules.context:
                raise InconsistentViewError("the message belongs to another round")
            if message.sender != SERVER:
                raise MalformedMessageError(f"only the server writes here, not sender {message.sender}")
            return self._take(message)

    def persisted(self) -> list[Event]:
        """The last record is durable: now the answer may leave."""
        with self._guard():
            if self._after_persist is None:
                raise LocalProtocolError("no record waits to be made durable", client_id=self._me)
            answer, self._after_persist = self._after_persist, None
            return answer()

    @abstractmethod
    def _take(self, message: Any) -> list[Event]:
        """Handles the awaited message."""

    def _sign(self, kind: str, digest: bytes) -> bytes:
        return self._identity.sign(signed_text(kind, digest))

    def _persist(self, record: Record, answer: Callable[[], list[Event]]) -> list[Event]:
        self._after_persist = answer
        return [PersistBeforeSend(record=record)]

    def _live(self) -> Secrets:
        if self._secrets is None:
            raise LocalProtocolError("the round is over", client_id=self._me)
        return self._secrets

    def _erase(self) -> None:
        if self._secrets is not None:
            self._secrets.wipe()
        self._secrets = None
        self._after_persist = None

    @contextmanager
    def _step(self, trigger: str) -> Iterator[None]:
        """One transition of the table: refused out of order, taken only if the step succeeds."""
        with self._guard():
            following = self._transitions.get((self._phase, trigger))
            if following is None or self._after_persist is not None:
                raise LocalProtocolError(f"{trigger} is not possible in phase {self._phase.value}", client_id=self._me)
            yield
            self._phase = following
