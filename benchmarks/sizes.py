"""How many bytes each message of a round has, for one client, in both directions. No clock, no cryptography.

Rules:

1. Real messages of the right shape are encoded with dummy bytes; the numbers are exact.
2. The round is one without dropouts, which only make downloads smaller.
3. The client is the one with the highest id, in its first round. In a ring its neighbours are taken to be those before
   it; a neighbour with a shorter id saves one or two bytes of SurvivorSignatures.
4. The model that clients start from, and the result, travel outside the protocol and are not counted.
"""

from __future__ import annotations

import argparse
from typing import Any

from protocols.primitives.keys import SIGNATURE_BYTES, SUITES, Suite
from protocols.primitives.packing import LANE_BITS, packed_bytes
from protocols.primitives.shamir import SHARE_BYTES
from protocols.wire import (
    FRESH_BYTES,
    SERVER,
    AdvertiseKeys,
    ConsistencyCheck,
    Invitation,
    KeyBundle,
    KeyBundles,
    MaskedInput,
    SealedShares,
    ShareKeys,
    SurvivorList,
    SurvivorSignatures,
    Unmask,
    encode,
    sealed_bytes,
)

from .harness import add_output_options, add_suite_option, publish
from .one_shot_sizes import count_one_shot
from .rounds import fixed_degree, round_config

DIGEST = bytes(32)


def add_command(commands: Any) -> None:
    """Registers `sizes`."""
    parser = commands.add_parser("sizes", help="bytes of every message of a round, for one client")
    parser.add_argument("--protocol", choices=("pairwise", "one_shot"), default="pairwise")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--degree", type=int, default=None, help="neighbours; default: the complete graph")
    parser.add_argument("--members", type=int, default=16, help="of the committee (one_shot)")
    parser.add_argument("--bits", type=int, default=32, choices=LANE_BITS)
    add_suite_option(parser)
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    if options.protocol == "one_shot":
        if options.degree is not None:
            raise ValueError("a one_shot round has no degree")
        facts = count_one_shot(
            clients=options.clients,
            dimension=options.dimension,
            members=options.members,
            bits=options.bits,
            suite=SUITES[options.suite],
        )
        publish("sizes-one-shot", facts, options)
        return 0
    facts = count(
        clients=options.clients,
        dimension=options.dimension,
        degree=options.degree,
        bits=options.bits,
        suite=SUITES[options.suite],
    )
    publish("sizes", facts, options)
    return 0


def count(*, clients: int, dimension: int, degree: int | None, bits: int, suite: Suite) -> dict[str, Any]:
    """The facts that the benchmark prints; sizes in bytes."""
    config = round_config(
        clients=clients,
        dropouts=0,
        dimension=dimension,
        bits=bits,
        degree=fixed_degree(degree, clients=clients),
        suite=suite.number,
    )
    vector, float32 = packed_bytes(dimension, bits), 4 * dimension
    up = uploads(clients=clients, degree=config.degree, vector_bytes=vector, suite=suite)
    down = downloads(clients=clients, degree=config.degree, suite=suite)
    total = sum(up.values())
    return {
        "clients": clients,
        "dimension": dimension,
        "degree": config.degree,
        "bits": bits,
        "suite": suite.number,
        "upload": {**up, "total": total},
        "download": {**down, "total": sum(down.values())},
        "vector_bytes": vector,
        "float32_bytes": float32,
        "overhead_percent": 100 * (total / (float32 * bits / 32) - 1),
        "ratio_to_float32": total / float32,
    }


def uploads(*, clients: int, degree: int, vector_bytes: int, suite: Suite) -> dict[str, int]:
    """What a client sends, by message."""
    me: dict[str, Any] = {"context": DIGEST, "sender": clients}
    shares = bytes(SHARE_BYTES * (degree + 1))
    signed = {
        "ShareKeys": ShareKeys(**me, seed_commitment=DIGEST, sealed=(bytes(sealed_bytes(suite)),) * degree),
        "MaskedInput": MaskedInput(**me, cohort=DIGEST),
        "ConsistencyCheck": ConsistencyCheck(**me, view=DIGEST),
        "Unmask": Unmask(**me, shares=shares),
    }
    sizes = {"AdvertiseKeys": len(encode(AdvertiseKeys(**me, bundle=_bundle(clients, suite)), suite=suite))}
    sizes |= {name: len(encode(message, suite=suite)) + SIGNATURE_BYTES for name, message in signed.items()}
    sizes["MaskedInput"] += vector_bytes
    return sizes


def downloads(*, clients: int, degree: int, suite: Suite) -> dict[str, int]:
    """What a client receives, by message."""
    server: dict[str, Any] = {"context": DIGEST, "sender": SERVER}
    everybody = tuple(range(1, clients + 1))
    holders = everybody[-degree - 1 :]
    messages = (
        Invitation(**server, round_id=DIGEST, model=DIGEST),
        KeyBundles(**server, bundles=tuple(_bundle(client, suite) for client in everybody)),
        SealedShares(**server, cohort=everybody, sealed=(bytes(sealed_bytes(suite)),) * degree),
        SurvivorList(**server, survivors=everybody),
        SurvivorSignatures(**server, signers=holders, signatures=(bytes(SIGNATURE_BYTES),) * len(holders)),
    )
    return {type(message).__name__: len(encode(message, suite=suite)) for message in messages}


def _bundle(client: int, suite: Suite) -> KeyBundle:
    return KeyBundle(
        client=client,
        serial=1,
        fresh=bytes(FRESH_BYTES),
        channel_key=bytes(suite.public_key_bytes),
        mask_key=bytes(suite.public_key_bytes),
        signature=bytes(SIGNATURE_BYTES),
    )
