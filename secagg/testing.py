"""For the tests of applications: federations in memory, plans of who falls silent, and a server that lies.

No test framework is needed, and nothing here belongs into production: identities, histories and ledgers live in memory.

- A `Send` is how a test reaches a client, over whatever transport the application has: bytes in, the client's answers
  out. `Federation.send` is one, for clients in this process.
- `play_lie` is a server that follows the protocol except for one lie, told to real clients. What a test wants to see:
  every client refused, and nobody's shares came out (`Outcome.assert_safe`).
- `dropout_plans` and `fatal_dropouts` say who falls silent when: rounds that must succeed, and rounds that must end in
  `TooFewClientsError`. They are plans as `simulate` takes them.

Example:
    >>> import secagg
    >>> config = secagg.AggregationConfig.cross_silo(
    ...     like={"w": [0.0, 0.0]}, clients=5, max_dropouts=1, max_colluders=1, privacy=secagg.NoPrivacy(clip_norm=9.0)
    ... )
    >>> federation = Federation(config)
    >>> play_lie("forked survivors", config, federation.roster, federation.send).assert_safe()
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from dp import NoPrivacy, RecordLevel, secure_random
from protocols import (
    ClientId,
    ContributionNeeded,
    Event,
    Identity,
    Phase,
    ProtocolError,
    Roster,
    SendMessage,
)
from protocols.primitives.keys import HYBRID, SIGNATURE_BYTES, AgreementKey
from protocols.wire import (
    HEADER_BYTES,
    SERVER,
    KeyBundles,
    Message,
    SealedShares,
    SurvivorList,
    SurvivorSignatures,
    decode,
    encode,
    message_limit,
)

from .client import Client
from .config import AggregationConfig
from .history import MemoryHistory
from .layout import Arrays
from .pipeline import Update
from .server import AggregationResult, Server
from .simulation import SERVER_PHASES

Send = Callable[[int, bytes], Iterable[bytes]]

INVITATION = 0  # where a frame's kind stands
RECORDS = 3  # of a client, in `updates_for`


def updates_for(config: AggregationConfig, *, seed: int = 0) -> dict[int, dict[str, NDArray[np.floating]]]:
    """Updates within the clip norm for clients 1 to n, the same for the same seed.

    Args:
        config: gives names, shapes and dtypes; with `RecordLevel` each client has the gradients of three records.
        seed: public.
    """
    length = config.layout.length
    shape = (RECORDS, length) if isinstance(config.privacy, RecordLevel) else (length,)
    updates = {}
    for client in range(1, config.clients + 1):
        stream = hashlib.shake_256(f"secagg/testing/{seed}/{client}".encode()).digest(4 * math.prod(shape))
        unit = np.frombuffer(stream, dtype="<i4").reshape(shape) / 2.0**31
        values = unit * (config.clip_norm / math.sqrt(length))
        if isinstance(config.privacy, RecordLevel):
            rows = [config.layout.unflatten(row) for row in values]
            updates[client] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        else:
            updates[client] = config.layout.unflatten(values)
    return updates


def assert_plain_mean(result: AggregationResult, updates: Mapping[int, Arrays]) -> None:
    """The released mean is that of the survivors' updates, to within one step of the encoding.

    Raises:
        AssertionError: it is not.
        ValueError: the configuration has noise or weights, so that no plain mean is released.
    """
    if not isinstance(result.config.privacy, NoPrivacy) or result.config.riders.weights is not None:
        raise ValueError("only rounds without noise and without weights release the plain mean")
    step = result.config.encoder.clip_norm / result.config.encoder.int_bound
    for name, mean in result.mean.items():
        plain = np.mean([np.asarray(updates[client][name], dtype=np.float64) for client in result.survivors], axis=0)
        furthest = float(np.max(np.abs(mean - plain), initial=0.0))
        tolerance = step + float(np.finfo(mean.dtype).eps) * result.config.clip_norm
        if furthest > tolerance:
            raise AssertionError(f"the mean of {name!r} is off by {furthest:.3g}, more than {tolerance:.3g}")


def dropout_plans(config: AggregationConfig) -> Iterator[dict[int, Phase]]:
    """Plans after which a round must still succeed: nobody, as many as allowed in each phase, and one in each phase."""
    yield {}
    gone = list(range(config.clients, config.clients - config.max_dropouts, -1))
    if gone:
        yield from (dict.fromkeys(gone, phase) for phase in SERVER_PHASES)
        yield dict(zip(gone, SERVER_PHASES, strict=False))


def fatal_dropouts(config: AggregationConfig) -> Iterator[dict[int, Phase]]:
    """Plans after which a round must end in `TooFewClientsError`: one client too many is silent before the vectors."""
    gone = range(config.clients, config.clients - config.max_dropouts - 1, -1)
    yield from (dict.fromkeys(gone, phase) for phase in SERVER_PHASES[: SERVER_PHASES.index(Phase.MASKED_INPUT) + 1])


class Federation:
    """A server and clients 1 to n in this process, each with its own identity, history and ledger.

    Args:
        config: what all parties agree on.
        updates: what each client contributes; by default `updates_for(config)`.
        model: the arrays that every client starts from.

    Attributes:
        identities: of all clients.
        roster: their public parts.
        clients: by id.
        server: an honest one.
    """

    def __init__(
        self, config: AggregationConfig, *, updates: Mapping[int, Update] | None = None, model: Arrays | None = None
    ) -> None:
        self.config = config
        self.updates = updates_for(config) if updates is None else updates
        self.model = model
        self.identities = {ClientId(client): Identity.generate() for client in range(1, config.clients + 1)}
        self.roster = Roster({client: identity.public for client, identity in self.identities.items()})
        self.server = Server(config, roster=self.roster)
        self.clients = {
            client: Client(config, client, identity=identity, roster=self.roster, history=MemoryHistory())
            for client, identity in self.identities.items()
        }

    def send(self, client: int, data: bytes) -> list[bytes]:
        """Hands bytes of a server to a client, and returns what the client answers.

        Raises:
            ProtocolError: the client refuses.
        """
        party = self.clients[ClientId(client)]
        if data[HEADER_BYTES + 1] == INVITATION:
            return self._answers(client, party.begin(data, model=self.model))
        return self._answers(client, party.receive(data))

    def _answers(self, client: int, events: list[Event]) -> list[bytes]:
        answers = []
        for event in events:
            match event:
                case ContributionNeeded():
                    answers += self._answers(client, self.clients[ClientId(client)].contribute(self.updates[client]))
                case SendMessage(data=data):
                    answers.append(data)
        return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a lie brought.

    Attributes:
        lie: which.
        refusals: what each client raised; a client whose application swallowed the error is missing.
        exposed: clients whose shares came out although they were lied to.
    """

    lie: str
    refusals: Mapping[int, ProtocolError]
    exposed: frozenset[int]

    def assert_safe(self) -> None:
        """Nobody's shares came out.

        Raises:
            AssertionError: names the clients whose did.
        """
        if self.exposed:
            raise AssertionError(f"the lie {self.lie!r} got shares from clients {sorted(self.exposed)}")


