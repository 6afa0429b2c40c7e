"""Live one-shot sessions, driven by a script of `one_shot/*.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protocols import (
    AggregateReady,
    ClientId,
    ClientPolicy,
    ContributionNeeded,
    Event,
    KeysAdvertised,
    PeerRejected,
    PersistBeforeSend,
    ProtocolError,
    SendMessage,
)
from protocols.one_shot import (
    OneShotClient,
    OneShotConfig,
    OneShotMember,
    OneShotServer,
    OneTimeKey,
    committee_digest,
)
from protocols.one_shot.wire import Committee, Complaint, Contribution, MemberKeys, PartialSum, UnmaskRequest
from protocols.primitives import keys
from protocols.wire import HEADER_BYTES, SERVER, Message

from .live import Case, Script, Tape, history_of, identities_of, recorded_kem, roster_of

CLIENT_MESSAGES, MEMBER_MESSAGES = (Contribution,), (MemberKeys, PartialSum, Complaint)
SERVER_MESSAGES = (Committee, UnmaskRequest)
KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (*CLIENT_MESSAGES, *MEMBER_MESSAGES, *SERVER_MESSAGES)
}
Session = OneShotClient | OneShotMember


def config_of(script: Mapping[str, Any]) -> OneShotConfig:
    """The round's configuration; digests are hexadecimal in files."""
    values = {name: bytes.fromhex(v) if isinstance(v, str) else v for name, v in script["config"].items()}
    return OneShotConfig(**{**values, "committee": tuple(map(ClientId, values["committee"]))})


def policy_of(script: Mapping[str, Any], case: Mapping[str, Any]) -> ClientPolicy:
    """The floors of everybody, and the committee that the script says is pinned."""
    values = {**script["policy"], **case.get("policy", {})}
    return ClientPolicy(**{**values, "committee": values["committee"] and bytes.fromhex(values["committee"])})


def client_of(
    script: Mapping[str, Any], client: ClientId, rand: Tape, *, case: Mapping[str, Any] | None = None
) -> OneShotClient:
    """A client of the script; a case may give it another `history` or `policy`."""
    case = case or {}
    return OneShotClient(
        config_of(script),
        client,
        identity=identities_of(script)[client],
        roster=roster_of(script),
        policy=policy_of(script, case),
        history=history_of(case.get("history", {})),
        rand=rand,
    )


def member_of(
    script: Mapping[str, Any], member: ClientId, rand: Tape, *, case: Mapping[str, Any] | None = None
) -> OneShotMember:
    """A member of the script; with `next_rand` it attaches a bundle for its next round."""
    case, own = case or {}, script["members"][str(member)]
    history = history_of({"serial": own["serial"] - 1, **case.get("history", {})})
    identity, roster = identities_of(script)[member], roster_of(script)
    next_key = None
    if "next_rand" in own:
        next_key = OneTimeKey(
            member,
            identity=identity,
            roster=roster,
            suite=keys.SUITES[script["config"]["suite"]],
            history=history.after(KeysAdvertised(round_id=bytes(32), serial=own["serial"])),
            rand=Tape(bytes.fromhex(own["next_rand"])),
        )
    return OneShotMember(
        config_of(script),
        member,
        identity=identity,
        roster=roster,
        policy=policy_of(script, case),
        history=history,
        next_key=next_key,
        rand=rand,
    )


def server_of(script: Mapping[str, Any]) -> OneShotServer:
    """The server of the script; it remembers serials below those of the round."""
    seen = {ClientId(int(member)): own["serial"] - 1 for member, own in script["members"].items()}
    return OneShotServer(config_of(script), roster=roster_of(script), serials=seen)


def frames_after(session: Session, events: list[Event], vector: list[int]) -> list[bytes]:
    """Follows a party's events to the frames that it sends."""
    frames, todo = [], list(events)
    while todo:
        match todo.pop(0):
            case PersistBeforeSend():
                todo += session.persisted()
            case ContributionNeeded() if isinstance(session, OneShotClient):
                todo += session.contribute(np.array(vector, dtype=np.uint32))
            case SendMessage(data=data):
                frames.append(data)
    return frames


