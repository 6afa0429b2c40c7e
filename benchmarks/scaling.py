"""How a round's cost grows with the number of clients, at the degree that the policy chooses.

- Every client of every round masks for real; the sum must be the plain one. Times and memory as in `rounds.py`.
- `exponents` are slopes of least-squares lines through (log clients, log cost): a cost that grows like n^e has e.
- Up to 100 clients the policy's graph is the complete one; beyond, a ring whose degree grows slowly with n.
- Nobody is sampled: all clients take part, divided among a few processes in which they take turns. They are shown the
  same bytes, and messages to the server wait on disk. `process` is the whole script: clock time of the round, with
  every party, and the most memory that its processes ever had, earlier rounds included.
- `server.peak_per_pair` is the server's peak without its accumulator and packing (12 bytes a coordinate), for each of
  the n k ordered pairs of neighbours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from protocols.graph import choose_degree
from protocols.primitives.packing import LANE_BITS

from .harness import add_output_options, add_suite_option, publish, say
from .rounds import COLLUDERS, Round, expansion, fixed_degree, round_config


def add_command(commands: Any) -> None:
    """Registers `scaling`."""
    parser = commands.add_parser("scaling", help="how cost grows with the number of clients")
    parser.add_argument("--clients", type=_numbers, default=(100, 300, 1000, 3000, 10_000), help="as in 100,300,1000")
    parser.add_argument("--dimension", type=int, default=10_000)
    parser.add_argument("--degree", type=int, default=None, help="neighbours; default: what the policy chooses")
    parser.add_argument("--colluders", type=float, default=COLLUDERS, help="percent of the clients, for the policy")
    parser.add_argument("--dropouts", type=float, default=10, help="percent of the clients, lost after ShareKeys")
    parser.add_argument("--bits", type=int, default=32, choices=LANE_BITS)
    parser.add_argument("--threads", type=int, default=1, help="for the server's mask expansion")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="among which clients are divided")
    add_suite_option(parser)
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers of clients, at least two different ones, in increasing order."""
    numbers = tuple(sorted({int(word) for word in text.split(",")}))
    if len(numbers) < 2:
        raise argparse.ArgumentTypeError("growth needs at least two different numbers of clients")
    return numbers


def _command(options: argparse.Namespace) -> int:
    facts = measure(
        clients=options.clients,
        dimension=options.dimension,
        degree=options.degree,
        colluders=options.colluders,
        dropouts=options.dropouts,
        bits=options.bits,
        threads=options.threads,
        suite=options.suite,
        processes=options.processes,
    )
    publish("scaling", facts, options)
    return 0


def measure(
    *,
    clients: Sequence[int],
    dimension: int,
    degree: int | None,
    colluders: float,
    dropouts: float,
    bits: int,
    threads: int,
    suite: int,
    processes: int,
) -> dict[str, Any]:
    """Runs the benchmark; the facts that it prints."""

    def one(n: int) -> dict[str, Any]:
        dropped, corrupt = round(n * dropouts / 100), round(n * colluders / 100)
        chosen = (
            choose_degree(clients=n, max_colluders=corrupt, max_dropouts=dropped)
            if degree is None
            else fixed_degree(degree, clients=n)
        )
        config = round_config(clients=n, dropouts=dropped, dimension=dimension, bits=bits, degree=chosen, suite=suite)
        say(f"round: {n} clients, {chosen.degree} neighbours, {dropped} dropouts")
        with expansion(threads) as expand:
            began = time.perf_counter()
            timed = Round(config, map=expand, processes=processes)
            timed.run()
            wall = time.perf_counter() - began
            server, peak_bytes = timed.server_seconds(), timed.server_peak_bytes()
        return {
            "clients": n,
            "degree": config.degree,
            "threshold": config.threshold,
            "dropouts": dropped,
            "client": {"total_s": timed.client_seconds("total"), "mask_s": timed.client_seconds("mask")},
            "server": {
                "total_s": server.cpu["total"],
                "verify_s": timed.verify_seconds(),
                "unmask_s": server.cpu["unmask"],
                "peak_bytes": peak_bytes,
                "peak_per_pair": (peak_bytes - 12 * dimension) / (n * config.degree),
            },
            "process": {"wall_s": wall, "peak_bytes": timed.peak_bytes()},
        }

    rounds = [one(n) for n in clients]
    costs: dict[str, Callable[[dict[str, Any]], float]] = {
        "client": lambda facts: facts["client"]["total_s"],
        "server": lambda facts: facts["server"]["total_s"],
        "server_peak": lambda facts: facts["server"]["peak_bytes"],
    }
    return {
        "dimension": dimension,
        "bits": bits,
        "threads": threads,
        "suite": suite,
        "processes": processes,
        "colluders_percent": colluders,
        "dropouts_percent": dropouts,
        "exact": True,  # every round raises otherwise
        "rounds": rounds,
        "exponents": {name: exponent(clients, [cost(facts) for facts in rounds]) for name, cost in costs.items()},
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of the least-squares line through (log size, log cost)."""
    slope, _ = np.polyfit(np.log(sizes), np.log(costs), 1)
    return float(slope)