LIES: Mapping[str, str] = {
    "another configuration": "the round is opened for another application than was agreed",
    "another model": "the round is opened on another model than the clients have",
    "another round": "the clients' keys come back under another round",
    "swapped key": "one client's key is replaced by one of the server's",
    "permuted shares": "sealed shares come under each other's names",
    "damaged shares": "one bit of a sealed share is flipped",
    "too few survivors": "fewer clients are said to have survived than the floor",
    "forked survivors": "one half is told that a client of the other half is dead",
    "second question": "after a good round the clients are asked for their shares again",
    "replayed round": "after a good round its invitation and keys come again",
}
"""Every lie of `play_lie`, and what the server does."""


def play_lie(
    lie: str, config: AggregationConfig, roster: Roster, send: Send, *, model: Arrays | None = None
) -> Outcome:
    """A round with a server that follows the protocol except for one lie.

    Args:
        lie: one of `LIES`.
        config: what the clients have agreed on.
        roster: the clients' public identities.
        send: reaches them; a `ProtocolError` that it raises is that client's refusal.
        model: the arrays that the clients start from.

    Raises:
        ValueError: there is no such lie.
    """
    if lie not in LIES:
        raise ValueError(f"there is no lie {lie!r}: choose one of {sorted(LIES)}")
    told, opened = config, model
    if lie == "another configuration":
        told = replace(config, application=f"{config.application} (another)")
    if lie == "another model":
        opened = config.layout.unflatten(np.ones(config.layout.length))
    game = _Game(config=config, server=Server(told, roster=roster), send=send, lie=lie)
    game.play(opened)
    return Outcome(lie=lie, refusals=game.refusals, exposed=game.exposed())


