"""One round at full size: every client masks for real, the sum must be the plain one, each time has its floor.

- All times are CPU seconds of this process. `client.*` is the median over the surviving clients.
- `client.mask_s` is the whole `contribute` call: pack, agree, derive, expand, add, hash, sign. `server.unmask_s` is the
  whole last phase: reconstruct, agree, derive, expand, subtract, unpack.
- A floor is the time that AES-256-CTR and addition alone take for the same bytes, measured in the same run on one
  cached block with one cipher.
- `server.verify_s` is the hashing and signature checking inside `server.total_s`.
- `server.peak_bytes` is the peak that tracemalloc sees inside the server's calls, in a second round; received messages
  are not counted.
"""

from __future__ import annotations

import argparse
import builtins
import os
import statistics
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

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
    PeerRejected,
    PersistBeforeSend,
    Phase,
    Roster,
    RoundConfig,
    SendMessage,
    required_threshold,
)
from protocols.primitives.packing import LANE_BITS, largest_entry, packed_bytes
from protocols.primitives.prg import BLOCK_BYTES
from protocols.wire import MaskedInput, decode_signed, message_limit

from .harness import Stopwatch, best_cpu_seconds, say, show

FLOOR_BYTES = 256 * 1024 * 1024
COLLUDING_SHARE = 10  # a tenth of the clients may collude


