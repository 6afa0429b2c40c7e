"""One round at full size: every client masks for real, the sum must be the plain one, each time has its floor.

- Times as in `rounds.py`; `client.*` is the median over the surviving clients.
- A floor is the time that AES-256-CTR and addition alone take for the same bytes, measured in the same run on one
  cached block with one cipher. In a one-shot round the bytes are those of the matrix, and at a client of its errors.
- `server.verify_s` is the hashing and signature checking inside `server.total_s`.
- `server.peak_bytes` is the peak that tracemalloc sees in a second server; received messages are not counted.
- `member.total_s` is the median over a one-shot committee.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.one_shot.rules import CANARIES
from protocols.primitives.packing import LANE_BITS, packed_bytes
from protocols.primitives.prg import BLOCK_BYTES

from .harness import add_output_options, add_suite_option, best_cpu_seconds, publish, say
from .rounds import OneShotRound, Round, expansion, fixed_degree, one_shot_config, round_config

FLOOR_BYTES = 256 * 1024 * 1024
MATRIX_BYTES = 4  # of AES for each coordinate of a one-shot round
ERROR_BYTES = 10


def add_command(commands: Any) -> None:
    """Registers `speed`."""
    parser = commands.add_parser("speed", help="one round at full size, beside its floors")
    parser.add_argument("--protocol", choices=("pairwise", "one_shot"), default="pairwise")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--degree", type=int, default=None, help="neighbours; default: the complete graph")
    parser.add_argument("--members", type=int, default=16, help="of the committee (one_shot)")
    parser.add_argument("--dropouts", type=float, default=10, help="percent of the clients, lost where they cost most")
    parser.add_argument("--bits", type=int, default=32, choices=LANE_BITS)
    parser.add_argument("--threads", type=int, default=1)
    add_suite_option(parser)
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    if options.protocol == "one_shot":
        if options.degree is not None or options.threads != 1:
            raise ValueError("a one_shot round has no degree, and its benchmark has one thread")
        facts = measure_one_shot(
            clients=options.clients,
            dimension=options.dimension,
            members=options.members,
            dropouts=options.dropouts,
            bits=options.bits,
            suite=options.suite,
        )
        publish("speed-one-shot", facts, options)
        return 0
    facts = measure(
        clients=options.clients,
        dimension=options.dimension,
        degree=options.degree,
        dropouts=options.dropouts,
        bits=options.bits,
        threads=options.threads,
        suite=options.suite,
    )
    publish("speed", facts, options)
    return 0


def measure(
    *, clients: int, dimension: int, degree: int | None, dropouts: float, bits: int, threads: int, suite: int
) -> dict[str, Any]:
    """Runs the benchmark; the facts that it prints."""
    dropped = round(clients * dropouts / 100)
    config = round_config(
        clients=clients,
        dropouts=dropped,
        dimension=dimension,
        bits=bits,
        degree=fixed_degree(degree, clients=clients),
        suite=suite,
    )
    say(f"floor: AES-256-CTR and addition, {FLOOR_BYTES >> 20} MiB")
    seconds_per_byte = floor_seconds(FLOOR_BYTES) / FLOOR_BYTES
    say(f"round: {clients} clients, {dimension} coordinates, {dropped} dropouts")
    with expansion(threads) as expand:
        timed = Round(config, map=expand)
        timed.run()
        say("the server again, for time and memory")
        server, peak_bytes = timed.server_seconds(), timed.server_peak_bytes()

    vector_bytes = packed_bytes(dimension, bits)
    client_floor = (config.degree + 1) * vector_bytes * seconds_per_byte
    server_floor = timed.removed_masks() * vector_bytes * seconds_per_byte
    mask = timed.client_seconds("mask")
    return {
        "clients": clients,
        "dimension": dimension,
        "degree": config.degree,
        "threshold": config.threshold,
        "dropouts": dropped,
        "bits": bits,
        "suite": suite,
        "threads": threads,
        "exact": True,  # the round raises otherwise
        "client": {
            "total_s": timed.client_seconds("total"),
            "mask_s": mask,
            "floor_s": client_floor,
            "mask_over_floor": mask / client_floor,
        },
        "server": {
            "total_s": server.cpu["total"],
            "verify_s": timed.verify_seconds(),
            "unmask_s": server.cpu["unmask"],
            "unmask_wall_s": server.wall["unmask"],
            "floor_s": server_floor,
            "unmask_over_floor": server.cpu["unmask"] / server_floor,
            "peak_bytes": peak_bytes,
            "peak_over_vector": peak_bytes / vector_bytes,
        },
        "upload_bytes": timed.upload_bytes(),
        "float32_bytes": 4 * dimension,
    }


def measure_one_shot(
    *, clients: int, dimension: int, members: int, dropouts: float, bits: int, suite: int
) -> dict[str, Any]:
    """Runs the benchmark on a one-shot round; the facts that it prints."""
    dropped = round(clients * dropouts / 100)
    config = one_shot_config(
        clients=clients, dropouts=dropped, dimension=dimension, bits=bits, members=members, suite=suite
    )
    say(f"floor: AES-256-CTR and addition, {FLOOR_BYTES >> 20} MiB")
    seconds_per_byte = floor_seconds(FLOOR_BYTES) / FLOOR_BYTES
    say(f"one-shot round: {clients} clients, {members} members, {dimension} coordinates, {dropped} dropouts")
    timed = OneShotRound(config)
    timed.run()
    say("the server again, for time and memory")
    server, peak_bytes, verify = timed.server_seconds(), timed.server_peak_bytes(), timed.verify_seconds()
    words = dimension + CANARIES
    client_floor = (MATRIX_BYTES + ERROR_BYTES) * words * seconds_per_byte
    server_floor = MATRIX_BYTES * words * seconds_per_byte
    mask = timed.client_seconds("mask")
    return {
        "protocol": "one_shot",
        "clients": clients,
        "dimension": dimension,
        "members": members,
        "threshold": config.threshold,
        "dropouts": dropped,
        "bits": config.modulus_bits,
        "suite": suite,
        "exact": True,  # the round raises otherwise
        "client": {
            "total_s": timed.client_seconds("total"),
            "mask_s": mask,
            "floor_s": client_floor,
            "mask_over_floor": mask / client_floor,
        },
        "member": {"total_s": timed.member_seconds()},
        "server": {
            "total_s": server.cpu["total"],
            "verify_s": verify,
            "without_verify_s": server.cpu["total"] - verify,
            "unmask_s": server.cpu["unmask"],
            "unmask_wall_s": server.wall["unmask"],
            "floor_s": server_floor,
            "unmask_over_floor": server.cpu["unmask"] / server_floor,
            "peak_bytes": peak_bytes,
            "peak_over_vector": peak_bytes / (4 * words),
        },
        "upload_bytes": timed.upload_bytes(),
        "float32_bytes": 4 * dimension,
    }


def floor_seconds(size: int) -> float:
    """CPU seconds for AES-256-CTR and addition over `size` bytes, one cached block at a time, one cipher."""
    zeros, keystream = bytes(BLOCK_BYTES), bytearray(BLOCK_BYTES)
    words = np.zeros(BLOCK_BYTES // 4, dtype="<u4")
    mask = np.frombuffer(keystream, dtype="<u4")

    def expand() -> None:
        stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        for _ in range(size // BLOCK_BYTES):
            stream.update_into(zeros, keystream)
            np.add(words, mask, out=words)

    return best_cpu_seconds(expand, repeat=3)
