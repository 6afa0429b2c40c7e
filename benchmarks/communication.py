"""Accuracy against bytes: more local work, fewer bits, fewer coordinates.

FedAvg on digits, a hidden layer of 32, ten Dirichlet clients; the bytes are those of the masked vectors that one client
sends over all rounds. Without noise: what is measured is what compression costs alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from .harness import add_output_options, publish, say
from .heterogeneity import HIDDEN, deal, scores
from .learners import Network
from .strategies import Strategy, train
from .utility import summary

ALPHA = 0.5
WAYS: dict[str, dict[str, Any]] = {
    "1 epoch, 80 rounds, 32 bits": {"epochs": 1, "rounds": 80},
    "1 epoch, 40 rounds, 32 bits": {"epochs": 1, "rounds": 40},
    "5 epochs, 16 rounds, 32 bits": {"epochs": 5, "rounds": 16},
    "5 epochs, 8 rounds, 32 bits": {"epochs": 5, "rounds": 8},
    "1 epoch, 40 rounds, 16 bits": {"epochs": 1, "rounds": 40, "bits": 16},
    "1 epoch, 40 rounds, 12 bits": {"epochs": 1, "rounds": 40, "bits": 12},
    "1 epoch, 40 rounds, 10 bits": {"epochs": 1, "rounds": 40, "bits": 10},
    "1 epoch, 40 rounds, 32 bits, a quarter of the coordinates": {"epochs": 1, "rounds": 40, "keep": 0.25},
    "1 epoch, 40 rounds, 32 bits, a tenth of the coordinates": {"epochs": 1, "rounds": 40, "keep": 0.1},
    "1 epoch, 40 rounds, 16 bits, a quarter of the coordinates": {"epochs": 1, "rounds": 40, "bits": 16, "keep": 0.25},
}


def run(way: dict[str, Any], seed: int) -> tuple[float, int]:
    """Accuracy of the common model in percent, and bytes sent by one client."""
    clients, tests, everything = deal(ALPHA, seed)
    network = Network(clients[0].features.shape[1], clients[0].classes, HIDDEN)
    trained = train(
        network,
        clients,
        Strategy(epochs=way["epochs"]),
        rounds=way["rounds"],
        rng=np.random.default_rng(seed),
        bits=way.get("bits", 32),
        keep=way.get("keep", 1.0),
    )
    return scores(network, trained.models, tests, everything)["global"], trained.bytes_up


def measure(*, seeds: int, names: Sequence[str]) -> dict[str, Any]:
    """Every way, cheapest last."""
    facts = {}
    for name in names:
        results = [run(WAYS[name], seed) for seed in range(seeds)]
        facts[name] = {"accuracy": summary([score for score, _ in results]), "bytes_up": results[0][1]}
        say(f"{name}: {facts[name]}")
    return facts


def add_command(commands: Any) -> None:
    """Registers `communication`."""
    parser = commands.add_parser("communication", help="accuracy against bytes for local steps, bits and sketches")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="the two cheapest ways, two seeds")
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    if options.seeds < 2:
        raise ValueError(f"--seeds must be at least 2 for a standard error, got {options.seeds}")
    names = list(WAYS)[-2:] if options.smoke else list(WAYS)
    seeds = 2 if options.smoke else options.seeds
    publish("communication", {"seeds": seeds, "ways": measure(seeds=seeds, names=names)}, options)
    return 0
