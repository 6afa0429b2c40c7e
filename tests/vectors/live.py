"""Live sessions of the library, driven by a script of `pairwise/*.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from protocols import (
    AggregateReady,
    ClientId,
    ClientPolicy,
    ContributionNeeded,
    Event,
    History,
    Identity,
    PairwiseClient,
    PairwiseServer,
    PersistBeforeSend,
    ProtocolError,
    Roster,
    RoundConfig,
    SendMessage,
)
from protocols.primitives import keys
from protocols.wire import (
    HEADER_BYTES,
    SERVER,
    AdvertiseKeys,
    ConsistencyCheck,
    Invitation,
    KeyBundles,
    MaskedInput,
    Message,
    SealedShares,
    ShareKeys,
    SurvivorList,
    SurvivorSignatures,
    Unmask,
)
from tests.protocols import ml_kem

CLIENT_MESSAGES = (AdvertiseKeys, ShareKeys, MaskedInput, ConsistencyCheck, Unmask)
SERVER_MESSAGES = (KeyBundles, SealedShares, SurvivorList, SurvivorSignatures)
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in (Invitation, *CLIENT_MESSAGES, *SERVER_MESSAGES)}

Script = dict[str, Any]
Case = dict[str, Any]


class Tape:
    """Random bytes that were drawn before."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.used = 0

    def __call__(self, count: int) -> bytes:
        piece = self.data[self.used : self.used + count]
        if len(piece) < count:
            raise EOFError(f"the stream ends {count - len(piece)} bytes early")
        self.used += count
        return piece


def config_of(script: Mapping[str, Any]) -> RoundConfig:
    """The round's configuration; digests are hexadecimal in files."""
    values: dict[str, Any] = {
        name: bytes.fromhex(v) if isinstance(v, str) else v for name, v in script["config"].items()
    }
    return RoundConfig(**values)


def identities_of(script: Mapping[str, Any]) -> dict[ClientId, Identity]:
    """The signing keys of everybody on the roster."""
    return {ClientId(int(client)): Identity(bytes.fromhex(key)) for client, key in script["identities"].items()}


def roster_of(script: Mapping[str, Any]) -> Roster:
    """The public half of `identities_of`."""
    return Roster({client: identity.public for client, identity in identities_of(script).items()})


def history_of(values: Mapping[str, Any]) -> History:
    """A client's history: `serial`, `rounds`, `peers`, `signed`; all optional."""
    return History(
        serial=values.get("serial", 0),
        rounds=frozenset(bytes.fromhex(round_id) for round_id in values.get("rounds", ())),
        peers={ClientId(int(peer)): serial for peer, serial in values.get("peers", {}).items()},
        signed={
            bytes.fromhex(model): tuple(frozenset(map(ClientId, survivors)) for survivors in sets)
            for model, sets in values.get("signed", {}).items()
        },
    )


def client_of(
    script: Mapping[str, Any], client: ClientId, rand: Tape, *, case: Mapping[str, Any] | None = None
) -> PairwiseClient:
    """A client of the script; a case may give it another `history` or `policy`."""
    case = case or {}
    history = {"serial": script["serials"][str(client)] - 1, **case.get("history", {})}
    return PairwiseClient(
        config_of(script),
        client,
        identity=identities_of(script)[client],
        roster=roster_of(script),
        policy=ClientPolicy(**{**script["policy"], **case.get("policy", {})}),
        history=history_of(history),
        rand=rand,
    )


def server_of(script: Mapping[str, Any]) -> PairwiseServer:
    """The server of the script."""
    return PairwiseServer(config_of(script), roster=roster_of(script))


def frames_after(session: PairwiseClient, events: list[Event], vector: list[int]) -> list[bytes]:
    """Follows a client's events to the frames that it sends."""
    frames, todo = [], list(events)
    while todo:
        match todo.pop(0):
            case PersistBeforeSend():
                todo += session.persisted()
            case ContributionNeeded():
                todo += session.contribute(np.array(vector, dtype=np.uint32))
            case SendMessage(data=data):
                frames.append(data)
    return frames


def kind_name(frame: bytes) -> str:
    """The kind that a good frame's tag says."""
    return next(name for name, kind in KINDS.items() if kind.__struct_config__.tag == frame[HEADER_BYTES + 1])


@dataclass
class Played:
    """What came out of a script."""

    server: PairwiseServer
    tapes: dict[ClientId, Tape]
    kem: dict[ClientId, Tape]
    messages: list[Case] = field(default_factory=list)
    result: AggregateReady | None = None
    error: ProtocolError | None = None


@contextmanager
def recorded_kem(tapes: Mapping[ClientId, Tape]) -> Iterator[Callable[[ClientId], None]]:
    """Encapsulations take their randomness from the tape of the client that is called with the given function."""
    current: list[Tape] = []

    def encapsulate(public: bytes, suite: keys.Suite) -> tuple[bytes, bytes]:
        if suite is keys.CLASSICAL:
            return b"", b""
        return ml_kem.encapsulate(public[32:], current[-1](32))

    def speaks(client: ClientId) -> None:
        if tapes:
            current.append(tapes[client])

    with mock.patch.object(keys, "encapsulate", encapsulate):
        yield speaks


def play(script: Mapping[str, Any]) -> Played:
    """Runs live sessions. In each phase clients answer in increasing order; silent ones have vanished."""
    kem = {ClientId(int(client)): Tape(bytes.fromhex(data)) for client, data in script.get("kem", {}).items()}
    with recorded_kem(kem) as speaks:
        return _play(script, kem, speaks)


def _play(script: Mapping[str, Any], kem: dict[ClientId, Tape], speaks: Callable[[ClientId], None]) -> Played:
    tapes = {ClientId(int(client)): Tape(bytes.fromhex(data)) for client, data in script["rand"].items()}
    sessions = {client: client_of(script, client, tape) for client, tape in tapes.items()}
    played = Played(server_of(script), tapes, kem)
    left = Counter({client: script["silent"].get(str(client), len(CLIENT_MESSAGES)) for client in sessions})
    inbox: dict[ClientId, Callable[[], list[Event]]] = {c: session.start for c, session in sessions.items()}
    while played.result is None and played.error is None:
        for client in sorted(inbox):
            if not left[client]:
                continue
            speaks(client)
            for frame in frames_after(sessions[client], inbox[client](), script["vectors"][str(client)]):
                left[client] -= 1
                rejected = played.server.receive(client, frame)
                if rejected:
                    raise ValueError(f"the server refuses an honest message: {rejected}")
                played.messages.append(line(client, SERVER, frame))
        inbox = {}
        try:
            events = played.server.close_phase()
        except ProtocolError as error:
            played.error = error
            break
        for event in events:
            if isinstance(event, SendMessage) and event.to is not None:
                played.messages.append(line(SERVER, event.to, event.data))
                inbox[event.to] = partial(sessions[event.to].receive, event.data)
            elif isinstance(event, AggregateReady):
                played.result = event
    return played


def line(sender: int, receiver: int, frame: bytes) -> Case:
    """One message of a script."""
    return {"from": sender, "to": receiver, "kind": kind_name(frame), "bytes": frame.hex()}