def add_command(commands: Any) -> None:
    """Registers `speed`."""
    parser = commands.add_parser("speed", help="one round at full size, beside its floors")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--degree", type=int, default=None, help="neighbours; default: the complete graph")
    parser.add_argument("--dropouts", type=float, default=10, help="percent of the clients, lost after ShareKeys")
    parser.add_argument("--bits", type=int, default=32, choices=LANE_BITS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    facts = measure(
        clients=options.clients,
        dimension=options.dimension,
        degree=options.degree,
        dropouts=options.dropouts,
        bits=options.bits,
        threads=options.threads,
    )
    show("speed", facts, as_json=options.json)
    return 0


def measure(
    *, clients: int, dimension: int, degree: int | None, dropouts: float, bits: int, threads: int
) -> dict[str, Any]:
    """Runs the benchmark; the facts that it prints."""
    config = round_config(clients=clients, dimension=dimension, degree=degree, bits=bits)
    dropped = frozenset(ClientId(client) for client in range(1, round(clients * dropouts / 100) + 1))
    say(f"floor: AES-256-CTR and addition, {FLOOR_BYTES >> 20} MiB")
    seconds_per_byte = floor_seconds(FLOOR_BYTES) / FLOOR_BYTES
    say(f"timed round: {clients} clients, {dimension} coordinates, {len(dropped)} dropouts")
    timed = _Round(config, dropped, threads=threads)
    timed.run()
    say("the same round again, for memory")
    traced = _Round(config, dropped, threads=threads, trace=True)
    traced.run()

    vector_bytes = packed_bytes(dimension, bits)
    survivors = clients - len(dropped)
    neighbours = config.degree
    # Each dropout has as many surviving neighbours as it has, give or take the other dropouts.
    pair_masks = sum(len([peer for peer in timed.holders(client) if peer not in dropped]) for client in dropped)
    client_floor = (neighbours + 1) * vector_bytes * seconds_per_byte
    server_floor = (survivors + pair_masks) * vector_bytes * seconds_per_byte
    client = {part: statistics.median(watch.cpu[part] for watch in timed.watches) for part in ("total", "mask")}
    server = timed.server_watch.cpu
    return {
        "clients": clients,
        "dimension": dimension,
        "degree": neighbours,
        "threshold": config.threshold,
        "dropouts": len(dropped),
        "bits": bits,
        "threads": threads,
        "exact": True,  # both rounds raise otherwise
        "client": {
            "total_s": client["total"],
            "mask_s": client["mask"],
            "floor_s": client_floor,
            "mask_over_floor": client["mask"] / client_floor,
        },
        "server": {
            "total_s": server["total"],
            "verify_s": timed.verify_seconds,
            "unmask_s": server["unmask"],
            "unmask_wall_s": timed.server_watch.wall["unmask"],
            "floor_s": server_floor,
            "unmask_over_floor": server["unmask"] / server_floor,
            "peak_bytes": traced.peak_bytes,
            "peak_over_vector": traced.peak_bytes / vector_bytes,
        },
        "upload_bytes": timed.upload_bytes,
        "float32_bytes": 4 * dimension,
    }


def round_config(*, clients: int, dimension: int, degree: int | None, bits: int) -> RoundConfig:
    """A round with a tenth of the clients colluding."""
    colluders = clients // COLLUDING_SHARE
    complete = degree is None or degree >= clients - 1
    corrupt = colluders if complete else max(1, (degree or 0) // COLLUDING_SHARE)
    threshold = required_threshold(holders=clients if complete else (degree or 0) + 1, corrupt_holders=corrupt)
    return RoundConfig(
        round_id=os.urandom(32),
        cohort=clients,
        threshold=threshold,
        min_survivors=max(threshold, clients // 2, 0 if complete else (degree or 0) + 2),
        degree=clients - 1 if complete else degree or 0,
        corrupt_holders=corrupt,
        length=dimension,
        modulus_bits=bits,
        model=bytes(32),
        binding=bytes(32),
    )


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


class _Round:
    """All parties of one round; clients are run one after the other, and vectors are made when they are needed."""

    def __init__(self, config: RoundConfig, dropped: frozenset[ClientId], *, threads: int, trace: bool = False) -> None:
        self.config, self.dropped, self.trace = config, dropped, trace
        ids = [ClientId(client) for client in range(1, config.cohort + 1)]
        identities = {client: Identity.generate() for client in ids}
        self.roster = Roster({client: identity.public for client, identity in identities.items()})
        policy = ClientPolicy(min_survivors=config.min_survivors, corrupt_holders=config.corrupt_holders)
        self.clients = {
            client: PairwiseClient(
                config, client, identity=identities[client], roster=self.roster, policy=policy, history=History()
            )
            for client in ids
        }
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.server = PairwiseServer(
            config, roster=self.roster, map=builtins.map if self.pool is None else self.pool.map
        )
        self.client_watch = {client: Stopwatch() for client in ids}
        self.server_watch = Stopwatch()
        self.verify_seconds = 0.0
        self.peak_bytes = 0
        self.kept_bytes = 0
        self.upload_bytes = 0
        self.plain = np.zeros(config.length, dtype=np.uint32)
        self.result: AggregateReady | None = None

    @property
    def watches(self) -> list[Stopwatch]:
        """Of the clients that did all their work."""
        return [watch for client, watch in self.client_watch.items() if client not in self.dropped]

    def holders(self, client: ClientId) -> list[ClientId]:
        """The client's neighbours."""
        return [peer for peer in self.server._rules.graph.holders(client) if peer != client]

    def run(self) -> None:
        """The whole round.

        Raises:
            ValueError: the sum is not the plain one.
        """
        if self.trace:
            tracemalloc.start()
        for client in self.clients:
            self._client(client, self.clients[client].start)
        while self.result is None:
            unmask = self.server.phase is Phase.UNMASK
            for event in self._server(self.server.close_phase, "unmask" if unmask else "route"):
                match event:
                    case AggregateReady():
                        self.result = event
                    case SendMessage(to=to, data=data) if to is not None:
                        self._client(to, partial(self.clients[to].receive, data))
        tracemalloc.stop()
        if self.pool is not None:
            self.pool.shutdown()
        expected = self.plain & np.uint32(2**self.config.modulus_bits - 1)
        if not np.array_equal(self.result.vector, expected):
            raise ValueError("the sum is not the plain one")

    def _client(self, client: ClientId, call: Callable[[], list[Event]], part: str = "talk") -> None:
        watch = self.client_watch[client]
        with watch.measure("total"), watch.measure(part):
            events = call()
        for event in events:
            match event:
                case PersistBeforeSend():
                    self._client(client, self.clients[client].persisted)
                case ContributionNeeded() if client not in self.dropped:
                    vector = self._vector(client)
                    self._client(client, partial(self.clients[client].contribute, vector), "mask")
                case SendMessage(data=data):
                    self._deliver(client, data)

    def _deliver(self, client: ClientId, data: bytes) -> None:
        if client == max(self.clients):
            self.upload_bytes += len(data)
        if self.server.phase is Phase.MASKED_INPUT and not self.trace:
            watch = Stopwatch()
            with watch.measure("verify"):
                tail = packed_bytes(self.config.length, self.config.modulus_bits)
                frame = decode_signed(data, MaskedInput, limit=message_limit(self.config.cohort), tail_bytes=tail)
                self.roster.check_signature(client, "MaskedInput", frame.digest, frame.signature)
            self.verify_seconds += watch.cpu["verify"]
        rejected = self._server(lambda: self.server.receive(client, data), "receive")
        if any(isinstance(event, PeerRejected) for event in rejected):
            raise ValueError(f"an honest client was rejected: {rejected}")

    def _server(self, call: Callable[[], list[Event]], part: str) -> list[Event]:
        with self.server_watch.measure("total"), self.server_watch.measure(part):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            events = call()
            now, peak = tracemalloc.get_traced_memory()
        self.peak_bytes = max(self.peak_bytes, self.kept_bytes + peak - before)
        self.kept_bytes += now - before
        return events

    def _vector(self, client: ClientId) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """The client's vector: a cheap, deterministic pattern; masking takes the same time for any values."""
        bound = largest_entry(self.config.modulus_bits, self.config.cohort)
        pattern = (
            np.arange(self.config.length, dtype=np.uint64) * np.uint64(2654435761 * int(client)) % np.uint64(bound + 1)
        )
        vector = pattern.astype(np.uint32)
        np.add(self.plain, vector, out=self.plain)
        return vector
