"""Writes `one_shot/*.json`; `generate` calls it. Rules and format are those of the pairwise files, see README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from protocols import ClientId
from protocols.one_shot import client as client_module
from protocols.one_shot.sealed import seal
from protocols.one_shot.wire import Contribution, UnmaskRequest, decode, decode_contribution
from protocols.primitives import keys
from protocols.primitives.packing import UInt32Vector

from .live import Case, Script, identities_of, roster_of
from .one_shot_live import Played, config_of, pinned, play

DIRECTORY = Path(__file__).parent / "one_shot"
BASE = "classical_m3"
STREAM_BYTES = 4096


def make_round(
    name: str,
    comment: str,
    *,
    stream: Callable[..., bytes],
    clients: list[int],
    members: list[int],
    silent: Mapping[str, Mapping[int, int]] | None = None,
    serials: Mapping[int, int] | None = None,
    attaching: tuple[int, ...] = (),
    meddle: Callable[[Played], None] = lambda _: None,
    **config: int,
) -> Script:
    """Plays a round and writes down everything that went in and came out.

    Args:
        name: from which all randomness follows.
        comment: what the file shows.
        stream: bytes that look random, by name, party and size.
        clients: who contributes.
        members: the committee.
        silent: how many messages a client or member sends before it vanishes.
        serials: numbers of members' bundles, 1 unless told.
        attaching: members that attach a bundle for their next round.
        meddle: what a party of the round does that it must not.
        config: the fields of the configuration that are numbers.
    """
    digests = {field: stream(name, i, 32).hex() for i, field in enumerate(("round_id", "model", "binding"), 2**31)}
    suite, bits, length = config["suite"], config["modulus_bits"], config["length"]
    script: Script = {
        "group": "round",
        "comment": comment,
        "success": True,
        "identities": {str(p): stream(f"{name}/identity", p, 32).hex() for p in sorted({*clients, *members})},
        "config": {
            "round_id": digests["round_id"],
            "cohort": len(clients),
            "committee": members,
            **{key: config[key] for key in ("threshold", "min_survivors", "corrupt_holders", "length", "modulus_bits")},
            "model": digests["model"],
            "binding": digests["binding"],
            "suite": suite,
        },
        "policy": {
            "min_survivors": config["min_survivors"],
            "corrupt_holders": config["corrupt_holders"],
            "suite": suite,
        },
        "clients": {},
        "members": {},
        "silent": {
            group: {str(party): count for party, count in (silent or {}).get(group, {}).items()}
            for group in ("clients", "members")
        },
    }
    script["policy"]["committee"] = pinned(script).hex()
    for i, client in enumerate(clients):
        drawn = np.frombuffer(stream(f"{name}/vector", client, 4 * length), dtype="<u4")
        vector = [int(value) % 2**bits for value in drawn]
        vector[0] = 2**bits - 1 if i != 1 else 0
        own = {"rand": stream(name, client, STREAM_BYTES).hex(), "vector": vector}
        script["clients"][str(client)] = own
        if suite == keys.HYBRID.number:
            own["kem"] = stream(f"{name}/kem", client, STREAM_BYTES).hex()
    for member in members:
        own = {"serial": (serials or {}).get(member, 1), "rand": stream(f"{name}/member", member, STREAM_BYTES).hex()}
        script["members"][str(member)] = own
        if member in attaching:
            own["next_rand"] = stream(f"{name}/next", member, 64).hex()
    played = play(script, meddle=meddle)
    for group, tapes in (("clients", "clients"), ("members", "members"), ("clients", "kem")):
        for party, tape in played.tapes[tapes].items():
            script[group][str(party)]["kem" if tapes == "kem" else "rand"] = tape.data[: tape.used].hex()
    script["derived"] = derived(script, played)
    script["messages"] = played.messages
    if played.result is not None:
        script["survivors"] = sorted(played.result.survivors)
        script["result"] = played.result.vector.tolist()
        script["transcript"] = played.result.transcript.hex()
    if played.error is not None:
        script |= {"success": False, "error": type(played.error).__name__, "phase": played.error.phase}
        script["pairs"] = [list(pair) for pair in getattr(played.error, "pairs", ())]
    return script


def derived(script: Script, played: Played) -> Script:
    """Digests of a round, and the challenges of its clients."""
    rules, sent = played.server._rules, {}
    for message in played.messages:
        if message["kind"] == "Contribution":
            frame = decode_contribution(
                bytes.fromhex(message["bytes"]),
                suite=rules.suite,
                limit=rules.limits[Contribution],
                sealed_bytes=rules.sealed_bytes,
                vector_bytes=4 * (rules.config.length + 64),
            )
            sent[ClientId(message["from"])] = frame.message
    challenges = {
        str(client): rules.challenge(client, one.ephemeral_key, one.vector, one.sealed).hex()
        for client, one in sent.items()
    }
    first = bytes.fromhex(played.messages[0]["bytes"])
    return {
        "config": config_of(script).digest().hex(),
        "roster": roster_of(script).digest.hex(),
        "committee": rules.committee.hex(),
        "context0": first[10:42].hex(),
        "context": rules.context.hex(),
        "matrix": rules.matrix_seed.hex(),
        "view": rules.view(sent).hex(),
        "challenge": challenges,
    }


def garbling(client: int, *members: int) -> Callable[[Played], None]:
    """A client that seals zeros to these members, and proves what it sealed."""

    def meddle(played: Played) -> None:
        session = played.clients[ClientId(client)]
        honest = session.contribute

        def garbled(*args: Any, member: ClientId, **options: Any) -> bytes:
            sealed = seal(*args, member=member, **options)
            return bytes(len(sealed)) if member in members else sealed

        def contribute(vector: UInt32Vector) -> list[Any]:
            client_module.seal = garbled  # type: ignore[attr-defined]
            try:
                return honest(vector)
            finally:
                client_module.seal = seal  # type: ignore[attr-defined]

        session.contribute = contribute  # type: ignore[method-assign]

    return meddle


def rounds(stream: Callable[..., bytes]) -> dict[str, Script]:
    """Every round file by name."""
    small = {"threshold": 3, "min_survivors": 2, "corrupt_holders": 0}
    return {
        BASE: make_round(
            BASE,
            "Suite 1, three members, all needed; client 3 is silent.",
            stream=stream,
            clients=[1, 2, 3],
            members=[101, 102, 103],
            silent={"clients": {3: 0}},
            length=5,
            modulus_bits=22,
            suite=1,
            **small,
        ),
        "classical_m4": make_round(
            "classical_m4",
            "Four members, ids of every width, one a client too; the last does not answer, two attach bundles.",
            stream=stream,
            clients=[2, 300],
            members=[1, 300, 70_001, 2**31 - 1],
            silent={"members": {2**31 - 1: 1}},
            serials={1: 2**62 - 2, 300: 127, 70_001: 2**32},
            attaching=(300, 70_001),
            length=2048,
            modulus_bits=4,
            suite=1,
            **small,
        ),
        "hybrid_m3": make_round(
            "hybrid_m3",
            "Suite 2: X25519 with ML-KEM-768; one member attaches a bundle.",
            stream=stream,
            clients=[1, 2],
            members=[101, 102, 103],
            attaching=(102,),
            length=3,
            modulus_bits=20,
            suite=2,
            **small,
        ),
        "bad_round_complaint": make_round(
            "bad_round_complaint",
            "Client 2 seals what member 102 cannot open: it complains, two answers are too few, the pair is named.",
            stream=stream,
            clients=[1, 2],
            members=[101, 102, 103],
            meddle=garbling(2, 102),
            length=2,
            modulus_bits=22,
            suite=1,
            **small,
        ),
    }


def requests(script: Script, member: int) -> UnmaskRequest:
    """What the member was asked."""
    found = next(m for m in script["messages"] if (m["kind"], m["to"]) == ("UnmaskRequest", member))
    suite = keys.SUITES[script["config"]["suite"]]
    return decode(bytes.fromhex(found["bytes"]), UnmaskRequest, suite=suite, limit=10**6)


def digest_of(contribution: Contribution) -> bytes:
    """What its signature covers, hashed: suite 1."""
    return sha256(b"SAGG\x01\x01" + msgspec.msgpack.encode(contribution)).digest()


def files(stream: Callable[..., bytes]) -> dict[str, Script]:
    """Every file by name."""
    from . import one_shot_refused as refused

    scripts = rounds(stream)
    forger = refused.Forger(BASE, scripts[BASE], identities_of(scripts[BASE]), roster_of(scripts[BASE]))

    def group(name: str, comment: str, cases: Iterator[Case]) -> Script:
        return {"group": name, "comment": comment, "success": False, "cases": list(cases)}

    return {
        **scripts,
        "bad_encodings": group("encoding", "Frames that are not canonical.", refused.bad_encodings(forger)),
        "bad_configs": group("config", "Configurations out of range.", refused.bad_configs(forger)),
        "bad_committees": group("client", "In place of Committee.", refused.bad_committees(forger)),
        "bad_policy": group("client", "Honest messages that policies forbid.", refused.bad_policy(forger)),
        "bad_requests": group("member", "In place of UnmaskRequest.", refused.bad_requests(forger)),
        "complaints": {
            **group("complaint", "Requests that are answered with a Complaint.", refused.complaints(forger)),
            "success": True,
        },
        "bad_to_server": group("server", "Messages that the server rejects.", refused.bad_to_server(forger)),
        "bad_rounds": group("abort", "Rounds that the server ends without a sum.", refused.bad_rounds(forger)),
    }