@dataclass(slots=True, kw_only=True)
class _Game:
    """One round of a server that lies."""

    config: AggregationConfig
    server: Server
    send: Send
    lie: str
    refusals: dict[int, ProtocolError] = field(default_factory=dict)
    shares: dict[int, int] = field(default_factory=dict)  # messages with shares, by client
    sent: dict[Phase, dict[int, bytes]] = field(default_factory=dict)  # what clients got, by the phase it opened

    def play(self, model: Arrays | None) -> None:
        """Until the round ends, for whatever reason."""
        try:
            for message in self.server.begin(model):
                self.deliver(message)
            while self.server.phase is not Phase.FINISHED:
                messages = [event for event in self.server.close_phase() if isinstance(event, SendMessage)]
                if self.lie == "forked survivors" and self.server.phase is Phase.CONSISTENCY_CHECK:
                    self.fork(messages)
                    return
                for message in messages:
                    self.deliver(message)
        except ProtocolError:
            return  # too few clients went along
        self.again()

    def deliver(self, message: SendMessage) -> None:
        """A message of the honest server, or what the lie makes of it."""
        if message.to is None:
            return
        phase = self.server.phase
        data = self.lied(phase, message.to, message.data)
        self.sent.setdefault(phase, {})[message.to] = data
        for answer in self.tell(message.to, data):
            self.server.receive(message.to, answer)

    def tell(self, client: int, data: bytes, *, asked: bool | None = None) -> list[bytes]:
        """What a client answers; nothing once it has refused."""
        if client in self.refusals:
            return []
        try:
            answers = list(self.send(client, data))
        except ProtocolError as error:
            self.refusals[client] = error
            return []
        if self.server.phase is Phase.UNMASK if asked is None else asked:
            self.shares[client] = self.shares.get(client, 0) + len(answers)
        return answers

    def lied(self, phase: Phase, to: int, data: bytes) -> bytes:
        """What this client gets instead."""
        limit = message_limit(self.config.clients)
        match self.lie, phase:
            case "another round", Phase.SHARE_KEYS:
                return encode(msgspec.structs.replace(decode(data, KeyBundles, limit=limit), context=bytes(32)))
            case "swapped key", Phase.SHARE_KEYS:
                keys = decode(data, KeyBundles, limit=limit)
                victim = next(bundle for bundle in keys.bundles if bundle.client != to)
                own = msgspec.structs.replace(victim, mask_key=AgreementKey(secure_random()(32), HYBRID).public)
                swapped = tuple(own if bundle is victim else bundle for bundle in keys.bundles)
                return encode(msgspec.structs.replace(keys, bundles=swapped))
            case "permuted shares", Phase.MASKED_INPUT:
                shares = decode(data, SealedShares, limit=limit)
                return encode(msgspec.structs.replace(shares, sealed=shares.sealed[::-1]))
            case "damaged shares", Phase.MASKED_INPUT:
                return data[:-1] + bytes((data[-1] ^ 1,))
            case "too few survivors", Phase.CONSISTENCY_CHECK:
                survivors = decode(data, SurvivorList, limit=limit)
                return encode(self.without(survivors, to, self.config.clients - self.config.min_survivors + 1))
        return data

    def without(self, survivors: SurvivorList, to: int, count: int) -> SurvivorList:
        """The list without the last few others."""
        gone = [client for client in survivors.survivors if client != to][-count:]
        kept = tuple(client for client in survivors.survivors if client not in gone)
        return msgspec.structs.replace(survivors, survivors=kept)

    def fork(self, messages: Collection[SendMessage]) -> None:
        """Each half gets its own list, and then the signatures of its own half; an odd client hears nothing."""
        order = sorted(int(message.to) for message in messages if message.to is not None)
        half_size = len(order) // 2  # below any threshold: neither view may gather enough signatures
        first, second, victim = set(order[:half_size]), set(order[half_size : 2 * half_size]), order[half_size]
        signatures: dict[bool, dict[int, bytes]] = {True: {}, False: {}}
        context = b""
        for message in messages:
            if message.to is None or message.to not in first | second:
                continue
            survivors = decode(message.data, SurvivorList, limit=message_limit(self.config.clients))
            context, lied_to = survivors.context, message.to in first
            if lied_to:
                kept = tuple(client for client in survivors.survivors if client != victim)
                survivors = msgspec.structs.replace(survivors, survivors=kept)
            for answer in self.tell(message.to, encode(survivors)):
                signatures[lied_to][message.to] = answer[-SIGNATURE_BYTES:]
        for half in signatures.values():
            for client in half:
                signers = tuple(sorted(half))
                frame: Message = SurvivorSignatures(
                    context=context, sender=SERVER, signers=signers, signatures=tuple(half[one] for one in signers)
                )
                self.tell(client, encode(frame), asked=True)

    def again(self) -> None:
        """What comes after a round that went well."""
        if self.lie == "second question":
            for client, data in self.sent[Phase.UNMASK].items():
                self.tell(client, data, asked=True)
        if self.lie == "replayed round":
            self.shares.clear()
            for phase in (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.UNMASK):
                for client, data in self.sent.get(phase, {}).items():
                    self.tell(client, data, asked=phase is Phase.UNMASK)

    def exposed(self) -> frozenset[int]:
        """Who sent shares that it must not send: one good answer is due before a second question."""
        allowed = 1 if self.lie == "second question" else 0
        return frozenset(client for client, count in self.shares.items() if count > allowed)
