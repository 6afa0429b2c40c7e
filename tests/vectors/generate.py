"""Writes `pairwise/*.json` and `one_shot/*.json`: whole rounds as scripts, and single things that must be refused.

`python -m tests.vectors.generate [directory]`. The output depends on nothing but the code: all randomness is SHAKE-256
of a name, and Ed25519 is deterministic. README.md, next to this file, describes the format.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from hashlib import shake_256
from pathlib import Path
from typing import Any

import numpy as np

from protocols import ClientId
from protocols.pairwise.removable import links
from protocols.pairwise.removable import seeds as component_seeds
from protocols.pairwise.sealed import Sealed
from protocols.primitives import keys
from protocols.roster import bundle_root
from protocols.wire import AdvertiseKeys, ShareKeys, decode, decode_signed

from . import one_shot_rounds
from .live import Case, Played, Script, Tape, config_of, play, roster_of
from .refused import (
    Forger,
    bad_configs,
    bad_encodings,
    bad_key_bundles,
    bad_policy,
    bad_rounds,
    bad_sealed_shares,
    bad_survivors,
    bad_to_server,
)

DIRECTORY = Path(__file__).parent / "pairwise"
BASE = "complete_n5_16bit_dropouts"


def stream(name: str, client: int, size: int = 4096) -> bytes:
    """Bytes that look random."""
    return shake_256(f"secagg test vectors/{name}/{client}".encode()).digest(size)


def make_round(
    name: str,
    comment: str,
    *,
    clients: list[int],
    silent: Mapping[int, int] | None = None,
    not_invited: tuple[int, ...] = (),
    serials: Mapping[int, int] | None = None,
    planted: bytes = b"",
    largest: int,
    **config: int,
) -> Script:
    """Plays a round and writes down everything that went in and came out.

    Args:
        name: from which all randomness follows.
        comment: what the file shows.
        clients: who takes part.
        silent: how many messages a client sends before it vanishes.
        not_invited: further clients on the roster.
        serials: numbers of key bundles, 1 unless told.
        planted: what the first client draws for its Shamir coefficients to begin with.
        largest: the largest entry of a vector.
        config: the fields of the configuration that are numbers.
    """
    digests = {field: stream(name, i, 32).hex() for i, field in enumerate(("round_id", "model", "binding"), 2**31)}
    tapes = {client: stream(name, client) for client in clients}
    start = 4 * 32
    tapes[clients[0]] = tapes[clients[0]][:start] + planted + tapes[clients[0]][start + len(planted) :]
    vectors = {}
    for i, client in enumerate(clients):
        drawn = np.frombuffer(stream(f"{name}/vector", client, 4 * config["length"]), dtype="<u4")
        vectors[str(client)] = [int(value) % (largest + 1) for value in drawn]
        vectors[str(client)][0] = largest if i != 1 else 0
    script: Script = {
        "group": "round",
        "comment": comment,
        "success": True,
        "identities": {str(c): stream(f"{name}/identity", c, 32).hex() for c in sorted((*clients, *not_invited))},
        "config": {
            "round_id": digests["round_id"],
            "cohort": len(clients),
            **{"suite": keys.CLASSICAL.number} | config,
            "model": digests["model"],
            "binding": digests["binding"],
        },
        "policy": {
            "min_survivors": config["min_survivors"],
            "corrupt_holders": config["corrupt_holders"],
            "suite": config.get("suite", keys.CLASSICAL.number),
        },
        "serials": {str(client): (serials or {}).get(client, 1) for client in clients},
        "rand": {str(client): tapes[client].hex() for client in clients},
        **({"kem": {str(c): stream(f"{name}/kem", c).hex() for c in clients}} if "suite" in config else {}),
        "vectors": vectors,
        "silent": {str(client): count for client, count in (silent or {}).items()},
    }
    played = play(script)
    script["rand"] = {str(client): tape.data[: tape.used].hex() for client, tape in played.tapes.items()}
    if played.kem:
        script["kem"] = {str(client): tape.data[: tape.used].hex() for client, tape in played.kem.items()}
    script["derived"], script["keys"] = derived(script, played)
    script["messages"] = played.messages
    if played.result is not None:
        script["survivors"] = sorted(played.result.survivors)
        script["result"] = played.result.vector.tolist()
        script["transcript"] = played.result.transcript.hex()
        if played.result.removed:
            removed = sorted(played.result.removed.items())
            script["removed"] = {str(client): [seed.hex() for seed in seeds] for client, seeds in removed}
    if played.error is not None:
        script |= {"success": False, "error": type(played.error).__name__, "phase": played.error.phase}
    return script


def derived(script: Script, played: Played) -> tuple[dict[str, Any], dict[str, Any]]:
    """Digests, holders and symmetric keys of a round."""
    rules, cohort, survivors = played.server._rules, played.server._cohort, played.server._survivors
    private = {client: Tape(bytes.fromhex(script["rand"][str(client)])) for client in rules.bundles}
    channel_keys = {client: keys.AgreementKey(tape(32), rules.suite) for client, tape in private.items()}
    mask_keys = {client: keys.AgreementKey(tape(32), rules.suite) for client, tape in private.items()}
    for tape in private.values():
        tape(32)  # fresh
    seeds = {client: tape(32) for client, tape in private.items()}
    removable = rules.config.removable
    holders = {client: rules.graph.holders(client) for client in rules.bundles}
    pairs = [(a, b) for a in holders for b in holders[a] if a != b]

    sealed = {}
    for message in played.messages if rules.suite.ciphertext_bytes else []:
        if message["kind"] == "ShareKeys":
            data = bytes.fromhex(message["bytes"])
            frame = decode_signed(data, ShareKeys, suite=rules.suite, removable=removable, limit=rules.limit)
            sender = ClientId(message["from"])
            peers = (peer for peer in holders[sender] if peer != sender)
            sealed |= {(sender, peer): one for peer, one in zip(peers, frame.message.sealed, strict=True)}

    def channel(sender: ClientId, receiver: ClientId) -> bytes:
        secret = channel_keys[sender].agree(rules.bundles[receiver].channel_key)
        if sealed:
            box = Sealed.of(sealed[sender, receiver], rules.suite, removable)
            secret += channel_keys[receiver].decapsulate(box.ciphertext)
        return rules.channel_key(secret, sender, receiver)

    def pair_mask(one: ClientId, other: ClientId) -> bytes:
        agreed = mask_keys[one].agree(rules.bundles[other].mask_key)
        ends = ((one, other), (other, one))
        return rules.pair_mask_seed(agreed, {c: rules.pair_half(mask_keys[c].secret, c, peer) for c, peer in ends})

    advertised = bytes.fromhex(played.messages[0]["bytes"])
    first = decode(advertised, AdvertiseKeys, suite=rules.suite, limit=rules.limit)
    digests = {
        "config": config_of(script).digest(),
        "roster": roster_of(script).digest,
        "context0": first.context,
        "bundle_root": bundle_root(list(rules.bundles.values())),
        "context": rules.context,
        "cohort": rules.cohort_digest(cohort),
        "view": rules.view(cohort, survivors),
    }
    secret_keys = {
        "channel": {f"{a},{b}": channel(a, b).hex() for a, b in pairs},
        "pair_mask": {f"{a},{b}": pair_mask(a, b).hex() for a, b in pairs if a < b},
        "self_mask": {str(c): rules.self_mask_seed(c, seed).hex() for c, seed in seeds.items()},
        "self_seed_commitment": {str(c): rules.seed_commitment(c, seed).hex() for c, seed in seeds.items()},
    }
    if removable:
        chains = {client: links(rules, client, tape(32)) for client, tape in private.items()}
        secret_keys["removable_seed"] = {
            f"{client},{k}": seed.hex()
            for client, chain in chains.items()
            for k, seed in enumerate(component_seeds(rules, client, chain), 1)
        }
    public = {name: digest.hex() for name, digest in digests.items()}
    return {**public, "holders": {str(c): list(there) for c, there in holders.items()}}, secret_keys


def ring_round() -> Script:
    """Client ids of every msgpack width, a roster larger than the cohort, and two dropouts far apart on the ring."""
    clients = [1, 2, 127, 128, 255, 256, 65535, 65536, 70_000, 2**31 - 1]
    make = partial(
        make_round,
        "ring_degree4",
        "SecAgg+: ring of degree 4, ids of every width; one dropout after ShareKeys, one after MaskedInput.",
        clients=clients,
        not_invited=(77,),
        serials={1: 2**62 - 1, 2: 127, 127: 128, 128: 256, 255: 65536, 256: 2**32},
        largest=2**16 - 1,
        threshold=4,
        min_survivors=8,
        degree=4,
        corrupt_holders=1,
        length=4,
        modulus_bits=16,
    )
    holders = make()["derived"]["holders"]
    first = clients[3]
    # On a ring of ten places, exactly one client shares no holder with the first: the opposite one.
    second = next(c for c in clients if not set(holders[str(first)]) & set(holders[str(c)]))
    return make(silent={first: 2, second: 3})


def rounds() -> dict[str, Script]:
    """Every round file by name."""
    return {
        "complete_n3_32bit": make_round(
            "complete_n3_32bit",
            "Complete graph of three, 32-bit lanes, nobody missing. Client 1 draws two elements outside the field.",
            clients=[1, 2, 3],
            planted=bytes.fromhex("fffff1fff0ff"),
            largest=2**32 - 1,
            threshold=3,
            min_survivors=3,
            degree=2,
            corrupt_holders=0,
            length=5,
            modulus_bits=32,
        ),
        "complete_n5_16bit_dropouts": make_round(
            "complete_n5_16bit_dropouts",
            "Complete graph of five, 16-bit lanes; client 3 is silent after ShareKeys, client 2 after MaskedInput.",
            clients=[1, 2, 3, 4, 5],
            silent={3: 2, 2: 3},
            largest=2**16 - 1,
            threshold=3,
            min_survivors=3,
            degree=4,
            corrupt_holders=0,
            length=7,
            modulus_bits=16,
        ),
        "complete_n4_packed12": make_round(
            "complete_n4_packed12",
            "Packed lanes: five of 12 bits in a 64-bit word, the last word not full; client 4 never shares keys.",
            clients=[1, 2, 3, 4],
            silent={4: 1},
            largest=(2**12 - 1) // 4,
            threshold=3,
            min_survivors=3,
            degree=3,
            corrupt_holders=0,
            length=7,
            modulus_bits=12,
        ),
        "hybrid_n4_16bit_dropout": make_round(
            "hybrid_n4_16bit_dropout",
            "Suite 2: X25519 with ML-KEM-768; client 3 is silent after ShareKeys.",
            clients=[1, 2, 3, 4],
            silent={3: 2},
            largest=2**16 - 1,
            threshold=3,
            min_survivors=3,
            degree=3,
            corrupt_holders=0,
            length=5,
            modulus_bits=16,
            suite=2,
        ),
        "complete_n5_removable": make_round(
            "complete_n5_removable",
            "Two removable components; one dropout after ShareKeys, one after MaskedInput: only the second one goes.",
            clients=[1, 2, 3, 4, 5],
            silent={2: 2, 4: 3},
            largest=2**32 - 1,
            threshold=3,
            min_survivors=3,
            degree=4,
            corrupt_holders=0,
            length=3,
            modulus_bits=32,
            removable=2,
        ),
        "ring_degree4": ring_round(),
        "bad_round_too_few_signatures": make_round(
            "bad_round_too_few_signatures",
            "Four clients, threshold 3; one is silent after ShareKeys, one after MaskedInput: no sum is released.",
            clients=[1, 2, 3, 4],
            silent={3: 2, 4: 3},
            largest=2**16 - 1,
            threshold=3,
            min_survivors=3,
            degree=3,
            corrupt_holders=0,
            length=5,
            modulus_bits=16,
        ),
    }


def files() -> dict[str, Script]:
    """Every file by name."""
    scripts = rounds()
    forger = Forger(BASE, scripts[BASE])

    def group(name: str, comment: str, cases: Iterator[Case]) -> Script:
        return {"group": name, "comment": comment, "success": False, "cases": list(cases)}

    return {
        **scripts,
        "bad_encodings": group("encoding", "Frames (header and body) that are not canonical.", bad_encodings()),
        "bad_configs": group("config", "Configurations and rosters out of range.", bad_configs(forger)),
        "bad_key_bundles": group("client", "In place of KeyBundles.", bad_key_bundles(forger)),
        "bad_sealed_shares": group("client", "In place of SealedShares.", bad_sealed_shares(forger)),
        "bad_survivors": group("client", "In place of SurvivorList and SurvivorSignatures.", bad_survivors(forger)),
        "bad_policy": group("client", "Honest messages that the client's policy forbids.", bad_policy(forger)),
        "bad_to_server": group("server", "Messages of a client that the server rejects.", bad_to_server(forger)),
        "bad_rounds": group("abort", "Rounds that the server ends without a sum.", bad_rounds(forger)),
    }


def text_of(content: Script) -> str:
    """JSON with one line for each entry, so that changes can be read."""

    def rows(value: Any) -> str:
        if isinstance(value, dict):
            inner = ",\n  ".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in value.items())
            return f"{{\n  {inner}\n }}" if inner else "{}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n  " + ",\n  ".join(json.dumps(one) for one in value) + "\n ]"
        return json.dumps(value)

    return "{\n " + ",\n ".join(f"{json.dumps(key)}: {rows(value)}" for key, value in content.items()) + "\n}\n"


def main(directory: Path = DIRECTORY.parent) -> None:
    """Writes every file."""
    written = {DIRECTORY.name: files(), one_shot_rounds.DIRECTORY.name: one_shot_rounds.files(stream)}
    for protocol, contents in written.items():
        (directory / protocol).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (directory / protocol / f"{name}.json").write_text(text_of(content))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