def kind_name(frame: bytes) -> str:
    """The kind that a good frame's tag says."""
    return next(name for name, kind in KINDS.items() if kind.__struct_config__.tag == frame[HEADER_BYTES + 1])


def line(sender: int, receiver: int, frame: bytes) -> Case:
    """One message of a script."""
    return {"from": sender, "to": receiver, "kind": kind_name(frame), "bytes": frame.hex()}


@dataclass
class Played:
    """What came out of a script."""

    server: OneShotServer
    clients: dict[ClientId, OneShotClient]
    members: dict[ClientId, OneShotMember]
    tapes: dict[str, dict[ClientId, Tape]]
    messages: list[Case] = field(default_factory=list)
    rejected: list[PeerRejected] = field(default_factory=list)
    result: AggregateReady | None = None
    error: ProtocolError | None = None


def tapes_of(script: Mapping[str, Any], group: str, name: str) -> dict[ClientId, Tape]:
    """The recorded bytes of all clients or members."""
    return {ClientId(int(party)): Tape(bytes.fromhex(own[name])) for party, own in script[group].items() if name in own}


def play(script: Script, *, meddle: Callable[[Played], None] = lambda _: None) -> Played:
    """Runs live sessions, in each phase in increasing order; silent parties have vanished."""
    tapes = {
        "clients": tapes_of(script, "clients", "rand"),
        "members": tapes_of(script, "members", "rand"),
        "kem": tapes_of(script, "clients", "kem"),
    }
    played = Played(
        server_of(script),
        {client: client_of(script, client, tape) for client, tape in tapes["clients"].items()},
        {member: member_of(script, member, tape) for member, tape in tapes["members"].items()},
        tapes,
    )
    meddle(played)
    with recorded_kem(tapes["kem"]) as speaks:
        _play(script, played, speaks)
    return played


def _play(script: Script, played: Played, speaks: Callable[[ClientId], None]) -> None:
    left = {"clients": dict.fromkeys(played.clients, 1), "members": dict.fromkeys(played.members, 2)}
    for group, silent in script["silent"].items():
        left[group] |= {ClientId(int(party)): count for party, count in silent.items()}

    def say(group: str, party: ClientId, session: Session, events: list[Event]) -> None:
        vector = script["clients"][str(party)]["vector"] if group == "clients" else []
        for frame in frames_after(session, events, vector):
            if left[group][party] > 0:
                left[group][party] -= 1
                if played.server.receive(party, frame):
                    raise ValueError(f"the server refuses an honest message of {party}")
                played.messages.append(line(party, SERVER, frame))

    for client in played.clients.values():
        frames_after(client, client.start(), [])
    for member, session in played.members.items():
        say("members", member, session, session.start())
    parties: tuple[tuple[str, Mapping[ClientId, Session]], ...] = (
        ("clients", played.clients),
        ("members", played.members),
    )
    try:
        for group, sessions in parties:
            sent = [one for one in played.server.close_phase() if isinstance(one, SendMessage) and one.to in sessions]
            played.messages += [line(SERVER, one.to or 0, one.data) for one in sent]
            for one in sent:
                party = ClientId(one.to or 0)
                if left[group][party] > 0:
                    if group == "clients":
                        speaks(party)
                    say(group, party, sessions[party], sessions[party].receive(one.data))
        for event in played.server.close_phase():
            match event:
                case AggregateReady():
                    played.result = event
                case PeerRejected():
                    played.rejected.append(event)
    except ProtocolError as error:
        played.error = error


def pinned(script: Mapping[str, Any]) -> bytes:
    """What an honest policy of this round pins."""
    return committee_digest(roster_of(script), config_of(script).committee)
